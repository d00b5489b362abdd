"""Scores along the line between two checkpoints."""

import json

import numpy as np
import pytest

from streamavg import IncompatibleCheckpointsError, OptionError, evaluate_path
from tests.builders import DIGITS, FIXTURES, MISMATCHED

ENDS = DIGITS / "epoch-18.keras", DIGITS / "epoch-20.keras"
VAL = f"{FIXTURES / 'digits-data.npz'}:validation"


@pytest.fixture
def line(keras, tmp_path, npz):
    """Two linear models of one number, w = -1 and w = 3, and data whose answer is 0."""
    for name, value in (("left", -1.0), ("right", 3.0)):
        model = keras.Sequential(
            [keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, name="w")]
        )
        model.set_weights([np.array([[value]], np.float32)])
        model.compile(loss="mse", metrics=["mae"])
        model.save(tmp_path / f"{name}.keras")
        model.save_weights(tmp_path / f"{name}.weights.h5")
    data = npz(x=np.ones((8, 1), np.float32), y=np.zeros((8, 1), np.float32))
    return tmp_path, data


def test_the_points_are_on_the_straight_line(line):
    folder, data = line
    found = evaluate_path(folder / "left.keras", folder / "right.keras", data, points=5)
    weights = np.linspace(-1, 3, 5)
    assert [p.position for p in found.points] == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose([p.values["loss"] for p in found.points], weights**2, atol=1e-6)
    np.testing.assert_allclose([p.values["mae"] for p in found.points], abs(weights), atol=1e-6)


def test_a_loss_below_the_line_between_the_ends_is_no_barrier(line):
    folder, data = line
    found = evaluate_path(folder / "left.keras", folder / "right.keras", data, points=5)
    assert found.barrier.height == 0
    assert found.answer("a", "b").startswith("no barrier between a and b")


def test_a_loss_above_it_is_one_where_it_is_highest(line, monkeypatch):
    folder, data = line
    (folder / "hill_loss.py").write_text(
        "def hill(y, predicted):\n    return 9 - (predicted - 1) ** 2\n"
    )
    monkeypatch.syspath_prepend(folder)
    found = evaluate_path(
        folder / "left.keras", folder / "right.keras", data, points=5, loss="hill",
        imports=["hill_loss"],
    )  # fmt: skip
    # The loss is 9 - (w - 1)^2: 5 at both ends, 9 in the middle.
    assert found.barrier.position == 0.5
    assert found.barrier.height == pytest.approx(4)
    assert found.barrier.low == pytest.approx(4)
    assert found.answer("a", "b").startswith("there is a barrier between a and b: at 0.5 the loss")


def test_weights_alone_have_the_same_line(line):
    folder, data = line
    whole = evaluate_path(folder / "left.keras", folder / "right.keras", data, points=3)
    alone = evaluate_path(
        folder / "left.weights.h5", folder / "right.weights.h5", data, points=3,
        model=folder / "left.keras",
    )  # fmt: skip
    assert alone.points == whole.points


def test_one_run_has_no_barrier_and_a_picture(keras, tmp_path):
    from matplotlib.image import imread

    found = evaluate_path(*ENDS, VAL, points=3, plot=tmp_path / "line.png", batch_size=100)
    assert found.barrier.height == 0
    assert np.ptp(imread(tmp_path / "line.png")) > 0.5
    document = json.loads(found.to_json())
    assert document["schema_version"] == 1
    assert [point["position"] for point in document["points"]] == [0, 0.5, 1]


def test_checkpoints_that_do_not_belong_together_have_no_line(keras):
    with pytest.raises(IncompatibleCheckpointsError, match="cannot be averaged"):
        evaluate_path(ENDS[0], MISMATCHED / "wider.keras", VAL, points=3)


def test_a_line_takes_three_points(keras):
    with pytest.raises(OptionError, match="--points 2"):
        evaluate_path(*ENDS, VAL, points=2)
