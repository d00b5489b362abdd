"""Looks at the values of checkpoints one by one: can they be read, and are they finite?

    for each checkpoint: for each of its slabs: read -> finite?

Of each checkpoint the first flaw is told, and the others are read all the same. Slabs are handed to
threads in order; what they find comes back in order.

Memory: a slab and a byte an element of it for each thread.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from streamavg.checkpoint import Run, Slab
from streamavg.errors import FormatError, NonFiniteValuesError
from streamavg.page_buffer import SlabBuffer
from streamavg.planning import MOST_GROUPED_ELEMENTS, MOST_SLAB_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streamavg.checkpoint import Variable
    from streamavg.matching import Source
    from streamavg.measuring import MeasuringPlan

    Flaw = FormatError | NonFiniteValuesError

LEAVE_OUT = "Leave this checkpoint out, or average it with --allow-non-finite."


def scan(
    plan: MeasuringPlan,
    runs: Sequence[Run] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[int, Flaw]:
    """Reads values of all checkpoints and finds what a merge would refuse of them.

    Args:
        plan: says whose values, of which variables, in how many threads.
        runs: which of them, each of at most the plan's slab; all, and then the checksums of the
            files too, if None.
        on_progress: called with the number of bytes read since the last call.

    Returns:
        The first flaw of each checkpoint that has one, by the checkpoint's index.
    """
    flaws: dict[int, Flaw] = {}
    local = threading.local()
    threads = plan.memory.threads

    def look(index: int, slab: Slab) -> tuple[int, int, Flaw | None]:
        if not hasattr(local, "buffer"):
            local.buffer = SlabBuffer(most_elements(plan) * _widest(plan))
        source, dtype = plan.sources[index], plan.variables[slab.runs[0].position].dtype
        flaw = _flaw_in(source, plan.variables, slab, local.buffer, notes=runs is None)
        return index, slab.count * dtype.itemsize, flaw

    def finish(future: Future[tuple[int, int, Flaw | None]]) -> None:
        index, nbytes, flaw = future.result()
        if flaw is not None:
            flaws.setdefault(index, flaw)
        if on_progress is not None:
            on_progress(nbytes)

    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[tuple[int, int, Flaw | None]]] = deque()
        try:
            for index in range(len(plan.sources)):
                for slab in _slabs(plan, runs):
                    if index in flaws:
                        break
                    pending.append(pool.submit(look, index, slab))
                    if len(pending) > threads:
                        finish(pending.popleft())
            while pending:
                finish(pending.popleft())
            if runs is None:
                sound = [i for i in range(len(plan.sources)) if i not in flaws]
                verified = pool.map(_flaw_of_file, [plan.sources[i] for i in sound])
                flaws |= {i: flaw for i, flaw in zip(sound, verified, strict=True) if flaw}
        finally:  # an interrupt comes to this thread; the others stop after the slab at hand
            pool.shutdown(cancel_futures=True)
    return flaws


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
        for start in range(0, plan.variables[position].size, most):
            yield Run(position, start, min(most, plan.variables[position].size - start))


def _together(runs: Iterable[Run], plan: MeasuringPlan, most: int) -> Iterator[Slab]:
    """Slabs of one run, or of several whole variables of one dtype that are small."""
    room = min(most, MOST_GROUPED_ELEMENTS)

    def group_of(run: Run) -> tuple[bool, str]:
        variable = plan.variables[run.position]
        return run.count == variable.size and run.count <= room, variable.dtype.str

    for (is_small, _), group in itertools.groupby(runs, key=group_of):
        if not is_small:
            yield from (Slab((run,), run.count) for run in group)
            continue
        gathered: list[Run] = []
        count = 0
        for run in group:
            if count + run.count > room:
                yield Slab(tuple(gathered), count)
                gathered, count = [], 0
            gathered.append(run)
            count += run.count
        yield Slab(tuple(gathered), count)


def _flaw_in(
    source: Source, variables: Sequence[Variable], slab: Slab, buffer: SlabBuffer, *, notes: bool
) -> Flaw | None:
    dtype = variables[slab.runs[0].position].dtype
    try:
        values = source.values.read_slab(slab, dtype, buffer)
        if notes:
            source.values.note(slab, values)
    except FormatError as error:
        return error
    finite = np.isfinite(values)
    if finite.all():
        return None
    element = int(np.argmin(finite))
    value = float(values[element])
    for run in slab.runs:
        if element < run.count:
            break
        element -= run.count
    variable = variables[run.position]
    index = tuple(int(i) for i in np.unravel_index(run.start + element, variable.shape))
    return NonFiniteValuesError(source.path, variable.path, index, value, LEAVE_OUT)


def _flaw_of_file(source: Source) -> FormatError | None:
    """What the container's own checksum says."""
    try:
        source.values.verify()
    except FormatError as error:
        return error
    return None
