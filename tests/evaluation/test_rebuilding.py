"""A whole model around averaged weights: everything arrives, or nothing is written."""

import json

import h5py
import numpy as np
import pytest

from streamavg import ModelMismatchError, OptionError, OutputError, UnsafeFileError, rebuild
from streamavg.errors import UnsupportedFeatureError
from tests.builders import DIGITS, LEGACY, MISMATCHED, contents, edited_weights

WEIGHTS = DIGITS / "epoch-19.weights.h5"
WHOLE = DIGITS / "epoch-18.keras"


@pytest.fixture
def values_of(keras):
    def values_of(path):
        model = keras.saving.load_model(path, compile=False)
        return [weight.value.numpy() for weight in model.weights]

    return values_of


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


class TestFromEveryKindOfModel:
    def test_an_archive(self, keras, values_of, tmp_path):
        record = rebuild(WEIGHTS, tmp_path / "out.keras", model=WHOLE)
        assert_equal(values_of(tmp_path / "out.keras"), values_of(DIGITS / "epoch-19.keras"))
        assert (record.variables, record.is_compiled, record.optimizer) == (10, True, "adam")

    def test_a_whole_legacy_model(self, keras, values_of, tmp_path):
        rebuild(WEIGHTS, tmp_path / "out.keras", model=LEGACY / "keras3-epoch-20.h5")
        assert_equal(values_of(tmp_path / "out.keras"), values_of(DIGITS / "epoch-19.keras"))

    def test_a_configuration_as_json(self, keras, values_of, tmp_path):
        model = keras.saving.load_model(WHOLE, compile=False)
        (tmp_path / "model.json").write_text(model.to_json())
        record = rebuild(WEIGHTS, tmp_path / "out.keras", model=tmp_path / "model.json")
        assert_equal(values_of(tmp_path / "out.keras"), values_of(DIGITS / "epoch-19.keras"))
        assert not record.is_compiled
        assert "does not say how it was compiled" in record.notes[0]

    def test_a_function(self, keras, values_of, tmp_path, monkeypatch):
        (tmp_path / "digits_model.py").write_text(
            f"import keras\ndef build():\n    return keras.saving.load_model({str(WHOLE)!r})\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        rebuild(WEIGHTS, tmp_path / "out.keras", model="digits_model:build")
        assert_equal(values_of(tmp_path / "out.keras"), values_of(DIGITS / "epoch-19.keras"))

    def test_averages_in_other_layouts_fit_too(self, keras, values_of, tmp_path):
        for number, average in enumerate(
            [DIGITS / "epoch-19.keras", LEGACY / "keras3-epoch-19.h5"]
        ):
            output = tmp_path / f"out{number}.keras"
            rebuild(average, output, model=WHOLE)
            assert_equal(values_of(output), values_of(DIGITS / "epoch-19.keras"))


class TestCompiling:
    def loaded(self, keras, path):
        return keras.saving.load_model(path)

    @pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
    def test_the_model_s_own_configuration_is_kept(self, keras, tmp_path):
        record = rebuild(WEIGHTS, tmp_path / "out.keras", model=WHOLE)
        model = self.loaded(keras, tmp_path / "out.keras")
        assert model.compiled
        assert model.loss == record.loss == "sparse_categorical_crossentropy"
        assert record.metrics == ("accuracy",)
        assert model.optimizer.name == "adam"

    @pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
    def test_what_the_user_says_comes_first(self, keras, tmp_path):
        rebuild(
            WEIGHTS, tmp_path / "out.keras", model=WHOLE, loss="mse", metrics=["mae"],
            optimizer="sgd",
        )  # fmt: skip
        model = self.loaded(keras, tmp_path / "out.keras")
        assert (model.loss, type(model.optimizer).__name__) == ("mse", "SGD")
        assert model.get_compile_config()["metrics"] == ["mae"]

    def test_the_optimizer_s_state_is_not_made_up(self, keras, tmp_path):
        rebuild(WEIGHTS, tmp_path / "out.keras", model=WHOLE)
        assert (tmp_path / "out.keras").stat().st_size < 1.2 * WHOLE.stat().st_size

    def test_a_loss_that_keras_does_not_know_is_told(self, keras, tmp_path):
        with pytest.raises(OptionError, match=r"cannot be compiled with .*no_such_loss"):
            rebuild(WEIGHTS, tmp_path / "out.keras", model=WHOLE, loss="no_such_loss")
        assert list(tmp_path.iterdir()) == []


class TestWhatDoesNotFit:
    def test_another_shape(self, keras, tmp_path):
        with pytest.raises(UnsupportedFeatureError, match=r"epoch-19\.weights\.h5: Keras cannot"):
            rebuild(WEIGHTS, tmp_path / "out.keras", model=MISMATCHED / "wider.keras")
        assert list(tmp_path.iterdir()) == []

    def test_a_layer_that_is_left_over(self, keras, tmp_path):
        def add_layer(file):
            file["layers"].create_group("dense_1/vars").create_dataset("0", data=np.ones(3, "f4"))

        more = edited_weights(WEIGHTS, tmp_path / "more.weights.h5", add_layer)
        with pytest.raises(
            ModelMismatchError, match="'layers/dense_1/vars/0' of the file was left"
        ):
            rebuild(more, tmp_path / "out.keras", model=WHOLE)
        assert not (tmp_path / "out.keras").exists()

    def test_a_value_that_keras_would_round(self, keras, tmp_path):
        def widen(file):
            values = file["layers/dense/vars/0"][()].astype("f8") + 1e-12
            del file["layers/dense/vars/0"]
            file["layers/dense/vars"].create_dataset("0", data=values)

        wide = edited_weights(WEIGHTS, tmp_path / "wide.weights.h5", widen)
        with pytest.raises(ModelMismatchError) as caught:
            rebuild(wide, tmp_path / "out.keras", model=WHOLE)
        assert len(caught.value.differences) == 2  # what the model holds, and what the file holds

    def test_layers_that_changed_places(self, keras, tmp_path):
        with pytest.raises(ModelMismatchError, match="'textures' in the file, and 'edges'"):
            rebuild(
                MISMATCHED / "order-ba.weights.h5", tmp_path / "out.keras",
                model=MISMATCHED / "order-ab.keras",
            )  # fmt: skip

    def test_narrower_values_are_exact(self, keras, values_of, tmp_path):
        def narrow(file):
            values = file["layers/dense/vars/0"][()].astype("f2")
            del file["layers/dense/vars/0"]
            file["layers/dense/vars"].create_dataset("0", data=values)

        half = edited_weights(WEIGHTS, tmp_path / "half.weights.h5", narrow)
        rebuild(half, tmp_path / "out.keras", model=WHOLE)
        with h5py.File(half) as file:
            expected = file["layers/dense/vars/0"][()].astype("f4")
        assert any(np.array_equal(v, expected) for v in values_of(tmp_path / "out.keras"))

    def test_a_model_that_holds_weights_alone(self, keras, tmp_path):
        with pytest.raises(
            OptionError, match=r"holds weights alone\. Name a file of a whole model"
        ):
            rebuild(WEIGHTS, tmp_path / "out.keras", model=WEIGHTS)

    def test_a_model_that_is_not_there(self, keras, tmp_path):
        with pytest.raises(OptionError, match="is no file, nor module:function"):
            rebuild(WEIGHTS, tmp_path / "out.keras", model="missing.keras")

    def test_a_function_that_returns_no_model(self, keras, tmp_path, monkeypatch):
        (tmp_path / "no_model.py").write_text("def build():\n    return 3\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(OptionError, match="returned int, no Keras model"):
            rebuild(WEIGHTS, tmp_path / "out.keras", model="no_model:build")


class TestTheOutput:
    def test_an_existing_one_is_refused_unless_forced(self, keras, values_of, tmp_path):
        output = tmp_path / "out.keras"
        output.write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            rebuild(WEIGHTS, output, model=WHOLE)
        assert output.read_text() == "mine"
        rebuild(WEIGHTS, output, model=WHOLE, force=True)
        assert_equal(values_of(output), values_of(DIGITS / "epoch-19.keras"))

    def test_an_input_is_never_replaced(self, keras, tmp_path):
        model = tmp_path / "model.keras"
        model.write_bytes(WHOLE.read_bytes())
        with pytest.raises(OutputError, match="is one of the inputs"):
            rebuild(WEIGHTS, model, model=model, force=True)
        assert model.read_bytes() == WHOLE.read_bytes()

    def test_another_suffix_is_refused(self, keras, tmp_path):
        with pytest.raises(OptionError, match=r"is saved as \*\.keras"):
            rebuild(WEIGHTS, tmp_path / "out.h5", model=WHOLE)

    def test_nothing_else_is_left_in_the_folder(self, keras, tmp_path):
        rebuild(WEIGHTS, tmp_path / "out.keras", model=WHOLE)
        assert list(contents(tmp_path)) == ["out.keras"]


class TestCode:
    @pytest.fixture
    def with_lambda(self, keras, tmp_path):
        model = keras.Sequential(
            [keras.layers.Input((2,)), keras.layers.Dense(2), keras.layers.Lambda(lambda x: x * 2)]
        )
        model.save(tmp_path / "lambda.keras")
        model.save_weights(tmp_path / "lambda.weights.h5")
        return tmp_path

    def test_is_refused(self, with_lambda):
        with pytest.raises(UnsafeFileError, match=r"is a Lambda: it runs code .* --unsafe"):
            rebuild(
                with_lambda / "lambda.weights.h5", with_lambda / "out.keras",
                model=with_lambda / "lambda.keras",
            )  # fmt: skip

    def test_runs_where_the_user_says_so(self, with_lambda):
        rebuild(
            with_lambda / "lambda.weights.h5", with_lambda / "out.keras",
            model=with_lambda / "lambda.keras", unsafe=True,
        )  # fmt: skip

    def test_in_json_is_refused_too(self, keras, with_lambda):
        model = keras.saving.load_model(with_lambda / "lambda.keras", safe_mode=False)
        (with_lambda / "model.json").write_text(model.to_json())
        with pytest.raises(UnsafeFileError, match="is a Lambda"):
            rebuild(
                with_lambda / "lambda.weights.h5", with_lambda / "out.keras",
                model=with_lambda / "model.json",
            )  # fmt: skip


def test_custom_layers_come_from_the_modules_that_the_user_names(keras, tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(
        "import keras\n"
        "class Scale(keras.layers.Layer):\n"
        "    def build(self, shape):\n"
        "        self.factor = self.add_weight(shape=(), name='factor')\n"
        "    def call(self, x):\n"
        "        return x * self.factor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_layers

    model = keras.Sequential([keras.layers.Input((2,)), my_layers.Scale()])
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    arguments = (tmp_path / "model.weights.h5", tmp_path / "out.keras")
    record = rebuild(*arguments, model=tmp_path / "model.keras", imports=["my_layers"])
    assert record.variables == 1
    assert json.loads(record.to_json())["schema_version"] == 1


def test_vocabularies_of_the_model_come_with_it(keras, tmp_path):
    layer = keras.layers.TextVectorization(output_mode="tf_idf", max_tokens=10)
    layer.adapt(["a b c", "a d", "b d e"])
    model = keras.Sequential([keras.Input((), dtype="string"), layer, keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "average.weights.h5")
    rebuild(tmp_path / "average.weights.h5", tmp_path / "out.keras", model=tmp_path / "model.keras")
    import tensorflow as tf

    rebuilt = keras.saving.load_model(tmp_path / "out.keras")
    text = tf.constant(["a b", "e e"])
    np.testing.assert_array_equal(rebuilt(text), model(text))
