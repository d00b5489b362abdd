"""The headers of HDF5 files in the one dialect that Keras writes, read without the HDF5 library.

    superblock, version 0
      root symbol table entry -> object header of the root group
    object header, version 1     a list of messages, with continuations elsewhere
      of a group:
        symbol table message  -> TREE (levels of a B-tree) -> SNOD: up to 8 symbol table entries,
                                                 each a name and the object header of a member
                              -> HEAP (local heap): the names
        attribute messages       values, or for strings of variable length:
                              -> GCOL (global heap collection): the strings
      of a dataset:
        dataspace, datatype, fill value, data layout -> the values

The library needs 0.15 to 0.3 ms a dataset, this module about a tenth of that. It is strict:
whatever it does not know for certain makes it decline the whole file, and the library then reads
that, or refuses it. So it has no errors of its own, and never says what the library would not say:
it checks what the library checks, the order of names in B-trees included, by which members are
looked up.

Nothing in a file is trusted. Every structure is bounded, lies inside the file and is read once; all
of them together are no larger than the file, so that no file takes longer than its size allows.

Source: HDF5 File Format Specification version 3.0, sections II.A (superblock version 0), III.A.1
(version 1 B-trees), III.B and III.C (symbol tables), III.D and III.E (heaps), IV.A (messages).
"""

from __future__ import annotations

import math
import struct
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.dtypes import bfloat16
from streamavg.formats.datasets import DEEPEST_GROUP, THROUGH_LIBRARY, Dataset
from streamavg.natural_order import natural_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]

UNDEFINED = 2**64 - 1
"""The address of what is nowhere."""
PIECE_BYTES = 16 * 1024
"""Bytes read at once; headers lie between values, those of one layer mostly together."""
MOST_PIECES = 64
LARGEST_HEAP = 16 * 1024**2
"""Bytes of the names of one group, and of the strings of all attributes."""
LARGEST_CHUNK = 256 * 1024
"""Bytes of one stretch of messages; a message has at most 64 KiB."""
MOST_CHUNKS = 256
DEEPEST_TREE = 16
LARGEST_RANK = 32

_SUPERBLOCK = struct.Struct("<8s16s4Q")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSIONS_AND_SIZES = bytes.fromhex("00000000 00080800 0400 1000 00000000")
"""All versions 0, addresses and lengths of 8 bytes, group leaf K 4, internal K 16, no flags."""
_LEAF_K, _INTERNAL_K = 4, 16
_ENTRY = struct.Struct("<QQII16s")
_NOTHING_CACHED, _SYMBOL_TABLE_CACHED = 0, 1
_PREFIX = struct.Struct("<BBHII4x")
_MESSAGE = struct.Struct("<HHB3s")
_NODE = struct.Struct("<4sBBHQQ")
_NODE_BYTES = _NODE.size + (2 * _INTERNAL_K + 1 + 2 * _INTERNAL_K) * 8
_LEAF = struct.Struct("<4sBBH")
_LEAF_BYTES = _LEAF.size + 2 * _LEAF_K * _ENTRY.size
_HEAP = struct.Struct("<4sB3sQQQ")
_NO_FREE_BLOCK = 1
_COLLECTION = struct.Struct("<4sB3sQ")
_SMALLEST_COLLECTION = 4096
_HEAP_OBJECT = struct.Struct("<HHIQ")
_ZEROS = bytes(3)
_PAIR = struct.Struct("<QQ")
_REFERENCE = struct.Struct("<IQI")
"""A string of variable length: its size, the collection that it is in, and its number there."""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


# Types of messages.
_NIL, _DATASPACE, _DATATYPE, _FILL_VALUE, _DATA_LAYOUT = 0x00, 0x01, 0x03, 0x05, 0x08
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _MODIFICATION_TIME = 0x0C, 0x10, 0x11, 0x12
_OF_A_GROUP = {_SYMBOL_TABLE}
_OF_A_DATASET = {_DATASPACE, _DATATYPE, _FILL_VALUE, _DATA_LAYOUT}

