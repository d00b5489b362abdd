"""`streamavg compare`: how far apart checkpoints are, and which one stands out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli import common_options
from streamavg.cli.printing import aligned, print_pieces
from streamavg.cli.progress import choose_progress
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
@common_options.memory_limit
@click.option("--threads", type=int, metavar="N", help="Threads that read and measure; by default "
              "one a processor, up to four.")  # fmt: skip
@common_options.preprocessing
@common_options.match
@click.option("--reference", metavar="CHECKPOINT",
              help="The input whose names the layers have. [default: the first]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@common_options.quiet
@common_options.no_progress
@common_options.debug
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
        comparison = compare(
            checkpoints,
            plot=plot,
            layer_matrices=as_json,
            on_plan=progress.begin,
            on_progress=progress.advance,
            **cast("CompareOptions", options),
        )
    if as_json:
        print_pieces(comparison.json_pieces())
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
    yield from aligned([header, *_rows(comparison, names)], right=_NUMBERS)
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
