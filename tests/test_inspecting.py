"""What is in one checkpoint file, from its headers."""

import contextlib
import json
import math

import pytest

import streamavg
from streamavg import CorruptFileError, FormatError, UnknownFormatError, inspect
from streamavg.record import SCHEMA_VERSION
from tests.builders import DIGITS, LAYOUTS, LEGACY, edited_archive, sha256

SUFFIXES = (".keras", ".h5")
REAL = sorted(
    path
    for path in LAYOUTS.glob("keras*")
    if path.suffix in SUFFIXES and path.with_name(f"{path.name}.expected.json").exists()
)
KEYS = {
    "schema_version", "path", "format", "title", "producer", "file_bytes", "weights",
    "weights_bytes", "optimizer_variables", "optimizer_bytes", "has_config", "assets", "layers",
    "variables", "notes",
}  # fmt: skip
LAYER_KEYS = {"path", "name", "class_name", "variables", "elements"}
VARIABLE_KEYS = {"path", "shape", "dtype", "role", "size_bytes", "shared_with"}
TITLES = {
    "keras-archive": ".keras archive",
    "keras-weights": "weights file",
    "keras-legacy": "legacy HDF5 file",
}


@pytest.fixture(scope="module")
def digits():
    return inspect(DIGITS / "epoch-20.keras")


def test_an_archive_is_described(digits):
    assert digits.format == "keras-archive"
    assert digits.producer == "3.15.1"
    assert digits.has_config
    assert digits.file_bytes == (DIGITS / "epoch-20.keras").stat().st_size
    assert (digits.weights, digits.weights_bytes) == (300 + 48 + 130 + 3, 4 * 480 + 8)
    assert digits.optimizer_variables == 12
    assert digits.notes == ()


def test_layers_have_the_class_of_the_configuration(digits):
    classes = {layer.path: (layer.name, layer.class_name) for layer in digits.layers}
    assert classes["layers/batch_normalization"] == ("batch_normalization", "BatchNormalization")
    assert classes["layers/conv2d"] == ("conv2d", "Conv2D")


def test_layers_without_a_configuration_have_the_class_of_their_path():
    summary = inspect(DIGITS / "epoch-20.weights.h5")
    assert not summary.has_config
    assert {layer.class_name for layer in summary.layers} >= {"batch_normalization", "conv2d"}


def test_layers_count_their_variables_and_elements(digits):
    counts = {layer.path: (layer.variables, layer.elements) for layer in digits.layers}
    assert counts["layers/dense"] == (2, 130)
    assert counts["layers/normalization"] == (3, 3)


def test_shared_variables_are_told():
    summary = inspect(LAYOUTS / "handmade" / "hardlink_shared.weights.h5")
    assert summary.variables[0].shared_with == ("layers/dense_1/vars/0",)


def test_assets_are_told():
    summary = inspect(LAYOUTS / "keras3.15.1-tf-lookups.keras")
    assert "layers/string_lookup/vocabulary.txt" in summary.assets


@pytest.mark.parametrize("name", ["keras3", "keras2"])
def test_legacy_files_tell_their_producer(name):
    summary = inspect(LEGACY / f"{name}-epoch-19.h5")
    assert summary.format == "keras-legacy"
    assert summary.producer.startswith(name[-1] + ".")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_every_real_file_is_described_in_numbers_that_add_up(path):
    summary = inspect(path)
    document = json.loads(path.with_name(f"{path.name}.expected.json").read_text())
    expected = {v["path"]: v for v in document.get("model.weights.h5", document)["variables"]}
    for variable in summary.variables:
        is_inner = summary.format == "keras-legacy" and summary.has_config
        prefix = "model_weights/" if is_inner and variable.role != "optimizer" else ""
        assert tuple(expected[prefix + variable.path]["shape"]) == variable.shape
    is_weight = [v for v in summary.variables if v.role not in {"optimizer", "metric"}]
    assert summary.weights == sum(math.prod(v.shape) for v in is_weight)
    assert summary.weights == sum(layer.elements for layer in summary.layers)
    assert summary.weights_bytes == sum(v.size_bytes for v in is_weight)
    assert sum(layer.variables for layer in summary.layers) == len(is_weight)
    assert summary.optimizer_variables == sum(v.role == "optimizer" for v in summary.variables)
    assert summary.title == TITLES[summary.format]


@pytest.mark.parametrize("path", REAL[::7], ids=lambda path: path.name)
def test_the_json_document_has_stable_keys(path):
    document = json.loads(inspect(path).to_json())
    assert set(document) == KEYS
    assert document["schema_version"] == SCHEMA_VERSION == 1
    assert all(set(layer) == LAYER_KEYS for layer in document["layers"])
    assert all(set(variable) == VARIABLE_KEYS for variable in document["variables"])


def test_paths_may_be_text():
    assert inspect(str(DIGITS / "epoch-20.keras")) == inspect(DIGITS / "epoch-20.keras")


def test_the_file_stays_as_it_was():
    path = DIGITS / "epoch-20.keras"
    before = sha256(path), path.stat().st_mtime_ns
    inspect(path)
    assert (sha256(path), path.stat().st_mtime_ns) == before


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnknownFormatError, match="No such file"):
        inspect(tmp_path / "no.keras")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match="is a folder"):
        inspect(tmp_path)


def test_something_else_is_refused(tmp_path):
    (tmp_path / "x.keras").write_text("hello")
    with pytest.raises(UnknownFormatError, match="is no Keras checkpoint"):
        inspect(tmp_path / "x.keras")


@pytest.mark.parametrize("document", [[], 3, "model", {"class_name": 1, "config": 2}])
def test_an_odd_configuration_is_described_or_refused_not_crashed_on(tmp_path, document):
    odd = edited_archive(DIGITS / "epoch-20.keras", tmp_path / "x.keras", config=lambda _: document)
    with contextlib.suppress(CorruptFileError):
        assert inspect(odd).weights == 481


def test_the_public_names_are_all_there():
    assert set(streamavg.__all__) <= set(dir(streamavg))
    assert all(getattr(streamavg, name) is not None for name in streamavg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = streamavg.nonsense
