"""Moving statistics estimated anew: the plain mean over batches."""

import numpy as np
import pytest

from streamavg.errors import OptionError
from streamavg.evaluation.datasets import ArrayData
from streamavg.evaluation.recalibrating import recalibrate


@pytest.fixture
def data(numbers):
    return ArrayData("data", *numbers, None, 25)


def test_statistics_are_the_plain_mean_of_those_of_the_batches(dense, data, numbers):
    model = dense()
    before = [weight.value.numpy() for weight in model.trainable_weights]
    change = recalibrate(model, data)
    layer = model.layers[1]
    inside = [model.layers[0](numbers[0][start : start + 25]).numpy() for start in (0, 25, 50)]
    np.testing.assert_allclose(
        layer.moving_mean.value.numpy(), np.mean([i.mean(axis=0) for i in inside], axis=0),
        rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        layer.moving_variance.value.numpy(), np.mean([i.var(axis=0) for i in inside], axis=0),
        rtol=1e-5,
    )  # fmt: skip
    assert (change.batches, change.frozen, len(change.layers)) == (3, (), 1)
    assert layer.momentum == 0.99
    for weight, value in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.value.numpy(), value)


def test_it_can_be_undone(dense, data):
    model = dense()
    before = [weight.value.numpy() for weight in model.weights]
    recalibrate(model, data).undo()
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.value.numpy(), value)


def test_layers_inside_layers_are_found(keras, data):
    inner = keras.Sequential([keras.layers.Input((4,)), keras.layers.BatchNormalization()])
    model = keras.Sequential([keras.layers.Input((4,)), inner, keras.layers.Dense(2)])
    assert len(recalibrate(model, data).layers) == 1
    assert inner.layers[0].moving_mean.value.numpy().any()


def test_frozen_layers_are_left_alone_and_told(dense, data, keras):
    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.BatchNormalization(trainable=False, name="frozen"),
            keras.layers.BatchNormalization(),
        ]
    )
    change = recalibrate(model, data)
    assert change.frozen == ("frozen",)
    assert not model.layers[0].moving_mean.value.numpy().any()


def test_a_model_without_such_layers_is_refused(keras, data):
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(OptionError, match="no BatchNormalization layers"):
        recalibrate(model, data)
