"""Measure when an average of checkpoints is better than its checkpoints, and when it is worse.

Small networks with BatchNormalization are trained on scikit-learn's digits, saved by Keras,
averaged by `streamavg.merge` and loaded by Keras again: the last checkpoints of a run, checkpoints
of its first epochs, branches of one training state, independent runs, and mixtures. For each set
the distances that `streamavg.compare` tells are put beside the accuracy of the average.

    python scripts/when_to_average.py             # writes docs/when-to-average.md and the picture
    python scripts/when_to_average.py --dry-run   # prints the tables only

It needs the extras `tensorflow` and `plot` and scikit-learn, and takes some two minutes on one
processor. What the page says around the tables is written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from digits import Score, Trainer, keep_quiet, load_digits, measured_with, table, write_measured

import streamavg
from streamavg.judging import DISTANT, NEAR_DUPLICATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from digits import Weights
    from numpy.typing import NDArray

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PICTURE = DOCS / "when-to-average.md", DOCS / "when-to-average.png"

SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 30
LATE = 5
"""Checkpoints of the last so many epochs are late ones."""
LEARNING_RATE = 0.005  # constant: the last epochs circle around a minimum
DECAYS = (2, 3, 4)
"""Powers of ten that a schedule has divided the learning rate by when it ends."""
FAST, FASTER = 0.02, 0.05
BRANCHES = (
    (0, LEARNING_RATE), (1, LEARNING_RATE), (5, LEARNING_RATE), (20, LEARNING_RATE), (0, FAST),
    (0, FASTER),
)  # fmt: skip
"""Epochs after which branches leave the run, 0 is the initialisation, and their learning rate."""
BRANCH_EPOCHS = 10
FOLDS = 3


# --- sets of checkpoints --------------------------------------------------------------------------


def run_all(trainer: Trainer, folder: Path) -> Iterator[tuple[str, int, list[Path]]]:
    """Trains everything. Yields: the name of a set, its seed, and its checkpoints."""
    late, firsts = {}, {}
    images = len(trainer.digits.train.y)
    for seed in SEEDS:
        states = [trainer.initial(seed)]
        states += trainer.train(states[0], EPOCHS, LEARNING_RATE, seed, None)

        def saved(name: str, states: Iterable[Weights], seed: int = seed) -> list[Path]:
            paths = (folder / f"{name}-{seed}-{i}.weights.h5" for i in itertools.count())
            return [trainer.save(state, path) for state, path in zip(states, paths, strict=False)]

        late[seed] = saved("late", states[-LATE:])
        firsts[seed] = saved("first", states[1:2])[0]
        yield "late", seed, late[seed]
        yield "spread", seed, saved("spread", states[10 : EPOCHS + 1 : 5])
        for power in DECAYS:
            rate = LEARNING_RATE / 10**power
            ended = list(trainer.train(states[-1], LATE, rate, seed + 100, None))
            yield f"decayed-{power}", seed, saved(f"decayed-{power}", ended)
        early = trainer.train(states[0], LATE, FASTER, seed, None)
        yield "early", seed, saved("early", list(early))
        folds = np.array_split(np.random.default_rng(seed).permutation(images), FOLDS)
        for start, rate in BRANCHES:
            ends = []
            for number, fold in enumerate(folds):
                rows = np.setdiff1d(np.arange(images), fold)
                branch = trainer.train(states[start], BRANCH_EPOCHS, rate, seed + 10 * number, rows)
                *_, end = branch
                ends.append(end)
            name = f"branches-{start}-{rate}"
            yield name, seed, saved(name, ends)
    for position, seed in enumerate(SEEDS):
        others = [SEEDS[(position + i) % len(SEEDS)] for i in range(1, 3)]
        yield "independent", seed, [late[seed][-1], *(late[other][-1] for other in others)]
        yield "foreign", seed, [*late[seed][1:], late[others[0]][-1]]
        yield "first", seed, [*late[seed][1:], firsts[seed]]


TITLES = {
    "decayed-2": "last 5 epochs, learning rate decayed to 1/100",
    "decayed-3": "last 5 epochs, learning rate decayed to 1/1000",
    "decayed-4": "last 5 epochs, learning rate decayed to 1/10000",
    "late": "last 5 epochs of a run",
    "spread": "every 5th epoch of a run, from the 10th on",
    "first": "4 late ones and the first epoch of the same run",
    f"branches-20-{LEARNING_RATE}": "3 folds, branched off after epoch 20",
    f"branches-5-{LEARNING_RATE}": "3 folds, branched off after epoch 5",
    f"branches-1-{LEARNING_RATE}": "3 folds, branched off after epoch 1",
    f"branches-0-{LEARNING_RATE}": "3 folds from one initialisation",
    f"branches-0-{FAST}": "3 folds from one initialisation, learning rate times 4",
    f"branches-0-{FASTER}": "3 folds from one initialisation, learning rate times 10",
    "early": "first 5 epochs, learning rate times 10",
    "foreign": "4 late ones and one of another run",
    "independent": "3 runs from different initialisations",
}


@dataclass(frozen=True)
class Measured:
    """One set of checkpoints and its average."""

    name: str
    seed: int
    distance: float
    """Mean relative distance of all pairs."""
    largest: float
    """The largest of them."""
    cosine: float
    """Mean of all pairs."""
    from_mean: tuple[float, float]
    """Least and largest cosine of the differences of two from the mean."""
    in_layers: NDArray[np.float64]
    """Relative distance of each pair in the layer where that is largest."""
    best: Score
    """Of the checkpoint that is best on the validation images; on the test images, as all."""
    singles: Score
    """Mean of all checkpoints."""
    average: Score
    renewed: Score
    """Of the average, after its moving statistics were measured anew."""
    other_answers: float
    """Share of the test images that the average reads otherwise than a checkpoint; their mean."""

    @property
    def change(self) -> float:
        """Accuracy of the average less the mean accuracy of its checkpoints."""
        return self.average.accuracy - self.singles.accuracy


def measured(trainer: Trainer, name: str, seed: int, paths: list[Path], folder: Path) -> Measured:
    """Compares and averages one set."""
    comparison = streamavg.compare(paths)
    pairs = np.triu_indices(len(paths), 1)
    whole = comparison.whole.matrices
    assert whole is not None, "they are kept unless they are declined"
    in_layers = np.max([part.matrices.relative_distances for part in comparison.layers], axis=0)
    validation, test = trainer.digits.validation, trainer.digits.test
    chosen_by, scores, answers = [], [], []
    for path in paths:
        trainer.model.load_weights(path)
        chosen_by.append(trainer.answers(validation)[0])
        score, answer = trainer.answers(test)
        scores.append(score)
        answers.append(answer)
    output = folder / f"average-{name}-{seed}.weights.h5"
    streamavg.merge(paths, output)
    trainer.model.load_weights(output)
    average, answer = trainer.answers(test)
    trainer.renew_statistics()
    best = max(range(len(paths)), key=lambda i: (chosen_by[i].accuracy, -chosen_by[i].loss))
    cosines = whole.cosines_from_mean[pairs]
    return Measured(
        name=name,
        seed=seed,
        distance=float(whole.relative_distances[pairs].mean()),
        largest=float(whole.relative_distances[pairs].max()),
        cosine=float(whole.cosines[pairs].mean()),
        from_mean=(float(cosines.min()), float(cosines.max())),
        in_layers=in_layers[pairs],
        best=scores[best],
        singles=Score.mean(scores),
        average=average,
        renewed=trainer.answers(test)[0],
        other_answers=float(np.mean([other != answer for other in answers])),
    )


# --- the page -------------------------------------------------------------------------------------


def by_name(results: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The results of each set, in the order of their mean distance."""
    groups = {name: [r for r in results if r.name == name] for name in TITLES}
    return dict(sorted(groups.items(), key=lambda e: np.mean([r.distance for r in e[1]])))


