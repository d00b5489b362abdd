"""Runs a plan: reads slab after slab of every checkpoint, and writes the combined slab.

    each thread, until no slab is left:
        take the next slab
        for each checkpoint:  read into the thread's buffer -> accumulator
        accumulator -> result buffer -> writer

A slab belongs to one thread from its first read to its write, and its sum is made in one order, so
the result is the same, bit for bit, for any number of threads. With one thread this is a plain
loop, which the others are measured against.

Memory: a read buffer, an accumulator and a result buffer of the plan's slab size for each thread,
whatever the number of checkpoints and the size of their variables. Threads ask for slabs, so that
none waits in memory.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from streamavg.access import Access
from streamavg.checkpoint import Kind, Run, Slab, gathered, runs_of
from streamavg.errors import NonFiniteValuesError, OptionError
from streamavg.page_buffer import PageBuffer, SlabBuffer
from streamavg.planning import Action, is_combined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.checkpoint import CheckpointWriter
    from streamavg.matching import Source
    from streamavg.methods import Accumulator
    from streamavg.planning import MergePlan, PlannedVariable

    Progress = Callable[[int], None]

Item = TypeVar("Item")

SLABS_AHEAD = 2
"""How many slabs for each thread are asked for before they are read, where that is useful."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A slab to be handled."""

    slab: Slab
    planned: PlannedVariable
    """The first of its variables; the others are averaged in the same way."""
    reads: Slab
    """What is read of each checkpoint: the slab, or with what belongs to it before it."""

    @property
    def itemsize(self) -> int:
        return self.planned.variable.dtype.itemsize


def stream(plan: MergePlan, writer: CheckpointWriter, progress: Progress | None = None) -> None:
    """Reads, combines and writes all variables of a plan.

    Args:
        plan: what to do, and with how many threads.
        writer: takes the results; committing is the caller's.
        progress: called with the number of bytes read since the last call, by one thread at a
            time.

    Raises:
        NonFiniteValuesError: NaN or Inf in an input, unless the plan allows it.
        OptionError: a result does not fit the output dtype.
        FormatError: an input cannot be read, changed, or does not match its checksum.
        OutputError: the output cannot be written.

        Of several errors, the one that belongs to the first slab.
    """
    sources = plan.matched.sources
    for source in sources:
        source.values.use(plan.access)
    tasks = _Queue(_with_next(_tasks(plan), SLABS_AHEAD * plan.memory.threads), progress)
    tasks.run([_Worker(plan, writer, tasks).handle for _ in range(plan.memory.threads)])
    checks = _Queue(iter(sources))
    checks.run([_verify] * min(plan.memory.threads, len(sources)))
    for source in sources:
        source.identity.require_unchanged(source.path)


def _verify(source: Source) -> None:
    source.values.verify()


class _Queue(Generic[Item]):
    """Hands out items in order to the threads that ask, and gathers what they have to say."""

    def __init__(self, items: Iterator[Item], progress: Progress | None = None) -> None:
        self._items = enumerate(items)
        self._progress = progress
        self._lock = threading.Lock()
        self._is_stopped = False
        self._errors: list[tuple[int, BaseException]] = []

    def run(self, handlers: Sequence[Callable[[Item], None]]) -> None:
        """Handles all items, each handler in a thread of its own, the first in this one.

        Raises: the error of the first item that had one. All items before it were handed out
            before it, and handled: so it is the same error whatever the number of threads.
        """
        others = [
            threading.Thread(target=partial(self._handle, handler), daemon=True)
            for handler in handlers[1:]
        ]
        try:
            for thread in others:
                thread.start()
            self._handle(handlers[0])
        finally:  # an interrupt comes to this thread; the others stop after the item at hand
            self._is_stopped = True
            for thread in others:
                if thread.ident is not None:
                    thread.join()
        if self._errors:
            raise min(self._errors, key=lambda entry: entry[0])[1]

    def _handle(self, handler: Callable[[Item], None]) -> None:
        number = 0
        try:
            while (taken := self._take()) is not None:
                number, item = taken
                handler(item)
        except BaseException as error:
            self._errors.append((number, error))
            self._is_stopped = True

    def _take(self) -> tuple[int, Item] | None:
        """The next item with its number; None if there is none, or all are to stop."""
        with self._lock:
            return None if self._is_stopped else next(self._items, None)

    def advance(self, count: int) -> None:
        """Tells of `count` more bytes that were read."""
        if self._progress is not None:
            with self._lock:
                self._progress(count)


