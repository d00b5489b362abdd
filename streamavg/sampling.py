"""How far apart checkpoints are, estimated from a sample of their values.

The sample is the same for all checkpoints and each time: of every variable runs that lie evenly
spread over it, so that a part of an embedding that was never trained does not stand for all of it.
Variables that are small are taken whole, and so is everything where all of it is small.

Each variable's sums are scaled by the share of it that was read (a stratified estimate: W. G.
Cochran, Sampling Techniques, 3rd ed., 1977, 5.3), so a distance is an estimate of the one that
`compare` measures. Equal checkpoints are exactly 0 apart; checkpoints that are 0 apart may still
differ in values that were not read.

Layers that hold the same values in all checkpoints, as a frozen backbone does, say nothing about
how far training has driven them apart. They are left out.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamavg.checkpoint import Run, runs_of
from streamavg.comparison import Matrices
from streamavg.distances import Sums
from streamavg.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from streamavg.measuring import MeasuringPlan

    Doubles = NDArray[np.float64]

SAMPLE_ELEMENTS = 2**20
"""Of each checkpoint; 4 MiB of float32. Estimated distances are within a few per cent then."""
RUN_ELEMENTS = 4096
"""Enough that a read is worth its call, and few enough that a variable has many of them."""


@dataclass(frozen=True, slots=True, eq=False)
class SampledDistances:
    """Estimated distances between N checkpoints."""

    relative: Doubles
    """Of each pair, see `streamavg.comparison`. Shape (N, N)."""
    in_layers: Doubles
    """Of each pair, in the layer in which it is largest. Shape (N, N)."""
    sampled: int
    """Elements that were read of each checkpoint."""
    elements: int
    """Elements that each checkpoint has."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out, so that distances are not estimated."""
        return self.sampled == self.elements


def sample_runs(plan: MeasuringPlan) -> Iterator[Run]:
    """The runs to read, in the order of the plan's positions."""
    sizes = [plan.variables[position].size for position in plan.positions]
    total = sum(sizes)
    length = min(RUN_ELEMENTS, plan.memory.slab_elements)
    for position, size in zip(plan.positions, sizes, strict=True):
        share = size if total <= SAMPLE_ELEMENTS else -(-size * SAMPLE_ELEMENTS // total)
        yield from _spread(position, size, share, length)


def _spread(position: int, size: int, share: int, length: int) -> Iterator[Run]:
    """Runs of at most `length` elements, `share` of `size` in all, at even distances."""
    count = -(-share // length)
    if share + length > size:
        yield from runs_of(position, size, length)
        return
    length = -(-share // count)
    for number in range(count):
        yield Run(position, number * (size - length) // max(1, count - 1), length)


def sample_bytes(plan: MeasuringPlan) -> int:
    """Bytes of the sample, of all checkpoints together."""
    runs = sample_runs(plan)
    each = sum(run.count * plan.variables[run.position].dtype.itemsize for run in runs)
    return len(plan.sources) * each


def measure_sample(
    plan: MeasuringPlan, on_progress: Callable[[int], None] | None = None
) -> SampledDistances:
    """Reads the sample of all checkpoints and measures it.

    Args:
        plan: of two or more checkpoints.
        on_progress: called with the number of bytes read since the last call.

    Raises:
        NonFiniteValuesError: a value is NaN or infinite.
        UnsupportedFeatureError: a value's square has no place in a float64.
        FormatError: an input cannot be read, or changed.
    """
    count, variables = len(plan.sources), plan.variables
    total, in_layers, sampled = Sums.zeros(count), np.zeros((count, count)), 0
    with closing(measure(plan, sample_runs(plan))) as measured:
        by_layer = itertools.groupby(measured, key=lambda run: variables[run.run.position].layer)
        for _, of_layer_runs in by_layer:
            of_layer = Sums.zeros(count)
            by_variable = itertools.groupby(of_layer_runs, key=lambda run: run.run.position)
            for position, runs in by_variable:
                of_variable = Sums.zeros(count)
                for run in runs:
                    of_variable.add(run.sums)
                    if on_progress is not None:
                        on_progress(run.nbytes)
                sampled += of_variable.elements
                of_layer.add(_scaled(of_variable, variables[position].size))
            if of_layer.squared_distances.any():
                total.add(of_layer)
                np.maximum(in_layers, _relative(of_layer), out=in_layers)
    return SampledDistances(
        relative=_relative(total),
        in_layers=in_layers,
        sampled=sampled,
        elements=sum(variables[position].size for position in plan.positions),
    )


def _scaled(sums: Sums, elements: int) -> Sums:
    """What sums over all `elements` would be, were the others like those that were summed."""
    factor = elements / sums.elements
    return Sums(
        elements,
        sums.squared_norms * factor,
        sums.squared_distances * factor,
        sums.same_signs * factor,
    )


def _relative(sums: Sums) -> Doubles:
    if not sums.elements:
        return np.zeros_like(sums.squared_distances)
    return Matrices.of(sums).relative_distances