_DATATYPES = {
    bytes.fromhex(encoded): np.dtype(name)
    for name, encoded in {
        "i1": "10080000 01000000 0000 0800",
        "i2": "10080000 02000000 0000 1000",
        "i4": "10080000 04000000 0000 2000",
        "i8": "10080000 08000000 0000 4000",
        "u1": "10000000 01000000 0000 0800",
        "u2": "10000000 02000000 0000 1000",
        "u4": "10000000 04000000 0000 2000",
        "u8": "10000000 08000000 0000 4000",
        "f2": "11200f00 02000000 0000 1000 0a 05 00 0a 0f000000",
        "f4": "11201f00 04000000 0000 2000 17 08 00 17 7f000000",
        "f8": "11203f00 08000000 0000 4000 34 0b 00 34 ff030000",
        "?": "18020000 01000000 10080000 01000000 0000 0800"
        "46414c5345000000 5452554500000000 00 01",  # FALSE and TRUE, an enumeration
    }.items()
}
"""Numbers whose bytes are their values on a little-endian machine, as the format encodes them."""
_PADDED_DATATYPES = {_padded(encoded): dtype for encoded, dtype in _DATATYPES.items()}
_TWO_OPAQUE_BYTES = bytes.fromhex("15000000 02000000")
_STRINGS = frozenset(
    bytes.fromhex(f"1901{charset}00 10000000 10000000 01000000 0000 0800")
    for charset in ("00", "01")
)
"""One string of variable length, ended by a zero byte, in ASCII or UTF-8."""
_FILL_VALUES = frozenset(
    bytes.fromhex(encoded)
    for encoded in ("02 02 02 01 00000000", "02 01 01 01 00000000", "02 01 02 01 00000000")
)
"""None given; allocated late or early, written if set or never."""


class _NotPlain(Exception):
    """The file is not, or not certainly, in the dialect."""


@dataclass(frozen=True, slots=True)
class Headers:
    """What the headers of a file say."""

    datasets: tuple[Dataset, ...]
    """In the order of `hdf5_headers.walk`."""
    names: dict[str, str]
    """The attribute `name` of the groups that have it, by the path of the group."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What tells one layout from another."""

    attributes: frozenset[bytes]
    """Names of the root group's attributes."""
    members: dict[str, frozenset[str]]
    """Names of the root group's members, and of the members of those that are groups."""


def read_headers(read: Read, size: int) -> Headers | None:
    """Reads the headers of all datasets.

    Args:
        read: gives the bytes of the HDF5 file, from an offset on and as many as asked.
        size: of the HDF5 file in bytes.

    Returns:
        None if the file is not in the dialect.

    Memory: 1 MiB for pieces of the file, at most 16 MiB for the names of one group and as much for
    strings, apart from what is returned.
    """
    try:
        return _Walk(_Structures(read, size)).headers()
    except _NotPlain:
        return None


def read_outline(read: Read, size: int) -> Outline | None:
    """Reads the first two levels of a file; arguments and result as `read_headers`."""
    try:
        return _outline(_Structures(read, size))
    except _NotPlain:
        return None


def _require(holds: bool) -> None:
    if not holds:
        raise _NotPlain


@dataclass(frozen=True, slots=True)
class _Object:
    """An object header: its messages by type, attributes apart."""

    messages: dict[int, bytes]
    attributes: dict[bytes, _Attribute]

    @property
    def is_group(self) -> bool:
        return self.messages.keys() == _OF_A_GROUP


@dataclass(frozen=True, slots=True)
class _Attribute:
    datatype: bytes
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class _Member:
    """A symbol table entry."""

    name: bytes
    address: int
    symbol_table: bytes | None
    """The symbol table message of a group, if the entry repeats it."""


