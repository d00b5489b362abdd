"""What a method must know of the values before it combines them: two passes over the files."""

import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from streamavg import ChangedFileError, NonFiniteValuesError, OptionError, merge, plan
from streamavg.methods import geometric_median
from tests.builders import BFLOAT16, DIGITS, write_weights
from tests.oracle import read_arrays

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]


def write(path, *arrays):
    return write_weights(path, {"layers/dense": list(arrays)})


def vector(path, record):
    arrays = read_arrays(path)
    names = [v.path for v in record.variables if v.action == "average"]
    return np.concatenate([arrays[name].astype("f8").reshape(-1) for name in names])


def weiszfeld(vectors, weights=None, iterations=3_000):
    """The oracle: Weiszfeld's iteration on whole vectors in memory."""
    weights = np.ones(len(vectors)) if weights is None else np.asarray(weights)
    z = weights @ vectors / weights.sum()
    for _ in range(iterations):
        shares = weights / np.maximum(1e-12, np.linalg.norm(vectors - z, axis=1))
        z = shares @ vectors / shares.sum()
    return z


def clients(folder, count, size=3_000, **spoilt):
    """Updates of federated clients: one direction, noise of their own."""
    generator = np.random.default_rng(8)
    update = generator.normal(size=size)
    paths = []
    for i in range(count):
        values = (update + 0.3 * generator.normal(size=size)) * spoilt.get(f"client_{i}", 1)
        paths.append(
            write(folder / f"client_{i}.weights.h5", values[:-10].astype("f4"), values[-10:])
        )
    return paths


