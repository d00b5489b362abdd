"""The main job, through the Python API: what is promised about inputs, outputs and values."""

import itertools
import os
import resource
import shutil
import sys
import tracemalloc
import zipfile
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamavg import (
    ChangedFileError,
    CorruptFileError,
    FormatError,
    MergeRecord,
    NonFiniteValuesError,
    OptionError,
    OutputError,
    StreamAvgError,
    merge,
    plan,
)
from tests.builders import (
    BFLOAT16,
    DIGITS,
    LAYOUTS,
    LEGACY,
    MISMATCHED,
    contents,
    edited_weights,
    stored,
    write_archive,
    write_legacy,
    write_weights,
)

PAIR = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]
THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
KERNEL = "layers/conv2d/vars/0"


def mean(arrays, weights=None):
    """The exact mean, rounded once to double precision."""
    arrays = [np.asarray(array, "f8") for array in arrays]
    weights = [Fraction(w) for w in (weights or [1] * len(arrays))]
    total = sum(weights)
    columns = zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
    exact = [
        float(sum(w * Fraction(x) for w, x in zip(weights, values, strict=True)) / total)
        for values in columns
    ]
    return np.array(exact).reshape(arrays[0].shape)


@pytest.fixture
def copies(tmp_path):
    """Copies of two inputs, which a test may spoil, in a folder of their own."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    return [Path(shutil.copy(path, folder)) for path in PAIR]


class TestValues:
    @pytest.mark.parametrize(
        "paths",
        [
            THREE,
            [path.with_suffix(".weights.h5") for path in THREE],
            [LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20)],
            [LEGACY / f"keras2-epoch-{n}.h5" for n in (19, 20)],
            [LEGACY / f"keras2-weights-epoch-{n}.h5" for n in (19, 20)],
            [DIGITS.parent / "digits-keras2" / f"epoch-{n}.keras" for n in (19, 20)],
            [LAYOUTS / f"keras3.15.1-tf-cnn_{x}.keras" for x in "abc"],
        ],
        ids=lambda paths: f"{paths[0].parent.name}/{paths[0].name}",
    )
    def test_are_the_exact_mean_rounded_once(self, tmp_path, paths):
        suffix = ".weights.h5" if paths[0].name.endswith(".weights.h5") else paths[0].suffix
        record = merge(paths, tmp_path / f"out{suffix}")
        inputs, out = [stored(path) for path in paths], stored(tmp_path / f"out{suffix}")
        averaged = [v.path for v in record.variables if v.action == "average"]
        prefix = "model_weights/" if "model_weights" in next(iter(out)) else ""
        for path in averaged:
            expected = mean([values[prefix + path] for values in inputs]).astype("f4")
            np.testing.assert_array_equal(out[prefix + path], expected, err_msg=path)

    @pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1, 0, 0], [0, 0.25, 0.75]])
    def test_follow_the_weights(self, tmp_path, weights):
        merge(THREE, tmp_path / "out.keras", weights=weights)
        expected = mean([stored(path)[KERNEL] for path in THREE], weights)
        np.testing.assert_array_equal(stored(tmp_path / "out.keras")[KERNEL], expected.astype("f4"))

    def test_with_the_whole_weight_on_one_are_those_of_that_one(self, tmp_path):
        merge(THREE, tmp_path / "out.keras", weights=[0, 1, 0])
        out, only = stored(tmp_path / "out.keras"), stored(THREE[1])
        for path in out:
            np.testing.assert_array_equal(out[path], only[path], err_msg=path)

    def test_of_equal_inputs_are_the_input(self, tmp_path):
        copy = Path(shutil.copy(THREE[0], tmp_path / "copy.keras"))
        merge([THREE[0], copy], tmp_path / "out.keras")
        out, only = stored(tmp_path / "out.keras"), stored(THREE[0])
        assert all(out[path].tobytes() == only[path].tobytes() for path in out)

    def test_follow_sample_counts_with_normalize(self, tmp_path):
        merge(THREE, tmp_path / "a.keras", weights=[100, 300, 600], normalize=True)
        merge(THREE, tmp_path / "b.keras", weights=[1, 3, 6], normalize=True)
        a, b = stored(tmp_path / "a.keras"), stored(tmp_path / "b.keras")
        assert all(a[path].tobytes() == b[path].tobytes() for path in a)

    @pytest.mark.parametrize(
        ("dtype", "stored_as"),
        [("keep", "f4"), ("float32", "f4"), ("float64", "f8"), ("float16", "f2"),
         ("bfloat16", BFLOAT16)],
    )  # fmt: skip
    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_have_the_dtype_asked_for(self, tmp_path, dtype, stored_as, suffix):
        output = tmp_path / f"out{suffix}"
        merge(PAIR, output, dtype=dtype)
        expected = mean([stored(path)[KERNEL] for path in PAIR])
        found = stored(output)[KERNEL]
        assert found.dtype == stored_as
        assert found.tobytes() == expected.astype("f8").astype(stored_as).tobytes()

    def test_that_do_not_fit_the_dtype_are_refused(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.full(2, 1e5, "f4")]})
            for i in range(2)
        ]
        with pytest.raises(OptionError, match=r"does not fit float16.*--dtype keep"):
            merge(paths, tmp_path / "out.weights.h5", dtype="float16")
        assert not (tmp_path / "out.weights.h5").exists()

    def test_do_not_depend_on_the_container(self, tmp_path):
        merge(THREE, tmp_path / "a.keras")
        merge([path.with_suffix(".weights.h5") for path in THREE], tmp_path / "b.weights.h5")
        merge([THREE[0], THREE[1].with_suffix(".weights.h5"), THREE[2]], tmp_path / "c.weights.h5")
        a, *others = (stored(tmp_path / n) for n in ("a.keras", "b.weights.h5", "c.weights.h5"))
        for other in others:
            assert all(a[path].tobytes() == other[path].tobytes() for path in a)


class TestTheOrderOfTheInputs:
    """Sums of floating-point numbers depend on their order; the output does not."""

    WIDE = ((1e30, 1.0, -1e30), (3.0, 1e-20, -3.0), (0.1, 0.2, 0.3))
    NARROW = ((6e4, 1e-4, -6e4), (3.0, 1e-4, -3.0), (0.1, 0.2, 0.3))

    def files(self, folder, names, *, kernel=None, dtype="f4"):
        folder.mkdir(exist_ok=True)
        rows = self.NARROW if np.dtype(dtype).itemsize == 2 else self.WIDE
        return [
            write_weights(
                folder / f"{name}.weights.h5",
                {"layers/dense": [
                    np.full(400, i if kernel is None else kernel, dtype),
                    np.array([row[i] for row in rows], dtype),
                ]},
            )
            for i, name in enumerate(names)
        ]  # fmt: skip

    @pytest.mark.parametrize("dtype", ["f4", "f8", "f2", BFLOAT16])
    def test_does_not_change_the_values(self, tmp_path, dtype):
        paths = self.files(tmp_path / "in", "abc", dtype=dtype)
        found = set()
        for i, order in enumerate(itertools.permutations(paths)):
            merge(order, tmp_path / f"{i}.weights.h5")
            values = stored(tmp_path / f"{i}.weights.h5")
            found.add(b"".join(values[path].tobytes() for path in sorted(values)))
        assert len(found) == 1

    def test_does_not_change_the_values_with_weights(self, tmp_path):
        paths = self.files(tmp_path / "in", "abc")
        weights = dict(zip(paths, [0.5, 0.3, 0.2], strict=True))
        found = set()
        for i, order in enumerate(itertools.permutations(paths)):
            output = tmp_path / f"{i}.weights.h5"
            merge(order, output, weights=[weights[path] for path in order])
            found.add(stored(output)["layers/dense/vars/1"].tobytes())
        assert len(found) == 1

    def test_does_not_change_real_checkpoints(self, tmp_path):
        found = set()
        for i, order in enumerate(itertools.permutations(THREE)):
            merge(order, tmp_path / f"{i}.keras", preprocessing="reference")
            values = stored(tmp_path / f"{i}.keras")
            found.add(b"".join(values[path].tobytes() for path in sorted(values)))
        assert len(found) == 1

    def test_and_their_names_do_not_change_the_values(self, tmp_path):
        merge(self.files(tmp_path / "x", "abc"), tmp_path / "x.weights.h5")
        merge(self.files(tmp_path / "y", "cab"), tmp_path / "y.weights.h5")
        x, y = (stored(tmp_path / f"{n}.weights.h5") for n in "xy")
        assert all(x[path].tobytes() == y[path].tobytes() for path in x)

    def test_and_their_names_do_not_change_the_values_where_the_largest_variable_is_frozen(
        self, tmp_path
    ):
        merge(self.files(tmp_path / "x", "abc", kernel=1), tmp_path / "x.weights.h5")
        merge(self.files(tmp_path / "y", "bca", kernel=1), tmp_path / "y.weights.h5")
        x, y = (stored(tmp_path / f"{n}.weights.h5") for n in "xy")
        assert all(x[path].tobytes() == y[path].tobytes() for path in x)


class TestNonFiniteValues:
    @pytest.fixture
    def spoiled(self, tmp_path):
        def make(value, index=(1, 2), dtype="f4"):
            folder = tmp_path / "inputs"
            folder.mkdir(exist_ok=True)
            bad = np.ones((3, 4), dtype)
            bad[index] = value
            arrays = [np.ones((3, 4), dtype), bad]
            return [
                write_weights(
                    folder / f"{i}.weights.h5", {"layers/dense": {"bias": a[0], "kernel": a}}
                )
                for i, a in enumerate(arrays)
            ]

        return make

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BFLOAT16])
    def test_are_refused_by_file_variable_and_index(self, tmp_path, spoiled, value, dtype):
        paths = spoiled(value, dtype=dtype)
        before = contents(tmp_path)
        with pytest.raises(NonFiniteValuesError) as caught:
            merge(paths, tmp_path / "out.weights.h5")
        error = caught.value
        assert (error.path, error.variable, error.index) == (
            paths[1], "layers/dense/vars/kernel", (1, 2)
        )  # fmt: skip
        assert f"value {float(value)} at index [1, 2]" in str(error)
        assert "--allow-non-finite" in str(error)
        assert contents(tmp_path) == before

    def test_beyond_the_first_slab_have_their_index_too(self, tmp_path):
        array = np.zeros((3, 50_000), "f4")
        paths = [write_weights(tmp_path / "0.weights.h5", {"layers/dense": [array]})]
        array[2, 49_999] = np.nan
        paths.append(write_weights(tmp_path / "1.weights.h5", {"layers/dense": [array]}))
        with pytest.raises(NonFiniteValuesError) as caught:
            merge(paths, tmp_path / "out.weights.h5")
        assert caught.value.index == (2, 49_999)

    def test_in_a_scalar_have_no_index(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/scale": [np.float32(v)]})
            for i, v in enumerate((1, np.inf))
        ]
        with pytest.raises(NonFiniteValuesError, match="a scalar") as caught:
            merge(paths, tmp_path / "out.weights.h5")
        assert caught.value.index == ()

    def test_are_refused_even_with_weight_zero(self, tmp_path, spoiled):
        with pytest.raises(NonFiniteValuesError):
            merge(spoiled(np.nan), tmp_path / "out.weights.h5", weights=[1, 0])

    def test_that_cancel_out_are_refused(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/x": [np.full(2, v, "f4")]})
            for i, v in enumerate((np.inf, -np.inf))
        ]
        with pytest.raises(NonFiniteValuesError):
            merge(paths, tmp_path / "out.weights.h5")

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BFLOAT16])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_are_averaged_like_others_when_allowed(self, tmp_path, spoiled, value, dtype):
        paths = spoiled(value, dtype=dtype)
        merge(paths, tmp_path / "out.weights.h5", allow_non_finite=True)
        kernel = stored(tmp_path / "out.weights.h5")["layers/dense/vars/kernel"].astype("f8")
        np.testing.assert_array_equal(kernel[1, 2], value)
        kernel[1, 2] = 1
        assert np.all(kernel == 1)

    def test_in_carried_and_dropped_variables_are_nobody_s_business(self, tmp_path):
        layers = {
            "layers/dense": [np.ones(2, "f4")],
            "metrics/mean": [np.float32(np.nan)],
            "optimizer": [np.full(2, np.nan, "f4")],
        }
        paths = [write_weights(tmp_path / f"{i}.weights.h5", layers) for i in range(2)]
        assert merge(paths, tmp_path / "out.weights.h5", optimizer="reference").averaged == 1


class TestInputs:
    def test_are_bit_for_bit_as_they_were(self, tmp_path, copies):
        before = contents(tmp_path)
        times = [path.stat().st_mtime_ns for path in copies]
        merge(copies, tmp_path / "out.keras")
        (tmp_path / "out.keras").unlink()
        assert contents(tmp_path) == before
        assert [path.stat().st_mtime_ns for path in copies] == times

    def test_may_be_read_only(self, tmp_path, copies):
        for path in copies:
            path.chmod(0o400)
        copies[0].parent.chmod(0o500)
        try:
            assert merge(copies, tmp_path / "out.keras").averaged == 7
        finally:
            copies[0].parent.chmod(0o700)

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize(
        "change",
        [
            lambda path: os.utime(path, ns=(1, 1)),
            lambda path: path.write_bytes(path.read_bytes() + b"\0"),
            lambda path: path.unlink(),
            lambda path: Path(shutil.copy(path, f"{path}.new")).replace(path),
            lambda path: os.truncate(path, path.stat().st_size // 2),
        ],
        ids=["touched", "longer", "gone", "replaced", "truncated"],
    )
    def test_that_change_during_the_merge_are_refused(self, tmp_path, copies, index, change):
        pending = [change]

        def on_progress(_):
            while pending:
                pending.pop()(copies[index])

        with pytest.raises((ChangedFileError, CorruptFileError)) as caught:
            merge(copies, tmp_path / "out.keras", on_progress=on_progress)
        assert str(copies[index]) in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["inputs"]

    def test_that_are_overwritten_in_place_are_refused(self, tmp_path, copies):
        copies = [Path(shutil.copy(path.with_suffix(".weights.h5"), tmp_path)) for path in PAIR]
        pending = [copies[1]]

        def on_progress(_):
            while pending:
                with pending.pop().open("r+b") as file:
                    file.seek(2000)
                    file.write(b"x")

        with pytest.raises(ChangedFileError, match="changed while it was read"):
            merge(copies, tmp_path / "out.weights.h5", on_progress=on_progress)
        assert not (tmp_path / "out.weights.h5").exists()

    def test_with_a_wrong_checksum_are_refused(self, tmp_path):
        wrong = LAYOUTS / "handmade" / "wrong_crc.keras"
        copy = Path(shutil.copy(wrong, tmp_path / "copy.keras"))
        with pytest.raises(CorruptFileError, match="CRC-32"):
            merge([wrong, copy], tmp_path / "out.keras")
        assert not (tmp_path / "out.keras").exists()

    def test_may_be_many_more_than_open_files_are_allowed(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/x": [np.full(2, i, "f4")]})
            for i in range(300)
        ]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 160), hard))
        try:
            merge(paths, tmp_path / "out.weights.h5")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert stored(tmp_path / "out.weights.h5")["layers/x/vars/0"].tolist() == [149.5, 149.5]

    @pytest.mark.parametrize("outcome", ["done", "incompatible", "unreadable"])
    def test_are_closed_afterwards(self, tmp_path, copies, outcome):
        other = {
            "done": copies[1],
            "incompatible": MISMATCHED / "wider.keras",
            "unreadable": LAYOUTS / "handmade" / "evil_softlink.weights.h5",
        }[outcome]
        try:
            merge([copies[0], other], tmp_path / "out.keras")
        except StreamAvgError:
            assert outcome != "done"
        links = list(Path("/proc/self/fd").iterdir())
        opened = {str(link.readlink()) for link in links if link.is_symlink()}
        assert not opened & {str(copies[0]), str(other)}


def inside_hdf5(frame):
    """Whether the HDF5 library is waiting for a callback, where it turns errors into its own."""
    while frame is not None:
        if "Window" in type(frame.f_locals.get("self")).__name__:
            return True
        frame = frame.f_back
    return False


class TestInterruptions:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError, SystemExit])
    @pytest.mark.parametrize("after", [1, 4])
    def test_leave_nothing(self, tmp_path, error, after):
        calls = itertools.count(1)

        def on_progress(_):
            if next(calls) == after:
                raise error

        with pytest.raises(error):
            merge(PAIR, tmp_path / "out.keras", on_progress=on_progress)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_at_any_call_leave_nothing(self, tmp_path, suffix):
        """A signal may come between any two steps, also before the writer is in its block."""
        inputs = [path.with_suffix(suffix) for path in PAIR]
        left = [at for at in range(1, 60, 2) if self.interrupted(inputs, tmp_path, suffix, at)]
        assert left == []

    @staticmethod
    def interrupted(inputs, folder, suffix, at):
        """Interrupts a merge at a call after its file has come into being. What it leaves."""
        calls = itertools.count(1)

        def tracer(frame, event, _):
            code = frame.f_code
            is_ours = Path(code.co_filename).parent.name in {"streamavg", "formats", "methods"}
            is_cleaning = code.co_name in {"discard", "__exit__"}
            counts = is_ours and not is_cleaning and not inside_hdf5(frame)
            if counts and any(folder.iterdir()) and next(calls) == at:
                sys.settrace(None)
                raise KeyboardInterrupt

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            merge(inputs, folder / f"out{suffix}")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        for path in folder.iterdir():
            path.unlink()
        return left

    def test_before_the_first_byte_leave_nothing(self, tmp_path):
        def on_plan(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merge(PAIR, tmp_path / "out.keras", on_plan=on_plan)
        assert list(tmp_path.iterdir()) == []

    def test_leave_an_output_that_was_to_be_replaced(self, tmp_path):
        (tmp_path / "out.keras").write_text("precious")

        def on_progress(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merge(PAIR, tmp_path / "out.keras", force=True, on_progress=on_progress)
        assert (tmp_path / "out.keras").read_text() == "precious"
        assert len(list(tmp_path.iterdir())) == 1

    def test_do_not_hinder_the_next_merge(self, tmp_path):
        def on_progress(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merge(PAIR, tmp_path / "out.keras", on_progress=on_progress)
        assert merge(PAIR, tmp_path / "out.keras").averaged == 7


class TestOutput:
    def test_that_comes_into_being_meanwhile_is_kept(self, tmp_path):
        output = tmp_path / "out.keras"

        def on_progress(_):
            output.write_text("somebody else's")

        with pytest.raises(OutputError, match="exists already"):
            merge(PAIR, output, on_progress=on_progress)
        assert output.read_text() == "somebody else's"
        assert len(list(tmp_path.iterdir())) == 1

    def test_is_not_there_before_it_is_whole(self, tmp_path):
        output = tmp_path / "out.keras"
        seen = []
        merge(PAIR, output, on_progress=lambda _: seen.append(output.exists()))
        assert seen
        assert not any(seen)
        assert output.exists()
        assert len(list(tmp_path.iterdir())) == 1

    def test_in_a_folder_without_permission_is_refused(self, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("nothing is forbidden to root")
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="cannot be written"):
            merge(PAIR, tmp_path / "out.keras")

    def test_can_be_merged_again(self, tmp_path):
        merge(PAIR, tmp_path / "a.keras")
        merge([tmp_path / "a.keras", THREE[0]], tmp_path / "b.keras", weights=[2 / 3, 1 / 3])
        assert merge([tmp_path / "b.keras", tmp_path / "a.keras"], tmp_path / "c.keras").averaged

    def test_takes_structure_and_configuration_of_the_reference(self, tmp_path):
        def layers(value):
            return {"layers/dense": {"0": np.full(2, value, "f4"), "count": np.int64(value)}}

        paths = [
            write_archive(
                tmp_path / f"{i}.keras", layers(i), names={"layers/dense": "dense"},
                version=f"3.{i}.0",
            )
            for i in range(3)
        ]  # fmt: skip
        record = merge(paths, tmp_path / "out.keras", reference=paths[2])
        assert record.reference == str(paths[2])
        out = stored(tmp_path / "out.keras")
        assert out["layers/dense/vars/count"] == 2
        assert out["layers/dense/vars/0"].tolist() == [1, 1]
        with zipfile.ZipFile(tmp_path / "out.keras") as archive:
            assert b"3.2.0" in archive.read("metadata.json")

    def test_keeps_attributes_and_groups_without_variables(self, tmp_path):
        def mark(file):
            file.create_group("layers/empty").attrs["note"] = "kept"

        paths = [
            edited_weights(path.with_suffix(".weights.h5"), tmp_path / f"{i}.weights.h5", mark)
            for i, path in enumerate(PAIR)
        ]
        merge(paths, tmp_path / "out.weights.h5")
        with h5py.File(tmp_path / "out.weights.h5") as out, h5py.File(paths[0]) as reference:
            assert out["layers/empty"].attrs["note"] == "kept"
            name = reference["layers/conv2d/vars"].attrs["name"]
            assert out["layers/conv2d/vars"].attrs["name"] == name


class TestTheCall:
    def test_takes_text_paths_and_generators(self, tmp_path):
        record = merge((str(path) for path in PAIR), str(tmp_path / "out.keras"))
        assert isinstance(record, MergeRecord)

    def test_takes_paths_relative_to_the_current_folder(self, tmp_path, copies, monkeypatch):
        monkeypatch.chdir(copies[0].parent)
        record = merge([path.name for path in copies])
        assert record.output == "averaged.keras"
        assert (copies[0].parent / "averaged.keras").exists()

    def test_refuses_unknown_options(self, tmp_path):
        with pytest.raises(TypeError, match="nonsense"):
            merge(PAIR, tmp_path / "out.keras", nonsense=1)

    def test_refuses_a_single_path_given_as_text(self, tmp_path):
        with pytest.raises((OptionError, TypeError, FormatError)):
            merge(str(PAIR[0]), tmp_path / "out.keras")

    @pytest.mark.parametrize("paths", [PAIR, [path.with_suffix(".weights.h5") for path in PAIR]])
    def test_tells_of_every_byte_that_it_reads(self, tmp_path, paths):
        told = []
        suffix = ".keras" if paths is PAIR else ".weights.h5"
        record = merge(paths, tmp_path / f"out{suffix}", on_progress=told.append)
        assert sum(told) == record.bytes_read

    def test_tells_of_every_byte_of_strings_too(self, tmp_path):
        source = LAYOUTS / "handmade" / "strings.weights.h5"
        copy = Path(shutil.copy(source, tmp_path / "copy.weights.h5"))
        told = []
        record = merge([source, copy], tmp_path / "out.weights.h5", on_progress=told.append)
        assert sum(told) == record.bytes_read

    def test_shows_the_plan_before_it_reads(self, tmp_path):
        seen = []
        merge(
            PAIR, tmp_path / "out.keras",
            on_plan=lambda record: seen.append(("plan", record.seconds, record.memory.measured)),
            on_progress=lambda _: seen.append("read"),
        )  # fmt: skip
        assert seen[0] == ("plan", None, None)
        assert set(seen[1:]) == {"read"}

    def test_needs_memory_for_slabs_alone(self, tmp_path):
        paths = [
            write_legacy(tmp_path / f"{i}.h5", {"x": {"k": np.zeros((4000, 1000), "f4")}})
            for i in range(3)
        ]
        merge(paths, tmp_path / "warm.h5")
        tracemalloc.start()
        try:
            record = merge(paths, tmp_path / "out.h5")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < record.memory.projected - record.memory.reserved
        assert peak < 16_000_000 / 2

    def test_plans_with_the_same_arguments(self, tmp_path):
        record = plan(PAIR, tmp_path / "out.keras", weights=[0.5, 0.5], optimizer="reference")
        assert record.dropped == 0
