"""One pass over the files of matched checkpoints that measures all pairs of them, slab by slab.

    run of a variable --read from all N checkpoints--> block, a row a checkpoint --> Sums

What is made of the sums is the caller's: add up those of a layer, those of everything, or look at a
few runs only.

Memory, beside what the process takes already and what the caller keeps:

    headers + what the library holds to decode chunks
        + threads * (N * slab_elements * bytes per value + what a meter takes
                     + what the BLAS and a thread take)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.checkpoint import runs_of
from streamavg.distances import Meter, Sums
from streamavg.errors import MemoryLimitError, NonFiniteValuesError, UnsupportedFeatureError
from streamavg.formats import MOST_DECODING
from streamavg.ordered import in_order
from streamavg.page_buffer import PageBuffer
from streamavg.planning import THREAD_BYTES, MemoryPlan, is_averaged, threads_for
from streamavg.units import format_size

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.checkpoint import Checkpoint, Run, Variable
    from streamavg.matching import Source

MOST_BLOCK_ELEMENTS = 2**22
"""Of all checkpoints together: enough that each read of 64 of them is worth its call."""
STEADY_BLOCK_ELEMENTS = 2**19
"""The same, where sums must not depend on the limit: a few megabytes a thread."""
MOST_SLAB_ELEMENTS = 131072
"""Of one checkpoint, where there are few: a slab of each is in memory at the same time."""
LEAST_SLAB_ELEMENTS = 512
_HEADER_BYTES = 1024**2
"""What the allocator takes beyond the buffers that are counted, and the result for the whole."""
_BLAS_BYTES = 1024**2
"""What the BLAS touches of its buffers for each thread, for products of this size."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a pass may take, in bytes of the whole process; see `streamavg.planning`."""

    job: str
    """Who asks, as a refusal says it: "the comparison"."""
    limit: int
    limit_origin: str
    reserved: int
    besides: int
    """What the caller itself takes while the pass runs."""
    threads: int | None
    """As asked for; None for as many as are worth it and fit."""
    is_steady: bool = False
    """Whether slabs depend on the checkpoints alone. Then sums have the same bits with every limit
    and number of threads."""
    remedies: tuple[str, ...] = ()
    """What else would make the job smaller, one sentence each."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuringPlan:
    """A pass that can be run."""

    sources: tuple[Source, ...]
    """In the order of the rows of each sum."""
    variables: tuple[Variable, ...]
    """All of the reference's."""
    positions: tuple[int, ...]
    """Of the variables that are measured, in order."""
    memory: MemoryPlan

    @property
    def bytes_read(self) -> int:
        """Bytes of values that `runs` are, of all checkpoints together."""
        measured = (self.variables[position].nbytes for position in self.positions)
        return len(self.sources) * sum(measured)

    def runs(self) -> Iterator[Run]:
        """All that there is to measure, each at most a slab, in the order of `positions`."""
        for position in self.positions:
            size = self.variables[position].size
            yield from runs_of(position, size, self.memory.slab_elements)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """What was measured over one run."""

    run: Run
    nbytes: int
    """Read for it, of all checkpoints together."""
    sums: Sums


def averaged_by_layer(reference: Checkpoint) -> dict[str, list[int]]:
    """Positions of the variables that a merge averages, by layer, in the reference's order."""
    layers: dict[str, list[int]] = {}
    for position, variable in enumerate(reference.variables):
        if is_averaged(variable) and variable.size:
            layers.setdefault(variable.layer, []).append(position)
    return layers


