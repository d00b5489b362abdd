"""The coefficients of the geometric median, against vectors that are held whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamavg.coefficients import coefficients_for
from streamavg.methods import geometric_median as module
from streamavg.methods.geometric_median import MOST_ITERATIONS, TOLERANCE, geometric_median


def squared_distances(vectors):
    return ((vectors[:, None, :] - vectors[None, :, :]) ** 2).sum(axis=2)


def found_for(vectors, weights=None):
    weights = coefficients_for(len(vectors), weights, normalize=True)
    return geometric_median(squared_distances(vectors), weights)


def point(vectors, weights=None):
    return np.array(found_for(vectors, weights).coefficients.values) @ vectors


def objective(vectors, z, weights=None):
    weights = np.ones(len(vectors)) if weights is None else np.asarray(weights, float)
    return weights @ np.linalg.norm(vectors - z, axis=1) / weights.sum()


def weiszfeld(vectors, weights=None, iterations=5_000):
    """The oracle: smoothed Weiszfeld on the vectors themselves, as published for RFA."""
    weights = np.ones(len(vectors)) if weights is None else np.asarray(weights, float)
    z = weights @ vectors / weights.sum()
    for _ in range(iterations):
        shares = weights / np.maximum(1e-12, np.linalg.norm(vectors - z, axis=1))
        z = shares @ vectors / shares.sum()
    return z


def cloud(count, size=50, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


class TestOfPointsInGeneralPosition:
    @pytest.mark.parametrize("count", [3, 4, 5, 8, 33, 64])
    @pytest.mark.parametrize("size", [2, 3, 50])
    def test_is_the_one_that_weiszfeld_finds_on_the_vectors(self, count, size):
        vectors = cloud(count, size, seed=count)
        np.testing.assert_allclose(point(vectors), weiszfeld(vectors), atol=1e-5)
        assert found_for(vectors).is_converged

    @pytest.mark.parametrize("weights", [[1, 2, 3, 4, 5], [0.3, 0.3, 0.2, 0.1, 0.1]])
    def test_follows_the_weights(self, weights):
        vectors = cloud(5)
        np.testing.assert_allclose(point(vectors, weights), weiszfeld(vectors, weights), atol=1e-5)

    def test_leaves_out_what_has_no_weight(self):
        vectors = cloud(5)
        found = found_for(vectors, [1, 1, 0, 1, 1]).coefficients.values
        without = found_for(np.delete(vectors, 2, axis=0)).coefficients.values
        assert found[2] == 0
        np.testing.assert_allclose(np.delete(found, 2), without, atol=1e-12)

    def test_of_a_triangle_is_where_all_sides_are_seen_under_120_degrees(self):
        vectors = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
        arms = vectors - point(vectors)
        arms /= np.linalg.norm(arms, axis=1)[:, None]
        np.testing.assert_allclose([arms[0] @ arms[1], arms[1] @ arms[2]], -0.5, atol=1e-6)

    @pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-6, 1e30, 1e140])
    def test_does_not_depend_on_the_scale(self, scale):
        vectors = cloud(6)
        expected = found_for(vectors).coefficients.values
        found = found_for(vectors * scale).coefficients.values
        np.testing.assert_allclose(found, expected, rtol=1e-6)


class TestOfAnOutlier:
    @pytest.mark.parametrize("factor", [1e3, 1e6, 1e12, 1e30])
    def test_has_hardly_any_influence(self, factor):
        vectors = cloud(8)
        vectors[3] *= factor
        found = found_for(vectors)
        others = np.delete(vectors, 3, axis=0)
        assert found.coefficients.values[3] < 2 / factor
        spread = np.linalg.norm(others - others.mean(axis=0), axis=1).max()
        assert np.linalg.norm(point(vectors) - others.mean(axis=0)) < spread

    def test_is_as_exact_as_without(self):
        vectors = cloud(8)
        vectors[3] *= 1e3
        np.testing.assert_allclose(point(vectors), weiszfeld(vectors), atol=1e-4)

    def test_half_of_all_less_one_cannot_carry_it_away(self):
        vectors = cloud(9)
        vectors[:4] += 1e6
        assert np.linalg.norm(point(vectors)) < 100


class TestAtACheckpoint:
    def test_is_that_checkpoint_alone(self):
        vectors = np.array([[0.0, 0], [1, 0], [-1, 0.1], [0.1, 1], [0, -1]])
        found = found_for(vectors)
        assert found.coefficients.values == (1, 0, 0, 0, 0)
        assert found.iterations == 0

    def test_of_more_than_half_of_the_weight(self):
        assert found_for(cloud(3), [0.2, 0.6, 0.2]).coefficients.values == (0, 1, 0)

    def test_of_an_odd_number_on_a_line_is_the_one_in_the_middle(self):
        vectors = np.array([0.0, 7, 1, 100, 2])[:, None] * np.ones(9)
        assert found_for(vectors).coefficients.values == (0, 0, 0, 0, 1)

    def test_near_which_it_lies_is_not_taken_for_it(self):
        vectors = np.array([[0.0, 0.0], [1.0, 0.0], [np.cos(2.09), np.sin(2.09)]])
        found = found_for(vectors)  # an angle of 119.75 degrees
        assert found.coefficients.values[0] < 1
        np.testing.assert_allclose(point(vectors), weiszfeld(vectors), atol=1e-4)


class TestWhereSeveralAreEquallyGood:
    def test_of_two_is_their_mean(self):
        assert found_for(cloud(2)).coefficients.values == (0.5, 0.5)

    def test_of_two_with_weights_is_the_heavier(self):
        assert found_for(cloud(2), [0.4, 0.6]).coefficients.values == (0, 1)

    def test_of_an_even_number_on_a_line_is_the_mean_of_the_two_in_the_middle(self):
        vectors = np.array([0.0, 7, 1, 100])[:, None] * np.ones(9)
        assert found_for(vectors).coefficients.values == (0, 0.5, 0.5, 0)

    @pytest.mark.parametrize("count", [2, 3, 7, 64])
    def test_of_equal_checkpoints_is_their_mean(self, count):
        vectors = np.ones((count, 9))
        assert found_for(vectors).coefficients.values == pytest.approx((1 / count,) * count)

    def test_of_equal_checkpoints_with_weights_has_those_weights(self):
        assert found_for(np.ones((3, 9)), [1, 2, 1]).coefficients.values == (0.25, 0.5, 0.25)

    def test_of_equals_that_are_the_minimum_counts_each(self):
        vectors = np.concatenate([np.zeros((2, 4)), cloud(2, 4)])
        assert found_for(vectors).coefficients.values == (0.5, 0.5, 0, 0)


@given(
    st.integers(2, 9), st.integers(1, 6), st.integers(0, 2**32),
    st.sampled_from([0.0, 0.0, 1.0, 1e3]),
)  # fmt: skip
@settings(deadline=None)
def test_no_point_nearby_is_better(count, size, seed, far):
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-4, 5, (count, size)) + generator.normal(size=(count, size))
    vectors[0] += far
    weights = generator.uniform(0.1, 1, count)
    z = point(vectors, weights)
    least = objective(vectors, z, weights)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            moved = z + scale * generator.normal(size=size)
            assert least <= objective(vectors, moved, weights) * (1 + 1e-6)


@given(st.integers(2, 9), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_order_of_the_checkpoints_does_not_matter(count, seed):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, 5))
    order = generator.permutation(count)
    straight = np.array(found_for(vectors).coefficients.values)
    shuffled = np.array(found_for(vectors[order]).coefficients.values)
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-5)


@given(st.integers(2, 12), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_coefficients_sum_to_one_and_are_not_negative(count, seed):
    found = found_for(np.random.default_rng(seed).normal(size=(count, 4)))
    assert min(found.coefficients.values) >= 0
    assert sum(found.coefficients.values) == pytest.approx(1, abs=1e-12)


def test_it_says_how_far_it_may_be_from_the_least_where_it_stops_early(monkeypatch):
    monkeypatch.setattr(module, "MOST_ITERATIONS", 2)
    vectors = cloud(5, 3)
    found = found_for(vectors)
    assert found.iterations == 2
    assert not found.is_converged
    reached = objective(vectors, np.array(found.coefficients.values) @ vectors)
    least = objective(vectors, weiszfeld(vectors))
    assert least < reached <= least * (1 + found.excess)


def test_the_bounds_are_those_that_are_documented():
    assert (TOLERANCE, MOST_ITERATIONS) == (1e-8, 10_000)
