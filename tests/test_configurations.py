"""Which differences between two configurations are errors, which are warnings, which are nothing.

The configurations are those that Keras wrote; each test changes one thing in a copy.
"""

import copy
import json

import h5py
import pytest

from streamavg import CorruptFileError
from streamavg.architecture import (
    automatic_name,
    automatic_stems,
    compare_configs,
    layer_classes,
    parse_config,
    quantized_layers,
    snake_case,
)
from tests.builders import DIGITS, KERAS, LAYOUTS, LEGACY, MISMATCHED, config_of, sequential

SEQUENTIAL = config_of(DIGITS / "epoch-20.keras")
FUNCTIONAL = config_of(MISMATCHED / "order-ab.keras")
CUSTOM = config_of(LAYOUTS / "keras3.15.1-tf-customkeys.keras")
NESTED = config_of(LAYOUTS / "keras3.15.1-tf-nested.keras")


def layer(config, name):
    for item in config["config"]["layers"]:
        if item["config"]["name"] == name:
            return item
    raise KeyError(name)


def compare(original, change, versions=(KERAS, KERAS)):
    changed = copy.deepcopy(original)
    change(changed)
    assert changed != original, "the test changes nothing"
    return compare_configs(original, changed, versions)


def errors(*arguments, **options):
    return [d.text for d in compare(*arguments, **options) if d.is_error]


def warnings(*arguments, **options):
    found = compare(*arguments, **options)
    assert not [d for d in found if d.is_error]
    return [d.text for d in found]


def setting(name, **settings):
    def change(config):
        layer(config, name)["config"].update(settings)

    return change


def entry(name, **entries):
    def change(config):
        layer(config, name).update(entries)

    return change


def swapped(first, second):
    def change(config):
        layers = config["config"]["layers"]
        layers[first], layers[second] = layers[second], layers[first]

    return change


def without(index):
    def change(config):
        del config["config"]["layers"][index]

    return change


class TestErrors:
    """What changes the function that the weights belong to."""

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (setting("dense", activation="sigmoid"),
             "layer 'dense': activation is 'sigmoid', expected 'softmax'"),
            (setting("conv2d", strides=[2, 2]), "layer 'conv2d': strides is [2, 2], expected"),
            (setting("conv2d", padding="same"), "layer 'conv2d': padding is 'same'"),
            (setting("conv2d", dilation_rate=[2, 2]), "layer 'conv2d': dilation_rate is"),
            (setting("batch_normalization", epsilon=0.1),
             "layer 'batch_normalization': epsilon is 0.1, expected 0.001"),
            (setting("re_lu", negative_slope=0.2), "layer 're_lu': negative_slope is 0.2"),
            (setting("global_max_pooling2d", keepdims=True),
             "layer 'global_max_pooling2d': keepdims is True"),
            (entry("global_max_pooling2d", class_name="GlobalAveragePooling2D"),
             "class is 'GlobalAveragePooling2D', expected 'GlobalMaxPooling2D'"),
            (lambda config: config.update(class_name="Functional"),
             "the model: class is 'Functional', expected 'Sequential'"),
            (without(4), "the model: number of layers is 7, expected 8"),
        ],
    )  # fmt: skip
    def test_name_the_layer_the_setting_and_both_values(self, change, text):
        (found,) = errors(SEQUENTIAL, change)
        assert text in found

    @pytest.mark.parametrize("constant", ["mean", "variance"])
    def test_are_constants_of_normalization_which_tell_of_other_data(self, constant):
        (text,) = errors(SEQUENTIAL, setting("normalization", **{constant: [0.5]}))
        assert f"layer 'normalization': {constant} is [0.5], expected None" in text
        assert "differently prepared data" in text

    @pytest.mark.parametrize(
        ("class_name", "ours", "theirs"),
        [
            ("Rescaling", {"scale": 1.0, "offset": 0.0}, {"scale": 1 / 255, "offset": 0.0}),
            ("Rescaling", {"scale": 1.0, "offset": 0.0}, {"scale": 1.0, "offset": -1.0}),
            ("Resizing", {"interpolation": "bilinear"}, {"interpolation": "nearest"}),
            ("Discretization", {"bin_boundaries": [1.0]}, {"bin_boundaries": [2.0]}),
            ("StringLookup", {"vocabulary": ["a"]}, {"vocabulary": ["b"]}),
            ("Hashing", {"num_bins": 8}, {"num_bins": 9}),
        ],
    )
    def test_are_constants_of_preprocessing(self, class_name, ours, theirs):
        first, other = (sequential((class_name, {"name": "x", **s})) for s in (ours, theirs))
        (found,) = compare_configs(first, other, (KERAS, KERAS))
        assert found.is_error
        assert "differently prepared data" in found.text

    def test_are_layers_in_another_order(self):
        assert errors(SEQUENTIAL, swapped(3, 4))

    def test_are_layers_of_one_class_in_another_order(self):
        found = errors(FUNCTIONAL, swapped(2, 3))
        assert "layer 'edges': name is 'textures', expected 'edges'" in found[0]

    def test_are_automatic_names_in_another_order(self):
        dense = {"units": 3, "activation": "relu"}
        first = sequential(*(("Dense", {"name": n, **dense}) for n in ("dense", "dense_1")))
        other = sequential(*(("Dense", {"name": n, **dense}) for n in ("dense_1", "dense")))
        assert [d.is_error for d in compare_configs(first, other, (KERAS, KERAS))] == [True, True]

    def test_are_other_connections_between_the_same_layers(self):
        def rewire(config):
            nodes = json.dumps(layer(config, "global_max_pooling2d")["inbound_nodes"])
            layer(config, "global_max_pooling2d")["inbound_nodes"] = json.loads(
                nodes.replace('"edges"', '"textures"')
            )

        (text,) = errors(FUNCTIONAL, rewire)
        assert text.startswith("layer 'global_max_pooling2d': inbound_nodes")

    @pytest.mark.parametrize("end", ["input_layers", "output_layers"])
    def test_are_other_inputs_and_outputs_of_the_model(self, end):
        def change(config):
            config["config"][end] = ["add", 0, 0]

        assert end in errors(FUNCTIONAL, change)[0]

    def test_lie_in_nested_models_too(self):
        def change(config):
            inner = next(item for item in config["config"]["layers"] if "layers" in item["config"])
            dense = next(i for i in inner["config"]["layers"] if i["class_name"] == "Dense")
            dense["config"]["activation"] = "exponential"

        (text,) = errors(NESTED, change)
        assert "activation is 'exponential'" in text

    def test_lie_in_objects_that_layers_hold(self):
        def rnn(activation):
            cell = {"module": "keras.layers", "class_name": "LSTMCell",
                    "config": {"units": 2, "activation": activation}}  # fmt: skip
            return sequential(("RNN", {"name": "rnn", "cell": cell}))

        (found,) = compare_configs(rnn("tanh"), rnn("relu"), (KERAS, KERAS))
        assert found.is_error
        assert "layer 'rnn', cell: activation is 'relu'" in found.text

    def test_show_long_values_shortened(self):
        (text,) = errors(SEQUENTIAL, setting("dense", activation="x" * 5000))
        assert len(text) < 200


