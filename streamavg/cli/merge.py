"""`streamavg merge`: average checkpoints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli import common_options
from streamavg.cli.printing import print_pieces
from streamavg.cli.progress import choose_progress
from streamavg.cli.record_file import check_record_file
from streamavg.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamavg.options import MergeOptions
    from streamavg.record import MergeRecord
    from streamavg.selection import Rules

_SHOWN_INPUTS = 12


def _parse_weights(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> list[float] | Path | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        if text and Path(text).exists():
            return Path(text)
        raise click.BadParameter(
            f"{text!r} is neither a list of numbers like 0.5,0.3,0.2 nor a file."
        ) from None


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("-o", "--output", help="Where to write; the suffix picks the format. "
              "[default: averaged + the inputs' suffix]")  # fmt: skip
@click.option("--last", type=int, metavar="K", help="Merge only the last K checkpoints, in the "
              "natural order of their names unless --order says otherwise.")  # fmt: skip
@click.option("--best", type=int, metavar="K",
              help="Merge only the K checkpoints with the best --scores.")  # fmt: skip
@common_options.choice(
    "order",
    "auto",
    "In which checkpoints are merged: as given, natural (ckpt-2 before ckpt-10), or "
    "by modification time. auto is natural with --last, --best and --method ema, and "
    "given otherwise.",
)
@click.option("--scores", metavar="FILE|filename", help="Where scores are: a CSV as Keras' "
              "CSVLogger writes it, a JSON or CSV file of paths and scores, or the word filename "
              "if the names of the checkpoints hold them.")  # fmt: skip
@click.option("--metric", metavar="NAME", help="Which of several metrics in --scores. "
              "By default val_loss, if it is there.")  # fmt: skip
@common_options.maximize
@common_options.minimize
@click.option("--weights", callback=_parse_weights, metavar="W,W,...|FILE",
              help="One weight per checkpoint, as listed; or a JSON or CSV file of paths and "
              "weights. They sum to 1.")  # fmt: skip
@click.option("--normalize", is_flag=True, help="Divide the weights by their sum.")
@click.option("--softmax", type=float, metavar="T", help="Weight by exp(score / T), or "
              "exp(-score / T) where less is better.")  # fmt: skip
@common_options.choice(
    "method",
    "mean",
    "The mean, or the exponential moving average, oldest first; robust against "
    "outliers, the elementwise median or trimmed mean, or the geometric median of whole "
    "checkpoints; or slerp between two.",
)
@click.option("--decay", type=float, metavar="D", help="Of --method ema: how much of the average "
              "is kept at each checkpoint, such as 0.9.")  # fmt: skip
@click.option("--trim", type=float, metavar="F", help="Of --method trimmed-mean: the share of the "
              "values that is dropped at each end; 0.1 by default.")  # fmt: skip
@common_options.memory_limit
@click.option("--threads", type=int, metavar="N", help="Threads that read, average and write; by "
              "default one a processor, up to four.")  # fmt: skip
@common_options.choice("io", "auto", "Read through the page cache, or past it.")
@click.option("--fsync/--no-fsync", default=True, show_default=True,
              help="Wait until the disk has the output; not needed for scratch space.")  # fmt: skip
@common_options.choice("dtype", "keep", "Of averaged values in the output.")
@common_options.choice(
    "optimizer", "drop", "Optimizer state: leave it out, or keep the reference's."
)
@common_options.non_float
@common_options.choice("preprocessing", "equal", "Normalization state and vocabularies.")
@common_options.choice(
    "batchnorm",
    "mean",
    "Moving statistics of BatchNormalization: averaged; averaged, and the spread of "
    "the means added to the variances; or the reference's.",
)
@common_options.match
@click.option("--reference", metavar="CHECKPOINT",
              help="The input whose structure the output takes. [default: the first]")  # fmt: skip
@click.option("--allow-non-finite", is_flag=True, help="Average NaN and Inf like other values.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@common_options.record_file
@click.option("--quiet", is_flag=True, help="Print errors only.")
@common_options.no_progress
@common_options.debug
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
    appears whole or not at all. --dry-run shows which checkpoints would be merged, in which order
    and with which coefficients.
    """
    from streamavg.merging import merge, plan
    from streamavg.record import json_pieces

    chosen = cast("MergeOptions", options)
    task = "measuring" if dry_run else "averaging"
    with choose_progress(shown=not (quiet or no_progress), task=task) as progress:

        def begin(planned: MergeRecord) -> None:
            check_record_file(record_file, planned)
            expected = planned.bytes_measured if dry_run else planned.bytes_read
            if expected or not dry_run:
                progress.begin(expected)

        work = plan if dry_run else merge
        record = work(checkpoints, output, on_plan=begin, on_progress=progress.advance, **chosen)
    if as_json:
        print_pieces(json_pieces(record))
    elif dry_run:
        click.echo("\n".join(_plan_lines(record)))
    if not (dry_run or quiet):
        for note in record.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(_summary(record), err=True)
    if record_file is not None:
        record.save(Path(record_file))


