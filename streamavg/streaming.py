"""Runs a plan: reads slab after slab of every checkpoint, and writes the combined slab.

    each thread, until no slab is left:
        take the next slab
        for each checkpoint:  read into the thread's read buffer -> accumulator
        accumulator -> result buffer -> writer

A slab belongs to one thread from its first read to its write, and its sum is made in one order, so
the result is the same, bit for bit, for any number of threads.

Memory: a read buffer, an accumulator and a result buffer of the plan's slab size for each thread,
whatever the number of checkpoints and the size of their variables.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.checkpoint import Kind, Slab, slabs_of
from streamavg.errors import NonFiniteValuesError, OptionError
from streamavg.planning import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from streamavg.checkpoint import CheckpointWriter, Variable
    from streamavg.methods import Accumulator
    from streamavg.planning import MergePlan, PlannedVariable

    Progress = Callable[[int], None]


def stream(plan: MergePlan, writer: CheckpointWriter, progress: Progress | None = None) -> None:
    """Reads, combines and writes all variables of a plan.

    Args:
        plan: what to do, and with how many threads.
        writer: takes the results; committing is the caller's.
        progress: called with the number of bytes read since the last call, by one thread at a
            time.

    Raises:
        NonFiniteValuesError: NaN or Inf in an input, unless the plan allows it.
        OptionError: a mean does not fit the output dtype.
        FormatError: an input cannot be read, or changed.
        OutputError: the output cannot be written.

        Of several errors, the one that belongs to the first slab.
    """
    queue = _SlabQueue(plan, progress)
    workers = [_Worker(plan, writer, queue) for _ in range(plan.memory.threads)]
    helpers = [threading.Thread(target=worker.run, daemon=True) for worker in workers[1:]]
    try:
        for helper in helpers:
            helper.start()
        workers[0].run()
    finally:  # an interrupt comes to this thread; the others stop after the slab at hand
        queue.stop()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    queue.raise_first_error()
    for source in plan.matched.sources:
        source.identity.require_unchanged(source.path)


class _SlabQueue:
    """Hands out the slabs of a plan in order, and gathers what the workers have to say."""

    def __init__(self, plan: MergePlan, progress: Progress | None) -> None:
        self._slabs = enumerate(_slabs(plan))
        self._progress = progress
        self._lock = threading.Lock()
        self._is_stopped = False
        self._errors: list[tuple[int, BaseException]] = []

    def take(self) -> tuple[int, tuple[Slab, PlannedVariable]] | None:
        """The next slab with its number; None if there is none, or all are to stop."""
        with self._lock:
            return None if self._is_stopped else next(self._slabs, None)

    def stop(self) -> None:
        """Hands out no more slabs."""
        self._is_stopped = True

    def advance(self, count: int) -> None:
        """Tells of `count` more bytes that were read."""
        if self._progress is not None:
            with self._lock:
                self._progress(count)

    def fail(self, number: int, error: BaseException) -> None:
        """Takes the error of a slab, and stops."""
        self._errors.append((number, error))
        self.stop()

    def raise_first_error(self) -> None:
        """Raises the error of the first slab that had one.

        All slabs before it were handed out before it, and handled: so it is the same error
        whatever the number of threads.
        """
        if self._errors:
            raise min(self._errors, key=lambda entry: entry[0])[1]


def _slabs(plan: MergePlan) -> Iterator[tuple[Slab, PlannedVariable]]:
    for position, planned in enumerate(plan.variables):
        if planned.action != Action.DROP:
            for slab in slabs_of(position, planned.variable.size, plan.memory.slab_elements):
                yield slab, planned


class _Worker:
    """Handles one slab at a time, with buffers that live as long as the merge."""

    def __init__(self, plan: MergePlan, writer: CheckpointWriter, queue: _SlabQueue) -> None:
        self._plan = plan
        self._writer = writer
        self._queue = queue
        self._buffers: dict[str, NDArray[np.uint8]] = {}
        self._accumulator: Accumulator | None = None
        self._accumulates: np.dtype[Any] | None = None

    def run(self) -> None:
        """Handles slabs until none is left. Errors go to the queue."""
        number = 0
        try:
            while (taken := self._queue.take()) is not None:
                number, (slab, planned) = taken
                if planned.action == Action.AVERAGE:
                    self.average(slab, planned)
                else:
                    self.carry(slab, planned)
        except BaseException as error:
            self._queue.fail(number, error)

    def average(self, slab: Slab, planned: PlannedVariable) -> None:
        """Combines one slab of all checkpoints and writes it."""
        accumulator = self._accumulator_for(planned.variable.dtype)
        accumulator.start(slab.count)
        for checkpoint in self._plan.accumulation_order:
            accumulator.add(self._read(checkpoint, slab, planned.variable), checkpoint)
        if not accumulator.all_finite() and not self._plan.allow_non_finite:
            self._blame_non_finite(slab, planned.variable)
        assert planned.dtype is not None, "an averaged variable is written"
        result = self._buffer("result", planned.dtype, slab.count)
        accumulator.result(result)
        if planned.dtype != planned.variable.dtype and not self._plan.allow_non_finite:
            self._refuse_overflow(result, planned)
        self._writer.write(slab.position, slab.start, result)

    def carry(self, slab: Slab, planned: PlannedVariable) -> None:
        """Copies one slab of one checkpoint."""
        source = planned.carried_from
        assert source is not None, "a carried variable comes from a checkpoint"
        if planned.variable.kind == Kind.STRING and self._is_reference(source):
            # The skeleton has them: strings lie in a heap, not at an offset.
            self._queue.advance(slab.count * planned.variable.dtype.itemsize)
            return
        self._writer.write(slab.position, slab.start, self._read(source, slab, planned.variable))

    def _is_reference(self, checkpoint: int) -> bool:
        return self._plan.matched.sources[checkpoint].path == self._plan.reference.path

    def _read(self, checkpoint: int, slab: Slab, variable: Variable) -> NDArray[Any]:
        buffer = self._buffer("read", variable.dtype, slab.count)
        values = self._plan.matched.sources[checkpoint].values
        values.read_into(slab.position, slab.start, buffer)
        self._queue.advance(buffer.nbytes)
        return buffer

    def _buffer(self, use: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """The first `count` elements of the one buffer for this use, seen as `dtype`."""
        if dtype.kind == "O":
            return np.empty(count, object)
        needed = count * dtype.itemsize
        if use not in self._buffers or self._buffers[use].size < needed:
            self._buffers[use] = np.empty(needed, np.uint8)
        return self._buffers[use][:needed].view(dtype)

    def _accumulator_for(self, dtype: np.dtype[Any]) -> Accumulator:
        if self._accumulator is None or self._accumulates != dtype:
            self._accumulator = None  # the old one is freed before the new one is made
            self._accumulator = self._plan.method.accumulator(
                dtype, self._plan.memory.slab_elements, self._plan.coefficients
            )
            self._accumulates = dtype
        return self._accumulator

    def _blame_non_finite(self, slab: Slab, variable: Variable) -> None:
        """Finds the first value that is NaN or Inf, in the order of the checkpoints."""
        for checkpoint, source in enumerate(self._plan.matched.sources):
            values = self._read(checkpoint, slab, variable)
            finite = np.isfinite(values)
            if not finite.all():
                offset = int(np.argmin(finite))
                index = np.unravel_index(slab.start + offset, variable.shape)
                raise NonFiniteValuesError(
                    source.path,
                    variable.path,
                    tuple(int(i) for i in index),
                    float(values[offset]),
                    "Leave this checkpoint out, or average it with --allow-non-finite.",
                )

    def _refuse_overflow(self, result: NDArray[Any], planned: PlannedVariable) -> None:
        if not np.isfinite(result).all():
            raise OptionError(
                f"variable {planned.variable.path!r}: its mean does not fit {planned.dtype}. "
                f"Use --dtype keep ({planned.variable.dtype}) or a wider one."
            )
