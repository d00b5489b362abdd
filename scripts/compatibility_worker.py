"""Load checkpoints with the Keras of this virtual environment and dump every model variable.

`compatibility.py` runs this file once per environment, with that environment's Python:

    python compatibility_worker.py MODULE TASKS.json REPORT.json

MODULE is `keras` or `tf_keras`. TASKS.json is a list of objects with four keys:

* `checkpoint`: the file to load;
* `rebuild`: null if the checkpoint describes its own model, else the name of one of `RECIPES`, or
  the path of a checkpoint that describes the same model;
* `compile`: whether `load_model` may compile the model;
* `values`: the `.npz` file that receives the bytes of variable 0, 1, 2, ...

REPORT.json gets one object per task: `variables`, a list of name, shape and dtype, or `error`.
Nothing is judged here. The file needs Keras and NumPy only, any version from Keras 2.12 on.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

SEED = 20


class Variable(Protocol):
    """The part of a Keras variable that is used here."""

    name: str

    def numpy(self) -> np.ndarray:
        """Return the values."""


class Model(Protocol):
    """The part of a Keras model that is used here."""

    weights: list[Variable]

    def load_weights(self, path: str) -> None:
        """Load the variables' values from a checkpoint."""


class Spec(NamedTuple):
    """One variable of a layer that consists of variables only."""

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()


DENSE = (Spec("kernel", shape=(4, 3)), Spec("bias", shape=(3,)))
ALL_DTYPES = (
    Spec("scalar"),
    Spec("empty", shape=(0, 5)),
    Spec("bf16_scalar", "bfloat16"),
    *(
        Spec(f"v_{dtype}", dtype, (3, 2))
        for dtype in (
            *("float16", "bfloat16", "float32", "float64"),
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"),
        )
    ),
)


# --- layers that the samples use and Keras does not have -----------------------------------------


def variables_layer(keras: ModuleType, class_name: str, specs: tuple[Spec, ...]) -> type:
    """Return a layer class that only owns variables.

    Args:
        keras: The Keras to build with.
        class_name: Name of the class; it decides the layer's path in the checkpoint.
        specs: The variables in the order of their creation.
    """

    class VariablesLayer(keras.layers.Layer):
        def build(self, _input_shape: tuple[int | None, ...]) -> None:
            for spec in specs:
                self.add_weight(
                    name=spec.name,
                    shape=spec.shape,
                    dtype=spec.dtype,
                    initializer="zeros",
                    trainable="float" in spec.dtype,
                )
            self.built = True

        def call(self, inputs: object) -> object:
            return inputs

    VariablesLayer.__name__ = class_name
    return VariablesLayer


def own_keys_layer(keras: ModuleType) -> type:
    """Return the layer class that stores its variables under keys of its own, one of them nested.

    Args:
        keras: The Keras to build with.
    """
    specs = (Spec("w", shape=(3, 2)), Spec("b", shape=(2,)))

    class OwnKeys(variables_layer(keras, "OwnKeys", specs)):
        def load_own_variables(self, store: dict[str, np.ndarray]) -> None:
            kernel, bias = self.weights
            kernel.assign(store["weight"])
            bias.assign(store["deep/er/bias"])

    return OwnKeys


def block_layer(keras: ModuleType) -> type:
    """Return the layer class that holds layers in a list, a dict, lists in a list, an attribute.

    Args:
        keras: The Keras to build with.
    """
    dense, normalization = keras.layers.Dense, keras.layers.LayerNormalization

    class Block(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [dense(3), normalization(), dense(3)]
            self.by_name = {"first": dense(3), "second": dense(3)}
            self.nested = [[dense(3)], [dense(3), dense(3)]]
            self.one = dense(3)

        def build(self, input_shape: tuple[int | None, ...]) -> None:
            self.alpha = self.add_weight(name="alpha", shape=(3,), initializer="zeros")
            for layer in self.inner_layers():
                layer.build(input_shape)
            self.built = True

        def call(self, inputs: object) -> object:
            for layer in self.inner_layers():
                inputs = layer(inputs)
            return inputs * self.alpha

        def inner_layers(self) -> Iterator[object]:
            yield from self.blocks
            yield from self.by_name.values()
            for layers in self.nested:
                yield from layers
            yield self.one

    return Block


def custom_objects(keras: ModuleType) -> dict[str, object]:
    """Return what the samples' configurations name and Keras does not know by that name.

    Args:
        keras: The Keras to build with.
    """
    return {
        # Keras 3.0 compiles legacy files whatever it is told, and looks these up in vain.
        "mse": keras.losses.mean_squared_error,
        "mae": keras.losses.mean_absolute_error,
        "sample>AllDtypes": variables_layer(keras, "AllDtypes", ALL_DTYPES),
        "sample>OwnKeys": own_keys_layer(keras),
    }


# --- models for checkpoints that hold weights only -----------------------------------------------


def around(keras: ModuleType, inputs: int, *layers: object) -> Model:
    """Return a Sequential model of these layers, built for vectors of `inputs` numbers.

    Args:
        keras: The Keras to build with.
        inputs: Length of the input vectors.
        *layers: The layers.
    """
    return keras.Sequential([keras.Input((inputs,)), *layers])


def cnn_float16(keras: ModuleType) -> Model:
    """Return the small convolutional model of most samples, under the policy float16."""
    layers, policy = keras.layers, {"dtype": "float16"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, **policy),
            layers.BatchNormalization(**policy),
            layers.ReLU(**policy),
            layers.Dropout(0.1, **policy),
            layers.Flatten(**policy),
            layers.Dense(16, **policy),
            layers.Dense(3, **policy),
        ]
    )


