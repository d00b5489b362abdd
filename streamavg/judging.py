"""What distances between checkpoints mean for their average: duplicates, and distant states.

The thresholds come from an experiment, scripts/when_to_average.py; docs/when-to-average.md has its
numbers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from streamavg.comparison import find_outlier, percent
from streamavg.findings import Finding, FindingKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from streamavg.sampling import SampledDistances

DISTANT = 0.5
"""Relative distance beyond which two checkpoints are distant training states. Averages of
checkpoints that are closer were no worse than their checkpoints; much worse ones begin beyond it.
"""
NEAR_DUPLICATES = 0.01
"""Relative distance, in the layer that differs most, below which two checkpoints are
near-duplicates: their average answers as they do."""
_SHOWN_NAMES = 3
_REMEDY = (
    "Averages of such distant training states are often worse than each of them: compare the "
    "average with the best single one before you use it"
)


def judge(
    measured: SampledDistances, paths: Sequence[str], equal: Sequence[Sequence[int]]
) -> Iterator[Finding]:
    """What is worth a warning.

    Args:
        measured: distances between N checkpoints.
        paths: of the checkpoints.
        equal: groups of those that hold the same values, as indices.
    """
    for group in equal:
        names = tuple(paths[index] for index in group)
        yield Finding(
            FindingKind.SAME_VALUES,
            names,
            None,
            f"{some(names)} hold the same values, so that they count {len(group)}-fold. Name one "
            "of them; to count it more than others, use --weights.",
        )
    # Of equal ones the first stands for all.
    copies = {index for group in equal for index in group[1:]}
    yield from _near_duplicates(measured, paths, [i for i in range(len(paths)) if i not in copies])
    yield from _distant_states(measured, paths)


def _near_duplicates(
    measured: SampledDistances, paths: Sequence[str], kept: Sequence[int]
) -> Iterator[Finding]:
    near = measured.in_layers[np.ix_(kept, kept)] < NEAR_DUPLICATES
    for group in linked(near):
        if len(group) > 1:
            names = tuple(paths[kept[member]] for member in group)
            yield Finding(
                FindingKind.NEAR_DUPLICATES,
                names,
                None,
                f"{some(names)} differ by less than {percent(NEAR_DUPLICATES)} in every layer: "
                "their average is hardly another model. Take checkpoints that are farther apart "
                "in training.",
            )


def _distant_states(measured: SampledDistances, paths: Sequence[str]) -> Iterator[Finding]:
    groups = sorted(linked(measured.relative <= DISTANT), key=len, reverse=True)
    if len(groups) == 1:
        return
    largest, second = groups[:2]
    if len(largest) == 1:
        least = float(measured.relative[np.triu_indices(len(paths), 1)].min())
        yield Finding(
            FindingKind.DISTANT,
            tuple(paths),
            None,
            f"{some(paths)} are {percent(least)} or more apart, as those of independent runs are. "
            f"{_REMEDY}.",
        )
    elif len(largest) == len(second):
        told = "; ".join(some([paths[index] for index in group]) for group in groups)
        yield Finding(
            FindingKind.DISTANT,
            tuple(paths),
            None,
            f"there are {len(groups)} groups that are more than {percent(DISTANT)} apart: {told}. "
            f"{_REMEDY}, or average each group by itself.",
        )
    else:
        outlier = find_outlier(measured.relative, paths)
        for index in sorted(itertools.chain.from_iterable(groups[1:])):
            away = percent(float(measured.relative[index, largest].mean()))
            stands_out = outlier is not None and outlier.checkpoint == paths[index]
            yield Finding(
                FindingKind.DISTANT,
                (paths[index],),
                None,
                f"{paths[index]}: is {'the outlier, ' * stands_out}{away} away from the "
                f"{len(largest)} checkpoints that are close to each other. {_REMEDY}, or leave "
                "this checkpoint out.",
            )


def groups_of_zeros(distances: NDArray[np.float64]) -> list[list[int]]:
    """Indices that are at distance 0 from each other, group by group; of each at least two."""
    return [group for group in linked(distances == 0) if len(group) > 1]


def linked(near: NDArray[np.bool_]) -> list[list[int]]:
    """Groups of indices between which a chain of near pairs leads, in order.

    Args:
        near: whether two are, shape (N, N), symmetric.
    """
    groups: list[list[int]] = []
    left = set(range(len(near)))
    while left:
        pending, group = [min(left)], set[int]()
        while pending:
            index = pending.pop()
            if index not in group:
                group.add(index)
                pending.extend(np.flatnonzero(near[index]).tolist())
        left -= group
        groups.append(sorted(group))
    return groups


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    if more <= 0:
        *first, last = names
        return f"{', '.join(first)} and {last}" if first else last
    return f"{', '.join(names[:_SHOWN_NAMES])} and {more} more"
