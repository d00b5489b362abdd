"""The weighted mean, sum(numerator_i * x_i) / sum(numerator_i), rounded once.

float16, bfloat16 and float32 are summed in float64. A sum of N float32 values that lie within a
factor 2**29 / N of each other is exact there, so a uniform mean is off by the one division and
the one rounding at the end: at most 0.5 ULP + 1e-9 ULP. In general the error before rounding is
at most (N + 2) * 2**-53 * sum(coefficient_i * |x_i|).

float64 is summed in double-double arithmetic (about 106 bits), whose error before rounding is
below N * 2**-100 * sum(coefficient_i * |x_i|).

Source: T. J. Dekker, "A floating-point technique for extending the available precision", Numer.
Math. 18, 1971 (splitting, product); D. E. Knuth, TAOCP vol. 2, 4.2.2 (sum of two numbers with its
error); Boldo and Melquiond, "When double rounding is odd", 2005 (rounding to bfloat16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from streamavg.coefficients import Weighting

    Doubles = NDArray[np.float64]
    _Pair = tuple[Doubles, Doubles]

_SPLITTER = 2.0**27 + 1
_HUGE = 2.0**900
"""From here on float64 values are summed scaled down, so that neither sums nor splits overflow."""
_SCALE = 2.0**-200
_HEADROOM = 2.0**60
_HALVES_SCALE = 2.0**-112
"""What float16 values are multiplied with when they are summed."""
_MIDDLE = np.int32(-(2**31))
"""The lower half of a float32 midway between two bfloat16 values, shifted to the upper half."""
_PIECES = 4
"""Products are made of a quarter of a slab at a time, so that they stay in the cache."""
_BLOCK = 16384
"""Elements that are rounded at once, so that temporaries are small and stay in the cache."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The weighted arithmetic mean."""

    name: str = "mean"
    verb: str = "averages"

    def summary(self, count: int) -> str:
        """See `Method`."""
        return f"{self.verb} {count} values"

    def bytes_per_element(self, dtype: np.dtype[Any], output: np.dtype[Any], count: int) -> int:
        """See `Method`."""
        if dtype == np.float64:
            return 8 * (_DoubleSum.ARRAYS + 2)
        return _SingleSum.bytes_per_element(dtype)

    def accumulator(
        self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting
    ) -> _SingleSum | _DoubleSum:
        """See `Method`."""
        if dtype == np.float64:
            return _DoubleSum(capacity, coefficients)
        return _SingleSum(dtype, capacity, coefficients)


