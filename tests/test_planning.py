"""What a merge will do, decided and refused before a byte is averaged."""

import os
import shutil
import zipfile
from collections import namedtuple

import h5py
import numpy as np
import pytest

from streamavg import (
    IncompatibleCheckpointsError,
    MemoryLimitError,
    OptionError,
    OutputError,
    UnsupportedFeatureError,
    merge,
    plan,
)
from streamavg.planning import LEAST_SLAB_ELEMENTS, MOST_SLAB_ELEMENTS
from streamavg.units import parse_size
from tests.builders import (
    BFLOAT16,
    DIGITS,
    LAYOUTS,
    LEGACY,
    contents,
    edited_archive,
    run,
    stored,
    write_archive,
    write_legacy,
    write_weights,
)

MIB = 1024**2
PAIR = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]


def twice(source, folder):
    """A file and its copy: two checkpoints of one model."""
    suffix = "".join(source.suffixes[-2:]) if source.name.endswith(".weights.h5") else source.suffix
    copy = folder / f"copy{suffix}"
    shutil.copyfile(source, copy)
    return [source, copy], folder / f"out{suffix}"


def policies(record):
    return {v.path: (v.action, v.reason) for v in record.variables}


class TestPolicies:
    @pytest.fixture
    def files(self, tmp_path):
        def write(name, offset):
            return write_weights(
                tmp_path / name,
                {
                    "layers/dense": {
                        "bool": np.array([offset == 0, True]),
                        "count": np.arange(3) + offset,
                        "kernel": np.full((2, 2), offset, "f4"),
                        "text": np.array([f"words {offset}".encode()], dtype="O"),
                    },
                    "layers/dropout/seed_generator": [np.array([offset, 7], "u4")],
                    "layers/normalization": [np.zeros(2, "f4"), np.ones(2, "f4"), np.int64(3)],
                    "metrics/mean": [np.float32(offset), np.float32(2 * offset)],
                    "optimizer": [np.int64(offset), np.float32(offset)],
                },
            )

        return [write(f"{i}.weights.h5", i) for i in range(3)]

    @pytest.mark.parametrize(
        ("path", "action", "reason"),
        [
            ("layers/dense/vars/kernel", "average", "float values"),
            ("layers/dense/vars/count", "carry", "integer values"),
            ("layers/dense/vars/bool", "carry", "bool values"),
            ("layers/dense/vars/text", "carry", "string values"),
            ("layers/dropout/seed_generator/vars/0", "carry", "state of a random generator"),
            ("layers/normalization/vars/0", "carry", "preprocessing state"),
            ("layers/normalization/vars/2", "carry", "preprocessing state"),
            ("metrics/mean/vars/0", "carry", "running total of a metric"),
            ("optimizer/vars/0", "drop", "optimizer state"),
        ],
    )
    def test_are_stated_for_every_variable(self, files, tmp_path, path, action, reason):
        record = plan(files, tmp_path / "out.weights.h5")
        assert policies(record)[path] == (action, reason)
        assert len(record.variables) == record.averaged + record.carried + record.dropped

    @pytest.mark.parametrize(("policy", "source"), [("reference", 0), ("last", 2)])
    def test_of_non_floats_name_the_checkpoint_they_come_from(
        self, files, tmp_path, policy, source
    ):
        record = merge(files, tmp_path / "out.weights.h5", non_float=policy)
        origins = {v.path: v.carried_from for v in record.variables if v.action == "carry"}
        out, kept = stored(tmp_path / "out.weights.h5"), stored(files[source])
        for name in ("bool", "count", "text"):
            path = f"layers/dense/vars/{name}"
            assert origins[path] == str(files[source])
            assert out[path].tolist() == kept[path].tolist()

    @pytest.mark.parametrize("policy", ["reference", "last"])
    def test_of_seeds_and_metrics_always_follow_the_reference(self, files, tmp_path, policy):
        record = merge(files, tmp_path / "out.weights.h5", non_float=policy, reference=files[1])
        out = stored(tmp_path / "out.weights.h5")
        assert out["metrics/mean/vars/1"] == 2
        assert out["layers/dropout/seed_generator/vars/0"].tolist() == [1, 7]
        assert {v.carried_from for v in record.variables if v.role == "seed"} == {str(files[1])}

    def test_of_non_floats_that_differ_are_noted(self, files, tmp_path):
        record = plan(files, tmp_path / "out.weights.h5")
        notes = [note for note in record.notes if "other integers, bools or strings" in note]
        assert len(notes) == 2
        assert str(files[1]) in notes[0]
        assert notes[0].endswith("the reference's are kept.")
        last = plan(files, tmp_path / "out.weights.h5", non_float="last").notes
        assert last[0].endswith("the last checkpoint's are kept.")

    def test_of_non_floats_may_require_that_they_are_equal(self, files, tmp_path):
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            merge(files, tmp_path / "out.weights.h5", non_float="equal")
        assert len(caught.value.differences) == 2
        assert "'layers/dense/vars/count'" in caught.value.differences[0]
        assert "--non-float reference or last" in caught.value.differences[0]
        assert not (tmp_path / "out.weights.h5").exists()

    def test_of_equal_non_floats_are_silent(self, tmp_path):
        paths, output = twice(LAYOUTS / "keras3.15.1-tf-dtypes.weights.h5", tmp_path)
        record = merge(paths, output, non_float="equal")
        assert record.notes == ()
        assert record.carried == 8

    def test_of_the_optimizer_drop_it_by_default(self, tmp_path):
        record = merge(PAIR, tmp_path / "out.keras")
        assert record.dropped == 12
        assert record.dropped_bytes > 0
        assert not [path for path in stored(tmp_path / "out.keras") if "optimizer" in path]

    def test_of_the_optimizer_may_keep_the_reference_s(self, tmp_path):
        record = merge(PAIR, tmp_path / "out.keras", optimizer="reference", reference=PAIR[1])
        assert (record.dropped, record.dropped_bytes) == (0, 0)
        out, kept = stored(tmp_path / "out.keras"), stored(PAIR[1])
        assert set(out) == set(kept)
        for path in kept:
            if path.startswith("optimizer"):
                assert out[path].tobytes() == kept[path].tobytes()

    def test_of_a_legacy_optimizer_are_the_same(self, tmp_path):
        paths = [LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20)]
        merge(paths, tmp_path / "dropped.h5")
        merge(paths, tmp_path / "kept.h5", optimizer="reference")
        with h5py.File(tmp_path / "dropped.h5") as dropped, h5py.File(tmp_path / "kept.h5") as kept:
            assert "optimizer_weights" not in dropped
            assert len(kept["optimizer_weights"].attrs["weight_names"]) > 10

    @pytest.mark.parametrize("dtype", ["keep", "float16", "bfloat16", "float32", "float64"])
    def test_of_the_dtype_touch_averaged_variables_alone(self, files, tmp_path, dtype):
        record = plan(files, tmp_path / "out.weights.h5", dtype=dtype)
        for variable in record.variables:
            if variable.action == "average":
                assert variable.output_dtype == (variable.dtype if dtype == "keep" else dtype)
            elif variable.action == "carry":
                assert variable.output_dtype == variable.dtype
            else:
                assert variable.output_dtype is None

    @pytest.mark.parametrize(
        "name", ["keras3.15.1-tf-noweights.keras", "keras3.15.1-tf-noweights.weights.h5",
                 "keras3.15.1-tf-noweights.h5", "keras3.15.1-tf-random_layers.weights.h5",
                 "keras2.15.0-tf2.15.1-random_layers.h5"]
    )  # fmt: skip
    def test_of_nothing_make_a_checkpoint_of_nothing(self, tmp_path, name):
        paths, output = twice(LAYOUTS / name, tmp_path)
        record = merge(paths, output)
        assert record.averaged == 0
        assert output.exists()


