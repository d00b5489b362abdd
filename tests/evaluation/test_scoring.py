"""Scores are those that Keras gives, and each example's share in them is known."""

import numpy as np
import pytest

from streamavg.errors import OptionError
from streamavg.evaluation.datasets import ArrayData
from streamavg.evaluation.scoring import score


def data_of(x, y, weight=None, batch_size=32):
    return ArrayData("data", x, y, weight, batch_size)


def keras_values(model, x, y, weight=None, batch_size=32):
    return model.evaluate(
        x, y, sample_weight=weight, batch_size=batch_size, verbose=0, return_dict=True
    )


def assert_as_keras(found, expected):
    assert sorted(found.values) == sorted(expected)
    for name, value in expected.items():
        assert found.values[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("batch_size", [1, 32, 100])
def test_values_are_those_of_keras(dense, numbers, batch_size):
    model = dense(metrics=("accuracy", "sparse_top_k_categorical_accuracy"))
    found = score(model, data_of(*numbers, batch_size=batch_size))
    assert_as_keras(found, keras_values(model, *numbers, batch_size=batch_size))
    assert found.examples == 70


def test_each_example_s_share_is_its_loss_and_whether_it_is_right(dense, numbers):
    model, (x, y) = dense(), numbers
    found = score(model, data_of(x, y, batch_size=16))
    predicted = model(x).numpy()
    losses = -np.log(predicted[np.arange(len(y)), y])
    np.testing.assert_allclose(found["loss"].statistic.states[:, 0], losses, rtol=1e-5)
    right = predicted.argmax(axis=1) == y
    np.testing.assert_array_equal(found["accuracy"].statistic.states[:, 0], right)
    for one in found.scores:
        assert one.statistic.value() == pytest.approx(one.value, rel=1e-5)


def test_a_model_is_scored_the_same_a_second_time(dense, numbers):
    model = dense()
    first, second = (score(model, data_of(*numbers)) for _ in range(2))
    assert first.values == second.values
    assert first.checksum == second.checksum


def test_without_examples_the_values_are_the_same(dense, numbers):
    model = dense()
    alone = score(model, data_of(*numbers), keep_examples=False)
    assert alone.values == score(model, data_of(*numbers)).values
    assert [one.statistic for one in alone.scores] == [None, None]


def test_sample_weights_count(dense, numbers, keras):
    weight = np.linspace(0, 2, 70).astype(np.float32)
    model = dense(loss=None)
    model.compile(
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
    )
    found = score(model, data_of(*numbers, weight))
    assert_as_keras(found, keras_values(model, *numbers, weight))
    assert all(one.statistic is not None for one in found.scores)
    np.testing.assert_allclose(found["weighted"].statistic.states[:, 1], weight, rtol=1e-6)


@pytest.mark.parametrize("metric", ["AUC", "Precision", "Recall"])
def test_metrics_that_are_no_means_are_resampled_by_their_states(dense, numbers, keras, metric):
    x, y = numbers
    model = dense(loss=None, units=1)
    model.compile(loss="binary_crossentropy", metrics=[getattr(keras.metrics, metric)(name="m")])
    binary = (y > 0).astype(np.float32)[:, None]
    found = score(model, data_of(x, binary))["m"]
    assert found.value == pytest.approx(keras_values(model, x, binary)["m"], rel=1e-5)
    drawn = np.random.default_rng(0).integers(70, size=70)
    sums = found.statistic.states[drawn].sum(axis=0, dtype=np.float64)
    resampled = found.statistic.result((sums + found.statistic.start)[None])[0]
    expected = keras_values(model, x[drawn], binary[drawn])["m"]
    assert resampled == pytest.approx(expected, rel=1e-4)


def test_regularisation_is_in_the_loss_as_in_keras(keras, numbers):
    layer = keras.layers.Dense(3, activation="softmax", kernel_regularizer=keras.regularizers.L2(1))
    model = keras.Sequential([keras.layers.Input((4,)), layer])
    model.compile(loss="sparse_categorical_crossentropy")
    found = score(model, data_of(*numbers, batch_size=16))
    expected = model.evaluate(*numbers, batch_size=16, verbose=0)
    assert found.values["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"].statistic is not None


def test_several_inputs_and_outputs(keras, numbers):
    x, y = numbers
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    both = keras.layers.Concatenate()([one, two])
    outputs = {
        "kind": keras.layers.Dense(3, activation="softmax", name="kind")(both),
        "size": keras.layers.Dense(1, name="size")(both),
    }
    model = keras.Model([one, two], outputs)
    model.compile(
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    labels = {"kind": y, "size": x[:, :1]}
    found = score(model, data_of((x, x + 1), labels))
    expected = model.evaluate((x, x + 1), labels, verbose=0, return_dict=True)
    assert list(found.values) == ["loss", "kind_accuracy", "size_mae"]
    for name, value in found.values.items():
        assert value == pytest.approx(expected[name], rel=1e-5)
    assert all(one.statistic is not None for one in found.scores)


def test_a_metric_over_words_counts_each_word_once(keras):
    generator = np.random.default_rng(0)
    x, y = generator.integers(1, 5, size=(9, 6)), generator.integers(0, 3, size=(9, 6))
    model = keras.Sequential(
        [
            keras.layers.Input((6,), dtype="int32"),
            keras.layers.Embedding(5, 4),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    found = score(model, data_of(x, y, batch_size=4))
    assert_as_keras(found, keras_values(model, x, y, batch_size=4))
    assert all(one.statistic is not None for one in found.scores)


def test_a_masked_metric_counts_what_is_not_masked(keras):
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 4]])
    y = np.array([[1, 2, 0, 0], [1, 0, 0, 0], [2, 2, 1, 0]])
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((4,), dtype="int32"),
            keras.layers.Embedding(5, 4, mask_zero=True),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    found = score(model, data_of(x, y))
    assert_as_keras(found, keras_values(model, x, y))


def test_a_metric_that_is_no_sum_over_examples_has_no_shares_and_says_why(keras, dense, numbers):
    class Spread(keras.metrics.Metric):
        """The spread of the predictions of the last batch."""

        def __init__(self):
            super().__init__(name="spread")
            self.last = self.add_weight(name="last", initializer="zeros")

        def update_state(self, y, predicted, sample_weight=None):
            self.last.assign(keras.ops.std(predicted) * 100)

        def result(self):
            return self.last.value

    model = dense(loss=None)
    model.compile(loss="sparse_categorical_crossentropy", metrics=[Spread()])
    found = score(model, data_of(*numbers))
    assert_as_keras(found, keras_values(model, *numbers))
    assert found["spread"].statistic is None
    assert "no sum over examples" in found["spread"].why_not
    assert found["loss"].statistic is not None


def test_a_model_that_evaluates_in_its_own_way_has_values_alone(keras, numbers):
    class Own(keras.Sequential):
        def test_step(self, data):
            return {"surprise": keras.ops.sum(data[0])}

    model = Own([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile(loss="mse")
    (one,) = score(model, data_of(*numbers, batch_size=100)).scores
    assert one.name == "surprise"
    assert one.value == pytest.approx(float(numbers[0].sum()), rel=1e-4)
    assert one.statistic is None
    assert "a way of its own" in one.why_not


def test_data_that_do_not_fit_the_model_are_told(dense):
    with pytest.raises(OptionError, match="data: the model cannot be scored on it"):
        score(dense(), data_of(np.ones((4, 9)), np.zeros(4)))


def test_batches_are_reported(dense, numbers):
    counts = []
    score(dense(), data_of(*numbers, batch_size=16), on_batch=counts.append)
    assert counts == [1, 1, 1, 1, 1]
