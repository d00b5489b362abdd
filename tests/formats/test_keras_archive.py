import zipfile

import h5py
import numpy as np
import pytest

import streamavg
from streamavg.formats import create_writer
from tests.checkpoint_files import METADATA, keras_members, write_keras, write_members
from tests.contracts.reading import CheckpointContract
from tests.contracts.writing import WriterContract

KERNEL = {"layers/dense/vars/0": np.float32([1, 2])}


class TestKerasArchive(CheckpointContract, WriterContract):
    format, suffix = "keras-archive", ".keras"
    compression = zipfile.ZIP_STORED

    def write(self, path, arrays, storage):
        names = {name: f"layers/dense/vars/{number}" for number, name in enumerate(arrays)}
        stored = {names[name]: values for name, values in arrays.items()}
        write_keras(path, stored, storage, compression=self.compression)
        return names

    def write_with_optimizer(self, path):
        write_keras(path, KERNEL | {"optimizer/vars/0": 7}, compression=self.compression)

    def write_shared(self, path, first, second, values):
        paths = [f"layers/{first}/vars/0", f"layers/{second}/vars/0"]
        weights = path.with_name("shared.weights.h5")
        with h5py.File(weights, "w") as opened:
            opened.create_group("vars")
            opened[paths[0]] = values
            opened[paths[1]] = opened[paths[0]]
        members = keras_members({}) | {"model.weights.h5": weights.read_bytes()}
        write_members(path, members, self.compression)
        return paths


class TestDeflatedKerasArchive(TestKerasArchive):
    compression = zipfile.ZIP_DEFLATED


def test_the_producer_and_the_configuration_are_read(tmp_path):
    path = write_keras(tmp_path / "a.keras", KERNEL, config='{"class_name": "Functional"}')
    with streamavg.open_checkpoint(path) as checkpoint:
        assert checkpoint.producer == "3.15.1"
        assert checkpoint.config == '{"class_name": "Functional"}'


@pytest.mark.parametrize("metadata", ["{}", "[]", "7", '{"keras_version": ""}'])
def test_an_archive_need_not_tell_its_producer(tmp_path, metadata):
    path = write_keras(tmp_path / "a.keras", KERNEL, metadata=metadata)
    with streamavg.open_checkpoint(path) as checkpoint:
        assert checkpoint.producer is None


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
def test_an_archive_without_config_or_weights_is_refused(tmp_path, missing):
    members = keras_members(KERNEL)
    del members[missing]
    path = write_members(tmp_path / "a.keras", members)
    with pytest.raises(streamavg.CorruptFileError, match=missing):
        streamavg.open_checkpoint(path)


def test_pickled_weights_are_refused_with_a_remedy(tmp_path):
    path = write_members(tmp_path / "a.keras", keras_members({}) | {"model.weights.npz": b"\x80"})
    with pytest.raises(streamavg.UnsupportedFeatureError, match=r"pickled.*Save the model again"):
        streamavg.open_checkpoint(path)


def test_the_other_members_are_copied_byte_for_byte(tmp_path):
    path = write_keras(
        tmp_path / "a.keras", KERNEL, assets={"layers/lookup/vocabulary.txt": "a\nb\n" * 99}
    )
    output = tmp_path / "b.keras"
    with streamavg.open_checkpoint(path) as checkpoint:
        assert list(checkpoint.assets) == ["layers/lookup/vocabulary.txt"]
        dtypes = [variable.dtype for variable in checkpoint.variables]
        with create_writer(checkpoint, dtypes, output) as writer:
            writer.commit()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(output) as written:
        assert written.testzip() is None
        assert written.namelist() == source.namelist()
        for name in ("metadata.json", "config.json", "assets/layers/lookup/vocabulary.txt"):
            assert written.read(name) == source.read(name)
        assert written.read("metadata.json").decode() == METADATA


def test_unpacked_weights_do_not_outlive_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write_keras(tmp_path / "a.keras", KERNEL, compression=zipfile.ZIP_DEFLATED)
    checkpoint = streamavg.open_checkpoint(path)
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.values.close()
    del checkpoint
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_for_unpacking_that_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    path = write_keras(tmp_path / "a.keras", KERNEL, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(streamavg.StreamAvgError):
        streamavg.open_checkpoint(path)


def test_damage_to_the_values_is_found_by_the_checksum(tmp_path):
    path = write_keras(tmp_path / "a.keras", KERNEL)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\x80\x3f\x00\x00\x00\x40")] ^= 1
    path.write_bytes(content)
    with (
        streamavg.open_checkpoint(path) as checkpoint,
        pytest.raises(streamavg.CorruptFileError, match="CRC-32"),
    ):
        checkpoint.values.verify()
