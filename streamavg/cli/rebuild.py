"""`streamavg rebuild`: a whole model around averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from streamavg.units import format_size

if TYPE_CHECKING:
    from streamavg.evaluation.rebuilding import ModelOptions, RebuildRecord


@click.command()
@click.argument("weights", metavar="AVERAGE")
@click.option("--model", required=True, metavar="MODEL", help="Where the model comes from: a "
              ".keras or whole .h5 file, a configuration as JSON, or module:function.")  # fmt: skip
@click.option("-o", "--output", required=True, metavar="FILE.keras", help="Where to write.")
@click.option("--loss", metavar="NAME", help="Compile with this loss instead of the model's own.")
@click.option("--metrics", metavar="NAME,...", help="Compile with these metrics instead.")
@click.option("--optimizer", metavar="NAME", help="Compile with this optimizer instead.")
@click.option("--import", "imports", multiple=True, metavar="MODULE",
              help="A module that defines custom layers, losses or metrics.")  # fmt: skip
@click.option("--unsafe", is_flag=True, help="Run code that is in the file, such as Lambda layers. "
              "Only for files that you trust.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    weights: str,
    model: str,
    output: str,
    metrics: str | None,
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

    chosen = cast("ModelOptions", {**options, "metrics": split_names(metrics)})
    record = rebuild(weights, output, model=model, force=force, **chosen)
    if as_json:
        click.echo(record.to_json())
    if not quiet:
        for note in record.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(_summary(record), err=True)


def split_names(text: str | None) -> list[str] | None:
    """Names from a list with commas, as typed for an option; None if it was not given."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


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