class TestBfloat16:
    """Keras writes it to legacy files without a mark, and cannot read it back."""

    def test_is_not_written_to_a_legacy_file(self, tmp_path):
        pair = [LEGACY / "keras3-epoch-19.h5", LEGACY / "keras3-epoch-20.h5"]
        with pytest.raises(OptionError, match=r"--dtype bfloat16.*\*\.weights\.h5"):
            plan(pair, tmp_path / "out.h5", dtype="bfloat16")
        assert plan(pair, tmp_path / "out.weights.h5", dtype="bfloat16").notes == ()

    def test_that_is_there_already_is_kept_with_a_note(self, tmp_path):
        paths, output = twice(LAYOUTS / "keras3.15.1-tf-bfloat16_a.h5", tmp_path)
        assert any("cannot load bfloat16" in note for note in plan(paths, output).notes)


class TestAssets:
    def test_that_the_output_cannot_hold_are_told_of(self, tmp_path):
        paths, output = twice(LAYOUTS / "keras3.15.1-tf-lookups.keras", tmp_path)
        assert plan(paths, output).notes == ()
        (note,) = plan(paths, tmp_path / "out.weights.h5").notes
        assert "are not part of a weights file" in note


class TestMeaninglessMeans:
    """The mean of codes is not the code of the mean."""

    QUANTIZED = sorted(
        path.name
        for path in LAYOUTS.iterdir()
        if ("-quant_" in path.name or "-qlora_" in path.name) and path.suffix != ".json"
    )

    def test_are_looked_for_in_many_files(self):
        assert len(self.QUANTIZED) >= 10

    @pytest.mark.parametrize("name", QUANTIZED)
    def test_of_quantized_layers_are_refused(self, tmp_path, name):
        paths, output = twice(LAYOUTS / name, tmp_path)
        with pytest.raises(UnsupportedFeatureError, match="are quantized") as caught:
            merge(paths, output)
        assert str(paths[0]) in str(caught.value)
        assert "before quantization" in str(caught.value)
        assert not output.exists()

    def test_of_unmerged_factors_are_refused(self, tmp_path):
        paths, output = twice(LAYOUTS / "keras3.15.1-tf-lora.h5", tmp_path)
        with pytest.raises(UnsupportedFeatureError, match="'d1' hold LoRA factors"):
            merge(paths, output)

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_of_merged_factors_are_taken(self, tmp_path, suffix):
        paths, output = twice(LAYOUTS / f"keras3.15.1-tf-lora{suffix}", tmp_path)
        assert merge(paths, output).averaged == 3

    def test_are_known_from_the_configuration_alone(self, tmp_path):
        def quantize(config):
            config["config"]["layers"][-1]["config"]["dtype"] = "int8_from_float32"

        paths = [edited_archive(path, tmp_path / path.name, config=quantize) for path in PAIR]
        with pytest.raises(UnsupportedFeatureError, match="'dense' are quantized"):
            plan(paths, tmp_path / "out.keras")

    def test_name_a_few_layers_and_count_the_others(self, tmp_path):
        paths, output = twice(LAYOUTS / "keras3.15.1-tf-quant_gptq.weights.h5", tmp_path)
        with pytest.raises(UnsupportedFeatureError, match="and 1 more are quantized"):
            plan(paths, output)


