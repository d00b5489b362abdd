"""`check`: each refusal and each warning, on real checkpoints and on made ones."""

import json
import multiprocessing
import os
import shutil
import time
import zipfile

import h5py
import numpy as np
import pytest

import streamavg
from streamavg import FindingKind, check, checking, compare, merge, plan
from streamavg.errors import MemoryLimitError, OptionError, StreamAvgError
from streamavg.findings import SCHEMA_VERSION
from streamavg.judging import DISTANT, NEAR_DUPLICATES
from tests.builders import (
    DIGITS,
    FIXTURES,
    LAYOUTS,
    LEGACY,
    MISMATCHED,
    ROOT,
    contents,
    dense_legacy,
    edited_archive,
    sequential,
    write_archive,
    write_weights,
)

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
MINUTES = 60


@pytest.fixture(autouse=True)
def _files_are_old(monkeypatch):
    """Files that a test has just made count as complete, unless the test is about that."""
    monkeypatch.setattr(checking, "RECENT_SECONDS", -1.0)


def checked(*paths, optimizer="drop", **options):
    return check(paths, optimizer=optimizer, **options)


def refusals(*paths, **options):
    found = checked(*paths, **options)
    assert not found.can_be_averaged
    return found.refusals


def warnings(*paths, **options):
    found = checked(*paths, **options)
    assert found.can_be_averaged
    assert found.refusals == ()
    return found.warnings


def only(findings, kind):
    (finding,) = findings
    assert finding.kind == kind
    return finding


def dense(value=1.0, shape=(2, 3), dtype="f4"):
    return [np.full(shape, value, dtype)]


@pytest.fixture
def weights(tmp_path):
    """Writes a checkpoint of one layer, with a wave of some size on its values."""

    def make(name, wave=0.1, **layers):
        values = 1 + wave * np.sin(np.arange(6, dtype="f4").reshape(2, 3) + len(name) * wave)
        arrays = {"layers/dense": [values.astype("f4")]}
        arrays |= {f"layers/{key}": value for key, value in layers.items()}
        return write_weights(tmp_path / f"{name}.weights.h5", arrays)

    return make


class TestCheckpointsOfOneRun:
    def test_can_be_averaged(self):
        found = checked(*THREE)
        assert found.can_be_averaged
        assert found.refusals == found.warnings == ()

    @pytest.mark.parametrize("sample", [False, True])
    def test_are_told_apart_by_the_distances_of_a_comparison(self, sample):
        found = checked(*THREE, sample=sample)
        distances = [checkpoint.distance for checkpoint in found.checkpoints]
        assert distances == pytest.approx(compare(THREE).whole.mean_distances.tolist(), rel=1e-12)

    def test_are_described(self):
        first, *_ = checked(*THREE).checkpoints
        assert (first.format, first.producer) == ("keras-archive", "3.15.1")
        assert first.file_bytes == THREE[0].stat().st_size
        held = streamavg.inspect(THREE[0]).optimizer_bytes
        assert first.optimizer_bytes == held > 0

    def test_are_not_changed(self):
        before = contents(DIGITS)
        checked(*THREE)
        assert contents(DIGITS) == before

    def test_of_weights_alone_can_be_averaged(self):
        assert warnings(*(DIGITS / f"epoch-{n}.weights.h5" for n in (18, 19, 20))) == ()

    def test_of_legacy_files_can_be_averaged(self):
        assert warnings(*(LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20))) == ()


