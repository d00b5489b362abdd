"""Measure what strategies of averaging are worth: on validation, and on test data.

For each seed a small network is trained on scikit-learn's digits. Of the last checkpoints of the
run, of some of them and one of another run, and of independent runs, averages are made by
`streamavg.merge` and `streamavg.soup`, and `streamavg.evaluate` compares each with the best single
checkpoint of its set.

    python scripts/compare_strategies.py             # writes the tables of docs/strategies.md
    python scripts/compare_strategies.py --dry-run   # prints the tables only

It needs the extra `tensorflow` and takes some ten minutes on one processor. What the page says
around the tables is written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from digits import Trainer, keep_quiet, load_digits, measured_with, table, write_measured

import streamavg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from digits import Weights

    from streamavg.evaluation.soup_record import SoupRecord
    from streamavg.evaluation.strategies import StrategyName
    from streamavg.evaluation.verdict import Difference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "strategies.md"

SEEDS = (1, 2, 3, 4, 5)
EPOCHS, KEPT = 20, 10
"""Of a run, and how many of the last ones are candidates."""
LEARNING_RATE = 0.005  # constant: the last epochs circle around a minimum
RUNS = 3
"""Independent runs in a distant set, that of the seed among them."""
OTHER_SEEDS = 100
"""Between the seeds of one distant set, so that no run is in two of them."""
LAST, DECAY = 5, 0.8
MIXED = 4
"""Late checkpoints beside one of another run."""
MOST_TRIALS = 50
"""Of a search that could go on for long."""
RESAMPLES = 2000
"""Of each bootstrap over examples."""
BATCH = 400
"""Of images that are scored."""
CONFIDENCE = 0.95

RUN, FOREIGN, DISTANT = "run", "foreign", "distant"
SETS = {
    RUN: f"The last {KEPT} epochs of a run",
    FOREIGN: f"The last {MIXED} epochs of a run and one checkpoint of another run",
    DISTANT: f"The last epochs of {RUNS} independent runs",
}
SINGLE = "best single"


@dataclass(frozen=True)
class Scoring:
    """What models are scored on, as `evaluate` and `soup` take it."""

    model: str
    validation: str
    test: str
    loss: str = "sparse_categorical_crossentropy"
    metrics: tuple[str, ...] = ("accuracy",)


@dataclass(frozen=True)
class Outcome:
    """One average of one set of checkpoints, compared with the best single one of them."""

    set: str
    strategy: str
    seed: int
    members: int
    """How many checkpoints are in the average."""
    differences: tuple[Difference, ...]
    """Average less best single, in each metric on each set of data."""

    def difference(self, where: str, metric: str) -> Difference:
        """On `validation` or `test`, in `accuracy` or `loss`."""
        return next(d for d in self.differences if (d.set, d.metric) == (where, metric))


# --- averages -------------------------------------------------------------------------------------


def write_scoring(trainer: Trainer, folder: Path) -> Scoring:
    """Writes the model's configuration and the images to score by."""
    model = folder / "model.json"
    model.write_text(trainer.model.to_json(), encoding="utf-8")
    validation, test = folder / "validation.npz", folder / "test.npz"
    for path, split in ((validation, trainer.digits.validation), (test, trainer.digits.test)):
        np.savez(path, x=split.x, y=split.y)
    return Scoring(str(model), str(validation), str(test))


