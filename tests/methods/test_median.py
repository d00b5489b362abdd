import warnings
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.methods.median import Median
from tests.contracts.accumulating import DTYPES, AccumulatorContract, combine
from tests.contracts.reading import bits
from tests.oracle import exact_mean, rounded

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


class TestMedian(AccumulatorContract):
    method = Median()


def naive_median(arrays):
    """The exact median of each element, rounded once."""
    ordered = np.sort(np.stack(arrays).astype(np.float64), axis=0)
    middle = [ordered[(len(arrays) - 1) // 2], ordered[len(arrays) // 2]]
    return rounded(exact_mean(middle), arrays[0].dtype)


def every_magnitude(dtype, count, size=300):
    generator = np.random.default_rng(count)
    info = ml_dtypes.finfo(dtype)
    exponents = generator.integers(info.minexp - info.nmant, info.maxexp, (count, size))
    with np.errstate(over="ignore", under="ignore"):
        return list(np.ldexp(generator.uniform(-1, 1, (count, size)), exponents).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16, 33, 64])
def test_it_is_the_exact_median_rounded_once(dtype, count):
    arrays = every_magnitude(dtype, count)
    assert combine(Median(), arrays)[0].tolist() == naive_median(arrays).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_slabs_of_several_blocks_are_as_those_of_one(dtype, count):
    arrays = every_magnitude(dtype, count, 5_001)
    whole = combine(Median(), arrays)[0]
    assert bits(whole) == bits(combine(Median(), arrays, capacity=100_000)[0])
    pieces = [combine(Median(), [a[i : i + 77] for a in arrays])[0] for i in range(0, 5_001, 77)]
    assert bits(whole) == bits(np.concatenate(pieces))


@given(
    st.lists(st.lists(FLOAT32, min_size=5, max_size=5), min_size=1, max_size=12), st.randoms()
)  # fmt: skip
def test_the_order_of_any_checkpoints_does_not_change_a_bit(rows, random):
    arrays = [np.array(row, np.float32) for row in rows]
    shuffled = random.sample(arrays, len(arrays))
    result = combine(Median(), arrays)[0]
    assert bits(result) == bits(combine(Median(), shuffled)[0])
    assert result.tolist() == naive_median(arrays).tolist()


@given(st.lists(FLOAT32, min_size=1, max_size=8), st.integers(1, 9))
def test_equal_checkpoints_of_any_values_give_themselves(values, count):
    arrays = [np.array(values, np.float32)] * count
    assert bits(combine(Median(), arrays)[0]) == bits(arrays[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("values", "negative"),
    [((-0.0,) * 4, True), ((-0.0, 0.0, -0.0), True), ((0.0, -0.0), False),
     ((-0.0, 0.0, 0.0), False)],
)  # fmt: skip
def test_the_negative_zero_comes_before_the_positive(dtype, values, negative):
    result = combine(Median(), [np.array([value], dtype) for value in values])[0]
    assert (result[0] == 0, bool(np.signbit(result)[0])) == (True, negative)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_values_do_not_overflow(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    arrays = [np.array([largest, -largest]).astype(dtype)] * 2
    result, finite = combine(Median(), arrays)
    assert finite
    assert result.tolist() == [largest, -largest]


def test_the_middle_of_two_huge_float64_values_is_exact():
    arrays = [np.array([1.5e308]), np.array([1.7e308])]
    expected = rounded(exact_mean(arrays), np.float64)
    assert combine(Median(), arrays)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("value", [np.nan, -np.nan])
def test_nan_in_any_checkpoint_gives_nan(dtype, count, value):
    for at in range(count):
        arrays = [np.array([1, 2], dtype) for _ in range(count)]
        arrays[at][1] = np.copysign(np.nan, value)
        result, finite = combine(Median(), arrays)
        assert not finite
        assert result[0] == 1
        assert np.isnan(result[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_are_values_like_others(dtype):
    rows = [(-np.inf, np.inf, np.inf), (1, 1, -np.inf), (np.inf, np.inf, np.inf), (3, 2, -np.inf)]
    result, finite = combine(Median(), [np.array(row, dtype) for row in rows])
    assert not finite
    assert result[0] == 2
    assert result[1] == np.inf
    assert np.isnan(result[2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [5, 8])
def test_it_agrees_with_numpy(dtype, count):
    arrays = [np.random.default_rng(i).normal(size=2_000).astype(dtype) for i in range(count)]
    assert bits(combine(Median(), arrays)[0]) == bits(np.median(np.stack(arrays), axis=0))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_dtype_of_the_result_is_rounded_to_once(dtype, out_dtype):
    generator = np.random.default_rng(5)
    arrays = [(generator.integers(-(2**9), 2**9, 300) / 2**6).astype(dtype) for _ in range(4)]
    expected = rounded([Fraction(float(v)) for v in np.median(np.stack(arrays).astype("f8"), 0)],
                       out_dtype)  # fmt: skip
    assert combine(Median(), arrays, out_dtype=out_dtype)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_warns(dtype):
    arrays = [np.array([v, np.nan], dtype) for v in (np.inf, -np.inf)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        combine(Median(), arrays)


def test_it_says_what_it_takes():
    assert Median().summary(3) == "takes the middle one of 3 values"
    assert Median().summary(4) == "takes the mean of the two in the middle of 4 values"
