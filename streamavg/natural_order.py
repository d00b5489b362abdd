"""Names in the order that people expect: numbers inside them count by their value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_DIGITS = re.compile(r"([0-9]+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers inside names by value: "2" < "10", "dense" < "dense_2" < "dense_10"."""
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if _DIGITS.fullmatch(part) else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )


def natural_path_key(path: Path) -> tuple[object, ...]:
    """Sorts absolute paths folder by folder, each naturally; "ckpt-02" and "ckpt-2" as text."""
    return tuple(natural_key(part) for part in path.absolute().parts), str(path)
