"""Do these checkpoints describe the same model? Every difference at once, or a matched set."""

import zipfile

import h5py
import numpy as np
import pytest

from streamavg import IncompatibleCheckpointsError, StreamAvgError, merge, open_checkpoint
from streamavg.matching import differing, match
from tests.builders import (
    DIGITS,
    LAYOUTS,
    LEGACY,
    MISMATCHED,
    dense_legacy,
    edited_archive,
    edited_weights,
    sequential,
    stored,
    write_archive,
    write_legacy,
    write_weights,
)


def layout(name):
    return LAYOUTS / name


def matched(*paths, **options):
    with open_checkpoint(paths[0]) as reference:
        found = match(reference, (open_checkpoint(path) for path in paths), **options)
        found.close()
        return found


def differences(*paths, **options):
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        matched(*paths, **options)
    return caught.value.differences


def dense(value=0.0, shape=(2, 3), dtype="f4"):
    return [np.full(shape, value, dtype), np.full(shape[-1:], value, dtype)]


class TestTheReport:
    @pytest.fixture
    def files(self, tmp_path):
        reference = {"layers/dense": dense(), "layers/dense_1": dense(), "layers/gru": dense()}
        shape = {**reference, "layers/dense": dense(shape=(2, 4))}
        dtype = {**reference, "layers/dense_1": dense(dtype="f2")}
        missing = {k: v for k, v in reference.items() if k != "layers/gru"}
        extra = {**reference, "layers/lstm": dense()}
        all_five = {"a": reference, "shape": shape, "dtype": dtype, "missing": missing,
                    "extra": extra}  # fmt: skip
        return [write_weights(tmp_path / f"{k}.weights.h5", v) for k, v in all_five.items()]

    def test_holds_the_differences_of_all_checkpoints(self, files):
        found = differences(*files)
        assert len(found) == 8
        by_file = [sum(str(path) == text.split(": ")[0] for text in found) for path in files]
        assert by_file == [0, 2, 2, 2, 2]

    @pytest.mark.parametrize(
        ("file", "what", "found", "expected"),
        [
            ("shape", "variable 'layers/dense/vars/0': shape", "(2, 4)", "expected (2, 3)"),
            ("dtype", "variable 'layers/dense_1/vars/0': dtype", "float16", "expected float32"),
            ("missing", "variable 'layers/gru/vars/0' is", "missing", "present in"),
            ("extra", "variable 'layers/lstm/vars/0' is", "not in", "a.weights.h5"),
        ],
    )
    def test_says_file_variable_found_and_expected(self, files, file, what, found, expected):
        texts = [t for t in differences(*files) if f"{file}.weights.h5: " in t]
        assert what in texts[0]
        assert found in texts[0]
        assert expected in texts[0]
        assert str(files[0]) in texts[0]

    def test_does_not_depend_on_which_checkpoint_is_the_reference(self, files):
        with (
            open_checkpoint(files[1]) as reference,
            pytest.raises(IncompatibleCheckpointsError) as caught,
        ):
            match(reference, (open_checkpoint(path) for path in files))
        blamed = {text.split(": ")[0] for text in caught.value.differences}
        assert blamed == {str(path) for path in files if path != files[1]}

    def test_prints_ten_differences_and_the_number_of_the_others(self, tmp_path):
        layers = {f"layers/dense_{i}": dense() for i in range(7)}
        other = {path: dense(shape=(3, 3)) for path in layers}
        other |= {"layers/conv": dense()}
        files = [
            write_weights(tmp_path / "a.weights.h5", layers),
            write_weights(tmp_path / "b.weights.h5", other),
        ]
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            merge(files, tmp_path / "out.weights.h5")
        assert len(caught.value.differences) == 9
        assert len(str(caught.value).splitlines()) == 1 + 9
        other |= {"layers/conv_1": dense()}
        write_weights(tmp_path / "b.weights.h5", other)
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            merge(files, tmp_path / "out.weights.h5")
        lines = str(caught.value).splitlines()
        assert len(caught.value.differences) == 11
        assert lines[0].endswith("11 differences")
        assert [line.strip() for line in lines[1:11]] == list(caught.value.differences[:10])
        assert lines[11].strip() == "... and 1 more (all of them with --json)"

    def test_counts_one_difference_in_the_singular(self):
        assert str(IncompatibleCheckpointsError(["a: b."])).splitlines()[0].endswith("1 difference")

    def test_of_a_wider_network_names_every_shape_and_the_setting(self):
        found = differences(DIGITS / "epoch-20.keras", MISMATCHED / "wider.keras")
        assert sum("shape" in text for text in found) == 6
        assert "layer 'conv2d': filters is 16, expected 12" in found[-1]

    def test_suggests_the_closest_name_for_a_missing_variable(self, tmp_path):
        first = write_weights(tmp_path / "a.weights.h5", {"layers/attention/query": dense()})
        other = write_weights(tmp_path / "b.weights.h5", {"layers/attention/queries": dense()})
        found = differences(first, other)
        assert "Closest here: 'layers/attention/queries/vars/0'" in found[0]

    def test_suggests_nothing_where_nothing_is_close(self, tmp_path):
        first = write_weights(tmp_path / "a.weights.h5", {"layers/attention": dense()})
        other = write_weights(tmp_path / "b.weights.h5", {"foo": dense()})
        assert "Closest" not in differences(first, other)[0]

    def test_suggests_the_closest_layer_of_a_legacy_file(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["encoder", "head"])
        other = dense_legacy(tmp_path / "b.h5", ["encoders", "head"])
        found = differences(first, other)
        assert "layer 'encoder' is missing" in found[0]
        assert "Closest here: 'encoders'" in found[0]
        assert "layer 'encoders' is not in" in found[1]
        assert "--match order" in found[2]

    def test_leaves_out_the_optimizer_and_metrics(self, tmp_path):
        layers = {"layers/dense": dense()}
        first = write_weights(
            tmp_path / "a.weights.h5",
            {**layers, "optimizer": [np.int64(1)], "metrics/mean": [np.float32(1)]},
        )
        other = write_weights(
            tmp_path / "b.weights.h5", {**layers, "optimizer": [np.ones(9, "f4")] * 3}
        )
        found = matched(first, other)
        assert len(found.sources) == 2
        assert matched(other, first).notes == ()