class TestGeometricMedian:
    def test_is_that_of_the_whole_vectors(self, tmp_path):
        paths = clients(tmp_path, 6)
        record = merge(paths, tmp_path / "out.weights.h5", method="geometric-median")
        vectors = np.stack([vector(path, record) for path in paths])
        found = vector(tmp_path / "out.weights.h5", record)
        np.testing.assert_allclose(found, weiszfeld(vectors), atol=1e-6)

    def test_is_the_combination_with_the_coefficients_of_the_record(self, tmp_path):
        record = merge(THREE, tmp_path / "out.keras", method="geometric-median")
        shares = [entry.coefficient for entry in record.inputs]
        expected = sum(s * vector(p, record) for s, p in zip(shares, THREE, strict=True))
        found = vector(tmp_path / "out.keras", record)
        np.testing.assert_array_equal(found.astype("f4"), expected.astype("f4"))

    @pytest.mark.parametrize("factor", [1e3, -1e6])
    def test_gives_a_spoilt_client_hardly_any_influence(self, tmp_path, factor):
        honest, spoilt = tmp_path / "honest", tmp_path / "spoilt"
        for folder, options in ((honest, {}), (spoilt, {"client_2": factor})):
            folder.mkdir()
            record = merge(clients(folder, 8, **options), folder / "out.weights.h5",
                           method="geometric-median")  # fmt: skip
        assert record.inputs[2].coefficient < 2 / abs(factor)
        pair = [vector(folder / "out.weights.h5", record) for folder in (honest, spoilt)]
        assert np.linalg.norm(pair[1] - pair[0]) < 0.1 * np.linalg.norm(pair[0])

    def test_has_weights(self, tmp_path):
        paths = clients(tmp_path, 4)
        weights = [0.1, 0.2, 0.3, 0.4]
        record = merge(paths, tmp_path / "o.weights.h5", method="geometric-median", weights=weights)
        vectors = np.stack([vector(path, record) for path in paths])
        found = vector(tmp_path / "o.weights.h5", record)
        np.testing.assert_allclose(found, weiszfeld(vectors, weights), atol=1e-6)
        assert "distances count with the weights given: 0.1, 0.2, 0.3 and 1 more." in record.notes

    def test_of_two_is_their_mean_and_says_so(self, tmp_path):
        record = plan(THREE[:2], tmp_path / "out.keras", method="geometric-median")
        assert [entry.coefficient for entry in record.inputs] == [0.5, 0.5]
        assert any(note.endswith("their mean is taken.") for note in record.notes)

    def test_that_is_a_checkpoint_itself_says_so(self, tmp_path):
        values = np.array([0, 1, 5])[:, None] * np.ones(20)
        paths = [write(tmp_path / f"{i}.weights.h5", v) for i, v in enumerate(values)]
        record = plan(paths, tmp_path / "out.weights.h5", method="geometric-median")
        assert [entry.coefficient for entry in record.inputs] == [0, 1, 0]
        assert f"{paths[1]} itself is the geometric median: it alone counts." in record.notes

    def test_that_was_not_reached_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(geometric_median, "MOST_ITERATIONS", 1)
        record = plan(THREE, tmp_path / "out.keras", method="geometric-median")
        assert record.selection.iterations == 1
        assert any("was not reached after" in note for note in record.notes)

    def test_is_planned_as_it_is_merged(self, tmp_path):
        options = {"method": "geometric-median", "best": 2, "scores": {THREE[0]: 1.0,
                   THREE[1]: 2.0, THREE[2]: 3.0}, "maximize": True, "softmax": 2.0}  # fmt: skip
        planned = plan(THREE, tmp_path / "out.keras", **options)
        done = merge(THREE, tmp_path / "out.keras", **options)
        assert planned.inputs == done.inputs
        assert planned.selection == done.selection
        assert planned.selection.coefficients == "geometric-median"

    def test_reads_values_twice_and_says_so(self, tmp_path):
        mean = plan(THREE, tmp_path / "out.keras")
        record = plan(THREE, tmp_path / "out.keras", method="geometric-median")
        averaged = sum(4 * math.prod(v.shape) for v in mean.variables if v.action == "average")
        assert mean.bytes_measured == 0
        assert record.bytes_measured == 3 * averaged
        assert record.bytes_read == mean.bytes_read + record.bytes_measured

    def test_of_a_plan_tells_its_progress(self, tmp_path):
        counts, plans = [], []
        plan(THREE, tmp_path / "out.keras", method="geometric-median", on_plan=plans.append,
             on_progress=counts.append)  # fmt: skip
        assert sum(counts) == plans[0].bytes_measured > 0

    def test_refuses_a_bad_output_before_it_reads(self, tmp_path):
        counts = []
        with pytest.raises(OptionError):
            merge(THREE, tmp_path / "x.npz", method="geometric-median", on_progress=counts.append)
        assert counts == []

    def test_names_a_limit_that_is_too_small(self, tmp_path):
        with pytest.raises(OptionError, match="--memory-limit"):
            plan(THREE, tmp_path / "o.keras", method="geometric-median", memory_limit="1MiB")

    @pytest.mark.parametrize("method", ["geometric-median", "slerp"])
    def test_that_is_interrupted_leaves_no_thread_and_no_output(self, tmp_path, method):
        paths = clients(tmp_path, 2, size=600_000)

        def interrupt(count):
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            merge(paths, tmp_path / "out.weights.h5", method=method, threads=3,
                  on_progress=interrupt)  # fmt: skip
        assert threading.active_count() == before
        assert sorted(tmp_path.iterdir()) == paths

    def test_of_a_file_that_changes_between_the_passes_is_refused(self, tmp_path):
        paths = clients(tmp_path, 3)

        def change(count):
            os.utime(paths[1], (1, 1))

        with pytest.raises(ChangedFileError, match="client_1"):
            merge(paths, tmp_path / "out.weights.h5", method="geometric-median",
                  on_progress=change)  # fmt: skip
        assert not (tmp_path / "out.weights.h5").exists()

    def test_refuses_what_is_not_finite_by_all_its_names(self, tmp_path):
        paths = clients(tmp_path, 4, client_1=np.nan, client_3=np.inf)
        with pytest.raises(NonFiniteValuesError, match="client_1") as caught:
            merge(paths, tmp_path / "out.weights.h5", method="geometric-median")
        assert "client_3" in str(caught.value)


