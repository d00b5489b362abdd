"""The pooled variance of groups, against exact arithmetic and against the samples themselves."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamavg.coefficients import coefficients_for
from streamavg.methods.pooled import PooledVariance
from tests.contracts.accumulating import DTYPES
from tests.contracts.reading import bits


def pooled(means, variances, weights=None, out_dtype=None, order=None):
    coefficients = coefficients_for(len(means), weights, normalize=True)
    size = means[0].size
    accumulator = PooledVariance().accumulator(means[0].dtype, 2 * size, coefficients)
    accumulator.start(2 * size)
    for index in order or range(len(means)):
        accumulator.add(np.concatenate([means[index], variances[index]]), index)
    out = np.empty(size, out_dtype or means[0].dtype)
    accumulator.result(out)
    return out, accumulator.all_finite()


def exact(means, variances, weights=None):
    """The law of total variance in rational numbers, one element after the other."""
    shares = [Fraction(w) for w in (weights or [1] * len(means))]
    total = sum(shares)
    results = []
    for ms, vs in zip(np.stack(means).T, np.stack(variances).T, strict=True):
        m = sum(c * Fraction(float(x)) for c, x in zip(shares, ms, strict=True)) / total
        results.append(float(sum(
            c * (Fraction(float(v)) + (Fraction(float(x)) - m) ** 2)
            for c, x, v in zip(shares, ms, vs, strict=True)
        ) / total))  # fmt: skip
    return np.array(results)


def statistics(dtype, count, size=40):
    generator = np.random.default_rng(count)
    means = [generator.normal(size=size).astype(dtype) for _ in range(count)]
    return means, [generator.uniform(0.1, 3, size).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("weights", [None, [1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_exact_one_rounded_once(dtype, weights):
    means, variances = statistics(dtype, 6)
    found = pooled(means, variances, weights)[0]
    expected = exact(means, variances, weights)
    if dtype == np.float64:
        np.testing.assert_allclose(found, expected, rtol=28 * 2.0**-53)
    else:
        assert found.tolist() == expected.astype(dtype).tolist()


def test_it_is_the_variance_of_all_samples_together():
    samples = [np.random.default_rng(i).normal(i, 1 + i, (100 * (i + 1), 8)) for i in range(4)]
    means = [s.mean(axis=0) for s in samples]
    variances = [s.var(axis=0) for s in samples]
    found = pooled(means, variances, [len(s) for s in samples])[0]
    np.testing.assert_allclose(found, np.concatenate(samples).var(axis=0), rtol=1e-12)


def test_far_from_zero_no_digits_cancel():
    means = [np.full(3, 1e8) + np.array([0, 1, 2]) * k for k in range(4)]
    variances = [np.full(3, 1e-3)] * 4
    np.testing.assert_allclose(pooled(means, variances)[0], exact(means, variances), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_groups_give_their_variance(dtype, count):
    means, variances = statistics(dtype, 1)
    found = pooled(means * count, variances * count)[0]
    assert bits(found) == bits(variances[0])


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 9)), min_size=1, max_size=8))
@settings(deadline=None)
def test_it_is_at_least_the_mean_of_the_variances(groups):
    means = [np.array([mean]) for mean, _ in groups]
    variances = [np.array([variance]) for _, variance in groups]
    found = pooled(means, variances)[0][0]
    assert found >= np.mean([variance for _, variance in groups]) * (1 - 1e-12)


@pytest.mark.parametrize("weights", [[0, 1, 2], [1, 0, 2], [0, 0, 1]])
def test_a_group_without_weight_does_not_count(weights):
    means, variances = statistics(np.dtype("f8"), 3)
    found = pooled(means, variances, weights)[0]
    np.testing.assert_allclose(found, exact(means, variances, weights), rtol=1e-14)


@pytest.mark.parametrize("of", ["mean", "variance"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_noticed(of, value):
    means, variances = statistics(np.dtype("f4"), 3)
    assert pooled(means, variances)[1]
    (means if of == "mean" else variances)[1][5] = value
    found, finite = pooled(means, variances)
    assert not finite
    assert not np.isfinite(found[5])
    assert np.isfinite(np.delete(found, 5)).all()
