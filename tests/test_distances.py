"""The arithmetic of a comparison, against differences that are formed and squared one by one."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from streamavg import distances
from streamavg.distances import Meter, Sums
from tests.oracle import BFLOAT16

BOUND = 1e-8
"""What the module promises."""
USUAL = 1e-11
"""What it says is usual."""
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
COUNTS = [2, 3, 5, 6, 16, 17, 33, 64]


def exact(block):
    """Squared norms, squared distances and equal signs, in extended precision."""
    wide = np.asarray(block, np.float64).astype(np.longdouble)
    differences = wide[:, None, :] - wide[None, :, :]
    signs = np.sign(wide)
    same = (signs[:, None, :] == signs[None, :, :]).sum(axis=-1)
    return (wide**2).sum(axis=1), (differences**2).sum(axis=-1), same


def relative_error(found, expected):
    assert ((found == 0) == (expected == 0)).all()
    present = expected > 0
    return np.max(np.abs(found[present] / expected[present] - 1), initial=0)


def assert_measured(block, bound=USUAL):
    sums = Meter(len(block)).measure(block)
    norms, squared, same = exact(block)
    assert sums.elements == block.shape[1]
    assert relative_error(sums.squared_norms, norms) < bound
    assert relative_error(sums.squared_distances, squared) < bound
    assert (sums.same_signs == same).all()
    assert (sums.squared_distances == sums.squared_distances.T).all()


def independent(generator, count, size):
    return generator.normal(size=(count, size))


def late_epochs(generator, count, size):
    return generator.normal(size=size) + 0.02 * generator.normal(size=(count, size)).cumsum(axis=0)


def nearly_equal(generator, count, size):
    return generator.normal(size=size) * (1 + 1e-7 * generator.normal(size=(count, size)))


def one_far_away(generator, count, size):
    far = np.where(np.arange(count) == count // 2, 1e6, 1e-3)[:, None]
    return generator.normal(size=size) + far * generator.normal(size=(count, size))


def first_far_away(generator, count, size):
    return one_far_away(generator, count, size)[::-1]


def two_tight_groups(generator, count, size):
    centres = generator.normal(size=(2, size))[np.arange(count) % 2]
    return centres + 1e-6 * generator.normal(size=(count, size))


def on_a_line(generator, count, size):
    return np.arange(count)[:, None] * generator.normal(size=size)


def ever_closer(generator, count, size):
    steps = 0.25 ** np.arange(count)
    return generator.normal(size=size) + steps[:, None] * generator.normal(size=(count, size))


def one_value_differs(generator, count, size):
    block = np.repeat(generator.normal(size=(1, size)), count, axis=0)
    block[1, size // 2] *= 1 + 1e-3
    return block


def equal(generator, count, size):
    return np.repeat(generator.normal(size=(1, size)), count, axis=0)


def sparse(generator, count, size):
    return generator.integers(-1, 2, (count, size)).astype(float)


def all_zero(generator, count, size):
    return np.zeros((count, size))


CASES = [
    independent, late_epochs, nearly_equal, one_far_away, first_far_away, two_tight_groups,
    on_a_line, ever_closer, one_value_differs, equal, sparse, all_zero,
]  # fmt: skip


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_float32_blocks_are_measured_as_promised(case, count):
    assert_measured(case(np.random.default_rng(count), count, 700).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_blocks_of_every_dtype_are_measured_as_promised(case, dtype):
    with np.errstate(over="ignore"):
        block = case(np.random.default_rng(4), 7, 1500).astype(dtype)
    if np.isfinite(block).all():
        assert_measured(block)
    else:
        assert not Meter(7).measure(block).are_in_range


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_textbook_identity_would_not_do(count):
    """The test can fail: for float64 values that agree in nine digits, all digits are lost."""
    generator = np.random.default_rng(count)
    block = generator.normal(size=1000) * (1 + 1e-9 * generator.normal(size=(count, 1000)))
    assert_measured(block)
    squares, product = (block**2).sum(axis=1), block @ block.T
    textbook = squares[:, None] + squares[None, :] - 2 * product
    np.fill_diagonal(textbook, 0)
    off = np.abs(textbook - exact(block)[1]).max()
    assert off > 0.1 * exact(block)[1].max()


@pytest.mark.parametrize("count", [3, 20])
def test_columns_beyond_a_panel_are_measured_too(count):
    size = 2 * distances.panel_width(count) + 3
    assert_measured(late_epochs(np.random.default_rng(1), count, size).astype(np.float32))


def test_the_widest_panels_keep_the_bound_in_the_worst_order_of_magnitude():
    """Pairs that are just not close enough to be measured again, in the widest panel."""
    generator = np.random.default_rng(8)
    base, direction = generator.normal(size=(2, distances.WIDEST_PANEL))
    block = np.stack([base, base + 64.1 * direction, base + 65.2 * direction, base + 1e3])
    assert_measured(block.astype(np.float32), BOUND)


def test_equal_rows_are_exactly_0_apart_wherever_they_are():
    generator = np.random.default_rng(5)
    block = generator.normal(size=(40, 3000))
    block[[3, 17, 39]] = block[20]
    found = Meter(40).measure(block).squared_distances
    group = np.ix_([3, 17, 20, 39], [3, 17, 20, 39])
    assert (found[group] == 0).all()
    assert (found == 0).sum() == 40 + 4 * 3


def test_the_order_of_the_rows_does_not_matter():
    generator = np.random.default_rng(6)
    block = first_far_away(generator, 12, 900)
    order = generator.permutation(12)
    plain, permuted = Meter(12).measure(block), Meter(12).measure(block[order])
    pairs = np.ix_(order, order)
    np.testing.assert_allclose(
        permuted.squared_distances, plain.squared_distances[pairs], rtol=1e-10
    )
    assert (permuted.same_signs == plain.same_signs[pairs]).all()


def test_sums_of_parts_add_up():
    block = late_epochs(np.random.default_rng(7), 6, 1000)
    total = Sums.zeros(6)
    for part in (block[:, :123], block[:, 123:124], block[:, 124:]):
        total.add(Meter(6).measure(part))
    whole = Meter(6).measure(block)
    assert total.elements == 1000
    np.testing.assert_allclose(total.squared_norms, whole.squared_norms, rtol=1e-13)
    np.testing.assert_allclose(total.squared_distances, whole.squared_distances, rtol=1e-12)
    assert (total.same_signs == whole.same_signs).all()


def test_a_zero_agrees_with_zeros_of_both_signs_only():
    block = np.array([[0.0, -0.0, 1.0, -1.0], [-0.0, 2.0, 0.0, 0.0]])
    assert Meter(2).measure(block).same_signs.tolist() == [[4, 1], [1, 4]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e160])
def test_values_that_have_no_finite_square_are_told(value):
    block = np.ones((3, 10))
    assert Meter(3).measure(block).are_in_range
    block[1, 4] = value
    assert not Meter(3).measure(block).are_in_range


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_very_small_and_very_large_values_are_measured(scale):
    assert_measured(scale * late_epochs(np.random.default_rng(2), 5, 300))


VALUES = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 1e-30, 3.5, 3.5000002]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    arrays_of.arrays(
        np.float32,
        st.tuples(st.integers(2, 20), st.integers(1, 12)),
        elements=VALUES.map(np.float32).map(float),
    )
)
def test_whatever_the_values_are_the_bounds_hold(block):
    assert_measured(block, BOUND)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(2, 40),
    st.integers(0, 2**32),
    st.lists(st.floats(-12, 3), min_size=1, max_size=5),
)
def test_however_the_rows_are_grouped_the_bounds_hold(count, seed, exponents):
    """Groups within groups: each level of differences has a magnitude of its own."""
    generator = np.random.default_rng(seed)
    block = np.zeros((count, 60))
    for exponent in exponents:
        members = generator.integers(0, 3, count)
        block += 10.0**exponent * generator.normal(size=(3, 60))[members]
    sums = Meter(count).measure(block)
    squared = exact(block)[1]
    present = squared > (1e-15 * np.abs(block).max()) ** 2  # less is rounding of the block itself
    found = sums.squared_distances[present]
    assert np.max(np.abs(found / squared[present] - 1), initial=0) < BOUND
    assert (sums.squared_distances[squared == 0] == 0).all()


@pytest.mark.parametrize("count", [2, 8, 64, 300])
def test_a_meter_takes_no_more_memory_than_it_says(count):
    block = two_tight_groups(np.random.default_rng(1), count, distances.panel_width(count))
    block[0, :100] = 0
    Meter(count).measure(block)
    tracemalloc.start()
    try:
        Meter(count).measure(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < Meter.bytes_needed(count) + 64 * 1024