DROPOUT = {
    "class_name": "Functional",
    "config": {
        "name": "functional",
        "layers": [
            {"class_name": "Dense", "config": {"name": "a"}, "inbound_nodes": []},
            {"class_name": "Dense", "config": {"name": "b"}, "inbound_nodes": []},
            {
                "class_name": "Dropout",
                "config": {"name": "d", "rate": 0.1},
                "inbound_nodes": [[["a", 0, 0, {}]]],
            },
        ],
    },
}  # fmt: skip


class TestLayersThatActInTraining:
    """They may differ in their settings, but not in what they are connected to."""

    def rewired(self, config):
        config["config"]["layers"][2]["inbound_nodes"] = [[["b", 0, 0, {}]]]

    @pytest.mark.parametrize("versions", [(KERAS, KERAS), ("3.15.1", "3.15.0"), ("2.15.0", KERAS)])
    def test_are_compared_by_their_connections_in_all_versions(self, versions):
        (text,) = errors(DROPOUT, self.rewired, versions)
        assert text.startswith("layer 'd': inbound_nodes are other connections")

    def test_may_differ_in_their_rate(self):
        def rate(config):
            config["config"]["layers"][2]["config"]["rate"] = 0.5

        assert compare(DROPOUT, rate) == []

    def test_do_not_include_layers_that_change_their_input_in_use(self):
        item = {"class_name": "AutoContrast", "config": {"name": "x", "value_range": [0, 1]}}

        def change(config):
            config["config"]["value_range"] = [0, 255]

        assert errors(item, change)


