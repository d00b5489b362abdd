"""The memory promise of `check`, measured: each case is a process of its own."""

import json
import shutil

import numpy as np
import pytest

from tests.builders import BFLOAT16, write_weights
from tests.memory.test_compare_memory import walk
from tests.memory.test_memory import COUNTING_ERROR, LIMIT, MIB, Measured, sparse

pytestmark = pytest.mark.slow


def checked(folder, paths, *options, code=0):
    """Checks within 64 MiB, and every number that can be told about its memory."""
    done = Measured(
        folder / "process", "-m", "streamavg", "check", *map(str, paths), "--json", "--quiet",
        "--memory-limit", "64MiB", *options,
    )  # fmt: skip
    assert done.code == code, done.stderr
    document = json.loads(done.stdout)
    memory = document["memory"]
    assert done.peak <= LIMIT, f"{done.peak / MIB:.1f} MiB"
    assert memory["projected"] + COUNTING_ERROR >= done.peak, (
        f"{memory['projected'] / MIB:.1f} MiB projected, {done.peak / MIB:.1f} MiB measured"
    )
    return document


class TestPeak:
    @pytest.mark.parametrize("options", [(), ("--sample",)], ids=["all", "sample"])
    def test_of_64_checkpoints_with_a_large_variable(self, room, options):
        paths = walk(room, 64, {"layers/dense": 1_100_000, "layers/bias": 1_000})
        document = checked(room, paths, *options)
        assert document["values"]["scope"] == ("sample" if options else "all")
        assert document["values"]["sampled"] < document["values"]["elements"]

    @pytest.mark.parametrize("dtype", ["f2", BFLOAT16, "f8"], ids=["f16", "bf16", "f64"])
    def test_of_64_checkpoints_of_other_dtypes(self, room, dtype):
        checked(room, walk(room, 64, {"layers/dense": 200_000}, dtype))

    def test_of_half_a_gigabyte_of_copies(self, room):
        paths = [room / f"{i}.weights.h5" for i in range(3)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((131_072, 1_024), "f4")})
        (finding,) = [w for w in checked(room, paths)["warnings"] if w["kind"] == "same-values"]
        assert finding["paths"] == [str(path) for path in paths]

    def test_of_64_checkpoints_of_1500_layers(self, room):
        names = {f"layers/dense_{i}/vars/{k}": ((4, 2), "f4") for i in range(1_500) for k in (0, 1)}
        paths = [room / f"{i:02}.weights.h5" for i in range(64)]
        sparse(paths[0], names)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)
        checked(room, paths)

    def test_of_64_checkpoints_that_differ_in_every_variable(self, room):
        paths = [room / f"{i:02}.weights.h5" for i in range(64)]
        for path, units in zip(paths[:2], (4, 5), strict=True):
            names = {
                f"layers/dense_{i}/vars/{k}": ((units, 2), "f4")
                for i in range(1_500)
                for k in (0, 1)
            }
            sparse(path, names)
        for path in paths[2:]:
            shutil.copyfile(paths[1], path)
        document = checked(room, paths, code=1)
        assert len(document["refusals"]) > 63 * 200

    def test_of_several_threads(self, room):
        checked(room, walk(room, 8, {"layers/dense": 1_500_000}), "--threads", "4")

    def test_of_compressed_files(self, room):
        storage = {"chunks": (50_000,), "compression": "gzip", "compression_opts": 1}
        checked(room, walk(room, 3, {"layers/dense": 1_000_000}, **storage))

    def test_of_checkpoints_of_which_many_are_refused(self, room):
        paths = walk(room, 8, {"layers/dense": 300_000})
        bad = np.ones(300_000, "f4")
        bad[-1] = np.nan
        for i in range(8):
            path = room / f"bad-{i}.weights.h5"
            paths.append(write_weights(path, {"layers/dense": [bad]}))
            (room / f"cut-{i}.weights.h5").write_bytes(path.read_bytes()[:100_000])
            paths.append(room / f"cut-{i}.weights.h5")
        document = checked(room, paths, code=1)
        assert len(document["refusals"]) == 16
