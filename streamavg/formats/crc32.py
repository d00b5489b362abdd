"""The CRC-32 of a content whose pieces come in any order, from any thread.

A CRC is the remainder of a polynomial over GF(2), so that of a whole is the sum (exclusive or) of
its pieces' CRCs, each multiplied by x to the power of the number of bits behind the piece:

    crc(content) = XOR over pieces of  crc(piece) * x^(8 * bytes behind it)  mod P

So one number is all that is kept of what was seen. Source: M. Adler's `crc32_combine` in zlib
(crc32.c), which the powers of x by repeated squaring come from too.
"""

from __future__ import annotations

import threading
import zlib
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_POLYNOMIAL = 0xEDB88320
"""P of the zip format with its bits reversed: bit 31 is x^0."""
_ONE = 1 << 31


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo P."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _squares() -> tuple[int, ...]:
    """x^(8 * 2^k) for k = 0 to 62."""
    powers = [_ONE >> 8]
    for _ in range(62):
        powers.append(_times(powers[-1], powers[-1]))
    return tuple(powers)


_SQUARES = _squares()


class _Crc(NamedTuple):
    """What is computed with CRCs."""

    of: Callable[[memoryview | bytes], int]
    """The CRC-32 of some bytes."""
    shifted: Callable[[int, int], int]
    """A CRC times x^(8 * count): what it adds to that of a content with `count` bytes behind."""


@cache
def fastest() -> _Crc:
    """The fastest functions here.

    The package isal multiplies polynomials with the processor's own instruction: four times as fast
    as zlib's tables, and its shift takes a microsecond instead of a few hundred. The numbers are
    the same.
    """
    try:
        from isal import isal_zlib  # noqa: PLC0415 - loaded for archives alone
    except ImportError:
        return _Crc(zlib.crc32, lambda crc, count: _times(crc, _power(count)))
    return _Crc(isal_zlib.crc32, lambda crc, count: isal_zlib.crc32_combine(crc, 0, count))


@lru_cache(maxsize=64)
def _power(count: int) -> int:
    """x^(8 * count) modulo P. The slabs of all checkpoints have the same few."""
    power = _ONE
    for bit, square in enumerate(_SQUARES):
        if count >> bit & 1:
            power = _times(square, power)
    return power


class RunningCrc:
    """Sums up the pieces of a content of known size. Safe for threads.

    Args:
        size: of the content in bytes.

    Memory: two integers for each stretch that does not touch another one.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._crc = fastest()
        self._value = 0
        self._lock = threading.Lock()
        self._last_of: dict[int, int] = {}
        """The end of each stretch that was added, by its first byte."""
        self._first_of: dict[int, int] = {}
        """And the other way round."""

    def add(self, offset: int, piece: memoryview | bytes) -> None:
        """Takes in the bytes of the content from `offset` on; each byte may come once."""
        last = offset + len(piece)
        shifted = self._crc.shifted(self._crc.of(piece), self.size - last)
        with self._lock:
            self._value ^= shifted
            first = self._first_of.pop(offset, offset)
            last = self._last_of.pop(last, last)
            self._last_of[first] = last
            self._first_of[last] = first

    def grow(self, size: int) -> None:
        """Tells that the content has become longer, up to `size` bytes in all."""
        self._value = self._crc.shifted(self._value, size - self.size)
        self.size = size

    def missing(self) -> list[tuple[int, int]]:
        """First byte and the one behind the last of each stretch that was not added, in order."""
        return list(gaps(sorted(self._last_of.items()), self.size))

    @property
    def value(self) -> int:
        """The CRC-32 of the content, once every byte of it was added."""
        return self._value


def gaps(extents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What extents leave over of a content.

    Args:
        extents: first byte, and the one behind the last; sorted by the first.
        size: of the content in bytes.

    Yields:
        First byte and the one behind the last of each gap, in order; none is empty.
    """
    end = 0
    for first, last in extents:
        if first > end:
            yield end, first
        end = max(end, last)
    if end < size:
        yield end, size


def pieces(extents: Iterable[tuple[int, int]], most_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts extents into pieces of at most `most_bytes`; yields first byte and size of each."""
    for first, last in extents:
        for begin in range(first, last, most_bytes):
            yield begin, min(most_bytes, last - begin)
