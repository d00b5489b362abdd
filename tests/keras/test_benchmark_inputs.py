"""The checkpoints of the benchmarks are those that Keras writes, and Keras loads them."""

import json

import h5py
import numpy as np
import pytest
from benchmarks import contenders, measuring
from benchmarks.checks import check_outputs, reader
from benchmarks.inputs import Model, build_random, configuration

pytestmark = pytest.mark.slow


def built(tmp_path, model, suffix):
    path = tmp_path / f"built{suffix}"
    build_random([path], model)
    return path


def assert_holds(loaded, path, model):
    """The Keras model has the names and the values of a checkpoint."""
    assert [layer.name for layer in loaded.layers] == model.layer_names
    with reader(path, model) as read:
        for variable, weight in zip(model.variables, loaded.weights, strict=True):
            value = weight.value.numpy()
            assert str(value.dtype) == model.dtype
            np.testing.assert_array_equal(value, read(variable, slice(None)))


def fresh(keras, model):
    """The same model, built as one does in Keras."""
    keras.backend.clear_session()
    layers = [keras.layers.Dense(model.width, dtype=model.dtype) for _ in range(model.layers)]
    return keras.Sequential([keras.Input((model.width,)), *layers])


def structure(path):
    """Everything that a file says but its values: places, types, attributes."""
    described = {}

    def describe(name, item):
        attributes = {
            key: (np.asarray(value).tolist(), item.attrs.get_id(key).dtype.str)
            for key, value in item.attrs.items()
            if key not in {"keras_version", "model_config"}
        }
        place = None
        if isinstance(item, h5py.Dataset):
            place = (item.shape, item.dtype.str, item.id.get_type().get_class(), item.chunks)
        described[name] = (attributes, place)

    with h5py.File(path) as file:
        describe("", file)
        file.visititems(describe)
    return described


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [5, 300])
def test_a_weights_file_is_byte_for_byte_what_keras_writes(keras, tmp_path, dtype, width):
    model = Model(12, width, dtype)
    path = built(tmp_path, model, ".weights.h5")
    loaded = fresh(keras, model)
    loaded.load_weights(path)
    assert_holds(loaded, path, model)
    loaded.save_weights(tmp_path / "keras.weights.h5")
    assert (tmp_path / "keras.weights.h5").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_keras_loads_the_archives_without_being_told_the_model(keras, tmp_path, dtype):
    model = Model(12, 7, dtype)
    path = built(tmp_path, model, ".keras")
    assert_holds(keras.saving.load_model(path), path, model)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_legacy_file_has_the_structure_that_keras_writes(keras, tmp_path, dtype):
    model = Model(12, 7, dtype)
    path = built(tmp_path, model, ".h5")
    assert_holds(keras.saving.load_model(path, compile=False), path, model)
    fresh(keras, model).save(tmp_path / "keras.h5")
    assert structure(path) == structure(tmp_path / "keras.h5")


def test_keras_rebuilds_the_model_of_a_weights_file_from_the_configuration(keras, tmp_path):
    model = Model(3, 7)
    path = built(tmp_path, model, ".weights.h5")
    rebuilt = keras.saving.deserialize_keras_object(configuration(model))
    rebuilt.load_weights(path)
    assert_holds(rebuilt, path, model)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.usefixtures("keras")
def test_the_article_s_way_writes_the_mean(tmp_path, suffix):
    model = Model(3, 7)
    inputs = [f"{number}{suffix}" for number in range(3)]
    build_random([tmp_path / name for name in inputs], model)
    (tmp_path / "config.json").write_text(json.dumps(configuration(model)))
    contender = contenders.article(inputs, "config.json")
    done = measuring.run(contender.command, tmp_path)
    assert done.outcome == "done", done.message
    check_outputs([contender], model, tmp_path)
