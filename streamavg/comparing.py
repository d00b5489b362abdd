"""How far apart checkpoints are, layer by layer, in one pass over their files.

    paths -> open -> match -> plan -> measure -> Comparison (-> picture)

Checkpoints are opened, matched and refused as for a merge, and the variables compared are those
that a merge would average. Each slab is read from all N checkpoints into one block, a row a
checkpoint, and measured; a layer is described as soon as its last slab is.

Memory, beside what the process takes already:

    projected = reserved + headers + what the library holds to decode chunks
                + layers * what is kept of each (two numbers a pair of checkpoints, if asked for)
                + threads * (N * slab_elements * bytes per value + what a meter takes
                             + what the BLAS and a thread take)
                + what drawing takes, if a picture is asked for
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from streamavg import memory
from streamavg.comparison import (
    SCHEMA_VERSION,
    ComparedCheckpoint,
    Comparison,
    Matrices,
    Part,
    groups_of_equal,
    part_of,
)
from streamavg.distances import Meter, Sums
from streamavg.errors import (
    MemoryLimitError,
    NonFiniteValuesError,
    UnsupportedFeatureError,
)
from streamavg.formats import MOST_DECODING, open_checkpoint
from streamavg.matching import MatchedCheckpoints, match
from streamavg.options import MatchBy, PreprocessingPolicy, Settings
from streamavg.planning import (
    MOST_SLAB_ELEMENTS,
    SMALLEST_HEADROOM,
    THREAD_BYTES,
    MemoryPlan,
    is_averaged,
    limit_for,
    refuse_meaningless,
    threads_for,
)
from streamavg.record import MemoryRecord
from streamavg.selection import select_paths, select_reference
from streamavg.units import format_size
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.checkpoint import Checkpoint, Variable
    from streamavg.matching import Source

    StrPath = str | os.PathLike[str]

MOST_BLOCK_ELEMENTS = 2**22
"""Of all checkpoints together: enough that each read of 64 of them is worth its call."""
LEAST_SLAB_ELEMENTS = 512
_HEADER_BYTES = 1024**2
"""What the allocator takes beyond the buffers that are counted, and the result for the whole."""
_LAYER_BYTES = 1024
"""Of a layer, beside its numbers."""
_NUMBERS_PER_CHECKPOINT = 5
"""Kept of each layer; see `Part`."""
_BLAS_BYTES = 1024**2
"""What the BLAS touches of its buffers for each thread, for products of this size."""
_DRAWING_BYTES = 96 * 1024**2
"""Importing matplotlib and drawing the largest picture, as measured."""
_DRAWING_BYTES_PER_CELL = 128


class CompareOptions(TypedDict, total=False):
    """Options of `compare`; all may be left out. They are those of a merge."""

    preprocessing: PreprocessingPolicy
    """Normalization state and vocabularies must be "equal" (default), or may differ: "reference".
    They are not compared either way."""
    match: MatchBy
    """Pair the layers of legacy files by "name" (default) or by "order"."""
    reference: str | os.PathLike[str] | None
    """The input whose names the layers have; the first by default."""
    memory_limit: int | str | None
    """Peak resident memory of this process, as for a merge."""
    threads: int | None
    """That read and measure slabs; by default as many as there are processors, up to four."""
    force: bool
    """Replace an existing picture."""


def compare(
    paths: Iterable[StrPath],
    *,
    plot: StrPath | None = None,
    layer_matrices: bool = True,
    on_plan: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Measures how far apart checkpoints are, and which one stands out.

    Args:
        paths: two or more checkpoint files of one model.
        plot: a picture of it to draw, `.png` or `.svg`; needs the package matplotlib.
        layer_matrices: keep the numbers of each pair of checkpoints for each layer too, not only
            for the whole model: 8 * N**2 bytes a layer.
        on_plan: called with the number of bytes of values that will be read.
        on_progress: called with the number of bytes read since the last call.
        **options: see `CompareOptions`.

    Returns:
        Norms, distances, cosines and sign agreement of the variables that a merge would average,
        for the whole model and for each layer. Distances have a relative error below 1e-8 and are
        exactly 0 for equal checkpoints; see `streamavg.distances` for all bounds.

    Raises:
        FormatError: an input cannot be read, changed while it was, or has nothing to compare.
        IncompatibleCheckpointsError: the inputs do not describe the same model; it holds every
            difference.
        NonFiniteValuesError: an input holds NaN or Inf.
        OptionError: the options do not fit; MemoryLimitError: the limit cannot be kept.
        OutputError: the picture exists, or cannot be written.
        MissingDependencyError: a picture needs matplotlib, which is not installed.

    Memory: bounded by `memory_limit`, whatever the size of the checkpoints; the least that is
    possible grows with the square of their number.
    """
    started, peak_before = time.monotonic(), memory.peak_resident_bytes()
    settings = Settings(**options)
    picture = None if plot is None else Path(plot)
    selected = _select(paths, picture, settings)
    with _planned(selected, settings, draws=plot is not None, keeps=layer_matrices) as plan:
        if on_plan is not None:
            on_plan(plan.bytes_read)
        for source in plan.sources:
            source.values.verify()
        whole, layers = _measure(plan, on_progress)
        for source in plan.sources:
            source.identity.require_unchanged(source.path)
        comparison = _comparison(plan, whole, layers)
    if picture is not None:
        from streamavg.plotting import draw  # noqa: PLC0415 - only pictures pay for it

        draw(comparison, picture, force=settings.force)
    peak = memory.peak_resident_bytes()
    measured = peak if peak > peak_before else memory.resident_bytes()
    return dataclasses.replace(
        comparison,
        plot=None if picture is None else str(picture),
        memory=dataclasses.replace(comparison.memory, measured=measured),
        seconds=time.monotonic() - started,
    )


