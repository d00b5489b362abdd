from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from streamavg.coefficients import Factors, coefficients_for
from streamavg.methods.mean import Mean, round_into
from tests.contracts.accumulating import DTYPES, AccumulatorContract, combine
from tests.oracle import BFLOAT16, exact_mean, rounded, ulp

HALF_ULP = Fraction(1, 2)
UNIT = Fraction(1, 2**53)
WEIGHTS = {
    "uniform": lambda count: None,
    "sample counts": lambda count: [1 + index * 37 % 101 for index in range(count)],
    "tenths": lambda count: [0.1 * (1 + index % 7) for index in range(count)],
}


class TestMean(AccumulatorContract):
    method = Mean()


def bound(arrays, weights, exact, dtype, index):
    """The largest error that the docstring of streamavg.methods.mean allows."""
    numerators = coefficients_for(len(arrays), weights, normalize=True).numerators
    total = sum(map(Fraction, numerators))
    size = sum(
        Fraction(n) * abs(Fraction(float(a[index])))
        for n, a in zip(numerators, arrays, strict=True)
    )
    count = len(arrays)
    before = count * Fraction(1, 2**100) if dtype == np.float64 else (count + 1) * UNIT
    return before * size / total + HALF_ULP * ulp(exact, dtype) * (1 + UNIT)


def assert_accurate(arrays, weights=None):
    """Compares with the rational mean, weights taken as the scaled numerators that are used."""
    result, finite = combine(Mean(), arrays, weights)
    assert finite
    numerators = coefficients_for(len(arrays), weights, normalize=True).numerators
    dtype = result.dtype
    for index, exact in enumerate(exact_mean(arrays, numerators)):
        error = abs(Fraction(float(result[index])) - exact)
        assert error <= bound(arrays, weights, exact, dtype, index), (index, float(exact))


def any_values(dtype, count, size=200):
    """Values of all magnitudes that the dtype has, subnormal ones included (but of float64)."""
    generator = np.random.default_rng(count)
    info = ml_dtypes.finfo(dtype)
    low = -800 if dtype == np.float64 else info.minexp - info.nmant
    high = info.maxexp - 8
    exponents = generator.integers(low, high, size)
    with np.errstate(over="ignore", under="ignore"):
        return [
            np.ldexp(generator.uniform(-1, 1, size), exponents + generator.integers(-2, 3, size))
            .astype(dtype)
            for _ in range(count)
        ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, 10, 200])
def test_the_mean_is_as_accurate_as_promised(dtype, weights, count):
    size = 20 if count == 200 else 200
    assert_accurate(any_values(dtype, count, size), WEIGHTS[weights](count))


@pytest.mark.parametrize("count", [2, 3, 5, 7, 100])
def test_a_uniform_float32_mean_is_within_half_an_ulp_and_a_billionth(count):
    generator = np.random.default_rng(count)
    arrays = [generator.normal(size=300).astype(np.float32) for _ in range(count)]
    result, _ = combine(Mean(), arrays)
    for value, exact in zip(result, exact_mean(arrays), strict=True):
        assert abs(Fraction(float(value)) - exact) <= ulp(exact, np.float32) * (
            HALF_ULP + Fraction(1, 10**9)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_values_that_cancel_leave_the_small_one(dtype):
    large = 6e4 if dtype == np.float16 else 1e8
    arrays = [np.full(3, value).astype(dtype) for value in (large, -large, 1)]
    expected = rounded(np.array([Fraction(1, 3)] * 3), dtype)
    assert combine(Mean(), arrays)[0].tolist() == expected.tolist()


def test_float64_keeps_what_cancellation_would_lose():
    arrays = [np.array([value]) for value in (1e30, 1.0, -1e30, 1e-10)]
    expected = rounded(exact_mean(arrays), np.float64)
    assert combine(Mean(), arrays)[0] == expected
    assert combine(Mean(), arrays, [0.25] * 4)[0] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_subnormal_values_are_averaged_exactly(dtype):
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    arrays = [np.array([a * tiny]).astype(dtype) for a in (3, 5, 7)]
    assert combine(Mean(), arrays)[0].tolist() == [5 * tiny]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 200])
def test_the_largest_values_do_not_overflow(dtype, count):
    largest = float(ml_dtypes.finfo(dtype).max)
    arrays = [np.array([largest, -largest]).astype(dtype) for _ in range(count)]
    for weights in WEIGHTS.values():
        result, finite = combine(Mean(), arrays, weights(count))
        assert finite
        assert result.astype(np.float64).tolist() == [largest, -largest]