class TestSwappedLayers:
    """Layers of one shape in another order: Keras' loaders mix them up without a word."""

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_are_found_by_their_names_in_real_files(self, suffix):
        found = differences(MISMATCHED / f"order-ab{suffix}", MISMATCHED / f"order-ba{suffix}")
        assert "layer 'layers/conv2d' is named 'textures', expected 'edges'" in found[0]
        assert "layer 'layers/conv2d_1' is named 'edges', expected 'textures'" in found[1]

    def test_are_found_in_an_archive_by_its_configuration_too(self, tmp_path):
        def forget(file):
            file.visititems(lambda _, item: item.attrs.pop("name", None) and None)

        nameless = [
            edited_archive(MISMATCHED / f"order-{o}.keras", tmp_path / f"{o}.keras", weights=forget)
            for o in ("ab", "ba")
        ]
        found = differences(*nameless)
        assert any("layer 'edges': name is 'textures'" in text for text in found)
        assert any("layer 'add': inbound_nodes are other connections" in text for text in found)

    def test_are_found_in_a_mixed_pair(self):
        found = differences(MISMATCHED / "order-ab.weights.h5", MISMATCHED / "order-ba.keras")
        assert len(found) == 2

    def test_are_found_in_legacy_files(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["edges", "textures"])
        other = dense_legacy(tmp_path / "b.h5", ["textures", "edges"])
        found = differences(first, other)
        assert "another order: number 1 is 'textures', expected 'edges'" in found[0]
        assert len(found) == 2

    def test_are_found_among_automatic_names_of_legacy_files(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense", "dense_1"])
        other = dense_legacy(tmp_path / "b.h5", ["dense_1", "dense"])
        assert "another order" in differences(first, other)[0]

    def test_are_found_among_automatic_names_of_another_count(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense", "dense_1"])
        other = dense_legacy(tmp_path / "b.h5", ["dense_8", "dense_7"])
        assert any("layer 'dense' is missing" in text for text in differences(first, other))

    def test_are_found_among_automatic_names_of_weights_files(self, tmp_path):
        layers = {"layers/dense": dense(), "layers/dense_1": dense()}
        first = write_weights(
            tmp_path / "a.weights.h5",
            layers,
            names={"layers/dense": "dense", "layers/dense_1": "dense_1"},
        )
        other = write_weights(
            tmp_path / "b.weights.h5",
            layers,
            names={"layers/dense": "dense_1", "layers/dense_1": "dense"},
        )
        assert "is named 'dense_1', expected 'dense'" in differences(first, other)[0]

    def test_pass_unseen_only_where_no_file_names_its_layers(self, tmp_path):
        layers = {"layers/dense": dense(), "layers/dense_1": dense()}
        first = write_weights(tmp_path / "a.weights.h5", layers)
        other = write_weights(tmp_path / "b.weights.h5", layers, names={"layers/dense": "x"})
        assert matched(first, other).notes == ()

    @pytest.mark.parametrize("by", ["name", "order"])
    def test_of_another_shape_are_refused_however_they_are_paired(self, tmp_path, by):
        wide = {"kernel": np.zeros((4, 4), "f4")}
        narrow = {"kernel": np.zeros((2, 2), "f4")}
        first = write_legacy(tmp_path / "a.h5", {"x": wide, "y": narrow})
        other = write_legacy(tmp_path / "b.h5", {"y": narrow, "x": wide})
        assert len(differences(first, other, by=by)) == 2


class TestAutomaticNames:
    """Keras numbers layers by how many the process had built before."""

    @pytest.mark.parametrize("keras", ["keras3.15.1-tf", "keras2.15.0-tf2.15.1"])
    def test_of_legacy_files_are_matched_by_order_with_a_note(self, keras):
        found = matched(layout(f"{keras}-renamed_p1.h5"), layout(f"{keras}-renamed_p2.h5"))
        assert len(found.notes) == 1
        assert "(dense_6 against dense, dense_7 against dense_1)" in found.notes[0]
        assert found.notes[0].endswith("they were matched by order.")

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_do_not_matter_in_the_layout_of_keras_3(self, suffix):
        files = [layout(f"keras3.15.1-tf-renamed_{p}{suffix}") for p in ("p1", "p2")]
        assert matched(*files).notes == ()

    def test_pair_the_values_that_belong_together(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense", "dense_1"], first=0)
        other = dense_legacy(tmp_path / "b.h5", ["dense_1", "dense_2"], first=10)
        merge([first, other], tmp_path / "out.h5")
        out = stored(tmp_path / "out.h5")
        assert np.all(out["dense/dense/kernel"] == 5)
        assert np.all(out["dense_1/dense_1/kernel"] == 6)

    def test_keep_ten_behind_nine(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense_9", "dense_10"])
        other = dense_legacy(tmp_path / "b.h5", ["dense_10", "dense_11"])
        assert len(matched(first, other).notes) == 1

    def test_are_those_of_the_model_s_classes_where_the_classes_are_known(self, tmp_path):
        def config(*names):
            return sequential(*(("Dense", {"name": name, "units": 3}) for name in names))

        names = [["block_1", "block_2"], ["block_2", "block_3"]]
        files = [
            dense_legacy(tmp_path / f"{i}.h5", names[i], config=config(*names[i])) for i in (0, 1)
        ]
        assert any("layer 'block_1' is missing" in text for text in differences(*files))

    def test_are_matched_by_order_only_within_one_kind(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense", "conv2d"])
        other = dense_legacy(tmp_path / "b.h5", ["dense_3", "gru_2"])
        assert any("'conv2d' is missing" in text for text in differences(first, other))


class TestFreezeStates:
    """The order of weights in a nested legacy layer depends on what was frozen when saved."""

    FILES = tuple(layout(f"keras3.15.1-tf-frozen_order_{n}.h5") for n in (1, 2, 3))

    def test_are_stored_in_different_orders(self):
        orders = set()
        for path in self.FILES:
            with h5py.File(path) as file:
                orders.add(tuple(file["model_weights/enc"].attrs["weight_names"]))
        assert len(orders) == 3

    @pytest.mark.parametrize("shift", [0, 1, 2])
    def test_are_averaged_by_name(self, tmp_path, shift):
        files = [*self.FILES[shift:], *self.FILES[:shift]]
        merge(files, tmp_path / "out.h5")
        inputs = [stored(path) for path in files]
        for name, array in stored(tmp_path / "out.h5").items():
            if array.dtype == np.float32 and name.startswith("model_weights"):
                mean = np.mean([values[name].astype("f8") for values in inputs], axis=0)
                np.testing.assert_array_equal(array, mean.astype("f4"), err_msg=name)

    def test_give_the_same_values_whichever_is_the_reference(self, tmp_path):
        outputs = []
        for i, path in enumerate(self.FILES):
            merge(self.FILES, tmp_path / f"{i}.h5", reference=path)
            outputs.append(stored(tmp_path / f"{i}.h5"))
        for name, array in outputs[0].items():
            for other in outputs[1:]:
                np.testing.assert_array_equal(array, other[name], err_msg=name)


class TestMatchOrder:
    def test_pairs_layers_under_any_names(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["x", "y"], first=0)
        other = dense_legacy(tmp_path / "b.h5", ["p", "q"], first=10)
        assert differences(first, other)
        merge([first, other], tmp_path / "out.h5", match="order")
        out = stored(tmp_path / "out.h5")
        assert np.all(out["x/x/kernel"] == 5)
        assert np.all(out["y/y/bias"] == 6)

    def test_still_refuses_another_number_of_layers(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["x", "y"])
        other = dense_legacy(tmp_path / "b.h5", ["x"])
        (text,) = differences(first, other, by="order")
        assert "has 1 layers with weights, expected 2" in text

    def test_still_refuses_other_shapes(self, tmp_path):
        first = write_legacy(tmp_path / "a.h5", {"x": {"k": np.zeros(2, "f4")}})
        other = write_legacy(tmp_path / "b.h5", {"y": {"k": np.zeros(3, "f4")}})
        (text,) = differences(first, other, by="order")
        assert "variable 'y/k': shape (3,), expected (2,) like 'x/k'" in text

    def test_pairs_weights_of_other_names_by_position(self, tmp_path):
        first = write_legacy(tmp_path / "a.h5", {"x": {"k": np.full(2, 1, "f4")}})
        other = write_legacy(tmp_path / "b.h5", {"y": {"w": np.full(2, 3, "f4")}})
        merge([first, other], tmp_path / "out.h5", match="order")
        assert np.all(stored(tmp_path / "out.h5")["x/k"] == 2)

    def test_tells_of_weights_that_one_layer_lacks(self, tmp_path):
        both = {"k": np.zeros(2, "f4"), "b": np.zeros(2, "f4")}
        first = write_legacy(tmp_path / "a.h5", {"x": both})
        other = write_legacy(tmp_path / "b.h5", {"x": {"k": both["k"]}})
        assert "variable 'x/b' is missing" in differences(first, other)[0]
        assert "variable 'x/b' is not in" in differences(other, first)[0]


class TestMixtures:
    def test_of_two_vocabularies_are_refused_whatever_the_reference_is(self, tmp_path):
        lookups = layout("keras3.15.1-tf-lookups.keras")
        changed = tmp_path / "changed.keras"
        with zipfile.ZipFile(lookups) as source, zipfile.ZipFile(changed, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                is_vocabulary = name.endswith("string_lookup/vocabulary.txt")
                target.writestr(name, content + b"more\n" * is_vocabulary)
        weights = layout("keras3.15.1-tf-lookups.weights.h5")
        for order in ((weights, lookups, changed), (lookups, weights, changed)):
            (difference,) = differences(*order)
            assert "vocabulary.txt" in difference
            assert "differently prepared data" in difference

    def test_of_attributes_made_in_another_order_are_matched_with_a_note(self, tmp_path):
        values = [np.zeros(2, "f4")]
        files = []
        for name, names in (("a", ("dense", "dense_1")), ("b", ("dense_1", "dense"))):
            path = write_weights(tmp_path / f"{name}.weights.h5", {"one": values, "two": values})
            with h5py.File(path, "r+") as opened:
                for group, label in zip(("one", "two"), names, strict=True):
                    opened[f"{group}/vars"].attrs["name"] = label
            files.append(path)
        assert all("made in another order" in note for note in matched(*files).notes)
        assert len(matched(*files).notes) == 2

    def test_of_keras_2_12_and_later_weights_are_one_difference(self):
        (difference,) = differences(
            layout("keras2.12.0-tf2.12.1-nested.weights.h5"),
            layout("keras2.15.0-tf2.15.1-nested.weights.h5"),
        )
        assert "another Keras wrote it" in difference

    def test_of_archives_and_weights_files_are_matched(self):
        files = [DIGITS / "epoch-18.keras", DIGITS / "epoch-19.weights.h5"]
        for order in (files, files[::-1]):
            (note,) = matched(*order).notes
            assert "1 of the checkpoints hold weights alone" in note
            assert "epoch-19.weights.h5" in note

    @pytest.mark.parametrize("other", ["epoch-19.keras", "epoch-19.weights.h5"])
    def test_of_legacy_and_later_layouts_are_refused_in_one_sentence(self, other):
        (text,) = differences(LEGACY / "keras3-epoch-19.h5", DIGITS / other)
        assert "expected keras-legacy" in text
        assert "Save all in the same format." in text

    def test_of_keras_2_and_keras_3_legacy_files_are_matched(self):
        files = [LEGACY / "keras3-epoch-19.h5", LEGACY / "keras2-epoch-19.h5"]
        for pair in (files, files[::-1]):
            notes = matched(*pair, preprocessing="reference").notes
            assert all("normalization" in note for note in notes)

    def test_of_keras_2_and_keras_3_average_what_belongs_together(self, tmp_path):
        first = dense_legacy(tmp_path / "a.h5", ["dense", "dense_1"], version="3.15.1")
        other = dense_legacy(tmp_path / "b.h5", ["dense", "dense_1"], version="2.15.0", first=2)
        merge([first, other], tmp_path / "out.h5")
        assert np.all(stored(tmp_path / "out.h5")["dense_1/dense_1/bias"] == 2)

    def test_of_whole_models_and_weights_alone_are_matched(self):
        files = [LEGACY / "keras2-weights-epoch-19.h5", LEGACY / "keras2-epoch-20.h5"]
        for order in (files, files[::-1]):
            (note,) = matched(*order).notes
            assert "1 of the checkpoints hold weights alone" in note
            assert "keras2-weights-epoch-19.h5" in note

    def test_with_a_reference_of_weights_alone_still_compare_the_configurations(self, tmp_path):
        def harden(config):
            config["config"]["layers"][-1]["config"]["activation"] = "sigmoid"

        other = edited_archive(DIGITS / "epoch-20.keras", tmp_path / "b.keras", config=harden)
        assert differences(DIGITS / "epoch-19.keras", other)
        assert differences(DIGITS / "epoch-18.weights.h5", DIGITS / "epoch-19.keras", other)


class TestSharedVariables:
    @staticmethod
    def shared(path, *, value=0.0, copy=False):
        array = np.full((2, 2), value, "f4")
        write_weights(path, {"layers/dense": [array]})
        with h5py.File(path, "r+") as file:
            group = file.create_group("layers/dense_1/vars")
            group["0"] = array if copy else file["layers/dense/vars/0"]
        return path

    def test_are_matched_with_shared_ones(self, tmp_path):
        files = [self.shared(tmp_path / f"{i}.weights.h5", value=i) for i in (1.0, 3.0)]
        record = merge(files, tmp_path / "out.weights.h5")
        assert record.averaged == 1
        with h5py.File(tmp_path / "out.weights.h5") as out:
            assert out["layers/dense/vars/0"] == out["layers/dense_1/vars/0"]
            assert np.all(out["layers/dense/vars/0"][()] == 2)

    def test_are_not_matched_with_separate_ones(self, tmp_path):
        first = self.shared(tmp_path / "a.weights.h5")
        other = self.shared(tmp_path / "b.weights.h5", copy=True)
        found = differences(first, other)
        assert any("is shared with nothing, expected with layers/dense_1/vars/0" in t
                   for t in found)  # fmt: skip
        assert differences(other, first)


class TestPreprocessing:
    OTHER = MISMATCHED / "other-preprocessing.keras"

    def test_must_be_equal(self):
        found = differences(DIGITS / "epoch-20.keras", self.OTHER)
        assert len(found) == 2
        assert "variable 'layers/normalization/vars/0': its values differ" in found[0]
        assert "differently prepared data" in found[0]
        assert "--preprocessing reference" in found[0]

    def test_may_be_the_reference_s_with_a_note(self, tmp_path):
        files = [DIGITS / "epoch-20.keras", self.OTHER]
        record = merge(files, tmp_path / "out.keras", preprocessing="reference")
        assert sum("The reference's are kept." in note for note in record.notes) == 2
        kept, out = stored(files[0]), stored(tmp_path / "out.keras")
        for i in range(3):
            name = f"layers/normalization/vars/{i}"
            assert out[name].tobytes() == kept[name].tobytes()

    def test_is_found_in_a_single_element_far_inside(self, tmp_path):
        def layers(value):
            mean = np.zeros(40000, "f4")
            mean[39999] = value
            return {"layers/normalization": [mean, np.ones(40000, "f4"), np.int64(7)]}

        first = write_weights(tmp_path / "a.weights.h5", layers(0))
        other = write_weights(tmp_path / "b.weights.h5", layers(1))
        assert len(differences(first, other)) == 1

    def test_is_compared_bit_for_bit(self, tmp_path):
        def change(file):
            file["layers/normalization/vars/0"][0] = -0.0

        first = edited_weights(
            DIGITS / "epoch-20.weights.h5",
            tmp_path / "a.weights.h5",
            lambda file: file["layers/normalization/vars/0"].write_direct(np.zeros(1, "f4")),
        )
        other = edited_weights(first, tmp_path / "b.weights.h5", change)
        assert len(differences(first, other)) == 1
        assert matched(first, edited_weights(first, tmp_path / "c.weights.h5", len)).notes == ()


class TestAssets:
    """Vocabularies decide what a row of an embedding stands for."""

    LOOKUPS = layout("keras3.15.1-tf-lookups.keras")
    NAME = "layers/string_lookup/vocabulary.txt"

    @pytest.fixture
    def other(self, tmp_path):
        return edited_archive(
            self.LOOKUPS, tmp_path / "other.keras", assets={self.NAME: b"other\nwords"}
        )

    def test_that_are_equal_are_no_difference(self, tmp_path):
        same = edited_archive(self.LOOKUPS, tmp_path / "same.keras")
        assert matched(self.LOOKUPS, same).notes == ()

    def test_that_differ_are_refused_by_name(self, other):
        (text,) = differences(self.LOOKUPS, other)
        assert f"asset {self.NAME!r}: its content differs" in text
        assert "--preprocessing reference" in text

    def test_that_differ_may_be_the_reference_s(self, other):
        (note,) = matched(self.LOOKUPS, other, preprocessing="reference").notes
        assert "The reference's are kept." in note

    def test_that_one_archive_lacks_are_a_difference(self, tmp_path):
        layers = {"layers/dense": dense()}
        first = write_archive(tmp_path / "a.keras", layers, assets={"x/vocabulary.txt": "a"})
        other = write_archive(tmp_path / "b.keras", layers)
        assert "asset 'x/vocabulary.txt'" in differences(first, other)[0]
        assert "asset 'x/vocabulary.txt'" in differences(other, first)[0]

    def test_are_not_asked_of_weights_files(self):
        (note,) = matched(self.LOOKUPS, layout("keras3.15.1-tf-lookups.weights.h5")).notes
        assert "hold weights alone" in note


class TestConfigurations:
    def test_that_warn_become_notes_that_say_what_happens(self, tmp_path):
        def mixed(config):
            config["config"]["layers"][-1]["config"]["dtype"]["config"]["name"] = "mixed_float16"

        other = edited_archive(DIGITS / "epoch-20.keras", tmp_path / "b.keras", config=mixed)
        (note,) = matched(DIGITS / "epoch-19.keras", other).notes
        assert note.startswith(f"{other}: configuration: layer 'dense': dtype is ")
        assert note.endswith("Its values are averaged all the same.")

    @pytest.mark.parametrize("document", [[], [None], "model", 3, {}, {"class_name": [1]}])
    def test_that_are_no_models_are_refused_not_crashed_on(self, tmp_path, document):
        other = edited_archive(
            DIGITS / "epoch-20.keras", tmp_path / "b.keras", config=lambda _: document
        )
        for pair in ([DIGITS / "epoch-19.keras", other], [other, DIGITS / "epoch-19.keras"]):
            with pytest.raises(StreamAvgError):
                matched(*pair)


class TestValues:
    def test_are_aligned_with_the_reference(self, tmp_path):
        first = write_legacy(
            tmp_path / "a.h5", {"x": {"k": np.full(2, 1, "f4"), "b": np.full(2, 2, "f4")}}
        )
        other = write_legacy(
            tmp_path / "b.h5", {"x": {"b": np.full(2, 20, "f4"), "k": np.full(2, 10, "f4")}}
        )
        with open_checkpoint(first) as reference:
            found = match(reference, (open_checkpoint(path) for path in (first, other)))
            out = np.empty(2, "f4")
            for position, values in enumerate([(1, 10), (2, 20)]):
                for source, value in zip(found.sources, values, strict=True):
                    source.values.read_into(position, 0, out)
                    assert out.tolist() == [value, value]
            found.close()

    def test_that_differ_are_told_by_position(self, tmp_path):
        first = write_weights(tmp_path / "a.weights.h5", {"layers/dense": dense(1.0)})
        other = write_weights(
            tmp_path / "b.weights.h5", {"layers/dense": [dense(1.0)[0], dense(2.0)[1]]}
        )
        with open_checkpoint(first) as a, open_checkpoint(other) as b:
            assert list(differing(a.variables, a.values, b.values, [0, 1])) == [1]
            assert list(differing(a.variables, a.values, b.values, [0])) == []
