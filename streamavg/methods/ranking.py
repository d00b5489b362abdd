"""The values of one slab of all checkpoints, sorted element by element.

Floats are sorted as integers of the same width whose order is that of the floats: with the sign
bit set, all other bits are flipped (IEEE 754-2019, 5.10, totalOrder). So -0.0 comes before 0.0,
NaN comes at the ends, and what comes out does not depend on the order in which values are added,
not in a bit. The same arithmetic turns such a key into the bits of its float again.

A block of elements is transposed, so that the values of one element lie side by side, and sorted
while it is in the cache. NumPy sorts 32 and 64 bits with vector instructions, 16 bits on many
processors without: there, keys are widened in the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Keys = NDArray[np.signedinteger[Any]]

MOST_BLOCK_ELEMENTS = 2048
"""With 32 float32 values each that is 256 KiB, within most second-level caches. Smaller blocks are
sorted as fast, but take more calls, between which threads wait for each other."""
BLOCKS = 8
"""A slab is sorted in at least so many blocks: temporaries are a small part of it."""
_PADDING_BYTES = 128
"""After each row: rows a power of two apart would all fall on the same lines of the cache."""
_LEAST_CAPACITY = 4096
"""What the padding is shared by, when bytes are counted for each element."""


class Ranking:
    """Keeps a slab of each checkpoint, and sorts it block by block."""

    def __init__(self, dtype: np.dtype[Any], capacity: int, checkpoints: int) -> None:
        self.dtype = dtype
        self.block_elements = block_elements(capacity)
        self._keyed = np.dtype(f"i{dtype.itemsize}")
        self._shift = self._keyed.type(8 * dtype.itemsize - 1)
        self._mask = np.iinfo(self._keyed).max
        self._infinity = int(np.array(np.inf, dtype).view(self._keyed))
        padding = _PADDING_BYTES // dtype.itemsize
        self._rows = np.empty((checkpoints, capacity + padding), self._keyed)
        sorted_as = np.dtype(f"i{max(4, dtype.itemsize)}")
        self._block = np.empty((self.block_elements, checkpoints), sorted_as)
        self.start(capacity)

    @staticmethod
    def bytes_per_element(dtype: np.dtype[Any], checkpoints: int) -> int:
        """Bytes for each element of the capacity, the block included."""
        block = -(-checkpoints * max(4, dtype.itemsize) // BLOCKS)
        padding = -(-checkpoints * _PADDING_BYTES // _LEAST_CAPACITY)
        return checkpoints * dtype.itemsize + block + padding

    def start(self, count: int) -> None:
        """See `Accumulator`."""
        self._count = count
        self._finite = True

    def add(self, values: NDArray[Any], checkpoint: int) -> None:
        """See `Accumulator`."""
        row = self._rows[checkpoint, : self._count]
        self._flip(values.view(self._keyed), row)
        if row.size:
            self._finite &= ~self._infinity < int(row.min()) and int(row.max()) < self._infinity

    def all_finite(self) -> bool:
        """See `Accumulator`."""
        return self._finite

    def blocks(self) -> Iterator[tuple[slice, Keys]]:
        """Yields parts of the slab, and the keys of each as (elements, checkpoints), ascending.

        The keys are valid until the next part.
        """
        for start in range(0, self._count, self.block_elements):
            part = slice(start, min(start + self.block_elements, self._count))
            block = self._block[: part.stop - start]
            np.copyto(block, self._rows[:, part].T)
            block.sort(axis=1)
            yield part, block

    def values(self, keys: Keys) -> NDArray[Any]:
        """The floats that keys stand for, as (ranks, elements) from (elements, ranks)."""
        narrow = keys.T.astype(self._keyed, order="C")
        bits = np.empty_like(narrow)
        self._flip(narrow, bits)
        return bits.view(self.dtype)

    def with_nan(self, block: Keys) -> NDArray[np.bool_]:
        """Which elements of a sorted block have a NaN among their values."""
        below, above = block[:, 0] < ~self._infinity, block[:, -1] > self._infinity
        return np.logical_or(below, above)

    def _flip(self, bits: NDArray[Any], out: NDArray[Any]) -> None:
        """From the bits of floats to keys, and back."""
        np.right_shift(bits, self._shift, out=out)
        np.bitwise_and(out, self._mask, out=out)
        np.bitwise_xor(out, bits, out=out)


def block_elements(capacity: int) -> int:
    """How many elements of a slab are sorted at once."""
    return max(1, min(MOST_BLOCK_ELEMENTS, capacity // BLOCKS))