def distance_table(results: Sequence[Measured]) -> str:
    """How far apart the checkpoints of each set are."""
    header = ["set", "distance", "largest", "cosine", "cosine of differences", "in one layer"]
    rows = []
    for name, group in by_name(results).items():
        least = min(r.from_mean[0] for r in group)
        most = max(r.from_mean[1] for r in group)
        rows.append(
            [
                TITLES[name],
                percent(np.mean([r.distance for r in group])),
                percent(max(r.largest for r in group)),
                f"{np.mean([r.cosine for r in group]):.4f}",
                f"{least:+.2f} to {most:+.2f}",
                f"{percent(min(r.in_layers.min() for r in group))} to "
                f"{percent(max(r.in_layers.max() for r in group))}",
            ]
        )
    return table(header, rows)


def accuracy_table(results: Sequence[Measured]) -> str:
    """What the average of each set is worth."""
    header = ["set", "best single", "mean of singles", "average", "statistics anew",
              "other answers", "change"]  # fmt: skip
    rows = []
    for name, group in by_name(results).items():
        scores = [
            Score.mean([getattr(r, kind) for r in group])
            for kind in ("best", "singles", "average", "renewed")
        ]
        changes = [100 * r.change for r in group]
        rows.append(
            [
                TITLES[name],
                *(f"{100 * score.accuracy:.1f}% ({score.loss:.2f})" for score in scores),
                f"{np.mean([100 * r.other_answers for r in group]):.1f}%",
                f"{min(changes):+.1f} to {max(changes):+.1f}",
            ]
        )
    return table(header, rows)