def _select(paths: Iterable[StrPath], picture: Path | None, settings: Settings) -> tuple[Path, ...]:
    selected = select_paths(paths)
    if picture is not None:
        from streamavg.plotting import check_picture  # noqa: PLC0415

        check_picture(picture, selected, force=settings.force)
    return selected


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A comparison that can be run."""

    matched: MatchedCheckpoints
    layers: dict[str, list[int]]
    """Positions of the variables to compare, by layer, in the reference's order."""
    memory: MemoryPlan
    keeps_layer_matrices: bool

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.matched.sources

    @property
    def paths(self) -> list[str]:
        return [str(source.path) for source in self.sources]

    @property
    def variables(self) -> list[Variable]:
        """The variables to compare."""
        positions = itertools.chain.from_iterable(self.layers.values())
        return [self.matched.reference.variables[position] for position in positions]

    @property
    def bytes_read(self) -> int:
        return len(self.sources) * sum(variable.nbytes for variable in self.variables)


@contextmanager
def _planned(
    selected: Sequence[Path], settings: Settings, *, draws: bool, keeps: bool
) -> Iterator[_Plan]:
    """Opens and matches the checkpoints and plans their comparison; closes them at the end."""
    with open_checkpoint(select_reference(selected, settings.reference)) as reference:
        matched = match(
            reference,
            (open_checkpoint(path, reference) for path in selected),
            by=settings.match,
            preprocessing=settings.preprocessing,
        )
        try:
            refuse_meaningless(reference)
            layers = _layers_to_compare(reference)
            budget = _plan_memory(matched, layers, settings, draws=draws, keeps=keeps)
            yield _Plan(matched, layers, budget, keeps)
        finally:
            matched.close()


def _layers_to_compare(reference: Checkpoint) -> dict[str, list[int]]:
    layers: dict[str, list[int]] = {}
    for position, variable in enumerate(reference.variables):
        if is_averaged(variable) and variable.size:
            layers.setdefault(variable.layer, []).append(position)
    if not layers:
        raise UnsupportedFeatureError(
            reference.path, "has no float variables that a merge would average: nothing to compare."
        )
    return layers


