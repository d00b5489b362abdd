"""The memory promise, measured: each case is a process of its own, watched from outside."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from tests.builders import BFLOAT16, ROOT, environment, run, stored, write_archive

pytestmark = pytest.mark.slow

MIB = 1024**2
LIMIT = 64 * MIB
COUNTING_ERROR = MIB // 2
"""The kernel counts resident pages in batches, so that two readings differ by some pages."""
LAUNCHER = """
import json, os, sys
actions = [(os.POSIX_SPAWN_OPEN, 1, sys.argv[1] + "/stdout", os.O_WRONLY | os.O_CREAT, 0o600),
           (os.POSIX_SPAWN_OPEN, 2, sys.argv[1] + "/stderr", os.O_WRONLY | os.O_CREAT, 0o600)]
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=actions)
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]))
"""
"""Small itself: `ru_maxrss` of a child is at least the size of the process that started it."""


class Measured:
    """A finished process: exit code, streams, and its peak of resident memory in bytes."""

    def __init__(self, folder, *arguments):
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-S", "-E", "-c", LAUNCHER, folder, sys.executable, *arguments],
            env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=280, check=True,
        )  # fmt: skip
        self.code, self.peak = json.loads(done.stdout)
        self.stdout = (folder / "stdout").read_text()
        self.stderr = (folder / "stderr").read_text()


def averaged(folder, paths, output, *options):
    """Merges within 64 MiB, and checks every number that can be told about its memory."""
    done = Measured(
        folder / "process", "-m", "streamavg", "merge", *map(str, paths), "-o", str(output),
        "--memory-limit", "64MiB", "--json", "--quiet", *options,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    memory = record["memory"]
    assert memory["limit"] == LIMIT
    assert done.peak <= LIMIT, f"{done.peak / MIB:.1f} MiB"
    assert memory["measured"] == pytest.approx(done.peak, rel=0.05)
    assert memory["projected"] + COUNTING_ERROR >= done.peak, (
        f"{memory['projected'] / MIB:.1f} MiB projected, {done.peak / MIB:.1f} MiB measured"
    )
    return record


def sparse(path, variables, prefix=""):
    """A weights or legacy file whose datasets take no room on the disk; all values are 0.

    Args:
        path: the file.
        variables: shape and dtype by the dataset's path.
        prefix: of all paths.

    Returns:
        Where the values of each dataset begin.
    """
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with h5py.File(path, "w") as file:
        for name, (shape, dtype) in variables.items():
            parent, key = f"{prefix}{name}".rsplit("/", 1)
            group = file.require_group(parent)
            stored_as = "V2" if dtype == BFLOAT16 else dtype
            made = h5py.h5d.create(
                group.id, key.encode(), h5py.h5t.py_create(np.dtype(stored_as)),
                h5py.h5s.create_simple(shape), dcpl=creation,
            )  # fmt: skip
            if dtype == BFLOAT16:
                h5py.Dataset(made).attrs["dtype"] = "bfloat16"
            offsets[name] = made.get_offset()
    return offsets


def poke(path, offset, values):
    """Writes a few values into a sparse file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.asarray(values).tobytes())


def peek(path, name, selection):
    with h5py.File(path) as file:
        return file[name][selection]


