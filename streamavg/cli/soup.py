"""`streamavg soup`: the average of those checkpoints that is best on validation data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli import common_options
from streamavg.cli.progress import choose_trial_progress
from streamavg.cli.record_file import check_record_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamavg.evaluation.soup_record import SoupRecord, TrialRecord
    from streamavg.evaluation.souping import SoupOptions
    from streamavg.evaluation.strategies import StrategyName
    from streamavg.record import MergeRecord

_STRATEGIES = ("uniform", "greedy", "greedy-swap", "learned")


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--val", required=True, metavar="DATA", help="Validation data, to choose by: "
              "FILE.npz with arrays x and y, FILE.npz:SPLIT with x_SPLIT and y_SPLIT, or "
              "module:function that returns a tf.data.Dataset or arrays.")  # fmt: skip
@click.option("--test", metavar="DATA", help="Test data, to report on: opened once everything is "
              "chosen.")  # fmt: skip
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file to write.")
@click.option("--strategy", type=click.Choice(_STRATEGIES), default="greedy", show_default=True,
              help="uniform: all of them. greedy: best first, each that does not make it worse. "
              "greedy-swap: then removals and exchanges, too. learned: coefficients of the best "
              "ten.")  # fmt: skip
@click.option("--metric", metavar="NAME", help="What soups are compared by. By default the first "
              "compiled metric.")  # fmt: skip
@click.option("--most-trials", type=int, metavar="N", help="Averages that greedy-swap and learned "
              "try at most; 200 by default.")  # fmt: skip
@common_options.scoring
@click.option("--memory-limit", metavar="SIZE", help="Most memory the whole process may take, the "
              "model and its data included. By default 64MiB more than "
              "those.")  # fmt: skip
@common_options.choice("preprocessing", "equal", "Normalization state and vocabularies.")
@common_options.match
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@common_options.record_file
@common_options.quiet
@common_options.no_progress
@common_options.debug
def command(
    checkpoints: tuple[str, ...],
    val: str,
    output: str,
    test: str | None,
    strategy: str,
    as_json: bool,
    record_file: str | None,
    quiet: bool,
    no_progress: bool,
    debug: bool,
    **options: object,
) -> None:
    """Find the average of CHECKPOINTs that is best on validation data, and write it.

    Every trial is scored on it, so the score of the soup on it is too good: test data tells. It is
    looked at once, after the soup is written. --record keeps all trials.
    """
    from streamavg.evaluation.soup_record import shown
    from streamavg.evaluation.souping import soup

    def foresee(foreseen: MergeRecord) -> None:
        check_record_file(record_file, foreseen)

    with choose_trial_progress(shown=not (quiet or no_progress)) as progress:
        compared = ""

        def begin(metric: str, most_trials: int) -> None:
            nonlocal compared
            compared = metric
            progress.begin(most_trials)

        def tell(trial: TrialRecord) -> None:
            count = len(trial.members)
            score = f"val {compared} {shown(trial.score)}"
            progress.name(f"{count} checkpoint{'s' * (count != 1)}, {score}", short=score)
            progress.advance(1)

        record = soup(
            checkpoints,
            val,
            output,
            test=test,
            strategy=cast("StrategyName", strategy),
            on_plan=foresee,
            on_search=begin,
            on_trial=tell,
            **cast("SoupOptions", options),
        )
    if record_file is not None:
        record.save(Path(record_file))
    if as_json:
        sys.stdout.write(f"{record.to_json()}\n")
    else:
        click.echo("\n".join(_lines(record)))
    if not quiet:
        for note in record.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(_summary(record), err=True)


def _lines(record: SoupRecord) -> Iterator[str]:
    """The answer, what the test data says, and what is in the soup."""
    from streamavg.evaluation.soup_record import shown

    yield record.answer
    if record.test is None:
        yield "It was chosen by that score, which is therefore too good: judge it on other data."
    else:
        soup, best = (
            shown(scores[record.metric]) for scores in (record.test.soup, record.test.best_single)
        )
        yield f"On test data, looked at once: {record.metric} {soup}, the best single one {best}."
    yield ""
    for one in record.candidates:
        share = f"{one.coefficient:.6f}" if one.coefficient else "-".rjust(8)
        mark = "  (best single)" if one.path == record.best_single else ""
        yield f"  {share}  val {record.metric} {shown(one.score)}  {one.path}{mark}"


def _summary(record: SoupRecord) -> str:
    averages = sum(len(trial.members) > 1 for trial in record.trials)
    return (
        f"Tried {len(record.candidates)} checkpoints alone and {averages} "
        f"average{'s' * (averages != 1)} in {record.seconds:.2f} s; wrote {record.output}."
    )