def candidates(trainer: Trainer, seed: int, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Trains the runs of a seed. Yields: the name of a set, and its checkpoints."""

    def run(of: int) -> list[Weights]:
        return list(trainer.train(trainer.initial(of), EPOCHS, LEARNING_RATE, of, None))

    kept = [
        trainer.save(weights, folder / f"run-{seed}-epoch-{epoch}.weights.h5")
        for epoch, weights in enumerate(run(seed)[-KEPT:], EPOCHS - KEPT + 1)
    ]
    others = [
        trainer.save(run(of)[-1], folder / f"run-{of}-epoch-{EPOCHS}.weights.h5")
        for of in itertools.islice(itertools.count(seed + OTHER_SEEDS, OTHER_SEEDS), RUNS - 1)
    ]
    yield RUN, kept
    yield FOREIGN, [*kept[-MIXED:], others[0]]
    yield DISTANT, [kept[-1], *others]


def soup(
    paths: list[Path], output: Path, scoring: Scoring, strategy: StrategyName, metric: str
) -> SoupRecord:
    """Finds and writes a soup that is best in a metric on validation."""
    searches = strategy in ("greedy-swap", "learned")
    return streamavg.soup(
        paths, scoring.validation, output, strategy=strategy, metric=metric, batch_size=BATCH,
        most_trials=MOST_TRIALS if searches else None,
        model=scoring.model, loss=scoring.loss, metrics=scoring.metrics,
    )  # fmt: skip


def strategies(
    name: str, paths: list[Path], scoring: Scoring
) -> Iterator[tuple[str, Callable[[Path], int]]]:
    """What is done with a set. Yields: a title, and what writes the average and counts members."""

    def souped(strategy: StrategyName, metric: str = "accuracy") -> Callable[[Path], int]:
        return lambda output: len(soup(paths, output, scoring, strategy, metric).members)

    def last(output: Path) -> int:
        streamavg.merge(paths, output, last=LAST)
        return LAST

    def moving(output: Path) -> int:
        streamavg.merge(paths, output, method="ema", decay=DECAY)
        return len(paths)

    if name == RUN:
        yield f"uniform, last {LAST}", last
        yield f"uniform, all {KEPT}", souped("uniform")
        yield f"EMA, decay {DECAY}", moving
    else:
        yield "uniform", souped("uniform")
    yield "greedy soup", souped("greedy")
    if name == RUN:
        yield "greedy-swap soup", souped("greedy-swap")
        yield "learned soup, by accuracy", souped("learned")
        yield "learned soup, by loss", souped("learned", "loss")


def outcomes(trainer: Trainer, folder: Path) -> Iterator[Outcome]:
    """Trains, averages and evaluates everything."""
    scoring = write_scoring(trainer, folder)
    for seed in SEEDS:
        for name, paths in candidates(trainer, seed, folder):
            spare = folder / f"all-{name}-{seed}.weights.h5"
            best = soup(paths, spare, scoring, "uniform", "accuracy").best_single
            for number, (strategy, write) in enumerate(strategies(name, paths, scoring)):
                output = folder / f"average-{name}-{seed}-{number}.weights.h5"
                members = write(output)
                found = streamavg.evaluate(
                    output, [best], scoring.validation, test=scoring.test, metric="accuracy",
                    model=scoring.model, loss=scoring.loss, metrics=scoring.metrics,
                    batch_size=BATCH, resamples=RESAMPLES, seed=seed,
                )  # fmt: skip
                yield Outcome(name, strategy, seed, members, found.differences)


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval."""

    mean: float
    low: float
    high: float

    def shown(self, digits: int) -> str:
        """With signs and a fixed number of digits."""
        return f"{self.mean:+.{digits}f} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, and the interval of Student's t for it.

    mean -+ t s / sqrt(n), with s the standard deviation with divisor n - 1, and t the quantile for
    n - 1 degrees of freedom.
    """
    from scipy import stats

    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1))
    half /= count**0.5
    return Estimate(mean, mean - half, mean + half)


def grouped(results: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each strategy, in the order in which they came first."""
    groups: dict[str, list[Outcome]] = {}
    for result in results:
        groups.setdefault(result.strategy, []).append(result)
    return groups


def score_table(results: Sequence[Outcome]) -> str:
    """What the averages of one set score, and its best single checkpoint; means over the seeds."""

    def cells(group: Sequence[Outcome], kind: str) -> Iterator[str]:
        for where in ("validation", "test"):
            for metric, shown in (("accuracy", "{:.2%}"), ("loss", "{:.4f}")):
                values = [getattr(r.difference(where, metric), kind) for r in group]
                yield shown.format(np.mean(values))

    groups = grouped(results)
    rows = [[SINGLE, "1", *cells(next(iter(groups.values())), "second")]]
    for strategy, group in groups.items():
        members = f"{np.mean([r.members for r in group]):.3g}"
        rows.append([strategy, members, *cells(group, "first")])
    header = ["", "members", "validation accuracy", "validation loss", "test accuracy", "test loss"]
    return table(header, rows)


def difference_table(results: Sequence[Outcome]) -> str:
    """Each average of one set less the best single checkpoint, on test; accuracies in points."""
    rows = []
    for strategy, group in grouped(results).items():
        tested = [100 * r.difference("test", "accuracy").difference for r in group]
        chosen = [100 * r.difference("validation", "accuracy").difference for r in group]
        losses = [r.difference("test", "loss").difference for r in group]
        rows.append(
            [
                strategy,
                estimate(tested).shown(2),
                verdicts(group, "accuracy"),
                estimate(losses).shown(3),
                verdicts(group, "loss"),
                f"{np.mean(chosen):+.2f}",
                estimate(np.subtract(chosen, tested).tolist()).shown(2),
            ]
        )
    judged = "better / worse / cannot tell"
    header = ["", "test accuracy", judged, "test loss", judged,
              "validation accuracy", "validation less test"]  # fmt: skip
    return table(header, rows)


def verdicts(group: Sequence[Outcome], metric: str) -> str:
    """In how many seeds the interval over test examples is better, is worse, or holds 0."""
    found = [r.difference("test", metric).verdict for r in group]
    better, worse = found.count("better"), found.count("worse")
    return f"{better} / {worse} / {len(found) - better - worse}"


def render(results: Sequence[Outcome]) -> str:
    """The tables of all sets."""
    parts = []
    for name, title in SETS.items():
        own = [r for r in results if r.set == name]
        parts += [f"### {title}", score_table(own), difference_table(own)]
    return "\n\n".join(parts)


def main() -> None:
    """Trains, averages, evaluates and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="print and write nothing")
    arguments = parser.parse_args()
    keep_quiet()
    trainer = Trainer(load_digits())
    with tempfile.TemporaryDirectory() as name:
        results = list(outcomes(trainer, Path(name)))
    text = f"{measured_with(SEEDS)}\n\n{render(results)}"
    print(text)
    if not arguments.dry_run:
        write_measured(PAGE, text)


if __name__ == "__main__":
    main()