def percent(share: float) -> str:
    """A share with two significant digits."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def thresholds(results: Sequence[Measured]) -> list[str]:
    """What the measurements say about the thresholds of `streamavg check`."""
    below = [r for r in results if r.largest <= DISTANT]
    above = [r for r in results if r.largest > DISTANT]
    harmed = min((r for r in results if r.change <= -0.1), key=lambda r: r.largest)
    farthest = max(below, key=lambda r: r.largest)
    lost = max(0.0, *(-100 * r.change for r in below))
    near = [r for r in results if r.in_layers.min() < NEAR_DUPLICATES]
    assert all(r.name.startswith("decayed") for r in near), "the page says so"
    others = [r for r in results if r.in_layers.min() >= NEAR_DUPLICATES]
    closest = min(others, key=lambda r: r.in_layers.min())
    return [
        f"- **Distant: more than {percent(DISTANT)}.** In {len(below)} of the {len(results)} "
        f"averages no two checkpoints were farther apart (the farthest {percent(farthest.largest)}"
        f": {TITLES[farthest.name]}), and none of these lost more than {lost:.1f} points of "
        f"accuracy against the mean of its checkpoints. Of the {len(above)} others "
        f"{sum(r.change <= -0.1 for r in above)} lost 10 points or more; the closest of those had "
        f"checkpoints {percent(harmed.largest)} apart ({TITLES[harmed.name]}).",
        f"- **Near-duplicates: less than {percent(NEAR_DUPLICATES)} in every layer.** {len(near)} "
        "of the sets have such a pair, all at the end of a decayed schedule. Their averages gave "
        "other answers than their checkpoints for "
        f"{percent(float(np.mean([r.other_answers for r in near])))} of the images, and changed "
        f"accuracy by at most {max(100 * abs(r.change) for r in near):.1f} points. The closest "
        f"pair of all other sets is {percent(float(closest.in_layers.min()))} apart in the layer "
        f"that differs most ({TITLES[closest.name]}).",
    ]


def draw(results: Sequence[Measured], path: Path) -> None:
    """Draws change in accuracy against distance, a point for each set and seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.ticker
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    markers = itertools.cycle("osD^v<>Pp*X")
    colors = iter(mpl.colormaps["tab20"].colors)
    for name, group in by_name(results).items():
        axes.scatter(
            [100 * r.largest for r in group],
            [100 * r.change for r in group],
            marker=next(markers),
            color=next(colors),
            s=36,
            label=TITLES[name],
        )
    axes.axvline(100 * DISTANT, color="grey", linewidth=1, linestyle="--")
    axes.annotate("distant", (100 * DISTANT, 0.02), xycoords=("data", "axes fraction"), rotation=90,
                  ha="right", fontsize=8, color="grey")  # fmt: skip
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.set_xlabel("largest relative distance between two checkpoints, %")
    axes.set_ylabel("accuracy of the average less\nmean of its checkpoints, points")
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def render(results: Sequence[Measured]) -> str:
    """The part of the page that is measured."""
    return "\n\n".join(
        [
            f"{measured_with(SEEDS)} "
            "Means over the seeds; *largest* and ranges are over all of them.",
            distance_table(results),
            accuracy_table(results),
            "![change in accuracy against distance](when-to-average.png)",
            "\n".join(thresholds(results)),
        ]
    )


def main() -> None:
    """Trains, averages, measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="print and write nothing")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes")
    arguments = parser.parse_args()
    keep_quiet()
    trainer = Trainer(load_digits())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [
            measured(trainer, name, seed, paths, folder)
            for name, seed, paths in run_all(trainer, folder)
        ]
    text = render(results)
    print(text)
    if not arguments.dry_run:
        draw(results, arguments.picture)
        write_measured(PAGE, text)


if __name__ == "__main__":
    main()
