import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import streamavg
from streamavg.checkpoint import FileIdentity
from streamavg.formats.archive import (
    ArchiveBuilder,
    Member,
    content_pieces,
    read_content,
    read_members,
)
from streamavg.formats.files import RandomAccessFile
from tests.checkpoint_files import write_members

CONTENTS = {
    "a.txt": b"first",
    "folder/b.bin": np.random.default_rng(1).bytes(90_000) * 15,
    "empty": b"",
    "\u00e9": b"x",
}


def opened(path):
    return RandomAccessFile(path, FileIdentity.of(path))


@pytest.fixture
def built(tmp_path):
    """A file, and a builder that writes to it."""
    with (tmp_path / "built.zip").open("w+b") as file:
        yield file, ArchiveBuilder(lambda offset, data: os.pwrite(file.fileno(), data, offset))


def add(file, builder, name, content):
    start = builder.begin(name)
    os.pwrite(file.fileno(), content, start)
    builder.end(Member(name, 0, zlib.crc32(content), len(content), len(content), start))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_contents_are_read_piece_by_piece_with_their_checksum(tmp_path, compression):
    file = opened(write_members(tmp_path / "a.zip", CONTENTS, compression))
    members = read_members(file)
    assert members.keys() == CONTENTS.keys()
    for name, content in CONTENTS.items():
        pieces = list(content_pieces(file, members[name]))
        assert b"".join(pieces) == content
        assert all(len(piece) <= 1024**2 for piece in pieces)
    file.close()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_written_as_a_stream_is_read(tmp_path, compression):
    """Sizes are only in the central directory and behind the data."""
    with (tmp_path / "a.zip").open("wb") as raw:
        raw.seekable = lambda: False
        with zipfile.ZipFile(raw, "w", compression) as archive:
            with archive.open("big", "w", force_zip64=True) as member:
                member.write(b"abc" * 999)
            archive.writestr("small", b"x")
    file = opened(tmp_path / "a.zip")
    members = read_members(file)
    assert b"".join(content_pieces(file, members["big"])) == b"abc" * 999
    file.close()


def test_a_damaged_member_is_told(tmp_path):
    path = write_members(tmp_path / "a.zip", {"a": b"content"})
    path.write_bytes(path.read_bytes().replace(b"content", b"cOntent"))
    file = opened(path)
    with pytest.raises(streamavg.CorruptFileError, match=r"member 'a'.*CRC-32"):
        list(content_pieces(file, read_members(file)["a"]))


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    file = opened(write_members(tmp_path / "a.zip", {"a": b"x" * 11}))
    with pytest.raises(streamavg.UnsafeFileError, match="11 bytes; expected 10 at most"):
        read_content(file, read_members(file)["a"], 10)


@pytest.mark.parametrize("extra", range(0, 64, 3))
def test_a_deflated_member_is_read_whole_wherever_its_pieces_end(tmp_path, extra):
    content = np.random.default_rng(0).bytes(9000) + bytes(1024**2 - 9000 + extra)
    path = write_members(tmp_path / "a.zip", {"a": content}, zipfile.ZIP_DEFLATED)
    file = opened(path)
    assert b"".join(content_pieces(file, read_members(file)["a"])) == content


def test_what_is_built_is_a_zip_archive_that_others_read(built):
    file, builder = built
    for name, content in CONTENTS.items():
        add(file, builder, name, content)
    assert builder.close() == os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file.name) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_copied_as_they_are_stored(tmp_path, built, compression):
    source = opened(write_members(tmp_path / "a.zip", CONTENTS, compression))
    file, builder = built
    for member in read_members(source).values():
        builder.copy(source, member)
    builder.close()
    with zipfile.ZipFile(file.name) as archive, zipfile.ZipFile(source.path) as original:
        assert archive.testzip() is None
        for name, content in CONTENTS.items():
            assert archive.read(name) == content
            one, other = archive.getinfo(name), original.getinfo(name)
            assert one.compress_size == other.compress_size
            assert (one.compress_type, one.date_time) == (other.compress_type, other.date_time)
    source.close()


def test_an_empty_archive_can_be_built(built):
    file, builder = built
    builder.close()
    with zipfile.ZipFile(file.name) as archive:
        assert archive.namelist() == []


def add_hole(file, builder, name, size):
    """A member of zeros that takes no room on the disk, with the checksum of zeros."""
    start = builder.begin(name)
    os.ftruncate(file.fileno(), start + size)
    crc = 0
    for done in range(0, size, 2**24):
        crc = zlib.crc32(bytes(min(2**24, size - done)), crc)
    builder.end(Member(name, 0, crc, size, size, start))


@pytest.mark.slow
def test_a_member_beyond_4_gib_and_what_follows_it_are_read_by_others_and_by_us(built):
    file, builder = built
    size = 2**32 + 12345
    add_hole(file, builder, "model.weights.h5", size)
    add(file, builder, "after", b"behind 4 GiB")
    builder.close()
    with zipfile.ZipFile(file.name) as archive:
        assert archive.getinfo("model.weights.h5").file_size == size
        assert archive.testzip() is None
    source = opened(Path(file.name))
    members = read_members(source)
    assert members["model.weights.h5"].size == size
    assert b"".join(content_pieces(source, members["after"])) == b"behind 4 GiB"
    source.close()


@pytest.mark.slow
def test_more_members_than_16_bits_count_are_read_by_others(built):
    file, builder = built
    for number in range(65_600):
        add(file, builder, str(number), b"%d" % number)
    builder.close()
    with zipfile.ZipFile(file.name) as archive:
        assert len(archive.namelist()) == 65_600
        assert archive.testzip() is None
        assert archive.read("65599") == b"65599"
