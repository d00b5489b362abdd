"""What a method must know of the values before it can combine them, found in a pass of its own.

    MergePlan --measure--> distances --> MergePlan with coefficients, or factors for each variable

The geometric median needs the distances between whole checkpoints, and slerp those between the
vectors of each variable. Both are found by one pass that measures (`streamavg.measuring`); the pass
that combines follows, whatever the method. So the files are read twice, and never more.

Rows are measured in the order in which checkpoints will be summed, in slabs that depend on the
checkpoints alone, and sums over variables are compensated: the bits of the result depend neither on
the order of the inputs nor on limit, threads or container.
"""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamavg.coefficients import Coefficients, Factors
from streamavg.distances import Sums
from streamavg.measuring import Allowance, MeasuringPlan, measure, plan_measuring
from streamavg.methods.geometric_median import FoundMedian, geometric_median
from streamavg.methods.slerp import Interpolation, interpolate
from streamavg.planning import MergePlan, is_combined, summing_order
from streamavg.selection.tables import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.options import Settings

    Progress = Callable[[int], None]

_MATRICES = 16
"""Numbers for each pair of checkpoints: sums, their errors, what is being added, temporaries."""


@dataclass(frozen=True, slots=True, eq=False)
class Weighing:
    """A plan, and the pass that its method needs before it; None where it needs none."""

    plan: MergePlan
    """Its bytes and its memory are those of both passes; its coefficients are not found yet."""
    measuring: MeasuringPlan | None


def plan_weighing(plan: MergePlan, settings: Settings) -> Weighing:
    """Plans the pass that the method needs.

    Raises:
        MemoryLimitError: the limit cannot be kept.
    """
    positions = [
        position
        for position, planned in enumerate(plan.variables)
        if is_combined(planned) and planned.variable.size
    ]
    if plan.method.name not in _WEIGHERS or not positions:
        return Weighing(plan, None)
    count = len(plan.matched.sources)
    measuring = plan_measuring(
        [plan.matched.sources[index] for index in plan.accumulation_order],
        plan.reference.variables,
        positions,
        Allowance(
            job=f"--method {plan.method.name}",
            limit=plan.memory.limit,
            limit_origin=plan.memory.limit_origin,
            reserved=plan.memory.reserved,
            besides=_MATRICES * 8 * count**2,
            threads=settings.threads,
            is_steady=True,
        ),
    )
    projected = max(plan.memory.projected, measuring.memory.projected)
    both = dataclasses.replace(
        plan,
        bytes_measured=measuring.bytes_read,
        memory=dataclasses.replace(plan.memory, projected=projected),
    )
    return Weighing(both, measuring)


def weigh(weighing: Weighing, progress: Progress | None = None) -> MergePlan:
    """Reads what the method needs to know, if anything, and completes the plan.

    Args:
        weighing: as planned.
        progress: called with the number of bytes read since the last call.

    Raises:
        NonFiniteValuesError: an input holds NaN or Inf.
        FormatError: an input cannot be read, or changed.
    """
    plan, measuring = weighing.plan, weighing.measuring
    if measuring is None:
        return plan
    weighed = _WEIGHERS[plan.method.name](plan, measuring, progress)
    for source in measuring.sources:
        source.identity.require_unchanged(source.path)
    return weighed


# --- geometric median -----------------------------------------------------------------------------


def _weigh_checkpoints(
    plan: MergePlan, measuring: MeasuringPlan, progress: Progress | None
) -> MergePlan:
    """Gives the plan the coefficients of the geometric median."""
    distances = _CompensatedSum(len(measuring.sources))
    with closing(measure(measuring)) as runs:
        for measured in runs:
            distances.add(measured.sums.squared_distances)
            if progress is not None:
                progress(measured.nbytes)
    order = plan.accumulation_order
    weights = Coefficients(tuple(plan.coefficients.numerators[index] for index in order))
    found = geometric_median(distances.value, weights)
    coefficients = Coefficients(_in_merge_order(found.coefficients.numerators, order))
    rules = dataclasses.replace(plan.selection.rules, iterations=found.iterations)
    selection = dataclasses.replace(plan.selection, coefficients=coefficients, rules=rules)
    return dataclasses.replace(
        plan,
        selection=selection,
        accumulation_order=summing_order(plan.matched, coefficients, plan.variables),
        notes=(*plan.notes, *_remarks(found, coefficients, plan)),
    )