class TestMemory:
    @pytest.fixture
    def files(self, tmp_path):
        return [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.zeros(300_000, "f4")]})
            for i in range(2)
        ]

    def test_refusals_carry_and_print_the_three_numbers(self, tmp_path):
        with pytest.raises(MemoryLimitError) as caught:
            plan(PAIR, tmp_path / "out.keras", memory_limit="1MiB")
        error = caught.value
        assert error.limit_bytes == MIB
        assert 0 < error.reserved_bytes < error.projected_bytes
        for text in ("needs at least", "reserved", "--memory-limit is 1 MiB"):
            assert text in str(error)

    def test_refusals_name_a_limit_that_works(self, tmp_path):
        with pytest.raises(MemoryLimitError) as caught:
            plan(PAIR, tmp_path / "out.keras", memory_limit=1)
        limit = str(caught.value).rsplit("--memory-limit ", 1)[1].removesuffix(".")
        assert parse_size(limit) >= caught.value.projected_bytes
        merge(PAIR, tmp_path / "out.keras", memory_limit=limit)

    def test_refusals_are_wrong_options_too(self):
        assert issubclass(MemoryLimitError, OptionError)

    @pytest.mark.parametrize("limit", ["", "much", "-1", 0, "0MiB"])
    def test_limits_are_sizes(self, tmp_path, limit):
        with pytest.raises(OptionError, match="is not a size"):
            plan(PAIR, tmp_path / "out.keras", memory_limit=limit)

    def test_the_limit_is_the_one_given(self, tmp_path):
        memory = plan(PAIR, tmp_path / "out.keras", memory_limit="1GiB").memory
        assert (memory.limit, memory.limit_origin) == (1024 * MIB, "as given")

    def test_the_default_limit_is_256_mib(self, files, tmp_path):
        done = run("merge", *files, "--dry-run", cwd=tmp_path)
        assert "of 256 MiB allowed (default)" in done.stdout

    def test_the_default_limit_rises_in_a_process_that_is_large_already(self, files, tmp_path):
        ballast = np.ones(400 * MIB, np.uint8)
        memory = plan(files, tmp_path / "out.weights.h5").memory
        del ballast
        assert memory.reserved > 400 * MIB
        assert memory.limit == memory.reserved + 64 * MIB
        assert memory.limit_origin.startswith("default, raised because")

    def test_the_projection_is_within_the_limit_and_above_the_reserve(self, files, tmp_path):
        memory = plan(files, tmp_path / "out.weights.h5").memory
        assert memory.reserved < memory.projected <= memory.limit
        assert memory.measured is None

    def test_slabs_are_as_large_as_the_cache_where_the_limit_allows(self, files, tmp_path):
        record = plan(files, tmp_path / "out.weights.h5", memory_limit="4GiB")
        assert record.slab_elements == MOST_SLAB_ELEMENTS

    def test_slabs_have_fewer_elements_where_a_method_keeps_more_of_each(self, tmp_path):
        paths = [tmp_path / f"{number}.weights.h5" for number in range(40)]
        for path in paths:
            write_weights(path, {"layers/dense": [np.zeros(300_000, "f4")]})
        output = tmp_path / "out.weights.h5"
        mean, median = (
            plan(paths, output, memory_limit="4GiB", threads=1, method=method)
            for method in ("mean", "median")
        )
        assert mean.slab_elements == MOST_SLAB_ELEMENTS
        assert median.slab_elements == MOST_SLAB_ELEMENTS // 2

    def test_slabs_are_no_longer_than_the_longest_variable(self, tmp_path):
        assert plan(PAIR, tmp_path / "out.keras").slab_elements == 300

    def test_slabs_shrink_with_the_limit_down_to_the_least(self, files, tmp_path):
        with pytest.raises(MemoryLimitError) as caught:
            plan(files, tmp_path / "out.weights.h5", memory_limit=1)
        least = caught.value.projected_bytes
        record = plan(files, tmp_path / "out.weights.h5", memory_limit=least + MIB // 2)
        assert LEAST_SLAB_ELEMENTS <= record.slab_elements < MOST_SLAB_ELEMENTS
        assert record.memory.projected <= least + MIB // 2

    def test_slabs_change_nothing_in_the_values(self, tmp_path):
        generator = np.random.default_rng(5)
        files = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/dense": [generator.normal(size=100_001).astype("f4")]},
            )
            for i in range(3)
        ]
        with pytest.raises(MemoryLimitError) as caught:
            plan(files, tmp_path / "small.weights.h5", memory_limit=1)
        tight = caught.value.projected_bytes + MIB // 4
        small = merge(files, tmp_path / "small.weights.h5", memory_limit=tight)
        large = merge(files, tmp_path / "large.weights.h5", memory_limit="8GiB")
        assert small.slab_elements < large.slab_elements
        assert contents(tmp_path)["small.weights.h5"] == contents(tmp_path)["large.weights.h5"]

    def test_wider_values_need_more(self, tmp_path):
        projected = {}
        for dtype in ("f2", "f4", "f8", BFLOAT16):
            folder = tmp_path / np.dtype(dtype).name
            folder.mkdir()
            files = [
                write_weights(
                    folder / f"{i}.weights.h5", {"layers/dense": [np.zeros(70_000, dtype)]}
                )
                for i in range(2)
            ]
            memory = plan(files, folder / "out.weights.h5").memory
            projected[np.dtype(dtype).name] = memory.projected - memory.reserved
        assert projected["float32"] < projected["float64"]
        # half as wide in the buffers, and widened beside them
        assert projected["float16"] == projected["bfloat16"] == projected["float32"]

    def test_compressed_tiles_are_counted(self, tmp_path):
        projected = []
        for name, storage in (("plain", {}), ("tiles", {"chunks": (500_000,),
                                                        "compression": "gzip"})):  # fmt: skip
            files = [
                write_weights(
                    tmp_path / f"{name}{i}.weights.h5",
                    {"layers/dense": [np.zeros(500_000, "f4")]},
                    **storage,
                )
                for i in range(2)
            ]
            memory = plan(files, tmp_path / f"{name}.weights.h5").memory
            projected.append(memory.projected - memory.reserved)
        assert projected[1] - projected[0] >= 500_000 * 4