class TestFilesThatCannotBeRead:
    def test_are_refused_and_the_others_are_checked_all_the_same(self, tmp_path):
        cut = tmp_path / "cut.keras"
        cut.write_bytes(THREE[1].read_bytes()[:20_000])
        found = checked(THREE[0], cut, MISMATCHED / "wider.keras", THREE[2])
        assert {finding.paths for finding in found.refusals} == {
            (str(cut),),
            (str(MISMATCHED / "wider.keras"),),
        }
        assert found.others == (str(THREE[0]), str(THREE[2]))
        assert found.checkpoints[3].distance is not None

    @pytest.mark.parametrize(
        ("name", "what"),
        [("README.md", "is no Keras checkpoint"), ("nothing.keras", "cannot be opened"),
         ("fixtures", "is a folder")],
    )  # fmt: skip
    def test_are_named_with_what_is_wrong(self, name, what):
        finding = only(refusals(*THREE, ROOT / name), FindingKind.UNREADABLE)
        assert finding.paths == (str(ROOT / name),)
        assert finding.text.startswith(f"{ROOT / name}: {what}")

    def test_may_be_the_reference_which_the_first_that_is_sound_then_stands_for(self, tmp_path):
        found = checked(tmp_path / "nothing.keras", *THREE)
        assert found.reference == str(THREE[0])
        only(found.refusals, FindingKind.UNREADABLE)

    def test_may_be_all_of_them(self, tmp_path):
        found = checked(tmp_path / "a.keras", tmp_path / "b.keras")
        assert found.reference is None
        assert [finding.kind for finding in found.refusals] == [FindingKind.UNREADABLE] * 2
        assert found.values.scope == "none"

    def test_are_those_with_a_wrong_checksum(self, tmp_path):
        damaged = tmp_path / "damaged.keras"
        content = bytearray(THREE[1].read_bytes())
        with streamavg.open_checkpoint(THREE[1]) as checkpoint:
            kernel = checkpoint.read("layers/conv2d/vars/0").tobytes()
        content[content.index(kernel) + 3] ^= 1
        damaged.write_bytes(content)
        finding = only(refusals(THREE[0], damaged, THREE[2]), FindingKind.UNREADABLE)
        assert "CRC-32" in finding.text

    def test_are_those_whose_configuration_is_no_json(self, tmp_path):
        layers = {"layers/dense": dense()}
        sound = write_archive(tmp_path / "a.keras", layers)
        broken = write_archive(tmp_path / "b.keras", layers)
        with zipfile.ZipFile(broken) as old, zipfile.ZipFile(tmp_path / "d.keras", "w") as new:
            for name in old.namelist():
                new.writestr(name, b"{" if name == "config.json" else old.read(name))
        finding = only(refusals(sound, tmp_path / "d.keras"), FindingKind.UNREADABLE)
        assert "its model configuration is not JSON" in finding.text

    def test_are_quantized_ones(self, tmp_path):
        path = LAYOUTS / "keras3.15.1-tf-quant_int4.keras"
        copy = shutil.copy(path, tmp_path / "copy.keras")
        finding = only(refusals(path, copy), FindingKind.UNREADABLE)
        assert "are quantized" in finding.text


class TestFilesThatAreBeingWritten:
    def test_are_refused_while_another_process_has_them_open(self, tmp_path):
        path = tmp_path / "open.weights.h5"
        shutil.copy(DIGITS / "epoch-19.weights.h5", path)
        context = multiprocessing.get_context("spawn")
        ready, done = context.Event(), context.Event()
        writer = context.Process(target=hold_open, args=(path, ready, done))
        writer.start()
        try:
            assert ready.wait(60)
            finding = only(
                refusals(DIGITS / "epoch-18.weights.h5", path), FindingKind.BEING_WRITTEN
            )
        finally:
            done.set()
            writer.join()
        assert "is open for writing in another process" in finding.text

    def test_are_a_warning_if_they_were_modified_a_moment_ago(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checking, "RECENT_SECONDS", 5.0)
        new, old = (tmp_path / name for name in ("new.keras", "old.keras"))
        shutil.copy(THREE[0], new)
        shutil.copyfile(THREE[1], old)
        os.utime(new)
        os.utime(old, (time.time() - MINUTES,) * 2)
        finding = only(warnings(new, old), FindingKind.BEING_WRITTEN)
        assert finding.paths == (str(new),)
        assert "was modified 0 s ago" in finding.text

    def test_are_refused_if_they_grow_meanwhile(self, tmp_path):
        growing = tmp_path / "growing.keras"
        shutil.copy(THREE[1], growing)

        def append(count):
            with growing.open("ab") as file:
                file.write(b"more")

        found = check([THREE[0], growing], optimizer="drop", on_progress=append)
        finding = only(found.refusals, FindingKind.BEING_WRITTEN)
        assert "changed while it was read" in finding.text