class TestPeak:
    def test_of_half_a_gigabyte_in_one_variable(self, room):
        shape = (131_072, 1_024)
        paths = [room / f"{i}.weights.h5" for i in range(3)]
        for i, path in enumerate(paths):
            offsets = sparse(path, {"layers/dense/vars/0": (shape, "f4")})
            last = offsets["layers/dense/vars/0"] + 512 * MIB - 8
            poke(path, last, np.array([3 * i, i], "f4"))
        output = room / "out.weights.h5"
        record = averaged(room, paths, output)
        assert record["bytes_read"] == 3 * 512 * MIB
        assert record["memory"]["projected"] <= 1.15 * record["memory"]["measured"]
        assert peek(output, "layers/dense/vars/0", (-1, slice(-2, None))).tolist() == [3, 1]

    def test_of_many_checkpoints_of_many_small_variables(self, room):
        names = {
            f"layers/dense{f'_{i}' if i else ''}/vars/{k}": ((4, 2), "f4")
            for i in range(1_500)
            for k in range(2)
        }
        paths = [room / f"{i:02}.weights.h5" for i in range(64)]
        offset = sparse(paths[0], names)["layers/dense_1499/vars/1"]
        for i, path in enumerate(paths):
            if i:
                shutil.copyfile(paths[0], path)
                poke(path, offset, np.float32(i))
        output = room / "out.weights.h5"
        record = averaged(room, paths, output)
        assert (record["averaged"], len(record["inputs"])) == (3_000, 64)
        assert peek(output, "layers/dense_1499/vars/1", (0, 0)) == 31.5

    def test_of_archives(self, room):
        paths = [room / f"{i}.keras" for i in range(2)]
        weights = room / "model.weights.h5"
        sparse(weights, {f"layers/dense_{i}/vars/0": ((5_000, 2_500), "f4") for i in range(4)})
        for i, path in enumerate(paths):
            with h5py.File(weights, "r+") as file:
                file["layers/dense_3/vars/0"][4_999, 2_499] = i
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
                archive.writestr("config.json", "{}")
                archive.write(weights, "model.weights.h5")
        weights.unlink()
        output = room / "out.keras"
        averaged(room, paths, output)
        with zipfile.ZipFile(output) as archive:
            assert archive.testzip() is None
            info = archive.getinfo("model.weights.h5")
            assert info.file_size >= 200_000_000

    def test_of_legacy_files(self, room):
        paths = [room / f"{i}.h5" for i in range(2)]
        for path in paths:
            layers = {f"dense_{i}": ((5_000, 2_500), "f4") for i in range(4)}
            sparse(path, {f"{n}/{n}/kernel": what for n, what in layers.items()}, "model_weights/")
            with h5py.File(path, "r+") as file:
                file.attrs["model_config"] = '{"class_name": "Sequential", "config": {}}'
                group = file["model_weights"]
                group.attrs["layer_names"] = np.array([name.encode() for name in layers])
                for name in layers:
                    group[name].attrs["weight_names"] = np.array([f"{name}/kernel".encode()])
        record = averaged(room, paths, room / "out.h5")
        assert record["bytes_written"] == 200_000_000

    @pytest.mark.parametrize(
        ("tile", "rows"), [((64, 2_500), 10_000), ((1_000, 250), 1_000)], ids=["rows", "blocks"]
    )
    def test_of_compressed_files(self, room, tile, rows):
        generator = np.random.default_rng(7)
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            with h5py.File(path, "w") as file:
                dataset = file.create_dataset(
                    "layers/dense/vars/0", (rows, 2_500), "f4", chunks=tile,
                    compression="gzip", compression_opts=1,
                )  # fmt: skip
                block = generator.integers(0, 8, (1_000, 2_500)).astype("f4")
                for start in range(0, rows, 1_000):
                    dataset[start : start + 1_000] = block
        output = room / "out.weights.h5"
        averaged(room, paths, output)
        columns = [peek(path, "layers/dense/vars/0", 77).astype("f8") for path in paths]
        found = peek(output, "layers/dense/vars/0", 77)
        assert found.tolist() == ((columns[0] + columns[1]) / 2).tolist()

    @pytest.mark.parametrize("dtype", [BFLOAT16, "f8", "f2"], ids=["bf16", "f64", "f16"])
    def test_of_other_dtypes(self, room, dtype):
        elements = 100_000_000 // np.dtype(dtype).itemsize
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((elements // 1000, 1000), dtype)})
        averaged(room, paths, room / "out.weights.h5")

    @pytest.mark.parametrize("method", ["median", "trimmed-mean"])
    @pytest.mark.parametrize(
        ("count", "dtype"), [(8, "f4"), (32, "f4"), (64, "f4"), (64, "f8"), (64, BFLOAT16)],
        ids=["8", "32", "64", "64 of float64", "64 of bfloat16"],
    )  # fmt: skip
    def test_of_methods_that_keep_a_slab_of_each_checkpoint(self, room, method, count, dtype):
        paths = [room / f"{i:02}.weights.h5" for i in range(count)]
        size = np.dtype(dtype).itemsize
        for i, path in enumerate(paths):
            name = "layers/dense/vars/0"
            offsets = sparse(
                path, {name: ((1_000, 1_000), dtype), "layers/e/vars/0": ((9,), dtype)}
            )
            poke(path, offsets[name] + 999_999 * size, np.array([i], dtype))
        output = room / "out.weights.h5"
        averaged(room, paths, output, "--method", method)
        last = peek(output, "layers/dense/vars/0", (-1, slice(-1, None)))
        last = last.view(BFLOAT16) if dtype == BFLOAT16 else last
        assert last.tolist() == np.array([(count - 1) / 2]).astype(dtype).tolist()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_of_a_merge_into_another_dtype(self, room, dtype):
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((5_000, 5_000), "f4")})
        averaged(room, paths, room / "out.weights.h5", "--dtype", dtype)

    def test_of_a_carried_variable_and_a_kept_optimizer(self, room):
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, {"layers/table/vars/0": ((5_000, 1_000), "i8"),
                          "layers/dense/vars/0": ((1_000, 1_000), "f4"),
                          "optimizer/vars/0": ((5_000, 1_000), "f4")})  # fmt: skip
        record = averaged(room, paths, room / "out.weights.h5", "--optimizer", "reference")
        assert record["carried"] == 2

    def test_of_large_assets_and_configuration(self, room):
        layers = {"layers/dense": [np.zeros(1_000, "f4")]}
        assets = {"vocabulary.txt": b"".join(b"word %d\n" % i for i in range(3_000_000))}
        paths = [write_archive(room / f"{i}.keras", layers, assets=assets) for i in range(2)]
        averaged(room, paths, room / "out.keras")
        assert stored(room / "out.keras")["layers/dense/vars/0"].size == 1_000


