"""Errors of averaged values, in ULP of the exact mean, merged through the real command line.

The exact mean is rational arithmetic on the values as the files hold them and, if it is weighted,
on the weights as the command line gets them. An error of 0.5 ULP is what the one rounding at the
end may cost. What is promised: 0.5 ULP and, before rounding, what float64 sums can be off by,
(N + 2) * 2**-53 * sum(c_i * |x_i|); for float64, which is summed in pairs of float64,
N * 2**-100 * sum(c_i * |x_i|).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import contenders, measuring
from benchmarks.checks import SIGNIFICANT_BITS, SMALLEST_EXPONENT, reader
from benchmarks.contenders import increasing_weights
from benchmarks.inputs import Model, build, given_values, numpy_dtype
from benchmarks.results import DONE, Accuracy
from benchmarks.rounds import CommandFailedError, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.results import Report

DTYPES = ("float16", "bfloat16", "float32", "float64")
WIDTH = 64
SEED = 53


@dataclass(frozen=True, slots=True)
class Case:
    """Values that are averaged."""

    name: str
    checkpoints: int
    cancels: bool = False
    """Whether large values of both signs cancel, and leave a small one."""

    @property
    def weights(self) -> tuple[float, ...]:
        """For the weighted mean; with these, too, what is to cancel does."""
        return (0.25, 0.25, 0.5) if self.cancels else increasing_weights(self.checkpoints)


CASES = (
    Case("normal random values", 8),
    Case("many checkpoints", 200),
    Case("cancellation: (1e8, -1e8, 1); 5e3 in float16", 3, cancels=True),
)


def measure_accuracy(folder: Path, report: Report, sampled: int) -> None:
    """Merges every case in every dtype, and adds the errors to the report.

    Args:
        folder: takes the checkpoints.
        report: takes the errors.
        sampled: how many elements are compared.
    """
    for case in CASES:
        for dtype in DTYPES:
            model = Model(1, WIDTH, dtype)
            values = make_values(case, model)
            paths = [folder / f"accuracy-{n:03}.weights.h5" for n in range(case.checkpoints)]
            build(paths, model, [given_values(arrays) for arrays in values])
            for weights in (None, case.weights):
                kind = "uniform" if weights is None else "weighted"
                say(f"accuracy, {case.name}, {dtype}, {kind}")
                merged = merged_values(paths, model, weights, folder)
                stacked = np.stack([flat(arrays, model) for arrays in values])
                report.accuracy.append(errors(case, dtype, weights, stacked, merged, sampled))
            for path in paths:
                path.unlink()


def make_values(case: Case, model: Model) -> list[dict[str, NDArray[Any]]]:
    """The arrays of each checkpoint of a case, by the path of their variable."""
    generator = np.random.default_rng(SEED)
    dtype = numpy_dtype(model.dtype)
    large = 5e3 if model.dtype == "float16" else 1e8
    checkpoints = []
    for number in range(case.checkpoints):
        arrays = {}
        for variable in model.variables:
            values = generator.standard_normal(variable.shape)
            if case.cancels:
                values = np.full(variable.shape, (large, -large, 1.0)[number])
                # Not the same in every element, and still the large ones cancel exactly.
                values *= 1 + np.arange(variable.size).reshape(variable.shape) % 7
            arrays[variable.native_path] = values.astype(dtype)
        checkpoints.append(arrays)
    return checkpoints


def flat(arrays: dict[str, NDArray[Any]], model: Model) -> NDArray[Any]:
    """All values of a checkpoint in one array."""
    return np.concatenate([arrays[v.native_path].reshape(-1) for v in model.variables])


def merged_values(
    paths: Sequence[Path], model: Model, weights: tuple[float, ...] | None, folder: Path
) -> NDArray[Any]:
    """All values of the average, made by the command line."""
    contender = contenders.merge("accuracy", [p.name for p in paths], weights=weights)
    process = measuring.run(contender.command, folder)
    if process.outcome != DONE:
        raise CommandFailedError(f"{contender.name}: {process.outcome}: {process.message}")
    output = folder / (contender.output or "")
    with reader(output, model) as read:
        arrays = {v.native_path: read(v, slice(None)) for v in model.variables}
    output.unlink()
    return flat(arrays, model)


def errors(
    case: Case,
    dtype: str,
    weights: tuple[float, ...] | None,
    stacked: NDArray[Any],
    merged: NDArray[Any],
    sampled: int,
) -> Accuracy:
    """Compares evenly spread elements with their exact mean.

    Args:
        case: what the values are.
        dtype: of the values.
        weights: as given to the command line; None for a uniform mean.
        stacked: values of the checkpoints, shape (checkpoints, elements).
        merged: values of their average.
        sampled: how many elements are compared.
    """
    chosen = np.linspace(0, merged.size - 1, min(sampled, merged.size)).astype(int)
    coefficients = [Fraction(1)] * len(stacked) if weights is None else list(map(Fraction, weights))
    total = sum(coefficients, Fraction(0))
    naive = naive_mean(stacked, weights)
    found, naive_found, bounds = [], [], []
    for element in chosen:
        values = [Fraction(float(value)) for value in stacked[:, element]]
        products = [c * x for c, x in zip(coefficients, values, strict=True)]
        exact = sum(products, Fraction(0)) / total
        magnitude = sum(map(abs, products), Fraction(0)) / total
        unit = ulp(exact, dtype)
        found.append(error_in_ulp(merged[element], exact, unit))
        naive_found.append(error_in_ulp(naive[element], exact, unit))
        bounds.append(float(Fraction(1, 2) + summing_error(len(values), dtype) * magnitude / unit))
    return Accuracy(
        case.name,
        dtype,
        len(stacked),
        weights is not None,
        len(chosen),
        max(found),
        statistics.fmean(found),
        max(bounds),
        max(naive_found),
    )


def naive_mean(stacked: NDArray[Any], weights: tuple[float, ...] | None) -> NDArray[Any]:
    """The mean with all arithmetic in the dtype of the values, one checkpoint after the other."""
    dtype = stacked.dtype
    coefficients = [1.0] * len(stacked) if weights is None else list(weights)
    total: NDArray[Any] = np.zeros(stacked.shape[1:], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for coefficient, values in zip(coefficients, stacked, strict=True):
            total = total + values * dtype.type(coefficient)
        return np.asarray(total / dtype.type(sum(coefficients)))


def summing_error(count: int, dtype: str) -> Fraction:
    """What a mean may be off by before it is rounded, relative to sum(c_i * |x_i|)."""
    return Fraction(count, 2**100) if dtype == "float64" else Fraction(count + 2, 2**53)


def ulp(exact: Fraction, dtype: str) -> Fraction:
    """The distance of neighbouring numbers of a dtype around a rational number."""
    smallest = SMALLEST_EXPONENT[dtype]
    if exact == 0:
        return Fraction(2) ** smallest
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1  # now 2**exponent <= magnitude < 2**(exponent + 1)
    return Fraction(2) ** max(exponent + 1 - SIGNIFICANT_BITS[dtype], smallest)


def error_in_ulp(value: Any, exact: Fraction, unit: Fraction) -> float:
    """How far a value is from the exact one; infinite for one that is not finite."""
    number = float(value)
    if not np.isfinite(number):
        return float("inf")
    return float(abs(Fraction(number) - exact) / unit)
