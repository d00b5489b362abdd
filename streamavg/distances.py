"""How far apart checkpoints are: sums over the elements of a block, which add up over blocks.

A block is the same slab of N checkpoints, one row a checkpoint. It is taken a panel at a time: some
thousand columns as float64, which stay in the processor's cache. All pairs come from one matrix
product a panel.

The textbook identity |a - b|^2 = |a|^2 + |b|^2 - 2 a.b loses half of the digits where a and b are
close. So the product is taken of differences d_i from the first row, and norms are summed apart.
Pairs that are close even for that, closer than 1/32 of the row that is farthest from the first, are
measured again among themselves, from a first row of their own, until none are left.

Bounds, with u = 2**-53, M the largest distance of a row from the first one, and panels of at most
k = `WIDEST_PANEL` = 2**13 columns:

    A product of rows of k columns has an error of at most k * u * |d_i| * |d_j|, in whatever order
    it is summed (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1), and
    so has the sum over the panels of a block, to which each panel adds less than one more.
    A squared distance has three of them, at most 4 * k * u * M**2 in all, and pairs that are not
    close have |a - b|**2 >= M**2 / 2**10: a relative error of at most 2**-28. So

    distances   relative error below 1e-8; equal rows are exactly 0 apart
    norms       relative error below 1e-8
    same signs  exact

In practice the errors of a product partly cancel, and 1e-11 or less is usual. Squares of values
below 1e-154 count as 0, and those of values above 1e150 are not in range; float32 has none such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

WIDEST_PANEL = 2**13
"""OpenBLAS multiplies two rows in the calling thread up to 10,000 columns."""
NARROWEST_PANEL = 512
PANEL_ELEMENTS = 2**16
"""Of all rows together: half a megabyte as float64, what a second-level cache holds."""
_NEAR = 2.0**-10
"""Pairs below this share of the largest squared distance from the first row are close."""
_LARGEST_SQUARE = 2.0**1000
_FEW_ROWS = 5
"""Up to here a product for each pair is faster than one of all."""
_TILE_ROWS = 16
_TILE_COLUMNS = 1024
"""OpenBLAS multiplies tiles in the calling thread up to rows * rows * columns = 2**18."""


@dataclass(slots=True, eq=False)
class Sums:
    """Sums over the elements of some blocks of the same N checkpoints."""

    elements: int
    """Columns that were summed over."""
    squared_norms: Doubles
    """Shape (N,)."""
    squared_distances: Doubles
    """Of each pair. Shape (N, N), symmetric, diagonal 0."""
    same_signs: Doubles
    """Elements of each pair that are both negative, both positive or both zero. Shape (N, N)."""

    @classmethod
    def zeros(cls, count: int) -> Self:
        """Sums over nothing, for `count` checkpoints."""
        return cls(0, np.zeros(count), np.zeros((count, count)), np.zeros((count, count)))

    def add(self, other: Sums) -> None:
        """Adds sums over other elements of the same checkpoints."""
        self.elements += other.elements
        self.squared_norms += other.squared_norms
        self.squared_distances += other.squared_distances
        self.same_signs += other.same_signs

    @property
    def are_in_range(self) -> bool:
        """Whether all values were finite, and no square was near the end of float64."""
        return bool((self.squared_norms < _LARGEST_SQUARE).all())


class Meter:
    """Measures blocks of `count` checkpoints, with buffers of its own; for one thread.

    Args:
        count: number of checkpoints, N.
        longest: the most elements that a block has.
    """

    def __init__(self, count: int, longest: int = WIDEST_PANEL) -> None:
        self._count = count
        self._width = min(longest, panel_width(count))
        self._values = np.empty((count, self._width))
        self._marks = np.empty((count, self._width), np.float32)
        self._flags = np.empty((count, self._width), np.bool_)

    @staticmethod
    def bytes_needed(count: int, longest: int = WIDEST_PANEL) -> int:
        """Bytes that such a meter takes, temporaries included.

        A panel as float64 (and once more for what is close), marks as float32, two flags; and of
        matrices with a number for each pair, two sums and nine temporaries.
        """
        width = min(longest, panel_width(count))
        return count * width * (2 * 8 + 4 + 2) + 11 * 8 * count**2

    def measure(self, block: NDArray[Any]) -> Sums:
        """Sums over a block.

        Args:
            block: shape (N, elements), any float dtype; read, not kept.

        Returns:
            The sums, owned by the caller. Not in range if values are not finite.
        """
        sums = Sums.zeros(self._count)
        sums.elements = block.shape[1]
        product = np.zeros_like(sums.squared_distances)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for rows in self._panels(block):
                values = self._values[:, : rows.shape[1]]
                np.copyto(values, rows)
                sums.squared_norms += np.matmul(values[:, None, :], values[:, :, None])[:, 0, 0]
                sums.same_signs += self._same_signs(values)
                product += _products_of_differences(values)
            everyone = np.arange(self._count)
            sums.squared_distances = self._squared_distances(block, everyone, product)
        return sums

    def _panels(self, block: NDArray[Any]) -> Iterator[NDArray[Any]]:
        for start in range(0, block.shape[1], self._width):
            yield block[:, start : start + self._width]

    def _same_signs(self, values: Doubles) -> NDArray[np.float32]:
        """Elements of each pair with the same sign; whole numbers, exact in float32."""
        negative = self._both(values, np.less)
        if not values.all():
            return negative + self._both(values, np.greater) + self._both(values, np.equal)
        counts = negative.diagonal()  # without zeros, what is not negative is positive
        same: NDArray[np.float32] = 2 * negative - counts[:, None] - counts[None, :]
        same += np.float32(values.shape[1])
        return same

    def _both(self, values: Doubles, compare: np.ufunc) -> NDArray[np.float32]:
        """Elements of each pair that are both below, above or equal to 0."""
        marks, flags = (a[:, : values.shape[1]] for a in (self._marks, self._flags))
        compare(values, 0, out=flags)
        np.copyto(marks, flags)
        return _products_of_rows(marks)

    def _squared_distances(
        self, block: NDArray[Any], members: NDArray[np.intp], product: Doubles
    ) -> Doubles:
        """The squared distance of each member from each, see the bounds above.

        Members near to one of them, the leader, are measured again among themselves. They are never
        all members, so this ends: were all within M/32 of the leader, the first one too, then none
        could be at M from the first.

        Args:
            block: the values, one row a checkpoint.
            members: indices of some rows.
            product: of the differences of these rows from the first of them.
        """
        squares = product.diagonal()
        distances = squares[:, None] + squares[None, :] - 2 * product
        np.fill_diagonal(distances, 0)
        largest = squares.max()
        if largest == 0:
            return np.zeros_like(distances)
        near = distances < _NEAR * largest
        np.fill_diagonal(near, False)
        while near.any():
            leader = int(near.sum(axis=1).argmax())
            near[leader, leader] = True
            group = np.flatnonzero(near[leader])
            pairs = np.ix_(group, group)
            distances[pairs] = self._squared_distances_anew(block, members[group])
            near[pairs] = False
        return distances

    def _squared_distances_anew(self, block: NDArray[Any], members: NDArray[np.intp]) -> Doubles:
        product = np.zeros((len(members), len(members)))
        for rows in self._panels(block):
            values = self._values[: len(members), : rows.shape[1]]
            np.copyto(values, rows[members])
            product += _products_of_differences(values)
        return self._squared_distances(block, members, product)


def panel_width(count: int) -> int:
    """Columns of a panel of `count` rows."""
    widest = WIDEST_PANEL if count <= _TILE_ROWS else _TILE_COLUMNS
    return min(widest, max(NARROWEST_PANEL, PANEL_ELEMENTS // count))


def _products_of_differences(values: Doubles) -> Doubles:
    """Products of the differences of each row from the first; overwrites `values`."""
    values[1:] -= values[0]
    product = np.zeros((len(values), len(values)))
    product[1:, 1:] = _products_of_rows(values[1:])
    return product


def _products_of_rows(values: NDArray[Any]) -> NDArray[Any]:
    """The product of each row with each: symmetric, of the same dtype.

    It is made of tiles that are too small for the BLAS to call its own threads to help: those wait
    for each other busily, which costs several times the work where processors are taken, by the
    other threads of this program for one.
    """
    count = len(values)
    tile = _TILE_ROWS if count > _FEW_ROWS else 1
    product = np.empty((count, count), values.dtype)
    for i in range(0, count, tile):
        for j in range(0, i + 1, tile):
            part = values[i : i + tile] @ values[j : j + tile].T
            product[i : i + tile, j : j + tile] = part
            product[j : j + tile, i : i + tile] = part.T
    return product
