"""The command line: parse, one library call, print. One file a command.

Data goes to stdout, talk to stderr. Exit codes: 0 done; 1 the data or the machine says no; 2 wrong
usage; 3 a gate did not pass; 130 and 143 interrupted. An error is one message; `--debug` adds the
traceback.

A command imports the library when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import NoReturn

import click

from streamavg.cli import exit_codes, interrupts
from streamavg.errors import (
    IncompatibleCheckpointsError,
    MemoryLimitError,
    OptionError,
    StreamAvgError,
)
from streamavg.version import __version__

COMMANDS = ("merge", "check", "compare", "inspect", "rebuild", "evaluate", "soup", "demo")


class _Commands(click.Group):
    """Loads a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"streamavg.cli.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, package_name="streamavg")
@click.pass_context
def streamavg(context: click.Context) -> None:
    """Average Keras checkpoint files in bounded memory, without loading the models."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """Runs the command line and exits."""
    # The matrix library of NumPy starts a thread a processor when it is loaded, for nothing here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    interrupts.listen()
    debug = "--debug" in sys.argv
    try:
        code = streamavg.main(standalone_mode=False) or 0  # what a command passed to `exit`
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted; nothing was written.", exit_codes.INTERRUPTED)
    except interrupts.Terminated:
        code = _complain("terminated; nothing was written.", exit_codes.TERMINATED)
    except click.UsageError as error:
        code = _complain(_usage_message(error), exit_codes.USAGE)
    except BrokenPipeError:
        # Whoever read the output has enough of it; stdout is not flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exit_codes.REFUSED
    except (StreamAvgError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        _print_differences(error)
        code = _complain(str(error) or type(error).__name__, _exit_code(error))
    except Exception as error:
        if debug:
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        code = _complain(
            f"internal error, {what}. Please report it with what --debug prints.",
            exit_codes.REFUSED,
        )
    sys.exit(code)


def _exit_code(error: BaseException) -> int:
    is_usage = isinstance(error, OptionError) and not isinstance(error, MemoryLimitError)
    return exit_codes.USAGE if is_usage else exit_codes.REFUSED


def _usage_message(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "streamavg"
    return f"{error.format_message()} Try '{command} --help'."


def _print_differences(error: BaseException) -> None:
    """With --json, a program that reads stdout gets every difference, not only the first ten."""
    if isinstance(error, IncompatibleCheckpointsError) and "--json" in sys.argv:
        document = {"error": type(error).__name__, "differences": error.differences}
        click.echo(json.dumps(document, indent=2))


def _complain(message: str, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    return code