def _plan_memory(
    matched: MatchedCheckpoints,
    layers: dict[str, list[int]],
    settings: Settings,
    *,
    draws: bool,
    keeps: bool,
) -> MemoryPlan:
    """Finds slabs and threads that keep the limit. Raises: MemoryLimitError."""
    count = len(matched.sources)
    variables = [matched.reference.variables[p] for group in layers.values() for p in group]
    reserved = memory.resident_bytes()
    limit, origin = limit_for(settings.memory_limit, reserved)
    drawing = 0
    if draws:
        drawing = _DRAWING_BYTES + _DRAWING_BYTES_PER_CELL * count * (count + len(layers))
        if settings.memory_limit is None and limit < reserved + drawing + SMALLEST_HEADROOM:
            limit, origin = limit + drawing, f"{origin}, and raised to draw a picture"
    held = sorted((source.values.library_bytes for source in matched.sources), reverse=True)
    fixed = reserved + _HEADER_BYTES + sum(held[:MOST_DECODING]) + drawing
    fixed += _result_bytes(count, len(layers), keeps=keeps)
    longest = max(variable.size for variable in variables)
    most = max(LEAST_SLAB_ELEMENTS, MOST_BLOCK_ELEMENTS // count)
    wanted = min(MOST_SLAB_ELEMENTS, longest, most)
    least = min(wanted, LEAST_SLAB_ELEMENTS)
    per_thread = THREAD_BYTES + _BLAS_BYTES + Meter.bytes_needed(count, wanted)
    per_element = count * max(variable.dtype.itemsize for variable in variables)
    threads = threads_for(sum(variable.size for variable in variables), settings.threads)
    if settings.threads is None:  # fewer threads rather than no comparison
        affordable = (limit - fixed) // (per_thread + least * per_element)
        threads = max(1, min(threads, affordable))
    fixed += threads * per_thread
    needed = fixed + threads * least * per_element
    if needed > limit:
        raise _refusal(needed, reserved, limit, drawing, threads=threads, keeps=keeps)
    slab_elements = min(wanted, (limit - fixed) // (threads * per_element))
    projected = fixed + threads * slab_elements * per_element
    return MemoryPlan(limit, origin, reserved, projected, slab_elements, threads)


def _result_bytes(count: int, layers: int, *, keeps: bool) -> int:
    """Bytes of what is kept for `count` checkpoints of `layers` layers, and of two sums."""
    per_layer = _LAYER_BYTES + 8 * _NUMBERS_PER_CHECKPOINT * count
    if keeps:
        per_layer += Matrices.bytes_needed(count)
    return layers * per_layer + Matrices.bytes_needed(count) + 2 * 2 * 8 * count**2


def _refusal(
    needed: int, reserved: int, limit: int, drawing: int, *, threads: int, keeps: bool
) -> MemoryLimitError:
    remedies = []
    if threads > 1:
        remedies.append("Fewer --threads need less.")
    if drawing:
        remedies.append(f"Without --plot it is {format_size(drawing)} less.")
    if keeps:
        remedies.append("Without --json (layer_matrices=False) less is kept of each layer.")
    remedies.append(f"Use --memory-limit {-(-needed // 1024**2) + 1}MiB.")
    return MemoryLimitError(
        f"the comparison needs at least {format_size(needed)}: {format_size(reserved)} reserved "
        f"(interpreter, libraries, descriptions) and {format_size(needed - reserved)} for values "
        f"and results, but --memory-limit is {format_size(limit)}. {' '.join(remedies)}",
        limit_bytes=limit,
        reserved_bytes=reserved,
        projected_bytes=needed,
    )


def _measure(
    plan: _Plan, on_progress: Callable[[int], None] | None
) -> tuple[Part, tuple[Part, ...]]:
    """Reads all values once. Returns: the whole model and its layers."""
    paths, total, layers = plan.paths, Sums.zeros(len(plan.sources)), []
    by_layer = itertools.groupby(_measured_slabs(plan), key=lambda measured: measured[0].layer)
    for name, measured in by_layer:
        of_layer = Sums.zeros(len(paths))
        for _, read, sums in measured:
            of_layer.add(sums)
            if on_progress is not None:
                on_progress(read)
        total.add(of_layer)
        keeps = plan.keeps_layer_matrices
        layers.append(part_of(name, len(plan.layers[name]), of_layer, paths, keeps_matrices=keeps))
    whole = part_of(None, len(plan.variables), total, paths, keeps_matrices=True)
    return whole, tuple(layers)


@dataclass(frozen=True, slots=True)
class _Slab:
    """Consecutive elements of one variable, in C order, of all checkpoints."""

    layer: str
    position: int
    start: int
    count: int


def _slabs(plan: _Plan) -> Iterator[_Slab]:
    """All that is to be measured, layer by layer."""
    for layer, positions in plan.layers.items():
        for position in positions:
            size = plan.matched.reference.variables[position].size
            for start in range(0, size, plan.memory.slab_elements):
                count = min(plan.memory.slab_elements, size - start)
                yield _Slab(layer, position, start, count)


def _measured_slabs(plan: _Plan) -> Iterator[tuple[_Slab, int, Sums]]:
    """Each slab with its bytes and its sums, in order, whatever the number of threads."""
    local = threading.local()

    def measure(slab: _Slab) -> tuple[_Slab, int, Sums]:
        if not hasattr(local, "worker"):
            local.worker = _Worker(plan)
        return slab, *local.worker.measure(slab)

    with ThreadPoolExecutor(plan.memory.threads) as pool:
        pending: deque[Future[tuple[_Slab, int, Sums]]] = deque()
        try:
            for slab in _slabs(plan):
                pending.append(pool.submit(measure, slab))
                if len(pending) > plan.memory.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an interrupt comes to this thread; the others stop after the slab at hand
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Reads and measures one slab at a time, with buffers of its own. The only place that reads."""

    def __init__(self, plan: _Plan) -> None:
        self._sources = plan.sources
        self._variables = plan.matched.reference.variables
        itemsize = max(variable.dtype.itemsize for variable in plan.variables)
        size = len(self._sources) * plan.memory.slab_elements * itemsize
        self._buffer = np.empty(size, np.uint8)
        self._meter = Meter(len(self._sources), plan.memory.slab_elements)

    def measure(self, slab: _Slab) -> tuple[int, Sums]:
        """Bytes read, and the sums of the slab."""
        variable = self._variables[slab.position]
        block = self._read(slab, variable)
        sums = self._meter.measure(block)
        if not sums.are_in_range:
            self._blame(block, slab, variable)
        return block.nbytes, sums

    def _read(self, slab: _Slab, variable: Variable) -> NDArray[Any]:
        """The slab of all checkpoints, a row a checkpoint; valid until the next is read."""
        count = len(self._sources)
        used = self._buffer[: count * slab.count * variable.dtype.itemsize]
        block = used.view(variable.dtype).reshape(count, slab.count)
        for source, row in zip(self._sources, block, strict=True):
            source.values.read_into(slab.position, slab.start, row)
        return block

    def _blame(self, block: NDArray[Any], slab: _Slab, variable: Variable) -> None:
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
        index = np.unravel_index(slab.start + offset, variable.shape)
        remedy = "Leave this checkpoint out."
        if others:
            also = ", ".join(str(self._sources[row].path) for row in others)
            remedy = f"Leave this checkpoint out, and {also}, where it has such values too."
        raise NonFiniteValuesError(
            self._sources[first].path,
            variable.path,
            tuple(int(i) for i in index),
            float(block[first, offset]),
            remedy,
        )


def _comparison(plan: _Plan, whole: Part, layers: tuple[Part, ...]) -> Comparison:
    assert whole.matrices is not None, "those of the whole model are always kept"
    identical = groups_of_equal(whole.matrices.relative_distances, plan.paths)
    return Comparison(
        schema_version=SCHEMA_VERSION,
        streamavg_version=__version__,
        reference=str(plan.matched.reference.path),
        checkpoints=tuple(
            ComparedCheckpoint(
                str(source.path), source.format, source.producer, source.identity.size
            )
            for source in plan.sources
        ),
        identical=identical,
        whole=whole,
        layers=layers,
        bytes_read=plan.bytes_read,
        slab_elements=plan.memory.slab_elements,
        threads=plan.memory.threads,
        memory=MemoryRecord(
            plan.memory.limit,
            plan.memory.limit_origin,
            plan.memory.reserved,
            plan.memory.projected,
            None,
        ),
        seconds=0.0,
        plot=None,
        notes=(*plan.matched.notes, *plan.matched.reference.notes),
    )
