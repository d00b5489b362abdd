"""The weights of a legacy `.h5` model, written as `.weights.h5`.

Keras 2.12 and later read `.weights.h5` in the layout of `keras_weights`, which names a variable
by its place in the model instead of by its layer's name. The place follows from the model's
configuration, for layers whose inside is known:

    layer of the configuration              its variables are at
    --------------------------------------  ------------------------------------------------
    k-th of its class in a model            <model>/layers/<class>[_k]
      Functional, Sequential                .../layers/... of its own layers
      LSTM, GRU, SimpleRNN, ConvLSTM        .../cell
      Bidirectional                         .../forward_layer, .../backward_layer
      TimeDistributed and like wrappers     .../layer
      MultiHeadAttention                    .../query_dense, key_dense, value_dense, output_dense
                                              (with an underscore in front in Keras 2)
      Dense, convolutions, normalizations   itself, in the order of the legacy file

Every variable must find exactly one place, else nothing is written. Keras 2.12 to 2.14 call the
group of layers `_layer_checkpoint_dependencies` and count layers with weights twice; older
versions read their own weights-only layout under this suffix, and get that.
Source: keras/src/saving/saving_lib.py, Keras 2.12 to 3.15; keras/engine/functional.py, 2.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamavg.architecture import parse_config, snake_case
from streamavg.checkpoint import Checkpoint, Role, Variable
from streamavg.errors import OptionError
from streamavg.formats import keras_legacy, keras_weights
from streamavg.formats.hdf5 import hdf5_of
from streamavg.formats.hdf5_writing import (
    Hdf5CheckpointWriter,
    Hdf5Stretch,
    Mirror,
    create_dataset,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import h5py
    import numpy as np

    from streamavg.formats.output import OutputFile

_MODELS = frozenset({"Functional", "Sequential", "Model"})
_RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})
_WRAPPERS = frozenset({"TimeDistributed"})
_ATTENTION = {"query": "query_dense", "key": "key_dense", "value": "value_dense",
              "attention_output": "output_dense"}  # fmt: skip
_PLAIN = frozenset(
    {"Dense", "EinsumDense", "Embedding", "PReLU", "Attention", "AdditiveAttention",
     "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
     "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
     "LocallyConnected1D", "LocallyConnected2D", "BatchNormalization", "SyncBatchNormalization",
     "LayerNormalization", "GroupNormalization", "RMSNormalization", "Normalization",
     "LayerScale"}
)  # fmt: skip
"""Keras' own layers that hold their variables themselves, the one of ConvNeXt among them.

A legacy file does not tell which classes are Keras' own, so any other class may have an inside that
is unknown.
"""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the variables of one layer go, and how their legacy names are recognised."""

    layer: str
    """Path of the layer in the output."""
    name: str
    """Its name in the configuration."""
    top: str
    """Name of the layer of the outermost model that it belongs to: the legacy file's group."""
    inside: tuple[str | None, ...] = ()
    """Names that follow the layer's in the legacy name; None stands for any."""

    def holds(self, top: str, scopes: Sequence[str]) -> bool:
        """Whether a legacy weight with these names in front of its own belongs here."""
        tail = scopes[-len(self.inside) - 1 :]
        return (
            top == self.top
            and len(tail) == len(self.inside) + 1
            and tail[0] == self.name
            and all(
                wanted in {None, found} for wanted, found in zip(self.inside, tail[1:], strict=True)
            )
        )


def check(reference: Checkpoint, *, keeps_optimizer: bool) -> None:
    """Refuses what cannot be converted. Raises: OptionError."""
    if keeps_optimizer:
        raise OptionError(
            f"--optimizer reference: the optimizer of {reference.path} has no place in "
            "*.weights.h5. Use -o with *.h5, or leave it out."
        )
    if not _reads_legacy_weights(reference):
        place_variables(reference)


def create(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], output: OutputFile
) -> Hdf5CheckpointWriter:
    """Starts a `.weights.h5` file with the weights of a legacy model.

    Args:
        reference: a checkpoint in the legacy layout.
        dtypes: of the values that will be written, one per variable of the reference; None for
            variables that are left out.
        output: the file to write.
    """
    if _reads_legacy_weights(reference):
        return _create_legacy_weights(reference, dtypes, output)
    places = place_variables(reference)
    targets = [
        None if dtype is None else places[variable.path]
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
    ]

    def make(target: h5py.File) -> None:
        target.create_group(keras_weights.VARIABLES_GROUP)
        with hdf5_of(reference).opened() as source:
            for variable, path, dtype in zip(reference.variables, targets, dtypes, strict=True):
                if path is not None and dtype is not None:
                    stored = source[
                        keras_legacy.dataset_path(reference, variable.path, variable.role)
                    ]
                    create_dataset(
                        stored.id, target.id, path, dtype, reference.path, marks_bfloat16=True
                    )
                    layer_name = [variable.layer, *_scopes(variable)][-1]
                    target[path.rpartition("/")[0]].attrs["name"] = layer_name

    return Hdf5CheckpointWriter(Hdf5Stretch(output), make, targets)


def _reads_legacy_weights(reference: Checkpoint) -> bool:
    """Whether the Keras that wrote the file reads legacy weights under `.weights.h5`."""
    version = _version(reference)
    return version is not None and version < (2, 12)


