"""The elementwise trimmed mean: without the lowest and the highest values.

Of N values, floor(trim * N) are dropped at each end and the mean of the others is taken, summed as
`methods/mean.py` does, from the lowest to the highest. `trim` counts as the decimal number that it
is written as: 0.29 of 100 values are 29, though the nearest float is a little less.

NaN in any checkpoint gives NaN. Infinities are values like others, and may be dropped.

Source: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", 2018, definition 2 (beta-trimmed mean, beta below 1/2, of each
coordinate of the workers' values); `scipy.stats.trim_mean` for rounding the count down.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.coefficients import coefficients_for
from streamavg.errors import OptionError
from streamavg.methods.mean import Mean
from streamavg.methods.ranking import BLOCKS, Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamavg.coefficients import Weighting

DEFAULT_TRIM = 0.1


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The elementwise trimmed mean.

    Raises:
        OptionError: `trim` is not at least 0 and less than 0.5.
    """

    trim: float = DEFAULT_TRIM
    """Share of the values that is dropped at each end."""
    name: str = "trimmed-mean"

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise OptionError(
                f"--trim {self.trim:g}: expected a share of at least 0 and less than 0.5, such "
                "as 0.1. --method median takes what is left in the middle."
            )

    def dropped(self, count: int) -> int:
        """How many of `count` values are dropped at each end; at least one value is left."""
        return int(Fraction(repr(float(self.trim))) * count)

    def summary(self, count: int) -> str:
        """See `Method`."""
        dropped = self.dropped(count)
        if not dropped:
            return f"drops none of {count} values: --trim {self.trim:g} of them is less than one"
        low, high = (f"the {dropped} {end}" if dropped > 1 else f"the {end}"
                     for end in ("lowest", "highest"))  # fmt: skip
        return f"drops {low} and {high} of {count} values"

    def bytes_per_element(self, dtype: np.dtype[Any], output: np.dtype[Any], count: int) -> int:
        """See `Method`."""
        rows = 2 * count * dtype.itemsize
        block = rows + Mean().bytes_per_element(dtype, output, count) + 4
        return Ranking.bytes_per_element(dtype, count) + -(-block // BLOCKS)

    def accumulator(self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting) -> _Kept:
        """See `Method`. The coefficients tell no more than how many checkpoints there are."""
        count = len(coefficients.numerators)
        return _Kept(dtype, capacity, count, self.dropped(count))


class _Kept(Ranking):
    """Averages what is left of a slab's values."""

    def __init__(self, dtype: np.dtype[Any], capacity: int, checkpoints: int, dropped: int) -> None:
        super().__init__(dtype, capacity, checkpoints)
        self._kept = slice(dropped, checkpoints - dropped)
        uniform = coefficients_for(checkpoints - 2 * dropped)
        self._mean = Mean().accumulator(dtype, self.block_elements, uniform)

    def result(self, out: NDArray[Any]) -> None:
        """See `Accumulator`."""
        for part, block in self.blocks():
            self._mean.start(part.stop - part.start)
            for rank, values in enumerate(self.values(block[:, self._kept])):
                self._mean.add(values, rank)
            self._mean.result(out[part])
            if not self.all_finite():
                out[part][self.with_nan(block)] = np.nan
