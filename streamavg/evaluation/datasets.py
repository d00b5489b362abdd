"""Data that models are scored on, batch by batch and in the same order each time.

    FILE.npz           arrays x and y, and sample_weight if there is one; several inputs or outputs
                       are x_0, x_1, ... and y_0, y_1, ...
    FILE.npz:SPLIT     arrays x_SPLIT and y_SPLIT of a file that holds several splits
    module:function    a function that returns a batched tf.data.Dataset, or arrays (x, y) or
                       (x, y, sample_weight)

Nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamavg.errors import CorruptFileError, FormatError, OptionError, UnsupportedFeatureError
from streamavg.evaluation.keras_backend import load_keras, load_tensorflow, named_function

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some examples: arrays or tensors, or tuples or dictionaries of them, first axis first."""

    x: Any
    y: Any
    sample_weight: Any

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(leaves(self.x)[0])

    def checksum(self, start: int) -> int:
        """CRC-32 of all values, going on from `start`."""
        for leaf in leaves((self.x, self.y, self.sample_weight)):
            values = np.ascontiguousarray(leaf.numpy() if hasattr(leaf, "numpy") else leaf)
            if values.dtype.hasobject:  # strings, as TensorFlow holds them
                start = zlib.crc32(repr(values.tolist()).encode(), start)
            else:
                start = zlib.crc32(values.tobytes(), start)
        return start


class Data(Protocol):
    """Examples in batches. Every pass yields the same ones in the same order."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def batch_count(self) -> int | None:
        """Number of batches, None where it is not known before a pass."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Goes through the data once. Raises: OptionError for what is no example."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayData:
    """Arrays in memory."""

    name: str
    x: Any
    y: Any
    sample_weight: Any
    batch_size: int

    def __post_init__(self) -> None:
        lengths = {len(leaf) for leaf in leaves((self.x, self.y, self.sample_weight))}
        if len(lengths) != 1 or 0 in lengths:
            raise OptionError(
                f"{self.name}: its arrays have {sorted(lengths)} examples. "
                "Give as many labels as inputs, and at least one."
            )

    @property
    def batch_count(self) -> int:
        """Number of batches."""
        return -(-len(leaves(self.x)[0]) // self.batch_size)

    def batches(self) -> Iterator[Batch]:
        """Goes through the arrays once."""
        for number in range(self.batch_count):
            rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield Batch(*(_sliced(part, rows) for part in (self.x, self.y, self.sample_weight)))


@dataclass(frozen=True, slots=True, eq=False)
class StreamedData:
    """A tf.data.Dataset, batched as it is."""

    name: str
    dataset: Any

    @property
    def batch_count(self) -> int | None:
        """Number of batches, if the dataset knows it."""
        count = int(self.dataset.cardinality())
        return count if count >= 0 else None

    def batches(self) -> Iterator[Batch]:
        """Goes through the dataset once."""
        unpack = load_keras().utils.unpack_x_y_sample_weight
        for element in self.dataset:
            x, y, sample_weight = unpack(element)
            if y is None:
                raise OptionError(f"{self.name}: has no labels. Let it yield (x, y).")
            lengths = {len(leaf) if len(leaf.shape) else -1 for leaf in leaves((x, y))}
            if len(lengths) != 1 or -1 in lengths:
                raise OptionError(
                    f"{self.name}: yields single examples, not batches. End it with .batch(size)."
                )
            yield Batch(x, y, sample_weight)


def open_data(text: str, *, option: str, batch_size: int | None = None) -> Data:
    """The data that a user names, see the module.

    Args:
        text: a file or a function.
        option: what it was given for, such as "--val", for messages.
        batch_size: of arrays; `BATCH_SIZE` by default.

    Raises:
        OptionError: there is no such file or function, or it gives something else.
        FormatError: the file cannot be read.

    Memory: arrays are in memory whole; a dataset is not.
    """
    size = BATCH_SIZE if batch_size is None else batch_size
    if size < 1:
        raise OptionError(f"--batch-size {size}: a batch has at least one example.")
    path, split = _path_and_split(text)
    if path is not None:
        x, y, sample_weight = _read_arrays(path, split)
        return ArrayData(text, x, y, sample_weight, size)
    if ":" not in text:
        raise OptionError(
            f"{option} {text}: is neither FILE.npz, FILE.npz:SPLIT nor module:function."
        )
    return _data_of(named_function(text, option)(), text, option, size)


def _path_and_split(text: str) -> tuple[Path | None, str | None]:
    if text.endswith(".npz"):
        return Path(text), None
    file, _, split = text.rpartition(":")
    return (Path(file), split) if file.endswith(".npz") and split else (None, None)


def _data_of(found: Any, text: str, option: str, batch_size: int) -> Data:
    if isinstance(found, load_tensorflow().data.Dataset):
        if int(found.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
            raise OptionError(f"{option} {text}: never ends. End it with .take(batches).")
        return StreamedData(text, found)
    if isinstance(found, tuple) and len(found) in {2, 3}:
        x, y, *rest = found
        return ArrayData(text, x, y, rest[0] if rest else None, batch_size)
    raise OptionError(
        f"{option} {text}: returned {type(found).__name__}, expected a tf.data.Dataset or arrays "
        "(x, y) or (x, y, sample_weight)."
    )


def _read_arrays(path: Path, split: str | None) -> tuple[Any, Any, Any]:
    suffix = "" if split is None else f"_{split}"
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = stored.files
            parts = [_part(stored, path, stem, suffix) for stem in ("x", "y")]
            weight = f"sample_weight{suffix}"
            return parts[0], parts[1], stored[weight] if weight in names else None
    except FormatError:
        raise
    except OSError as error:
        raise OptionError(f"{path}: cannot be opened: {error.strerror or error}.") from error
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        if "allow_pickle" in str(error):
            raise UnsupportedFeatureError(
                path, "holds pickled objects, which are never opened. Save arrays of numbers."
            ) from error
        raise CorruptFileError(path, f"is no .npz file that NumPy reads: {error}.") from error


def _part(stored: Mapping[str, Any], path: Path, stem: str, suffix: str) -> Any:
    """One array, or a tuple of those that are counted."""
    names = list(stored)
    if f"{stem}{suffix}" in names:
        return stored[f"{stem}{suffix}"]
    counted: list[Any] = []
    while f"{stem}_{len(counted)}{suffix}" in names:
        counted.append(stored[f"{stem}_{len(counted)}{suffix}"])
    if counted:
        return tuple(counted)
    splits = [name.removeprefix("x_") for name in names if name.startswith("x_")]
    remedy = f" Name a split, such as {path}:{splits[0]}." if splits else ""
    raise UnsupportedFeatureError(
        path, f"has no array {f'{stem}{suffix}'!r}; it has {', '.join(names)}.{remedy}"
    )


def leaves(structure: Any) -> list[Any]:
    """The arrays in nested tuples, lists and dictionaries, without what is None."""
    if structure is None:
        return []
    if isinstance(structure, dict):
        return [leaf for key in sorted(structure) for leaf in leaves(structure[key])]
    if isinstance(structure, tuple | list):
        return [leaf for part in structure for leaf in leaves(part)]
    return [structure]


def _sliced(structure: Any, rows: slice) -> Any:
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {key: _sliced(part, rows) for key, part in structure.items()}
    if isinstance(structure, tuple | list):
        parts: Sequence[Any] = [_sliced(part, rows) for part in structure]
        return tuple(parts)
    return structure[rows]
