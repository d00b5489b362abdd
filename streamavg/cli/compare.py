"""`streamavg compare`: how far apart checkpoints are, and which one stands out."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli.interrupts import raise_remembered
from streamavg.cli.progress import choose_progress
from streamavg.options import CHOICES
from streamavg.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamavg.comparing import CompareOptions
    from streamavg.comparison import Comparison

_SHOWN_LAYERS = 3
_SHOWN_EQUAL = 5
_WIDEST_NAME = 40
_NUMBERS = range(2, 6)
"""Columns of the table that hold numbers."""


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--plot", metavar="FILE", help="Draw it: *.png or *.svg (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON on stdout.")
@click.option("--memory-limit", metavar="SIZE", help="Most memory the whole process may take, "
              "such as 64MiB. [default: 256MiB]")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="Threads that read and measure; by default "
              "one a processor, up to four.")  # fmt: skip
@click.option("--preprocessing", type=click.Choice(CHOICES["preprocessing"]), default="equal",
              show_default=True, help="Normalization state and vocabularies must be equal, or may "
              "differ from the reference's.")  # fmt: skip
@click.option("--match", type=click.Choice(CHOICES["match"]), default="name", show_default=True,
              help="How the layers of legacy files are paired.")  # fmt: skip
@click.option("--reference", metavar="CHECKPOINT",
              help="The input whose names the layers have. [default: the first]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@click.option("--quiet", is_flag=True, help="Print the result and errors only.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    checkpoints: tuple[str, ...],
    plot: str | None,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
    debug: bool,
    **options: object,
) -> None:
    """Tell how far apart CHECKPOINTs are, and which one stands out.

    The variables compared are those that a merge would average. Distances are relative to the norm
    of the weights: 0% is equal, 141% has nothing in common.
    """
    from streamavg.comparing import compare

    with choose_progress(shown=not (quiet or no_progress), task="comparing") as progress:

        def advance(count: int) -> None:
            raise_remembered()
            progress.advance(count)

        comparison = compare(
            checkpoints,
            plot=plot,
            layer_matrices=as_json,
            on_plan=progress.begin,
            on_progress=advance,
            **cast("CompareOptions", options),
        )
    if as_json:
        for piece in comparison.json_pieces():
            sys.stdout.write(piece)
        sys.stdout.write("\n")
    else:
        click.echo("\n".join(_lines(comparison)))
    if not quiet:
        for note in comparison.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(_summary(comparison), err=True)


def _lines(comparison: Comparison) -> Iterator[str]:
    """The answer, and a row for each checkpoint."""
    from streamavg.comparison import shortened

    names = shortened(comparison.names, _WIDEST_NAME)
    yield comparison.answer(names)
    by_path = dict(zip(comparison.paths, names, strict=True))
    yield from _layers_that_stand_out(comparison, by_path)
    yield from _equal_ones(comparison, by_path)
    yield ""
    header = ["", "checkpoint", "norm", "distance", "cosine", "signs", "differs most in"]
    yield from _table([header, *_rows(comparison, names)])
    yield ""
    whole = comparison.whole
    values = f"{whole.elements:,} values in {_count(len(comparison.layers), 'layer')}"
    yield f"{values}; distances relative to a norm of {whole.scale:.4g}."
    yield "distance, cosine, equal signs: mean over the other checkpoints."
    yield "differs most in: the layer with the largest share of the squared distance."


def _layers_that_stand_out(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    """Layers in which another checkpoint stands out than in the whole model."""
    from streamavg.comparison import stands_out

    found = [
        (layer.outlier, layer.label)
        for layer in comparison.layers
        if layer.outlier is not None and not comparison.is_outlier(layer.outlier.checkpoint)
    ]
    found.sort(key=lambda entry: -(entry[0].ratio or math.inf))
    for outlier, layer in found[:_SHOWN_LAYERS]:
        yield f"in {layer}, {stands_out(outlier, names)}"
    if len(found) > _SHOWN_LAYERS:
        yield f"and so in {_count(len(found) - _SHOWN_LAYERS, 'more layer')}, see --json or --plot"


def _equal_ones(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    """Checkpoints that hold the same values, unless the answer has said so."""
    for group in comparison.identical:
        if len(group) < len(names) - (comparison.outlier is not None):
            shown = ", ".join(names[path] for path in group[:_SHOWN_EQUAL])
            more = len(group) - _SHOWN_EQUAL
            yield f"{shown}{f' and {more} more' if more > 0 else ''} hold the same values"


def _rows(comparison: Comparison, names: list[str]) -> Iterator[list[str]]:
    from streamavg.comparison import percent

    whole = comparison.whole
    for index, (path, name) in enumerate(zip(comparison.paths, names, strict=True)):
        where = comparison.where_it_differs(index)
        yield [
            ">" if comparison.is_outlier(path) else "",
            name,
            f"{whole.norms[index]:#.5g}".rstrip("."),
            percent(float(whole.mean_distances[index])),
            f"{whole.mean_cosines[index]:.4f}",
            f"{whole.mean_sign_agreements[index]:.1%}",
            "-" if where is None else f"{where[0]} ({percent(where[1])})",
        ]


def _table(rows: list[list[str]]) -> Iterator[str]:
    """Lines of aligned columns: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in _NUMBERS else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _summary(comparison: Comparison) -> str:
    memory = comparison.memory
    text = (
        f"Compared {len(comparison.paths)} checkpoints: {format_size(comparison.bytes_read)} read "
        f"in {comparison.seconds:.2f} s, peak memory {format_size(memory.measured or 0)} of "
        f"{format_size(memory.limit)} allowed."
    )
    return text if comparison.plot is None else f"{text} Drawn in {comparison.plot}."