def _summary(record: MergeRecord) -> str:
    memory, seconds = record.memory, record.seconds or 0.0
    measured = memory.measured or 0
    parts = [
        f"Averaged {_inputs(record)} into {record.output}: "
        f"{_count(record.averaged, 'variable')} averaged, {record.carried} carried over from "
        f"{_origin(record)}",
        f"{format_size(record.bytes_read)} read and {format_size(record.bytes_written)} written "
        f"in {seconds:.2f} s",
        f"peak memory {format_size(measured)} of {format_size(memory.limit)} allowed.",
    ]
    text = ", ".join(parts)
    if record.selection.coefficients == "none":
        text += f" The {record.method} {record.method_summary}."
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


def _inputs(record: MergeRecord) -> str:
    """Such as "3 checkpoints", or "the best 3 of 5 checkpoints"."""
    count, rules = len(record.inputs), record.selection
    if rules.picked == "all":
        return f"{count} checkpoints"
    return f"the {rules.picked} {count} of {rules.given} checkpoints"


def _input_lines(record: MergeRecord) -> list[str]:
    """Checkpoints with coefficient and score; all of them, unless they are just those given."""
    rules = record.selection
    as_given = (rules.picked, rules.order, rules.coefficients) == ("all", "given", "uniform")
    shown = record.inputs[:_SHOWN_INPUTS] if as_given else record.inputs
    lines = []
    for input_ in shown:
        score = "" if input_.score is None else f"  {rules.metric or 'score'} {input_.score:g}"
        mark = "  (reference)" if input_.path == record.reference else ""
        size = format_size(input_.file_bytes)
        share = "" if rules.coefficients == "none" else f"  {input_.coefficient:.6f}"
        lines.append(f"{share}{score}  {input_.path}  {size}{mark}")
    return lines + _more(record.inputs, len(shown))


def _more(entries: Sequence[object], shown: int) -> list[str]:
    hidden = len(entries) - shown
    return [f"  ... and {hidden} more"] if hidden > 0 else []


def _selection_lines(rules: Rules, count: int) -> list[str]:
    which = "all" if rules.picked == "all" else f"the {rules.picked} {count} of"
    order = {
        "given": "in the order given",
        "natural": "in natural order",
        "mtime": "by modification time, oldest first",
    }[rules.order]
    lines = [
        f"selected {which} {rules.given} given, {order}; coefficients: {_coefficients(rules)}",
    ]
    if rules.scores_from is not None:
        better = "more" if rules.maximize else "less"
        metric = rules.metric or "without a name"
        lines.append(f"scores   {metric}, from {rules.scores_from}; {better} is better")
    if rules.left_out:
        lines.append(f"not taken: {_count(len(rules.left_out), 'checkpoint')}")
        for entry in rules.left_out[:_SHOWN_INPUTS]:
            score = "" if entry.score is None else f"{rules.metric or 'score'} {entry.score:g}  "
            lines.append(f"  {score}{entry.path}")
    return lines + _more(rules.left_out, _SHOWN_INPUTS)


def _coefficients(rules: Rules) -> str:
    if rules.coefficients == "geometric-median":
        return f"geometric median, found in {_count(rules.iterations or 0, 'iteration')}"
    if rules.softmax is not None:
        return f"softmax of the scores, temperature {rules.softmax:g}"
    if rules.decay is not None:
        return f"moving average, decay {rules.decay:g}"
    return {"uniform": "uniform", "none": "none"}.get(rules.coefficients, "from --weights")


def _measured(record: MergeRecord) -> str:
    if not record.bytes_measured:
        return ""
    return f" ({format_size(record.bytes_measured)} of it before, to measure)"


def _plan_lines(record: MergeRecord) -> list[str]:
    memory = record.memory
    lines = [
        f"Would average {_inputs(record)} into {record.output} ({record.output_format}):",
        *_input_lines(record),
        *_selection_lines(record.selection, len(record.inputs)),
        f"method   {record.method}: {record.method_summary}",
        f"memory   {format_size(memory.projected)} projected of {format_size(memory.limit)} "
        f"allowed ({memory.limit_origin}); {format_size(memory.reserved)} reserved; slabs of "
        f"{record.slab_elements:,} elements, {_count(record.threads, 'thread')}, "
        f"{record.access} reads",
        f"bytes    {format_size(record.bytes_read)} to read{_measured(record)}, "
        f"{format_size(record.bytes_written)} to write, "
        f"{format_size(record.free_disk_bytes)} free on the disk",
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