def test_huge_float64_values_may_cancel():
    arrays = [np.array([value, value]) for value in (1.7e308, 1.7e308, -1.7e308, 4.0)]
    arrays[2][1] = 1.7e308
    assert_accurate(arrays)
    assert combine(Mean(), arrays)[0][0] == 1.7e308 / 4


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_weighted_float64_values_near_the_smallest_are_as_accurate_as_promised(count):
    """Products and their errors underflow here."""
    generator = np.random.default_rng(count)
    arrays = [np.ldexp(generator.uniform(-1, 1, 200), -1030) for _ in range(count)]
    assert_accurate(arrays, WEIGHTS["sample counts"](count))


def test_a_coefficient_of_zero_leaves_a_checkpoint_out():
    arrays = [np.float32([1, 2]), np.float32([50, 60]), np.float32([3, 4])]
    assert combine(Mean(), arrays, [0.5, 0, 0.5])[0].tolist() == [2, 3]


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_another_dtype_of_the_result_is_rounded_to_once(dtype, out_dtype):
    generator = np.random.default_rng(3)
    arrays = [(generator.integers(-(2**20), 2**20, 500) / 2**16).astype(dtype) for _ in range(3)]
    result, _ = combine(Mean(), arrays, out_dtype=out_dtype)
    assert result.tolist() == rounded(exact_mean(arrays), out_dtype).tolist()


def test_rounding_to_bfloat16_does_not_round_twice():
    """Just above the middle of two bfloat16 values: float32 in between would round it down."""
    above_middle = 1 + 2.0**-8 + 2.0**-40
    out = np.empty(2, BFLOAT16)
    round_into(np.array([above_middle, -above_middle]), out)
    assert out.tolist() == [1 + 2.0**-7, -1 - 2.0**-7]


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_rounding_goes_to_nearest_and_ties_to_even_for_all_magnitudes(out_dtype):
    generator = np.random.default_rng(9)
    info = ml_dtypes.finfo(out_dtype)
    exponents = generator.integers(info.minexp - info.nmant - 2, info.maxexp, 2000)
    values = np.ldexp(generator.uniform(1, 2, 2000), exponents) * generator.choice([-1, 1], 2000)
    values = values[np.isfinite(values)]
    ties = np.ldexp(2.0 ** (info.nmant + 1) + np.arange(1.0, 200, 2), 1 - info.nmant)
    values = np.concatenate([values, ties])
    exact = np.array([Fraction(value) for value in values], object)
    out = np.empty(values.size, out_dtype)
    round_into(values.copy(), out)
    assert out.tolist() == rounded(exact, out_dtype).tolist()


def test_every_float16_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for values in (every[np.isfinite(every)], every):
        out, _ = combine(Mean(), [values], out_dtype=np.float32)
        expected = values.astype(np.float32)
        assert np.array_equal(out, expected, equal_nan=True)
        assert np.array_equal(np.signbit(out), np.signbit(expected))


def test_every_float16_that_is_not_finite_is_noticed():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for value in every[~np.isfinite(every)]:
        beside = np.array([1, -65504, value, 65504], np.float16)
        out, _ = combine(Mean(), [beside], out_dtype=np.float32)
        assert np.array_equal(out, beside.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("sign", [1, -1])
def test_around_every_middle_of_two_bfloat16_values_it_is_rounded_once(sign):
    below = np.arange(0x7F7F, dtype=np.uint32)
    low, high = ((b << 16).view(np.float32).astype(np.float64) for b in (below, below + 1))
    middle = (low + high) / 2
    for values, nearest in (
        (np.nextafter(middle, 0), below),
        (middle, below + (below & 1)),
        (np.nextafter(middle, np.inf), below + 1),
    ):
        out = np.empty(values.size, BFLOAT16)
        round_into(sign * values, out)
        assert np.array_equal(np.abs(out).view(np.uint16), nearest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numerators", [(0.75, 0.5), (1.5, 0.25), (1.0, 0.0)])
def test_factors_are_not_divided_by_their_sum(dtype, numerators):
    generator = np.random.default_rng(3)
    arrays = [(generator.integers(-64, 64, 33) / 8).astype(dtype) for _ in range(2)]
    accumulator = Mean().accumulator(dtype, 33, Factors(numerators))
    accumulator.start(33)
    for index, values in enumerate(arrays):
        accumulator.add(values, index)
    out = np.empty(33, dtype)
    accumulator.result(out)
    exact = sum(f * values.astype("f8") for f, values in zip(numerators, arrays, strict=True))
    assert out.tolist() == exact.astype(dtype).tolist()
