"""The zip container of `.keras` files: read in place, and written around a member of any size.

    +--------------------+ 0
    | local header, name | 30 bytes + name + extra
    | metadata.json      | as stored
    +--------------------+
    | config.json ...    |
    +--------------------+
    | local header       | with room for a zip64 extra field
    | model.weights.h5   | stored, so its bytes are those of an HDF5 file
    +--------------------+
    | assets/...         |
    +--------------------+
    | central directory  | name, sizes, CRC-32 and header offset of each member
    | end record(s)      |
    +--------------------+

Members are never extracted by name, so no name can lead out of a directory; names that would are
refused all the same. Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.errors import CorruptFileError, UnsafeFileError, UnsupportedFeatureError
from streamavg.formats.crc32 import RunningCrc, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamavg.formats.files import RandomAccessFile

SIGNATURE = b"PK\x03\x04"
PIECE_BYTES = 256 * 1024
"""How much of a member is copied or summed at once."""
LARGEST_DIRECTORY = 4 * 1024**2
"""Bytes of the central directory; one member needs about 80."""
LARGEST_INFLATION = 200
"""Weights do not compress: a member that claims more is a bomb."""
INFLATION_FLOOR = 1024**2

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_LOCATOR_SIGNATURE = b"PK\x06\x07"
_MOST_16, _MOST_32 = 0xFFFF, 0xFFFFFFFF
_VERSION_PLAIN, _VERSION_ZIP64 = 20, 45
_UTF8_NAME = 0x800
_ENCRYPTED = 0x1
_UNIX = 3 << 8
_SYMLINK_MODE, _FILE_TYPE_MASK = 0o120000, 0o170000
ALIGNMENT = 64
"""Of a member whose bytes are numbers."""
_PADDING = struct.Struct("<2H")
_PADDING_ID = 0xD935
"""Extra field that Android's zipalign pads headers with (APPNOTE 4.6.1 leaves the id free)."""
_DOS_DATE = 1 << 5 | 1
"""1 January 1980, the first day that the format knows."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive."""

    name: str
    method: int
    """0 stored, 8 DEFLATED."""
    crc: int
    """CRC-32 of the content."""
    stored_size: int
    """Bytes in the archive."""
    size: int
    """Bytes of the content."""
    data_offset: int
    """First stored byte in the archive."""
    dos_time: int = 0
    dos_date: int = _DOS_DATE


def read_members(file: RandomAccessFile) -> dict[str, Member]:
    """Reads the central directory and the place of each member's data.

    Sizes and checksums come from the central directory (a streaming writer leaves them out of the
    local header), the length of the name and the extra field from the local header.

    Raises:
        CorruptFileError: not a complete zip archive.
        UnsafeFileError: names that lead elsewhere, symbolic links, encryption, duplicates,
            members that overlap or lie outside the file, or that inflate beyond reason.
    """
    _refuse_large_directory(file)
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise CorruptFileError(file.path, f"is not a complete zip archive: {error}.") from error
    members: dict[str, Member] = {}
    for entry in entries:
        _refuse_unsafe(entry, file.path)
        if entry.filename in members:
            raise UnsafeFileError(file.path, f"member {entry.filename!r} is there twice.")
        if not entry.is_dir():
            members[entry.filename] = _locate(entry, file)
    _refuse_overlaps(list(members.values()), file.path)
    return members


def _refuse_large_directory(file: RandomAccessFile) -> None:
    tail_size = min(file.size, _END.size + _MOST_16)
    tail = file.read(file.size - tail_size, tail_size)
    found = tail.rfind(_END_SIGNATURE)
    if found < 0 or len(tail) - found < _END.size:
        raise CorruptFileError(
            file.path, "is not a complete zip archive: its end is missing. Save or copy it again."
        )
    directory_bytes = _END.unpack_from(tail, found)[5]
    locator_at = found - _ZIP64_LOCATOR.size
    if locator_at >= 0 and tail.startswith(_ZIP64_LOCATOR_SIGNATURE, locator_at):
        record_at = _ZIP64_LOCATOR.unpack_from(tail, locator_at)[2]
        if record_at + _ZIP64_END.size > file.size:
            raise CorruptFileError(file.path, "is not a complete zip archive: its end is damaged.")
        record = _ZIP64_END.unpack(file.read(record_at, _ZIP64_END.size))
        directory_bytes = max(directory_bytes % _MOST_32, record[8])
    if directory_bytes > LARGEST_DIRECTORY:
        raise UnsafeFileError(file.path, f"its list of members takes {directory_bytes:,} bytes.")


