"""Errors are measured exactly."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from benchmarks.accuracy import CASES, Case, error_in_ulp, errors, make_values, ulp
from benchmarks.inputs import Model, numpy_dtype

from tests import oracle

DTYPES = ("float16", "bfloat16", "float32", "float64")
CASE = Case("case", 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ulp_of_a_rational_number_is_the_distance_of_its_neighbours(dtype):
    smallest = float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_subnormal)
    numbers = [Fraction(1), Fraction(2) - Fraction(1, 10**30), Fraction(2), Fraction(1, 3)]
    numbers += [Fraction(-10), Fraction(smallest), Fraction(0)]
    for number in numbers:
        assert ulp(number, dtype) == oracle.ulp(number, numpy_dtype(dtype))


def test_the_error_of_the_nearest_number_is_at_most_half_an_ulp():
    third = Fraction(1, 3)
    nearest, next_to_it = np.float32(1 / 3), np.nextafter(np.float32(1 / 3), np.float32(1))
    assert error_in_ulp(nearest, third, ulp(third, "float32")) < 0.5
    assert 0.5 < error_in_ulp(next_to_it, third, ulp(third, "float32")) < 1.5
    assert error_in_ulp(np.float32("nan"), third, ulp(third, "float32")) == float("inf")


@pytest.mark.parametrize("weights", [None, (0.25, 0.75)])
def test_a_right_mean_keeps_its_bound_and_a_wrong_one_does_not(weights):
    generator = np.random.default_rng(7)
    stacked = generator.uniform(1, 2, (2, 50)).astype(np.float32)
    mean = np.average(stacked.astype(np.float64), axis=0, weights=weights).astype(np.float32)
    right = errors(CASE, "float32", weights, stacked, mean, 50)
    assert right.largest <= right.bound == pytest.approx(0.5, abs=1e-6)
    assert right.values == 50
    wrong = errors(CASE, "float32", weights, stacked, np.nextafter(mean, np.float32(9)), 50)
    assert wrong.largest > wrong.bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_to_cancel_cancels(dtype):
    [case] = [case for case in CASES if case.cancels]
    model = Model(1, 8, dtype)
    first, second, third = make_values(case, model)
    for path, values in first.items():
        assert np.isfinite(values.astype(np.float64)).all()
        assert (values == -second[path]).all()
        assert (np.abs(values) > np.abs(third[path])).all()
    assert case.weights[0] == case.weights[1]
