"""Slabs are handled by any number of threads, and nothing that can be seen depends on it."""

import hashlib
import threading

import numpy as np
import pytest

import streamavg
from tests.builders import DIGITS, LAYOUTS, contents, stored, write_weights

THREADS = (1, 2, 5)


@pytest.fixture
def paths(tmp_path):
    """Three checkpoints of many slabs, of several dtypes."""
    generator = np.random.default_rng(0)
    return [
        write_weights(
            tmp_path / f"{name}.weights.h5",
            {
                "layers/dense": [
                    generator.standard_normal((500, 700)).astype(np.float32),
                    generator.standard_normal(700),
                ],
                "layers/dense_1": [
                    generator.standard_normal(200_000).astype(np.float16),
                    np.arange(100_000),
                ],
            },
        )
        for name in "abc"
    ]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_is_the_same_byte_for_byte(paths, tmp_path):
    digests = set()
    for threads in THREADS:
        record = streamavg.merge(paths, tmp_path / "out.weights.h5", threads=threads, force=True)
        assert record.threads == threads
        digests.add(digest(tmp_path / "out.weights.h5"))
    assert len(digests) == 1


@pytest.mark.parametrize("threads", THREADS)
def test_every_byte_is_told_of_by_one_thread_at_a_time(paths, tmp_path, threads):
    told, busy = [], threading.Lock()

    def on_progress(count):
        assert busy.acquire(blocking=False)
        told.append(count)
        busy.release()

    record = streamavg.merge(
        paths, tmp_path / "out.weights.h5", threads=threads, on_progress=on_progress
    )
    assert sum(told) == record.bytes_read


@pytest.mark.parametrize("threads", THREADS)
def test_the_error_is_that_of_the_first_slab(tmp_path, threads):
    values = np.zeros((40, 70_000), np.float32)
    first = write_weights(tmp_path / "a.weights.h5", {"layers/dense": [values]})
    values[7:, 5] = np.nan
    second = write_weights(tmp_path / "b.weights.h5", {"layers/dense": [values]})
    before = contents(tmp_path)
    for _ in range(5):
        with pytest.raises(streamavg.NonFiniteValuesError) as caught:
            streamavg.merge([first, second], tmp_path / "out.weights.h5", threads=threads)
        assert caught.value.index == (7, 5)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_of_the_caller_ends_all_threads(paths, tmp_path, threads, error):
    before, running = contents(tmp_path), threading.active_count()

    def on_progress(count):
        raise error("enough")

    with pytest.raises(error, match="enough"):
        streamavg.merge(
            paths, tmp_path / "out.weights.h5", threads=threads, on_progress=on_progress
        )
    assert contents(tmp_path) == before
    assert threading.active_count() == running


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", ["gzip", "bigendian", "strings", "unwritten_fill"])
def test_values_that_only_the_library_reads_are_the_same(tmp_path, threads, name):
    source = LAYOUTS / "handmade" / f"{name}.weights.h5"
    copy = tmp_path / "copy.weights.h5"
    copy.write_bytes(source.read_bytes())
    streamavg.merge([source, copy], tmp_path / "out.weights.h5", threads=threads)
    expected, found = stored(source), stored(tmp_path / "out.weights.h5")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[path], found[path]) for path in expected)


def test_a_small_merge_is_not_worth_a_second_thread(tmp_path):
    pair = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]
    assert streamavg.plan(pair, tmp_path / "out.keras").threads == 1


def test_a_small_limit_takes_fewer_threads_unless_they_were_asked_for(paths, tmp_path):
    output = tmp_path / "out.weights.h5"
    needed = streamavg.plan(paths, output, threads=1).memory
    limit = needed.reserved + 4 * 1024**2
    assert streamavg.plan(paths, output, memory_limit=limit).threads >= 1
    with pytest.raises(streamavg.MemoryLimitError, match="Fewer --threads"):
        streamavg.plan(paths, output, memory_limit=limit, threads=50)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(paths, tmp_path, threads):
    with pytest.raises(streamavg.OptionError, match="--threads"):
        streamavg.plan(paths, tmp_path / "out.weights.h5", threads=threads)
