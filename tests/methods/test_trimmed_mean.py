from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.errors import OptionError
from streamavg.methods.mean import Mean
from streamavg.methods.trimmed_mean import TrimmedMean
from tests.contracts.accumulating import DTYPES, AccumulatorContract, combine
from tests.contracts.reading import bits
from tests.oracle import exact_mean, ulp

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
TRIMS = st.floats(0, 0.5, exclude_max=True)


class TestTrimmedMean(AccumulatorContract):
    method = TrimmedMean()


class TestQuarterTrimmedMean(AccumulatorContract):
    method = TrimmedMean(0.25)


@pytest.mark.parametrize(
    ("trim", "count", "dropped"),
    [(0.1, 5, 0), (0.1, 10, 1), (0.1, 32, 3), (0.1, 64, 6), (0.25, 8, 2), (0.49, 3, 1), (0, 9, 0),
     (0.29, 100, 29), (0.3, 10, 3), (0.07, 100, 7), (0.499, 2, 0)],
)  # fmt: skip
def test_the_share_of_the_values_is_rounded_down(trim, count, dropped):
    assert TrimmedMean(trim).dropped(count) == dropped


@given(TRIMS, st.integers(1, 1000))
def test_at_least_one_value_is_left(trim, count):
    assert count - 2 * TrimmedMean(trim).dropped(count) >= 1


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1, float("nan"), float("inf")])
def test_a_share_that_leaves_nothing_is_refused(trim):
    with pytest.raises(OptionError, match=r"--trim .*less than 0\.5"):
        TrimmedMean(trim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trim", [0, 0.1, 0.3, 0.49])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 33])
def test_it_is_the_mean_of_what_is_left(dtype, trim, count):
    generator = np.random.default_rng(count)
    arrays = [generator.uniform(1, 2, 200).astype(dtype) for _ in range(count)]
    dropped = TrimmedMean(trim).dropped(count)
    ordered = np.sort(np.stack(arrays).astype(np.float64), axis=0)
    exact = exact_mean(list(ordered[dropped : count - dropped]))
    for value, mean in zip(combine(TrimmedMean(trim), arrays)[0], exact, strict=True):
        error = abs(Fraction(float(value)) - mean)
        assert error <= ulp(mean, dtype) * (Fraction(1, 2) + Fraction(1, 10**7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_trimming_it_is_the_mean_of_ascending_values(dtype):
    arrays = [np.random.default_rng(i).normal(size=900).astype(dtype) for i in range(7)]
    stack = np.sort(np.stack(arrays).astype(np.float64), axis=0).astype(dtype)
    assert bits(combine(TrimmedMean(0), arrays)[0]) == bits(combine(Mean(), list(stack))[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slabs_of_several_blocks_are_as_those_of_one(dtype):
    arrays = [np.random.default_rng(i).normal(size=5_001).astype(dtype) for i in range(11)]
    whole = combine(TrimmedMean(), arrays)[0]
    pieces = [combine(TrimmedMean(), [a[i : i + 77] for a in arrays])[0]
              for i in range(0, 5_001, 77)]  # fmt: skip
    assert bits(whole) == bits(np.concatenate(pieces))


@given(
    st.lists(st.lists(FLOAT32, min_size=5, max_size=5), min_size=1, max_size=12), TRIMS,
    st.randoms(),
)  # fmt: skip
def test_the_order_of_any_checkpoints_does_not_change_a_bit(rows, trim, random):
    arrays = [np.array(row, np.float32) for row in rows]
    shuffled = random.sample(arrays, len(arrays))
    method = TrimmedMean(trim)
    assert bits(combine(method, arrays)[0]) == bits(combine(method, shuffled)[0])


@given(st.lists(FLOAT32, min_size=1, max_size=8), st.integers(1, 9), TRIMS)
def test_equal_checkpoints_of_any_values_give_themselves(values, count, trim):
    arrays = [np.array(values, np.float32)] * count
    assert bits(combine(TrimmedMean(trim), arrays)[0]) == bits(arrays[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outliers_at_both_ends_change_nothing(dtype):
    arrays = [np.full(9, value, dtype) for value in (1, 2, 3, 4, 5)]
    arrays[0][3], arrays[4][3], arrays[4][5] = -60_000, 60_000, 50_000
    assert combine(TrimmedMean(0.2), arrays)[0].tolist() == [3] * 9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_in_any_checkpoint_gives_nan_even_if_it_were_dropped(dtype, sign):
    for at in range(5):
        arrays = [np.array([value, value], dtype) for value in (1, 2, 3, 4, 5)]
        arrays[at][1] = np.copysign(np.nan, sign)
        result, finite = combine(TrimmedMean(0.2), arrays)
        assert not finite
        assert result[0] == 3
        assert np.isnan(result[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_are_dropped_like_other_values(dtype):
    rows = [(-np.inf, np.inf), (1, np.inf), (2, 1), (3, 2), (np.inf, 3)]
    result, finite = combine(TrimmedMean(0.2), [np.array(row, dtype) for row in rows])
    assert not finite
    assert result.tolist() == [2, np.inf]


def test_it_says_how_many_values_it_drops():
    assert TrimmedMean().summary(32) == "drops the 3 lowest and the 3 highest of 32 values"
    assert TrimmedMean().summary(10) == "drops the lowest and the highest of 10 values"
    assert TrimmedMean().summary(5) == "drops none of 5 values: --trim 0.1 of them is less than one"
    assert TrimmedMean(0).summary(5).startswith("drops none of 5 values")
