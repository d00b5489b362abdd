"""`streamavg check`: may these checkpoints be averaged?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli import common_options, exit_codes
from streamavg.cli.printing import aligned, print_pieces
from streamavg.cli.progress import choose_progress
from streamavg.options import CHOICES
from streamavg.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamavg.checking import CheckOptions
    from streamavg.findings import Check, CheckedCheckpoint, Finding
    from streamavg.options import OptimizerPolicy

_WIDEST_NAME = 40
_SHOWN, _SHOWN_OF_ONE = 20, 3
"""Refusals, and warnings, that are shown: in all, and of one checkpoint."""
_NUMBERS = frozenset({3, 4, 5})
"""Columns of the table that hold numbers."""


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--strict", is_flag=True, help="Exit with 3 if there is a warning.")
@click.option("--sample", is_flag=True, help="Look for NaN and Inf in a sample of the values only, "
              "and at no checksums: fast for large files, but not all that a merge "
              "refuses.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
@common_options.memory_limit
@click.option("--threads", type=int, metavar="N", help="Threads that read values; by default one a "
              "processor, up to four.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(CHOICES["optimizer"]), help="What a merge will do "
              "with optimizer state. Without it, that there is such is a warning.")  # fmt: skip
@common_options.non_float
@common_options.preprocessing
@common_options.match
@click.option("--reference", metavar="CHECKPOINT",
              help="The input that the others are compared with. [default: the first]")  # fmt: skip
@click.option("--allow-non-finite", is_flag=True, help="NaN and Inf are a warning.")
@common_options.quiet
@common_options.no_progress
@common_options.debug
def command(
    checkpoints: tuple[str, ...],
    strict: bool,
    sample: bool,
    optimizer: OptimizerPolicy | None,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
    debug: bool,
    **options: object,
) -> None:
    """Tell whether CHECKPOINTs may be averaged.

    Lists everything that a merge refuses, of every file, and what it does not refuse but its user
    should know: copies, checkpoints of another run, optimizer state and more. Exits with 1 if a
    merge would be refused, and with --strict with 3 if there is only a warning.
    """
    from streamavg.checking import check

    with choose_progress(shown=not (quiet or no_progress), task="checking") as progress:
        found = check(
            checkpoints,
            sample=sample,
            optimizer=optimizer,
            on_plan=progress.begin,
            on_progress=progress.advance,
            **cast("CheckOptions", options),
        )
    if as_json:
        print_pieces(found.json_pieces())
    else:
        click.echo("\n".join(_lines(found)))
    if not quiet:
        click.echo(_summary(found), err=True)
    if found.refusals:
        raise click.exceptions.Exit(exit_codes.REFUSED)
    if strict and found.warnings:
        raise click.exceptions.Exit(exit_codes.GATE)


def _lines(found: Check) -> Iterator[str]:
    """The answer, a row for each checkpoint, and what was found."""
    from streamavg.comparison import short_names, shortened
    from streamavg.findings import FindingKind

    paths = [checkpoint.path for checkpoint in found.checkpoints]
    names = shortened(short_names(paths), _WIDEST_NAME)
    yield found.answer()
    if found.refusals and len(found.others) > 1:
        yield f"The {len(found.others)} without a refusal can be averaged."
    yield from (f.text for f in found.warnings if f.kind == FindingKind.ODD_REFERENCE)
    yield ""
    header = ["", "checkpoint", "Keras", "size", "optimizer", "distance", "state"]
    rows = [_row(found, *each) for each in zip(found.checkpoints, names, strict=True)]
    yield from aligned([header, *rows], right=_NUMBERS)
    yield from _findings("refused", found.refusals)
    others = [f for f in found.warnings if f.kind != FindingKind.ODD_REFERENCE]
    yield from _findings("warning", others)


def _row(found: Check, checkpoint: CheckedCheckpoint, name: str) -> list[str]:
    from streamavg.comparison import percent

    refused, warned = found.kinds_of(checkpoint.path)
    return [
        "x" if refused else "!" if warned else "",
        name,
        checkpoint.producer or "-",
        "-" if checkpoint.file_bytes is None else format_size(checkpoint.file_bytes),
        format_size(checkpoint.optimizer_bytes) if checkpoint.optimizer_bytes else "-",
        "-" if checkpoint.distance is None else percent(checkpoint.distance),
        ", ".join(dict.fromkeys([*refused, *warned])) or "ok",
    ]


def _findings(label: str, findings: Sequence[Finding]) -> Iterator[str]:
    """What was found, a line each; of each checkpoint the first few."""
    if findings:
        yield ""
    shown: Counter[tuple[str, ...]] = Counter()
    for finding in findings:
        if shown[finding.paths] < _SHOWN_OF_ONE and shown.total() < _SHOWN:
            shown[finding.paths] += 1
            yield f"{label} ({finding.kind}): {finding.text}"
    if len(findings) > shown.total():
        yield f"... and {len(findings) - shown.total()} more (all of them with --json)"


def _summary(found: Check) -> str:
    values, memory = found.values, found.memory
    count = len(found.checkpoints)
    whose = "" if values.checkpoints == count else f" of the {values.checkpoints} that match"
    read = {
        "all": f"all values{whose} were read",
        "sample": f"only a sample of the values{whose} was read",
        "none": "no values were read",
    }[values.scope]
    distances = ""
    if values.sampled:
        distances = f", distances are of {values.sampled:,} of {values.elements:,} values"
    return (
        f"Checked {count} checkpoint{'s' * (count != 1)}: {read}{distances}; "
        f"{format_size(values.bytes_read)} read in {found.seconds:.2f} s, peak memory "
        f"{format_size(memory.measured or 0)} of {format_size(memory.limit)} allowed."
    )
