"""What the header of a dataset says.

Both ways to read headers, `plain_headers` and `hdf5_headers`, give the same of one file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DEEPEST_GROUP = 64
"""Nested models go a few levels deep; HDF5 itself allows cycles."""
THROUGH_LIBRARY = -1
"""Offset of values that only the HDF5 library can read."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the header of one dataset says."""

    path: str
    """Within the HDF5 file, without a leading slash."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """In native byte order; bfloat16 where that is what the bytes are; object for strings."""
    offset: int
    """First byte of the values within the HDF5 file; -1 if only the library can read them."""
    tile_bytes: int
    """Bytes of one chunk that must be decoded whole; 0 if none."""
    address: int | None
    """Identifies the stored object if several paths may lead to it, else None."""

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes; for strings of variable length, of their references."""
        return math.prod(self.shape) * self.dtype.itemsize
