"""Memory that bytes of a file can be read into at the place in a page that they have in the file.

The kernel copies between its page cache and a program several times slower when the two addresses
differ by a few bytes modulo the size of a page (the loads and stores of the copy then appear to
overlap), and arrays that NumPy allocates begin 16 bytes into a page. Bytes that lie at the same
place in their page on both sides are always copied at full speed. Direct reads (`O_DIRECT`) need
the same: whole pages of the file into whole pages of memory.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_BYTES = max(mmap.PAGESIZE, 4096)
STRETCH_BYTES = 256 * 1024
"""Small variables that lie within so many bytes of each other are read at once."""
_ALIGNMENT = 8


class PageBuffer:
    """Page-aligned memory for up to `capacity` bytes at any place in a page.

    Memory: `capacity` rounded up to pages, and two pages more; taken when they are first used.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        rounded = -(-capacity // PAGE_BYTES) * PAGE_BYTES
        self._bytes = np.frombuffer(mmap.mmap(-1, rounded + 2 * PAGE_BYTES), np.uint8)

    def window(self, offset: int, size: int, *, exact: bool = False) -> NDArray[np.uint8]:
        """Room for the `size` bytes of a file from `offset` on; the buffer's until its next use.

        It begins at the same place in a page, or up to 7 bytes before it: at a multiple of 8, where
        numbers of every size are aligned. With `exact` it begins at the same place.
        """
        first = offset % PAGE_BYTES
        if not exact:
            first -= first % _ALIGNMENT
        return self._bytes[first : first + size]

    def pages(self, offset: int, size: int) -> tuple[int, NDArray[np.uint8]]:
        """The whole pages around an exact window.

        Returns:
            Offset in the file of the first page, and the room for all of them.
        """
        first = offset % PAGE_BYTES
        end = -(-(first + size) // PAGE_BYTES) * PAGE_BYTES
        return offset - first, self._bytes[:end]


class SlabBuffer:
    """Where a thread reads the slabs of one checkpoint after the other.

    Args:
        capacity: bytes of the largest slab.

    Attributes:
        values: takes a slab.
        stretch: takes a stretch of a file of which only parts belong to a slab; `STRETCH_BYTES`.
    """

    def __init__(self, capacity: int) -> None:
        self.values = PageBuffer(capacity)
        self.stretch = PageBuffer(STRETCH_BYTES)
