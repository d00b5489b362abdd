"""Small models of real Keras, made in a moment, and data that they are scored on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.real_keras import run_last

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    run_last(items, HERE)


@pytest.fixture(scope="session")
def keras():
    keras = pytest.importorskip("keras", minversion="3")
    pytest.importorskip("tensorflow")
    return keras


@pytest.fixture
def dense(keras):
    """A small classifier of 4 numbers into 3 classes; `seed` decides its values."""

    def make(seed=0, *, loss="sparse_categorical_crossentropy", metrics=("accuracy",), units=3):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.layers.Input((4,)),
                keras.layers.Dense(5, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(units, activation="sigmoid" if units == 1 else "softmax"),
            ]
        )
        for weight in model.weights:
            noise = np.random.default_rng(seed).normal(size=weight.shape) * 0.1
            weight.assign(weight.value.numpy() + noise.astype(np.float32) ** 2)
        if loss is not None:
            model.compile("adam", loss, metrics=list(metrics))
        return model

    return make


@pytest.fixture
def numbers():
    """Inputs and labels of 3 classes: shapes (70, 4) and (70,)."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(70, 4)).astype(np.float32)
    return x, np.argmax(x[:, :3] + 0.5 * generator.normal(size=(70, 3)), axis=1)


@pytest.fixture
def npz(tmp_path):
    """Writes arrays to a `.npz` file and returns its name."""

    def write(name="data.npz", **arrays):
        path = tmp_path / name
        np.savez(path, **arrays)
        return str(path)

    return write