def _version(reference: Checkpoint) -> tuple[int, int] | None:
    numbers = (reference.producer or "").split(".")
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers[:2]):
        return None
    return int(numbers[0]), int(numbers[1])


def _create_legacy_weights(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], output: OutputFile
) -> Hdf5CheckpointWriter:
    """The group of weights alone, at the root of a new file."""
    prefix = f"{keras_legacy.WEIGHTS_GROUP}/" if keras_legacy.is_whole_model(reference) else ""
    targets = [
        None if dtype is None or variable.role == Role.OPTIMIZER else variable.path
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
    ]
    placed = {
        f"{prefix}{target}": dtype
        for target, dtype in zip(targets, dtypes, strict=True)
        if target is not None and dtype is not None
    }

    def make(target: h5py.File) -> None:
        with hdf5_of(reference).opened() as source:
            group = source[prefix or "/"]
            Mirror(placed, frozenset(), reference.path).fill(target, group, prefix)

    return Hdf5CheckpointWriter(Hdf5Stretch(output), make, targets)


def place_variables(reference: Checkpoint) -> dict[str, str]:
    """Path in the output of each variable of a legacy model, by its path in the model.

    Raises:
        OptionError: a variable has no place, or the configuration is missing.
    """
    if reference.config is None:
        raise OptionError(
            f"{reference.path}: legacy weights without a configuration cannot be written as "
            "*.weights.h5. Use -o with *.h5."
        )
    config = parse_config(reference.config, reference.path)
    scopes = {part for v in reference.variables for part in (v.layer, *_scopes(v))}
    try:
        places = list(_Walk(_version(reference) or (3, 0), scopes).model(config, ""))
    except (KeyError, TypeError, AttributeError):
        raise OptionError(
            f"{reference.path}: its configuration is not one that Keras writes. Use -o with *.h5."
        ) from None
    placed: dict[str, str] = {}
    counts: dict[str, int] = {}
    for variable in reference.variables:
        if variable.role == Role.OPTIMIZER:
            continue
        owners = _owners(variable, places)
        if len(owners) != 1 or variable.aliases:
            raise OptionError(
                f"{reference.path}: variable {variable.path!r}: its place in *.weights.h5 does "
                "not follow from the configuration. Use -o with *.h5."
            )
        layer = owners.pop()
        placed[variable.path] = f"{layer}/{keras_weights.VARIABLES_GROUP}/{counts.get(layer, 0)}"
        counts[layer] = counts.get(layer, 0) + 1
    return placed


def _owners(variable: Variable, places: Sequence[_Place]) -> set[str]:
    """Paths of the layers that a variable may belong to.

    Keras 3.0 to 3.3 name a weight by nothing but its layer of the outermost model.
    """
    scopes = _scopes(variable)
    return {
        place.layer
        for place in places
        if (place.holds(variable.layer, scopes) if scopes else place.top == variable.layer)
    }


def _scopes(variable: Variable) -> list[str]:
    """Names in front of a weight's own, the legacy group's apart."""
    return variable.path.removeprefix(f"{variable.layer}/").split("/")[:-1]


class _Walk:
    """Walks a configuration and names the place of every layer, in order.

    Args:
        version: of the Keras that will read the output.
        weighted: names of all layers that own weights, or contain such layers.
    """

    def __init__(self, version: tuple[int, int], weighted: set[str]) -> None:
        self._counts_twice = (2, 12) <= version < (2, 15)
        self._weighted = weighted
        self._private = "_" if version < (3, 0) else ""

    def model(self, model: Any, path: str, top: str | None = None) -> Iterator[_Place]:
        """Places of all layers of a model at `path`; `top` is None for the outermost model."""
        settings = model["config"]
        layers = settings if isinstance(settings, list) else settings["layers"]
        container = keras_weights.CONTAINERS[self._counts_twice]
        counts: dict[str, int] = {}
        for layer in layers:
            stem = snake_case(layer["class_name"])
            count = counts.get(stem, 0)
            name = layer["config"]["name"]
            counts[stem] = count + 1 + (self._counts_twice and name in self._weighted)
            member = f"{stem}_{count}" if count else stem
            yield from self._layer(layer, name, f"{path}{container}/{member}", top or name)

    def _layer(self, layer: Any, name: str, path: str, top: str) -> Iterator[_Place]:
        class_name, settings = layer["class_name"], layer["config"]
        if class_name in _MODELS:
            yield from self.model(layer, f"{path}/", top)
        elif class_name in _RECURRENT:
            yield _Place(f"{path}/cell", name, top, (None,))
        elif class_name == "Bidirectional":
            inner = settings["layer"]
            for side in ("forward", "backward"):
                side_name = f"{side}_{inner['config']['name'].removeprefix('forward_')}"
                yield from self._layer(inner, side_name, f"{path}/{side}_layer", top)
        elif class_name in _WRAPPERS:
            inner = settings["layer"]
            yield from self._layer(inner, inner["config"]["name"], f"{path}/layer", top)
            yield from self._layer(inner, name, f"{path}/layer", top)  # Keras 2 names it so
        elif class_name == "MultiHeadAttention":
            for part, attribute in _ATTENTION.items():
                yield _Place(f"{path}/{self._private}{attribute}", name, top, (part,))
        elif class_name in _PLAIN:
            yield _Place(path, name, top)
