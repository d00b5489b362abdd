"""The coefficients of the geometric median of whole checkpoints, from the distances between them.

The geometric median of N vectors x_i with weights a_i (which sum to 1) is the z that makes

    f(z) = sum_i a_i |z - x_i|

least: each checkpoint pulls at it with the same force however far away it is, so one that is far
off moves it no further than any other would. It lies among the x_i, z = sum_i c_i x_i with
c_i >= 0 that sum to 1. So nothing but the pairwise distances D_ij is needed to find the c_i: with
the products of differences from any checkpoint p,

    G_ij = (x_i - x_p) . (x_j - x_p) = (D_pi^2 + D_pj^2 - D_ij^2) / 2
    |z - x_i|^2 = G_ii - 2 (G c)_i + c.(G c)

(For x_p = 0 and written out, that is sum_j c_j D_ij^2 - 1/2 sum_jk c_j c_k D_jk^2.) p is the
checkpoint with the least f, near z, so that no term is much larger than the result even where one
checkpoint is a million times farther off than the others.

1. Is a checkpoint itself a minimum? x_k is one if and only if the others' pull on it,
   R_k = sum_{i: D_ik > 0} a_i (x_i - x_k) / D_ik, is no more than its own weight and that of its
   equals (Vardi and Zhang 2000). If one is, or several are, the result is their weighted mean: all
   minima form a convex set. So equal checkpoints count with their weights, of two checkpoints with
   equal weights the result is the mean, and of an even number on a straight line it is the mean of
   the two in the middle.
2. Else a first step leads from x_p to a point that is better than every checkpoint (Vardi and Zhang
   2000), and then Weiszfeld's iteration, which never makes f larger, to the minimum:

       c_i  <-  (a_i / |z - x_i|) / sum_j (a_j / |z - x_j|)

   No iterate can be at a checkpoint, for there f would be larger. Pillutla et al. (2022, smoothed
   Weiszfeld) need no such start and divide by max(nu, |z - x_i|), nu = 1e-6, instead; a length fit
   for one model may be larger than all distances in another. Here the floor is `FLOOR` times the
   distance from x_p to its nearest neighbour, and is there for rounding errors alone.

It ends when the pull that is left, |g| with g = sum_i a_i (z - x_i) / |z - x_i|, is at most
`TOLERANCE`. As f is convex, f(z) - f(z*) <= |g| |z - z*| <= 2 |g| f(z): the sum of distances is at
most 2 * `TOLERANCE` above the least there is, about what the distances are known to. After
`MOST_ITERATIONS` it ends too, and the result tells how much above it may be.

A checkpoint that is 1e8 times farther off than the others are from each other leaves no digits of
the angles towards it; its influence is bounded all the same.

Sources: E. Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnes est
minimum", Tohoku Math. J. 43, 1937; Y. Vardi and C.-H. Zhang, "The multivariate L1-median and
associated data depth", PNAS 97, 2000; K. Pillutla, S. M. Kakade and Z. Harchaoui, "Robust
Aggregation for Federated Learning", IEEE Trans. Signal Processing 70, 2022 (RFA; the a_i are their
alphas, such as the sample counts of clients).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamavg.coefficients import Coefficients

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

TOLERANCE = 1e-8
MOST_ITERATIONS = 10_000
FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class FoundMedian:
    """The coefficients, and how they were found."""

    coefficients: Coefficients
    """One per checkpoint."""
    iterations: int
    """0 where checkpoints themselves are minima."""
    excess: float
    """By how much, at most, the sum of distances is above the least there is; a share of it."""

    @property
    def is_converged(self) -> bool:
        """Whether it ended for `TOLERANCE`, not for `MOST_ITERATIONS`."""
        return self.excess <= 2 * TOLERANCE


def geometric_median(squared_distances: Doubles, weights: Coefficients) -> FoundMedian:
    """The geometric median of N checkpoints as their convex combination.

    Args:
        squared_distances: of each pair. Shape (N, N), symmetric, diagonal 0; of equal checkpoints
            exactly 0. In the square of any unit. Read, not kept.
        weights: a_i, one per checkpoint. A checkpoint of weight 0 gets coefficient 0.

    Memory: some six matrices of N * N float64.
    """
    given = np.array(weights.values)
    counted = np.flatnonzero(given)
    among = squared_distances[np.ix_(counted, counted)]
    largest = among.max()
    if largest > 0:  # a power of two, so that no square overflows or vanishes and no digit changes
        among = among * 2.0 ** -float(np.frexp(largest)[1])
    found, iterations, excess = _minimum(among, given[counted] / given.sum())
    numerators = np.zeros(len(given))
    numerators[counted] = found
    return FoundMedian(Coefficients(tuple(numerators.tolist())), iterations, excess)


def _minimum(squared_distances: Doubles, weights: Doubles) -> tuple[Doubles, int, float]:
    """Coefficients of the minimum, the number of iterations, and the excess."""
    distances = np.sqrt(squared_distances)
    objectives = distances @ weights
    best = np.flatnonzero(objectives <= objectives.min() * (1 + TOLERANCE))
    minima = [k for k in best.tolist() if _pull(squared_distances, distances, weights, k)[0] <= 0]
    if minima:
        chosen = np.zeros_like(weights)
        chosen[minima] = weights[minima]
        return chosen / chosen.sum(), 0, 2 * TOLERANCE
    start = int(objectives.argmin())
    products = _products(squared_distances, distances, start)
    pull = _pull(squared_distances, distances, weights, start)
    found = _first_step(distances, weights, start, pull)
    nearest = distances[start][distances[start] > 0].min()
    return _iterated(products, found, weights, FLOOR * float(nearest))


def _products(squared_distances: Doubles, distances: Doubles, origin: int) -> Doubles:
    """Products of the differences from a checkpoint; as Cauchy and Schwarz allow, if rounded."""
    of_origin = squared_distances[origin]
    products = (of_origin[:, None] + of_origin[None, :] - squared_distances) / 2
    most = np.multiply.outer(distances[origin], distances[origin])
    clipped: Doubles = np.clip(products, -most, most)
    return clipped


def _pull(
    squared_distances: Doubles, distances: Doubles, weights: Doubles, k: int
) -> tuple[float, float]:
    """What is left of the others' pull on checkpoint k beside the weight there, and that weight.

    At most 0 (up to the tolerance) if the checkpoint is a minimum.
    """
    apart = distances[k] > 0
    weight = float(weights[~apart].sum())
    forces = weights[apart] / distances[k][apart]
    products = _products(squared_distances, distances, k)[np.ix_(apart, apart)]
    strength = float(np.sqrt(max(0.0, forces @ products @ forces)))
    return strength - weight - TOLERANCE, weight


def _first_step(distances: Doubles, weights: Doubles, k: int, pull: tuple[float, float]) -> Doubles:
    """From checkpoint k, which is no minimum, towards the weighted mean of the others.

    The mean has the weights a_i / D_ik; the step is shortened by the weight of k divided by the
    others' pull on it.
    """
    rest, weight = pull
    apart = distances[k] > 0
    towards = np.zeros_like(weights)
    towards[apart] = weights[apart] / distances[k][apart]
    towards /= towards.sum()
    stays = weight / (rest + weight + TOLERANCE)
    found = (1 - stays) * towards
    found[k] += stays
    return found


def _iterated(
    products: Doubles, found: Doubles, weights: Doubles, floor: float
) -> tuple[Doubles, int, float]:
    """Weiszfeld's iteration from the coefficients `found`."""
    squares, iteration = products.diagonal(), 0
    while True:
        combined = products @ found
        squared = squares - 2 * combined + found @ combined
        forces = weights / np.sqrt(np.maximum(squared, floor**2))
        strength = forces.sum()
        improved = forces / strength
        step = improved - found
        left = float(strength * np.sqrt(max(0.0, step @ products @ step)))
        if left <= TOLERANCE or iteration == MOST_ITERATIONS:
            return found, iteration, 2 * max(TOLERANCE, left)
        found, iteration = improved, iteration + 1
