"""Small checkpoint files in every layout, written with plain h5py and zipfile."""

import io
import json
import zipfile
from dataclasses import dataclass

import h5py
import numpy as np

from tests.oracle import BFLOAT16

CONFIG = '{"module": "keras", "class_name": "Sequential", "config": {"layers": []}}'
METADATA = '{"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}'


@dataclass(frozen=True)
class Storage:
    """How arrays lie in an HDF5 file."""

    big_endian: bool = False
    chunked: bool = False
    gzip: bool = False
    libver: str | None = None
    userblock: int = 0


STORAGES = {
    "contiguous": Storage(),
    "big-endian": Storage(big_endian=True),
    "chunked": Storage(chunked=True),
    "gzip": Storage(chunked=True, gzip=True),
    "big-endian and gzip": Storage(big_endian=True, chunked=True, gzip=True),
    "latest HDF5": Storage(libver="latest"),
    "after a user block": Storage(userblock=1024),
}
ARRAYS = {
    "kernel": np.linspace(-2, 3, 105, dtype=np.float32).reshape(5, 7, 3),
    "bias": np.linspace(0, 1, 13, dtype=np.float16),
    "double": np.linspace(-1, 1, 12).reshape(3, 2, 1, 2),
    "scalar": np.float32(2.5),
    "empty": np.empty((0, 4), np.float32),
    "brain": np.linspace(-3, 3, 10, dtype=np.float32).reshape(5, 2).astype(BFLOAT16),
    "count": np.int64(-7),
    "flags": np.array([True, False, True]),
    "unsigned": np.arange(5, dtype=np.uint16),
}


def add_array(group, path, values, storage=Storage()):
    """Stores an array at `path` below `group`."""
    values = np.asarray(values)
    if values.dtype.kind in "OSU":
        return group.create_dataset(path, data=values)
    options = {}
    if storage.chunked and values.size:
        options["chunks"] = tuple(max(1, extent // 2) for extent in values.shape) or None
    if storage.gzip and values.shape and values.size:
        options |= {"compression": "gzip", "shuffle": True}
    is_bfloat16 = values.dtype == BFLOAT16
    if is_bfloat16:
        values = values.view("V2")
    elif storage.big_endian and values.dtype.kind != "b":
        values = values.astype(values.dtype.newbyteorder(">"))
    made = group.create_dataset(path, data=values, **options)
    if is_bfloat16:
        made.attrs["dtype"] = "bfloat16"
    return made


def add_unwritten(group, path, shape, dtype, fill):
    """Declares an array that is never written: its values are the fill value."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_fill_value(np.array(fill, dtype))
    space = h5py.h5s.create_simple(shape)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    h5py.h5d.create(
        group.id, path.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, creation, links
    )


def write_weights(file, arrays, storage=Storage()):
    """Writes a `.weights.h5` file: arrays by their full path. Returns `file`."""
    with h5py.File(file, "w", libver=storage.libver, userblock_size=storage.userblock) as opened:
        opened.create_group("vars").attrs["name"] = "sequential"
        for path, values in arrays.items():
            add_array(opened, path, values, storage)
    return file


def weights_bytes(arrays, storage=Storage()):
    """The bytes of a `.weights.h5` file."""
    return write_weights(io.BytesIO(), arrays, storage).getvalue()


def write_members(path, members, compression=zipfile.ZIP_STORED):
    """Writes a zip archive: contents by name. Returns `path`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def keras_members(arrays, storage=Storage(), **changed):
    """The members of a `.keras` archive; `changed` replaces some ("metadata", "config")."""
    return {
        "metadata.json": changed.get("metadata", METADATA),
        "config.json": changed.get("config", CONFIG),
        "model.weights.h5": weights_bytes(arrays, storage),
    }


def write_keras(path, arrays, storage=Storage(), **options):
    """Writes a `.keras` archive: arrays by their full path. Returns `path`."""
    assets = {f"assets/{name}": text for name, text in options.pop("assets", {}).items()}
    compression = options.pop("compression", zipfile.ZIP_STORED)
    return write_members(path, keras_members(arrays, storage, **options) | assets, compression)


def write_legacy(path, layers, storage=Storage(), *, whole=False, optimizer=None):
    """Writes a legacy file: arrays by layer and weight name. Returns `path`."""
    with h5py.File(path, "w", libver=storage.libver, userblock_size=storage.userblock) as opened:
        weights = opened
        if whole:
            opened.attrs["model_config"] = json.dumps(json.loads(CONFIG))
            opened.attrs["keras_version"] = "2.15.0"
            weights = opened.create_group("model_weights")
        weights.attrs["layer_names"] = list(layers)
        weights.attrs["backend"] = "tensorflow"
        for layer, arrays in layers.items():
            group = weights.require_group(layer)
            group.attrs["weight_names"] = list(arrays)
            for name, values in arrays.items():
                made = add_array(group, name, values, storage)
                made.attrs.pop("dtype", None)  # Keras marks bfloat16 in the other layouts only
        for name, values in (optimizer or {}).items():
            add_array(opened, f"optimizer_weights/{name}", values, storage)
    return path
