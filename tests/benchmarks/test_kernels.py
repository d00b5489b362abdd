"""How fast one slab is combined: micro-benchmarks that also check what they compute.

They run once each as plain tests. To measure:

    python -m pytest tests/benchmarks/test_kernels.py --benchmark-enable

The time is that of one slab of eight checkpoints, from `start` to `result`, values in the cache.
"""

from fractions import Fraction

import numpy as np
import pytest

from streamavg.coefficients import coefficients_for
from streamavg.methods import METHODS
from tests.oracle import BFLOAT16, exact_mean, ulp

SLAB = 65_536
CHECKPOINTS = 8
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
WEIGHTS = {"uniform": None, "weighted": [0.05, 0.1, 0.1, 0.1, 0.15, 0.15, 0.15, 0.2]}
ONCE_ROUNDED = Fraction(1, 2) + Fraction(1, 10**7)
"""In ULP; values between 1 and 2 do not cancel, so that summing them adds next to nothing."""


@pytest.fixture(params=DTYPES, ids=str)
def slabs(request):
    """Values of the same slab in each checkpoint."""
    generator = np.random.default_rng(3)
    return [generator.uniform(1, 2, SLAB).astype(request.param) for _ in range(CHECKPOINTS)]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_mean_of_one_slab(benchmark, slabs, weights):
    dtype = slabs[0].dtype
    accumulator = METHODS["mean"].accumulator(dtype, SLAB, coefficients_for(CHECKPOINTS, weights))
    out = np.empty(SLAB, dtype)

    def combine():
        accumulator.start(SLAB)
        for checkpoint, values in enumerate(slabs):
            accumulator.add(values, checkpoint)
        accumulator.result(out)
        return accumulator.all_finite()

    benchmark.extra_info["bytes"] = CHECKPOINTS * SLAB * dtype.itemsize
    assert benchmark(combine)
    chosen = slice(None, None, SLAB // 50)
    exact = exact_mean([values[chosen] for values in slabs], weights)
    for value, mean in zip(out[chosen], exact, strict=True):
        assert abs(Fraction(float(value)) - mean) <= ONCE_ROUNDED * ulp(mean, dtype)


@pytest.mark.parametrize("count", [8, 32, 64])
@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_method_that_sorts_one_slab(benchmark, dtype, name, count):
    size = SLAB // 4
    generator = np.random.default_rng(count)
    ranked = [generator.uniform(1, 2, size).astype(dtype) for _ in range(count)]
    method = METHODS[name]
    accumulator = method.accumulator(dtype, size, coefficients_for(count))
    out = np.empty(size, dtype)

    def combine():
        accumulator.start(size)
        for checkpoint, values in enumerate(ranked):
            accumulator.add(values, checkpoint)
        accumulator.result(out)
        return accumulator.all_finite()

    benchmark.extra_info["bytes"] = count * size * dtype.itemsize
    assert benchmark(combine)
    chosen = slice(None, None, size // 50)
    dropped = (count - 1) // 2 if name == "median" else count // 10
    lines = np.sort(np.stack([values[chosen] for values in ranked]).astype(np.float64), axis=0)
    exact = exact_mean(list(lines[dropped : count - dropped]))
    for value, mean in zip(out[chosen], exact, strict=True):
        assert abs(Fraction(float(value)) - mean) <= ONCE_ROUNDED * ulp(mean, dtype)
