"""Spherical linear interpolation (slerp) between two checkpoints, variable by variable.

Each variable, flattened, is one vector. With Omega the angle between the vectors a and b of the two
checkpoints, and t from 0 at a to 1 at b:

    slerp(a, b; t) = sin((1 - t) Omega) / sin(Omega) * a + sin(t Omega) / sin(Omega) * b

On the way from one to the other the direction turns evenly, and vectors of equal length keep it,
where the mean of two vectors is shorter than both. What a and b are multiplied with are *factors*,
not coefficients: they do not sum to 1. Vectors of different lengths are not normalised first, as in
mergekit; where the angle is not obtuse, the length of the result is between theirs.

The angle comes from the norms and the distance D of the vectors, which keeps small angles where a
cosine rounds to 1 (after W. Kahan, "How Futile are Mindless Assessments of Roundoff in
Floating-Point Computation", 2006):

    Omega = 2 atan2( sqrt(D^2 - (|a| - |b|)^2), sqrt((|a| + |b|)^2 - D^2) )

Norms and distances have relative errors below 1e-8 (`streamavg.distances`; 1e-11 is usual), so the
factors have about as much, divided by how far the angle is from 180 degrees, in radians.

Interpolation is linear, with t and 1 - t,

- where the angle is below `PARALLEL`: there sin(t Omega) / sin(Omega), which is
  t (1 + (1 - t^2) Omega^2 / 6 + ...), is t in all digits, so nothing jumps;
- where a vector is zero, which has no direction;
- where the angle is within `OPPOSITE` of 180 degrees: each half circle is then as good a way as any
  other, and the rounding of the values would decide. The caller should say so. (Variables of one
  element are always parallel or opposite.)

Source: K. Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamavg.coefficients import Coefficients, Factors

PARALLEL = 2.0**-27
"""Radians; the square of it vanishes beside 1."""
OPPOSITE = 1e-3
"""Radians; factors reach 1 / OPPOSITE there, and so does the error of the values."""


@dataclass(frozen=True, slots=True)
class Interpolation:
    """How one variable is interpolated."""

    factors: Factors | None
    """One per checkpoint; None for linear interpolation, with the coefficients."""
    degrees: float | None
    """The angle; None if a vector is zero."""

    @property
    def is_opposite(self) -> bool:
        """Whether it is linear because the vectors point in opposite directions."""
        return self.factors is None and self.degrees is not None and self.degrees > 90


def interpolate(
    squared_norms: tuple[float, float], squared_distance: float, coefficients: Coefficients
) -> Interpolation:
    """The factors for one variable.

    Args:
        squared_norms: of the two vectors, in the square of any unit.
        squared_distance: between them, in the same unit.
        coefficients: 1 - t and t.
    """
    if min(squared_norms) == 0:
        return Interpolation(None, None)
    first, second = map(math.sqrt, squared_norms)
    angle = 2 * math.atan2(
        math.sqrt(max(0.0, squared_distance - (first - second) ** 2)),
        math.sqrt(max(0.0, (first + second) ** 2 - squared_distance)),
    )
    degrees = math.degrees(angle)
    if angle < PARALLEL or math.pi - angle < OPPOSITE:
        return Interpolation(None, degrees)
    sine = math.sin(angle)
    shares = (math.sin(share * angle) / sine for share in coefficients.values)
    return Interpolation(Factors(tuple(shares)), degrees)
