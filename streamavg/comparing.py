"""How far apart checkpoints are, layer by layer, in one pass over their files.

    paths -> open -> match -> plan -> measure -> Comparison (-> picture)

Checkpoints are opened, matched and refused as for a merge, and the variables compared are those
that a merge would average. They are measured slab by slab (`streamavg.measuring`), and a layer is
described as soon as its last slab is.

Memory, beside what the pass itself takes:

    layers * what is kept of each (two numbers a pair of checkpoints, if asked for)
        + what drawing takes, if a picture is asked for
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

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
from streamavg.distances import Sums
from streamavg.errors import UnsupportedFeatureError
from streamavg.formats import open_checkpoint
from streamavg.matching import MatchedCheckpoints, match
from streamavg.measuring import (
    Allowance,
    MeasuringPlan,
    averaged_by_layer,
    measure,
    plan_measuring,
)
from streamavg.options import MatchBy, PreprocessingPolicy, Settings
from streamavg.planning import SMALLEST_HEADROOM, limit_for, refuse_meaningless
from streamavg.record import MemoryRecord
from streamavg.selection import select_paths, select_reference
from streamavg.units import format_size
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streamavg.checkpoint import Checkpoint
    from streamavg.matching import Source

    StrPath = str | os.PathLike[str]

_LAYER_BYTES = 1024
"""Of a layer, beside its numbers."""
_NUMBERS_PER_CHECKPOINT = 5
"""Kept of each layer; see `Part`."""
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
            on_plan(plan.measuring.bytes_read)
        for source in plan.sources:
            source.values.verify()
        whole, layers = _measure(plan, on_progress)
        for source in plan.sources:
            source.identity.require_unchanged(source.path)
        comparison = _comparison(plan, whole, layers)
    if picture is not None:
        from streamavg.plotting import draw  # noqa: PLC0415 - only pictures pay for it

        draw(comparison, picture, force=settings.force)
    measured = memory.measured_since(peak_before)
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
    measuring: MeasuringPlan
    keeps_layer_matrices: bool

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.matched.sources

    @property
    def paths(self) -> list[str]:
        return [str(source.path) for source in self.sources]


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
            measuring = plan_measuring(
                matched.sources,
                reference.variables,
                list(itertools.chain.from_iterable(layers.values())),
                _allowance(len(matched.sources), len(layers), settings, draws=draws, keeps=keeps),
            )
            yield _Plan(matched, layers, measuring, keeps)
        finally:
            matched.close()


def _layers_to_compare(reference: Checkpoint) -> dict[str, list[int]]:
    layers = averaged_by_layer(reference)
    if not layers:
        raise UnsupportedFeatureError(
            reference.path, "has no float variables that a merge would average: nothing to compare."
        )
    return layers


def _allowance(
    count: int, layers: int, settings: Settings, *, draws: bool, keeps: bool
) -> Allowance:
    """The limit, and what is needed beside the pass over `count` checkpoints."""
    reserved = memory.resident_bytes()
    limit, origin = limit_for(settings.memory_limit, reserved)
    drawing, remedies = 0, []
    if draws:
        drawing = _DRAWING_BYTES + _DRAWING_BYTES_PER_CELL * count * (count + layers)
        remedies.append(f"Without --plot it is {format_size(drawing)} less.")
        if settings.memory_limit is None and limit < reserved + drawing + SMALLEST_HEADROOM:
            limit, origin = limit + drawing, f"{origin}, and raised to draw a picture"
    if keeps:
        remedies.append("Without --json (layer_matrices=False) less is kept of each layer.")
    return Allowance(
        job="the comparison",
        limit=limit,
        limit_origin=origin,
        reserved=reserved,
        besides=drawing + _result_bytes(count, layers, keeps=keeps),
        threads=settings.threads,
        remedies=tuple(remedies),
    )


def _result_bytes(count: int, layers: int, *, keeps: bool) -> int:
    """Bytes of what is kept for `count` checkpoints of `layers` layers, and of two sums."""
    per_layer = _LAYER_BYTES + 8 * _NUMBERS_PER_CHECKPOINT * count
    if keeps:
        per_layer += Matrices.bytes_needed(count)
    return layers * per_layer + Matrices.bytes_needed(count) + 2 * 2 * 8 * count**2


def _measure(
    plan: _Plan, on_progress: Callable[[int], None] | None
) -> tuple[Part, tuple[Part, ...]]:
    """Reads all values once. Returns: the whole model and its layers."""
    variables = plan.measuring.variables
    paths, total, layers = plan.paths, Sums.zeros(len(plan.sources)), []
    count, keeps = len(plan.measuring.positions), plan.keeps_layer_matrices
    with closing(measure(plan.measuring)) as runs:
        for name, of_runs in itertools.groupby(
            runs, key=lambda measured: variables[measured.run.position].layer
        ):
            of_layer = Sums.zeros(len(paths))
            for measured in of_runs:
                of_layer.add(measured.sums)
                if on_progress is not None:
                    on_progress(measured.nbytes)
            total.add(of_layer)
            size = len(plan.layers[name])
            layers.append(part_of(name, size, of_layer, paths, keeps_matrices=keeps))
    whole = part_of(None, count, total, paths, keeps_matrices=True)
    return whole, tuple(layers)


def _comparison(plan: _Plan, whole: Part, layers: tuple[Part, ...]) -> Comparison:
    assert whole.matrices is not None, "those of the whole model are always kept"
    identical = groups_of_equal(whole.matrices.relative_distances, plan.paths)
    budget = plan.measuring.memory
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
        bytes_read=plan.measuring.bytes_read,
        slab_elements=budget.slab_elements,
        threads=budget.threads,
        memory=MemoryRecord(
            budget.limit, budget.limit_origin, budget.reserved, budget.projected, None
        ),
        seconds=0.0,
        plot=None,
        notes=(*plan.matched.notes, *plan.matched.reference.notes),
    )
