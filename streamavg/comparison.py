"""What a comparison found, as plain data: for the screen, for pictures, for JSON.

All distances are L2 distances. They are given relative to the scale of what was compared, the root
mean square of the checkpoints' norms: 0 for equal checkpoints, about 1.41 for checkpoints that have
nothing in common, at most 2 for two. (The norm of the mean would do for close checkpoints; of
independent ones it vanishes.)

Equal vectors have cosine 1, even where they are zero; a zero vector and another one have cosine 0.
A zero agrees in sign with a zero only.

`SCHEMA_VERSION` changes when a field changes its meaning or goes away; new fields do not change it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from streamavg.distances import Sums
    from streamavg.record import MemoryRecord

    Doubles = NDArray[np.float64]

SCHEMA_VERSION = 1
OUTLIER_RATIO = 2.0
"""From here on a checkpoint stands out. Checkpoints that are equally spaced on a straight line, the
most spread out that a steady training run can leave, reach 1.5 where there are three and less where
there are more."""
_ROUNDING = 1e-11
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Outlier:
    """The checkpoint that stands out, see `find_outlier`."""

    checkpoint: str
    """Its path."""
    distance: float
    """Its mean relative distance to the others."""
    others: float
    """The largest mean relative distance that one of the others has to the others without it."""
    ratio: float | None
    """`distance` divided by `others`; None where the others are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """One number for each pair of N checkpoints; each matrix is symmetric, of shape (N, N).

    What is kept is two numbers a pair; the matrices are made when they are asked for.
    """

    _pairs: Doubles
    """Squared distance and share of equal signs of each pair i < j. Shape (2, N * (N - 1) / 2)."""
    _squared_norms: Doubles

    @staticmethod
    def bytes_needed(count: int) -> int:
        """Bytes that are kept for `count` checkpoints."""
        return 8 * count * (count - 1) + 8 * count

    @classmethod
    def of(cls, sums: Sums) -> Matrices:
        """The matrices of all that was summed over."""
        upper = np.triu_indices(len(sums.squared_norms), 1)
        same = sums.same_signs[upper] / sums.elements
        pairs = np.stack([sums.squared_distances[upper], same])
        return cls(pairs, sums.squared_norms)

    @property
    def relative_distances(self) -> Doubles:
        """|a - b| / scale; exactly 0 for equal checkpoints."""
        scale = scale_of(self._squared_norms)
        return _divide(np.sqrt(self._square(0, 0.0)), scale)

    @property
    def cosines(self) -> Doubles:
        """Cosine of the angle between the weights of two checkpoints."""
        return _cosines(self._squared_norms, self._square(0, 0.0))

    @property
    def cosines_from_mean(self) -> Doubles:
        """Cosine of the angle between the differences of two checkpoints from the mean of all."""
        distances = self._square(0, 0.0)
        return _cosines(squared_from_mean(distances), distances)

    @property
    def sign_agreements(self) -> Doubles:
        """Share of the elements that have the same sign in two checkpoints, 0 to 1."""
        return self._square(1, 1.0)

    def _square(self, row: int, diagonal: float) -> Doubles:
        count = len(self._squared_norms)
        square = np.full((count, count), diagonal)
        upper = np.triu_indices(count, 1)
        square[upper] = self._pairs[row]
        square.T[upper] = self._pairs[row]
        return square


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What was measured over one layer, or over the whole model.

    Arrays have one number for each checkpoint, in the order of the checkpoints.
    """

    name: str | None
    """Path of the layer in the reference; None for the whole model."""
    variables: int
    elements: int
    """Of one checkpoint."""
    scale: float
    """Root mean square of the norms; a relative distance of 1 is as long as this."""
    norms: Doubles
    """L2 norms of the weights."""
    distances_from_rest: Doubles
    """Relative distance from the mean of all other checkpoints."""
    mean_distances: Doubles
    """Mean of the relative distances to the other checkpoints."""
    mean_cosines: Doubles
    """Mean cosine with the other checkpoints."""
    mean_sign_agreements: Doubles
    """Mean share of elements that have the same sign in another checkpoint, 0 to 1."""
    outlier: Outlier | None
    """The checkpoint that stands out; None if none does."""
    matrices: Matrices | None
    """The numbers of each pair; None for a layer if they were not asked for."""

    @property
    def label(self) -> str:
        """Its name for people; variables of the model object itself are in a layer without."""
        return "whole model" if self.name is None else self.name or "(model)"


@dataclass(frozen=True, slots=True)
class ComparedCheckpoint:
    """One checkpoint that was compared."""

    path: str
    format: str
    producer: str | None
    """Version of the Keras that wrote it; None where the file does not tell."""
    file_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """How far apart N checkpoints are."""

    schema_version: int
    streamavg_version: str
    reference: str
    """The checkpoint whose names the layers have."""
    checkpoints: tuple[ComparedCheckpoint, ...]
    """In the order given."""
    identical: tuple[tuple[str, ...], ...]
    """Paths of checkpoints that hold the same values, group by group."""
    whole: Part
    layers: tuple[Part, ...]
    """Layers with variables that a merge would average, in the reference's order."""
    bytes_read: int
    """Of values, all checkpoints together."""
    slab_elements: int
    threads: int
    memory: MemoryRecord
    seconds: float
    plot: str | None
    """The picture that was drawn."""
    notes: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the checkpoints."""
        return tuple(checkpoint.path for checkpoint in self.checkpoints)

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the checkpoints without the folders that all of them share."""
        return short_names(self.paths)

    @property
    def outlier(self) -> Outlier | None:
        """The checkpoint that stands out in the whole model; None if none does."""
        return self.whole.outlier

    def is_outlier(self, path: str) -> bool:
        """Whether it is this checkpoint that stands out in the whole model."""
        return self.outlier is not None and self.outlier.checkpoint == path

    @property
    def relative_distances(self) -> Doubles:
        """Of the whole model, shape (N, N); see `Matrices`."""
        assert self.whole.matrices is not None, "those of the whole model are always kept"
        return self.whole.matrices.relative_distances

    def answer(self, names: Sequence[str]) -> str:
        """Which checkpoint stands out, in one sentence.

        Args:
            names: what to call the checkpoints.
        """
        count = len(names)
        if self.outlier is not None:
            return stands_out(self.outlier, dict(zip(self.paths, names, strict=True)))
        if any(len(group) == count for group in self.identical):
            return f"{'both' if count == 2 else f'all {count}'} checkpoints hold the same values"
        pairs = self.relative_distances[np.triu_indices(count, 1)]
        least, most = percent(float(pairs.min())), percent(float(pairs.max()))
        if count == 2:
            apart = f"{names[0]} and {names[1]} are {most} apart"
            return f"{apart}; of two, none can be told to stand out"
        apart = most if least == most else f"{least} to {most}"
        return f"no checkpoint stands out: any two are {apart} apart"

    def where_it_differs(self, checkpoint: int) -> tuple[str, float] | None:
        """The layer that adds most to a checkpoint's distance from the mean of the rest.

        Args:
            checkpoint: its index.

        Returns:
            Label of the layer and its share of the squared distance, 0 to 1; None if the distance
            is 0.
        """
        total = float(self.whole.distances_from_rest[checkpoint] * self.whole.scale)
        if not total:
            return None
        parts = [
            float(layer.distances_from_rest[checkpoint] * layer.scale) for layer in self.layers
        ]
        largest = max(range(len(parts)), key=parts.__getitem__)
        return self.layers[largest].label, min(1.0, (parts[largest] / total) ** 2)

    def to_json(self) -> str:
        """The comparison as JSON; a row of a matrix is one line."""
        return "".join(self.json_pieces())

    def json_pieces(self) -> Iterator[str]:
        """The comparison as JSON, piece by piece: the whole of it is never in memory."""
        return _pieces(self, "")


