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

That takes a half to a third of the library's time, and the library need not be loaded. This module
is strict: whatever it does not know for certain makes it decline the whole file, and the library
then reads that, or refuses it. So it has no errors of its own, and never says what the library
would not say: it checks what the library checks, the order of names in B-trees included, by which
members are looked up.

Nothing in a file is trusted. Every structure is bounded and lies inside the file, and all of them
together are no larger than the file, nor names than their heap: no file takes longer, or more
memory, than its size allows.

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

from streamavg.dtypes import bfloat16
from streamavg.formats.datasets import DEEPEST_GROUP, THROUGH_LIBRARY, Dataset
from streamavg.formats.plain_structures import (
    ATTRIBUTE,
    COLLECTION,
    CONTINUATION,
    DATA_LAYOUT,
    DATASPACE,
    DATATYPE,
    DATATYPES,
    ENTRY,
    FILL_VALUE,
    FILL_VALUES,
    HEAP,
    HEAP_OBJECT,
    INTERNAL_K,
    LEAF,
    LEAF_BYTES,
    LEAF_K,
    MESSAGE,
    MODIFICATION_TIME,
    NIL,
    NO_FREE_BLOCK,
    NODE,
    NODE_BYTES,
    NOTHING_CACHED,
    OF_A_DATASET,
    OF_A_GROUP,
    PADDED_DATATYPES,
    PAIR,
    PREFIX,
    REFERENCE,
    SIGNATURE,
    SMALLEST_COLLECTION,
    STRINGS,
    SUPERBLOCK,
    SYMBOL_TABLE,
    SYMBOL_TABLE_CACHED,
    TWO_OPAQUE_BYTES,
    UNDEFINED,
    VERSIONS_AND_SIZES,
    ZEROS,
)
from streamavg.natural_order import natural_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    Read = Callable[[int, int], bytes]

PIECE_BYTES = 16 * 1024
"""Bytes read at once; headers lie between values, those of one layer mostly together."""
MOST_PIECES = 64
LARGEST_HEAP = 16 * 1024**2
"""Bytes of the names of one group, and of the strings of all attributes."""
LONGEST_NAME = 1024
LARGEST_CHUNK = 256 * 1024
"""Bytes of one stretch of messages; a message has at most 64 KiB."""
MOST_CHUNKS = 256
DEEPEST_TREE = 16
LARGEST_RANK = 32


class NotPlain(Exception):
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
    except NotPlain:
        return None


def read_outline(read: Read, size: int) -> Outline | None:
    """Reads the first two levels of a file; arguments and result as `read_headers`."""
    try:
        return _outline(_Structures(read, size))
    except NotPlain:
        return None


def _require(holds: bool) -> None:
    if not holds:
        raise NotPlain


@dataclass(frozen=True, slots=True)
class _Object:
    """An object header: its messages by type, attributes apart."""

    messages: dict[int, bytes]
    attributes: dict[bytes, _Attribute]

    @property
    def is_group(self) -> bool:
        return self.messages.keys() == OF_A_GROUP


