"""What commands print in the same way: tables, and JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> Iterator[str]:
    """Lines of aligned columns.

    Args:
        rows: cells, the same number in each; the header is the first.
        right: columns that are aligned to the right, as numbers are; the others are to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def print_pieces(pieces: Iterable[str]) -> None:
    """Prints a document piece by piece: the whole of it is never in memory."""
    sys.stdout.writelines(pieces)
    sys.stdout.write("\n")
    sys.stdout.flush()