class _Pieces:
    """The bytes of a file, read in pieces of which the last few are kept."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._left = size
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def limit(self, size: int) -> None:
        """The file ends here, says its superblock."""
        _require(size <= self._size)
        self._size = self._left = size

    def at(self, offset: int, size: int) -> bytes:
        """The bytes of one structure. All of them together have no more than the file."""
        self._left -= size
        _require(offset + size <= self._size and self._left >= 0)
        number, begin = divmod(offset, PIECE_BYTES)
        found = self._piece(number)[begin : begin + size]
        while len(found) < size:
            number += 1
            found += self._piece(number)[: size - len(found)]
        return found

    def _piece(self, number: int) -> bytes:
        piece = self._pieces.get(number)
        if piece is None:
            begin = number * PIECE_BYTES
            piece = self._read(begin, min(PIECE_BYTES, self._size - begin))
            self._pieces[number] = piece
            if len(self._pieces) > MOST_PIECES:
                self._pieces.popitem(last=False)
        else:
            self._pieces.move_to_end(number)
        return piece


class _Structures:
    """Reads the structures of the format, each by a method of its own.

    Args:
        read: see `read_headers`.
        size: see `read_headers`.
    """

    def __init__(self, read: Read, size: int) -> None:
        _require(sys.byteorder == "little")
        self._pieces = _Pieces(read, size)
        self._entered: set[int] = set()
        self._collections: dict[int, dict[int, bytes]] = {}
        self._collections_bytes = 0
        self.end = 0
        self.root = self._superblock()

    def _superblock(self) -> _Member:
        signature, versions, base, free_space, end, driver = _SUPERBLOCK.unpack(
            self._pieces.at(0, _SUPERBLOCK.size)
        )
        _require(signature == _SIGNATURE and versions == _VERSIONS_AND_SIZES)
        _require(base == 0 and free_space == driver == UNDEFINED)
        self._pieces.limit(end)
        self.end = end
        _, address, symbol_table = _entry(self._pieces.at(_SUPERBLOCK.size, _ENTRY.size), 0)
        return _Member(b"", address, symbol_table)

    def object_header(self, member: _Member) -> _Object:
        """The object header of a member; none is read twice, so that there are no hard links."""
        _require(member.address not in self._entered)
        self._entered.add(member.address)
        found: dict[int, bytes] = {}
        attributes: dict[bytes, _Attribute] = {}
        for kind, body in self._messages(member.address):
            if kind == _ATTRIBUTE:
                name, attribute = _attribute(body)
                _require(name not in attributes)
                attributes[name] = attribute
            elif kind == _MODIFICATION_TIME:
                _require(len(body) == 8 and body[0] == 1)
            elif kind not in {_NIL, _CONTINUATION}:
                _require(kind not in found)
                found[kind] = body
        _require(found.keys() in (_OF_A_GROUP, _OF_A_DATASET))
        if member.symbol_table is not None:
            _require(found.get(_SYMBOL_TABLE) == member.symbol_table)
        return _Object(found, attributes)

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The messages of an object header, in its first chunk and those that continue it."""
        version, reserved, count, references, size = _PREFIX.unpack(
            self._pieces.at(address, _PREFIX.size)
        )
        _require(version == 1 and reserved == 0 and references == 1)
        chunks = [(address + _PREFIX.size, size)]
        for begin, length in chunks:
            _require(length <= LARGEST_CHUNK and length % 8 == 0)
            chunk = self._pieces.at(begin, length)
            position = 0
            while position < length:
                kind, size, flags, zeros = _MESSAGE.unpack_from(chunk, position)
                position += _MESSAGE.size
                body = chunk[position : position + size]
                position += size
                _require(len(body) == size and size % 8 == 0 and flags <= 1 and zeros == _ZEROS)
                if kind == _CONTINUATION:
                    _require(size == _PAIR.size and len(chunks) < MOST_CHUNKS)
                    chunks.append(_PAIR.unpack(body))
                count -= 1
                yield kind, body
        _require(count == 0)

    def members(self, symbol_table: bytes) -> list[_Member]:
        """The members of a group, sorted by the bytes of their names."""
        _require(len(symbol_table) == _PAIR.size)
        tree, heap = _PAIR.unpack(symbol_table)
        return _Tree(self._pieces, self._local_heap(heap)).members(tree)

    def _local_heap(self, address: int) -> bytes:
        """The names of a group's members, each ended by a zero byte."""
        signature, version, zeros, size, free, data = _HEAP.unpack(
            self._pieces.at(address, _HEAP.size)
        )
        _require(signature == b"HEAP" and version == 0 and zeros == _ZEROS)
        _require(size <= LARGEST_HEAP)
        heap = self._pieces.at(data, size)
        for _ in range(size // _PAIR.size):
            if free == _NO_FREE_BLOCK:
                return heap
            _require(free + _PAIR.size <= size)
            begin = free
            free, free_size = _PAIR.unpack_from(heap, begin)
            _require(begin + free_size <= size)
        _require(free == _NO_FREE_BLOCK)
        return heap

    def text(self, attribute: _Attribute) -> str:
        """The value of an attribute that is one string."""
        _require(attribute.datatype in _STRINGS and attribute.shape == ())
        size, address, number = _REFERENCE.unpack(attribute.data)
        found = self._collection(address).get(number, b"")
        _require(len(found) == size > 0 and 0 not in found)
        return found.decode("utf-8", "replace")

    def _collection(self, address: int) -> dict[int, bytes]:
        """The objects of a global heap collection, by their number."""
        if address not in self._collections:
            signature, version, zeros, size = _COLLECTION.unpack(
                self._pieces.at(address, _COLLECTION.size)
            )
            _require(signature == b"GCOL" and version == 1 and zeros == _ZEROS)
            self._collections_bytes += size
            _require(size >= _SMALLEST_COLLECTION and self._collections_bytes <= LARGEST_HEAP)
            _require(size % 8 == 0)
            data = self._pieces.at(address + _COLLECTION.size, size - _COLLECTION.size)
            self._collections[address] = _heap_objects(data)
        return self._collections[address]


class _Tree:
    """The B-tree of one group.

    Args:
        pieces: of the file.
        heap: the names of the members.
    """

    def __init__(self, pieces: _Pieces, heap: bytes) -> None:
        self._pieces = pieces
        self._heap = heap
        self._found: list[_Member] = []
        self._before: dict[int, tuple[int, int]] = {}
        """Address and right sibling of the node that came last, by level."""

    def members(self, root: int) -> list[_Member]:
        """The members in the order of the tree."""
        self._node(root, None, b"", None)
        _require(all(right == UNDEFINED for _, right in self._before.values()))
        return self._found

    def _node(self, address: int, expected: int | None, low: bytes, high: bytes | None) -> None:
        """A node: child i has names behind key i, up to and with key i + 1.

        Args:
            address: of the node.
            expected: its level; None for the root.
            low: all names below the node come behind this one,
            high: and up to and with this one, if there is one.
        """
        node = self._pieces.at(address, _NODE_BYTES)
        signature, kind, level, used, left, right = _NODE.unpack_from(node)
        _require(signature == b"TREE" and kind == 0 and used <= 2 * _INTERNAL_K)
        _require(level <= DEEPEST_TREE if expected is None else level == expected and used > 0)
        _require(self._before.get(level, (UNDEFINED, address)) == (left, address))
        self._before[level] = address, right
        numbers = struct.unpack_from(f"<{2 * used + 1}Q", node, _NODE.size)
        for child in range(used):
            first = max(low, _name_at(self._heap, numbers[2 * child]))
            last = _name_at(self._heap, numbers[2 * child + 2])
            last = last if high is None else min(high, last)
            if level:
                self._node(numbers[2 * child + 1], level - 1, first, last)
            else:
                self._leaf(numbers[2 * child + 1], first, last)

    def _leaf(self, address: int, before: bytes, last: bytes) -> None:
        """A symbol table node: members in the order of their names."""
        data = self._pieces.at(address, _LEAF_BYTES)
        signature, version, reserved, used = _LEAF.unpack_from(data)
        _require(signature == b"SNOD" and version == 1 and reserved == 0)
        _require(0 < used <= 2 * _LEAF_K)
        for number in range(used):
            begin, address, symbol_table = _entry(data, _LEAF.size + number * _ENTRY.size)
            name = _name_at(self._heap, begin)
            _require(before < name <= last and name != b"." and b"/" not in name)
            self._found.append(_Member(name, address, symbol_table))
            before = name


def _entry(data: bytes, position: int) -> tuple[int, int, bytes | None]:
    """A symbol table entry: where its name is, its object header, what it repeats of that."""
    name, address, cache_type, _, scratch = _ENTRY.unpack_from(data, position)
    _require(cache_type in {_NOTHING_CACHED, _SYMBOL_TABLE_CACHED})
    return name, address, scratch if cache_type == _SYMBOL_TABLE_CACHED else None


def _heap_objects(data: bytes) -> dict[int, bytes]:
    """The objects behind the header of a global heap collection; number 0 is the free space."""
    found: dict[int, bytes] = {}
    position = 0
    while position + _HEAP_OBJECT.size <= len(data):
        number, _, _, size = _HEAP_OBJECT.unpack_from(data, position)
        if number == 0:
            _require(position + size == len(data))
            break
        begin = position + _HEAP_OBJECT.size
        position = begin + size + -size % 8
        _require(number not in found and position <= len(data))
        found[number] = data[begin : begin + size]
    return found


def _name_at(heap: bytes, begin: int) -> bytes:
    end = heap.find(b"\0", begin) if begin < len(heap) else -1
    _require(end >= 0)
    return heap[begin:end]


def _attribute(body: bytes) -> tuple[bytes, _Attribute]:
    """An attribute message, version 1: name, datatype and dataspace, each padded; then the data."""
    _require(len(body) >= 8)
    version, reserved, *sizes = struct.unpack_from("<BBHHH", body)
    _require(version == 1 and reserved == 0)
    parts, position = [], 8
    for size in sizes:
        parts.append(body[position : position + size])
        position += size + -size % 8
        _require(position <= len(body))
    name, datatype, dataspace = parts
    _require(name.find(b"\0") == len(name) - 1 > 0)
    _require(datatype in _STRINGS or datatype in _DATATYPES)
    item_bytes = _REFERENCE.size if datatype in _STRINGS else _DATATYPES[datatype].itemsize
    shape = _dataspace(dataspace)
    data = body[position : position + math.prod(shape) * item_bytes]
    _require(len(data) == math.prod(shape) * item_bytes)
    return name[:-1], _Attribute(datatype, shape, data)


def _dataspace(body: bytes) -> tuple[int, ...]:
    """A dataspace message, version 1: an extent for each axis, and again as its largest one."""
    _require(len(body) >= 8)
    version, rank, flags = struct.unpack_from("<BBB5x", body)
    _require(version == 1 and rank <= LARGEST_RANK and flags <= 1)
    _require(len(body) == 8 + 8 * rank * (1 + flags) and (rank > 0 or flags == 0))
    extents = struct.unpack_from(f"<{rank * (1 + flags)}Q", body, 8)
    _require(extents[rank:] in ((), extents[:rank]))
    return extents[:rank]


class _Walk:
    """Finds the datasets of a file."""

    def __init__(self, structures: _Structures) -> None:
        self._structures = structures
        self._datasets: list[Dataset] = []
        self._names: dict[str, str] = {}

    def headers(self) -> Headers:
        root = self._structures.root
        self._group(self._structures.object_header(root), "")
        return Headers(tuple(self._datasets), self._names)

    def _group(self, group: _Object, prefix: str) -> None:
        _require(prefix.count("/") <= DEEPEST_GROUP)
        if b"name" in group.attributes:
            self._names[prefix.rstrip("/")] = self._structures.text(group.attributes[b"name"])
        members = self._structures.members(group.messages[_SYMBOL_TABLE])
        by_name = [(_decoded(member.name), member) for member in members]
        for name, member in sorted(by_name, key=lambda entry: natural_key(entry[0])):
            found = self._structures.object_header(member)
            if found.is_group:
                self._group(found, f"{prefix}{name}/")
            else:
                self._datasets.append(self._dataset(found, prefix + name))

    def _dataset(self, found: _Object, path: str) -> Dataset:
        _require(found.messages[_FILL_VALUE] in _FILL_VALUES)
        shape = _dataspace(found.messages[_DATASPACE])
        dtype = self._dtype(found)
        declared = math.prod(shape) * dtype.itemsize
        layout = found.messages[_DATA_LAYOUT]
        _require(len(layout) == 24 and layout[:2] == b"\x03\x01")  # version 3, contiguous
        offset, stored = _PAIR.unpack_from(layout, 2)
        _require(stored == declared)
        if declared == 0:
            _require(offset == UNDEFINED)
            offset = THROUGH_LIBRARY
        else:
            _require(0 < offset <= self._structures.end - declared)
        return Dataset(path, shape, dtype, offset, tile_bytes=0, address=None)

    def _dtype(self, found: _Object) -> np.dtype[Any]:
        """The dtype of the values; Keras marks bfloat16 with an attribute, or not at all."""
        encoded = found.messages[_DATATYPE]
        if encoded == _TWO_OPAQUE_BYTES:
            mark = found.attributes.get(b"dtype")
            _require(mark is None or self._structures.text(mark) == "bfloat16")
            return bfloat16()
        _require(encoded in _PADDED_DATATYPES)
        return _PADDED_DATATYPES[encoded]


def _outline(structures: _Structures) -> Outline:
    root = structures.object_header(structures.root)
    members = {}
    for member in structures.members(root.messages[_SYMBOL_TABLE]):
        found = structures.object_header(member)
        inside = structures.members(found.messages[_SYMBOL_TABLE]) if found.is_group else []
        members[_decoded(member.name)] = frozenset(_decoded(inner.name) for inner in inside)
    return Outline(frozenset(root.attributes), members)


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise _NotPlain from None