def _remarks(found: FoundMedian, coefficients: Coefficients, plan: MergePlan) -> Iterable[str]:
    """What a user should know of the geometric median beside its coefficients."""
    paths = [str(source.path) for source in plan.matched.sources]
    if not found.is_converged:
        yield (
            f"the geometric median was not reached after {found.iterations:,} iterations; the sum "
            f"of distances is at most {found.excess:.1g} of itself above the least."
        )
    if len(set(plan.coefficients.numerators)) > 1:
        shares = listed(f"{share:.6g}" for share in plan.coefficients.values)
        yield f"distances count with the weights given: {shares}."
    if found.iterations == 0:
        minima = [p for p, n in zip(paths, coefficients.numerators, strict=True) if n]
        if len(minima) == 1:
            yield f"{minima[0]} itself is the geometric median: it alone counts."
        else:
            yield (
                f"{listed(minima)} and all that is between them are equally good geometric "
                "medians: their mean is taken."
            )


class _CompensatedSum:
    """A sum of matrices with its error, so that the order of the terms does not show.

    Source: D. E. Knuth, TAOCP vol. 2, 4.2.2 (sum of two numbers with its error).
    """

    def __init__(self, count: int) -> None:
        self._sum = np.zeros((count, count))
        self._error = np.zeros((count, count))

    def add(self, values: NDArray[np.float64]) -> None:
        total = self._sum + values
        added = total - self._sum
        self._error += (self._sum - (total - added)) + (values - added)
        self._sum = total

    @property
    def value(self) -> NDArray[np.float64]:
        rounded: NDArray[np.float64] = self._sum + self._error
        return rounded


# --- slerp ----------------------------------------------------------------------------------------


def _weigh_variables(
    plan: MergePlan, measuring: MeasuringPlan, progress: Progress | None
) -> MergePlan:
    """Gives the plan the factors of each variable."""
    order = plan.accumulation_order
    coefficients = Coefficients(tuple(plan.coefficients.numerators[index] for index in order))
    variables = list(plan.variables)
    opposite = []
    for position, sums in _sums_of_variables(measuring, progress):
        first, second = sums.squared_norms.tolist()
        distance = float(sums.squared_distances[0, 1])
        found = interpolate((first, second), distance, coefficients)
        if found.is_opposite:
            opposite.append(variables[position].variable.path)
        variables[position] = dataclasses.replace(
            variables[position],
            reason=_angle(found),
            factors=None
            if found.factors is None
            else Factors(_in_merge_order(found.factors.numerators, order)),
        )
    notes = plan.notes
    if opposite:
        notes = (
            *notes,
            f"variables {listed(map(repr, opposite))} point in opposite directions, between "
            "which there is no way that turns evenly: interpolated linearly.",
        )
    return dataclasses.replace(plan, variables=tuple(variables), notes=notes)


def _sums_of_variables(
    measuring: MeasuringPlan, progress: Progress | None
) -> Iterator[tuple[int, Sums]]:
    """The position and the sums of each variable, in order."""
    with closing(measure(measuring)) as runs:
        for position, of_runs in itertools.groupby(runs, key=lambda one: one.run.position):
            sums = Sums.zeros(len(measuring.sources))
            for measured in of_runs:
                sums.add(measured.sums)
                if progress is not None:
                    progress(measured.nbytes)
            yield position, sums


def _angle(found: Interpolation) -> str:
    if found.degrees is None:
        return "linear: a zero vector"
    if found.is_opposite:
        return "linear: opposite directions"
    return f"{found.degrees:.2f} degrees apart"


def _in_merge_order(numerators: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Numbers of checkpoints that come in the order of the indices `order`, sorted by index."""
    by_index = dict(zip(order, numerators, strict=True))
    return tuple(by_index[index] for index in range(len(order)))


_WEIGHERS = {"geometric-median": _weigh_checkpoints, "slerp": _weigh_variables}
"""The methods that need to know something of the values, and how they learn it."""
