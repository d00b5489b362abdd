"""Which checkpoints are averaged, and with which coefficients.

"Weights" is the word users know from `numpy.average`; inside the program they are numerators of
coefficients from here on: coefficient i is numerator i divided by the sum of all numerators.
Keeping the sum apart keeps a uniform mean exact until its single division.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from streamavg.errors import CoefficientError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


def coefficients_for(
    count: int, weights: Sequence[float] | None = None, *, normalize: bool = False
) -> Coefficients:
    """Turns the user's weights into coefficients.

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


def select_paths(paths: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """The checkpoints to merge, in the order given.

    Raises:
        OptionError: fewer than two, or the same file twice.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise OptionError(f"{paths!r} is one path; give a list of at least two.")
    selected = tuple(Path(path) for path in paths)
    if len(selected) < 2:
        raise OptionError(
            f"a merge or comparison needs at least two checkpoints, {len(selected)} given. "
            "Name more files, or check that the pattern matches them."
        )
    first_of: dict[object, Path] = {}
    for path in selected:
        first = first_of.setdefault(_identity(path), path)
        if first is not path:
            raise OptionError(
                f"{path}: is the same file as {first}. Name each checkpoint once; "
                "to count one more than others in a merge, use --weights."
            )
    return selected


def _identity(path: Path) -> object:
    """What two names of one file have in common, links of both kinds included."""
    try:
        stat = path.stat()
    except OSError:  # what is wrong with it is said when it is opened
        return path.resolve()
    return stat.st_dev, stat.st_ino


def select_reference(selected: Sequence[Path], reference: str | os.PathLike[str] | None) -> Path:
    """The checkpoint whose structure the output takes: the one named, or the first.

    Raises:
        OptionError: it is not one of the checkpoints.
    """
    if reference is None:
        return selected[0]
    for path in selected:
        if _identity(path) == _identity(Path(reference)):
            return path
    raise OptionError(f"--reference: {reference} is not one of the checkpoints to merge.")
