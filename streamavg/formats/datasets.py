"""What the header of a dataset says, and in which order datasets come.

Both ways to read headers, `plain_headers` and `hdf5_headers`, give the same of one file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DEEPEST_GROUP = 64
"""Nested models go a few levels deep; HDF5 itself allows cycles."""
THROUGH_LIBRARY = -1
"""Offset of values that only the HDF5 library can read."""
_DIGITS = re.compile(r"([0-9]+)")


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


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers inside names by value: "2" < "10", "dense" < "dense_2" < "dense_10"."""
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if _DIGITS.fullmatch(part) else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )
