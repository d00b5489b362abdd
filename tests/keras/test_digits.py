"""Checkpoints of a real training run, averaged by the command line and loaded by Keras."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
ARCHITECTURE = FIXTURES / "digits/epoch-18.keras"

SETS = {
    "digits/*.keras": "mean of digits/*.keras",
    "digits/*.weights.h5": "mean of digits/*.keras",
    "digits-legacy/keras3-*.h5": None,
}
"""Fixtures of one run, and what accuracies.json calls their mean."""
KERAS_2_SETS = (
    "digits-keras2/*.keras",
    "digits-keras2/*.weights.h5",
    "digits-legacy/keras2-epoch-*.h5",
    "digits-legacy/keras2-weights-*.h5",
)
KERAS_2_ACCURACY = "mean of digits-keras2/*.keras"
LEAST_ACCURACY = 0.85
SPLITS = ("validation", "test")
DROPPED_OPTIMIZER = (
    r"Skipping variable loading for optimizer 'adam', because it has \d+ variables "
    r"whereas the saved optimizer has 0 variables"
)
"""What Keras says of it, and all it says."""


def checkpoints_of(pattern):
    paths = sorted(FIXTURES.glob(pattern))
    assert len(paths) > 1, pattern
    return paths


def suffix_of(path):
    return ".weights.h5" if ".weights" in path.name else path.suffix


def assert_same_state(model, expected):
    """Asserts that the optimizers are at the same step with the same moments."""
    assert int(expected.optimizer.iterations) > 0
    pairs = zip(model.optimizer.variables, expected.optimizer.variables, strict=True)
    for found, wanted in pairs:
        np.testing.assert_array_equal(
            found.value.numpy(), wanted.value.numpy(), err_msg=wanted.path
        )


def recorded_accuracies(label):
    return json.loads((FIXTURES / "accuracies.json").read_text())[label]


@pytest.fixture(scope="module")
def data():
    with np.load(FIXTURES / "digits-data.npz", allow_pickle=False) as stored:
        return {
            split: (stored[f"x_{split}"].astype(np.float32), stored[f"y_{split}"])
            for split in SPLITS
        }


@pytest.fixture(scope="module")
def load(keras, forget):
    """Loads a checkpoint without its optimizer, weights into the model of a `.keras`."""

    def load(path):
        if suffix_of(path) != ".weights.h5":
            return keras.saving.load_model(path, compile=False)
        model = forget(keras.saving.load_model(ARCHITECTURE, compile=False))
        model.load_weights(path)
        return model

    return load


@pytest.fixture(scope="module")
def mean_of_files(load, values_of, mean_of):
    """The mean, computed from what Keras loads."""
    return lambda paths: mean_of([values_of(load(path)) for path in paths])


@pytest.fixture(scope="module")
def written_by_keras(load, mean_of_files, assign, tmp_path_factory):
    """The mean as Keras itself saves it and loads it again.

    A Normalization computes with what `adapt` or loading left, whatever is assigned afterwards,
    so only a model that comes from a file uses the mean.
    """

    def write(paths):
        model = load(paths[0])
        assign(model, mean_of_files(paths))
        path = tmp_path_factory.mktemp("keras") / f"mean{suffix_of(paths[0])}"
        if suffix_of(path) == ".weights.h5":
            model.save_weights(path)
        else:
            model.save(path)
        return load(path)

    return write


@pytest.fixture(scope="module", params=SETS)
def pattern(request):
    return request.param


@pytest.fixture(scope="module")
def averaged(pattern, merge, load, tmp_path_factory):
    """The mean of one set of fixtures as streamavg writes it and Keras loads it."""
    paths = checkpoints_of(pattern)
    output = tmp_path_factory.mktemp("averaged") / f"averaged{suffix_of(paths[0])}"
    merge(paths, output)
    return load(output)


def test_every_variable_is_the_mean_rounded_once(pattern, averaged, mean_of_files, assert_holds):
    assert_holds(averaged, mean_of_files(checkpoints_of(pattern)))


def test_predictions_are_those_of_the_mean_that_keras_saves(
    pattern, averaged, written_by_keras, data
):
    images, _ = data["test"]
    expected = written_by_keras(checkpoints_of(pattern)).predict(images, verbose=0)
    np.testing.assert_array_equal(averaged.predict(images, verbose=0), expected)


@pytest.mark.parametrize("split", SPLITS)
def test_the_recompiled_model_is_as_accurate_as_recorded(pattern, averaged, data, split):
    images, digits = data[split]
    averaged.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    accuracy = averaged.evaluate(images, digits, verbose=0, return_dict=True)["accuracy"]
    assert accuracy > LEAST_ACCURACY
    if SETS[pattern] is not None:
        assert accuracy == pytest.approx(recorded_accuracies(SETS[pattern])[split], abs=1e-6)


@pytest.mark.parametrize("whole_models", ["digits/*.keras", "digits-legacy/keras3-*.h5"])
def test_weights_averaged_from_whole_models_load_into_the_rebuilt_model(
    merge, load, mean_of_files, assert_holds, tmp_path, whole_models
):
    paths = checkpoints_of(whole_models)
    merge(paths, tmp_path / "averaged.weights.h5")
    assert_holds(load(tmp_path / "averaged.weights.h5"), mean_of_files(paths))


def test_keras_warns_of_a_dropped_optimizer_and_compiles_the_model(keras, merge, data, tmp_path):
    merge(checkpoints_of("digits/*.keras"), tmp_path / "averaged.keras")
    with pytest.warns(UserWarning, match=DROPPED_OPTIMIZER) as caught:
        model = keras.saving.load_model(tmp_path / "averaged.keras")
    assert len(caught) == 1
    assert int(model.optimizer.iterations) == 0
    accuracy = model.evaluate(*data["test"], verbose=0, return_dict=True)["accuracy"]
    assert accuracy == pytest.approx(
        recorded_accuracies("mean of digits/*.keras")["test"], abs=1e-6
    )


def test_keras_warns_of_a_dropped_optimizer_and_loads_the_weights_alone(
    keras, merge, forget, mean_of_files, assert_holds, tmp_path
):
    paths = checkpoints_of("digits/*.weights.h5")
    merge(paths, tmp_path / "averaged.weights.h5")
    model = forget(keras.saving.load_model(ARCHITECTURE))
    with pytest.warns(UserWarning, match=DROPPED_OPTIMIZER) as caught:
        model.load_weights(tmp_path / "averaged.weights.h5")
    assert len(caught) == 1
    assert_holds(model, mean_of_files(paths))


@pytest.mark.parametrize("pattern", ["digits/*.keras", "digits-legacy/keras3-*.h5"])
def test_the_kept_optimizer_of_the_reference_loads(keras, merge, tmp_path, pattern):
    paths = checkpoints_of(pattern)
    output = tmp_path / f"averaged{suffix_of(paths[0])}"
    merge(paths, output, "--optimizer", "reference", "--reference", str(paths[-1]))
    assert_same_state(keras.saving.load_model(output), keras.saving.load_model(paths[-1]))


def test_a_model_with_the_kept_optimizer_trains_on(keras, merge, data, tmp_path):
    merge(checkpoints_of("digits/*.keras"), tmp_path / "averaged.keras", "--optimizer", "reference")
    model = keras.saving.load_model(tmp_path / "averaged.keras")
    steps = int(model.optimizer.iterations)
    images, digits = data["validation"]
    model.train_on_batch(images[:16], digits[:16])
    assert int(model.optimizer.iterations) == steps + 1


def test_the_kept_optimizer_loads_with_the_weights_alone(keras, merge, tmp_path):
    paths = checkpoints_of("digits/*.weights.h5")
    merge(paths, tmp_path / "averaged.weights.h5", "--optimizer", "reference")
    model, expected = (keras.saving.load_model(ARCHITECTURE) for _ in range(2))
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable.value))
    model.load_weights(tmp_path / "averaged.weights.h5")
    assert_same_state(model, expected)


KERAS_2_JUDGE = """
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import numpy as np
import tf_keras as keras

