"""The memory promise of the methods that read the files twice, and of pooled statistics."""

import shutil

import numpy as np
import pytest

from tests.builders import BFLOAT16, run, write_weights
from tests.memory.test_memory import averaged, sparse

pytestmark = pytest.mark.slow


def clients(folder, count, layers, dtype="f4"):
    generator = np.random.default_rng(1)
    common = {layer: generator.normal(size=size) for layer, size in layers.items()}
    return [
        write_weights(
            folder / f"{i:03}.weights.h5",
            {
                layer: [(values + generator.normal(size=values.size)).astype(dtype)]
                for layer, values in common.items()
            },
        )
        for i in range(count)
    ]


class TestPeakOfTheGeometricMedian:
    @pytest.mark.parametrize("dtype", ["f2", BFLOAT16, "f4", "f8"], ids=["f2", "bf16", "f4", "f8"])
    def test_of_64_checkpoints(self, room, dtype):
        layers = {"layers/dense": 200_000, "layers/dense_1": 1_000}
        record = averaged(room, clients(room, 64, layers, dtype), room / "out.weights.h5",
                          "--method", "geometric-median")  # fmt: skip
        assert record["bytes_read"] == 2 * record["bytes_measured"]
        assert len({entry["coefficient"] for entry in record["inputs"]}) == 64

    def test_of_64_checkpoints_of_1500_layers(self, room):
        names = {f"layers/dense_{i}/vars/{k}": ((4, 2), "f4") for i in range(1_500) for k in (0, 1)}
        paths = [room / f"{i:02}.weights.h5" for i in range(64)]
        sparse(paths[0], names)
        for path in paths[1:]:
            shutil.copyfile(paths[0], path)
        averaged(room, paths, room / "out.weights.h5", "--method", "geometric-median")

    def test_of_several_threads(self, room):
        paths = clients(room, 8, {"layers/dense": 1_500_000})
        record = averaged(room, paths, room / "out.weights.h5", "--method", "geometric-median",
                          "--threads", "4")  # fmt: skip
        assert record["threads"] == 4


class TestPeakOfSlerp:
    def test_of_half_a_gigabyte_in_one_variable(self, room):
        paths = [room / f"{i}.weights.h5" for i in range(2)]
        for path in paths:
            sparse(path, {"layers/dense/vars/0": ((131_072, 1_024), "f4")})
        averaged(room, paths, room / "out.weights.h5", "--method", "slerp")

    @pytest.mark.parametrize("dtype", ["f2", "f8"])
    def test_of_other_dtypes(self, room, dtype):
        paths = clients(room, 2, {"layers/dense": 2_000_000, "layers/dense_1": 10}, dtype)
        averaged(room, paths, room / "out.weights.h5", "--method", "slerp")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_peak_of_pooled_statistics(room, dtype):
    names = {
        f"layers/batch_normalization_{i}/vars/{k}": ((size,), dtype)
        for i, size in enumerate([2_000_000, 4_096, 64, 16])
        for k in range(4)
    }
    paths = [room / f"{i:02}.weights.h5" for i in range(5)]
    for path in paths:
        sparse(path, names)
    averaged(room, paths, room / "out.weights.h5", "--batchnorm", "pooled")


def test_refusals_name_limits_that_work_first_for_one_pass_and_then_for_the_other(room):
    paths = clients(room, 64, {f"layers/dense_{k}": 20_000 for k in range(3)})
    merge = ("merge", *paths, "--method", "geometric-median", "--memory-limit")
    refused = run(*merge, "20MiB", cwd=room)
    assert "the merge needs at least" in refused.stderr
    refused = run(*merge, named_limit(refused), cwd=room)
    assert "--method geometric-median needs at least" in refused.stderr
    done = run(*merge, named_limit(refused), cwd=room)
    assert done.returncode == 0, done.stderr


def named_limit(refused):
    assert refused.returncode == 1
    return refused.stderr.strip().rsplit("--memory-limit ", 1)[1].split(".")[0]
