"""`streamavg merge`: average checkpoints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli.interrupts import raise_remembered
from streamavg.cli.progress import choose_progress
from streamavg.errors import OutputError
from streamavg.options import CHOICES, MergeOptions
from streamavg.units import format_size

if TYPE_CHECKING:
    from streamavg.record import MergeRecord

_SHOWN_INPUTS = 12


def _parse_weights(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers like 0.5,0.3,0.2.") from None


def _choice(name: str) -> click.Choice[str]:
    return click.Choice(CHOICES[name])


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("-o", "--output", help="Where to write; the suffix picks the format. "
              "[default: averaged + the inputs' suffix]")  # fmt: skip
@click.option("--weights", callback=_parse_weights, metavar="W,W,...",
              help="One weight per checkpoint; they sum to 1.")  # fmt: skip
@click.option("--normalize", is_flag=True, help="Divide the weights by their sum.")
@click.option("--memory-limit", metavar="SIZE", help="Most memory the whole process may take, "
              "such as 64MiB. [default: 256MiB]")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="Threads that read, average and write; by "
              "default one a processor, up to four.")  # fmt: skip
@click.option("--io", type=_choice("io"), default="auto", show_default=True,
              help="Read through the page cache, or past it.")  # fmt: skip
@click.option("--fsync/--no-fsync", default=True, show_default=True,
              help="Wait until the disk has the output; not needed for scratch space.")  # fmt: skip
@click.option("--dtype", type=_choice("dtype"), default="keep", show_default=True,
              help="Of averaged values in the output.")  # fmt: skip
@click.option("--optimizer", type=_choice("optimizer"), default="drop", show_default=True,
              help="Optimizer state: leave it out, or keep the reference's.")  # fmt: skip
@click.option("--non-float", type=_choice("non_float"), default="reference", show_default=True,
              help="Where integers, bools and strings come from.")  # fmt: skip
@click.option("--preprocessing", type=_choice("preprocessing"), default="equal", show_default=True,
              help="Normalization state and vocabularies.")  # fmt: skip
@click.option("--match", type=_choice("match"), default="name", show_default=True,
              help="How the layers of legacy files are paired.")  # fmt: skip
@click.option("--reference", metavar="CHECKPOINT",
              help="The input whose structure the output takes. [default: the first]")  # fmt: skip
@click.option("--allow-non-finite", is_flag=True, help="Average NaN and Inf like other values.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("--record", "record_file", metavar="FILE", help="Save the record as JSON.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    checkpoints: tuple[str, ...],
    output: str | None,
    dry_run: bool,
    as_json: bool,
    record_file: str | None,
    quiet: bool,
    no_progress: bool,
    debug: bool,
    **options: object,
) -> None:
    """Average CHECKPOINTs (.keras, .weights.h5 or legacy .h5) into one file.

    streamavg merge ckpts/*.h5 writes averaged.h5 here. Inputs are never changed, and the output
    appears whole or not at all.
    """
    from streamavg.merging import merge, plan

    chosen = cast("MergeOptions", options)
    if dry_run:
        record = plan(checkpoints, output, **chosen)
        _check_record_file(record_file, record)
        if as_json:
            _print_json(record)
        else:
            click.echo("\n".join(_plan_lines(record)))
    else:
        with choose_progress(shown=not (quiet or no_progress)) as progress:

            def begin(planned: MergeRecord) -> None:
                _check_record_file(record_file, planned)
                progress.begin(planned.bytes_read)

            def advance(count: int) -> None:
                raise_remembered()
                progress.advance(count)

            record = merge(checkpoints, output, on_plan=begin, on_progress=advance, **chosen)
        if as_json:
            _print_json(record)
        if not quiet:
            for note in record.notes:
                click.echo(f"note: {note}", err=True)
            click.echo(_summary(record), err=True)
    if record_file is not None:
        record.save(Path(record_file))


def _print_json(record: MergeRecord) -> None:
    from streamavg.record import json_pieces

    for piece in json_pieces(record):
        sys.stdout.write(piece)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _check_record_file(name: str | None, planned: MergeRecord) -> None:
    """Refuses a file for the record that is an input or the output, or has no folder."""
    if name is None:
        return
    path = Path(name)
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(path, "the record cannot be written there. Name a file in a folder.")
    for other in (planned.output, *(input_.path for input_ in planned.inputs)):
        if path.resolve() == Path(other).resolve() or _is_same_file(path, Path(other)):
            raise OutputError(path, f"is {other}, which the record must not replace.")


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _summary(record: MergeRecord) -> str:
    memory, seconds = record.memory, record.seconds or 0.0
    measured = memory.measured or 0
    parts = [
        f"Averaged {len(record.inputs)} checkpoints into {record.output}: "
        f"{_count(record.averaged, 'variable')} averaged, {record.carried} carried over from "
        f"{_origin(record)}",
        f"{format_size(record.bytes_read)} read and {format_size(record.bytes_written)} written "
        f"in {seconds:.2f} s",
        f"peak memory {format_size(measured)} of {format_size(memory.limit)} allowed.",
    ]
    text = ", ".join(parts)
    if record.dropped:
        text += (
            f" Left out {_count(record.dropped, 'optimizer variable')}, which saved "
            f"{format_size(record.dropped_bytes)} (--optimizer reference keeps them)."
        )
    return f"{text}\nNext: {_next_command(record)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _origin(record: MergeRecord) -> str:
    origins = {v.carried_from for v in record.variables if v.carried_from is not None}
    return " and ".join(sorted(origins)) or record.reference


def _next_command(record: MergeRecord) -> str:
    if not record.output_has_config:
        return f"model.load_weights({record.output!r}) in the rebuilt model, then evaluate it."
    load = f"import keras; keras.saving.load_model({record.output!r}, compile=False).summary()"
    quoted = shlex.quote(load) if set(load) & set('"$`!\\') else f'"{load}"'
    return f"python -c {quoted}, then evaluate it."


def _plan_lines(record: MergeRecord) -> list[str]:
    memory = record.memory
    lines = [
        f"Would average {len(record.inputs)} checkpoints into {record.output} "
        f"({record.output_format}):",
    ]
    for input_ in record.inputs[:_SHOWN_INPUTS]:
        mark = "  (reference)" if input_.path == record.reference else ""
        lines.append(
            f"  {input_.coefficient:.6f}  {input_.path}  {format_size(input_.file_bytes)}{mark}"
        )
    if len(record.inputs) > _SHOWN_INPUTS:
        lines.append(f"  ... and {len(record.inputs) - _SHOWN_INPUTS} more")
    lines += [
        f"memory   {format_size(memory.projected)} projected of {format_size(memory.limit)} "
        f"allowed ({memory.limit_origin}); {format_size(memory.reserved)} reserved; slabs of "
        f"{record.slab_elements:,} elements, {_count(record.threads, 'thread')}, "
        f"{record.access} reads",
        f"bytes    {format_size(record.bytes_read)} to read, {format_size(record.bytes_written)} "
        f"to write, {format_size(record.free_disk_bytes)} free on the disk",
        f"left out {_count(record.dropped, 'variable')}, {format_size(record.dropped_bytes)}",
        "variables:",
    ]
    for variable in record.variables:
        dtype = variable.dtype
        if variable.output_dtype not in {None, dtype}:
            dtype = f"{dtype} -> {variable.output_dtype}"
        shape = " x ".join(map(str, variable.shape)) or "scalar"
        lines.append(
            f"  {variable.action:7}  {variable.path}  {shape}  {dtype}  ({variable.reason})"
        )
    lines += [f"note: {note}" for note in record.notes]
    return lines