class TestWarnings:
    def test_are_the_compiled_code_of_lambda_layers(self):
        code = {"class_name": "__lambda__", "config": {"code": "4wEA", "defaults": None}}
        item = {"class_name": "Lambda", "config": {"name": "scale", "function": code}}

        def change(config):
            config["config"]["function"]["config"]["code"] = "4wEB"

        assert warnings(item, change) == [
            "the model, function: its code is compiled to other bytes, expected the same"
        ]

    """The same function in another rounding, or a setting whose meaning is unknown."""

    def test_are_dtype_policies(self):
        def change(config):
            layer(config, "dense")["config"]["dtype"]["config"]["name"] = "mixed_bfloat16"

        (text,) = warnings(SEQUENTIAL, change)
        assert text.startswith("layer 'dense': dtype is ")
        assert "mixed_bfloat16" in text

    def test_are_implementation_choices(self):
        first, other = (sequential(("LSTM", {"name": "x", "implementation": i})) for i in (1, 2))
        (found,) = compare_configs(first, other, (KERAS, KERAS))
        assert not found.is_error

    def test_are_settings_of_classes_that_are_not_keras_own(self):
        (text,) = warnings(CUSTOM, lambda c: c["config"]["layers"][1]["config"].update(depth=3))
        assert "depth is 3, expected not there" in text

    @pytest.mark.parametrize(
        "entries", [{"module": "mine.layers"}, {"registered_name": "Mine>Dense"}]
    )
    def test_are_settings_of_classes_that_only_look_like_keras_own(self, entries):
        original = copy.deepcopy(SEQUENTIAL)
        layer(original, "dense").update(entries)
        assert len(warnings(original, setting("dense", activation="sigmoid"))) == 1

    def test_turn_to_errors_in_keras_objects_that_custom_classes_hold(self):
        def custom(activation):
            inner = {"module": "keras.layers", "class_name": "Dense",
                     "config": {"activation": activation}}  # fmt: skip
            config = sequential(("Mine", {"name": "x", "inner": inner}))
            config["config"]["layers"][0]["module"] = "mine"
            return config

        (found,) = compare_configs(custom("relu"), custom("tanh"), (KERAS, KERAS))
        assert found.is_error


class TestNothing:
    """What two saves of one model differ in."""

    @pytest.mark.parametrize(
        "change",
        [
            setting("conv2d", kernel_initializer={"class_name": "Zeros", "config": {}}),
            setting("conv2d", bias_initializer="ones"),
            setting("conv2d", kernel_regularizer={"class_name": "L2", "config": {"l2": 0.1}}),
            setting("conv2d", activity_regularizer="l1"),
            setting("conv2d", kernel_constraint="non_neg"),
            setting("conv2d", trainable=False),
            setting("dropout", rate=0.9, seed=3),
            setting("batch_normalization", momentum=0.5),
            entry("conv2d", build_config={"input_shape": [None, 9, 9, 1]}),
            setting("input_layer", batch_shape=[32, 8, 8, 1]),
            lambda config: config.pop("compile_config"),
            lambda config: config["compile_config"]["optimizer"]["config"].update(
                learning_rate=0.5
            ),
            lambda config: config["config"].update(name="sequential_7"),
            lambda config: config["config"]["dtype"].update(shared_object_id=1),
            lambda config: layer(config, "dense")["config"].update(dtype="float32"),
        ],
    )
    def test_is_said_of_what_acts_in_training_or_keeps_the_books(self, change):
        assert compare(SEQUENTIAL, change) == []

    @pytest.mark.parametrize("class_name", ["SpatialDropout2D", "GaussianNoise", "RandomFlip"])
    def test_is_said_of_layers_that_act_in_training_only(self, class_name):
        first, other = (sequential((class_name, {"name": "x", "rate": r})) for r in (0.1, 0.2))
        assert compare_configs(first, other, (KERAS, KERAS)) == []

    def test_is_said_of_automatic_names(self):
        def renumber(config):
            for item in config["config"]["layers"]:
                item["config"]["name"] += "_5"

        assert compare(SEQUENTIAL, renumber) == []

    def test_is_said_of_automatic_names_in_connections(self):
        def renumber(config):
            text = json.dumps(config["config"])
            for name in ("global_max_pooling2d", "global_average_pooling2d", "add", "dense"):
                text = text.replace(f'"{name}"', f'"{name}_4"')
            config["config"] = json.loads(text)

        assert compare(FUNCTIONAL, renumber) == []

    @pytest.mark.parametrize("epoch", [18, 19])
    def test_is_said_of_two_epochs_of_one_run(self, epoch):
        other = config_of(DIGITS / f"epoch-{epoch}.keras")
        assert compare_configs(SEQUENTIAL, other, (KERAS, KERAS)) == []

    def test_is_said_of_two_processes(self):
        first, other = (
            config_of(LAYOUTS / f"keras3.15.1-tf-renamed_{p}.keras") for p in ("p1", "p2")
        )
        assert first != other
        assert compare_configs(first, other, (KERAS, KERAS)) == []


