"""Execute the commands in docs/runbook.md and compare what they print with what the page says.

    python scripts/runbook.py                   # the whole page, in a temporary folder
    python scripts/runbook.py --list            # what would be executed, and what not
    python scripts/runbook.py --page PAGE --folder FOLDER    # another page; files are kept

The page is the program: its blocks of console text are executed from the first to the last.

    ```console                  commands after "$ ", each followed by what it prints
    ```console failure exit=1   one command, a failure that the page explains, and its exit code
    ```console not-executed     shown only; the page says why

In what a command prints, "..." stands for anything within a line, and for any lines where it stands
alone. All else must be there as the page has it, stdout and stderr together. A command without
anything below it prints nothing. A line that ends with a backslash goes on after "> ".

Every command is run by bash in one folder, in which `fixtures` is that of this checkout; only
`export NAME=value` lasts until the end of the page. `streamavg` and `python` are those of the
Python that runs this script, with this checkout's code.

The exit code is 0 if every command did what the page says, 1 if one did not, and 2 if the page
cannot be read.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "runbook.md"
ANYTHING = "..."
COMMAND_TIMEOUT = 600  # seconds
SHOWN_LINES = 30
"""Of what a command printed, where it is not what the page says."""

FENCE = re.compile(r"^```\s*(.*)$")
EXPORT = re.compile(r"^export ([A-Za-z_]\w*)=(\S*)$")
SHELLS = {"bash", "sh", "shell", "zsh"}
"""Blocks that would look like commands to a reader, and would not be executed."""


class PageError(Exception):
    """The page cannot be read. The message starts with the line."""


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """What the first line of a block of console text says.

    Attributes:
        line: Its number in the page.
        is_failure: Whether the page explains how its command fails.
        is_executed: Whether its commands are executed.
        exit_code: With which its commands end.
    """

    line: int
    is_failure: bool = False
    is_executed: bool = True
    exit_code: int = 0


@dataclass(frozen=True)
class Command:
    """One command in the page.

    Attributes:
        line: Its number in the page.
        text: What is typed.
        expected: The lines that it prints, according to the page.
        block: The block that it is in.
    """

    line: int
    text: str
    expected: tuple[str, ...]
    block: Block


def read_page(text: str) -> list[Command]:
    """Return the commands of a page.

    Args:
        text: The page, Markdown.

    Raises:
        PageError: A block is not what the docstring above says.
    """
    return [command for block, lines in blocks(text) for command in commands(block, lines)]


def blocks(text: str) -> Iterator[tuple[Block, list[str]]]:
    """Yield the blocks of console text with their lines.

    Args:
        text: The page.
    """
    info, start, inside = "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence is None:
            inside.append(line)
        elif not start:
            info, start, inside = fence[1].strip(), number, []
        else:
            block = block_of(info, start)
            if block is not None:
                yield block, inside
            start = 0
    if start:
        raise PageError(f"{start}: this block has no end")


def block_of(info: str, line: int) -> Block | None:
    """Return what the first line of a block says, None if it holds no console text.

    Args:
        info: What stands behind the fence.
        line: Its number in the page.
    """
    language, *words = info.split() or [""]
    if language in SHELLS:
        raise PageError(f"{line}: a block of {language!r} is not executed: make it 'console'")
    if language != "console":
        return None
    exit_codes = [word.removeprefix("exit=") for word in words if word.startswith("exit=")]
    others = {word for word in words if not word.startswith("exit=")}
    if others - {"failure", "not-executed"} or len(exit_codes) > 1:
        raise PageError(f"{line}: expected failure, exit=N or not-executed, found {info!r}")
    if not all(code.isdecimal() for code in exit_codes):
        raise PageError(f"{line}: exit code {exit_codes[0]!r} is no number")
    is_failure = "failure" in others
    if is_failure and not exit_codes:
        raise PageError(f"{line}: a failure states its exit code: exit=N")
    exit_code = int(exit_codes[0]) if exit_codes else 0
    return Block(line, is_failure, "not-executed" not in others, exit_code)


def commands(block: Block, lines: Sequence[str]) -> Iterator[Command]:
    """Yield the commands of one block.

    Args:
        block: The block.
        lines: Its lines.

    Raises:
        PageError: It starts with something else, or a command cannot be executed as it stands.
    """
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(lines, block.line + 1):
        if line.startswith("$ "):
            found.append((number, [line.removeprefix("$ ")], []))
        elif not found:
            raise PageError(f"{number}: expected a command after '$ ', found {line!r}")
        elif found[-1][1][-1].endswith("\\") and not found[-1][2]:
            found[-1][1].append(line.removeprefix("> "))
        else:
            found[-1][2].append(line.rstrip())
    if (block.is_failure or block.exit_code) and len(found) != 1:
        raise PageError(f"{block.line}: a block with an exit code holds one command")
    for number, typed, printed in found:
        text = "\n".join(typed)
        if block.is_executed and text.split()[0] == "cd":
            raise PageError(f"{number}: cd does not last; every command starts in the same folder")
        yield Command(number, text, tuple(without_blank_end(printed)), block)


def without_blank_end(lines: Sequence[str]) -> list[str]:
    """Return lines without the blank ones at the end.

    Args:
        lines: The lines.
    """
    kept = list(lines)
    while kept and not kept[-1]:
        kept.pop()
    return kept


# --- comparing ------------------------------------------------------------------------------------


def pattern_of(lines: Sequence[str]) -> str:
    """Return the regular expression of some expected lines, each ended.

    Args:
        lines: The lines, "..." for anything.
    """
    return "".join(
        r"(?:[^\n]*\n)*?"
        if line.strip() == ANYTHING
        else r"[^\n]*?".join(map(re.escape, line.split(ANYTHING))) + r"\n"
        for line in lines
    )


def difference(expected: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Return what sets printed lines apart from the page's, nothing if they are as the page says.

    Args:
        expected: The page's lines.
        printed: What the command printed.

    Returns:
        How many lines are as expected; then "-" and the first line of the page that was not
        printed, and "+" and what was printed instead.
    """
    text = "".join(f"{line}\n" for line in printed)
    if re.fullmatch(pattern_of(expected), text):
        return []
    matched, end = longest_beginning(expected, text)
    rest = text[end:].splitlines()
    lines = [f"  {matched} of the page's {len(expected)} lines were printed"]
    if matched < len(expected):
        lines.append(f"- {expected[matched]}")
    lines += [f"+ {line}" for line in rest[:SHOWN_LINES]] or ["+ (nothing more)"]
    if len(rest) > SHOWN_LINES:
        lines.append(f"+ and {len(rest) - SHOWN_LINES} lines more")
    return lines


