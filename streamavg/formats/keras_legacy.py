"""Legacy `.h5` and `.hdf5`: whole models and weights, Keras 1 to today.

    /                       attributes model_config, training_config (whole models only)
    G = /model_weights      in whole models; the root itself in weights-only files
    G                       attribute layer_names, or layer_names0, layer_names1, ... if long
    G/<layer>               attribute weight_names, or weight_names0, ...
    G/<layer>/<weight>      dataset, such as dense/dense/kernel:0
    /optimizer_weights/...  optimizer state (whole models only)

The lists of names give the order and are the only way to the datasets: a layer's name may contain
slashes, so that its group lies inside another layer's. A nested model is one layer with all inner
weights. Keras <= 2.12 writes this layout under the suffix `.keras` too.
Source: keras/src/legacy/saving/legacy_h5_format.py, Keras 2.2 to 3.15.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.checkpoint import Checkpoint, Layer, Naming, Role, Variable
from streamavg.errors import CorruptFileError, UnsafeFileError
from streamavg.formats import library as h5py
from streamavg.formats.hdf5 import Hdf5File, Hdf5Values, hdf5_of
from streamavg.formats.hdf5_headers import resolve, walk
from streamavg.formats.hdf5_writing import Hdf5CheckpointWriter, Hdf5Stretch, Mirror
from streamavg.formats.roles import assign_roles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamavg.formats.datasets import Dataset
    from streamavg.formats.files import RandomAccessFile
    from streamavg.formats.output import OutputFile
    from streamavg.formats.plain_headers import Outline

NAME = "keras-legacy"
WEIGHTS_GROUP = "model_weights"
OPTIMIZER_GROUP = "optimizer_weights"
TOP_LEVEL_GROUP = "top_level_model_weights"
"""Weights that belong to the model itself; Keras 2.3 and later."""
CONFIG, VERSION = "model_config", "keras_version"
LARGEST_HEADERS = 16 * 1024**2
HEADERS_PER_DATASET = 8192
"""Bytes that a file may hold beside its values: its configuration, groups and attributes."""


def recognises(opened: h5py.File) -> bool:
    """Whether an HDF5 file has this layout."""
    has_group = WEIGHTS_GROUP in opened.keys()  # noqa: SIM118 - `in opened` would follow links
    return _has_names(opened, "layer_names") or CONFIG in opened.attrs or has_group


def recognises_outline(outline: Outline) -> bool:
    """As `recognises`, for a file whose first two levels are known."""
    marks = {b"layer_names", b"layer_names0", CONFIG.encode()}
    return WEIGHTS_GROUP in outline.members or bool(marks & outline.attributes)


def _has_names(group: h5py.Group, attribute: str) -> bool:
    """Whether a list of names is there, whole or split (see `read_names`)."""
    return attribute in group.attrs or f"{attribute}0" in group.attrs


def read(file: RandomAccessFile) -> Checkpoint:
    """Reads the headers of a legacy file. Raises: FormatError."""
    path = file.path
    hdf5 = Hdf5File(file)
    with hdf5.opened() as opened:
        weights, prefix = _weights_group(opened, path)
        found = list(_layer_datasets(weights, prefix, hdf5))
        optimizer = list(_optimizer_datasets(opened, hdf5))
        _refuse_large_headers([d for *_, d in found] + optimizer, hdf5)
        config = _text(opened.attrs.get(CONFIG))
        producer = _text(weights.attrs.get(VERSION, opened.attrs.get(VERSION)))
    variables, datasets = _variables(found, prefix)
    variables += [
        Variable(dataset.path, dataset.shape, dataset.dtype, Role.OPTIMIZER, OPTIMIZER_GROUP)
        for dataset in optimizer
    ]
    layers = dict.fromkeys(variable.layer for variable in variables)
    return Checkpoint(
        path=path,
        format=NAME,
        naming=Naming.BY_LAYER,
        producer=producer,
        variables=assign_roles(variables),
        layers=tuple(Layer(name, name, None) for name in layers if name != OPTIMIZER_GROUP),
        config=config,
        assets={},
        values=Hdf5Values(hdf5, [*datasets, *optimizer]),
        identity=file.identity,
    )


def _weights_group(opened: h5py.File, path: Path) -> tuple[h5py.Group, str]:
    if _has_names(opened, "layer_names"):
        return opened, ""
    resolve(opened, WEIGHTS_GROUP, path)
    group = opened[WEIGHTS_GROUP]
    if not isinstance(group, h5py.Group) or not _has_names(group, "layer_names"):
        raise CorruptFileError(path, f"its group {WEIGHTS_GROUP!r} does not name any layers.")
    return group, f"{WEIGHTS_GROUP}/"


def read_names(group: h5py.Group, attribute: str) -> list[str]:
    """Reads a list of names, whole or split over `attribute0`, `attribute1`, ...

    Keras splits lists that exceed HDF5's limit of 64 KiB for an attribute, and stores an empty
    list as an empty array of floats.
    """
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
    return [_text(name) or "" for part in parts for name in np.asarray(part).reshape(-1).tolist()]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _layer_datasets(
    weights: h5py.Group, prefix: str, hdf5: Hdf5File
) -> Iterator[tuple[str, str, Dataset]]:
    """Yields layer, weight name and header of each dataset, in the file's order."""
    describer = hdf5.describer()
    layers = read_names(weights, "layer_names")
    if TOP_LEVEL_GROUP in weights:
        layers.append(TOP_LEVEL_GROUP)
    _refuse_repeated(layers, "layer", hdf5.path)
    for layer in layers:
        resolve(weights, layer, hdf5.path)
        group = weights[layer]
        names = read_names(group, "weight_names")
        _refuse_repeated(names, f"weight of {layer!r}", hdf5.path)
        for name in names:
            found = resolve(group, name, hdf5.path)
            if not isinstance(found, h5py.h5d.DatasetID):
                raise CorruptFileError(hdf5.path, f"variable '{layer}/{name}' is not an array.")
            yield layer, name, describer.describe(found, f"{prefix}{layer}/{name}")


