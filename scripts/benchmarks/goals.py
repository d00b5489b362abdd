"""What is promised of speed and memory, and whether the measurements keep it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import contenders as names
from benchmarks import modes
from benchmarks.results import MIB

if TYPE_CHECKING:
    from benchmarks.results import Report

PEAK = 64 * MIB


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise: a time relative to another that was taken side by side, and a peak."""

    condition: str
    mode: str
    scenario: str | None
    """None: whichever the mode has."""
    contender: str
    base: str
    """What its time is divided by; of a `speedup`, what is divided by its time."""
    must: float
    aim: float | None = None
    peak: int | None = PEAK
    """Resident memory in bytes."""
    is_speedup: bool = False
    """Whether more is better."""

    @property
    def unit(self) -> str:
        """What the numbers are multiples of."""
        return "x faster" if self.is_speedup else self.base


def _with_and_without_fsync(
    condition: str, mode: str, scenario: str, must: float, aim: float, peak: int | None = PEAK
) -> list[Goal]:
    return [
        Goal(condition, mode, scenario, names.MERGE, names.L, must, aim, peak),
        Goal(
            f"{condition}, fsync", mode, scenario, names.MERGE_FSYNC, names.L_FSYNC, must, aim, peak
        ),
    ]


GOALS = [
    *_with_and_without_fsync("warm, `.weights.h5`, uniform", "warm", modes.WEIGHTS, 1.1, 0.9),
    Goal(
        "warm, `.weights.h5`, weighted",
        "warm", modes.WEIGHTS, names.WEIGHTED, names.L, 1.25, 1.0,
    ),
    *_with_and_without_fsync("warm, `.keras` in and out", "warm", modes.ARCHIVES, 1.5, 1.1),
    *_with_and_without_fsync("warm, legacy `.h5`", "warm", modes.LEGACY, 1.1, 0.9),
    *_with_and_without_fsync("warm, float16", "warm", modes.HALVES["float16"], 2.0, 1.2),
    *_with_and_without_fsync("warm, bfloat16", "warm", modes.HALVES["bfloat16"], 2.0, 1.2),
    *_with_and_without_fsync("cold page cache", "cold", modes.WEIGHTS, 0.6, 0.45),
    *_with_and_without_fsync(
        "in a memory cgroup of 96 MiB, cold", "cgroup", modes.WEIGHTS, 1.5, 1.0, None
    ),
    Goal(
        "median of 32 checkpoints, against `np.median(np.stack(...))`",
        "median", None, names.MEDIAN, names.NUMPY_MEDIAN, 5, is_speedup=True,
    ),
    Goal(
        "against mergekit, linear",
        "warm", modes.WEIGHTS, names.MERGE, names.MERGEKIT, 8, peak=None, is_speedup=True,
    ),
    Goal(
        "against whole-model accumulators",
        "warm", modes.WEIGHTS, names.MERGE, names.WHOLE, 12, peak=None, is_speedup=True,
    ),
    Goal(
        "against the article's way with Keras",
        "warm", modes.WEIGHTS, names.MERGE, names.ARTICLE, 20, peak=None, is_speedup=True,
    ),
]  # fmt: skip

START_UP_MUST = 0.2
"""Seconds until `streamavg --help` has ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured of a goal."""

    goal: Goal
    repeats: list[float]
    """Median of each measurement of the whole table."""
    peak: int | None
    failures: list[str]
    """How runs ended that did not end well."""

    @property
    def measured(self) -> float | None:
        """Median of the repeats; None if there is none."""
        return statistics.median(self.repeats) if self.repeats else None

    @property
    def keeps_peak(self) -> bool:
        """Whether no run took more memory than promised."""
        return self.goal.peak is None or self.peak is None or self.peak <= self.goal.peak

    @property
    def verdict(self) -> str:
        """`aim met`, `must met`, `missed`, with a reason; `not measured`."""
        if self.failures:
            return f"missed: {self.failures[0]}"
        if self.measured is None:
            return "not measured"
        if not self._reaches(self.goal.must):
            return "missed"
        if not self.keeps_peak:
            return "missed: memory"
        if self.goal.aim is not None and self._reaches(self.goal.aim):
            return "aim met"
        return "must met"

    def _reaches(self, value: float) -> bool:
        assert self.measured is not None
        return self.measured >= value if self.goal.is_speedup else self.measured <= value


def outcome(goal: Goal, report: Report) -> Outcome:
    """Looks up what was measured of a goal."""
    scenario = goal.scenario or next(iter(report.scenario_names(goal.mode)), "")
    if goal.base == names.L and names.MERGE not in report.contenders(goal.mode, scenario):
        return Outcome(goal, [], None, [])  # no merge without fsync: nothing to put beside L
    pair = (goal.contender, goal.base)
    ratios = [
        report.median_ratio(goal.mode, scenario, *(pair[::-1] if goal.is_speedup else pair), repeat)
        for repeat in report.repeats(goal.mode, scenario)
    ]
    return Outcome(
        goal,
        [ratio for ratio in ratios if ratio is not None],
        report.peak_bytes(goal.mode, scenario, goal.contender),
        report.failures(goal.mode, scenario, goal.contender),
    )