class TestOutput:
    def test_that_exists_is_refused(self, tmp_path):
        output = tmp_path / "out.keras"
        output.write_text("precious")
        with pytest.raises(OutputError, match=r"out\.keras: exists already.*--force"):
            plan(PAIR, output)
        assert output.read_text() == "precious"

    def test_that_exists_is_replaced_with_force(self, tmp_path):
        output = tmp_path / "out.keras"
        output.write_text("precious")
        merge(PAIR, output, force=True)
        assert stored(output)

    def test_that_is_a_dangling_link_is_refused(self, tmp_path):
        output = tmp_path / "out.keras"
        output.symlink_to("nowhere")
        with pytest.raises(OutputError, match="exists already"):
            plan(PAIR, output)

    @pytest.mark.parametrize("force", [False, True])
    def test_that_is_a_folder_is_refused(self, tmp_path, force):
        (tmp_path / "out.keras").mkdir()
        with pytest.raises(OutputError, match="is a folder"):
            plan(PAIR, tmp_path / "out.keras", force=force)

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "other spelling"])
    def test_that_is_an_input_is_refused(self, tmp_path, force, index, way):
        inputs = [tmp_path / path.name for path in PAIR]
        for source, target in zip(PAIR, inputs, strict=True):
            shutil.copyfile(source, target)
        output = tmp_path / "out.keras"
        if way == "symlink":
            output.symlink_to(inputs[index])
        elif way == "hard link":
            os.link(inputs[index], output)
        elif way == "other spelling":
            output = tmp_path / ".." / tmp_path.name / inputs[index].name
        else:
            output = inputs[index]
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="is one of the inputs, which are never written"):
            merge(inputs, output, force=force)
        assert contents(tmp_path) == before

    def test_in_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(OutputError, match=r"the folder .*no does not exist"):
            plan(PAIR, tmp_path / "no" / "out.keras")

    @pytest.mark.parametrize("name", ["out", "out.h5py", "out.npz", "out.keras.bak", "out.KERAS"])
    def test_of_an_unknown_suffix_is_refused(self, tmp_path, name):
        with pytest.raises(OptionError, match=r"Keras does not load this suffix\. Use \*\.keras"):
            plan(PAIR, tmp_path / name)

    @pytest.mark.parametrize(
        ("inputs", "name"),
        [
            ("digits/epoch-{}.keras", "out.h5"),
            ("digits/epoch-{}.weights.h5", "out.keras"),
            ("digits/epoch-{}.weights.h5", "out.h5"),
            ("digits-legacy/keras3-epoch-{}.h5", "out.keras"),
            ("digits-legacy/keras2-weights-epoch-{}.h5", "out.keras"),
        ],
    )
    def test_of_a_suffix_for_another_layout_is_refused(self, tmp_path, inputs, name):
        paths = [DIGITS.parent / inputs.format(n) for n in (19, 20)]
        with pytest.raises(OptionError, match="the suffix asks for a"):
            plan(paths, tmp_path / name)

    def test_of_an_archive_may_be_its_weights_alone(self, tmp_path):
        record = merge(PAIR, tmp_path / "out.weights.h5")
        assert record.output_format == "keras-weights"
        assert not record.output_has_config

    @pytest.mark.parametrize(
        ("source", "name"),
        [
            (DIGITS / "epoch-{}.keras", "averaged.keras"),
            (DIGITS / "epoch-{}.weights.h5", "averaged.weights.h5"),
            (LEGACY / "keras3-epoch-{}.h5", "averaged.h5"),
        ],
    )
    def test_is_called_averaged_by_default(self, tmp_path, monkeypatch, source, name):
        monkeypatch.chdir(tmp_path)
        paths = [source.with_name(source.name.format(n)) for n in (19, 20)]
        assert plan(paths).output == name

    @pytest.mark.parametrize(
        ("given", "name"),
        [("a.hdf5", "averaged.hdf5"), ("a.keras", "averaged.h5"), ("a.weights.h5", "averaged.h5"),
         ("a", "averaged.h5")],
    )  # fmt: skip
    def test_has_by_default_the_suffix_that_fits_the_content(
        self, tmp_path, monkeypatch, given, name
    ):
        monkeypatch.chdir(tmp_path)
        legacy = {"dense": {"dense/kernel": np.zeros((2, 2), "f4")}}
        paths = [write_legacy(tmp_path / f"{i}{given}", legacy) for i in range(2)]
        assert plan(paths).output == name

    def test_that_does_not_fit_the_disk_is_refused_with_both_numbers(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 100, 100))
        with pytest.raises(OutputError, match=r"needs 1\.88 KiB, .* only 100 B free") as caught:
            plan(PAIR, tmp_path / "out.keras")
        assert "--output" in str(caught.value)

    def test_tells_the_free_disk_of_its_own_folder(self, tmp_path, monkeypatch):
        asked = []
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or real(path))
        assert plan(PAIR, tmp_path / "out.keras").free_disk_bytes > 0
        assert asked == [tmp_path]