def part_of(
    name: str | None, variables: int, sums: Sums, paths: Sequence[str], *, keeps_matrices: bool
) -> Part:
    """Describes all that was summed over.

    Args:
        name: path of the layer; None for the whole model.
        variables: number of variables.
        sums: over at least one element.
        paths: of the checkpoints.
        keeps_matrices: whether the numbers of each pair are kept, not only those of each
            checkpoint.
    """
    matrices = Matrices.of(sums)
    distances = matrices.relative_distances
    count = len(paths)
    others = count - 1
    scale = scale_of(sums.squared_norms)
    # The mean of the rest is away from the mean of all, in the opposite direction.
    from_rest = np.sqrt(squared_from_mean(sums.squared_distances)) * (count / others)
    return Part(
        name=name,
        variables=variables,
        elements=sums.elements,
        scale=scale,
        norms=np.sqrt(sums.squared_norms),
        distances_from_rest=_divide(from_rest, scale),
        mean_distances=distances.sum(axis=1) / others,
        mean_cosines=(matrices.cosines.sum(axis=1) - 1) / others,
        mean_sign_agreements=(matrices.sign_agreements.sum(axis=1) - 1) / others,
        outlier=find_outlier(distances, paths),
        matrices=matrices if keeps_matrices else None,
    )