@dataclass(frozen=True, slots=True)
class _Attribute:
    datatype: bytes
    dataspace: bytes
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
        self._collections_bytes = self._strings_bytes = 0
        self.end = 0
        self.root = self._superblock()

    def _superblock(self) -> _Member:
        signature, versions, base, free_space, end, driver = SUPERBLOCK.unpack(
            self._pieces.at(0, SUPERBLOCK.size)
        )
        _require(signature == SIGNATURE and versions == VERSIONS_AND_SIZES)
        _require(base == 0 and free_space == driver == UNDEFINED)
        self._pieces.limit(end)
        self.end = end
        _, address, symbol_table = _entry(self._pieces.at(SUPERBLOCK.size, ENTRY.size), 0)
        return _Member(b"", address, symbol_table)

    def object_header(self, member: _Member) -> _Object:
        """The object header of a member; none is read twice, so that there are no hard links."""
        _require(member.address not in self._entered)
        self._entered.add(member.address)
        found: dict[int, bytes] = {}
        attributes: dict[bytes, _Attribute] = {}
        for kind, body in self._messages(member.address):
            if kind == ATTRIBUTE:
                name, attribute = _attribute(body)
                _require(name not in attributes)
                attributes[name] = attribute
            elif kind == MODIFICATION_TIME:
                _require(len(body) == 8 and body[0] == 1)
            elif kind not in {NIL, CONTINUATION}:
                _require(kind not in found)
                found[kind] = body
        _require(found.keys() in (OF_A_GROUP, OF_A_DATASET))
        if member.symbol_table is not None:
            _require(found.get(SYMBOL_TABLE) == member.symbol_table)
        return _Object(found, attributes)

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The messages of an object header, in its first chunk and those that continue it."""
        version, reserved, count, references, size = PREFIX.unpack(
            self._pieces.at(address, PREFIX.size)
        )
        _require(version == 1 and reserved == 0 and references == 1)
        chunks = [(address + PREFIX.size, size)]
        for begin, length in chunks:
            _require(length <= LARGEST_CHUNK and length % 8 == 0)
            chunk = self._pieces.at(begin, length)
            position = 0
            while position < length:
                kind, size, flags, zeros = MESSAGE.unpack_from(chunk, position)
                position += MESSAGE.size
                body = chunk[position : position + size]
                position += size
                _require(len(body) == size and size % 8 == 0 and flags <= 1 and zeros == ZEROS)
                if kind == CONTINUATION:
                    _require(size == PAIR.size and len(chunks) < MOST_CHUNKS)
                    chunks.append(PAIR.unpack(body))
                count -= 1
                yield kind, body
        _require(count == 0)

    def members(self, symbol_table: bytes) -> list[_Member]:
        """The members of a group, sorted by the bytes of their names."""
        _require(len(symbol_table) == PAIR.size)
        tree, heap = PAIR.unpack(symbol_table)
        return _Tree(self._pieces, self._local_heap(heap)).members(tree)

    def _local_heap(self, address: int) -> bytes:
        """The names of a group's members, each ended by a zero byte."""
        signature, version, zeros, size, free, data = HEAP.unpack(
            self._pieces.at(address, HEAP.size)
        )
        _require(signature == b"HEAP" and version == 0 and zeros == ZEROS)
        _require(size <= LARGEST_HEAP)
        heap = self._pieces.at(data, size)
        for _ in range(size // PAIR.size):
            if free == NO_FREE_BLOCK:
                return heap
            _require(free + PAIR.size <= size)
            begin = free
            free, free_size = PAIR.unpack_from(heap, begin)
            _require(begin + free_size <= size)
        _require(free == NO_FREE_BLOCK)
        return heap

    def text(self, attribute: _Attribute) -> str:
        """The value of an attribute that is one string."""
        _require(attribute.datatype in STRINGS and _dataspace(attribute.dataspace) == ())
        return self.strings(attribute)[0].decode("utf-8", "replace")

    def strings(self, attribute: _Attribute) -> list[bytes]:
        """The values of an attribute that is of strings."""
        return [self._string(*each) for each in REFERENCE.iter_unpack(attribute.data)]

    def _string(self, size: int, address: int, number: int) -> bytes:
        self._strings_bytes += size
        _require(self._strings_bytes <= LARGEST_HEAP)
        found = self._collection(address).get(number, b"")
        _require(len(found) == size > 0 and 0 not in found)
        return found

    def _collection(self, address: int) -> dict[int, bytes]:
        """The objects of a global heap collection, by their number."""
        if address not in self._collections:
            signature, version, zeros, size = COLLECTION.unpack(
                self._pieces.at(address, COLLECTION.size)
            )
            _require(signature == b"GCOL" and version == 1 and zeros == ZEROS)
            self._collections_bytes += size
            _require(size >= SMALLEST_COLLECTION and self._collections_bytes <= LARGEST_HEAP)
            _require(size % 8 == 0)
            data = self._pieces.at(address + COLLECTION.size, size - COLLECTION.size)
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
        self._left = len(heap)
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
        node = self._pieces.at(address, NODE_BYTES)
        signature, kind, level, used, left, right = NODE.unpack_from(node)
        _require(signature == b"TREE" and kind == 0 and used <= 2 * INTERNAL_K)
        _require(level <= DEEPEST_TREE if expected is None else level == expected and used > 0)
        _require(self._before.get(level, (UNDEFINED, address)) == (left, address))
        self._before[level] = address, right
        numbers = struct.unpack_from(f"<{2 * used + 1}Q", node, NODE.size)
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
        data = self._pieces.at(address, LEAF_BYTES)
        signature, version, reserved, used = LEAF.unpack_from(data)
        _require(signature == b"SNOD" and version == 1 and reserved == 0)
        _require(0 < used <= 2 * LEAF_K)
        for number in range(used):
            begin, address, symbol_table = _entry(data, LEAF.size + number * ENTRY.size)
            name = _name_at(self._heap, begin)
            _require(before < name <= last and name != b"." and b"/" not in name)
            self._left -= len(name) + 1
            _require(self._left >= 0)
            self._found.append(_Member(name, address, symbol_table))
            before = name


def _entry(data: bytes, position: int) -> tuple[int, int, bytes | None]:
    """A symbol table entry: where its name is, its object header, what it repeats of that."""
    name, address, cache_type, _, scratch = ENTRY.unpack_from(data, position)
    _require(cache_type in {NOTHING_CACHED, SYMBOL_TABLE_CACHED})
    return name, address, scratch if cache_type == SYMBOL_TABLE_CACHED else None


def _heap_objects(data: bytes) -> dict[int, bytes]:
    """The objects behind the header of a global heap collection; number 0 is the free space."""
    found: dict[int, bytes] = {}
    position = 0
    while position + HEAP_OBJECT.size <= len(data):
        number, _, _, size = HEAP_OBJECT.unpack_from(data, position)
        if number == 0:
            _require(position + size == len(data))
            break
        begin = position + HEAP_OBJECT.size
        position = begin + size + -size % 8
        _require(number not in found and position <= len(data))
        found[number] = data[begin : begin + size]
    return found


def _name_at(heap: bytes, begin: int) -> bytes:
    is_inside = begin < len(heap)
    end = heap.find(b"\0", begin, begin + LONGEST_NAME + 1) if is_inside else -1
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
    _require(datatype in STRINGS or datatype in DATATYPES)
    item_bytes = REFERENCE.size if datatype in STRINGS else DATATYPES[datatype].itemsize
    shape = _dataspace(dataspace)
    data = body[position : position + math.prod(shape) * item_bytes]
    _require(len(data) == math.prod(shape) * item_bytes)
    return name[:-1], _Attribute(datatype, dataspace, data)


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
        members = self._structures.members(group.messages[SYMBOL_TABLE])
        by_name = [(_decoded(member.name), member) for member in members]
        for name, member in sorted(by_name, key=lambda entry: natural_key(entry[0])):
            found = self._structures.object_header(member)
            if found.is_group:
                self._group(found, f"{prefix}{name}/")
            else:
                self._datasets.append(self._dataset(found, prefix + name))

    def _dataset(self, found: _Object, path: str) -> Dataset:
        _require(found.messages[FILL_VALUE] in FILL_VALUES)
        shape = _dataspace(found.messages[DATASPACE])
        dtype = self._dtype(found)
        declared = math.prod(shape) * dtype.itemsize
        layout = found.messages[DATA_LAYOUT]
        _require(len(layout) == 24 and layout[:2] == b"\x03\x01")  # version 3, contiguous
        offset, stored = PAIR.unpack_from(layout, 2)
        _require(stored == declared)
        if declared == 0:
            _require(offset == UNDEFINED)
            offset = THROUGH_LIBRARY
        else:
            _require(0 < offset <= self._structures.end - declared)
        return Dataset(path, shape, dtype, offset, tile_bytes=0, address=None)

    def _dtype(self, found: _Object) -> np.dtype[Any]:
        """The dtype of the values; Keras marks bfloat16 with an attribute, or not at all."""
        encoded = found.messages[DATATYPE]
        if encoded == TWO_OPAQUE_BYTES:
            mark = found.attributes.get(b"dtype")
            _require(mark is None or self._structures.text(mark) == "bfloat16")
            return bfloat16()
        _require(encoded in PADDED_DATATYPES)
        return PADDED_DATATYPES[encoded]


class PlainObject:
    """A group or dataset of a file in the dialect.

    Every method raises NotPlain where the file leaves the dialect.
    """

    def __init__(self, structures: _Structures, member: _Member) -> None:
        self._structures = structures
        self._found = structures.object_header(member)
        self.is_group = self._found.is_group

    def members(self) -> Iterator[tuple[bytes, PlainObject]]:
        """The members of a group, sorted by the bytes of their names; each may be asked once."""
        for member in self._structures.members(self._found.messages[SYMBOL_TABLE]):
            yield member.name, PlainObject(self._structures, member)

    def attributes(self) -> Iterator[tuple[bytes, bytes, bytes, bytes | list[bytes]]]:
        """Yields name, datatype, dataspace and value of each attribute, as the file encodes them.

        The values of strings are a list.
        """
        for name, attribute in self._found.attributes.items():
            is_text = attribute.datatype in STRINGS
            value = self._structures.strings(attribute) if is_text else attribute.data
            yield name, attribute.datatype, attribute.dataspace, value

    def dataspace(self) -> bytes:
        """The dataspace message of a dataset."""
        return self._found.messages[DATASPACE]


def open_root(read: Read, size: int) -> PlainObject:
    """The root group of a file; arguments as `read_headers`. Raises: NotPlain."""
    structures = _Structures(read, size)
    return PlainObject(structures, structures.root)


def _outline(structures: _Structures) -> Outline:
    root = structures.object_header(structures.root)
    members = {}
    for member in structures.members(root.messages[SYMBOL_TABLE]):
        found = structures.object_header(member)
        inside = structures.members(found.messages[SYMBOL_TABLE]) if found.is_group else []
        members[_decoded(member.name)] = frozenset(_decoded(inner.name) for inner in inside)
    return Outline(frozenset(root.attributes), members)


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise NotPlain from None