def longest_beginning(expected: Sequence[str], text: str) -> tuple[int, int]:
    """Return how many of the page's lines a text starts with, and where they end in the text.

    Args:
        expected: The page's lines.
        text: What was printed.
    """
    for count in range(len(expected), 0, -1):
        found = re.match(pattern_of(expected[:count]), text)
        if found:
            return count, found.end()
    return 0, 0


# --- executing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        exit_code: Its exit code; None if it did not end in time.
        printed: The lines it printed, stdout and stderr in the order in which they came.
        seconds: How long it took.
    """

    exit_code: int | None
    printed: tuple[str, ...]
    seconds: float


def execute(text: str, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Run one command.

    Args:
        text: What is typed.
        folder: Where.
        environment: Its environment variables.
    """
    start = time.monotonic()
    with subprocess.Popen(
        ["bash", "-c", text], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        exit_code: int | None = None
        try:
            output, _ = process.communicate(timeout=COMMAND_TIMEOUT)
            exit_code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        finally:
            if process.poll() is None:  # this script is interrupted
                os.killpg(process.pid, signal.SIGKILL)
    printed = without_blank_end([line.rstrip() for line in output.splitlines()])
    return Outcome(exit_code, tuple(printed), time.monotonic() - start)


def problems(command: Command, outcome: Outcome) -> list[str]:
    """Return how a command did not do what the page says, nothing if it did.

    Args:
        command: The command.
        outcome: How it ended.
    """
    found = []
    if outcome.exit_code is None:
        found.append(f"  did not end within {COMMAND_TIMEOUT} s")
    elif outcome.exit_code != command.block.exit_code:
        found.append(f"  exit code: expected {command.block.exit_code}, found {outcome.exit_code}")
    lines = difference(command.expected, outcome.printed)
    if found and not lines:
        lines = [f"  printed, as the page says: {line}" for line in outcome.printed[:SHOWN_LINES]]
    return found + lines


def prepare(folder: Path) -> dict[str, str]:
    """Put into a folder what the commands need, and return their environment.

    Args:
        folder: The folder that the commands run in.
    """
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name, arguments in (("streamavg", "-m streamavg"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        program.chmod(0o755)
    fixtures = folder / "fixtures"
    if not fixtures.exists():
        fixtures.symlink_to(REPOSITORY / "fixtures")
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def run_page(page: Path, folder: Path) -> int:
    """Execute a page's commands and print how each went; return the exit code.

    Args:
        page: The page.
        folder: Where to.
    """
    environment = prepare(folder)
    counts = {"ok": 0, "WRONG": 0, "not executed": 0}
    for command in read_page(page.read_text("utf-8")):
        place = f"{page.name}:{command.line}: {command.text}"
        export = EXPORT.match(command.text)
        if not command.block.is_executed:
            counts["not executed"] += 1
            print(f"not executed  {place}", flush=True)
        elif export is not None:
            environment[export[1]] = export[2]
            print(f"exported      {place}", flush=True)
        else:
            outcome = execute(command.text, folder, environment)
            wrong = problems(command, outcome)
            verdict = "WRONG" if wrong else "ok"
            counts[verdict] += 1
            print(f"{verdict:12}  {place}  ({outcome.seconds:.1f} s)", *wrong, sep="\n", flush=True)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return int(counts["WRONG"] > 0 or counts["ok"] == 0)


def list_page(page: Path) -> int:
    """Print a page's commands; return the exit code.

    Args:
        page: The page.
    """
    for command in read_page(page.read_text("utf-8")):
        executed = "executed" if command.block.is_executed else "not executed"
        expected = f"exit code {command.block.exit_code}"
        print(f"{executed:12}  {expected}  {page.name}:{command.line}: {command.text}")
    return 0


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/runbook.md")
    parser.add_argument("--list", action="store_true", help="execute nothing")
    parser.add_argument("--folder", type=Path, help="run here and keep the files")
    options = parser.parse_args(arguments)
    try:
        if options.list:
            return list_page(options.page)
        if options.folder is not None:
            options.folder.mkdir(parents=True, exist_ok=True)
            return run_page(options.page, options.folder.resolve())
        with tempfile.TemporaryDirectory() as scratch:
            return run_page(options.page, Path(scratch))
    except PageError as error:
        print(f"error: {options.page}:{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the command that runs
    sys.exit(main())
