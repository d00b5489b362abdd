"""The checkpoints that benchmarks are made of; tests/keras/ asks Keras about them."""

import h5py
import numpy as np
import pytest
from benchmarks.checks import reader
from benchmarks.inputs import Model, build, build_random, given_values, suffix_of

from tests.oracle import read_arrays

LAYOUTS = (".weights.h5", ".keras", ".h5", ".safetensors")


def values_in(path, model):
    with reader(path, model) as read:
        return {v.native_path: read(v, slice(None)) for v in model.variables}


@pytest.mark.parametrize("size", [2e3, 1e6, 50e6, 815e6])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_model_has_about_the_size_that_is_asked_for(size, dtype):
    assert Model.sized(size, dtype).size == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("variables", [2, 100, 20_000])
def test_a_model_has_as_many_variables_as_are_asked_for(variables):
    model = Model.sized(200e6, variables=variables)
    assert len(model.variables) == variables
    assert sum(v.size for v in model.variables) * 4 == model.size == pytest.approx(200e6, rel=0.05)


def test_a_file_holds_its_values_and_little_more(tmp_path):
    model = Model.sized(5e6)
    build_random([tmp_path / "a.weights.h5"], model)
    assert model.size < (tmp_path / "a.weights.h5").stat().st_size < model.size * 1.01


def test_checkpoints_of_one_number_hold_the_same_values_in_every_layout(tmp_path):
    model = Model(3, 20)
    expected = None
    for suffix in LAYOUTS:
        paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
        build_random(paths, model)
        first, second = (values_in(path, model) for path in paths)
        expected = expected or first
        assert list(first) == list(expected)
        for name, values in first.items():
            np.testing.assert_array_equal(values, expected[name])
            assert not np.array_equal(values, second[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shorter_dtypes_hold_the_same_values_rounded(tmp_path, dtype):
    wide, short = Model(2, 10), Model(2, 10, dtype)
    build_random([tmp_path / "wide.weights.h5"], wide)
    build_random([tmp_path / "short.weights.h5"], short)
    rounded = values_in(tmp_path / "short.weights.h5", short)
    for name, values in values_in(tmp_path / "wide.weights.h5", wide).items():
        assert str(rounded[name].dtype) == dtype
        np.testing.assert_array_equal(values.astype(dtype), rounded[name])


def test_values_are_normal_and_stand_where_the_file_says(tmp_path):
    build_random([tmp_path / "a.weights.h5"], Model(1, 300))
    kernel = read_arrays(tmp_path / "a.weights.h5")["layers/dense/vars/0"]
    assert abs(kernel.mean()) < 0.02
    assert kernel.std() == pytest.approx(1, abs=0.02)
    with h5py.File(tmp_path / "a.weights.h5") as file:
        dataset = file["layers/dense/vars/0"]
        assert dataset.chunks is None
        content = (tmp_path / "a.weights.h5").read_bytes()[dataset.id.get_offset() :]
    assert content.startswith(kernel.tobytes())


def test_values_can_be_given(tmp_path):
    model = Model(1, 3, "float64")
    arrays = {v.native_path: np.full(v.shape, 7.25) for v in model.variables}
    build([tmp_path / "a.weights.h5"], model, [given_values(arrays)])
    for values in values_in(tmp_path / "a.weights.h5", model).values():
        assert (values == 7.25).all()


def test_nothing_but_the_checkpoints_is_left(tmp_path):
    for suffix in LAYOUTS:
        build_random([tmp_path / f"a{suffix}"], Model(1, 2))
    assert sorted(suffix_of(path) for path in tmp_path.iterdir()) == sorted(LAYOUTS)