def hold_open(path, ready, done):
    with h5py.File(path, "r+"):
        ready.set()
        done.wait(60)


class TestOtherModels:
    def test_are_refused_with_every_difference_that_a_merge_tells(self):
        paths = [THREE[0], MISMATCHED / "wider.keras", MISMATCHED / "order-ab.keras"]
        found = refusals(*paths)
        with pytest.raises(streamavg.IncompatibleCheckpointsError) as caught:
            plan(paths, "x.keras")
        assert {finding.text for finding in found} == set(caught.value.differences)

    def test_are_told_by_variable(self):
        found = refusals(THREE[0], MISMATCHED / "wider.keras")
        kernel = next(f for f in found if f.variable == "layers/conv2d/vars/0")
        assert kernel.kind == FindingKind.STRUCTURE
        assert "shape (5, 5, 1, 16), expected (5, 5, 1, 12)" in kernel.text

    def test_are_told_by_what_differs_in_their_configuration(self, tmp_path):
        def change(config):
            layers = config["config"]["layers"]
            dense = next(item for item in layers if item["class_name"] == "Dense")
            dense["config"]["activation"] = "sigmoid"

        other = edited_archive(THREE[1], tmp_path / "other.keras", config=change)
        finding = only(refusals(THREE[0], other), FindingKind.CONFIGURATION)
        assert "activation is 'sigmoid', expected 'softmax'" in finding.text

    def test_are_a_warning_where_only_the_rounding_differs(self, tmp_path):
        def change(config):
            for item in config["config"]["layers"]:
                if item["class_name"] == "Dense":
                    item["config"]["dtype"] = "mixed_float16"

        other = edited_archive(THREE[1], tmp_path / "other.keras", config=change)
        finding = only(warnings(THREE[0], other), FindingKind.CONFIGURATION)
        assert "dtype is 'mixed_float16'" in finding.text

    def test_are_none_where_keras_counted_names_otherwise(self, tmp_path):
        paths = [
            write_archive(tmp_path / f"{i}.keras", {"layers/dense": dense(1 + 0.1 * i)},
                          config=sequential(("Dense", {"name": name, "units": 3})))
            for i, name in enumerate(("dense", "dense_7"))
        ]  # fmt: skip
        assert warnings(*paths) == ()

    def test_may_be_the_reference(self):
        found = checked(MISMATCHED / "wider.keras", *THREE)
        finding = only(found.warnings, FindingKind.ODD_REFERENCE)
        assert finding.paths == (str(MISMATCHED / "wider.keras"),)
        assert "may be the one that does not belong" in finding.text

    def test_are_told_against_the_reference_that_is_named(self):
        wider = MISMATCHED / "wider.keras"
        found = checked(wider, *THREE, reference=THREE[0])
        assert {finding.paths for finding in found.refusals} == {(str(wider),)}

    def test_of_thousands_of_variables_are_told_by_the_first_and_a_count(self, tmp_path):
        names = [f"layers/dense_{i}" for i in range(checking.MOST_REMARKS + 50)]
        one, other = (
            write_weights(tmp_path / f"{size}.weights.h5", {n: dense(shape=(size,)) for n in names})
            for size in (2, 3)
        )
        found = refusals(one, other)
        assert len(found) == checking.MOST_REMARKS + 1
        assert found[-1].text == f"{other}: and 50 more differences from the reference."

    def test_are_none_where_layers_are_paired_by_order(self, tmp_path):
        one = dense_legacy(tmp_path / "a.h5", ["encoder", "decoder"], first=1.0)
        other = dense_legacy(tmp_path / "b.h5", ["first", "second"], first=1.1)
        assert {f.kind for f in refusals(one, other)} == {FindingKind.STRUCTURE}
        assert warnings(one, other, match="order") == ()


