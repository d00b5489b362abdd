from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import streamavg
from streamavg import system_calls
from streamavg.access import Access
from streamavg.checkpoint import FileIdentity
from streamavg.formats.files import RandomAccessFile, RecentlyOpened, open_descriptors
from streamavg.page_buffer import PageBuffer
from tests.checkpoint_files import Storage, write_weights


def opened_file(path, content=b"0123456789"):
    path.write_bytes(content)
    return RandomAccessFile(path, FileIdentity.of(path))


def test_the_file_used_longest_ago_is_closed_first():
    closed = []
    recent = RecentlyOpened(lambda: 2, closed.append)
    for key in "abacb":
        with recent.using(key, key.upper) as opened:
            assert opened == key.upper()
    assert closed == ["B", "A"]
    recent.close("c")
    recent.close("c")
    assert closed == ["B", "A", "C"]
    recent.close_all()
    assert closed == ["B", "A", "C", "B"]


def test_a_file_in_use_is_not_closed():
    closed = []
    recent = RecentlyOpened(lambda: 1, closed.append)
    with recent.using("a", lambda: "A"):
        with recent.using("b", lambda: "B"):
            assert closed == []
        assert closed == ["B"]
        recent.close("a")
        assert closed == ["B"]
    assert closed == ["B", "A"]


def test_threads_that_read_more_files_than_may_be_open_get_their_own_bytes(tmp_path):
    files = [
        opened_file(tmp_path / str(n), bytes([n % 251]) * 4096)
        for n in range(2 * open_descriptors())
    ]

    def read_all(shift):
        order = files[shift:] + files[:shift]
        return all(set(f.read(0, 4096)) == {int(f.path.name) % 251} for f in order * 5)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read_all, range(0, 6 * 17, 17)))
    for file in files:
        file.close()


def test_bytes_are_read_by_offset(tmp_path):
    file = opened_file(tmp_path / "a")
    assert (file.read(3, 4), file.read(0, 0), file.size) == (b"3456", b"", 10)
    file.close()


@pytest.mark.parametrize(("offset", "size"), [(8, 3), (10, 1), (99, 1)])
def test_reading_beyond_the_end_is_told(tmp_path, offset, size):
    with pytest.raises(streamavg.CorruptFileError, match=r"ends at byte.*truncated"):
        opened_file(tmp_path / "a").read(offset, size)


def test_a_closed_file_is_opened_again(tmp_path):
    file = opened_file(tmp_path / "a")
    file.read(0, 1)
    file.close()
    assert file.read(1, 1) == b"1"


def test_a_file_that_was_replaced_is_not_read(tmp_path):
    file = opened_file(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"other bytes")
    (tmp_path / "b").replace(file.path)
    with pytest.raises(streamavg.ChangedFileError, match="replaced"):
        file.read(0, 1)


def test_a_file_that_vanished_is_told(tmp_path):
    file = opened_file(tmp_path / "a")
    file.path.unlink()
    with pytest.raises(streamavg.ChangedFileError, match="no longer be opened"):
        file.read(0, 1)
    with pytest.raises(streamavg.ChangedFileError, match="vanished"):
        file.identity.require_unchanged(file.path)


def test_a_file_that_grew_is_told(tmp_path):
    file = opened_file(tmp_path / "a")
    file.path.write_bytes(b"more than there was")
    with pytest.raises(streamavg.ChangedFileError, match="changed while it was read"):
        file.identity.require_unchanged(file.path)


@pytest.mark.parametrize("storage", [Storage(), Storage(chunked=True, gzip=True)])
def test_more_files_than_may_be_open_are_read_in_turn(tmp_path, storage):
    count = open_descriptors() + 10
    checkpoints = []
    for number in range(count):
        path = tmp_path / f"{number}.weights.h5"
        write_weights(path, {"layers/dense/vars/0": np.full(9, number, np.float32)}, storage)
        checkpoints.append(streamavg.open_checkpoint(path))
    for _ in range(2):
        for number, checkpoint in enumerate(checkpoints):
            assert checkpoint.read("layers/dense/vars/0").tolist() == [number] * 9
    for checkpoint in checkpoints:
        checkpoint.values.close()


def test_no_more_files_are_open_than_allowed(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = [opened_file(tmp_path / str(number)) for number in range(open_descriptors() + 30)]
    for file in files:
        file.read(0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + open_descriptors()
    for file in files:
        file.close()


CONTENT = np.random.default_rng(1).bytes(50_000)


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 50_000), (1, 9), (4096, 8192), (4095, 40_000), (49_990, 10)]
)
def test_a_window_holds_the_bytes_however_they_are_fetched(tmp_path, access, offset, size):
    file = opened_file(tmp_path / "a", CONTENT)
    file.access = access
    file.read_ahead(offset, size)
    window = file.read_window(offset, size, PageBuffer(size))
    assert window.tobytes() == CONTENT[offset : offset + size]
    file.close()


@pytest.mark.parametrize("access", list(Access))
def test_a_window_beyond_the_end_is_told(tmp_path, access):
    file = opened_file(tmp_path / "a", CONTENT)
    file.access = access
    with pytest.raises(streamavg.CorruptFileError, match="ends at byte 50000"):
        file.read_window(49_000, 1_001, PageBuffer(2_000))
    file.close()


def test_a_file_system_that_refuses_direct_reads_is_read_all_the_same(tmp_path, monkeypatch):
    file = opened_file(tmp_path / "a", CONTENT)
    file.access = Access.DIRECT
    monkeypatch.setattr(system_calls, "open_for_direct_reading", lambda path: None)
    assert file.read_window(10, 5_000, PageBuffer(5_000)).tobytes() == CONTENT[10:5_010]
    file.close()


def test_a_file_that_was_replaced_is_not_read_directly_either(tmp_path):
    file = opened_file(tmp_path / "a", CONTENT)
    (tmp_path / "b").write_bytes(CONTENT[::-1])
    (tmp_path / "b").replace(file.path)
    file.access = Access.DIRECT
    with pytest.raises(streamavg.ChangedFileError, match="replaced"):
        file.read_window(0, 10, PageBuffer(10))


def test_a_file_that_another_process_writes_is_told(tmp_path):
    path = write_weights(tmp_path / "a.weights.h5", {"layers/d/vars/0": np.zeros(3)})
    file = RandomAccessFile(path, FileIdentity.of(path))
    file.require_not_being_written()
    with h5py.File(path, "r+"), pytest.raises(streamavg.CorruptFileError, match="open for writing"):
        file.require_not_being_written()
    file.close()
