"""Models that are hard to save, built, saved, averaged and loaded again.

Every copy of a model is built anew in this process, as cross-validation does, so that Keras'
counters give its layers other names; then it is filled with its own values and saved by Keras.
"""

from __future__ import annotations

import functools
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import streamavg

if TYPE_CHECKING:
    from collections.abc import Callable

COPIES = 3
ARCHIVE, WEIGHTS, LEGACY = ".keras", ".weights.h5", ".h5"
V3 = (ARCHIVE, WEIGHTS)
ALL = (*V3, LEGACY)


# --- models ---------------------------------------------------------------------------------------


def numbers(*shape):
    """Inputs that are the same for every model."""
    return np.random.default_rng(20).normal(size=shape).astype(np.float32)


def nested_functional_in_sequential(keras):
    layers = keras.layers
    inputs = keras.Input((6,))
    inner = layers.BatchNormalization()(layers.Dense(5)(inputs))
    encoder = keras.Model(inputs, layers.Dense(4)(inner))
    return keras.Sequential([keras.Input((6,)), layers.Dense(6), encoder, layers.Dense(2)])


def sequential_in_functional_in_sequential(keras):
    layers = keras.layers
    inputs = keras.Input((6,))
    stack = keras.Sequential([layers.Dense(5), layers.LayerNormalization(), layers.Dense(6)])
    middle = keras.Model(inputs, layers.Add()([inputs, stack(inputs)]))
    return keras.Sequential([keras.Input((6,)), middle, layers.Dense(3)])


def twelve_layers_of_one_class(keras):
    stack = [keras.layers.Dense(4, activation="tanh") for _ in range(12)]
    return keras.Sequential([keras.Input((4,)), *stack])


def recurrence_and_attention(keras):
    layers = keras.layers
    inputs = keras.Input((5, 4))
    states = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(inputs)
    attended = layers.MultiHeadAttention(2, 3)(states, states)
    gated = layers.Bidirectional(layers.GRU(3, return_sequences=True))(attended)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(gated))


def layer_used_twice(keras):
    layers = keras.layers
    inputs = [keras.Input((4,)), keras.Input((4,))]
    tower = layers.Dense(5, activation="relu")
    joined = layers.Concatenate()([tower(one) for one in inputs])
    return keras.Model(inputs, layers.Dense(2)(joined))


def under_policy(policy, optimizer=False):
    def build(keras):
        layers = keras.layers
        stack = [
            layers.Conv2D(3, 3, dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.DepthwiseConv2D(2, dtype=policy),
            layers.GlobalAveragePooling2D(dtype=policy),
            layers.Dense(4, dtype=policy),
        ]
        model = keras.Sequential([keras.Input((8, 8, 1), dtype="float32"), *stack])
        if optimizer:
            adam = keras.optimizers.Adam()
            scaled = "mixed_float16" in policy
            model.compile(keras.optimizers.LossScaleOptimizer(adam) if scaled else adam, "mse")
            model.optimizer.build(model.trainable_variables)
        return model

    return build


def adapted_text_vectorization(keras):
    layers = keras.layers
    vectorization = layers.TextVectorization(output_mode="multi_hot")
    vectorization.adapt(["a walk in the park", "the park in spring"])
    return keras.Sequential([keras.Input((), dtype="string"), vectorization, layers.Dense(3)])


def tf_idf_vectorization(keras):
    layers = keras.layers
    vectorization = layers.TextVectorization(output_mode="tf_idf")
    vectorization.adapt(["a walk in the park", "the park in spring"])
    return keras.Sequential([keras.Input((), dtype="string"), vectorization, layers.Dense(3)])


def adapted_string_and_integer_lookup(keras):
    layers = keras.layers
    words, codes = layers.StringLookup(), layers.IntegerLookup()
    words.adapt([["north"], ["south"], ["south"]])
    codes.adapt([[7], [9], [9]])
    inputs = [keras.Input((1,), dtype="string"), keras.Input((1,), dtype="int64")]
    embedded = [
        layers.Flatten()(layers.Embedding(4, 3)(lookup(one)))
        for lookup, one in zip((words, codes), inputs, strict=True)
    ]
    return keras.Model(inputs, layers.Dense(2)(layers.Add()(embedded)))


def adapted_normalization(keras):
    normalization = keras.layers.Normalization()
    normalization.adapt(3 + 2 * numbers(50, 4))
    return keras.Sequential([keras.Input((4,)), normalization, keras.layers.Dense(3)])


def low_rank_adapted_dense(keras):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    model.layers[0].enable_lora(2)
    return model


def low_rank_adapted_embedding(keras):
    layers = keras.layers
    embedding = layers.Embedding(7, 4)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding, layers.Flatten()])
    embedding.enable_lora(2)
    return model


