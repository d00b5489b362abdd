"""The elementwise median: the middle value, or the mean of the two in the middle.

The mean of two values is (a + b) / 2 in float64, or a / 2 + b / 2 where the sum overflows; both
halves are exact there. It is then rounded to the dtype of the result. For float16, bfloat16 and
float32 that gives the nearest value to the exact mean in the same dtype, because float64 has more
than twice their digits and two more (Figueroa, "When is double rounding innocuous?", 1995); for
float64 the sum is the one rounding.

NaN in any checkpoint gives NaN, as in `numpy.median`. Infinities are values like others: the
median is finite if less than half of the values are infinite.

Source: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", 2018, definition 1 (coordinate-wise median of the workers' values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.methods.mean import round_into
from streamavg.methods.ranking import BLOCKS, Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamavg.coefficients import Weighting

_TEMPORARY_BYTES = 64
"""For each element of a block: two values as keys, bits and float64, their mean, its rounding."""


@dataclass(frozen=True, slots=True)
class Median:
    """The elementwise median."""

    name: str = "median"

    def summary(self, count: int) -> str:
        """See `Method`."""
        if count % 2:
            return f"takes the middle one of {count} values"
        return f"takes the mean of the two in the middle of {count} values"

    def bytes_per_element(self, dtype: np.dtype[Any], output: np.dtype[Any], count: int) -> int:
        """See `Method`."""
        return Ranking.bytes_per_element(dtype, count) + _TEMPORARY_BYTES // BLOCKS

    def accumulator(self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting) -> _Middle:
        """See `Method`. The coefficients tell no more than how many checkpoints there are."""
        return _Middle(dtype, capacity, len(coefficients.numerators))


class _Middle(Ranking):
    """Takes the middle of a slab's values."""

    def __init__(self, dtype: np.dtype[Any], capacity: int, checkpoints: int) -> None:
        super().__init__(dtype, capacity, checkpoints)
        self._middle = slice((checkpoints - 1) // 2, checkpoints // 2 + 1)

    def result(self, out: NDArray[Any]) -> None:
        """See `Accumulator`."""
        with np.errstate(invalid="ignore", over="ignore"):
            for part, block in self.blocks():
                middle = self.values(block[:, self._middle]).astype(np.float64)
                low, high = middle[0], middle[-1]
                median = (low + high) * 0.5
                if self.dtype == np.float64:
                    overflowed = np.isinf(median)
                    if overflowed.any():
                        np.copyto(median, low * 0.5 + high * 0.5, where=overflowed)
                if not self.all_finite():
                    median[self.with_nan(block)] = np.nan
                round_into(median, out[part])
