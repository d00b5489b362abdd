"""`streamavg rebuild`: a whole model around averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from streamavg.cli import common_options
from streamavg.units import format_size

if TYPE_CHECKING:
    from streamavg.evaluation.rebuilding import ModelOptions, RebuildRecord


@click.command()
@click.argument("weights", metavar="AVERAGE")
@click.option("--model", required=True, metavar="MODEL", help="Where the model comes from: a "
              ".keras or whole .h5 file, a configuration as JSON, or module:function.")  # fmt: skip
@click.option("-o", "--output", required=True, metavar="FILE.keras", help="Where to write.")
@click.option("--loss", metavar="NAME", help="Compile with this loss instead of the model's own.")
@click.option("--metrics", callback=common_options.split_names, metavar="NAME,...",
              help="Compile with these metrics instead.")  # fmt: skip
@click.option("--optimizer", metavar="NAME", help="Compile with this optimizer instead.")
@common_options.imports
@common_options.unsafe
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@common_options.debug
def command(
    weights: str,
    model: str,
    output: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: object,
) -> None:
    """Build MODEL anew around the values of AVERAGE, compile it, and save it as one .keras file.

    Every variable of the model must come from AVERAGE and nothing in AVERAGE may be left over; both
    are checked value by value.
    """
    from streamavg.evaluation.rebuilding import rebuild

    chosen = cast("ModelOptions", options)
    record = rebuild(weights, output, model=model, force=force, **chosen)
    if as_json:
        click.echo(record.to_json())
    if not quiet:
        for note in record.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(_summary(record), err=True)


def _summary(record: RebuildRecord) -> str:
    text = (
        f"Rebuilt {record.output} ({format_size(record.bytes_written)}) from {record.model}: all "
        f"{record.variables} variables hold the values of {record.weights}"
    )
    if not record.is_compiled:
        return f"{text}; not compiled."
    parts = [f"loss {record.loss}"]
    if record.metrics:
        parts.append(f"metrics {', '.join(record.metrics)}")
    return (
        f"{text}; compiled with {', '.join(parts)}, and a new optimizer, {record.optimizer}."
        f"\nNext: streamavg evaluate {record.output} --against CHECKPOINT... --val DATA"
    )
