"""What a merge did, as plain data that programs may rely on."""

import dataclasses
import json

import numpy as np
import pytest

import streamavg
from streamavg import merge, plan
from streamavg.record import SCHEMA_VERSION
from tests.builders import BFLOAT16, DIGITS, LAYOUTS, LOGGED, write_weights

PAIR = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]
KEYS = {
    "access", "bytes_measured",
    "schema_version", "streamavg_version", "method", "method_summary", "output", "output_format",
    "output_has_config", "reference", "inputs", "variables", "averaged", "carried", "dropped",
    "bytes_read", "bytes_written", "dropped_bytes", "slab_elements", "threads", "free_disk_bytes",
    "memory", "seconds", "notes", "selection",
}  # fmt: skip
INPUT_KEYS = {"path", "format", "producer", "file_bytes", "coefficient", "score"}
SELECTION_KEYS = {
    "given", "order", "picked", "left_out", "coefficients", "softmax", "decay", "metric",
    "maximize", "scores_from", "iterations",
}  # fmt: skip
VARIABLE_KEYS = {
    "path", "shape", "dtype", "role", "action", "reason", "output_dtype", "carried_from",
    "factors",
}  # fmt: skip
MEMORY_KEYS = {"limit", "limit_origin", "reserved", "projected", "measured"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("record") / "out.keras"
    return merge(PAIR, output, weights=[0.25, 0.75], reference=PAIR[1])


@pytest.fixture(scope="module")
def document(done):
    return json.loads(done.to_json())


class TestTheSchema:
    """New keys may come without a new version; none of these may go or change its meaning."""

    def test_has_its_version(self, document):
        assert document["schema_version"] == SCHEMA_VERSION == 1
        assert document["streamavg_version"] == streamavg.__version__

    def test_has_its_keys(self, document):
        assert set(document) >= KEYS

    def test_has_the_keys_of_its_parts(self, document):
        assert all(set(entry) >= INPUT_KEYS for entry in document["inputs"])
        assert all(set(entry) >= VARIABLE_KEYS for entry in document["variables"])
        assert set(document["memory"]) >= MEMORY_KEYS
        assert set(document["selection"]) >= SELECTION_KEYS

    def test_is_the_same_for_a_plan(self, tmp_path, document):
        planned = json.loads(plan(PAIR, tmp_path / "out.keras").to_json())
        assert set(planned) == set(document)
        assert set(planned["memory"]) == set(document["memory"])

    def test_knows_no_keys_that_the_tests_do_not(self, document):
        """A new key is welcome here, and in the documentation."""
        assert set(document) == KEYS
        assert set(document["inputs"][0]) == INPUT_KEYS
        assert set(document["variables"][0]) == VARIABLE_KEYS
        assert set(document["memory"]) == MEMORY_KEYS
        assert set(document["selection"]) == SELECTION_KEYS


class TestTheContents:
    def test_are_the_inputs_in_order_with_their_coefficients(self, document):
        assert [entry["path"] for entry in document["inputs"]] == [str(path) for path in PAIR]
        assert [entry["coefficient"] for entry in document["inputs"]] == [0.25, 0.75]
        for entry, path in zip(document["inputs"], PAIR, strict=True):
            assert entry["file_bytes"] == path.stat().st_size
            assert (entry["format"], entry["producer"]) == ("keras-archive", "3.15.1")

    def test_are_how_the_inputs_were_selected(self, document):
        assert document["selection"] == {
            "given": 2, "order": "given", "picked": "all", "left_out": [],
            "coefficients": "weights", "softmax": None, "decay": None,
            "metric": None, "maximize": None, "scores_from": None,
            "iterations": None,
        }  # fmt: skip
        assert [entry["score"] for entry in document["inputs"]] == [None, None]

    def test_are_the_scores_of_all_and_who_was_left_out(self, tmp_path):
        paths = sorted(LOGGED.glob("*.weights.h5"))
        record = plan(paths, tmp_path / "x.weights.h5", best=4, scores=LOGGED / "history.csv")
        document = json.loads(record.to_json())
        assert [entry["score"] for entry in document["inputs"]] == [
            0.32229530811309814, 0.29433873295783997, 0.30350905656814575, 0.272366464138031,
        ]  # fmt: skip
        selection = document["selection"]
        left_out = {"path": str(LOGGED / "ckpt-8-0.3815.weights.h5"), "score": 0.38149920105934143}
        assert selection["left_out"] == [left_out]
        assert (selection["given"], selection["picked"], selection["order"]) == (
            5, "best", "natural",
        )  # fmt: skip
        assert (selection["metric"], selection["maximize"]) == ("val_loss", False)
        assert selection["scores_from"] == str(LOGGED / "history.csv")

    def test_are_every_variable_of_the_reference(self, document):
        counts = [document[name] for name in ("averaged", "carried", "dropped")]
        assert counts == [7, 3, 12]
        actions = [entry["action"] for entry in document["variables"]]
        assert [actions.count(name) for name in ("average", "carry", "drop")] == counts

    def test_are_the_origin_of_what_was_carried(self, document):
        origins = {v["carried_from"] for v in document["variables"] if v["action"] == "carry"}
        assert origins == {str(PAIR[1])} == {document["reference"]}

    def test_are_time_and_memory_that_were_measured(self, document):
        assert 0 < document["seconds"] < 60
        memory = document["memory"]
        assert memory["measured"] > 10 * 1024**2
        assert memory["reserved"] < memory["projected"] <= memory["limit"]

    def test_of_a_plan_have_neither(self, tmp_path):
        planned = plan(PAIR, tmp_path / "out.keras")
        assert planned.seconds is None
        assert planned.memory.measured is None

    def test_name_dtypes_as_people_do(self, tmp_path):
        array = np.zeros(2)
        layers = {"layers/x": [array.astype(d) for d in (BFLOAT16, "f2", "f4", "f8", bool, "u1")]}
        paths = [write_weights(tmp_path / f"{i}.weights.h5", layers) for i in range(2)]
        record = plan(paths, tmp_path / "out.weights.h5")
        names = ["bfloat16", "float16", "float32", "float64", "bool", "uint8"]
        assert [v.dtype for v in record.variables] == names
        strings = LAYOUTS / "handmade" / "strings.weights.h5"
        copy = tmp_path / "copy.weights.h5"
        copy.write_bytes(strings.read_bytes())
        record = plan([strings, copy], tmp_path / "out.weights.h5")
        assert [v.dtype for v in record.variables][2:] == ["string", "string"]

    def test_cannot_be_changed(self, done):
        with pytest.raises(dataclasses.FrozenInstanceError):
            done.averaged = 0


class TestSaving:
    def test_writes_what_to_json_says(self, done, tmp_path):
        done.save(tmp_path / "record.json")
        text = (tmp_path / "record.json").read_text(encoding="utf-8")
        assert text == done.to_json() + "\n"

    def test_keeps_names_in_any_script(self, tmp_path):
        folder = tmp_path / "gewichte-äöü-重み"
        folder.mkdir()
        paths = [write_weights(folder / f"{i}.weights.h5", {"layers/x": [np.zeros(2, "f4")]})
                 for i in range(2)]  # fmt: skip
        record = merge(paths, folder / "mittel-平均.weights.h5")
        record.save(folder / "record.json")
        saved = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        assert saved["output"] == str(folder / "mittel-平均.weights.h5")

    def test_in_a_missing_folder_is_an_os_error(self, done, tmp_path):
        with pytest.raises(OSError, match="No such file"):
            done.save(tmp_path / "no" / "record.json")
