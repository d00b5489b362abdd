"""A real run with Keras' own callbacks: names and history say the same of each checkpoint."""

import json
import subprocess
import sys

import numpy as np
import pytest

EPOCHS = 11
"""More than nine, so that a shell would sort them wrongly."""


@pytest.fixture(scope="module")
def trained(keras, tmp_path_factory):
    """The folder of a run, and its history as `fit` returns it."""
    folder = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(20)
    generator = np.random.default_rng(20)
    x = generator.normal(size=(64, 4)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.SGD(2.0), "binary_crossentropy", metrics=["accuracy"])
    names = (
        ("padded", "weights.{epoch:02d}-{val_loss:.4f}.weights.h5"),
        ("labelled", "m-epoch{epoch}-val_loss{val_loss:.4f}-val_accuracy{val_accuracy:.3f}.keras"),
        ("plain", "ckpt-{epoch}.keras"),
    )
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            folder / kind / name, save_weights_only=name.endswith(".weights.h5")
        )
        for kind, name in names
    ]
    callbacks.append(keras.callbacks.CSVLogger(folder / "history.csv"))
    history = model.fit(x[:32], y[:32], validation_data=(x[32:], y[32:]), epochs=EPOCHS,
                        batch_size=4, verbose=0, callbacks=callbacks)  # fmt: skip
    return folder, history.history


def planned(folder, kind, *options):
    paths = sorted((folder / kind).iterdir())
    assert len(paths) == EPOCHS
    command = [sys.executable, "-m", "streamavg", "merge", *map(str, paths), *options]
    command += ["--dry-run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["padded", "labelled", "plain"])
@pytest.mark.parametrize("metric", ["val_loss", "loss", "val_accuracy"])
def test_the_history_tells_the_score_of_each_epoch(trained, kind, metric):
    """CSVLogger counts from 0, ModelCheckpoint from 1; `fit` lists the epochs from the first."""
    folder, history = trained
    options = ("--best", str(EPOCHS), "--scores", str(folder / "history.csv"), "--metric", metric)
    record = planned(folder, kind, *options)
    assert [entry["score"] for entry in record["inputs"]] == pytest.approx(
        history[metric], rel=1e-6
    )


@pytest.mark.parametrize("kind", ["padded", "labelled"])
def test_names_tell_the_score_of_each_epoch(trained, kind):
    folder, history = trained
    options = ("--best", str(EPOCHS), "--scores", "filename", "--metric", "val_loss")
    record = planned(folder, kind, *options)
    assert [entry["score"] for entry in record["inputs"]] == pytest.approx(
        history["val_loss"], abs=5e-5
    )


def test_the_best_are_the_same_by_name_and_by_history(trained):
    folder, history = trained
    by_history = planned(folder, "padded", "--best", "3", "--scores", str(folder / "history.csv"))
    by_name = planned(folder, "padded", "--best", "3", "--scores", "filename", "--minimize")
    best = sorted(np.argsort(history["val_loss"], kind="stable")[:3] + 1)
    for record in (by_history, by_name):
        chosen = [int(e["path"].split("weights.")[1].split("-")[0]) for e in record["inputs"]]
        assert chosen == best


def test_the_last_epochs_are_the_last_in_the_history(trained, keras, merge, tmp_path):
    folder, _ = trained
    record = merge(sorted((folder / "plain").iterdir()), tmp_path / "x.keras", "--last", "2")
    names = [entry["path"].rpartition("/")[2] for entry in record["inputs"]]
    assert names == [f"ckpt-{EPOCHS - 1}.keras", f"ckpt-{EPOCHS}.keras"]
    kernels = [
        keras.saving.load_model(path, compile=False).get_weights()[0]
        for path in (*(folder / "plain" / name for name in names), tmp_path / "x.keras")
    ]
    mean = (kernels[0].astype("f8") + kernels[1]) / 2
    np.testing.assert_array_equal(kernels[2], mean.astype("f4"))


def test_keras_loads_the_median_of_a_run(trained, keras, merge, tmp_path):
    folder, _ = trained
    paths = sorted((folder / "plain").iterdir())
    merge(paths, tmp_path / "x.keras", "--method", "median")
    states = [keras.saving.load_model(path, compile=False).get_weights() for path in paths]
    found = keras.saving.load_model(tmp_path / "x.keras", compile=False).get_weights()
    for values, *inputs in zip(found, *states, strict=True):
        np.testing.assert_array_equal(values, np.median(np.stack(inputs), axis=0))
