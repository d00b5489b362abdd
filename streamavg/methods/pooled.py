"""The pooled variance of groups of which each has a mean and a variance.

A BatchNormalization layer keeps the mean m_i and the variance v_i of what passed through it. If the
checkpoints stand for groups that make up shares c_i of all samples, then by the law of total
variance the whole has

    mean      m = sum_i c_i m_i
    variance  v = sum_i c_i v_i + sum_i c_i (m_i - m)^2

A plain mean of the variances leaves out the second sum: that the means differ. It is gathered here
as the means come, without cancellation (T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979, with weights for counts):
with W the weight of the groups so far,

    S  <-  S + w_i W / (W + w_i) * (m_i - m)^2        m  <-  m + w_i / (W + w_i) * (m_i - m)

and v = sum c_i v_i + S / W at the end. All terms are positive, so before the one rounding of the
result the relative error is below (4 N + 4) * 2**-53.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.methods.mean import Mean, round_into

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamavg.coefficients import Weighting

_DOUBLES = 4
"""Arrays of float64 for the means: their mean, their spread, what is added, a temporary."""


@dataclass(frozen=True, slots=True)
class PooledVariance:
    """Takes slabs of which the first half are means, and the second half their variances.

    The result is half as long: the pooled variances. An accumulator is as those of any method.
    """

    name: str = "pooled"

    def bytes_per_element(self, dtype: np.dtype[Any], output: np.dtype[Any], count: int) -> int:
        """See `Method`."""
        of_mean = Mean().bytes_per_element(dtype, output, count)
        return -(-(of_mean + 8 * (_DOUBLES + 2)) // 2)

    def accumulator(
        self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting
    ) -> _PooledVariances:
        """See `Method`."""
        return _PooledVariances(dtype, capacity, coefficients)


class _PooledVariances:
    def __init__(self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting) -> None:
        self._weights = coefficients.numerators
        self._variances = Mean().accumulator(dtype, capacity // 2, coefficients)
        self._doubles = np.empty((_DOUBLES, capacity // 2))
        self.start(capacity)

    def start(self, count: int) -> None:
        """See `Accumulator`."""
        self._half = count // 2
        self._variances.start(self._half)
        self._mean, self._spread, self._apart, self._scratch = self._doubles[:, : self._half]
        self._mean.fill(0)
        self._spread.fill(0)
        self._weight = 0.0
        self._finite = True

    def add(self, values: NDArray[Any], checkpoint: int) -> None:
        """See `Accumulator`."""
        means, variances = values[: self._half], values[self._half :]
        self._variances.add(variances, checkpoint)
        weight = self._weights[checkpoint]
        total = self._weight + weight
        with np.errstate(invalid="ignore", over="ignore"):
            np.copyto(self._apart, means)
            self._finite &= bool(np.isfinite(self._apart).all())
            self._apart -= self._mean
            share = weight / total if total else 0.0
            np.multiply(self._apart, self._apart, out=self._scratch)
            self._scratch *= share * self._weight
            self._spread += self._scratch
            self._apart *= share
            self._mean += self._apart
        self._weight = total

    def all_finite(self) -> bool:
        """See `Accumulator`."""
        return self._finite and self._variances.all_finite()

    def result(self, out: NDArray[Any]) -> None:
        """See `Accumulator`; `out` is half as long as the slab."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._variances.result(self._scratch)
            self._spread /= self._weight
            self._scratch += self._spread
            round_into(self._scratch, out)