def slerp(a, b, t):
    """The textbook formula on two vectors in memory."""
    angle = math.acos(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


class TestSlerp:
    @pytest.mark.parametrize("weights", [None, [0.75, 0.25], [0.1, 0.9]])
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [("f2", 1e-3), (BFLOAT16, 8e-3), ("f4", 1e-7), ("f8", 1e-10)],
        ids=["f16", "bf16", "f32", "f64"],
    )  # fmt: skip
    def test_interpolates_each_variable_alone(self, tmp_path, dtype, tolerance, weights):
        generator = np.random.default_rng(2)
        pair = [
            [generator.normal(size=size).astype(dtype) for size in (7, 50, 400, 3)]
            for _ in range(2)
        ]
        paths = [write(tmp_path / f"{i}.weights.h5", *arrays) for i, arrays in enumerate(pair)]
        record = merge(paths, tmp_path / "out.weights.h5", method="slerp", weights=weights)
        out = read_arrays(tmp_path / "out.weights.h5")
        for i, variable in enumerate(record.variables):
            first, second = (arrays[i].astype("f8") for arrays in pair)
            expected = slerp(first, second, 0.5 if weights is None else weights[1])
            found = out[variable.path].astype("f8")
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
            assert variable.reason.endswith("degrees apart")
            assert sum(variable.factors) > 1

    @pytest.mark.parametrize("weights", [[1, 0], [0, 1]])
    def test_at_its_ends_is_the_checkpoint(self, tmp_path, weights):
        record = merge(THREE[:2], tmp_path / "out.keras", method="slerp", weights=weights)
        end = THREE[weights.index(1)]
        found, expected = vector(tmp_path / "out.keras", record), vector(end, record)
        np.testing.assert_array_equal(found, expected)

    def test_takes_weights_that_are_normalized(self, tmp_path):
        record = plan(THREE[:2], tmp_path / "o.keras", method="slerp", weights=[3, 1],
                      normalize=True)  # fmt: skip
        assert [entry.coefficient for entry in record.inputs] == [0.75, 0.25]

    def test_of_real_checkpoints_keeps_the_length_better_than_the_mean(self, tmp_path):
        record = merge(THREE[::2], tmp_path / "slerp.keras", method="slerp")
        merge(THREE[::2], tmp_path / "mean.keras")
        kernel = "layers/conv2d/vars/0"
        ends = [np.linalg.norm(read_arrays(path)[kernel]) for path in THREE[::2]]
        lengths = [
            np.linalg.norm(read_arrays(tmp_path / f"{name}.keras")[kernel])
            for name in ("mean", "slerp")
        ]
        assert lengths[0] < lengths[1] < max(ends)
        assert record.variables[0].factors is not None

    @pytest.mark.parametrize("count", [3, 4])
    def test_of_more_than_two_is_refused(self, tmp_path, count):
        paths = [Path(shutil.copy(THREE[0], tmp_path / f"{i}.keras")) for i in range(count)]
        with pytest.raises(OptionError, match=f"two checkpoints, {count} given.*--last 2"):
            plan(paths, tmp_path / "out.keras", method="slerp")

    def test_of_two_that_are_picked_is_not(self, tmp_path):
        assert len(plan(THREE, tmp_path / "o.keras", method="slerp", last=2).inputs) == 2

    def test_of_opposite_and_of_zero_vectors_is_linear_and_says_so(self, tmp_path):
        ones, zeros = np.ones(9, "f4"), np.zeros(9, "f4")
        paths = [
            write(tmp_path / "a.weights.h5", ones, zeros, ones),
            write(tmp_path / "b.weights.h5", -ones, ones, ones),
        ]
        record = merge(paths, tmp_path / "o.weights.h5", method="slerp", weights=[0.25, 0.75])
        out = read_arrays(tmp_path / "o.weights.h5")
        assert [v.reason for v in record.variables] == [
            "linear: opposite directions", "linear: a zero vector", "0.00 degrees apart",
        ]  # fmt: skip
        assert out["layers/dense/vars/0"].tolist() == [-0.5] * 9
        assert out["layers/dense/vars/1"].tolist() == [0.75] * 9
        assert out["layers/dense/vars/2"].tolist() == [1.0] * 9
        assert any("'layers/dense/vars/0' point in opposite" in note for note in record.notes)

    def test_that_does_not_fit_its_dtype_is_refused(self, tmp_path):
        a, b = np.array([6e4, 6e4], "f2"), np.array([-6e4, 5.9e4], "f2")
        paths = [write(tmp_path / f"{i}.weights.h5", v) for i, v in enumerate((a, b))]
        with pytest.raises(OptionError, match=r"does not fit float16\. Use a wider --dtype"):
            merge(paths, tmp_path / "out.weights.h5", method="slerp")

    def test_of_many_small_variables_is_right_for_each(self, tmp_path):
        generator = np.random.default_rng(4)
        pair = [[generator.normal(size=6).astype("f4") for _ in range(200)] for _ in range(2)]
        paths = [write(tmp_path / f"{i}.weights.h5", *arrays) for i, arrays in enumerate(pair)]
        merge(paths, tmp_path / "out.weights.h5", method="slerp", threads=2)
        out = read_arrays(tmp_path / "out.weights.h5")
        for i in range(200):
            expected = slerp(*(arrays[i].astype("f8") for arrays in pair), 0.5)
            found = out[f"layers/dense/vars/{i}"]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
