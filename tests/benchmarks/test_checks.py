"""An output that is not the mean of the inputs is found."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from benchmarks.checks import OutputsDifferError, check_outputs, reader, ulp
from benchmarks.contenders import FLOAT32_SUMS, MEDIANS, NOTHING, Contender
from benchmarks.inputs import Model, build, build_random, given_values
from ml_dtypes import bfloat16

from tests import oracle

NAMES = ["0.weights.h5", "1.weights.h5", "2.weights.h5"]
MEAN = Contender("mean", [], NAMES, "mean.weights.h5")


@pytest.fixture(params=["float16", "bfloat16", "float32", "float64"])
def model(request):
    return Model(2, 40, request.param)


@pytest.fixture
def folder(tmp_path, model):
    """Inputs, and a file with their mean."""
    build_random([tmp_path / name for name in NAMES], model)
    write(tmp_path, model, MEAN, lambda values: np.mean(values, axis=0))
    return tmp_path


def write(folder, model, contender, combine):
    """An output whose values are combined from those of the inputs in float64."""
    arrays = []
    for name in NAMES:
        with reader(folder / name, model) as read:
            arrays.append({v: read(v, slice(None)).astype(np.float64) for v in model.variables})
    combined = {v.native_path: combine([a[v] for a in arrays]) for v in model.variables}
    build([folder / contender.output], model, [given_values(combined)])
    return contender


def test_the_mean_passes(folder, model):
    check_outputs([MEAN], model, folder)


def test_one_changed_bit_is_found(folder, model):
    bit = 8 if model.dtype == "float64" else 0  # float64 means may be summed in another order
    with h5py.File(folder / MEAN.output, "r+") as file:
        values = file["layers/dense_1/vars/0"][()]
        values.reshape(-1).view(f"u{values.itemsize}")[700] ^= 1 << bit
        file["layers/dense_1/vars/0"][...] = values
    with pytest.raises(OutputsDifferError, match="mean: layers/dense_1/vars/0: off by"):
        check_outputs([MEAN], model, folder)


def test_a_value_that_is_not_a_number_is_found(folder, model):
    write(folder, model, MEAN, lambda values: np.mean(values, axis=0) * np.nan)
    with pytest.raises(OutputsDifferError):
        check_outputs([MEAN], model, folder)


def test_another_dtype_is_found(folder, model):
    wider = replace(model, dtype="float32" if model.dtype == "float64" else "float64")
    build_random([folder / MEAN.output], wider)
    with pytest.raises(OutputsDifferError, match=wider.dtype):
        check_outputs([MEAN], model, folder)


def test_weights_count(folder, model):
    weights = (0.5, 0.25, 0.25)
    weighted = replace(MEAN, name="weighted", output="weighted.weights.h5", weights=weights)
    write(folder, model, weighted, lambda values: np.average(values, axis=0, weights=weights))
    check_outputs([MEAN, weighted], model, folder)
    with pytest.raises(OutputsDifferError, match="weighted"):
        check_outputs([replace(weighted, weights=(0.25, 0.25, 0.5))], model, folder)


def test_sums_in_float32_may_be_off_by_their_rounding_and_no_more(tmp_path):
    model = Model(2, 40)
    build_random([tmp_path / name for name in NAMES], model)
    article = replace(MEAN, name="article", output="article.weights.h5", expected=FLOAT32_SUMS)

    def in_float32(values):
        first, second, third = (one.astype(np.float32) for one in values)
        return ((first + second) + third) / np.float32(3)

    write(tmp_path, model, article, in_float32)
    check_outputs([article], model, tmp_path)
    with pytest.raises(OutputsDifferError, match="off by"):
        check_outputs([replace(article, expected=MEAN.expected)], model, tmp_path)
    write(tmp_path, model, article, lambda values: in_float32(values) * (1 + 1e-5))
    with pytest.raises(OutputsDifferError, match="article"):
        check_outputs([article], model, tmp_path)


def test_medians_are_compared_bit_for_bit(folder, model):
    median = replace(MEAN, expected=MEDIANS)
    with pytest.raises(OutputsDifferError, match="not the median"):
        check_outputs([median], model, folder)
    write(folder, model, median, lambda values: np.median(values, axis=0))
    check_outputs([median], model, folder)


def test_a_copy_is_not_expected_to_be_a_mean(folder, model):
    check_outputs([replace(MEAN, output="no such file", expected=NOTHING)], model, folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_ulp_is_the_distance_of_neighbours(dtype):
    generator = np.random.default_rng(5)
    values = np.ldexp(generator.uniform(1, 2, 500), generator.integers(-30, 12, 500))
    numpy_dtype = np.dtype(bfloat16 if dtype == "bfloat16" else dtype)
    expected = [float(oracle.ulp(oracle.Fraction(value), numpy_dtype)) for value in values]
    np.testing.assert_array_equal(ulp(values, dtype), expected)