def _tasks(plan: MergePlan) -> Iterator[_Task]:
    """All slabs of a plan, in the order in which the reference stores their values."""
    kept = [p for p, planned in enumerate(plan.variables) if planned.action != Action.DROP]
    order = plan.reference.values.in_storage_order(kept)
    for key, positions in itertools.groupby(order, key=partial(_group_key, plan)):
        if key is None:
            for position in positions:
                yield from _runs_alone(plan, position)
        else:
            yield from _runs_together(plan, positions)


def _group_key(plan: MergePlan, position: int) -> tuple[object, ...] | None:
    """What variables that share a slab have in common; None for one that has slabs of its own."""
    planned = plan.variables[position]
    if planned.action != Action.AVERAGE or planned.variable.size > plan.memory.grouped_elements:
        return None
    return planned.variable.dtype, planned.dtype, planned.factors


def _runs_alone(plan: MergePlan, position: int) -> Iterator[_Task]:
    planned = plan.variables[position]
    size, most = planned.variable.size, plan.memory.slab_elements
    if planned.partner is not None:  # both halves of what is read fit a slab together
        most = max(1, plan.memory.grouped_elements // 2)
    for run in runs_of(position, size, most):
        slab = reads = Slab((run,), run.count)
        if planned.partner is not None:
            belonging = Run(planned.partner, run.start, run.count)
            reads = Slab((belonging, run), 2 * run.count)
        yield _Task(slab, planned, reads)


def _runs_together(plan: MergePlan, positions: Iterator[int]) -> Iterator[_Task]:
    sizes = ((position, plan.variables[position].variable.size) for position in positions)
    whole = (Run(position, 0, size) for position, size in sizes if size)
    for slab in gathered(whole, plan.memory.grouped_elements):
        yield _Task(slab, plan.variables[slab.runs[0].position], slab)


def _with_next(tasks: Iterator[_Task], distance: int) -> Iterator[tuple[_Task, _Task | None]]:
    """Yields each task with the one that comes `distance` places later."""
    waiting: deque[_Task] = deque()
    for task in tasks:
        waiting.append(task)
        if len(waiting) > distance:
            yield waiting.popleft(), task
    for task in waiting:
        yield task, None


class _Worker:
    """Handles one slab at a time, with buffers that live as long as the merge."""

    def __init__(
        self,
        plan: MergePlan,
        writer: CheckpointWriter,
        queue: _Queue[tuple[_Task, _Task | None]],
    ) -> None:
        self._plan = plan
        self._writer = writer
        self._queue = queue
        self._sources = plan.matched.sources
        self._capacity = max(2, plan.memory.slab_elements)
        self._buffer = SlabBuffer(self._capacity * plan.widest_read)
        self._results = PageBuffer(plan.memory.slab_elements * plan.widest_written)
        self._accumulator: Accumulator | None = None
        self._accumulates: object = None

    def handle(self, item: tuple[_Task, _Task | None]) -> None:
        """Handles one slab, and lets the system fetch a later one meanwhile."""
        task, later = item
        if later is not None and self._plan.access == Access.READ_AHEAD:
            for checkpoint in self._readers(later.planned):
                self._sources[checkpoint].values.read_ahead(later.reads, later.itemsize)
        if is_combined(task.planned):
            self._combine(task)
        elif task.planned.variable.kind == Kind.STRING:
            self._carry_strings(task.slab, task.planned)
        else:
            self._carry(task.slab, task.planned)
        readers = len(self._readers(task.planned))
        self._queue.advance(task.reads.count * task.itemsize * readers)

    def _readers(self, planned: PlannedVariable) -> Sequence[int]:
        """Indices of the checkpoints that a variable is read from, in the order of reading."""
        if planned.carried_from is not None:
            return (planned.carried_from,)
        return self._plan.accumulation_order

    def _combine(self, task: _Task) -> None:
        """Combines one slab of all checkpoints and writes it."""
        slab, planned, dtype = task.slab, task.planned, task.planned.variable.dtype
        accumulator = self._accumulator_for(planned)
        accumulator.start(task.reads.count)
        for checkpoint in self._plan.accumulation_order:
            source = self._sources[checkpoint].values
            values = source.read_slab(task.reads, dtype, self._buffer)
            source.note(slab, values[-slab.count :])
            accumulator.add(values, checkpoint)
        if not self._plan.allow_non_finite and not accumulator.all_finite():
            self._blame_non_finite(task.reads, dtype)
        assert planned.dtype is not None, "an averaged variable is written"
        result = self._writer.result(slab, planned.dtype, self._results)
        accumulator.result(result)
        if self._may_overflow(planned) and not self._plan.allow_non_finite:
            self._refuse_overflow(slab, result, planned)
        self._writer.write_slab(slab, result)

    def _carry(self, slab: Slab, planned: PlannedVariable) -> None:
        """Copies one slab of one checkpoint."""
        assert planned.carried_from is not None, "a carried variable comes from a checkpoint"
        source = self._sources[planned.carried_from].values
        values = source.read_slab(slab, planned.variable.dtype, self._buffer)
        source.note(slab, values)
        self._writer.write_slab(slab, values)

    def _carry_strings(self, slab: Slab, planned: PlannedVariable) -> None:
        """Copies strings, which lie in a heap and not at an offset."""
        assert planned.carried_from is not None, "a carried variable comes from a checkpoint"
        source = self._sources[planned.carried_from]
        if source.path == self._plan.reference.path:
            return  # the output's skeleton has them
        (run,) = slab.runs
        values = np.empty(run.count, planned.variable.dtype)
        source.values.read_into(run.position, run.start, values)
        self._writer.write(run.position, run.start, values)

    def _accumulator_for(self, planned: PlannedVariable) -> Accumulator:
        dtype, weighting = planned.variable.dtype, self._plan.weighting(planned)
        wanted = planned.action, dtype, weighting
        if self._accumulator is None or self._accumulates != wanted:
            self._accumulator = None  # the old one is freed before the new one is made
            self._accumulator = self._plan.combining(planned).accumulator(
                dtype, self._capacity, weighting
            )
            self._accumulates = wanted
        return self._accumulator

    @staticmethod
    def _may_overflow(planned: PlannedVariable) -> bool:
        """Whether finite values can give a result that its dtype has no place for."""
        is_bounded = planned.action == Action.AVERAGE and planned.factors is None
        return planned.dtype != planned.variable.dtype or not is_bounded

    def _blame_non_finite(self, slab: Slab, dtype: np.dtype[Any]) -> None:
        """Finds the first value that is NaN or Inf, in the order of the checkpoints."""
        for source in self._sources:
            finite = np.isfinite(source.values.read_slab(slab, dtype, self._buffer))
            if not finite.all():
                place = slab.place_of(int(np.argmin(finite)))
                variable = self._plan.variables[place.position].variable
                value = np.empty(1, dtype)
                source.values.read_into(place.position, place.start, value)
                raise NonFiniteValuesError(
                    source.path,
                    variable.path,
                    variable.index_of(place.start),
                    float(value[0]),
                    "Leave this checkpoint out, or average it with --allow-non-finite.",
                )

    def _refuse_overflow(self, slab: Slab, result: NDArray[Any], planned: PlannedVariable) -> None:
        finite = np.isfinite(result)
        if not finite.all():
            place = slab.place_of(int(np.argmin(finite)))
            variable = self._plan.variables[place.position].variable
            remedy = f"Use --dtype keep ({variable.dtype}) or a wider one."
            if planned.dtype == variable.dtype:
                remedy = "Use a wider --dtype."
            raise OptionError(
                f"variable {variable.path!r}: its result does not fit {planned.dtype}. {remedy}"
            )