class TestVersions:
    def test_may_know_settings_that_others_do_not(self):
        change = setting("dense", new_setting=True)
        assert compare(SEQUENTIAL, change, versions=("3.14.0", "3.15.1")) == []
        assert errors(SEQUENTIAL, change, versions=("3.15.1", "3.15.1"))

    def test_of_one_major_must_agree_in_what_both_know(self):
        change = setting("dense", activation="sigmoid")
        assert errors(SEQUENTIAL, change, versions=("3.14.0", "3.15.1"))

    def test_2_and_3_must_agree_in_classes_alone(self):
        versions = ("2.15.0", "3.15.1")
        assert warnings(SEQUENTIAL, setting("dense", activation="sigmoid"), versions)
        assert errors(SEQUENTIAL, entry("dense", class_name="EinsumDense"), versions)

    def test_2_and_3_of_one_model_have_no_errors(self):
        found = []
        for epoch in ("keras2-epoch-19.h5", "keras3-epoch-19.h5"):
            with h5py.File(LEGACY / epoch) as file:
                found.append(json.loads(file.attrs["model_config"]))
        differences = compare_configs(*found, ("2.21.0", KERAS))
        assert [d.text for d in differences if d.is_error] == []

    def test_have_older_names_for_functional_models(self):
        model = {"class_name": "Functional", "config": {"name": "model", "layers": []}}
        assert compare(model, lambda config: config.update(class_name="Model")) == []

    def test_write_the_same_axis_in_several_ways(self):
        item = {"class_name": "BatchNormalization", "config": {"name": "n", "axis": [3]}}

        def change(config):
            config["config"]["axis"] = -1

        assert compare(item, change, ("2.12.0", "2.2.4")) == []
        assert errors(item, change)


class TestParsing:
    @pytest.mark.parametrize("text", ["", "{", "not json", "[" * 100_000])
    def test_refuses_what_is_no_json(self, text):
        with pytest.raises(CorruptFileError, match=r"a\.keras: its model configuration is not"):
            parse_config(text, "a.keras")

    @pytest.mark.parametrize("pair", [({}, []), ([], {}), (None, {}), ("a", {}), ({}, 3)])
    def test_makes_other_documents_a_difference_not_a_crash(self, pair):
        compare_configs(*pair, (KERAS, KERAS))

    @pytest.mark.parametrize("class_name", [[1], {}, None, 3])
    def test_takes_class_names_of_any_type(self, class_name):
        item = {"class_name": class_name, "config": {"a": 1}}
        other = {"class_name": class_name, "config": {"a": 2}}
        assert compare_configs(item, other, (KERAS, KERAS))

    def test_takes_any_depth_that_json_takes(self):
        def deep(leaf, depth):
            text = '{"a":' * depth + leaf + "}" * depth
            return {"class_name": "X", "config": {}, "inbound_nodes": json.loads(text)}

        for depth in range(1000, 0, -5):
            try:
                pair = deep("1", depth), deep("2", depth)
            except RecursionError:
                continue
            assert compare_configs(*pair, (KERAS, KERAS))
            return


class TestNames:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("dense", ("dense", 0)),
            ("dense_7", ("dense", 7)),
            ("conv2d_10", ("conv2d", 10)),
            ("block_1_conv", ("block_1_conv", 0)),
            ("block_1_conv_2", ("block_1_conv", 2)),
            ("", ("", 0)),
        ],
    )
    def test_are_split_at_their_counter(self, name, parts):
        assert automatic_name(name) == parts

    @pytest.mark.parametrize(
        ("class_name", "name"),
        [
            ("Dense", "dense"),
            ("Conv2D", "conv2d"),
            ("Conv2DTranspose", "conv2d_transpose"),
            ("ReLU", "re_lu"),
            ("LSTM", "lstm"),
            ("GlobalMaxPooling2D", "global_max_pooling2d"),
            ("BatchNormalization", "batch_normalization"),
        ],
    )
    def test_are_derived_from_classes_as_keras_does(self, class_name, name):
        assert snake_case(class_name) == name

    def test_of_all_layers_are_found(self):
        assert layer_classes(SEQUENTIAL)["re_lu"] == "ReLU"
        assert {"re_lu", "conv2d", "sequential", "dense"} <= automatic_stems(SEQUENTIAL)

    def test_of_nested_layers_are_found(self):
        assert sum(c == "Dense" for c in layer_classes(NESTED).values()) >= 2


class TestQuantizedLayers:
    @pytest.mark.parametrize("name", ["quant_int8", "quant_int4"])
    def test_are_named_by_their_policy(self, name):
        assert quantized_layers(config_of(LAYOUTS / f"keras3.15.1-tf-{name}.keras"))

    def test_may_have_their_policy_as_text(self):
        config = sequential(("Dense", {"name": "x", "dtype": "int8_from_float32"}))
        assert quantized_layers(config) == ["x"]

    @pytest.mark.parametrize("config", [SEQUENTIAL, FUNCTIONAL, CUSTOM, NESTED])
    def test_are_not_seen_in_plain_models(self, config):
        assert quantized_layers(config) == []
