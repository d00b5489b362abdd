"""The paired bootstrap: how sure a difference between two models is. Pure NumPy.

Every example adds its share to the state of a metric (a total and a count, say), and the metric is
a function of the sum of all states. A resample draws as many examples as there are, with
replacement, the same ones for both models, sums their states and takes the difference of the two
results; the percentiles of many such differences are the interval.

Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_COUNTS_AT_ONCE = 2**21
"""Counts of examples that are in memory at once: 16 MiB, and as much again while they are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A number that depends on examples through a sum of what each of them adds."""

    states: NDArray[Any]
    """What each example adds: shape (examples, width)."""
    start: Doubles
    """What is there before the first example: shape (width,)."""
    result: Callable[[Doubles], Doubles]
    """From summed states, shape (rows, width), to a number a row."""

    @property
    def width(self) -> int:
        """Numbers that make up the state."""
        return int(self.states.shape[1])

    def value(self) -> float:
        """The number for all examples, each taken once."""
        total = self.states.sum(axis=0, dtype=np.float64) + self.start
        return float(self.result(total[None])[0])


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a difference lies, with `CONFIDENCE`."""

    low: float
    high: float
    resamples: int


def ratio(sums: Doubles) -> Doubles:
    """Total divided by count, the `result` of a mean; 0 where nothing was counted, as in Keras."""
    totals, counts = sums[:, 0], sums[:, 1]
    return np.divide(totals, counts, out=np.zeros_like(totals), where=counts != 0)


def mean_of(values: NDArray[Any]) -> Statistic:
    """The mean of one value an example: shape (examples,)."""
    states = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    return Statistic(states, np.zeros(2), ratio)


def paired_intervals(
    pairs: Sequence[tuple[Statistic, Statistic]], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval | None]:
    """Intervals of the differences first - second, all from the same resamples.

    Args:
        pairs: statistics of two models on the same examples, row for row.
        seed: of the random numbers; the same seed draws the same resamples.
        resamples: how many.

    Returns:
        One for each pair; None where a resample has no finite result.

    Memory: the states as float64, some 32 MiB of counts, and `resamples` numbers a pair.
    """
    if not pairs:
        return []
    states = np.concatenate(
        [np.asarray(one.states, np.float64) for pair in pairs for one in pair], axis=1
    )
    differences = np.empty((len(pairs), resamples))
    done = 0
    for counts in resampled_counts(len(states), resamples, seed):
        sums = counts @ states
        rows = slice(done, done + len(counts))
        place = 0
        for row, pair in enumerate(pairs):
            results = []
            for one in pair:
                results.append(one.result(sums[:, place : place + one.width] + one.start))
                place += one.width
            differences[row, rows] = results[0] - results[1]
        done += len(counts)
    return [_interval(row) for row in differences]


def resampled_counts(examples: int, resamples: int, seed: int) -> Iterator[Doubles]:
    """How often each example is drawn in each resample, some resamples at a time.

    Yields:
        Shape (some, examples); each row sums to `examples`.
    """
    generator = np.random.default_rng(seed)
    most = max(1, _COUNTS_AT_ONCE // examples)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        drawn = generator.integers(examples, size=(rows, examples))
        drawn += np.arange(rows)[:, None] * examples
        counts = np.bincount(drawn.reshape(-1), minlength=rows * examples)
        yield counts.reshape(rows, examples).astype(np.float64)


def _interval(differences: Doubles) -> Interval | None:
    if not np.isfinite(differences).all():
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(float(low), float(high), len(differences))