def find_outlier(distances: Doubles, paths: Sequence[str]) -> Outlier | None:
    """The checkpoint that is farther from the rest than the rest are from each other.

    A checkpoint's ratio is its mean distance to the others, divided by the largest mean distance
    that one of the others has to the others without it. The checkpoint with the largest ratio
    stands out if that is at least `OUTLIER_RATIO`. Leaving it out on both sides matters: it makes
    the distances of all others large too, so that plain means would differ by less than N - 1,
    however far away it is.

    Args:
        distances: of each pair, shape (N, N), symmetric, diagonal 0.
        paths: of the checkpoints.

    Returns:
        The outlier. None if no checkpoint stands out, if all are equal, or if there are fewer than
        three: of two, none can be told to be the one that is off.
    """
    count = len(paths)
    if count < 3 or not distances.any():
        return None
    sums = distances.sum(axis=1)
    without = np.maximum(sums[None, :] - distances, 0) / (count - 2)
    np.fill_diagonal(without, 0)
    spread = without.max(axis=1)
    farness = sums / (count - 1)
    ratios = np.divide(farness, spread, out=np.full(count, math.inf), where=spread > 0)
    largest = int(ratios.argmax())
    if ratios[largest] < OUTLIER_RATIO:
        return None
    ratio = float(ratios[largest])
    return Outlier(
        checkpoint=paths[largest],
        distance=float(farness[largest]),
        others=float(spread[largest]),
        ratio=ratio if math.isfinite(ratio) else None,
    )


def squared_from_mean(squared_distances: Doubles) -> Doubles:
    """Squared distance of each of N vectors from their mean, from the distances between them.

    |x_i - mean|^2 = mean over j of |x_i - x_j|^2, less the half of the mean over all i and j
    (W. S. Torgerson, "Multidimensional scaling", Psychometrika 17, 1952). Its error is usually some
    1e-12 of the largest square, so less than 1e-11 of that counts as 0.

    Args:
        squared_distances: of each pair, shape (N, N), symmetric, diagonal 0.
    """
    of_each = squared_distances.mean(axis=1)
    squares: Doubles = of_each - of_each.mean() / 2
    squares[squares <= _ROUNDING * squares.max()] = 0
    return squares