class TestPreprocessing:
    OTHER = MISMATCHED / "other-preprocessing.keras"

    def test_that_differs_is_refused(self):
        found = refusals(THREE[2], self.OTHER)
        assert {finding.kind for finding in found} == {FindingKind.PREPROCESSING}
        assert found[0].variable == "layers/normalization/vars/0"
        assert "--preprocessing reference" in found[0].text

    def test_that_may_differ_is_a_warning(self):
        found = warnings(THREE[2], self.OTHER, preprocessing="reference")
        assert FindingKind.PREPROCESSING in {finding.kind for finding in found}

    def test_is_a_vocabulary_too(self, tmp_path):
        paths = [
            write_archive(
                tmp_path / f"{word}.keras",
                {"layers/dense": dense(1 + len(word) / 10)},
                assets={"layers/text/vocabulary.txt": word.encode()},
            )
            for word in ("cat", "horse")
        ]
        finding = only(refusals(*paths), FindingKind.PREPROCESSING)
        assert "asset 'layers/text/vocabulary.txt'" in finding.text


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_that_are_not_finite_are_refused_by_file_variable_and_index(self, weights, value):
        bad = np.ones((3, 4), "f4")
        bad[2, 1] = value
        paths = [weights("a", extra=[np.ones((3, 4), "f4")]), weights("bb", extra=[bad])]
        finding = only(refusals(*paths), FindingKind.NON_FINITE)
        assert finding.paths == (str(paths[1]),)
        assert finding.variable == "layers/extra/vars/0"
        assert f"value {value} at index [2, 1]" in finding.text

    def test_that_are_not_finite_are_named_of_every_checkpoint(self, weights):
        paths = [weights(name, wave) for name, wave in
                 [("a", 0.1), ("bb", np.nan), ("ccc", 0.1), ("dddd", np.nan)]]  # fmt: skip
        found = checked(*paths)
        assert [f.paths for f in found.refusals] == [(str(paths[1]),), (str(paths[3]),)]
        assert [c.distance is None for c in found.checkpoints] == [False, True, False, True]

    def test_that_are_not_finite_are_a_warning_if_they_are_allowed(self, weights):
        paths = [weights("a"), weights("bb", np.nan), weights("ccc")]
        finding = only(warnings(*paths, allow_non_finite=True), FindingKind.NON_FINITE)
        assert finding.paths == (str(paths[1]),)

    def test_outside_of_a_sample_are_not_looked_at_and_the_answer_says_so(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("streamavg.sampling.SAMPLE_ELEMENTS", 10_000)
        paths = []
        for i, place in enumerate((None, 20_000)):
            values = np.sin(np.arange(100_000) + 0.1 * i).astype("f4")
            if place:
                values[place] = np.nan
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [values]}))
        only(refusals(*paths), FindingKind.NON_FINITE)
        found = checked(*paths, sample=True)
        assert found.can_be_averaged
        assert found.values.scope == "sample"
        assert "as far as a sample of their values tells" in found.answer()

    def test_of_integers_that_differ_are_a_warning(self, weights):
        paths = [weights("a", count=[np.int64(1)]), weights("bb", 0.3, count=[np.int64(2)])]
        finding = only(warnings(*paths), FindingKind.NON_FLOAT)
        assert finding.paths == (str(paths[1]),)

    def test_of_integers_that_must_be_equal_are_refused(self, weights):
        paths = [weights("a", count=[np.int64(1)]), weights("bb", 0.3, count=[np.int64(2)])]
        only(refusals(*paths, non_float="equal"), FindingKind.NON_FLOAT)

    def test_that_are_too_large_to_be_compared_are_averaged(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.float64([1e200, i])]})
            for i in range(2)
        ]
        only(warnings(*paths), FindingKind.NOT_COMPARED)

    def test_are_all_read_once_and_the_sample_once_more(self):
        found = checked(*THREE)
        assert found.values.scope == "all"
        assert found.values.elements == found.values.sampled == 478
        assert found.values.bytes_read == 2 * 3 * 4 * 478

    def test_that_none_is_averaged_is_a_warning(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/count": [np.int64([3])]})
            for i in range(2)
        ]
        only(warnings(*paths), FindingKind.NOT_COMPARED)