def _refuse_unsafe(entry: zipfile.ZipInfo, path: Path) -> None:
    name = entry.orig_filename
    what = f"member {name!r}: "
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or "\0" in name:
        raise UnsafeFileError(path, f"{what}its name leads out of the archive.")
    if entry.create_system == _UNIX >> 8 and (
        (entry.external_attr >> 16) & _FILE_TYPE_MASK == _SYMLINK_MODE
    ):
        raise UnsafeFileError(path, f"{what}it is a symbolic link.")
    if entry.flag_bits & _ENCRYPTED:
        raise UnsupportedFeatureError(path, f"{what}it is encrypted.")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise UnsupportedFeatureError(
            path, f"{what}compression method {entry.compress_type}; known: stored, DEFLATED."
        )
    largest = max(INFLATION_FLOOR, LARGEST_INFLATION * entry.compress_size)
    if entry.file_size > largest:
        raise UnsafeFileError(
            path,
            f"{what}claims to inflate from {entry.compress_size:,} to {entry.file_size:,} bytes.",
        )


def _locate(entry: zipfile.ZipInfo, file: RandomAccessFile) -> Member:
    if entry.header_offset + _LOCAL_HEADER.size > file.size:
        raise CorruptFileError(
            file.path, f"member {entry.filename!r}: it begins beyond the end of the archive."
        )
    header = _LOCAL_HEADER.unpack(file.read(entry.header_offset, _LOCAL_HEADER.size))
    if header[0] != SIGNATURE:
        raise CorruptFileError(file.path, f"member {entry.filename!r}: its header is damaged.")
    data_offset = entry.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    if data_offset + entry.compress_size > file.size:
        raise CorruptFileError(
            file.path, f"member {entry.filename!r}: its data lie beyond the end of the file."
        )
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise CorruptFileError(
            file.path, f"member {entry.filename!r}: stored with two different sizes."
        )
    return Member(
        entry.filename,
        entry.compress_type,
        entry.CRC,
        entry.compress_size,
        entry.file_size,
        data_offset,
        *header[4:6],
    )


def _refuse_overlaps(members: list[Member], path: Path) -> None:
    members.sort(key=lambda member: member.data_offset)
    for first, second in itertools.pairwise(members):
        if first.data_offset + first.stored_size > second.data_offset - _LOCAL_HEADER.size:
            raise UnsafeFileError(path, f"members {first.name!r} and {second.name!r} overlap.")


