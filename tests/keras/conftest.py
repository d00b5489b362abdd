"""Real Keras 3 on the TensorFlow backend: the judge of what streamavg writes."""

from __future__ import annotations

import json
import subprocess
import sys
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
    """Keras, imported when the first test asks for it, computing the same bits every time."""
    keras = pytest.importorskip("keras", minversion="3")
    tensorflow = pytest.importorskip("tensorflow")
    tensorflow.config.experimental.enable_op_determinism()
    return keras


@pytest.fixture(autouse=True)
def _seeded(keras):
    keras.utils.set_random_seed(20)


@pytest.fixture(scope="session")
def merge():
    """The command line: `merge(checkpoints, output, *options)` returns the record it prints."""

    def run(checkpoints, output, *options):
        command = [sys.executable, "-m", "streamavg", "merge", *map(str, checkpoints)]
        command += ["-o", str(output), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def values_of(keras):
    """The values of all weights of a model, by their number and path."""

    def values_of(model):
        return {
            f"{number} {weight.path}": weight.value.numpy()
            for number, weight in enumerate(model.weights)
        }

    return values_of


@pytest.fixture(scope="session")
def mean_of():
    """What the values of models average to: the mean in float64, rounded once, or the first's."""

    def mean_of(checkpoints):
        columns = zip(*(values.values() for values in checkpoints), strict=True)
        return [_mean(column) for column in columns]

    return mean_of


def _mean(column):
    first = column[0]
    if first.dtype.kind not in "fV":  # V: bfloat16
        return first
    wide = np.stack(column).astype(np.float64)
    return np.asarray(wide.mean(axis=0)).astype(first.dtype)


@pytest.fixture(scope="session")
def assign():
    """Puts values into a model, one array per weight."""

    def assign(model, values):
        for weight, value in zip(model.weights, values, strict=True):
            weight.assign(value)

    return assign


@pytest.fixture(scope="session")
def forget(keras):
    """Zeroes a model, so that a weight that is then not loaded shows."""

    def forget(model):
        for weight in model.weights:
            weight.assign(keras.ops.zeros_like(weight.value))
        return model

    return forget


@pytest.fixture(scope="session")
def assert_holds(values_of):
    """Asserts that a model holds these values, one array per weight, bit for bit."""

    def assert_holds(model, expected):
        found = values_of(model)
        assert len(found) == len(expected)
        for (name, value), wanted in zip(found.items(), expected, strict=True):
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), name
            different = np.count_nonzero(_bits(value) != _bits(wanted))
            assert not different, f"{name}: {different} of {value.size} values differ"

    return assert_holds


def _bits(values):
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
