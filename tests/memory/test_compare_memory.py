"""The memory promise of `compare`, measured: each case is a process of its own."""

import json
import shutil

import h5py
import numpy as np
import pytest

from tests.builders import BFLOAT16, run, write_weights
from tests.memory.test_memory import COUNTING_ERROR, LIMIT, MIB, Measured, sparse

pytestmark = pytest.mark.slow


def compared(folder, paths, *options, limit="64MiB"):
    """Compares, and checks every number that can be told about its memory."""
    arguments = ["compare", *map(str, paths), "--json", "--quiet", *options]
    if limit is not None:
        arguments += ["--memory-limit", limit]
    done = Measured(folder / "process", "-m", "streamavg", *arguments)
    assert done.code == 0, done.stderr
    document = json.loads(done.stdout)
    memory = document["memory"]
    assert done.peak <= memory["limit"], f"{done.peak / MIB:.1f} MiB"
    assert memory["measured"] == pytest.approx(done.peak, rel=0.05)
    assert memory["projected"] + COUNTING_ERROR >= done.peak, (
        f"{memory['projected'] / MIB:.1f} MiB projected, {done.peak / MIB:.1f} MiB measured"
    )
    assert memory["limit"] == LIMIT or limit is None
    return document


def walk(folder, count, layers, dtype="f4", **storage):
    """Checkpoints of one run: each a step further, the first ones and some of the last close."""
    generator = np.random.default_rng(1)
    values = {layer: generator.normal(size=size) for layer, size in layers.items()}
    paths = []
    for i in range(count):
        for layer, size in layers.items():
            values[layer] += generator.normal(size=size) * (1e-6 if i > count - 9 else 0.05)
        arrays = {layer: [array.astype(dtype)] for layer, array in values.items()}
        paths.append(write_weights(folder / f"{i:03}.weights.h5", arrays, **storage))
    return paths


class TestPeak:
    def test_of_64_checkpoints_with_a_large_variable(self, room):
        document = compared(room, walk(room, 64, {"layers/dense": 700_000, "layers/bias": 1_000}))
        assert len(document["whole"]["norms"]) == 64
        assert document["bytes_read"] == 64 * 4 * 701_000

    @pytest.mark.parametrize("dtype", ["f2", BFLOAT16, "f8"], ids=["f16", "bf16", "f64"])
    def test_of_64_checkpoints_of_other_dtypes(self, room, dtype):
        compared(room, walk(room, 64, {"layers/dense": 200_000}, dtype))

    def test_of_half_a_gigabyte_in_one_variable(self, room):
        paths = [room / f"{i}.weights.h5" for i in range(3)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((131_072, 1_024), "f4")})
        assert compared(room, paths)["identical"] == [[str(path) for path in paths]]

    def test_of_64_checkpoints_of_150_layers_with_all_their_matrices(self, room):
        layers = {f"layers/dense_{k}": 300 for k in range(150)}
        document = compared(room, walk(room, 64, layers))
        assert len(document["layers"][149]["matrices"]["cosines"]) == 64

    def test_of_64_checkpoints_of_1500_layers_without_them(self, room):
        names = {f"layers/dense_{i}/vars/{k}": ((4, 2), "f4") for i in range(1_500) for k in (0, 1)}
        paths = [room / f"{i:02}.weights.h5" for i in range(64)]
        sparse(paths[0], names)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)
        done = Measured(
            room / "process", "-m", "streamavg", "compare", *map(str, paths), "--quiet",
            "--memory-limit", "64MiB",
        )  # fmt: skip
        assert done.code == 0, done.stderr
        assert done.peak <= LIMIT, f"{done.peak / MIB:.1f} MiB"
        assert done.stdout.startswith("all 64 checkpoints hold the same values")

    def test_of_several_threads(self, room):
        paths = walk(room, 8, {"layers/dense": 1_500_000})
        assert compared(room, paths, "--threads", "4")["threads"] == 4

    def test_of_compressed_files(self, room):
        storage = {"chunks": (50_000,), "compression": "gzip", "compression_opts": 1}
        compared(room, walk(room, 3, {"layers/dense": 1_000_000}, **storage))

    def test_of_300_checkpoints_in_the_default_limit(self, room):
        compared(room, walk(room, 300, {"layers/dense": 3_000}), limit=None)

    @pytest.mark.parametrize("suffix", ["png", "svg"])
    @pytest.mark.parametrize(("count", "layers"), [(3, 4), (64, 200)])
    def test_of_a_picture(self, room, suffix, count, layers):
        paths = walk(room, count, {f"layers/dense_{k}": 50 for k in range(layers)})
        picture = room / f"x.{suffix}"
        compared(room, paths, "--plot", str(picture), limit=None)
        assert picture.stat().st_size


class TestRefusals:
    @pytest.mark.parametrize("count", [3, 64])
    def test_name_a_limit_that_then_works_in_a_new_process(self, room, count):
        paths = walk(room, count, {f"layers/dense_{k}": 20_000 for k in range(20)})
        refused = run("compare", *paths, "--memory-limit", "16MiB", "--json", cwd=room)
        assert refused.returncode == 1
        limit = refused.stderr.strip().rsplit("--memory-limit ", 1)[1].removesuffix(".")
        done = Measured(
            room / "process", "-m", "streamavg", "compare", *map(str, paths), "--quiet", "--json",
            "--memory-limit", limit,
        )  # fmt: skip
        assert done.code == 0, done.stderr
        allowed = int(limit.removesuffix("MiB"))
        assert done.peak <= allowed * MIB, f"{done.peak / MIB:.1f} of {allowed} MiB"


def test_one_file_more_costs_memory_for_its_numbers_alone(room):
    """Neither its values nor its description stay."""
    layers = {"layers/dense": 200_000}
    peaks = []
    for count in (4, 16):
        folder = room / str(count)
        folder.mkdir()
        peaks.append(compared(folder, walk(folder, count, layers))["memory"]["measured"])
    assert peaks[1] - peaks[0] < 8 * MIB


def test_the_cases_are_what_they_say(room):
    """The last checkpoints of a walk are close, and still different."""
    first, *_, previous, last = walk(room, 12, {"layers/dense": 100})
    values = []
    for path in (first, previous, last):
        with h5py.File(path) as file:
            values.append(file["layers/dense/vars/0"][:])
    assert 0 < np.abs(values[2] - values[1]).max() < 1e-4
    assert np.abs(values[2] - values[0]).max() > 0.1
