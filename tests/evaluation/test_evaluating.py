"""An average against the best of some checkpoints, on models of real Keras."""

import json
from pathlib import Path

import numpy as np
import pytest

from streamavg import (
    ModelMismatchError,
    OptionError,
    OutputError,
    UnsafeFileError,
    evaluate,
    merge,
)
from tests.builders import DIGITS, FIXTURES, MISMATCHED

CHECKPOINTS = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
DATA = FIXTURES / "digits-data.npz"
VAL, TEST = f"{DATA}:validation", f"{DATA}:test"
RECORDED = json.loads((FIXTURES / "accuracies.json").read_text())
FEW = {"resamples": 500}


@pytest.fixture(scope="module")
def average(tmp_path_factory):
    output = tmp_path_factory.mktemp("average") / "average.keras"
    merge(CHECKPOINTS, output)
    return output


@pytest.fixture
def trained(keras, dense, numbers, tmp_path, npz):
    """A model that was trained, two that know nothing, and data: paths by name."""
    paths = {}
    for name, seed, epochs in (("good", 1, 60), ("bad", 2, 0), ("worse", 3, 0)):
        model = dense(seed)
        model.fit(*numbers, epochs=epochs, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        model.save_weights(tmp_path / f"{name}.weights.h5")
        paths[name] = tmp_path / f"{name}.keras"
    x, y = numbers
    paths["data"] = npz(x=x, y=y)
    return paths


def values(evaluation, path, where="validation"):
    model = next(m for m in evaluation.models if m.path == str(path))
    return getattr(model, where)


@pytest.fixture(scope="module")
def scored(keras, average):
    return evaluate(average, CHECKPOINTS, VAL, test=TEST, metric="accuracy", **FEW)


class TestScores:
    @pytest.fixture
    def found(self, scored):
        return scored

    def test_are_those_that_were_measured_when_the_fixtures_were_made(self, found, average):
        assert values(found, average)["accuracy"] == pytest.approx(
            RECORDED["mean of digits/*.keras"]["validation"]
        )
        for path in CHECKPOINTS:
            expected = RECORDED[f"digits/{path.name}"]["validation"]
            assert values(found, path)["accuracy"] == pytest.approx(expected)

    def test_the_best_on_validation_is_compared_on_both_sets(self, found):
        assert found.best == str(CHECKPOINTS[0])
        assert [(d.set, d.metric) for d in found.differences] == [
            ("validation", "loss"),
            ("validation", "accuracy"),
            ("test", "loss"),
            ("test", "accuracy"),
        ]
        last = found.differences[-1]
        assert last.first == pytest.approx(RECORDED["mean of digits/*.keras"]["test"])
        assert last.second == pytest.approx(RECORDED["digits/epoch-18.keras"]["test"])

    def test_the_test_set_is_not_looked_at_for_the_others(self, found):
        assert [values(found, path, "test") is None for path in CHECKPOINTS] == [False, True, True]

    def test_every_difference_lies_in_its_interval(self, found):
        for difference in found.differences:
            assert difference.low <= difference.difference <= difference.high

    def test_the_record_is_json(self, found):
        document = json.loads(found.to_json())
        assert document["schema_version"] == 1
        assert document["validation"] == {"name": VAL, "examples": 400}
        assert document["differences"][0]["resamples"] == 500
        assert document["loss"] == "sparse_categorical_crossentropy"
        assert document["metrics"] == ["accuracy"]


class TestVerdict:
    def test_a_model_that_learned_is_better_than_those_that_did_not(self, trained):
        found = evaluate(
            trained["good"], [trained["bad"], trained["worse"]], trained["data"], require="better"
        )
        assert found.decisive.verdict == "better"
        assert found.gate.passed
        assert found.answer("bad.keras").startswith("pass: the average is better than the best")

    def test_a_model_that_knows_nothing_does_not_pass(self, trained):
        found = evaluate(
            trained["bad"], [trained["worse"], trained["good"]], trained["data"],
            require="not-worse",
        )  # fmt: skip
        assert found.best == str(trained["good"])
        assert found.decisive.verdict == "worse"
        assert not found.gate.passed

    def test_a_model_compared_with_itself_is_equal(self, trained, tmp_path):
        copy = tmp_path / "copy.keras"
        copy.write_bytes(trained["good"].read_bytes())
        found = evaluate(trained["good"], [copy], trained["data"], require="not-worse")
        assert found.decisive.verdict == "equal"
        assert (found.decisive.low, found.decisive.high) == (0.0, 0.0)
        assert found.gate.passed

    def test_the_interval_is_that_of_the_examples_losses(self, keras, trained, numbers):
        found = evaluate(trained["good"], [trained["bad"]], trained["data"], seed=4)
        x, y = numbers
        losses = []
        for name in ("good", "bad"):
            predicted = keras.saving.load_model(trained[name], compile=False)(x).numpy()
            losses.append(-np.log(predicted[np.arange(len(y)), y].astype(np.float64)))
        generator = np.random.default_rng(4)
        difference = losses[0] - losses[1]
        drawn = [difference[generator.integers(70, size=70)].mean() for _ in range(10_000)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert found.decisive.low == pytest.approx(low, rel=1e-3)
        assert found.decisive.high == pytest.approx(high, rel=1e-3)

    def test_without_a_test_set_a_note_says_that_the_best_is_favoured(self, trained):
        found = evaluate(trained["good"], [trained["bad"]], trained["data"], **FEW)
        assert found.test is None
        assert "which favours it" in found.notes[0]

    def test_of_equal_checkpoints_the_first_is_compared_and_a_note_says_so(self, trained, tmp_path):
        copy = tmp_path / "copy.keras"
        copy.write_bytes(trained["bad"].read_bytes())
        found = evaluate(trained["good"], [trained["bad"], copy], trained["data"], **FEW)
        assert found.best == str(trained["bad"])
        assert any("2 checkpoints are equally good" in note for note in found.notes)

    def test_the_average_among_the_checkpoints_is_left_out_and_a_note_says_so(self, trained):
        found = evaluate(trained["good"], trained["good"].parent.glob("*.keras"), trained["data"],
                         **FEW)  # fmt: skip
        assert len(found.models) == 3
        assert any("not compared with itself" in note for note in found.notes)


class TestWeightsAlone:
    def test_go_into_the_model_that_the_user_names(self, trained):
        whole = evaluate(trained["good"], [trained["bad"]], trained["data"], **FEW)
        folder = trained["good"].parent
        alone = evaluate(
            folder / "good.weights.h5", [folder / "bad.weights.h5"], trained["data"],
            model=trained["worse"], **FEW,
        )  # fmt: skip
        assert [m.validation for m in alone.models] == [m.validation for m in whole.models]

    def test_need_a_model(self, trained):
        weights = trained["good"].parent / "good.weights.h5"
        with pytest.raises(OptionError, match="holds weights alone. Say with --model"):  # noqa: RUF043
            evaluate(weights, [trained["bad"]], trained["data"])

    def test_of_another_model_are_refused(self, keras, average):
        with pytest.raises(ModelMismatchError, match="textures"):
            evaluate(
                MISMATCHED / "order-ba.weights.h5", [MISMATCHED / "order-ab.keras"], VAL,
                model=MISMATCHED / "order-ab.keras",
            )  # fmt: skip


class TestLossAndMetrics:
    def test_may_be_other_ones_than_the_model_s(self, trained):
        found = evaluate(
            trained["good"], [trained["bad"]], trained["data"],
            metrics=["sparse_top_k_categorical_accuracy"], **FEW,
        )  # fmt: skip
        assert list(found.models[0].validation) == ["loss", "sparse_top_k_categorical_accuracy"]

    def test_must_be_said_for_a_model_that_was_not_compiled(self, dense, trained, tmp_path):
        dense(loss=None).save(tmp_path / "plain.keras")
        with pytest.raises(OptionError, match="Give --loss and --metrics"):
            evaluate(tmp_path / "plain.keras", [trained["bad"]], trained["data"])
        found = evaluate(
            tmp_path / "plain.keras", [trained["bad"]], trained["data"],
            loss="sparse_categorical_crossentropy", **FEW,
        )  # fmt: skip
        assert [list(model.validation) for model in found.models] == [["loss"], ["loss"]]

    def test_are_those_of_the_average_for_all_models(self, dense, trained, tmp_path):
        dense(5, metrics=()).save(tmp_path / "other.keras")
        found = evaluate(trained["good"], [tmp_path / "other.keras"], trained["data"], **FEW)
        assert list(found.models[1].validation) == ["loss", "accuracy"]
        assert any("those of the average" in note for note in found.notes)

    def test_a_metric_that_the_models_do_not_have_is_refused(self, trained):
        with pytest.raises(OptionError, match="they have loss, accuracy"):
            evaluate(trained["good"], [trained["bad"]], trained["data"], metric="auc")

    def test_val_in_front_of_a_metric_does_not_matter(self, trained):
        found = evaluate(trained["good"], [trained["bad"]], trained["data"],
                         metric="val_accuracy", **FEW)  # fmt: skip
        assert found.metric == "accuracy"

    def test_wide_states_are_resampled_less_often_and_a_note_says_so(self, dense, npz, numbers):
        x, y = numbers
        data = npz(x=x, y=(y > 0).astype(np.float32)[:, None])
        folder = Path(data).parent
        for seed in (1, 2):
            model = dense(seed, loss="binary_crossentropy", metrics=["AUC"], units=1)
            model.save(folder / f"{seed}.keras")
        found = evaluate(folder / "1.keras", [folder / "2.keras"], data)
        auc = found.differences[1]
        assert (auc.metric.lower(), auc.resamples) == ("auc", 1000)
        assert auc.low < auc.difference < auc.high
        assert any("1,000 resamples instead of 10,000" in note for note in found.notes)


class TestRecalibration:
    @pytest.fixture
    def spoilt(self, keras, dense, numbers, trained, tmp_path):
        """The good model with moving statistics that fit nothing, as averages may have."""
        model = keras.saving.load_model(trained["good"])
        layer = model.layers[1]
        layer.moving_mean.assign(layer.moving_mean + 3)
        layer.moving_variance.assign(layer.moving_variance * 30)
        model.save(tmp_path / "spoilt.keras")
        return tmp_path / "spoilt.keras"

    def test_is_measured_and_used_if_it_is_better_on_validation(self, trained, spoilt):
        found = evaluate(
            spoilt, [trained["bad"]], trained["data"], recalibrate_batchnorm=trained["data"], **FEW
        )
        plain, recalibrated = found.models[:2]
        assert (plain.kind, recalibrated.kind) == ("average", "recalibrated")
        assert recalibrated.validation["loss"] < plain.validation["loss"]
        assert found.uses_recalibrated
        assert found.recalibration[0].verdict == "better"
        assert found.differences[0].first == recalibrated.validation["loss"]

    def test_the_better_one_is_written_when_asked_for(self, keras, trained, spoilt, tmp_path):
        output = tmp_path / "chosen.keras"
        found = evaluate(
            spoilt, [trained["bad"]], trained["data"], recalibrate_batchnorm=trained["data"],
            output=output, **FEW,
        )  # fmt: skip
        again = evaluate(output, [trained["bad"]], trained["data"], **FEW)
        assert again.models[0].validation == pytest.approx(found.models[1].validation)

    def test_the_average_as_it_was_is_written_if_that_is_better(self, keras, trained, tmp_path):
        output = tmp_path / "chosen.keras"
        found = evaluate(
            trained["good"], [trained["bad"]], trained["data"], metric="accuracy",
            recalibrate_batchnorm=trained["data"], output=output, minimize=True, **FEW,
        )  # fmt: skip
        chosen = found.models[1 if found.uses_recalibrated else 0]
        again = evaluate(output, [trained["bad"]], trained["data"], **FEW)
        assert again.models[0].validation == pytest.approx(chosen.validation)

    def test_after_an_error_nothing_is_written(self, trained, spoilt, tmp_path):
        output = tmp_path / "chosen.keras"
        broken = tmp_path / "broken.keras"
        broken.write_bytes(trained["bad"].read_bytes()[:-100])
        with pytest.raises(Exception, match="broken"):
            evaluate(
                spoilt, [broken], trained["data"], recalibrate_batchnorm=trained["data"],
                output=output, **FEW,
            )  # fmt: skip
        assert not output.exists()
        assert not list(tmp_path.glob(".chosen*"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"output": "out.keras"}, OptionError, "Give --recalibrate-batchnorm too"),
            ({"margin": 0.1}, OptionError, "--margin belongs to"),
            ({"plot": "out.gif"}, OptionError, "neither a"),
            ({"resamples": 3}, OptionError, "too few"),
            ({"batch_size": 0}, OptionError, "--batch-size"),
        ],
    )
    def test_options_that_do_not_fit(self, trained, options, error, message):
        with pytest.raises(error, match=message):
            evaluate(trained["good"], [trained["bad"]], trained["data"], **options)

    def test_nothing_to_compare_with(self, trained):
        with pytest.raises(OptionError, match="--against: name the checkpoints"):
            evaluate(trained["good"], [trained["good"]], trained["data"])

    def test_files_that_are_not_there(self, trained):
        with pytest.raises(OptionError, match=r"there is no file missing\.keras"):
            evaluate(trained["good"], ["missing.keras"], trained["data"])

    def test_a_picture_is_not_replaced(self, trained, tmp_path):
        (tmp_path / "out.png").write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            evaluate(trained["good"], [trained["bad"]], trained["data"], plot=tmp_path / "out.png")

    def test_code_in_a_file(self, keras, trained, tmp_path):
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x)])
        model.save(tmp_path / "code.keras")
        with pytest.raises(UnsafeFileError, match="--unsafe"):
            evaluate(trained["good"], [tmp_path / "code.keras"], trained["data"])

    def test_data_that_are_other_ones_each_time(self, trained, tmp_path, monkeypatch):
        (tmp_path / "shuffled_data.py").write_text(
            "import numpy as np, tensorflow as tf\n"
            f"stored = np.load({trained['data']!r})\n"
            "def val():\n"
            "    data = tf.data.Dataset.from_tensor_slices((stored['x'], stored['y']))\n"
            "    return data.shuffle(70).batch(16)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(OptionError, match="Leave out shuffling"):
            evaluate(trained["good"], [trained["bad"]], "shuffled_data:val", **FEW)


def test_a_picture_is_drawn(trained, tmp_path):
    from matplotlib.image import imread

    evaluate(trained["good"], [trained["bad"]], trained["data"], plot=tmp_path / "out.png", **FEW)
    assert np.ptp(imread(tmp_path / "out.png")) > 0.5


def test_the_caller_is_told_of_models_and_batches(trained):
    plans, names, counts = [], [], []
    evaluate(
        trained["good"], [trained["bad"]], trained["data"], batch_size=16, test=trained["data"],
        on_plan=plans.append, on_model=names.append, on_progress=counts.append, **FEW,
    )  # fmt: skip
    assert plans == [sum(counts)] == [20]
    assert names == ["good.keras", "bad.keras", "bad.keras"]
