"""Whatever the checkpoints are, the merged file holds their mean, to the bit."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamavg
from streamavg import planning
from tests.checkpoint_files import Storage, write_keras, write_legacy, write_weights
from tests.contracts.reading import bits
from tests.oracle import BFLOAT16, exact_mean, naive_mean, read_arrays, rounded

DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
STORAGE = st.builds(Storage, st.booleans(), st.booleans(), st.booleans())
SLABS = st.sampled_from([1, 2, 3, 5, 16, 1000])
WRITERS = {
    ".weights.h5": lambda path, arrays, storage: write_weights(path, arrays, storage),
    ".keras": lambda path, arrays, storage: write_keras(path, arrays, storage),
    ".h5": lambda path, arrays, storage: write_legacy(path, {"dense": arrays}, storage),
}
merges = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@contextmanager
def folder():
    made = Path(tempfile.mkdtemp())
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextmanager
def slabs_of_at_most(elements):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MOST_SLAB_ELEMENTS", elements)
        patch.setattr(planning, "LEAST_SLAB_ELEMENTS", elements)
        yield


@st.composite
def checkpoints(draw):
    """Arrays of two to five checkpoints of one model, of values whose sums are exact."""
    specs = draw(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [
        {
            f"layers/dense/vars/{number}": np.asarray(
                generator.integers(-128, 129, shape) / 64.0
            ).astype(dtype)
            for number, (shape, dtype) in enumerate(specs)
        }
        for _ in range(draw(st.integers(2, 5)))
    ]


def write_all(where, models, suffix=".weights.h5", storages=None):
    storages = storages or [Storage()] * len(models)
    return [
        WRITERS[suffix](where / f"{number}{suffix}", arrays, storage)
        for number, (arrays, storage) in enumerate(zip(models, storages, strict=True))
    ]


def merged(paths, output, slab=1000, **options):
    with slabs_of_at_most(slab):
        streamavg.merge(paths, output, force=True, **options)
    return {path: bits(values) for path, values in read_arrays(output).items()}


@merges
@given(checkpoints(), st.data())
def test_the_output_is_the_mean_of_the_inputs(models, data):
    suffix = data.draw(st.sampled_from(sorted(WRITERS)))
    storages = data.draw(st.lists(STORAGE, min_size=len(models), max_size=len(models)))
    slab = data.draw(SLABS)
    with folder() as where:
        paths = write_all(where, models, suffix, storages)
        found = merged(paths, where / f"out{suffix}", slab)
        assert found == {path: bits(values) for path, values in naive_mean(paths).items()}


@merges
@given(checkpoints(), st.data())
def test_the_output_is_the_weighted_mean_of_the_inputs(models, data):
    count = len(models)
    weights = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    weights[0] += 1
    with folder() as where:
        paths = write_all(where, models)
        found = merged(
            paths, where / "out.weights.h5", data.draw(SLABS), weights=weights, normalize=True
        )
    for path in models[0]:
        exact = exact_mean([arrays[path] for arrays in models], weights)
        assert found[path] == bits(rounded(exact, models[0][path].dtype)), path


@settings(merges, max_examples=15)
@given(checkpoints(), st.randoms(use_true_random=False), SLABS)
def test_neither_slabs_nor_order_nor_container_nor_storage_change_a_bit(models, random, slab):
    weights = [0.1 + random.random() for _ in models]
    order = list(range(len(models)))
    random.shuffle(order)
    with folder() as where:
        paths = write_all(where, models)
        options = {"normalize": True, "dtype": "float64"}
        plain = merged(paths, where / "out.weights.h5", weights=weights, **options)
        assert merged(paths, where / "out.weights.h5", slab, weights=weights, **options) == plain
        shuffled = [paths[index] for index in order]
        options["weights"] = [weights[index] for index in order]
        assert merged(shuffled, where / "out.weights.h5", **options) == plain
        archives = write_all(where, [models[i] for i in order], ".keras")
        assert merged(archives, where / "out.keras", slab, **options) == plain
        stored = [Storage(True, True, True)] * len(models)
        rewritten = write_all(where, [models[i] for i in order], ".weights.h5", stored)
        assert merged(rewritten, where / "out.weights.h5", **options) == plain


@merges
@given(checkpoints(), st.integers(0, 3))
def test_a_value_that_is_not_finite_is_found_at_its_place(models, seed):
    generator = np.random.default_rng(seed)
    path = max(models[0], key=lambda name: models[0][name].size)
    size = models[0][path].size
    if not size:
        return
    at, which = int(generator.integers(size)), int(generator.integers(len(models)))
    models[which][path] = models[which][path].copy()
    models[which][path].reshape(-1)[at] = generator.choice([np.nan, np.inf, -np.inf])
    with folder() as where:
        paths = write_all(where, models)
        with pytest.raises(streamavg.NonFiniteValuesError) as caught:
            merged(paths, where / "out.weights.h5", 3)
        assert not (where / "out.weights.h5").exists()
    assert (caught.value.path, caught.value.variable) == (paths[which], path)
    assert caught.value.index == tuple(map(int, np.unravel_index(at, models[0][path].shape)))


@pytest.mark.parametrize("renamed", [["a", "b", "c"], ["a", "c", "b"], ["c", "a", "b"]])
def test_the_names_of_the_files_do_not_change_a_bit(tmp_path, renamed):
    """The largest variable is the same in all (a frozen layer); sums of the other are inexact."""
    paths = []
    for name, value in zip(renamed, (2.0**60, 1, -(2.0**60)), strict=True):
        arrays = {
            "layers/dense/vars/0": np.zeros(99, np.float32),
            "layers/dense/vars/1": np.float32([value]),
        }
        paths.append(write_weights(tmp_path / f"{name}.weights.h5", arrays))
    unnamed = [
        path.rename(path.with_name(f"{number}.weights.h5")) for number, path in enumerate(paths)
    ]
    expected = merged(unnamed, tmp_path / "out.weights.h5")
    paths = [path.rename(old) for path, old in zip(unnamed, paths, strict=True)]
    assert merged(paths, tmp_path / "out.weights.h5") == expected