class TestDuplicates:
    def test_are_refused_if_they_are_one_file(self, tmp_path):
        link = tmp_path / "link.keras"
        link.symlink_to(THREE[0])
        finding = only(refusals(*THREE, link), FindingKind.SAME_FILE)
        assert finding.paths == (str(THREE[0]), str(link))

    def test_are_refused_if_one_path_is_given_twice(self):
        finding = only(refusals(THREE[0], THREE[0]), FindingKind.SAME_FILE)
        assert finding.paths == (str(THREE[0]),)

    def test_are_a_warning_if_they_are_copies(self, tmp_path):
        copy = shutil.copy(THREE[0], tmp_path / "copy.keras")
        finding = only(warnings(*THREE, copy), FindingKind.SAME_VALUES)
        assert finding.paths == (str(THREE[0]), str(copy))

    def test_are_found_in_files_of_other_kinds(self):
        found = warnings(DIGITS / "epoch-18.keras", DIGITS / "epoch-18.weights.h5")
        assert found[0].kind == FindingKind.SAME_VALUES

    @pytest.mark.parametrize("differs_at", [None, 70_000])
    def test_are_compared_in_all_values_if_a_sample_is_equal(
        self, tmp_path, monkeypatch, differs_at
    ):
        monkeypatch.setattr("streamavg.sampling.SAMPLE_ELEMENTS", 10_000)
        paths = []
        for i in range(2):
            values = np.ones(100_000, "f4")
            if differs_at is not None:
                values[differs_at] += i
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [values]}))
        kind = FindingKind.SAME_VALUES if differs_at is None else FindingKind.NEAR_DUPLICATES
        only(warnings(*paths), kind)

    def test_that_are_nearly_equal_are_a_warning(self, tmp_path):
        generator = np.random.default_rng(1)
        base = generator.normal(size=1000)
        paths = []
        for i, step in enumerate((0, NEAR_DUPLICATES / 10, 0.1)):
            values = (base + step * generator.normal(size=1000)).astype("f4")
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [values]}))
        finding = only(warnings(*paths), FindingKind.NEAR_DUPLICATES)
        assert finding.paths == (str(paths[0]), str(paths[1]))


class TestDistantStates:
    FOREIGN = FIXTURES / "digits-keras2" / "epoch-20.keras"

    def test_are_a_warning_that_names_the_outlier(self):
        found = warnings(*THREE, self.FOREIGN, preprocessing="reference")
        finding = only((f for f in found if f.kind == FindingKind.DISTANT), FindingKind.DISTANT)
        assert finding.paths == (str(self.FOREIGN),)
        assert "is the outlier, 101% away from the 3 checkpoints" in finding.text

    def test_lose_in_the_experiment_where_closer_ones_do_not(self):
        """The threshold is the one that the page gives reasons for."""
        page = (ROOT / "docs" / "when-to-average.md").read_text("utf-8")
        assert f"**Distant: more than {DISTANT:.0%}.**" in page
        assert f"**Near-duplicates: less than {NEAR_DUPLICATES:.0%} in every layer.**" in page


class TestTheRest:
    def test_different_versions_of_keras_are_a_warning(self, tmp_path):
        other = edited_archive(
            THREE[1], tmp_path / "other.keras", metadata={"keras_version": "3.3.0"}
        )
        finding = only(warnings(THREE[0], other, THREE[2]), FindingKind.KERAS_VERSION)
        assert f"3.15.1: {THREE[0]} and {THREE[2]}; 3.3.0: {other}" in finding.text

    def test_optimizer_state_is_a_warning_with_its_size(self):
        found = check(THREE)
        finding = only(found.warnings, FindingKind.OPTIMIZER)
        assert finding.paths == tuple(map(str, THREE))
        assert "optimizer state (10.7 KiB)" in finding.text

    @pytest.mark.parametrize("optimizer", ["drop", "reference"])
    def test_optimizer_state_is_none_if_it_is_said_what_happens_to_it(self, optimizer):
        assert check(THREE, optimizer=optimizer).warnings == ()

    def test_one_checkpoint_is_refused(self):
        only(refusals(THREE[0]), FindingKind.TOO_FEW)

    def test_no_checkpoint_is_a_mistake(self):
        with pytest.raises(OptionError, match="no checkpoint"):
            check([])

    def test_a_reference_that_is_not_given_is_a_mistake(self):
        with pytest.raises(OptionError, match="--reference"):
            check(THREE[:2], reference=THREE[2])

    def test_a_limit_that_cannot_be_kept_is_refused(self):
        with pytest.raises(MemoryLimitError, match="the check needs at least"):
            check(THREE, memory_limit="1MiB")

    def test_weights_alone_are_a_warning_beside_whole_models(self):
        found = warnings(THREE[0], DIGITS / "epoch-19.weights.h5")
        finding = only(found, FindingKind.NOT_COMPARED)
        assert "weights alone" in finding.text


