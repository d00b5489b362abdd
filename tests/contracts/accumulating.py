"""What every method's accumulator keeps."""

import itertools
import tracemalloc

import numpy as np
import pytest

from streamavg.coefficients import coefficients_for
from tests.contracts.reading import bits
from tests.oracle import BFLOAT16

SMALL_OBJECTS = 192 * 1024
"""Bytes that do not grow with the slab, such as a block that is rounded."""
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]


def combine(method, arrays, weights=None, order=None, out_dtype=None, capacity=None):
    """Runs one slab through a method."""
    coefficients = coefficients_for(len(arrays), weights, normalize=True)
    size = arrays[0].size
    accumulator = method.accumulator(arrays[0].dtype, capacity or size, coefficients)
    accumulator.start(size)
    for index in order or range(len(arrays)):
        accumulator.add(arrays[index], index)
    out = np.empty(size, out_dtype or arrays[0].dtype)
    accumulator.result(out)
    return out, accumulator.all_finite()


class AccumulatorContract:
    """Subclasses set `method`."""

    @pytest.fixture(params=DTYPES, ids=str)
    def dtype(self, request):
        return request.param

    @pytest.fixture
    def arrays(self, dtype):
        """Values on a grid, so that their sums are exact."""
        generator = np.random.default_rng(11)
        return [(generator.integers(-64, 64, 33) / 8).astype(dtype) for _ in range(4)]

    def test_the_order_of_the_checkpoints_does_not_change_a_bit(self, arrays):
        weights = [0.5, 0.125, 0.125, 0.25]
        results = {
            bits(combine(self.method, arrays, weights, order)[0])
            for order in itertools.permutations(range(4))
        }
        assert len(results) == 1

    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_equal_checkpoints_give_themselves(self, arrays, count):
        assert bits(combine(self.method, arrays[:1] * count)[0]) == bits(arrays[0])

    def test_a_single_result_does_not_depend_on_the_room_there_is(self, arrays):
        narrow, wide = (combine(self.method, arrays, capacity=size)[0] for size in (33, 1000))
        assert bits(narrow) == bits(wide)

    def test_nothing_of_one_slab_is_left_in_the_next(self, arrays, dtype):
        accumulator = self.method.accumulator(dtype, 33, coefficients_for(4))
        for count in (33, 5, 1, 20, 33):
            accumulator.start(count)
            for index, values in enumerate(arrays):
                accumulator.add(values[:count], index)
            out = np.empty(count, dtype)
            accumulator.result(out)
            expected = combine(self.method, [values[:count] for values in arrays])[0]
            assert bits(out) == bits(expected)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [0, 3])
    def test_a_value_that_is_not_finite_is_noticed(self, arrays, value, at):
        assert combine(self.method, arrays)[1]
        arrays[at][17] = value
        assert not combine(self.method, arrays)[1]

    def test_a_value_that_is_not_finite_is_forgotten_with_its_slab(self, arrays, dtype):
        accumulator = self.method.accumulator(dtype, 33, coefficients_for(1))
        accumulator.add(np.full(33, np.nan, dtype), 0)
        accumulator.start(33)
        accumulator.add(arrays[0], 0)
        assert accumulator.all_finite()

    def test_signalling_nan_passes_without_a_warning(self, dtype):
        quiet = np.full(3, np.nan, dtype)
        integers = quiet.view(f"u{dtype.itemsize}")
        mantissa = {2: 7 if dtype == BFLOAT16 else 10, 4: 23, 8: 52}[dtype.itemsize]
        integers &= ~integers.dtype.type(1 << (mantissa - 1))
        integers |= integers.dtype.type(1)
        out, finite = combine(self.method, [quiet, quiet])
        assert not finite
        assert np.isnan(out).all()

    def test_the_values_that_are_added_stay_as_they_are(self, arrays):
        before = [bits(values) for values in arrays]
        combine(self.method, arrays, [1, 2, 3, 4])
        assert [bits(values) for values in arrays] == before

    @pytest.mark.parametrize("count", [2, 9, 64])
    @pytest.mark.parametrize("weights", [None, "sample counts"])
    def test_it_takes_no_more_memory_for_an_element_than_it_says(self, dtype, count, weights):
        size = 50_000
        weights = weights and range(1, count + 1)
        coefficients = coefficients_for(count, weights, normalize=True)
        values, out = np.ones(size, dtype), np.empty(size, dtype)
        tracemalloc.start()
        try:
            accumulator = self.method.accumulator(dtype, size, coefficients)
            accumulator.start(size)
            for checkpoint in range(count):
                accumulator.add(values, checkpoint)
            accumulator.result(out)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        said = self.method.bytes_per_element(dtype, dtype, count)
        assert peak <= said * size + SMALL_OBJECTS
