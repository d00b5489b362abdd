"""Options that several commands have, with the same meaning and the same help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamavg.options import CHOICES

if TYPE_CHECKING:
    from collections.abc import Callable

Command = TypeVar("Command", bound="Callable[..., Any]")


def choice(name: str, default: str, text: str) -> Callable[[Command], Command]:
    """An option whose value is one of `CHOICES[name]`; `text` is its help."""
    return click.option(
        f"--{name.replace('_', '-')}", type=click.Choice(CHOICES[name]), default=default,
        show_default=True, help=text,
    )  # fmt: skip


memory_limit = click.option(
    "--memory-limit", metavar="SIZE",
    help="Most memory the whole process may take, such as 64MiB. [default: 256MiB]",
)  # fmt: skip
match = choice("match", "name", "How the layers of legacy files are paired.")
preprocessing = choice(
    "preprocessing",
    "equal",
    "Normalization state and vocabularies must be equal, or may differ from the reference's.",
)
non_float = choice("non_float", "reference", "Where integers, bools and strings come from.")
maximize = click.option(
    "--maximize", is_flag=True, help="More is better. By default the metric's name tells."
)
minimize = click.option(
    "--minimize", is_flag=True, help="Less is better. By default the metric's name tells."
)
record_file = click.option(
    "--record", "record_file", metavar="FILE", help="Save the record as JSON."
)
quiet = click.option("--quiet", is_flag=True, help="Print the result and errors only.")
no_progress = click.option("--no-progress", is_flag=True, help="Show no progress.")
debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
imports = click.option(
    "--import", "imports", multiple=True, metavar="MODULE",
    help="A module that defines custom layers, losses or metrics; may be repeated.",
)  # fmt: skip
unsafe = click.option(
    "--unsafe", is_flag=True,
    help="Run code that is in the files, such as Lambda layers. Only for files that you trust.",
)  # fmt: skip


def split_names(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> list[str] | None:
    """Names from a list with commas; None if it was not given. A callback of click's."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def scoring(command: Command) -> Command:
    """The options of a command that scores models."""
    for option in (
        unsafe,
        imports,
        click.option("--metrics", callback=split_names, metavar="NAME,...",
                     help="Score by these metrics instead."),
        click.option("--loss", metavar="NAME",
                     help="Score by this loss instead of the model's own."),
        click.option("--model", metavar="MODEL",
                     help="For checkpoints that hold weights alone: a .keras or whole .h5 file, a "
                     "configuration as JSON, or module:function."),
        minimize,
        maximize,
        click.option("--batch-size", type=int, metavar="N", help="Of arrays; 32 by default."),
    ):  # fmt: skip
        command = option(command)
    return command