class TestPlan:
    def test_writes_nothing(self, tmp_path):
        plan(PAIR, tmp_path / "out.keras")
        assert list(tmp_path.iterdir()) == []

    def test_counts_the_bytes_that_the_merge_reads_and_writes(self, tmp_path):
        record = plan(PAIR, tmp_path / "out.keras")
        floats = sum(
            np.prod(v.shape, dtype=int) * 4 for v in record.variables if v.action == "average"
        )
        carried = 4 + 4 + 8
        assert record.bytes_written == floats + carried
        assert record.bytes_read == 2 * floats + carried

    def test_equals_what_the_merge_then_does(self, tmp_path):
        planned = plan(PAIR, tmp_path / "out.keras")
        done = merge(PAIR, tmp_path / "out.keras")
        assert planned.variables == done.variables
        assert planned.inputs == done.inputs
        assert planned.bytes_read == done.bytes_read

    def test_of_archives_with_assets_keeps_them(self, tmp_path):
        layers = {"layers/dense": [np.zeros((2, 2), "f4")]}
        paths = [
            write_archive(tmp_path / f"{i}.keras", layers, assets={"a/vocabulary.txt": "one\ntwo"})
            for i in range(2)
        ]
        merge(paths, tmp_path / "out.keras")
        with zipfile.ZipFile(tmp_path / "out.keras") as archive:
            assert archive.testzip() is None
            assert archive.read("assets/a/vocabulary.txt") == b"one\ntwo"
