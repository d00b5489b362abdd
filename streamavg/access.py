"""How the bytes of the inputs are fetched: through the page cache, ahead of time, or past it.

This is the one place that decides; the engine and the formats do as it says.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamavg.options import AccessOption

CACHE_BYTES_PER_FILE = 8 * 1024**2
"""What a page cache needs for each file that is read at the same time: systems read up to this much
ahead, and what is dropped before it was used must be read twice."""
_PROBES = 4
"""Places of a file that are looked up in the page cache."""


class Access(enum.StrEnum):
    """A way to fetch bytes."""

    CACHED = "cached"
    """Reads through the page cache, which holds the bytes already."""
    READ_AHEAD = "read-ahead"
    """Reads through the page cache, which is told beforehand what will be asked for."""
    DIRECT = "direct"
    """Reads past the page cache, from the disk into the reader's memory."""


def choose_access(
    asked: AccessOption, are_cached: Iterable[bool | None], files: int, cache_bytes: int | None
) -> Access:
    """Decides how the inputs of a merge are read.

    The page cache is the fastest source for bytes that it holds, and for those it does not hold
    it reads ahead while others are summed. But the pages that it fills count towards the memory
    limit of a control group (a container, a batch job). Where that leaves less room than all the
    files that are read at once need, pages are dropped before they are used and fetched again:
    then reads go past the cache.

    Args:
        asked: "buffered" and "direct" settle it; "auto" looks.
        are_cached: whether the page cache holds the bytes at some places of the inputs; None where
            the system does not tell. Looked at only if need be.
        files: number of files that are read at the same time.
        cache_bytes: room that a control group leaves to the page cache; None if nothing limits it.
    """
    if asked == "direct":
        return Access.DIRECT
    is_tight = cache_bytes is not None and cache_bytes < files * CACHE_BYTES_PER_FILE
    if asked == "auto" and is_tight:
        return Access.DIRECT
    return Access.CACHED if _mostly(are_cached) else Access.READ_AHEAD


def _mostly(answers: Iterable[bool | None]) -> bool:
    known: Sequence[bool] = [answer for answer in answers if answer is not None]
    return 2 * sum(known) > len(known)


def probed_offsets(size: int) -> list[int]:
    """Places of a file of `size` bytes that stand for all of it."""
    return [size * number // _PROBES for number in range(_PROBES)] if size else []