def _refuse_large_headers(datasets: Sequence[Dataset], hdf5: Hdf5File) -> None:
    """A configuration is read whole, and its size is known only by what is left of the file."""
    if any(dataset.offset < 0 for dataset in datasets):
        return  # what compressed values take in the file is not known either
    values = sum(math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets)
    headers = hdf5.size - values
    if headers > LARGEST_HEADERS + HEADERS_PER_DATASET * len(datasets):
        raise UnsafeFileError(hdf5.path, f"{headers:,} of its bytes are no values.")


def _refuse_repeated(names: Sequence[str], what: str, path: Path) -> None:
    if len(set(names)) != len(names):
        name = next(name for index, name in enumerate(names) if name in names[:index])
        raise CorruptFileError(path, f"{what} {name!r} is listed twice.")


def _optimizer_datasets(opened: h5py.File, hdf5: Hdf5File) -> Iterator[Dataset]:
    if OPTIMIZER_GROUP in opened:
        resolve(opened, OPTIMIZER_GROUP, hdf5.path)
        yield from walk(opened[OPTIMIZER_GROUP], hdf5.describer(), f"{OPTIMIZER_GROUP}/")


def _variables(
    found: Sequence[tuple[str, str, Dataset]], prefix: str
) -> tuple[list[Variable], list[Dataset]]:
    """One variable a stored array; a further path to the same array becomes an alias."""
    by_address: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    kept: list[tuple[str, Dataset]] = []
    for layer, _, dataset in found:
        path = dataset.path.removeprefix(prefix)
        first = by_address.setdefault(dataset.address, path) if dataset.address else path
        if first == path:
            kept.append((layer, dataset))
        else:
            aliases.setdefault(first, []).append(path)
    variables = []
    for layer, dataset in kept:
        path = dataset.path.removeprefix(prefix)
        shared = tuple(aliases.get(path, ()))
        variables.append(Variable(path, dataset.shape, dataset.dtype, Role.WEIGHT, layer, shared))
    return variables, [dataset for _, dataset in kept]


def is_whole_model(reference: Checkpoint) -> bool:
    """Whether a legacy checkpoint holds the model's configuration, not the weights alone."""
    return reference.config is not None


def dataset_path(reference: Checkpoint, path: str, role: Role) -> str:
    """Path in the HDF5 file of the dataset of a variable with this path and role."""
    if role == Role.OPTIMIZER or not is_whole_model(reference):
        return path
    return f"{WEIGHTS_GROUP}/{path}"


def create(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], output: OutputFile
) -> Hdf5CheckpointWriter:
    """Starts a legacy file with the structure of the reference, whole model or weights alone.

    Args:
        reference: a checkpoint in this format.
        dtypes: of the values that will be written, one per variable of the reference; None for
            variables that are left out.
        output: the file to write.
    """
    targets = [
        None if dtype is None else dataset_path(reference, variable.path, variable.role)
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
    ]
    placed = {
        dataset_path(reference, path, variable.role): dtype
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
        if dtype is not None
        for path in (variable.path, *variable.aliases)
    }
    keeps_optimizer = any(target.startswith(f"{OPTIMIZER_GROUP}/") for target in placed)
    excluded = frozenset() if keeps_optimizer else frozenset({OPTIMIZER_GROUP})

    def make(target: h5py.File) -> None:
        with hdf5_of(reference).opened() as source:
            Mirror(placed, excluded, reference.path).fill(target, source)

    return Hdf5CheckpointWriter(Hdf5Stretch(output), make, targets)
