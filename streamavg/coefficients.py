"""With which coefficients checkpoints are averaged.

"Weights" is the word users know from `numpy.average`; inside the program they are numerators of
coefficients from here on: coefficient i is numerator i divided by the sum of all numerators.
Keeping the sum apart keeps a uniform mean exact until its single division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from streamavg.errors import CoefficientError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUM_TOLERANCE = 1e-6 * (1 + 1e-6)
"""How far a sum of weights may be from 1; a little wide, so that 0.999999 is within 1e-6."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One coefficient per checkpoint; they sum to 1. Unitless."""

    numerators: tuple[float, ...]
    """Finite, none negative, not all zero."""

    @property
    def total(self) -> Fraction:
        """Exact sum of the numerators."""
        return sum(map(Fraction, self.numerators), Fraction(0))

    @property
    def values(self) -> tuple[float, ...]:
        """The coefficients, each rounded once to a float."""
        total = self.total
        return tuple(float(Fraction(numerator) / total) for numerator in self.numerators)


@dataclass(frozen=True, slots=True)
class Factors:
    """What the values of each checkpoint are multiplied with where it does not sum to 1. Unitless.

    Methods that sum take them in place of coefficients: their numerators are divided by 1.
    """

    numerators: tuple[float, ...]
    """Finite, none negative."""

    @property
    def total(self) -> Fraction:
        """What the sum of the products is divided by."""
        return Fraction(1)


Weighting = Coefficients | Factors
"""What a sum multiplies the values of each checkpoint with."""


def coefficients_for(
    count: int, weights: Sequence[float] | None = None, *, normalize: bool = False
) -> Coefficients:
    """Turns the user's weights into coefficients.

    With `normalize`, sample counts of federated clients give the mean of McMahan et al.,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017 (FedAvg),
    algorithm 1: coefficient k is n_k / n.

    Args:
        count: number of checkpoints.
        weights: one per checkpoint; None for a uniform mean.
        normalize: whether weights that do not sum to 1 (sample counts, say) are scaled so.

    Raises:
        CoefficientError: not one weight per checkpoint, a negative or non-finite weight, a sum
            other than 1 without `normalize`, or a sum of 0.
    """
    if weights is None:
        return Coefficients((1.0,) * count)
    try:
        numerators = tuple(map(float, weights))
    except (TypeError, ValueError):
        raise CoefficientError(f"--weights: {weights!r} are not numbers.") from None
    if len(numerators) != count:
        raise CoefficientError(
            f"--weights: {len(numerators)} weights for {count} checkpoints. Give one for each."
        )
    for number, weight in enumerate(numerators, 1):
        if not math.isfinite(weight) or weight < 0:
            raise CoefficientError(
                f"--weights: weight {number} is {weight!r}. Weights are finite and not negative."
            )
    total = math.fsum(numerators) if all(n < 1e300 for n in numerators) else math.inf
    if not math.isfinite(total):
        raise CoefficientError("--weights: the weights are too large to be summed.")
    if total == 0:
        raise CoefficientError("--weights: all weights are 0. At least one must be more.")
    if not normalize and abs(total - 1) > SUM_TOLERANCE:
        raise CoefficientError(
            f"--weights: the weights sum to {total:.9g}, not 1. "
            "Add --normalize to divide them by their sum."
        )
    # A power of two changes no digit, and keeps later products far from overflow.
    scale = -math.frexp(total)[1]
    return Coefficients(tuple(math.ldexp(numerator, scale) for numerator in numerators))


def softmax_coefficients(
    scores: Sequence[float], temperature: float, *, maximize: bool
) -> Coefficients:
    """Heavier coefficients for better scores.

        c_i = exp(s_i / T) / sum_j exp(s_j / T),   s_i = score_i, or -score_i where less is better

    T has the unit of the scores: a checkpoint whose score is worse by T than another's weighs
    1/e, some 37 %, of it. A large T approaches the uniform mean, a small one the best checkpoint
    alone. The numerators are exp((s_i - max s) / T): the quotients are the same, and nothing
    overflows; one that underflows is 0.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    equation 1 (the softmax with a temperature).

    Args:
        scores: finite, one per checkpoint, in whatever unit the metric has.
        temperature: T, in the same unit.
        maximize: whether more is better.

    Raises:
        CoefficientError: a temperature that is not positive and finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise CoefficientError(
            f"--softmax {temperature:g}: expected a temperature of more than 0, in the unit of "
            "the scores."
        )
    signed = [score if maximize else -score for score in scores]
    best = max(signed)
    return Coefficients(tuple(math.exp((score - best) / temperature) for score in signed))


def ema_coefficients(count: int, decay: float) -> Coefficients:
    """Coefficients of the exponential moving average of checkpoints, oldest first.

    The textbook recurrence with decay D, started at the first checkpoint:

        average_1 = x_1
        average_t = D * average_{t-1} + (1 - D) * x_t        for t = 2..N

    Unrolled from the end, x_N enters with 1 - D, x_{N-1} with D * (1 - D), and so on; what is
    left at the beginning is D^(N-1) * average_1:

        average_N = D^(N-1) * x_1 + sum_{t=2..N} (1 - D) * D^(N-t) * x_t

    These coefficients sum to 1, because (1 - D) * (1 + D + ... + D^(N-2)) = 1 - D^(N-1). So the
    moving average is a mean with these coefficients, and is rounded once, not once a step. Each
    numerator is within 2 ULP of its formula; one that underflows is 0.

    Source: the recurrence is that of TensorFlow's `tf.train.ExponentialMovingAverage`, whose
    shadow variables start at the variables' first values, and of Tarvainen and Valpola, "Mean
    teachers are better role models", 2017, section 2.

    Args:
        count: number of checkpoints, N.
        decay: D, how much of the average is kept at each checkpoint.

    Raises:
        CoefficientError: a decay that is not between 0 and 1; at either end, all but one
            checkpoint would be ignored.
    """
    if not 0 < decay < 1:
        raise CoefficientError(
            f"--decay {decay:g}: expected a number between 0 and 1, such as 0.9."
        )
    later = ((1 - decay) * decay ** (count - t) for t in range(2, count + 1))
    return Coefficients((decay ** (count - 1), *later))
