"""The factors of spherical linear interpolation, against the textbook formula on vectors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamavg.coefficients import Coefficients
from streamavg.methods.slerp import OPPOSITE, PARALLEL, interpolate


def interpolation(a, b, t=0.5):
    norms = float(a @ a), float(b @ b)
    return interpolate(norms, float((a - b) @ (a - b)), Coefficients((1 - t, t)))


def slerp(a, b, t):
    """The textbook formula (Shoemake 1985), with the angle from the cosine."""
    angle = math.acos(a @ b / math.sqrt((a @ a) * (b @ b)))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def interpolated(a, b, t):
    found = interpolation(a, b, t)
    first, second = found.factors.numerators if found.factors else (1 - t, t)
    return first * a + second * b


def turned(degrees, length=1.0):
    return length * np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


@pytest.mark.parametrize("t", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("degrees", [0.1, 1, 30, 90, 135, 179])
def test_the_direction_turns_evenly(degrees, t):
    np.testing.assert_allclose(
        interpolated(turned(0), turned(degrees), t), turned(t * degrees), atol=1e-9
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_it_is_the_textbook_formula(t):
    a, b = np.random.default_rng(1).normal(size=(2, 500))
    np.testing.assert_allclose(interpolated(a, b, t), slerp(a, b, t), rtol=1e-9)


@pytest.mark.parametrize(("t", "expected"), [(0.0, (1, 0)), (1.0, (0, 1))])
def test_the_ends_are_the_checkpoints_themselves(t, expected):
    found = interpolation(turned(10), turned(70, 3.0), t)
    assert found.factors.numerators == expected


@given(st.integers(1, 179), st.floats(0, 1))
@settings(deadline=None)
def test_vectors_of_one_length_keep_it(degrees, t):
    between = interpolated(turned(0, 2.5), turned(degrees, 2.5), t)
    assert np.linalg.norm(between) == pytest.approx(2.5, rel=1e-9)


@given(st.integers(1, 90), st.floats(0.01, 100), st.floats(0, 1))
@settings(deadline=None)
def test_the_length_is_between_theirs_where_the_angle_is_not_obtuse(degrees, length, t):
    between = np.linalg.norm(interpolated(turned(0), turned(degrees, length), t))
    assert min(1, length) * (1 - 1e-9) <= between <= max(1, length) * (1 + 1e-9)


@given(st.integers(1, 179), st.floats(0, 1))
@settings(deadline=None)
def test_the_way_back_is_the_same_way(degrees, t):
    there = interpolated(turned(0), turned(degrees, 2.0), t)
    back = interpolated(turned(degrees, 2.0), turned(0), 1 - t)
    np.testing.assert_allclose(there, back, atol=1e-9)


class TestIsLinear:
    def test_between_equal_vectors(self):
        a = np.random.default_rng(1).normal(size=9)
        assert interpolation(a, a).factors is None
        assert interpolation(a, a).degrees == 0

    def test_between_vectors_of_one_direction(self):
        a = np.arange(1.0, 9.0)
        assert interpolation(a, 2 * a).factors is None
        assert not interpolation(a, 2 * a).is_opposite

    @pytest.mark.parametrize("zero", [0, 1])
    def test_with_a_zero_vector(self, zero):
        vectors = [np.arange(4.0), np.arange(4.0)]
        vectors[zero] = np.zeros(4)
        found = interpolation(*vectors)
        assert found.factors is None
        assert found.degrees is None
        assert not found.is_opposite

    @pytest.mark.parametrize("length", [1.0, 3.0])
    def test_between_opposite_vectors_and_says_so(self, length):
        a = np.arange(1.0, 9.0)
        found = interpolation(a, -length * a)
        assert found.factors is None
        assert found.is_opposite

    def test_between_almost_opposite_vectors(self):
        almost = math.degrees(math.pi - 0.9 * OPPOSITE)
        assert interpolation(turned(0), turned(almost)).is_opposite
        further = math.degrees(math.pi - 1.1 * OPPOSITE)
        assert max(interpolation(turned(0), turned(further)).factors.numerators) < 1 / OPPOSITE


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_nothing_jumps_where_it_becomes_linear(t):
    angle = 2 * PARALLEL
    norms = (1.0, 1.0)
    found = interpolate(norms, 4 * math.sin(angle / 2) ** 2, Coefficients((1 - t, t)))
    assert found.factors.numerators == pytest.approx((1 - t, t), rel=2**-51)


@pytest.mark.parametrize("scale", [1e-150, 1e-10, 1e100, 1e140])
def test_the_scale_does_not_matter(scale):
    found = interpolation(turned(0, scale), turned(40, 2 * scale))
    expected = interpolation(turned(0), turned(40, 2.0))
    assert found.factors.numerators == pytest.approx(expected.factors.numerators, rel=1e-12)