def content_pieces(file: RandomAccessFile, member: Member) -> Iterator[bytes]:
    """Reads the content of a member in pieces of at most `PIECE_BYTES`, checking its CRC-32.

    Raises:
        CorruptFileError: the content does not have the size or the CRC-32 it should.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    crc = size = 0
    for raw in stored_pieces(file, member):
        pieces = _inflated(inflater, raw) if member.method else iter((raw,))
        try:
            for piece in pieces:
                crc = zlib.crc32(piece, crc)
                size += len(piece)
                if size > member.size:
                    break
                yield piece
        except zlib.error as error:
            raise CorruptFileError(file.path, f"member {member.name!r}: {error}.") from error
    _require_content(file, member, size, crc)


def _require_content(file: RandomAccessFile, member: Member, size: int, crc: int) -> None:
    if (crc, size) != (member.crc, member.size):
        raise CorruptFileError(
            file.path,
            f"member {member.name!r}: its CRC-32 is {crc:08x} over {size:,} bytes, expected "
            f"{member.crc:08x} over {member.size:,}. The file is damaged; save or copy it again.",
        )


class MemberCheck:
    """Compares the content of a stored member with its CRC-32, taking in what others have read.

    Implements `streamavg.formats.hdf5.ContentCheck`.
    """

    def __init__(self, file: RandomAccessFile, member: Member) -> None:
        self._file = file
        self._member = member
        self._crc = RunningCrc(member.size)

    def add(self, offset: int, piece: memoryview) -> None:
        """See `ContentCheck`."""
        self._crc.add(offset, piece)

    def finish(self) -> None:
        """See `ContentCheck`."""
        crc, self._crc = self._crc, RunningCrc(self._member.size)
        for begin, size in pieces(crc.missing(), PIECE_BYTES):
            crc.add(begin, self._file.read(self._member.data_offset + begin, size))
        _require_content(self._file, self._member, self._member.size, crc.value)


def _inflated(inflater: zlib._Decompress, raw: bytes) -> Iterator[bytes]:
    while raw:
        yield inflater.decompress(raw, PIECE_BYTES)
        raw = inflater.unconsumed_tail


def stored_pieces(file: RandomAccessFile, member: Member) -> Iterator[bytes]:
    """Reads the stored bytes of a member, compressed or not, in pieces of at most `PIECE_BYTES`."""
    for done in range(0, member.stored_size, PIECE_BYTES):
        yield file.read(member.data_offset + done, min(PIECE_BYTES, member.stored_size - done))


def read_content(file: RandomAccessFile, member: Member, limit: int) -> bytes:
    """Reads a small member whole.

    Raises:
        UnsafeFileError: it is larger than `limit` bytes.
        CorruptFileError: as `content_pieces`.
    """
    if member.size > limit:
        raise UnsafeFileError(
            file.path,
            f"member {member.name!r} has {member.size:,} bytes; expected {limit:,} at most.",
        )
    return b"".join(content_pieces(file, member))


class ArchiveBuilder:
    """Writes an archive member after member.

    A member is begun, its data are written by the caller at the offset that `begin` returns, and
    then it is ended. `close` writes the directory.

    Args:
        write_at: writes bytes at an offset of the output.
    """

    def __init__(self, write_at: Callable[[int, bytes], None]) -> None:
        self._write_at = write_at
        self._headers: list[tuple[int, Member]] = []
        self._end = 0

    def begin(self, name: str, *, aligned: bool = False) -> int:
        """Reserves the local header of the next member.

        Args:
            name: of the member.
            aligned: whether its data begin at a multiple of `ALIGNMENT`.

        Returns:
            The offset of its data.
        """
        start = self._end + _LOCAL_HEADER.size + len(name.encode()) + len(_zip64_sizes(0, 0))
        if aligned and start % ALIGNMENT:
            start += _PADDING.size
            start += -start % ALIGNMENT
        return start

    def end(self, member: Member) -> None:
        """Writes the local header of the member whose data now lie behind it."""
        header_offset = self._end
        name = member.name.encode()
        sizes = _zip64_sizes(member.size, member.stored_size)
        sizes += _padding(member.data_offset - self.begin(member.name))
        header = _LOCAL_HEADER.pack(
            SIGNATURE, _VERSION_ZIP64, _UTF8_NAME * (not member.name.isascii()), member.method,
            member.dos_time, member.dos_date, member.crc, _MOST_32, _MOST_32, len(name), len(sizes),
        )  # fmt: skip
        self._write_at(header_offset, header + name + sizes)
        self._headers.append((header_offset, member))
        self._end = member.data_offset + member.stored_size

    def copy(self, file: RandomAccessFile, member: Member) -> None:
        """Copies a member of another archive as it is stored."""
        offset = self.begin(member.name)
        for piece in stored_pieces(file, member):
            self._write_at(offset, piece)
            offset += len(piece)
        self.end(dataclasses.replace(member, data_offset=offset - member.stored_size))

    def close(self) -> int:
        """Writes the central directory and the end records. Returns the size of the archive."""
        start = self._end
        for header_offset, member in self._headers:
            self._append(_central_header(header_offset, member))
        size = self._end - start
        count = len(self._headers)
        if max(start, size) >= _MOST_32 or count >= _MOST_16:
            zip64_end = self._end
            self._append(_zip64_end_record(count, size, start))
            self._append(_ZIP64_LOCATOR.pack(_ZIP64_LOCATOR_SIGNATURE, 0, zip64_end, 1))
        few, small, near = min(count, _MOST_16), min(size, _MOST_32), min(start, _MOST_32)
        self._append(_END.pack(_END_SIGNATURE, 0, 0, few, few, small, near, 0))
        return self._end

    def _append(self, data: bytes) -> None:
        self._write_at(self._end, data)
        self._end += len(data)


def _zip64_sizes(size: int, stored_size: int) -> bytes:
    """Extra field with 64-bit sizes (APPNOTE 4.5.3): 20 bytes, whatever the sizes."""
    return struct.pack("<2H2Q", 1, 16, size, stored_size)


def _padding(size: int) -> bytes:
    """Extra field that means nothing and takes `size` bytes, at least 4 or none."""
    return _PADDING.pack(_PADDING_ID, size - _PADDING.size).ljust(size, b"\0") if size else b""


def _zip64_end_record(count: int, size: int, start: int) -> bytes:
    remaining = _ZIP64_END.size - 12
    made_by, needs = _VERSION_ZIP64 | _UNIX, _VERSION_ZIP64
    return _ZIP64_END.pack(
        b"PK\x06\x06", remaining, made_by, needs, 0, 0, count, count, size, start
    )


def _central_header(header_offset: int, member: Member) -> bytes:
    sizes = (member.size, member.stored_size, header_offset)
    large = [value for value in sizes if value >= _MOST_32]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    version = _VERSION_ZIP64 if large else _VERSION_PLAIN
    name = member.name.encode()
    header = _CENTRAL_HEADER.pack(
        b"PK\x01\x02", version | _UNIX, version, _UTF8_NAME * (not member.name.isascii()),
        member.method, member.dos_time, member.dos_date, member.crc,
        min(member.stored_size, _MOST_32), min(member.size, _MOST_32), len(name), len(extra),
        0, 0, 0, 0o600 << 16, min(header_offset, _MOST_32),
    )  # fmt: skip
    return header + name + extra