def frozen_layers(keras):
    model = nested_functional_in_sequential(keras)
    model.layers[0].trainable = False
    model.layers[1].layers[1].trainable = False
    return model


def frozen_batch_normalization(keras):
    layers = keras.layers
    stack = [layers.Conv2D(2, 3), layers.BatchNormalization(trainable=False), layers.Flatten()]
    return keras.Sequential([keras.Input((5, 5, 1)), *stack, layers.Dense(2)])


def normalization_without_scale_or_center(keras):
    layers = keras.layers
    stack = [
        layers.BatchNormalization(center=False),
        layers.BatchNormalization(scale=False),
        layers.GroupNormalization(2),
        layers.SpectralNormalization(layers.Dense(3)),
    ]
    return keras.Sequential([keras.Input((4,)), *stack])


def random_layers(keras):
    layers = keras.layers
    stack = [layers.GaussianNoise(0.1), layers.Dense(3), layers.Dropout(0.5), layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *stack])


def separable_and_transposed_convolutions(keras):
    layers = keras.layers
    stack = [
        layers.SeparableConv2D(3, 3, padding="same"),
        layers.PReLU(shared_axes=(1, 2)),
        layers.Conv2DTranspose(2, 2, strides=2),
        layers.Flatten(),
        layers.EinsumDense("bf,fo->bo", output_shape=3, bias_axes="o"),
    ]
    return keras.Sequential([keras.Input((4, 4, 2)), *stack])