def plan_measuring(
    sources: Sequence[Source],
    variables: Sequence[Variable],
    positions: Sequence[int],
    allowance: Allowance,
) -> MeasuringPlan:
    """Finds slabs and threads that keep the limit.

    Args:
        sources: of matched checkpoints; their order is that of the sums.
        variables: all of the reference's.
        positions: of the float variables to measure; at least one, none empty.
        allowance: the limit, and what else needs memory.

    Raises:
        OptionError: a number of threads below 1.
        MemoryLimitError: the limit cannot be kept.
    """
    count = len(sources)
    measured = [variables[position] for position in positions]
    held = sorted((source.values.library_bytes for source in sources), reverse=True)
    fixed = allowance.reserved + _HEADER_BYTES + sum(held[:MOST_DECODING]) + allowance.besides
    longest = max(variable.size for variable in measured)
    block = STEADY_BLOCK_ELEMENTS if allowance.is_steady else MOST_BLOCK_ELEMENTS
    most = max(LEAST_SLAB_ELEMENTS, block // count)
    wanted = min(MOST_SLAB_ELEMENTS, longest, most)
    least = wanted if allowance.is_steady else min(wanted, LEAST_SLAB_ELEMENTS)
    per_thread = THREAD_BYTES + _BLAS_BYTES + Meter.bytes_needed(count, wanted)
    per_element = count * max(variable.dtype.itemsize for variable in measured)
    threads = threads_for(sum(variable.size for variable in measured), allowance.threads)
    if allowance.threads is None:  # fewer threads rather than no measurement
        affordable = (allowance.limit - fixed) // (per_thread + least * per_element)
        threads = max(1, min(threads, affordable))
    fixed += threads * per_thread
    needed = fixed + threads * least * per_element
    if needed > allowance.limit:
        raise _refusal(needed, allowance, threads)
    slab_elements = min(wanted, (allowance.limit - fixed) // (threads * per_element))
    budget = MemoryPlan(
        allowance.limit,
        allowance.limit_origin,
        allowance.reserved,
        fixed + threads * slab_elements * per_element,
        slab_elements,
        threads,
    )
    return MeasuringPlan(tuple(sources), tuple(variables), tuple(positions), budget)


def _refusal(needed: int, allowance: Allowance, threads: int) -> MemoryLimitError:
    remedies = list(allowance.remedies)
    if threads > 1:
        remedies.insert(0, "Fewer --threads need less.")
    remedies.append(f"Use --memory-limit {-(-needed // 1024**2) + 1}MiB.")
    reserved, limit = allowance.reserved, allowance.limit
    return MemoryLimitError(
        f"{allowance.job} needs at least {format_size(needed)}: {format_size(reserved)} reserved "
        f"(interpreter, libraries, descriptions) and {format_size(needed - reserved)} for values "
        f"and results, but --memory-limit is {format_size(limit)}. {' '.join(remedies)}",
        limit_bytes=limit,
        reserved_bytes=reserved,
        projected_bytes=needed,
    )


def measure(
    plan: MeasuringPlan, runs: Iterable[Run] | None = None
) -> Generator[MeasuredRun, None, None]:
    """Reads runs of all checkpoints and measures them.

    Close it (`contextlib.closing`), so that no thread reads on if its user fails half-way.

    Args:
        plan: says whose values, in how many threads.
        runs: of the plan's variables, each of at most `slab_elements`; all of `plan.runs()` if
            None.

    Yields:
        One for each run, in the order of `runs`, the same whatever the number of threads.

    Raises:
        NonFiniteValuesError: a value is NaN or infinite; all checkpoints that hold such a value
            in this run are named.
        UnsupportedFeatureError: a value's square has no place in a float64.
        FormatError: an input cannot be read, or changed.
    """
    local = threading.local()

    def measure_one(run: Run) -> MeasuredRun:
        if not hasattr(local, "worker"):
            local.worker = _Worker(plan)
        measured: MeasuredRun = local.worker.measure(run)
        return measured

    yield from in_order(measure_one, plan.runs() if runs is None else runs, plan.memory.threads)


class _Worker:
    """Reads and measures one run at a time, with buffers of its own. The only place that reads."""

    def __init__(self, plan: MeasuringPlan) -> None:
        self._sources = plan.sources
        self._variables = plan.variables
        itemsize = max(plan.variables[position].dtype.itemsize for position in plan.positions)
        size = len(self._sources) * plan.memory.slab_elements * itemsize
        self._buffer = PageBuffer(size).window(0, size)
        self._meter = Meter(len(self._sources), plan.memory.slab_elements)

    def measure(self, run: Run) -> MeasuredRun:
        variable = self._variables[run.position]
        block = self._read(run, variable)
        sums = self._meter.measure(block)
        if not sums.are_in_range:
            self._blame(block, run, variable)
        return MeasuredRun(run, block.nbytes, sums)

    def _read(self, run: Run, variable: Variable) -> NDArray[Any]:
        """The run of all checkpoints, a row a checkpoint; valid until the next is read."""
        count = len(self._sources)
        used = self._buffer[: count * run.count * variable.dtype.itemsize]
        block = used.view(variable.dtype).reshape(count, run.count)
        for source, row in zip(self._sources, block, strict=True):
            source.values.read_into(run.position, run.start, row)
        return block

    def _blame(self, block: NDArray[Any], run: Run, variable: Variable) -> None:
        """Names the first value that cannot be measured, and all checkpoints that have such."""
        finite = np.isfinite(block)
        guilty = np.flatnonzero(~finite.all(axis=1)).tolist()
        if not guilty:
            row = int(np.abs(block).max(axis=1).argmax())
            raise UnsupportedFeatureError(
                self._sources[row].path,
                f"variable {variable.path!r}: value {np.abs(block[row]).max():.3g} is too large to "
                "be compared: its square has no place in a float64. Leave this checkpoint out.",
            )
        first, *others = guilty
        offset = int(finite[first].argmin())
        remedy = "Leave this checkpoint out."
        if others:
            also = ", ".join(str(self._sources[row].path) for row in others)
            remedy = f"Leave this checkpoint out, and {also}, where it has such values too."
        raise NonFiniteValuesError(
            self._sources[first].path,
            variable.path,
            variable.index_of(run.start + offset),
            float(block[first, offset]),
            remedy,
        )
