"""`streamavg soup`: the average of those checkpoints that is best on validation data."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from streamavg.cli.interrupts import raise_remembered
from streamavg.cli.progress import SECONDS_BETWEEN_LINES
from streamavg.cli.record_file import check_record_file
from streamavg.options import CHOICES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from streamavg.evaluation.soup_record import SoupRecord, TrialRecord
    from streamavg.evaluation.souping import SoupOptions
    from streamavg.evaluation.strategies import StrategyName
    from streamavg.record import MergeRecord

_STRATEGIES = ("uniform", "greedy", "greedy-swap", "learned")


def _parse_names(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    return None if text is None else tuple(name for name in text.split(",") if name)


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
@click.option("--maximize", is_flag=True, help="More is better. By default the metric's name "
              "tells.")  # fmt: skip
@click.option("--minimize", is_flag=True, help="Less is better. By default the metric's name "
              "tells.")  # fmt: skip
@click.option("--most-trials", type=int, metavar="N", help="Averages that greedy-swap and learned "
              "try at most; 200 by default.")  # fmt: skip
@click.option("--model", metavar="MODEL", help="For checkpoints that hold weights alone: a "
              ".keras or whole .h5 file, a configuration as JSON, or module:function.")  # fmt: skip
@click.option("--loss", metavar="NAME", help="Instead of that of the model.")
@click.option("--metrics", callback=_parse_names, metavar="NAME,NAME,...",
              help="Instead of those of the model.")  # fmt: skip
@click.option("--import", "imports", multiple=True, metavar="MODULE",
              help="Defines custom classes and functions; may be repeated.")  # fmt: skip
@click.option("--unsafe", is_flag=True, help="Allow code in files, such as Lambda layers, to run.")
@click.option("--batch-size", type=int, metavar="N", help="Of arrays; 32 by default.")
@click.option("--memory-limit", metavar="SIZE", help="Most memory the whole process may take, the "
              "model and its data included. By default 64MiB more than "
              "those.")  # fmt: skip
@click.option("--preprocessing", type=click.Choice(CHOICES["preprocessing"]), default="equal",
              show_default=True, help="Normalization state and vocabularies.")  # fmt: skip
@click.option("--match", type=click.Choice(CHOICES["match"]), default="name", show_default=True,
              help="How the layers of legacy files are paired.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
@click.option("--record", "record_file", metavar="FILE", help="Save the record as JSON.")
@click.option("--quiet", is_flag=True, help="Print the result and errors only.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
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
    from streamavg.evaluation.souping import soup

    def foresee(foreseen: MergeRecord) -> None:
        check_record_file(record_file, foreseen)

    with _Progress(shown=not (quiet or no_progress)) as progress:
        record = soup(
            checkpoints,
            val,
            output,
            test=test,
            strategy=cast("StrategyName", strategy),
            on_plan=foresee,
            on_search=progress.begin,
            on_trial=progress.advance,
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


class _Progress:
    """A bar of trials on a terminal, a line every few seconds elsewhere."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._done = 0
        self._last = time.monotonic()

    def begin(self, metric: str, most_trials: int) -> None:
        """Says what is compared, and how many trials there can be."""
        self._metric, self._most = metric, most_trials
        if self._shown and self._on_terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=most_trials, unit="trial", desc="souping", leave=False, file=sys.stderr
            )

    def advance(self, trial: TrialRecord) -> None:
        """Tells of a trial."""
        from streamavg.evaluation.soup_record import shown

        raise_remembered()
        self._done += 1
        count = len(trial.members)
        members = f"{count} checkpoint{'s' * (count != 1)}"
        score = f"val {self._metric} {shown(trial.score)}"
        if hasattr(self, "_bar"):
            self._bar.set_postfix_str(score, refresh=False)
            self._bar.update()
        elif self._shown and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            click.echo(f"trial {self._done} of at most {self._most}: {members}, {score}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()