job = json.load(sys.stdin)

def load(path):
    # Keras 2 tells the layout of weights by the end of the name, of models by the content.
    if "weights" not in os.path.basename(path):
        return keras.models.load_model(path, compile=False)
    model = keras.models.load_model(job["architecture"], compile=False)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape, weight.dtype.as_numpy_dtype))
    model.load_weights(path)
    return model

def mean(column):
    return np.mean(column, axis=0, dtype=np.float64).astype(column[0].dtype)

inputs = [load(path).get_weights() for path in job["inputs"]]
expected = [mean(column) if column[0].dtype.kind == "f" else column[0] for column in zip(*inputs)]
model = load(job["output"])
differing = [
    weight.name
    for weight, found, wanted in zip(model.weights, model.get_weights(), expected)
    if (found.dtype, found.shape, found.tobytes())
    != (wanted.dtype, wanted.shape, wanted.tobytes())
]
saved = load(job["inputs"][0])
saved.set_weights(expected)
saved.save(job["scratch"])
saved = keras.models.load_model(job["scratch"], compile=False)

model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
data = np.load(job["data"])
report = {"weights": len(expected), "differing": differing, "accuracies": {}}
for split in ("validation", "test"):
    images, digits = data[f"x_{split}"].astype("float32"), data[f"y_{split}"]
    report["accuracies"][split] = model.evaluate(images, digits, verbose=0)[1]
report["same_predictions"] = bool(
    (model.predict(images, verbose=0) == saved.predict(images, verbose=0)).all()
)
print(json.dumps(report))
"""
"""Keras 2 and Keras 3 do not share a process well."""


@pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="needs tf_keras")
@pytest.mark.parametrize("keras_2_set", KERAS_2_SETS)
def test_keras_2_loads_the_mean_of_its_own_checkpoints(merge, tmp_path, keras_2_set):
    paths = checkpoints_of(keras_2_set)
    kind = "-weights" if "weights-" in keras_2_set else ""
    output = tmp_path / f"averaged{kind}{suffix_of(paths[0])}"
    merge(paths, output)

    job = {
        "architecture": str(FIXTURES / "digits-keras2/epoch-19.keras"),
        "inputs": [str(path) for path in paths],
        "output": str(output),
        "scratch": str(tmp_path / "saved-by-keras.keras"),
        "data": str(FIXTURES / "digits-data.npz"),
    }
    done = subprocess.run(
        [sys.executable, "-c", KERAS_2_JUDGE],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    assert report["weights"] > 0
    assert report["differing"] == []
    assert report["same_predictions"]
    assert report["accuracies"] == pytest.approx(recorded_accuracies(KERAS_2_ACCURACY), abs=1e-6)
