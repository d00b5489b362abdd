"""Distances on a sample of values, against those of all values."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg import compare, memory, sampling
from streamavg.checkpoint import Run
from streamavg.formats import open_checkpoint
from streamavg.matching import match
from streamavg.measuring import Allowance, averaged_by_layer, plan_measuring
from streamavg.sampling import measure_sample, sample_bytes, sample_runs
from tests.builders import DIGITS, write_weights

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]


@pytest.fixture
def planned(monkeypatch):
    """Plans of comparisons of files, in a sample of some size."""
    opened = []

    def make(paths, elements=None):
        if elements is not None:
            monkeypatch.setattr(sampling, "SAMPLE_ELEMENTS", elements)
        reference = open_checkpoint(paths[0])
        matched = match(reference, map(open_checkpoint, paths))
        opened.append(matched)
        positions = [p for group in averaged_by_layer(reference).values() for p in group]
        limit = memory.resident_bytes() + 64 * 1024**2
        allowance = Allowance("the test", limit, "as given", memory.resident_bytes(), 0, 1)
        return plan_measuring(matched.sources, reference.variables, positions, allowance)

    yield make
    for matched in opened:
        matched.close()


def walk(folder, count=3, size=200_000):
    """Checkpoints of a large variable, each a step further."""
    generator = np.random.default_rng(3)
    values = generator.normal(size=size)
    paths = []
    for i in range(count):
        values = values + 0.1 * generator.normal(size=size)
        layers = {"layers/dense": [values.astype("f4")], "layers/small": [values[:7].astype("f4")]}
        paths.append(write_weights(folder / f"{i}.weights.h5", layers))
    return paths


class TestDistances:
    def test_of_small_checkpoints_are_those_of_a_comparison(self, planned):
        measured = measure_sample(planned(THREE))
        np.testing.assert_allclose(measured.relative, compare(THREE).relative_distances, rtol=1e-12)
        assert measured.is_whole
        assert measured.elements == 478

    def test_of_a_sample_are_close_to_those_of_all_values(self, planned, tmp_path):
        paths = walk(tmp_path)
        measured = measure_sample(planned(paths, elements=20_000))
        assert 20_000 <= measured.sampled < 22_000
        assert not measured.is_whole
        assert measured.elements == 200_007
        exact = compare(paths).relative_distances
        np.testing.assert_allclose(measured.relative, exact, rtol=0.03)

    def test_weigh_each_variable_by_its_size(self, planned, tmp_path):
        """A variable of which a tenth was read counts as all of it."""
        far, near = np.zeros(50_000, "f4"), np.ones(7, "f4")
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/large": [far + i + 1], "layers/small": [near]},
            )
            for i in range(2)
        ]
        measured = measure_sample(planned(paths, elements=5_000))
        scale = np.sqrt((50_000 * 1 + 50_000 * 4) / 2)
        assert measured.relative[0, 1] == pytest.approx(np.sqrt(50_000) / scale)

    def test_leave_out_layers_that_are_the_same_in_all(self, planned, tmp_path):
        paths = []
        for i in range(2):
            head = np.full(10, 1.0 + i, "f4")
            layers = {"layers/backbone": [np.full(1_000, 9.0, "f4")], "layers/head": [head]}
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", layers))
        measured = measure_sample(planned(paths))
        assert measured.relative[0, 1] == pytest.approx(1 / np.sqrt((1 + 4) / 2))

    def test_tell_the_layer_that_differs_most(self, planned):
        measured = measure_sample(planned(THREE))
        layers = [part.matrices.relative_distances for part in compare(THREE).layers]
        np.testing.assert_allclose(measured.in_layers, np.max(layers, axis=0), rtol=1e-12)

    def test_of_copies_are_zero(self, planned, tmp_path):
        copy = tmp_path / "copy.keras"
        copy.write_bytes(THREE[0].read_bytes())
        measured = measure_sample(planned([THREE[0], copy, THREE[1]]))
        assert measured.relative[0, 1] == measured.in_layers[0, 1] == 0
        assert measured.relative[0, 2] > 0

    def test_of_copies_alone_are_zero(self, planned, tmp_path):
        copy = tmp_path / "copy.keras"
        copy.write_bytes(THREE[0].read_bytes())
        assert not measure_sample(planned([THREE[0], copy])).relative.any()


class TestTheSample:
    def test_is_spread_over_a_variable_from_its_first_to_its_last_value(self, planned, tmp_path):
        plan = planned(walk(tmp_path), elements=20_000)
        runs = [run for run in sample_runs(plan) if plan.variables[run.position].size > 7]
        assert runs[0].start == 0
        assert runs[-1].start + runs[-1].count == 200_000
        gaps = np.diff([run.start for run in runs])
        assert gaps.max() - gaps.min() <= 1

    def test_has_values_of_every_variable(self, planned, tmp_path):
        plan = planned(walk(tmp_path), elements=100)
        assert {run.position for run in sample_runs(plan)} == set(plan.positions)

    def test_says_how_many_bytes_it_is(self, planned, tmp_path):
        plan = planned(walk(tmp_path), elements=20_000)
        read = []
        measured = measure_sample(plan, read.append)
        assert sum(read) == sample_bytes(plan) == 3 * 4 * measured.sampled

    @given(size=st.integers(1, 5_000), share=st.integers(1, 5_000), length=st.integers(1, 600))
    def test_reads_nothing_twice_and_nothing_beyond_the_end(self, size, share, length):
        runs = list(sampling._spread(0, size, min(share, size), length))
        assert all(0 < run.count <= length for run in runs)
        ends = [0, *(run.start + run.count for run in runs)]
        assert all(run.start >= end for run, end in zip(runs, ends, strict=False))
        assert ends[-1] <= size
        total = sum(run.count for run in runs)
        assert min(share, size) <= total <= min(size, share + length + len(runs))

    def test_fits_the_slabs_of_a_small_memory(self, planned, tmp_path):
        plan = planned(walk(tmp_path), elements=20_000)
        plan = dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, slab_elements=600))
        assert max(run.count for run in sample_runs(plan)) <= 600
        assert next(sample_runs(plan)) == Run(plan.positions[0], 0, next(sample_runs(plan)).count)
