"""One pass over matched checkpoints: of everything, or of some runs."""

import threading
from contextlib import closing, contextmanager

import numpy as np
import pytest

from streamavg import NonFiniteValuesError, OptionError, measuring
from streamavg.checkpoint import Run
from streamavg.distances import Sums
from streamavg.errors import MemoryLimitError
from streamavg.formats import open_checkpoint
from streamavg.matching import match
from streamavg.measuring import Allowance, averaged_by_layer, measure, plan_measuring
from tests.builders import write_weights

MIB = 1024**2
SIZES = {"layers/dense": [(40, 30), (30,)], "layers/dense_1": [(5_000,)]}


def write(folder, count, dtype="f4"):
    generator = np.random.default_rng(5)
    return [
        write_weights(
            folder / f"{i}.weights.h5",
            {
                layer: [generator.normal(size=shape).astype(dtype) for shape in shapes]
                for layer, shapes in SIZES.items()
            }
            | {"layers/counter": [np.int64(i)], "optimizer": [np.float32(i)]},
        )
        for i in range(count)
    ]


@contextmanager
def matched_checkpoints(paths):
    with open_checkpoint(paths[0]) as reference:
        found = match(reference, (open_checkpoint(path, reference) for path in paths))
        try:
            yield found
        finally:
            found.close()


def allowance(**changed):
    return Allowance(
        **{"job": "the test", "limit": 64 * MIB, "limit_origin": "as given", "reserved": 0,
           "besides": 0, "threads": 1} | changed
    )  # fmt: skip


def planned(matched, **changed):
    reference = matched.reference
    positions = [p for group in averaged_by_layer(reference).values() for p in group]
    return plan_measuring(matched.sources, reference.variables, positions, allowance(**changed))


def vectors(matched, run):
    rows = []
    for source in matched.sources:
        values = np.empty(run.count, matched.reference.variables[run.position].dtype)
        source.values.read_into(run.position, run.start, values)
        rows.append(values.astype("f8"))
    return np.stack(rows)


def assert_sums(sums, values):
    differences = values[:, None] - values[None]
    np.testing.assert_allclose(sums.squared_distances, (differences**2).sum(2), rtol=1e-9)
    np.testing.assert_allclose(sums.squared_norms, (values**2).sum(1), rtol=1e-9)
    assert sums.elements == values.shape[1]


class TestAPass:
    @pytest.mark.parametrize("threads", [1, 3])
    def test_over_everything_sums_up_to_everything(self, tmp_path, threads):
        with matched_checkpoints(write(tmp_path, 4)) as matched:
            plan = planned(matched, threads=threads)
            total, read = Sums.zeros(4), 0
            for measured in measure(plan):
                total.add(measured.sums)
                read += measured.nbytes
            whole = [vectors(matched, Run(p, 0, plan.variables[p].size)) for p in plan.positions]
            assert_sums(total, np.concatenate(whole, axis=1))
            assert read == plan.bytes_read == 4 * 4 * (1_200 + 30 + 5_000)

    def test_over_some_runs_measures_these_in_their_order(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 3)) as matched:
            plan = planned(matched, threads=2)
            first, _, last = plan.positions
            runs = [Run(last, 4_000, 100), Run(first, 7, 50), Run(last, 0, 10)]
            found = list(measure(plan, runs))
            assert [one.run for one in found] == runs
            for one in found:
                assert_sums(one.sums, vectors(matched, one.run))
                assert one.nbytes == 3 * 4 * one.run.count

    def test_has_its_rows_in_the_order_of_the_sources(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 3)) as matched:
            reference = matched.reference
            plan = plan_measuring(matched.sources[::-1], reference.variables, [1], allowance())
            (run,) = plan.runs()
            (found,) = measure(plan)
            assert_sums(found.sums, vectors(matched, run)[::-1])

    def test_that_is_closed_reads_no_more(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 3)) as matched:
            before = threading.active_count()
            plan = planned(matched, threads=3)
            with closing(measure(plan)) as found:
                next(found)
            assert threading.active_count() == before

    def test_refuses_what_is_not_finite_by_its_place(self, tmp_path):
        paths = write(tmp_path, 3)
        spoilt = {
            layer: [np.ones(shape, "f4") for shape in shapes] for layer, shapes in SIZES.items()
        }
        spoilt["layers/dense"][0][3, 4] = np.inf
        write_weights(paths[1], spoilt | {"layers/counter": [np.int64(0)],
                                          "optimizer": [np.float32(0)]})  # fmt: skip
        with matched_checkpoints(paths) as matched:
            with pytest.raises(NonFiniteValuesError) as caught:
                list(measure(planned(matched)))
            assert (caught.value.path, caught.value.index) == (paths[1], (3, 4))


class TestAPlan:
    def test_measures_what_a_merge_averages_by_layer(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 2)) as matched:
            layers = averaged_by_layer(matched.reference)
            names = [matched.reference.variables[p].path for g in layers.values() for p in g]
            assert list(layers) == ["layers/dense", "layers/dense_1"]
            assert names == ["layers/dense/vars/0", "layers/dense/vars/1", "layers/dense_1/vars/0"]

    def test_makes_slabs_as_the_limit_allows_unless_they_must_be_steady(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(measuring, "LEAST_SLAB_ELEMENTS", 64)
        with matched_checkpoints(write(tmp_path, 4)) as matched:
            roomy = planned(matched)
            tight = roomy.memory.projected - 40_000
            assert planned(matched, limit=tight).memory.slab_elements < roomy.memory.slab_elements
            assert planned(matched, is_steady=True).memory == roomy.memory
            with pytest.raises(MemoryLimitError, match="the test needs at least"):
                planned(matched, limit=tight, is_steady=True)

    def test_that_does_not_fit_names_all_remedies(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 4)) as matched:
            with pytest.raises(MemoryLimitError) as caught:
                planned(matched, limit=MIB, threads=2, remedies=("Take less.",))
            text = str(caught.value)
            assert "Fewer --threads need less. Take less. Use --memory-limit" in text

    def test_takes_fewer_threads_rather_than_none(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 4)) as matched:
            one = planned(matched, threads=1).memory.projected
            assert planned(matched, limit=one, threads=None).memory.threads == 1

    def test_of_no_thread_is_refused(self, tmp_path):
        with matched_checkpoints(write(tmp_path, 2)) as matched, pytest.raises(OptionError):
            planned(matched, threads=0)