class _SingleSum:
    """Sums values of up to 32 bits in float64.

    Two things make it fast: as few passes over memory as there can be, and as few calls, because
    between two calls the threads wait for each other.
    """

    def __init__(self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting) -> None:
        self._numerators = coefficients.numerators
        self._total = float(coefficients.total)
        if dtype == np.float16:
            self._total *= _HALVES_SCALE
        self._sums = np.empty(capacity, np.float64)
        self._widened = _widener(dtype, capacity)
        self._scratch = np.empty(0, np.float64)
        if any(numerator != 1 for numerator in self._numerators):
            self._scratch = np.empty(-(-capacity // _PIECES), np.float64)
        self.start(capacity)

    @staticmethod
    def bytes_per_element(dtype: np.dtype[Any]) -> int:
        """Bytes for each element of the capacity, with numerators other than 1."""
        return 8 + 8 // _PIECES + _widening_bytes(dtype)

    def start(self, count: int) -> None:
        """See `Accumulator`."""
        self._sum = self._sums[:count]
        self._is_empty = True

    def add(self, values: NDArray[Any], checkpoint: int) -> None:
        """See `Accumulator`."""
        numerator = self._numerators[checkpoint]
        with np.errstate(invalid="ignore"):
            values = self._widened(values)
            if self._is_empty:
                _multiply_into(self._sum, values, numerator)
                self._is_empty = False
            elif numerator == 1:
                np.add(self._sum, values, out=self._sum)
            else:
                self._add_multiplied(values, numerator)

    def _add_multiplied(self, values: NDArray[Any], numerator: float) -> None:
        for start in range(0, values.size, self._scratch.size):
            piece = slice(start, start + self._scratch.size)
            sums, terms = self._sum[piece], values[piece]
            products = self._scratch[: terms.size]
            _multiply_into(products, terms, numerator)
            np.add(sums, products, out=sums)

    def all_finite(self) -> bool:
        """See `Accumulator`.

        The sum of the sums tells: of finite float32 values it cannot overflow, and it is NaN or
        infinite if any of them is.
        """
        with np.errstate(invalid="ignore"):
            return math.isfinite(float(np.add.reduce(self._sum)))

    def result(self, out: NDArray[Any]) -> None:
        """See `Accumulator`."""
        with np.errstate(over="ignore", invalid="ignore"):
            if out.dtype.kind == "V":
                np.divide(self._sum, self._total, out=self._sum)
                round_into(self._sum, out)
            elif math.frexp(self._total)[0] == 0.5:  # a power of two: its inverse is exact
                np.multiply(self._sum, 1 / self._total, out=out, casting="same_kind")
            else:
                np.divide(self._sum, self._total, out=out, casting="same_kind")


def _multiply_into(out: Doubles, values: NDArray[Any], numerator: float) -> None:
    np.copyto(out, values)
    if numerator != 1:
        np.multiply(out, numerator, out=out)


def _widener(dtype: np.dtype[Any], capacity: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What makes float32 of shorter floats, which NumPy cannot add to float64 directly or fast.

    Its result is valid until it is called again, and scaled by `_HALVES_SCALE` for float16.
    """
    if dtype.kind == "V":
        return _Brains(capacity)
    return _Halves(capacity) if dtype == np.float16 else lambda values: values


def _widening_bytes(dtype: np.dtype[Any]) -> int:
    """Bytes that a widener takes for each element."""
    return 4 if dtype.itemsize < 4 else 0


class _Brains:
    """bfloat16 as float32, exactly."""

    def __init__(self, capacity: int) -> None:
        self._singles = np.empty(capacity, np.float32)

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        singles = self._singles[: values.size]
        np.copyto(singles, values)
        return singles


class _Halves:
    """float16 as float32 scaled by 2**-112, exactly, in three passes of integer arithmetic.

    NumPy converts float16 one by one. Instead the bits are shifted to where float32 has them: what
    comes out is too small by 2**112, the difference of the two exponents' biases, which the sum
    makes good at its end. Subnormals come out as subnormals. NaN and infinity have an exponent of
    their own and are left to NumPy.
    Source: IEEE 754-2019, 3.4 (binary16: 5 exponent bits, bias 15; binary32: 8 bits, bias 127).
    """

    def __init__(self, capacity: int) -> None:
        self._singles = np.empty(capacity, np.float32)

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        singles = self._singles[: values.size]
        halves = values.view(np.int16)
        if not _are_finite_halves(halves):
            np.multiply(values, np.float32(_HALVES_SCALE), out=singles)
            return singles
        bits = singles.view(np.int32)
        np.copyto(bits, halves)  # the sign fills the upper half
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(~0x70000000), out=bits)
        return singles


def _are_finite_halves(halves: NDArray[np.int16]) -> bool:
    """Whether the bits of float16 values, at least one, are those of finite ones.

    Bits of NaN and infinity are the largest of their sign: 0x7C00 and above among the positive
    values, which come last as signed integers, 0xFC00 and above among the negative ones, which come
    last as unsigned.
    """
    return (
        int(np.maximum.reduce(halves)) < 0x7C00
        and int(np.maximum.reduce(halves.view(np.uint16))) < 0xFC00
    )


class _DoubleSum:
    """Sums float64 values as pairs of a float64 and its error."""

    ARRAYS = 11

    def __init__(self, capacity: int, coefficients: Weighting) -> None:
        self._numerators = coefficients.numerators
        total = coefficients.total
        if any(numerator != 1 for numerator in self._numerators):
            # Numerators of 60 bits in front of the point: then no error of a product underflows.
            self._numerators = tuple(n * _HEADROOM for n in self._numerators)
            total *= int(_HEADROOM)
        self._total = float(total)
        self._total_error = float(total - Fraction(self._total))
        self._arrays = np.empty((self.ARRAYS, capacity), np.float64)
        self.start(capacity)

    def start(self, count: int) -> None:
        """See `Accumulator`."""
        sums, self._scratch = self._arrays[:4, :count], self._arrays[4:, :count]
        sums.fill(0)
        self._pair: _Pair = (sums[0], sums[1])
        self._huge_pair: _Pair = (sums[2], sums[3])
        self._finite = True
        self._any_huge = False

    def add(self, values: NDArray[Any], checkpoint: int) -> None:
        """See `Accumulator`."""
        numerator = self._numerators[checkpoint]
        with np.errstate(invalid="ignore", over="ignore"):
            magnitudes = np.abs(values, out=self._scratch[0])
            largest = float(magnitudes.max())
            self._finite &= math.isfinite(largest)
            if largest < _HUGE:
                self._add(self._pair, values, numerator)
                return
            self._any_huge = True
            is_huge = ~(magnitudes < _HUGE)
            part = self._scratch[6]
            np.copyto(part, values)
            part[is_huge] = 0
            self._add(self._pair, part, numerator)
            np.multiply(values, _SCALE, out=part)
            part[~is_huge] = 0
            self._add(self._huge_pair, part, numerator)

    def _add(self, pair: _Pair, values: Doubles, numerator: float) -> None:
        """Adds numerator * values to a pair (Knuth's sum of two numbers, then the errors)."""
        total, added, kept = self._scratch[0], self._scratch[1], self._scratch[4]
        sums, errors = pair
        if numerator != 1:
            values, error = self._product(values, numerator)
            errors += error
        np.add(sums, values, out=total)
        np.subtract(total, sums, out=added)
        np.subtract(total, added, out=kept)
        sums -= kept
        np.subtract(values, added, out=added)
        sums += added
        errors += sums
        sums[...] = total

    def _product(self, values: Doubles, numerator: float) -> tuple[Doubles, Doubles]:
        """Numerator * values and its error, exactly (Dekker)."""
        product, error, high, low = self._scratch[2:6]
        np.multiply(values, numerator, out=product)
        np.multiply(values, _SPLITTER, out=error)
        np.subtract(error, values, out=high)
        np.subtract(error, high, out=high)
        np.subtract(values, high, out=low)
        numerator_high, numerator_low = _split(numerator)
        # error = ((high * nh - product) + high * nl + low * nh) + low * nl
        np.multiply(high, numerator_high, out=error)
        error -= product
        high *= numerator_low
        error += high
        np.multiply(low, numerator_high, out=high)
        error += high
        low *= numerator_low
        error += low
        return product, error

    def all_finite(self) -> bool:
        """See `Accumulator`."""
        return self._finite

    def result(self, out: NDArray[Any]) -> None:
        """See `Accumulator`."""
        with np.errstate(invalid="ignore", over="ignore"):
            quotient = self._quotient(self._pair)
            if self._any_huge:
                mean = quotient.copy()
                mean += self._quotient(self._huge_pair) / _SCALE
                quotient = mean
            round_into(quotient, out)

    def _quotient(self, pair: _Pair) -> Doubles:
        """A pair divided by the total, which is a pair too: a quotient, and its correction."""
        sums, errors = pair
        quotient: Doubles = self._scratch[6]
        np.divide(sums, self._total, out=quotient)
        product, product_error = self._product(quotient, self._total)
        # remainder = (sum - product) - product_error + error - quotient * total_error
        np.subtract(sums, product, out=product)
        product -= product_error
        product += errors
        product -= np.multiply(quotient, self._total_error, out=product_error)
        product /= self._total
        quotient += product
        if not self._finite:  # the error of an infinite sum is NaN, the sum itself says more
            np.copyto(quotient, sums, where=~np.isfinite(sums))
        return quotient


def _split(value: float) -> tuple[float, float]:
    """Halves of 26 bits that sum to `value` exactly (Dekker)."""
    scaled = value * _SPLITTER
    high = scaled - (scaled - value)
    return high, value - high


def round_into(values: Doubles, out: NDArray[Any]) -> None:
    """Rounds float64 values once, to nearest and ties to even, into the dtype of `out`.

    Args:
        values: one-dimensional.
        out: same length, any float dtype; owned by the caller.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if out.dtype.kind == "V":
            for start in range(0, out.size, _BLOCK):
                block = slice(start, start + _BLOCK)
                out[block] = _nearly_rounded(values[block])
        else:
            out[...] = values


def _nearly_rounded(values: Doubles) -> NDArray[np.float32]:
    """The float32 values nearest to `values`, moved off the middle between two bfloat16 values.

    ml_dtypes converts float64 to bfloat16 by way of float32, which would round twice. That goes
    wrong only where the first rounding lands on the very middle between two bfloat16 values and was
    not exact: then the last bit of the float32 is set to what the float64 says, below or above the
    middle. (It is what rounding to odd does everywhere; see Boldo and Melquiond 2005.)
    """
    nearest = values.astype(np.float32)
    bits = nearest.view(np.int32)
    is_wrong = np.left_shift(bits, 16) == _MIDDLE
    is_wrong &= nearest != values
    wrong = np.flatnonzero(is_wrong)
    if wrong.size:
        magnitudes = np.abs(values[wrong])
        rounded = np.abs(nearest[wrong]).astype(np.float64)
        bits[wrong] += np.where(magnitudes > rounded, 1, -1).astype(np.int32)
    return nearest
