"""Slabs are handled by any number of threads, and nothing that can be seen depends on it."""

import hashlib
import threading

import h5py
import numpy as np
import pytest

import streamavg
from tests.builders import DIGITS, LAYOUTS, contents, run_python, stored, write_weights

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


def small_variables(folder, name, count=120, seed=0):
    """A checkpoint of many small variables of changing dtypes, and some large ones among them."""
    generator = np.random.default_rng(seed)
    layers = {}
    for number in range(count):
        size = 40_000 if number % 50 == 7 else number * 7 % 40
        dtype = ("f4", "f4", "f4", "f2", "f8", "i8")[number % 6]
        values = (generator.integers(-99, 99, size) / 8).astype(dtype)
        layers[f"layers/dense_{number}"] = [values, np.arange(3, dtype="f4") + seed]
    return write_weights(folder / name, layers)


@pytest.fixture
def many(tmp_path):
    return [small_variables(tmp_path, f"{n}.weights.h5", seed=n) for n in range(3)]


def assert_is_mean(output, paths):
    arrays = [stored(path) for path in paths]
    for path, values in stored(output).items():
        stacked = np.stack([of_one[path] for of_one in arrays])
        expected = stacked[0] if values.dtype.kind == "i" else stacked.mean(0, dtype="f8")
        assert np.array_equal(values, expected.astype(values.dtype)), path


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("io", ["auto", "buffered", "direct"])
def test_small_variables_that_share_slabs_get_their_own_means(many, tmp_path, threads, io):
    output = tmp_path / "out.weights.h5"
    streamavg.merge(many, output, threads=threads, io=io)
    assert_is_mean(output, many)


def test_checkpoints_whose_headers_differ_are_averaged_too(many, tmp_path):
    with h5py.File(many[1], "r+") as opened:  # moves nothing, but the headers are no longer equal
        opened["layers/dense_5/vars"].attrs["name"] = "dense_5"
    late = small_variables(tmp_path, "late.weights.h5", seed=3)
    with h5py.File(late, "r+") as opened:  # this one lies elsewhere
        values = opened["layers/dense_0/vars/1"][:]
        del opened["layers/dense_0/vars/1"]
        opened["layers/dense_0/vars/1"] = values
    paths = [*many, late]
    streamavg.merge(paths, tmp_path / "out.weights.h5")
    assert_is_mean(tmp_path / "out.weights.h5", paths)


def test_the_bytes_do_not_depend_on_how_they_are_read(many, tmp_path):
    digests = set()
    for io in ("auto", "buffered", "direct"):
        for fsync in (True, False):
            output = tmp_path / "out.weights.h5"
            streamavg.merge(many, output, io=io, fsync=fsync, force=True)
            digests.add(digest(output))
    assert len(digests) == 1


@pytest.mark.parametrize("io", ["buffered", "direct"])
def test_the_first_value_that_is_not_finite_is_found_in_a_shared_slab(many, tmp_path, io):
    with h5py.File(many[2], "r+") as opened:
        opened["layers/dense_21/vars/1"][2] = np.nan
    with pytest.raises(streamavg.NonFiniteValuesError) as caught:
        streamavg.merge(many, tmp_path / "out.weights.h5", io=io)
    assert (caught.value.path, caught.value.variable) == (many[2], "layers/dense_21/vars/1")
    assert caught.value.index == (2,)


WITHOUT = """
import os, sys
for name in ("preadv", "posix_fadvise", "posix_fallocate", "O_DIRECT", "RWF_NOWAIT"):
    if hasattr(os, name):
        delattr(os, name)
from streamavg import memory
memory._STATUS = memory._STATM = memory._CONTROL_GROUPS = memory.Path("/nowhere")
import streamavg
for io in ("auto", "buffered", "direct"):
    streamavg.merge(sys.argv[2:], sys.argv[1], io=io, force=True)
"""


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_system_without_the_calls_of_linux_does_the_same(many, tmp_path, suffix):
    inputs = many if suffix != ".keras" else sorted(DIGITS.glob("*.keras"))
    done = run_python(WITHOUT, tmp_path / f"without{suffix}", *inputs)
    assert done.returncode == 0, done.stderr
    streamavg.merge(inputs, tmp_path / f"with{suffix}")
    assert digest(tmp_path / f"without{suffix}") == digest(tmp_path / f"with{suffix}")


@pytest.mark.parametrize("threads", THREADS)
def test_a_damaged_archive_is_told_and_leaves_nothing(tmp_path, threads):
    inputs = [tmp_path / f"{n}.keras" for n in range(2)]
    for path in inputs:
        path.write_bytes((DIGITS / "epoch-20.keras").read_bytes())
    with streamavg.open_checkpoint(inputs[1]) as checkpoint:
        values = checkpoint.read("layers/conv2d/vars/0").tobytes()
    content = inputs[1].read_bytes().replace(values, values[:40] + b"\0\0\0\1" + values[44:])
    inputs[1].write_bytes(content)
    with pytest.raises(streamavg.CorruptFileError, match=r"1.keras.*CRC-32"):
        streamavg.merge(inputs, tmp_path / "out.keras", threads=threads)
    assert not (tmp_path / "out.keras").exists()
