"""What the methods that read the files twice write, loaded by Keras and set to work."""

import math
from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
RUN = [FIXTURES / f"digits/epoch-{n}.keras" for n in (18, 19, 20)]
STRAY = FIXTURES / "digits-keras2/epoch-20.keras"
SUFFIXES = [".keras", ".weights.h5"]


@pytest.fixture(scope="module")
def load(keras):
    def load(path):
        if path.suffix == ".keras":
            return keras.saving.load_model(path, compile=False)
        model = keras.saving.load_model(RUN[0], compile=False)
        model.load_weights(path)
        return model

    return load


@pytest.fixture(scope="module")
def accuracy():
    with np.load(FIXTURES / "digits-data.npz", allow_pickle=False) as stored:
        x, y = stored["x_test"].astype(np.float32), stored["y_test"]
    return lambda model: float((model.predict(x, verbose=0).argmax(axis=1) == y).mean())


def trained(load, path):
    """The weights that training and moving averages made, as Keras loads them."""
    return [
        weight.numpy().astype("f8")
        for layer in load(path).layers
        for weight in layer.weights
        if "normalization" not in layer.name or "batch" in layer.name
        if np.issubdtype(weight.numpy().dtype, np.floating)
    ]


def slerp(a, b, t):
    first, second = a.reshape(-1), b.reshape(-1)
    cosine = first @ second / math.sqrt((first @ first) * (second @ second))
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slerp_is_the_textbook_s_for_each_weight(merge, load, accuracy, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    merge(RUN[:2], output, "--method", "slerp", "--weights", "0.25,0.75")
    ends = [trained(load, path) for path in RUN[:2]]
    for found, a, b in zip(trained(load, output), *ends, strict=True):
        np.testing.assert_allclose(found, slerp(a, b, 0.75), rtol=1e-6, atol=1e-7)
    assert accuracy(load(output)) > 0.85


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_stray_checkpoint_does_not_spoil_the_geometric_median(
    merge, load, accuracy, tmp_path, suffix
):
    paths = [*RUN, STRAY]
    scores = {}
    for method in ("mean", "geometric-median"):
        output = tmp_path / f"{method}{suffix}"
        merge(paths, output, "--method", method, "--preprocessing", "reference")
        scores[method] = accuracy(load(output))
    alone = accuracy(load(RUN[0]))
    assert scores["geometric-median"] > 0.85
    assert scores["geometric-median"] >= scores["mean"]
    assert scores["geometric-median"] > alone - 0.02


def test_pooled_statistics_of_a_run_are_hardly_more_than_the_mean(merge, load, accuracy, tmp_path):
    merge(RUN, tmp_path / "mean.keras")
    merge(RUN, tmp_path / "pooled.keras", "--batchnorm", "pooled")
    variances = [
        next(
            layer.moving_variance.numpy()
            for layer in load(tmp_path / f"{name}.keras").layers
            if "batch" in layer.name
        )
        for name in ("mean", "pooled")
    ]
    assert (variances[1] >= variances[0]).all()
    assert variances[1] == pytest.approx(variances[0], rel=0.05)
    assert accuracy(load(tmp_path / "pooled.keras")) > 0.85