CASES = {
    "one run": THREE,
    "another model": [*THREE, MISMATCHED / "wider.keras"],
    "other data": [THREE[0], MISMATCHED / "other-preprocessing.keras"],
    "another order": [MISMATCHED / f"order-{order}.weights.h5" for order in ("ab", "ba")],
    "no checkpoint": [*THREE, ROOT / "README.md"],
    "one file twice": [THREE[0], THREE[0]],
    "one file": [THREE[0]],
    "Keras 2 and 3": [THREE[0], FIXTURES / "digits-keras2" / "epoch-20.keras"],
    "two layouts": [DIGITS / "epoch-18.weights.h5", LEGACY / "keras3-epoch-19.h5"],
    "legacy files": [LEGACY / f"keras2-epoch-{n}.h5" for n in (19, 20)],
}


@pytest.mark.parametrize("paths", CASES.values(), ids=CASES)
def test_a_merge_does_what_the_check_says(tmp_path, paths):
    """Refusals and nothing else make a merge fail."""
    suffix = ".weights.h5" if str(paths[0]).endswith(".weights.h5") else paths[0].suffix
    try:
        merge(paths, tmp_path / f"averaged{suffix}")
        is_merged = True
    except StreamAvgError:
        is_merged = False
    assert check(paths).can_be_averaged == is_merged


class TestJson:
    def test_has_these_fields(self):
        found = checked(*THREE, MISMATCHED / "wider.keras")
        document = json.loads(found.to_json())
        assert document["schema_version"] == SCHEMA_VERSION == 1
        assert set(document) == {
            "schema_version", "streamavg_version", "can_be_averaged", "reference", "checkpoints",
            "refusals", "warnings", "values", "thresholds", "memory", "seconds",
        }  # fmt: skip
        assert set(document["checkpoints"][0]) == {
            "path", "format", "producer", "file_bytes", "optimizer_bytes", "distance",
        }  # fmt: skip
        assert set(document["refusals"][0]) == {"kind", "paths", "variable", "text"}
        assert set(document["values"]) == {
            "scope", "checkpoints", "elements", "sampled", "bytes_read",
        }  # fmt: skip
        assert document["thresholds"] == {
            "distant": DISTANT, "near_duplicates": NEAR_DUPLICATES,
        }  # fmt: skip

    def test_has_all_refusals(self):
        found = checked(THREE[0], MISMATCHED / "wider.keras", MISMATCHED / "order-ab.keras")
        assert len(json.loads(found.to_json())["refusals"]) == len(found.refusals) > 10

    def test_knows_these_kinds(self):
        """A kind is part of the schema: one that goes away is another version."""
        assert set(FindingKind) == {
            "too-few", "same-file", "unreadable", "being-written", "odd-reference",
            "structure", "configuration",
            "preprocessing", "non-float", "non-finite", "same-values", "near-duplicates",
            "distant", "keras-version", "optimizer", "not-compared",
        }  # fmt: skip


def test_progress_tells_every_byte():
    planned, read = [], []
    found = check(THREE, on_plan=planned.append, on_progress=read.append)
    assert planned == [sum(read)] == [found.values.bytes_read]
