"""Checkpoints of any size in the layouts that Keras 3 writes, filled with normal random values.

The model is a `Sequential` of `Dense` layers that are all equally wide: as many variables of
whatever size as a measurement needs, and one that Keras rebuilds from its configuration.

A skeleton, everything but the values, is made once with the calls of h5py that Keras makes. Each
checkpoint is then the skeleton with values at the offsets of its variables, so that thousands of
checkpoints, or variables of many gigabytes, take neither much time nor much memory. Checkpoints
of one seed hold the same values in every layout.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KERAS_VERSION = "3.15.1"
"""The version whose files these are."""
WIDEST = 1024
"""Inputs and units of a layer, unless the number of variables asks for more."""
PIECE = 2**21
"""Elements that are made and written at once."""
SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class Variable:
    """One array of the model: the kernel or the bias of a layer."""

    layer: str
    key: str
    """`0` or `1`, as native files call it."""
    name: str
    """`kernel` or `bias`, as legacy files call it."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def native_path(self) -> str:
        """Its dataset in `.weights.h5` files and `.keras` archives."""
        return f"layers/{self.layer}/vars/{self.key}"

    @property
    def legacy_path(self) -> str:
        """Its dataset in legacy `.h5` files."""
        return f"model_weights/{self.layer}/sequential/{self.layer}/{self.name}"


