"""Small checkpoints for the tests of the upper rooms, and ways to look at what was written."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
DIGITS = FIXTURES / "digits"
DEMO = FIXTURES / "demo"
LOGGED = FIXTURES / "digits-logged"
LEGACY = FIXTURES / "digits-legacy"
MISMATCHED = FIXTURES / "digits-mismatched"
LAYOUTS = FIXTURES / "layouts"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KERAS = "3.15.1"


def write_weights(path, layers, *, names=None, **storage):
    """Writes a `.weights.h5` file.

    Args:
        path: where.
        layers: arrays of each layer's group `vars`, by the path of the layer; a list counts
            them "0", "1", ..., a mapping names them.
        names: the attribute `name` of some layers.
        **storage: of the datasets, as h5py takes it.
    """
    with h5py.File(path, "w") as file:
        _fill_weights(file, layers, names or {}, storage)
    return path


def _fill_weights(file, layers, names, storage):
    file.require_group("vars")
    for layer, arrays in layers.items():
        group = file.require_group(f"{layer}/vars".lstrip("/"))
        if layer in names:
            group.attrs["name"] = names[layer]
        named = arrays if isinstance(arrays, dict) else {str(i): a for i, a in enumerate(arrays)}
        for key, array in named.items():
            _store(group, key, array, storage)


def _store(group, key, array, storage):
    if isinstance(array, h5py.Dataset):
        group[key] = array
        return
    array = np.asarray(array)
    if array.dtype == BFLOAT16:
        group.create_dataset(key, data=array.view("V2"), **storage).attrs["dtype"] = "bfloat16"
    else:
        group.create_dataset(key, data=array, **storage)


def write_archive(path, layers, *, names=None, config=None, assets=None, version=KERAS):
    """Writes a `.keras` archive; arguments as `write_weights`, and the other members."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        _fill_weights(file, layers, names or {}, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config if config is not None else sequential()))
        archive.writestr("model.weights.h5", weights.getvalue())
        for name, content in (assets or {}).items():
            archive.writestr(f"assets/{name}", content)
    return path


def write_legacy(path, layers, *, config=None, version=KERAS):
    """Writes a legacy `.h5` file: a whole model if it has a configuration.

    Args:
        path: where.
        layers: arrays by weight name, by layer name, in the model's order.
        config: the model's configuration.
        version: of the Keras that wrote it.
    """
    with h5py.File(path, "w") as file:
        group = file
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
            group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([name.encode() for name in layers])
        group.attrs["keras_version"] = version
        group.attrs["backend"] = "tensorflow"
        for layer, weights in layers.items():
            member = group.require_group(layer)
            member.attrs["weight_names"] = np.array([name.encode() for name in weights])
            for name, array in weights.items():
                member.create_dataset(name, data=array)
    return path


def dense_legacy(path, names, *, config=None, version=KERAS, first=0.0):
    """A legacy file of Dense layers of one shape; layer i holds the value `first` + i."""
    suffix = "" if version.startswith("3") else ":0"
    layers = {
        name: {
            f"{name}/kernel{suffix}": np.full((2, 3), first + i, "f4"),
            f"{name}/bias{suffix}": np.full(3, first + i, "f4"),
        }
        for i, name in enumerate(names)
    }
    return write_legacy(path, layers, config=config, version=version)


def sequential(*layers):
    """The configuration of a Sequential model of (class, settings) pairs."""
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "layers": [
                {"module": "keras.layers", "class_name": class_name, "config": settings,
                 "registered_name": None}
                for class_name, settings in layers
            ],
        },
        "registered_name": None,
    }  # fmt: skip


def edited_archive(source, target, *, config=None, metadata=None, assets=None, weights=None):
    """A copy of an archive with other members.

    Args:
        source: the archive.
        target: where the copy goes.
        config: changes the parsed configuration in place, or returns another one.
        metadata: entries that are changed.
        assets: contents that are changed, by name.
        weights: changes the opened HDF5 file in place.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "config.json" and config is not None:
                document = json.loads(content)
                changed = config(document)
                content = json.dumps(document if changed is None else changed).encode()
            elif info.filename == "metadata.json" and metadata is not None:
                content = json.dumps({**json.loads(content), **metadata}).encode()
            elif info.filename == "model.weights.h5" and weights is not None:
                buffer = io.BytesIO(content)
                with h5py.File(buffer, "r+") as file:
                    weights(file)
                content = buffer.getvalue()
            elif info.filename.removeprefix("assets/") in (assets or {}):
                content = assets[info.filename.removeprefix("assets/")]
            new.writestr(info.filename, content)
    return target


def edited_weights(source, target, change):
    """A copy of an HDF5 file that `change` was called with."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def config_of(archive):
    """The parsed configuration of an archive."""
    with zipfile.ZipFile(archive) as opened:
        return json.loads(opened.read("config.json"))


def stored(path):
    """All arrays of a checkpoint by their HDF5 path, read by h5py alone."""
    source = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            array = item[()]
            is_bfloat16 = item.dtype.kind == "V" and item.dtype.itemsize == 2
            arrays[name] = np.asarray(array).view(BFLOAT16) if is_bfloat16 else np.asarray(array)

    with h5py.File(source, "r") as file:
        file.visititems(visit)
    return arrays


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder):
    """Digest of each file below a folder, hidden ones included."""
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def environment():
    """For child processes: this checkout first, no terminal settings of the caller's."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def command(*arguments):
    """The command line, as a list for `subprocess`."""
    return [sys.executable, "-m", "streamavg", *map(str, arguments)]


def run(*arguments, cwd, **options):
    """Runs the command line in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True,
        timeout=120, check=False, **options,
    )  # fmt: skip


def run_python(code, *arguments, cwd=None):
    """Runs Python code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=environment(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