def nested(keras: ModuleType) -> Model:
    """Return a Functional model of two inputs that shares a Sequential model and a layer."""
    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = keras.layers.Dense
    encoder = keras.Sequential([keras.Input((4,)), dense(5), dense(4)], name="encoder")
    shared = dense(4, name="shared_dense")
    joined = keras.layers.Add()([shared(encoder(first)), shared(encoder(second))])
    return keras.Model([first, second], dense(2, name="head")(joined))


def subclassed(keras: ModuleType) -> Model:
    """Return a subclassed model that owns a variable itself."""
    dense = keras.layers.Dense

    class Sub(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.d1, self.d2 = dense(4), dense(2)
            self.tower = [dense(4), dense(4), dense(4)]
            self.gain = self.add_weight(name="gain", shape=(), initializer="ones")

        def call(self, inputs: object) -> object:
            hidden = self.d1(inputs)
            for layer in self.tower:
                hidden = layer(hidden)
            return self.d2(hidden) * self.gain

    return called_once(Sub(), inputs=3)


def metrics_in_model(keras: ModuleType) -> Model:
    """Return a subclassed model that holds a metric as an attribute."""

    class Measured(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.d, self.d2 = keras.layers.Dense(2), keras.layers.Dense(2)
            self.loss_tracker = keras.metrics.Mean()

        def call(self, inputs: object) -> object:
            return self.d2(self.d(inputs))

    return called_once(Measured(), inputs=3)


def called_once(model: Model, inputs: int) -> Model:
    """Return a subclassed model after a call, which creates its variables.

    Args:
        model: The model.
        inputs: Length of the input vectors.
    """
    model(np.zeros((1, inputs), "float32"))
    return model


def random_layers(keras: ModuleType) -> Model:
    """Return a model of random layers, which have no variables in a checkpoint."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.Dropout(0.1),
        ]
    )


def variables_only(*specs: Spec) -> Callable[[ModuleType], Model]:
    """Return a recipe: a model of one layer named Dense that owns these variables.

    Args:
        *specs: The layer's variables.
    """
    return lambda keras: around(keras, 4, variables_layer(keras, "Dense", specs)())


def two_dense(keras: ModuleType) -> Model:
    """Return a model of two independent Dense layers of the same shape."""
    first, second = keras.Input((4,)), keras.Input((4,))
    dense = keras.layers.Dense
    return keras.Model([first, second], [dense(3)(first), dense(3)(second)])


RECIPES: dict[str, Callable[[ModuleType], Model]] = {
    "cnn_float16": cnn_float16,
    "containers": lambda keras: around(keras, 3, block_layer(keras)()),
    "dense": lambda keras: around(keras, 4, keras.layers.Dense(3)),
    "dense_bfloat16_float32": variables_only(DENSE[0]._replace(dtype="bfloat16"), DENSE[1]),
    "dense_float64_float16": variables_only(
        DENSE[0]._replace(dtype="float64"), DENSE[1]._replace(dtype="float16")
    ),
    "eight_dense": lambda keras: around(keras, 2, *(keras.layers.Dense(2) for _ in range(8))),
    "metrics_in_model": metrics_in_model,
    "nested": nested,
    "random_layers": random_layers,
    "subclassed": subclassed,
    "twelve_variables": variables_only(*DENSE, *(Spec(f"scalar_{i}") for i in range(10))),
    "two_dense": two_dense,
}


# --- load and dump -------------------------------------------------------------------------------


def load(keras: ModuleType, task: dict) -> Model:
    """Return the model of a task with the checkpoint's values in it.

    Args:
        keras: The Keras to load with.
        task: One task, see the head of this file.
    """
    checkpoint, rebuild = task["checkpoint"], task["rebuild"]
    if rebuild in RECIPES:
        model = RECIPES[rebuild](keras)
        model.load_weights(checkpoint)
        return model
    with keras.utils.custom_object_scope(custom_objects(keras)):  # Keras 3.0 ignores an argument
        model = keras.models.load_model(rebuild or checkpoint, compile=task["compile"])
    if rebuild:
        model.load_weights(checkpoint)
    return model


def variables_of(model: Model) -> list[Variable]:
    """Return every variable of a model, or of a FeatureSpace, which is not a Keras model.

    Args:
        model: What `load` returned.
    """
    if hasattr(model, "weights"):
        return list(model.weights)
    layers = model.preprocessors.values()
    return [variable for layer in layers for variable in layer.weights]


def run(keras: ModuleType, task: dict) -> dict:
    """Load one checkpoint and write its values; return the task's entry of the report.

    Args:
        keras: The Keras to load with.
        task: One task, see the head of this file.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    try:
        variables = variables_of(load(keras, task))
    except Exception as error:  # whatever an old Keras raises is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    arrays = [np.ascontiguousarray(variable.numpy()) for variable in variables]
    np.savez(task["values"], *(array.reshape(-1).view(np.uint8) for array in arrays))
    return {
        "variables": [
            {
                "name": getattr(variable, "path", variable.name),
                "shape": list(variable.shape),
                "dtype": array.dtype.name,
            }
            for variable, array in zip(variables, arrays, strict=True)
        ]
    }


def main(module: str, tasks: str, report: str) -> None:
    """Run every task with one Keras.

    Args:
        module: `keras` or `tf_keras`.
        tasks: Path of the JSON list of tasks.
        report: Path of the JSON list to write.
    """
    keras = importlib.import_module(module)
    entries = [run(keras, task) for task in json.loads(Path(tasks).read_text("utf-8"))]
    Path(report).write_text(json.dumps(entries), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