@dataclass(frozen=True, slots=True)
class Model:
    """A `Sequential` of `layers` Dense layers with `width` inputs and units each."""

    layers: int
    width: int
    dtype: str = "float32"

    @classmethod
    def sized(cls, size: float, dtype: str = "float32", variables: int | None = None) -> Model:
        """The model that comes closest to a size.

        Args:
            size: bytes of all values.
            dtype: of all variables.
            variables: how many there are, an even number; by default as many as give layers
                `WIDEST` wide.
        """
        elements = size / itemsize(dtype)
        if variables is None:
            width = min(WIDEST, max(1, math.isqrt(int(elements) // 2)))
            return cls(max(1, round(elements / (width * (width + 1)))), width, dtype)
        layers = variables // 2
        # width * (width + 1) elements each
        width = round((math.sqrt(1 + 4 * elements / layers) - 1) / 2)
        return cls(layers, max(1, width), dtype)

    @property
    def layer_names(self) -> list[str]:
        """As Keras counts layers of one class."""
        return ["dense", *(f"dense_{number}" for number in range(1, self.layers))]

    @property
    def variables(self) -> list[Variable]:
        """In the order of the model."""
        kernel, bias = (self.width, self.width), (self.width,)
        pairs = [
            (Variable(name, "0", "kernel", kernel), Variable(name, "1", "bias", bias))
            for name in self.layer_names
        ]
        return [variable for pair in pairs for variable in pair]

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self.layers * self.width * (self.width + 1) * itemsize(self.dtype)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return numpy_dtype(dtype).itemsize


# --- configurations ------------------------------------------------------------------------------


def configuration(model: Model) -> dict[str, Any]:
    """What `config.json` says; settings that only newer versions of Keras know are left out."""
    policy = _object("keras", "DTypePolicy", {"name": model.dtype})
    layers = [_object("keras.layers", "InputLayer", _input_settings(model))]
    layers += [
        _object("keras.layers", "Dense", _dense_settings(model, name, policy))
        | {"build_config": {"input_shape": [None, model.width]}}
        for name in model.layer_names
    ]
    settings = {"name": "sequential", "trainable": True, "dtype": policy, "layers": layers}
    settings["build_input_shape"] = [None, model.width]
    return _object("keras", "Sequential", settings) | {
        "build_config": {"input_shape": [None, model.width]}
    }


def legacy_configuration(model: Model) -> dict[str, Any]:
    """What the attribute `model_config` of a legacy file says."""
    policy = _object("keras", "DTypePolicy", {"name": model.dtype})
    layers = [{"class_name": "InputLayer", "config": _input_settings(model)}]
    layers += [
        {"class_name": "Dense", "config": _dense_settings(model, name, policy)}
        for name in model.layer_names
    ]
    settings = {"name": "sequential", "trainable": True, "dtype": policy, "layers": layers}
    settings["build_input_shape"] = [None, model.width]
    return {"class_name": "Sequential", "config": settings}


def _object(module: str, class_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": class_name,
        "config": settings,
        "registered_name": None,
    }


def _input_settings(model: Model) -> dict[str, Any]:
    return {
        "batch_shape": [None, model.width],
        "dtype": "float32",
        "sparse": False,
        "name": "input_layer",
    }


def _dense_settings(model: Model, name: str, policy: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "trainable": True,
        "dtype": policy,
        "units": model.width,
        "activation": "linear",
        "use_bias": True,
        "kernel_initializer": _object("keras.initializers", "GlorotUniform", {"seed": None}),
        "bias_initializer": _object("keras.initializers", "Zeros", {}),
        "kernel_regularizer": None,
        "bias_regularizer": None,
        "kernel_constraint": None,
        "bias_constraint": None,
    }


# --- skeletons -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skeleton:
    """A file without its values."""

    size: int
    pieces: list[tuple[int, bytes]]
    """What lies between the values, with its offset."""
    offsets: list[int]
    """Where each variable begins, in the order of the model."""

    @classmethod
    def of(cls, path: Path, model: Model, offsets: list[int]) -> Skeleton:
        """Reads it from a file whose values are holes."""
        lengths = [variable.size * itemsize(model.dtype) for variable in model.variables]
        end, pieces = 0, []
        with path.open("rb") as file:
            for offset, length in sorted(zip(offsets, lengths, strict=True)):
                file.seek(end)
                pieces.append((end, file.read(offset - end)))
                end = offset + length
            file.seek(end)
            pieces.append((end, file.read()))
            size = file.tell()
        return cls(size, [piece for piece in pieces if piece[1]], offsets)

    def write(self, path: Path, model: Model, values: Values) -> None:
        """Writes a checkpoint."""
        with path.open("wb") as file:
            file.truncate(self.size)
            for offset, content in self.pieces:
                file.seek(offset)
                file.write(content)
            for variable, offset in zip(model.variables, self.offsets, strict=True):
                file.seek(offset)
                for piece in values(variable):
                    file.write(piece.astype(numpy_dtype(model.dtype), copy=False).tobytes())


def native_skeleton(path: Path, model: Model) -> Skeleton:
    """Of `.weights.h5` files, as `H5IOStore` of Keras writes them. Leaves a file at `path`."""
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        for name in model.layer_names:
            group = file.create_group(f"layers/{name}").create_group("vars")
            group.attrs["name"] = name
            for variable in Model(1, model.width).variables:
                if model.dtype == "bfloat16":
                    dataset = _allocate(group, variable.key, variable.shape, model.dtype)
                    dataset.attrs["dtype"] = "bfloat16"
                else:  # `group[key] = values` gives a dataset its name after its values
                    group[variable.key] = _allocate(group, None, variable.shape, model.dtype)
        offsets = [file[v.native_path].id.get_offset() for v in model.variables]
    return Skeleton.of(path, model, offsets)


def legacy_skeleton(path: Path, model: Model) -> Skeleton:
    """Of legacy `.h5` files, as `model.save("x.h5")` of Keras 3 writes them.

    At most some 4,000 layers, as in Keras: an attribute holds no more names.
    """
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = KERAS_VERSION
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps(legacy_configuration(model)).encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [name.encode() for name in model.layer_names]
        weights.attrs["backend"] = b"tensorflow"
        weights.attrs["keras_version"] = KERAS_VERSION.encode()
        for name in sorted(model.layer_names):
            group = weights.create_group(name)
            paths = [f"sequential/{name}/{v.name}" for v in Model(1, model.width).variables]
            group.attrs["weight_names"] = [path.encode() for path in paths]
            for name_, variable in zip(paths, Model(1, model.width).variables, strict=True):
                _allocate(group, name_, variable.shape, model.dtype)
        weights.create_group("top_level_model_weights").attrs["weight_names"] = []
        offsets = [file[v.legacy_path].id.get_offset() for v in model.variables]
    return Skeleton.of(path, model, offsets)


def safetensors_skeleton(path: Path, model: Model) -> Skeleton:
    """Of `.safetensors` files: the length of a JSON header, the header, then the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    lengths = [variable.size * itemsize(model.dtype) for variable in model.variables]
    starts = [sum(lengths[:position]) for position in range(len(lengths))]
    for variable, start, length in zip(model.variables, starts, lengths, strict=True):
        header[variable.native_path] = {
            "dtype": SAFETENSORS_NAMES[model.dtype],
            "shape": variable.shape,
            "data_offsets": [start, start + length],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text) + 8
    pieces = [(0, len(text).to_bytes(8, "little") + text)]
    return Skeleton(begin + sum(lengths), pieces, [begin + start for start in starts])


def _allocate(
    group: h5py.Group, name: str | None, shape: tuple[int, ...], dtype: str
) -> h5py.Dataset:
    """A dataset that has its place in the file: HDF5 gives it one when a value is written."""
    dataset = group.create_dataset(name, shape, dtype=numpy_dtype(dtype))
    dataset[(slice(0, 1),) * len(shape)] = np.zeros((1,) * len(shape), numpy_dtype(dtype))
    return dataset


# --- checkpoints ---------------------------------------------------------------------------------

if TYPE_CHECKING:
    Values = Callable[[Variable], Iterable[NDArray[Any]]]
    """Gives the flat values of a variable in pieces; asked for the variables in their order."""


class RandomValues:
    """Normal random values: the same for the same seed, whatever they are rounded to."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, variable: Variable) -> Iterator[NDArray[Any]]:
        """Pieces of at most `PIECE` float32 values."""
        for start in range(0, variable.size, PIECE):
            count = min(PIECE, variable.size - start)
            yield self._generator.standard_normal(count, dtype=np.float32)


def given_values(arrays: dict[str, NDArray[Any]]) -> Values:
    """The values of arrays, by the native path of their variable."""
    return lambda variable: [arrays[variable.native_path].reshape(-1)]


SKELETONS = {
    ".weights.h5": native_skeleton,
    ".keras": native_skeleton,
    ".safetensors": safetensors_skeleton,
    ".h5": legacy_skeleton,
}
"""By the suffix of a file; the longest comes first."""


def suffix_of(path: Path) -> str:
    """The suffix that tells the layout of a file."""
    return next(suffix for suffix in SKELETONS if path.name.endswith(suffix))


def build(paths: Sequence[Path], model: Model, values: Sequence[Values]) -> None:
    """Writes checkpoints of one model in the layout that their suffix names.

    Args:
        paths: of one suffix.
        model: what they are checkpoints of.
        values: of each checkpoint.
    """
    suffix = suffix_of(paths[0])
    blank = paths[0].with_name("blank")
    skeleton = SKELETONS[suffix](blank, model)
    for path, of_checkpoint in zip(paths, values, strict=True):
        if suffix == ".keras":
            skeleton.write(blank, model, of_checkpoint)
            write_archive(path, model, blank)
        else:
            skeleton.write(path, model, of_checkpoint)
    blank.unlink(missing_ok=True)


def build_random(paths: Sequence[Path], model: Model) -> None:
    """Writes checkpoints with normal random values; the n-th of any layout has the same ones."""
    build(paths, model, [RandomValues(number) for number in range(len(paths))])


def write_archive(path: Path, model: Model, weights: Path) -> None:
    """A `.keras` archive around a file of weights: stored, in the order of Keras."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        metadata = {"keras_version": KERAS_VERSION, "date_saved": "2026-01-01@00:00:00"}
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", json.dumps(configuration(model)))
        archive.write(weights, "model.weights.h5")