def groups_of_equal(distances: Doubles, paths: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Paths of the checkpoints that are at distance 0 from each other, group by group."""
    groups: dict[int, list[str]] = {}
    for path, row in zip(paths, distances, strict=True):
        groups.setdefault(int((row == 0).argmax()), []).append(path)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def stands_out(outlier: Outlier, names: Mapping[str, str]) -> str:
    """Says of an outlier by how much it stands out.

    Args:
        outlier: the checkpoint.
        names: what to call the checkpoints, by path.
    """
    name, distance = names[outlier.checkpoint], percent(outlier.distance)
    if outlier.ratio is None:
        equal = f"the other {len(names) - 1} are equal"
        return f"{name} is the only one that differs ({distance}): {equal}"
    times = "over 1000" if outlier.ratio > 1000 else _significant(outlier.ratio)
    others = percent(outlier.others)
    return f"{name} is {times}x farther from the rest than any other: {distance} against {others}"


def percent(share: float) -> str:
    """A share for people, with two significant digits: 0.071 is "7.1%"."""
    return f"{_significant(100 * share)}%"


def _significant(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:#.2g}"


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths without the folders that all of them share."""
    absolute = [Path(path).absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in absolute])
    return tuple(str(path.relative_to(shared)) for path in absolute)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most `width` characters that are as different as they were.

    If some are too long, the beginning that all share is cut off, then the end that all share, then
    what is in the middle of each.

    Args:
        names: any.
        width: at least 8.
    """
    cut = list(names)
    for end in (1, -1):
        if any(len(name) > width for name in cut) and len(cut) > 1:
            cut = [name[::end] for name in _without_shared_start([name[::end] for name in cut])]
    for tail in (width // 2, 2 * width // 3, width // 4):
        fitting = [_cut_middle(name, width, tail) for name in cut]
        if len(set(fitting)) == len(set(names)):
            return fitting
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
    return [_cut_middle(f"{numbers[name]}: {name}", width, width // 3) for name in names]


def _without_shared_start(names: Sequence[str]) -> list[str]:
    """Names that begin with an ellipsis instead of the words that all of them begin with."""
    end = shared = 0
    while len({name[: end + 1] for name in names}) == 1 and end < len(names[0]):
        end += 1
        shared = end if names[0][end - 1] in "/-. " else shared
    return [_ELLIPSIS + name[shared:] for name in names] if shared > 1 else list(names)


def _cut_middle(name: str, width: int, tail: int) -> str:
    if len(name) <= width:
        return name
    return f"{name[: width - tail - 1]}{_ELLIPSIS}{name[len(name) - tail :]}"


def scale_of(squared_norms: Doubles) -> float:
    """Root mean square of norms, what relative distances are relative to."""
    return math.sqrt(float(squared_norms.mean()))


def _divide(distances: Doubles, scale: float) -> Doubles:
    """Relative distances; where the scale is 0, all values are, and all distances."""
    return distances / scale if scale else np.zeros_like(distances)


def _cosines(squares: Doubles, squared_distances: Doubles) -> Doubles:
    """Cosines of the angles between vectors of squared lengths `squares`.

    From the law of cosines, |a - b|^2 = (|a| - |b|)^2 + 2 |a| |b| (1 - cos): unlike a.b / |a| |b|,
    it keeps the digits of 1 - cos where a and b are close.
    """
    lengths = np.sqrt(squares)
    products = 2 * lengths[:, None] * lengths[None, :]
    surplus = squared_distances - (lengths[:, None] - lengths[None, :]) ** 2
    off = np.divide(surplus, products, out=np.ones_like(surplus), where=products > 0)
    off[(products == 0) & (squared_distances == 0)] = 0
    cosines: Doubles = np.clip(1 - off, -1, 1)
    return cosines


def _pieces(value: Any, indent: str) -> Iterator[str]:
    """Indented JSON in which a list of numbers is one line."""
    inner = indent + "  "
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim > 1 else value.tolist()
    items: list[tuple[str, Any]]
    if dataclasses.is_dataclass(value):
        items = [(f"{json.dumps(name)}: ", getattr(value, name)) for name in _public(value)]
        opening, closing = "{", "}"
    elif isinstance(value, (list, tuple)) and any(not _is_plain(item) for item in value):
        items = [("", item) for item in value]
        opening, closing = "[", "]"
    else:
        yield json.dumps(value)
        return
    yield opening
    for number, (key, item) in enumerate(items):
        yield f"{',' * (number > 0)}\n{inner}{key}"
        yield from _pieces(item, inner)
    yield f"\n{indent}{closing}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _public(record: Any) -> list[str]:
    """Names of what a record tells: its fields, or the matrices that are made from them."""
    if isinstance(record, Matrices):
        return ["relative_distances", "cosines", "cosines_from_mean", "sign_agreements"]
    return [field.name for field in dataclasses.fields(record)]
