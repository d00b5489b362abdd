"""Every fixture file: real ones of many Keras versions, and handmade ones."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import streamavg
from tests.contracts.reading import read_in_slabs
from tests.oracle import read_arrays

LAYOUTS = Path(__file__).parents[2] / "fixtures" / "layouts"
EXPECTED = ".expected.json"
REFUSED = {
    "evil_external_storage.weights.h5": (streamavg.UnsafeFileError, "another file"),
    "evil_externallink.weights.h5": (streamavg.UnsafeFileError, "link to somewhere else"),
    "evil_garbage.weights.h5": (streamavg.CorruptFileError, "not a readable HDF5 file"),
    "evil_shape_bomb_chunked.weights.h5": (streamavg.UnsafeFileError, "declares shape"),
    "evil_shape_bomb_late.weights.h5": (streamavg.UnsafeFileError, "declares shape"),
    "evil_softlink.weights.h5": (streamavg.UnsafeFileError, "link to somewhere else"),
    "evil_softlink_cycle.weights.h5": (streamavg.UnsafeFileError, "link to somewhere else"),
    "evil_traversal.keras": (streamavg.UnsafeFileError, "leads out of the archive"),
    "evil_truncated.weights.h5": (streamavg.CorruptFileError, "truncated"),
    "evil_virtual.weights.h5": (streamavg.UnsafeFileError, "another file"),
    "evil_zipbomb.keras": (streamavg.UnsafeFileError, "claims to inflate"),
    "no_weights.keras": (streamavg.CorruptFileError, "model.weights.h5"),
}
LISTINGS = sorted(
    path
    for path in LAYOUTS.rglob(f"*{EXPECTED}")
    if path.with_name(path.name.removesuffix(EXPECTED)).is_file()
)
READABLE = [path for path in LISTINGS if path.name.removesuffix(EXPECTED) not in REFUSED]
OTHER_VALUES = {"bf16_native_float.weights.h5", "bigendian.weights.h5"}
"""Listed with the bytes as h5py shows them, not with those of the native dtype."""


def name_of(listing):
    return listing.name.removesuffix(EXPECTED)


def listed_variables(listing):
    """What the listing says, by path in the HDF5 file; None if it lists nothing."""
    document = json.loads(listing.read_text())
    variables = document.get("model.weights.h5", document).get("variables")
    return None if variables is None else {entry["path"]: entry for entry in variables}


def found_variables(checkpoint):
    """Position of each variable by its paths in the HDF5 file."""
    found = {}
    for position, variable in enumerate(checkpoint.variables):
        for path in (variable.path, *variable.aliases):
            is_nested = checkpoint.format == "keras-legacy" and checkpoint.config is not None
            is_nested &= variable.role != streamavg.Role.OPTIMIZER
            found["model_weights/" * is_nested + path] = position
    return found


def test_there_is_a_listing_for_every_file():
    files = {path for path in LAYOUTS.rglob("*") if path.suffix in {".h5", ".keras"}}
    assert {path.with_name(name_of(path)) for path in LISTINGS} == files
    assert len(files) > 100


@pytest.mark.parametrize("listing", READABLE, ids=name_of)
def test_all_listed_variables_are_found_with_their_shapes_and_dtypes(listing):
    listed = listed_variables(listing)
    with streamavg.open_checkpoint(listing.with_name(name_of(listing))) as checkpoint:
        found = found_variables(checkpoint)
        if listed is None:
            assert name_of(listing) == "wrong_crc.keras"
            return
        assert found.keys() == listed.keys()
        for path, entry in listed.items():
            variable = checkpoint.variables[found[path]]
            assert variable.shape == tuple(entry["shape"]), path
            names = {"|V2": "bfloat16", "bytes16": "object"}
            expected = names.get(entry["dtype"], entry["dtype"])
            if name_of(listing) == "bf16_native_float.weights.h5" and entry["storage_size"] == 24:
                expected = "bfloat16"
            assert str(variable.dtype) == expected, path


@pytest.mark.parametrize("listing", READABLE, ids=name_of)
def test_values_read_in_small_slabs_have_the_listed_checksums(listing):
    listed = listed_variables(listing) or {}
    with streamavg.open_checkpoint(listing.with_name(name_of(listing))) as checkpoint:
        for path, position in found_variables(checkpoint).items():
            checksum = listed.get(path, {}).get("sha256")
            variable = checkpoint.variables[position]
            if checksum is None or variable.dtype == object or name_of(listing) in OTHER_VALUES:
                continue
            values = read_in_slabs(checkpoint, position, max(7, variable.size // 9))
            assert hashlib.sha256(values.tobytes()).hexdigest() == checksum, path


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_values_stored_in_another_way_equal_those_that_h5py_converts(name):
    path = LAYOUTS / "handmade" / name
    arrays = read_arrays(path)
    with streamavg.open_checkpoint(path) as checkpoint:
        for variable in checkpoint.variables:
            values = checkpoint.read(variable.path)
            assert np.array_equal(values.astype(np.float32), arrays[variable.path])


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_and_damaged_files_are_refused_by_their_name(name):
    path = LAYOUTS / "handmade" / name
    error, reason = REFUSED[name]
    with pytest.raises(error, match=reason) as caught:
        streamavg.open_checkpoint(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


def test_a_wrong_checksum_is_found_when_the_values_are_verified():
    path = LAYOUTS / "handmade" / "wrong_crc.keras"
    with (
        streamavg.open_checkpoint(path) as checkpoint,
        pytest.raises(streamavg.CorruptFileError, match="CRC-32") as caught,
    ):
        checkpoint.values.verify()
    assert caught.value.path == path


def test_shared_arrays_are_one_variable_with_another_name():
    with streamavg.open_checkpoint(LAYOUTS / "handmade" / "hardlink_shared.weights.h5") as shared:
        assert [(v.path, v.aliases) for v in shared.variables] == [
            (f"layers/dense/vars/{n}", (f"layers/dense_1/vars/{n}",)) for n in (0, 1)
        ]


def test_variables_are_counted_in_natural_order():
    with streamavg.open_checkpoint(LAYOUTS / "handmade" / "twelve_vars.weights.h5") as twelve:
        assert [v.path for v in twelve.variables] == [
            f"layers/dense/vars/{number}" for number in range(12)
        ]


OTHER_FORMATS = {
    "SavedModel": (["saved_model.pb"], "", "TensorFlow SavedModel"),
    "unzipped .keras": (["model.weights.h5", "config.json"], "", "Name its model.weights.h5"),
    "Orbax": (["_CHECKPOINT_METADATA"], "", "Orbax"),
    "Orbax step": (["3/pytree/_METADATA"], "", "Orbax"),
    "TensorFlow checkpoint": (["ckpt.index", "ckpt.data-00000-of-00001"], "", "TensorFlow check"),
    "TensorFlow prefix": (["ckpt.index"], "ckpt", "TensorFlow checkpoint"),
    "TensorFlow index": (["ckpt.index"], "ckpt.index", "TensorFlow checkpoint"),
    "shards": (["m.weights.json", "m_00000.weights.h5"], "", "sharded weights"),
    "shard index": (["m.weights.json"], "m.weights.json", "sharded weights"),
    "a folder": (["a.txt"], "", "Name the checkpoint files in it"),
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_other_formats_are_recognised_and_refused_with_a_remedy(tmp_path, kind):
    files, name, reason = OTHER_FORMATS[kind]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(streamavg.UnsupportedFeatureError, match=reason) as caught:
        streamavg.open_checkpoint(tmp_path / name)
    assert any(word in caught.value.reason for word in ("save it as", "Name "))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x05\x06", b"\x89HDF", b"\x00" * 5000])
def test_a_file_of_another_kind_is_not_known(tmp_path, content):
    path = tmp_path / "a.keras"
    path.write_bytes(content)
    with pytest.raises(streamavg.UnknownFormatError, match="no Keras checkpoint"):
        streamavg.open_checkpoint(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(streamavg.UnknownFormatError, match="No such file"):
        streamavg.open_checkpoint(tmp_path / "a.keras")
