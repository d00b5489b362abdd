"""Looks at the values of checkpoints one by one: can they be read, and are they finite?

    for each checkpoint: for each of its slabs: read -> finite?

Of each checkpoint the first flaw is told, and the others are read all the same. Slabs are handed to
threads in order; what they find comes back in order.

Memory: a slab and a byte an element of it for each thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.checkpoint import Slab, gathered, runs_of
from streamavg.errors import FormatError, NonFiniteValuesError
from streamavg.measuring import MOST_SLAB_ELEMENTS, MeasuringPlan
from streamavg.ordered import in_order
from streamavg.page_buffer import SlabBuffer
from streamavg.planning import MOST_GROUPED_ELEMENTS, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.checkpoint import Run, Variable
    from streamavg.matching import Source
    from streamavg.planning import MergePlan

    Flaw = FormatError | NonFiniteValuesError

LEAVE_OUT = "Leave this checkpoint out, or average it with --allow-non-finite."


def scan(
    plan: MeasuringPlan,
    runs: Sequence[Run] | None = None,
    on_progress: Callable[[int], None] | None = None,
    *,
    remedy: str = LEAVE_OUT,
) -> dict[int, Flaw]:
    """Reads values of all checkpoints and finds what a merge would refuse of them.

    Args:
        plan: says whose values, of which variables, in how many threads.
        runs: which of them, each of at most the plan's slab; all, and then the checksums of the
            files too, if None.
        on_progress: called with the number of bytes read since the last call.
        remedy: what to do about NaN and Inf.

    Returns:
        The first flaw of each checkpoint that has one, by the checkpoint's index.
    """
    flaws: dict[int, Flaw] = {}
    local = threading.local()
    threads = plan.memory.threads

    def look(item: tuple[int, Slab]) -> tuple[int, int, Flaw | None]:
        index, slab = item
        if not hasattr(local, "buffer"):
            local.buffer = SlabBuffer(most_elements(plan) * _widest(plan))
        source, dtype = plan.sources[index], plan.variables[slab.runs[0].position].dtype
        flaw: Flaw | None = None
        try:
            values = source.values.read_slab(slab, dtype, local.buffer)
            if runs is None:
                source.values.note(slab, values)
            flaw = _non_finite(source, plan.variables, slab, values, remedy)
        except FormatError as error:
            flaw = error
        return index, slab.count * dtype.itemsize, flaw

    def unflawed() -> Iterator[tuple[int, Slab]]:
        for index in range(len(plan.sources)):
            for slab in _slabs(plan, runs):
                if index in flaws:
                    break
                yield index, slab

    with closing(in_order(look, unflawed(), threads)) as looked_at:
        for index, nbytes, flaw in looked_at:
            if flaw is not None:
                flaws.setdefault(index, flaw)
            if on_progress is not None:
                on_progress(nbytes)
    if runs is None:
        sound = [index for index in range(len(plan.sources)) if index not in flaws]
        verified = in_order(_flaw_of_file, [plan.sources[index] for index in sound], threads)
        flaws |= {index: flaw for index, flaw in zip(sound, verified, strict=True) if flaw}
    return flaws


def require_finite(plan: MergePlan) -> None:
    """Reads every value that a merge would average, before it is begun, and refuses NaN and Inf.

    Memory: within that of the plan.

    Raises:
        NonFiniteValuesError: the first such value, in the order of the checkpoints.
        FormatError: a checkpoint cannot be read, or does not match its checksum.
    """
    positions = tuple(
        position
        for position, planned in enumerate(plan.variables)
        if planned.action == Action.AVERAGE and planned.variable.size
    )
    if not positions:
        return
    sources = plan.matched.sources
    share = max(1, plan.memory.slab_elements // len(sources))
    budget = dataclasses.replace(plan.memory, slab_elements=share)
    values = MeasuringPlan(sources, plan.reference.variables, positions, budget)
    flaws = scan(values, remedy="Leave this checkpoint out.")
    if flaws:
        raise flaws[min(flaws)]


def most_elements(plan: MeasuringPlan) -> int:
    """Elements of the largest slab: no more than what the plan reads of all checkpoints at once."""
    return min(MOST_SLAB_ELEMENTS, len(plan.sources) * plan.memory.slab_elements)


def _widest(plan: MeasuringPlan) -> int:
    return max(plan.variables[position].dtype.itemsize for position in plan.positions)


def _slabs(plan: MeasuringPlan, runs: Sequence[Run] | None) -> Iterator[Slab]:
    """Everything, or the runs that were asked for; what is small and next to each other at once."""
    most = most_elements(plan)
    return _together(_all_runs(plan, most) if runs is None else runs, plan, most)


def _all_runs(plan: MeasuringPlan, most: int) -> Iterator[Run]:
    for position in plan.sources[0].values.in_storage_order(plan.positions):
        yield from runs_of(position, plan.variables[position].size, most)


def _together(runs: Iterable[Run], plan: MeasuringPlan, most: int) -> Iterator[Slab]:
    """Slabs of one run, or of several whole variables of one dtype that are small."""
    room = min(most, MOST_GROUPED_ELEMENTS)

    def group_of(run: Run) -> tuple[bool, str]:
        variable = plan.variables[run.position]
        return run.count == variable.size and run.count <= room, variable.dtype.str

    for (is_small, _), group in itertools.groupby(runs, key=group_of):
        if is_small:
            yield from gathered(group, room)
        else:
            yield from (Slab((run,), run.count) for run in group)


def _non_finite(
    source: Source, variables: Sequence[Variable], slab: Slab, values: NDArray[Any], remedy: str
) -> NonFiniteValuesError | None:
    """The first value of a slab that is NaN or infinite, if there is one."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    element = int(np.argmin(finite))
    place = slab.place_of(element)
    variable = variables[place.position]
    index = variable.index_of(place.start)
    return NonFiniteValuesError(source.path, variable.path, index, float(values[element]), remedy)


def _flaw_of_file(source: Source) -> FormatError | None:
    """What the container's own checksum says."""
    try:
        source.values.verify()
    except FormatError as error:
        return error
    return None