class TestRefusals:
    @staticmethod
    def least_limit(folder, *arguments):
        refused = run("merge", *arguments, "--memory-limit", "16MiB", cwd=folder)
        assert refused.returncode == 1
        return refused.stderr.strip().rsplit("--memory-limit ", 1)[1].removesuffix(".")

    def require_kept(self, room, paths, output, *options):
        limit = self.least_limit(room, *paths, "-o", output)
        done = Measured(
            room / "process", "-m", "streamavg", "merge", *map(str, paths), "-o", str(output),
            "--quiet", "--memory-limit", limit, *options,
        )  # fmt: skip
        assert done.code == 0, done.stderr
        allowed = int(limit.removesuffix("MiB"))
        assert done.peak <= allowed * MIB, f"{done.peak / MIB:.1f} of {allowed} MiB"

    def test_name_a_limit_that_then_works_in_a_new_process(self, room):
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((1_000, 1_000), "f8")})
        self.require_kept(room, paths, room / "out.weights.h5", "--json")

    def test_name_a_limit_that_the_record_of_many_variables_keeps(self, room):
        names = {f"layers/dense_{i}/vars/0": ((4, 2), "f4") for i in range(6_000)}
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, names)
        self.require_kept(room, paths, room / "out.weights.h5", "--json")

    def test_name_a_limit_that_large_assets_keep(self, room):
        layers = {"layers/dense": [np.zeros(1_000, "f4")]}
        assets = {"vocabulary.txt": b"word\n" * 5_000_000}
        paths = [write_archive(room / f"{i}.keras", layers, assets=assets) for i in range(2)]
        self.require_kept(room, paths, room / "out.keras")


class TestStart:
    def test_importing_the_package_takes_less_than_60_mb(self, tmp_path):
        done = Measured(tmp_path / "process", "-c", "import streamavg")
        assert done.code == 0
        assert done.peak < 60_000_000

    def test_importing_every_public_name_takes_less_than_60_mb(self, tmp_path):
        done = Measured(tmp_path / "process", "-c", "from streamavg import *")
        assert done.code == 0, done.stderr
        assert done.peak < 60_000_000

    def test_the_launcher_does_not_lend_its_size_to_the_child(self, tmp_path):
        ballast = np.ones(200 * MIB, np.uint8)
        done = Measured(tmp_path / "process", "-c", "pass")
        del ballast
        assert done.peak < 30 * MIB

    def test_help_answers_within_half_a_second(self, tmp_path):
        times = []
        for _ in range(3):
            before = os.times()
            assert run("--help", cwd=tmp_path).returncode == 0
            after = os.times()
            times.append(after.children_user - before.children_user)
        assert min(times) < 0.5
