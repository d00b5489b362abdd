"""Byte counts as people write and read them. All sizes inside the program are in bytes."""

from __future__ import annotations

import math
import numbers
import re
from fractions import Fraction

from streamavg.errors import OptionError

_FACTORS = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
    "t": 1024**4, "tib": 1024**4, "tb": 1000**4,
}  # fmt: skip
_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str | float) -> int:
    """Reads a size such as "64MiB", "1.5GB", "256M" or 1048576.

    K, M, G and T alone are binary (1024), as in most command-line tools.

    Args:
        text: the size; a number is taken as bytes.

    Returns:
        The size in bytes.

    Raises:
        OptionError: not a size, or not positive.
    """
    if isinstance(text, numbers.Real):
        size = int(text) if math.isfinite(text) else 0
    else:
        match = _SIZE.fullmatch(str(text))
        if match is None or match[2].lower() not in _FACTORS:
            raise OptionError(f"{text!r} is not a size. Write it like 64MiB, 512M or 2GB.")
        size = int(Fraction(match[1]) * _FACTORS[match[2].lower()])
    if size <= 0:
        raise OptionError(f"{text!r} is not a size: it must be more than zero bytes.")
    return size


def format_size(size: float) -> str:
    """Writes a byte count for people: 44.1 MiB. Three significant digits, binary units."""
    if size < 1024:
        return f"{size:.0f} B"
    power = min(int(math.log(size, 1024)), len(_BINARY_UNITS))
    value = size / 1024**power
    digits = f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
    return f"{digits} {_BINARY_UNITS[power - 1]}"
