"""What an evaluation found, as plain data: scores, differences with intervals, the gate.

Differences are average minus best single checkpoint, in the unit of the metric. `SCHEMA_VERSION`
changes when a field changes its meaning or goes away; new fields do not change it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from streamavg.errors import OptionError
from streamavg.selection.metrics import more_is_better

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamavg.evaluation.bootstrap import Interval

SCHEMA_VERSION = 1
Requirement = Literal["better", "not-worse"]
REQUIREMENTS = get_args(Requirement)
BETTER, WORSE, EQUAL, UNCLEAR = "better", "worse", "equal", "no difference shown"
_PHRASES = {
    BETTER: "is better than",
    WORSE: "is worse than",
    EQUAL: "scores exactly as",
    UNCLEAR: "cannot be told from",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """What models were scored on."""

    name: str
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """The scores of one model."""

    path: str
    kind: str
    """`average`, `recalibrated` (the average with other moving statistics) or `checkpoint`."""
    validation: Mapping[str, float]
    """Value of each metric."""
    test: Mapping[str, float] | None
    """None for models that were not looked at on the test set: all but those compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two models differ in one metric on one set."""

    set: str
    """`validation` or `test`."""
    metric: str
    first: float
    """Value of the average."""
    second: float
    """Value of the model that it is compared with."""
    difference: float
    """First minus second."""
    low: float | None
    """Of the interval of the difference; None where there is none, see `why_not`."""
    high: float | None
    resamples: int | None
    more_is_better: bool | None
    """None where the name of the metric does not tell."""
    verdict: str | None
    """`better`, `worse`, `equal` or `no difference shown`; None without interval or direction."""
    why_not: str | None
    """Why there is no interval."""

    @property
    def improvement(self) -> tuple[float, float] | None:
        """The interval with the sign turned so that positive is better."""
        if self.low is None or self.high is None or self.more_is_better is None:
            return None
        return (self.low, self.high) if self.more_is_better else (-self.high, -self.low)

    def in_words(self) -> str:
        """Such as "test loss 0.21 against 0.23: -0.02 (95% interval -0.03 to -0.01)"."""
        return (
            f"{self.set} {self.metric} {number(self.first)} against {number(self.second)}: "
            f"{signed(self.difference)} ({self.interval_in_words()})"
        )

    def interval_in_words(self) -> str:
        """Such as "95% interval -0.03 to -0.01"."""
        if self.low is None or self.high is None:
            return "no interval"
        return f"95% interval {signed(self.low)} to {signed(self.high)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether what was required holds."""

    require: str
    metric: str
    set: str
    margin: float | None
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An average and the checkpoints that it was compared with."""

    schema_version: int
    streamavg_version: str
    average: str
    best: str
    """The checkpoint that is best on validation."""
    metric: str
    """By which the best one was chosen."""
    more_is_better: bool
    uses_recalibrated: bool
    """Whether the average that is compared has recalibrated moving statistics: where they were
    asked for, and are better on validation."""
    validation: DataRecord
    test: DataRecord | None
    loss: str | None
    metrics: tuple[str, ...]
    """As the models were compiled."""
    seed: int
    confidence: float
    models: tuple[ModelReport, ...]
    """The average first, then the checkpoints as they were given."""
    differences: tuple[Difference, ...]
    """Average and best, in each metric on each set."""
    recalibration: tuple[Difference, ...]
    """The average with recalibrated moving statistics and without; empty if not asked for."""
    gate: Gate | None
    output: str | None
    notes: tuple[str, ...]

    @property
    def decisive(self) -> Difference:
        """The difference that answers: in the metric, on the test set if there is one."""
        where = "validation" if self.test is None else "test"
        return next(d for d in self.differences if (d.set, d.metric) == (where, self.metric))

    def answer(self, best: str) -> str:
        """The verdict in a line, in which the best checkpoint is called `best`."""
        decisive = self.decisive
        phrase = _PHRASES.get(decisive.verdict or "", "was compared with")
        average = "the recalibrated average" if self.uses_recalibrated else "the average"
        text = f"{average} {phrase} the best single checkpoint, {best}: {decisive.in_words()}"
        if self.gate is None:
            return text
        return f"{'pass' if self.gate.passed else 'no pass'}: {text}"

    def to_json(self) -> str:
        """All of it as JSON, indented."""
        return json.dumps(asdict(self), indent=2)


def refuse_both(*, maximize: bool, minimize: bool) -> None:
    """Raises OptionError if more and less are said to be better."""
    if maximize and minimize:
        raise OptionError("--maximize and --minimize exclude each other. Choose one of them.")


def clear_direction(metric: str, *, maximize: bool, minimize: bool) -> bool:
    """Whether more of a metric is better, which decides something.

    Raises:
        OptionError: both are said, or neither is and the name does not tell.
    """
    more = direction(metric, maximize=maximize, minimize=minimize)
    if more is None:
        raise OptionError(
            f"--metric {metric}: its name does not tell whether more or less is better. "
            "Say --maximize or --minimize."
        )
    return more


def direction(metric: str, *, maximize: bool, minimize: bool) -> bool | None:
    """Whether more of a metric is better: as the user says, or by its name.

    Raises:
        OptionError: both are said.
    """
    refuse_both(maximize=maximize, minimize=minimize)
    return maximize or (False if minimize else more_is_better(metric))


def compare(
    where: str,
    metric: str,
    values: tuple[float, float],
    interval: Interval | None,
    more: bool | None,
    why_not: str | None,
) -> Difference:
    """The difference of two values, and what its interval says."""
    low, high, resamples = None, None, None
    verdict = None
    if interval is not None:
        low, high, resamples = interval.low, interval.high, interval.resamples
        verdict = _verdict(low, high, more)
    return Difference(
        set=where,
        metric=metric,
        first=values[0],
        second=values[1],
        difference=values[0] - values[1],
        low=low,
        high=high,
        resamples=resamples,
        more_is_better=more,
        verdict=verdict,
        why_not=None if interval is not None else why_not or "a resample has no finite value",
    )


def _verdict(low: float, high: float, more: bool | None) -> str | None:
    if low == high == 0:
        return EQUAL
    if more is None:
        return None
    if low <= 0 <= high:
        return UNCLEAR
    return BETTER if (low > 0) == more else WORSE


def check_requirement(require: str | None, margin: float | None) -> None:
    """Raises OptionError for a requirement that makes no sense."""
    if require is not None and require not in REQUIREMENTS:
        raise OptionError(f"--require {require}: choose one of {', '.join(REQUIREMENTS)}.")
    if margin is not None and require is None:
        raise OptionError("--margin belongs to --require better or --require not-worse.")
    if margin is not None and not 0 <= margin < float("inf"):
        raise OptionError(f"--margin {margin}: a margin is zero or more, in the metric's unit.")


def decide(require: str, margin: float | None, difference: Difference) -> Gate:
    """Whether the average passes.

    - `better`: the whole interval is better than 0, or than the margin.
    - `not-worse` without a margin: the average is not shown to be worse, so the interval reaches 0.
      Few examples show little: with a margin, the whole interval must be better than -margin
      (non-inferiority).

    Args:
        require: one of `REQUIREMENTS`.
        margin: in the unit of the metric.
        difference: average against best, in the metric and on the set that decide.
    """
    improvement = difference.improvement
    if improvement is None:
        return _gate(require, margin, difference, passed=False, reason=(
            f"there is no interval: {difference.why_not}" if difference.low is None else
            "whether more or less is better is not known; say --maximize or --minimize"
        ))  # fmt: skip
    low, high = improvement
    if require == "better":
        bound = margin or 0.0
        passed = low > bound
        reason = f"the improvement is at least {number(low)}, required is more than {number(bound)}"
    elif margin is None:
        passed = high >= 0
        reason = f"the improvement may be as much as {number(high)}, required is 0 or more"
    else:
        passed = low > -margin
        reason = f"the improvement is at least {number(low)}, required is more than {-margin:g}"
    return _gate(require, margin, difference, passed=passed, reason=reason)


def _gate(
    require: str, margin: float | None, difference: Difference, *, passed: bool, reason: str
) -> Gate:
    return Gate(
        require=require, metric=difference.metric, set=difference.set, margin=margin,
        passed=passed, reason=reason,
    )  # fmt: skip


def number(value: float) -> str:
    """A value for people: four significant digits."""
    return f"{value:.4g}"


def signed(value: float) -> str:
    """A difference for people: two or three significant digits, with its sign."""
    return "0" if value == 0 else f"{value:+.3g}"
