import errno
import os

import pytest

import streamavg
from streamavg import system_calls
from streamavg.formats import output as output_module
from streamavg.formats.output import OutputFile


def test_a_file_appears_whole_when_it_is_committed(tmp_path):
    path = tmp_path / "a"
    with OutputFile(path, force=False) as output:
        output.write_at(3, b"def")
        output.write_at(0, b"abc")
        assert output.size() == 6
        assert not path.exists()
        output.commit()
    assert path.read_bytes() == b"abcdef"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [28, 122], ids=["ENOSPC", "EDQUOT"])
def test_a_full_disk_leaves_nothing_and_names_a_remedy(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(streamavg.OutputError, match="Free some space") as caught,
        OutputFile(tmp_path / "a", force=False) as output,
    ):
        output.write_at(0, b"abc")
    assert caught.value.path == tmp_path / "a"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_to_flush_leaves_nothing(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(streamavg.OutputError, match="Input/output error"),
        OutputFile(tmp_path / "a", force=False) as output,
    ):
        output.commit()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    with OutputFile(tmp_path / "a", force=False) as output:
        output.write_at(0, b"abcdefg")
        output.commit()
    assert (tmp_path / "a").read_bytes() == b"abcdefg"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_replaced(tmp_path, force):
    with pytest.raises(streamavg.OutputError, match="is a folder"):
        OutputFile(tmp_path, force=force)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(streamavg.OutputError, match="No such file"):
        OutputFile(tmp_path / "missing" / "a", force=False)


def test_a_dangling_symbolic_link_is_not_written_through(tmp_path):
    path, target = tmp_path / "a", tmp_path / "target"
    path.symlink_to(target)
    with pytest.raises(streamavg.OutputError, match="exists already"):
        OutputFile(path, force=False)
    with OutputFile(path, force=True) as output:
        output.write_at(0, b"abc")
        output.commit()
    assert not target.exists()
    assert (path.is_symlink(), path.read_bytes()) == (False, b"abc")


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with OutputFile(tmp_path / "a", force=False) as output:
        output.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_discarding_twice_or_after_committing_does_nothing(tmp_path):
    output = OutputFile(tmp_path / "a", force=False)
    output.commit()
    output.discard()
    output.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_in_pieces(path, **options):
    with OutputFile(path, force=False, **options) as output:
        for offset in range(0, 3000, 1000):
            output.write_at(offset, b"x" * 1000)
        output.commit()


def test_what_is_written_is_flushed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module, "FLUSHED_AT_ONCE", 1000)
    flushed = []
    monkeypatch.setattr(system_calls, "flush_data", flushed.append)
    write_in_pieces(tmp_path / "a")
    assert flushed
    write_in_pieces(tmp_path / "b", fsync=False)
    assert len(set(flushed)) == 1
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"x" * 3000


def test_a_disk_that_fails_while_it_is_flushed_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output_module, "FLUSHED_AT_ONCE", 1000)
    monkeypatch.setattr(system_calls, "flush_data", fail)
    with pytest.raises(streamavg.OutputError, match="Input/output error"):
        write_in_pieces(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