@functools.cache
def classes(keras):
    """Layers and models that a user writes and registers."""
    register = keras.saving.register_keras_serializable("tests")
    layers = keras.layers

    @register
    class Counting(layers.Layer):
        """Keeps integers and a bool beside its weights."""

        def build(self, input_shape):
            size = input_shape[-1]
            self.scale = self.add_weight(shape=(size,), name="scale", initializer="ones")
            self.steps = self.add_weight(
                shape=(), name="steps", dtype="int64", initializer="zeros", trainable=False
            )
            self.table = self.add_weight(
                shape=(size,), name="table", dtype="int32", initializer="zeros", trainable=False
            )
            self.gate = self.add_weight(
                shape=(size,), name="gate", dtype="bool", initializer="zeros", trainable=False
            )

        def call(self, inputs):
            ops = keras.ops
            kept = ops.where(self.gate, inputs, -inputs)
            shift = ops.cast(self.table, inputs.dtype) + ops.cast(self.steps, inputs.dtype)
            return kept * self.scale + shift

    @register
    class Towers(keras.Model):
        """Holds layers in attributes, a list, a dict, and a list of lists."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = layers.Dense(4)
            self.tower = [layers.Dense(4), layers.LayerNormalization(), layers.Dense(4)]
            self.heads = {"left": layers.Dense(2), "right": layers.Dense(2)}
            self.grid = [[layers.Dense(4)], [layers.Dense(4), layers.Dense(4)]]
            self._hidden = layers.Dense(4)

        def build(self, input_shape):
            self.temperature = self.add_weight(shape=(), name="temperature", initializer="ones")
            for layer in self.body():
                layer.build((None, 4))
            for head in self.heads.values():
                head.build((None, 4))

        def body(self):
            return [self.first, *self.tower, *self.grid[0], *self.grid[1], self._hidden]

        def call(self, inputs):
            for layer in self.body():
                inputs = layer(inputs)
            return (self.heads["left"](inputs) + self.heads["right"](inputs)) * self.temperature

    @register
    class Readout(layers.Layer):
        """Uses another layer's variable as its own."""

        def __init__(self, embedding, **kwargs):
            super().__init__(**kwargs)
            self.table = embedding.embeddings

        def build(self, input_shape):
            self.bias = self.add_weight(shape=(self.table.shape[0],), name="bias")

        def call(self, inputs):
            return keras.ops.matmul(inputs, keras.ops.transpose(self.table)) + self.bias

    @register
    class TiedLanguageModel(keras.Model):
        """Reads and writes words with one table."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.embedding = layers.Embedding(7, 4)
            self.embedding.build((None, None))
            self.mixing = layers.Dense(4)
            self.readout = Readout(self.embedding)

        def build(self, input_shape):
            self.mixing.build((None, None, 4))
            self.readout.build((None, None, 4))

        def call(self, inputs):
            return self.readout(self.mixing(self.embedding(inputs)))

    return {cls.__name__: cls for cls in (Counting, Towers, TiedLanguageModel)}


def custom_layer_with_integers_and_bools(keras):
    counting = classes(keras)["Counting"]
    stack = [keras.layers.Dense(4), counting(), keras.layers.Dense(3), counting()]
    return keras.Sequential([keras.Input((5,)), *stack])


def subclassed_model_with_attributes_and_lists(keras):
    model = classes(keras)["Towers"]()
    model.build((None, 4))
    return model


def tied_variables(keras):
    model = classes(keras)["TiedLanguageModel"]()
    model.build((None, None))
    return model


@dataclass(frozen=True)
class Case:
    """A model, what it is fed with, and the formats that keep all of it."""

    build: Callable[[Any], Any]
    inputs: Callable[[], Any]
    formats: tuple[str, ...] = ALL


def texts():
    return np.array(["the park", "a walk in autumn"], dtype=object)


def pixels():
    return numbers(2, 8, 8, 1)


CASES = {
    "nested Functional in Sequential": Case(nested_functional_in_sequential, lambda: numbers(3, 6)),
    "Sequential in Functional in Sequential": Case(
        sequential_in_functional_in_sequential, lambda: numbers(3, 6)
    ),
    "twelve layers of one class": Case(twelve_layers_of_one_class, lambda: numbers(3, 4)),
    "recurrence and attention": Case(recurrence_and_attention, lambda: numbers(2, 5, 4)),
    "a layer used twice": Case(layer_used_twice, lambda: [numbers(3, 4), 1 + numbers(3, 4)]),
    "a subclassed model with attributes and lists": Case(
        subclassed_model_with_attributes_and_lists, lambda: numbers(3, 4), V3
    ),
    "tied variables": Case(tied_variables, lambda: np.array([[1, 5, 6], [0, 2, 2]]), V3),
    "policy mixed_float16": Case(under_policy("mixed_float16"), pixels),
    "policy mixed_float16, compiled": Case(
        under_policy("mixed_float16", optimizer=True), pixels, V3
    ),
    "policy float16": Case(under_policy("float16"), pixels),
    "policy mixed_bfloat16": Case(under_policy("mixed_bfloat16"), pixels),
    # Keras cannot read the bfloat16 that it writes to legacy files.
    "policy bfloat16": Case(under_policy("bfloat16"), pixels, V3),
    "policy bfloat16, compiled": Case(under_policy("bfloat16", optimizer=True), pixels, V3),
    # Legacy files do not keep vocabularies.
    "an adapted TextVectorization": Case(adapted_text_vectorization, texts, V3),
    "a TextVectorization with document frequencies": Case(tf_idf_vectorization, texts, V3),
    "an adapted StringLookup and IntegerLookup": Case(
        adapted_string_and_integer_lookup,
        lambda: [np.array([["south"], ["west"]], dtype=object), np.array([[9], [8]])],
        V3,
    ),
    "an adapted Normalization": Case(adapted_normalization, lambda: numbers(3, 4)),
    # Legacy files keep low-rank factors apart from the kernel, where they cannot be averaged.
    "a low-rank adapted Dense": Case(low_rank_adapted_dense, lambda: numbers(3, 6), V3),
    "a low-rank adapted Embedding": Case(
        low_rank_adapted_embedding, lambda: np.array([[1, 5, 6], [0, 2, 2]]), V3
    ),
    "frozen layers": Case(frozen_layers, lambda: numbers(3, 6)),
    "a frozen BatchNormalization": Case(frozen_batch_normalization, lambda: numbers(2, 5, 5, 1)),
    "normalization without scale or center": Case(
        normalization_without_scale_or_center, lambda: numbers(3, 4)
    ),
    "random layers": Case(random_layers, lambda: numbers(3, 4)),
    "separable and transposed convolutions": Case(
        separable_and_transposed_convolutions, lambda: numbers(2, 4, 4, 2)
    ),
    "a custom layer with integers and bools": Case(
        custom_layer_with_integers_and_bools, lambda: numbers(3, 5)
    ),
}
NOT_CONVERTED = (
    "normalization without scale or center",  # SpectralNormalization holds another layer
    "a custom layer with integers and bools",
)
"""Models whose legacy weights cannot be written as `.weights.h5`."""
ROUND_TRIPS = [
    pytest.param(case, suffix, id=f"{name}, {suffix}")
    for name, case in CASES.items()
    for suffix in case.formats
]


# --- saving and loading ---------------------------------------------------------------------------


def perturb(model, seed):
    """Fills a model with values of its own, all but what `adapt` has learned from the data."""
    generator = np.random.default_rng(seed)
    learned = {
        id(weight) for layer in model.layers if hasattr(layer, "adapt") for weight in layer.weights
    }
    for weight in model.weights:
        if id(weight) not in learned:
            weight.assign(_random(generator, weight))


def _random(generator, weight):
    if weight.dtype == "bool":
        return generator.integers(2, size=weight.shape).astype(bool)
    if "int" in weight.dtype:
        return generator.integers(100, size=weight.shape)
    values = generator.normal(scale=0.5, size=weight.shape)
    return np.abs(values) + 0.5 if "variance" in weight.name else values


def save(model, path):
    if path.name.endswith(WEIGHTS):
        model.save_weights(path)
    else:
        model.save(path)


@pytest.fixture(scope="module")
def load(keras, forget):
    """Loads what a file holds; weights alone into a model that is built again and zeroed."""

    def load(path, build):
        if not path.name.endswith(WEIGHTS):
            return keras.saving.load_model(path, compile=False)
        model = forget(build(keras))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            model.load_weights(path)
        return model

    return load


@pytest.fixture
def copies(keras, tmp_path):
    """Saves copies of a model with different values, and returns their paths.

    `same_names` gives the layers the names that they would have if every copy had a process of
    its own.
    """

    def copies(build, suffix, count=COPIES, name="copy", same_names=False):
        paths = [tmp_path / f"{name}-{number}{suffix}" for number in range(count)]
        for path in paths:
            if same_names:
                keras.backend.clear_session()
            model = build(keras)
            perturb(model, zlib.crc32(path.name.encode()))
            save(model, path)
        return paths

    return copies


@pytest.mark.parametrize(("case", "suffix"), ROUND_TRIPS)
def test_keras_loads_the_mean_of(
    case, suffix, copies, load, values_of, mean_of, assign, assert_holds, tmp_path
):
    paths = copies(case.build, suffix)
    streamavg.merge(paths, tmp_path / f"averaged{suffix}")
    averaged = load(tmp_path / f"averaged{suffix}", case.build)
    originals = [load(path, case.build) for path in paths]
    expected = mean_of([values_of(model) for model in originals])
    assert_holds(averaged, expected)

    assign(originals[0], expected)
    save(originals[0], tmp_path / f"by-keras{suffix}")
    by_keras = load(tmp_path / f"by-keras{suffix}", case.build)
    inputs = case.inputs()
    found, wanted = (predictions(model, inputs) for model in (averaged, by_keras))
    assert np.isfinite(wanted.astype(np.float64)).all()
    assert np.ptp(wanted.astype(np.float64)) > 0
    np.testing.assert_array_equal(found, wanted)


def predictions(model, inputs):
    import tensorflow as tf

    return model(tf.nest.map_structure(tf.convert_to_tensor, inputs), training=False).numpy()


CONVERTED = [
    pytest.param(case, id=name)
    for name, case in CASES.items()
    if LEGACY in case.formats and name not in NOT_CONVERTED
]


@pytest.mark.parametrize("case", CONVERTED)
def test_weights_averaged_from_legacy_models_load_into(
    case, copies, load, values_of, mean_of, assert_holds, tmp_path
):
    paths = copies(case.build, LEGACY, 2)
    streamavg.merge(paths, tmp_path / "averaged.weights.h5")
    averaged = load(tmp_path / "averaged.weights.h5", case.build)
    assert_holds(averaged, mean_of([values_of(load(path, case.build)) for path in paths]))


@pytest.mark.parametrize("name", NOT_CONVERTED)
def test_weights_of_legacy_models_whose_layers_have_an_unknown_inside_are_refused(
    name, copies, tmp_path
):
    paths = copies(CASES[name].build, LEGACY, 2, same_names=True)
    with pytest.raises(streamavg.OptionError, match=r"-o with \*\.h5"):
        streamavg.merge(paths, tmp_path / "averaged.weights.h5")
    assert not (tmp_path / "averaged.weights.h5").exists()


# --- what the cases alone do not show -------------------------------------------------------------


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize(("policy", "chosen"), [("reference", 0), ("last", -1)])
def test_integers_and_bools_are_those_of_the_checkpoint_asked_for(
    suffix, policy, chosen, copies, load, values_of, keras, tmp_path
):
    build = custom_layer_with_integers_and_bools
    keras.backend.clear_session()
    first = copies(build, suffix, 1, "first")
    keras.backend.clear_session()
    last = copies(build, suffix, 1, "last")
    streamavg.merge([*first, *last], tmp_path / f"averaged{suffix}", non_float=policy)

    paths = [tmp_path / f"averaged{suffix}", *first, *last]
    columns = zip(*(values_of(load(path, build)).values() for path in paths), strict=True)
    kept = [column for column in columns if column[0].dtype.kind in "ib"]
    assert len(kept) == 6
    for averaged, *originals in kept:
        np.testing.assert_array_equal(averaged, originals[chosen], strict=True)
    assert any((before != after).any() for _, before, after in kept)


def test_a_tied_variable_stays_tied(keras, copies, load, tmp_path):
    streamavg.merge(copies(tied_variables, WEIGHTS), tmp_path / "averaged.weights.h5")
    model = load(tmp_path / "averaged.weights.h5", tied_variables)
    assert model.readout.table is model.embedding.embeddings
    assert np.ptp(model.embedding.embeddings.value.numpy()) > 0


@pytest.mark.parametrize("suffix", V3)
def test_low_rank_updates_count_with_their_product(keras, suffix, load, tmp_path):
    paths, kernels = [], []
    for number in range(COPIES):
        model = low_rank_adapted_dense(keras)
        perturb(model, number)
        kernels.append(keras.ops.convert_to_numpy(model.layers[0].kernel))
        paths.append(tmp_path / f"copy-{number}{suffix}")
        save(model, paths[-1])
    streamavg.merge(paths, tmp_path / f"averaged{suffix}")
    averaged = load(tmp_path / f"averaged{suffix}", low_rank_adapted_dense).layers[0].kernel
    expected = np.mean(kernels, axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(averaged), expected)


def test_unmerged_low_rank_factors_are_refused(copies, tmp_path):
    paths = copies(low_rank_adapted_dense, LEGACY)
    with pytest.raises(streamavg.UnsupportedFeatureError, match="LoRA factors"):
        streamavg.merge(paths, tmp_path / "averaged.h5")
    assert not (tmp_path / "averaged.h5").exists()


@pytest.mark.parametrize("suffix", ALL)
def test_copies_frozen_in_different_places_are_averaged_by_name(
    suffix, keras, copies, load, tmp_path
):
    """Legacy files order the weights of a nested model by what was frozen when it was saved."""
    free = copies(nested_functional_in_sequential, suffix, 1, "free")
    frozen = copies(frozen_layers, suffix, 1, "frozen")
    streamavg.merge([*free, *frozen], tmp_path / f"averaged{suffix}")
    averaged = load(tmp_path / f"averaged{suffix}", nested_functional_in_sequential)
    pair = load(*free, nested_functional_in_sequential), load(*frozen, frozen_layers)
    assert_same_by_layer(averaged, pair)


def assert_same_by_layer(averaged, models):
    """Compares by the names of attributes, whatever order the models list their weights in."""
    columns = zip(*(leaf_weights(model) for model in (averaged, *models)), strict=True)
    for (name, found), *originals in columns:
        assert {other for other, _ in originals} == {name}
        expected = np.mean([values for _, values in originals], axis=0, dtype=np.float64)
        np.testing.assert_array_equal(found, expected.astype(np.float32), err_msg=name)


def leaf_weights(model):
    """Position of each innermost layer and its weights by name, in the order of the layers."""
    leaves = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    leaves = [layer for layer in leaves if not hasattr(layer, "layers")]
    return [
        (f"{position}/{weight.name}", weight.value.numpy())
        for position, layer in enumerate(leaves)
        for weight in sorted(layer.weights, key=lambda weight: weight.name)
    ]


def test_a_layer_used_twice_is_averaged_once(copies, tmp_path):
    for suffix in ALL:
        record = streamavg.plan(copies(layer_used_twice, suffix), tmp_path / f"averaged{suffix}")
        assert record.averaged == 4, suffix


def test_other_vocabularies_are_refused(keras, tmp_path):
    paths = []
    for number, words in enumerate((["north", "south"], ["north", "west"])):
        lookup = keras.layers.StringLookup()
        lookup.adapt([[word] for word in words])
        stack = [lookup, keras.layers.Embedding(3, 2)]
        model = keras.Sequential([keras.Input((1,), dtype="string"), *stack])
        paths.append(tmp_path / f"copy-{number}.keras")
        model.save(paths[-1])
    with pytest.raises(streamavg.IncompatibleCheckpointsError, match="vocabulary"):
        streamavg.merge(paths, tmp_path / "averaged.keras")


def test_other_normalization_statistics_are_refused(keras, tmp_path):
    paths = []
    for number in range(2):
        normalization = keras.layers.Normalization()
        normalization.adapt(number + numbers(20, 3))
        model = keras.Sequential([keras.Input((3,)), normalization, keras.layers.Dense(2)])
        paths.append(tmp_path / f"copy-{number}.keras")
        model.save(paths[-1])
    with pytest.raises(streamavg.IncompatibleCheckpointsError, match="normalization"):
        streamavg.merge(paths, tmp_path / "averaged.keras")
