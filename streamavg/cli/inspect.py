"""`streamavg inspect`: what is in a checkpoint file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamavg.cli import common_options
from streamavg.cli.printing import aligned
from streamavg.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamavg.inspecting import CheckpointSummary


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=str))
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
@common_options.debug
def command(checkpoint: str, as_json: bool, debug: bool) -> None:
    """Show what is in CHECKPOINT: format, producer, layers, variables, sizes, optimizer."""
    from streamavg.inspecting import inspect

    summary = inspect(checkpoint)
    click.echo(summary.to_json() if as_json else "\n".join(_lines(summary)))


def _lines(summary: CheckpointSummary) -> list[str]:
    producer = f"Keras {summary.producer}" if summary.producer else "not recorded in this format"
    lines = [
        summary.path,
        f"  format      {summary.title} ({summary.format})",
        f"  written by  {producer}",
        f"  file        {format_size(summary.file_bytes)}",
        f"  weights     {summary.weights:,} in {len(summary.layers)} layers, "
        f"{format_size(summary.weights_bytes)}",
        f"  optimizer   {_optimizer(summary)}",
        f"  config      {'yes' if summary.has_config else 'no (weights alone)'}",
    ]
    if summary.assets:
        lines.append(f"  assets      {', '.join(summary.assets)}")
    lines += [f"  note        {note}" for note in summary.notes]
    if summary.layers:
        lines += ["", *_table(["layer", "name", "class", "variables", "elements"], [
            [layer.path or "(model)", layer.name or "-", layer.class_name or "-",
             str(layer.variables), f"{layer.elements:,}"] for layer in summary.layers
        ])]  # fmt: skip
    shown = [variable for variable in summary.variables if variable.role != "optimizer"]
    if shown:
        lines += ["", *_table(["variable", "shape", "dtype", "role", "bytes"], [
            [" = ".join((variable.path, *variable.shared_with)), _shape(variable.shape),
             variable.dtype, variable.role, f"{variable.size_bytes:,}"] for variable in shown
        ])]  # fmt: skip
    return lines


def _optimizer(summary: CheckpointSummary) -> str:
    if not summary.optimizer_variables:
        return "none"
    size = format_size(summary.optimizer_bytes)
    return f"{summary.optimizer_variables} variables, {size}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    return (f"  {line}" for line in aligned([header, *rows]))
