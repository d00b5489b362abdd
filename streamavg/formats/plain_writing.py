"""Writing the headers of an HDF5 file in the dialect that Keras writes, without the HDF5 library.

    superblock -> object header of the root group, which is the last header of all
    values, in the order of the reference's variables
    of each dataset:          object header -> values
    of each group, behind all that is in it:
        HEAP (local heap)     names of the members, sorted
        SNOD, SNOD, ...       8 symbol table entries each: name, object header
        TREE, TREE, ...       level 0, 32 leaves each; then level 1, ..., up to one node
        object header         symbol table message -> root of the tree, heap; attributes
    GCOL, in between:         strings that attributes refer to

The headers mirror the reference: same groups, same attributes, the datasets that are written. The
values come first because their size is known before any header is made, so that each header is
complete when it is made. Nothing depends on time or chance: the same merge writes the same bytes.

The values of small variables lie next to each other, so that a slab of them is written at once.
Source: HDF5 File Format Specification version 3.0, as in `plain_headers`.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamavg.formats.datasets import THROUGH_LIBRARY
from streamavg.formats.plain_structures import (
    ATTRIBUTE,
    COLLECTION,
    DATA_LAYOUT,
    DATASPACE,
    DATATYPE,
    DATATYPES,
    ENTRY,
    FILL_VALUE,
    HEAP,
    HEAP_OBJECT,
    INTERNAL_K,
    LEAF,
    LEAF_BYTES,
    LEAF_K,
    MESSAGE,
    NO_FREE_BLOCK,
    NODE,
    NODE_BYTES,
    NOTHING_CACHED,
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
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from streamavg.checkpoint import Variable
    from streamavg.formats.plain_headers import PlainObject

VALUES_ALIGNMENT = 64
FIRST_VALUE = 128
"""Byte, behind the superblock."""
PIECE_BYTES = 256 * 1024
"""Headers that are made before they are compressed."""
LARGE = 4096
"""Bytes from which on a variable's values are aligned; smaller ones are packed."""
LARGEST_MESSAGE = 65528
"""Bytes; more attribute than this goes elsewhere in a way that is not written here."""
_ENCODED = {dtype: encoded for encoded, dtype in DATATYPES.items()}
_NO_VALUE = bytes.fromhex("02 02 02 01 00000000")
"""Fill value message, version 2: allocated late, written if set, none given."""
_SCALAR = bytes.fromhex("01 00 00 00 00000000")
_TEXT = max(STRINGS)
"""The encoding of one string in UTF-8."""
_CONSTANT = 1
"""Flag of messages that never change."""


class NotWritableError(Exception):
    """The headers need something that is not written here; the library can."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A dataset to be."""

    dtype: np.dtype[Any]
    first_byte: int
    """Of its values in the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """An HDF5 file without its values.

    Memory: headers are mostly zeros and repetitions; compressed, about 100 bytes an object.
    """

    superblock: bytes
    """The beginning of the file."""
    start: int
    """First byte of the other headers."""
    compressed: list[bytes]
    """Those, in pieces that follow each other in the file."""
    offsets: list[int]
    """First byte of the values of each variable; -1 where it is left out."""

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yields offset and content of all parts of the file that are no values."""
        offset = self.start
        for compressed in self.compressed:
            piece = zlib.decompress(compressed)
            yield offset, piece
            offset += len(piece)
        yield 0, self.superblock


def make_skeleton(
    root: PlainObject,
    variables: Sequence[Variable],
    dtypes: Sequence[np.dtype[Any] | None],
    excluded: frozenset[str],
    required: bytes,
) -> Skeleton:
    """Makes the headers of a file like another one.

    Args:
        root: the root group of the reference.
        variables: of the reference; their values come in this order.
        dtypes: of the values that will be written, one a variable; None where it is left out.
        excluded: paths of groups that are left out with all that is in them.
        required: name of a group that the root has in any case.

    Raises:
        NotPlain: the reference leaves the dialect.
        NotWritableError: see there.
    """
    planned, end = plan_values([variable.shape for variable in variables], dtypes)
    datasets = {
        variable.path: place
        for variable, place in zip(variables, planned, strict=True)
        if place is not None
    }
    writer = _Writer(datasets, excluded, end + -end % 8)
    superblock = writer.write(root, required)
    offsets = [THROUGH_LIBRARY if place is None else place.first_byte for place in planned]
    return Skeleton(superblock, end + -end % 8, writer.compressed, offsets)


def plan_values(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any] | None]
) -> tuple[list[Planned | None], int]:
    """Places values one behind the other, in the order given.

    Args:
        shapes: one a variable.
        dtypes: of the values that will be written; None for variables that are left out.

    Returns:
        Where each goes, and the end of the last.
    """
    planned: list[Planned | None] = []
    end = FIRST_VALUE
    for shape, dtype in zip(shapes, dtypes, strict=True):
        if dtype is None:
            planned.append(None)
            continue
        nbytes = math.prod(shape) * dtype.itemsize
        end += -end % (VALUES_ALIGNMENT if nbytes >= LARGE else dtype.itemsize)
        planned.append(Planned(dtype, end, nbytes))
        end += nbytes
    return planned, end


class _Writer:
    """Appends structures, each by a method of its own.

    Args:
        datasets: those that are written, by path.
        excluded: see `make_skeleton`.
        start: address of the first structure.

    Attributes:
        compressed: what was written so far, in pieces.
    """

    def __init__(
        self, datasets: Mapping[str, Planned], excluded: frozenset[str], start: int
    ) -> None:
        self.compressed: list[bytes] = []
        self._datasets = datasets
        self._excluded = excluded
        self._written = 0
        self._piece = bytearray()
        self._piece_address = start
        self._collection: _Collection | None = None

    def write(self, source: PlainObject, required: bytes) -> bytes:
        """Mirrors the root group and all below it. Returns the superblock."""
        root = self._group(source, "", required)
        if self._written != len(self._datasets):
            raise NotWritableError
        self._flush()
        signature = (SIGNATURE, VERSIONS_AND_SIZES)
        return SUPERBLOCK.pack(*signature, 0, UNDEFINED, self._end(), UNDEFINED) + root

    def _end(self) -> int:
        """Address of the next structure."""
        return self._piece_address + len(self._piece)

    def _append(self, data: bytes) -> int:
        address = self._end()
        self._piece += padded(data)
        return address

    def _flush(self) -> None:
        """Compresses the piece at hand, and begins a new one."""
        self._close_collection()
        self.compressed.append(zlib.compress(self._piece, level=1))
        self._piece_address = self._end()
        self._piece = bytearray()

    def _reference(self, text: bytes) -> bytes:
        """Stores a string in the global heap; returns the reference to it."""
        needed = HEAP_OBJECT.size + len(padded(text))
        if self._collection is None or self._collection.free < needed:
            self._close_collection()
            size = max(SMALLEST_COLLECTION, COLLECTION.size + needed)
            self._collection = _Collection(self._append(bytes(size)), size)
        return self._collection.add(text)

    def _close_collection(self) -> None:
        if self._collection is not None:
            begin = self._collection.address - self._piece_address
            data = self._collection.encoded()
            self._piece[begin : begin + len(data)] = data
            self._collection = None

    def _group(self, source: PlainObject, prefix: str, required: bytes = b"") -> bytes:
        """A group and all below it; returns its symbol table entry, without a name."""
        entries: dict[bytes, bytes] = {}
        for name, member in source.members():
            if len(self._piece) > PIECE_BYTES:
                self._flush()
            path = prefix + name.decode()
            if path in self._excluded:
                continue
            if member.is_group:
                entries[name] = self._group(member, f"{path}/")
            elif path in self._datasets:
                entries[name] = self._dataset(member, self._datasets[path])
        if required and required not in entries:
            entries[required] = self._members({}, [])
        return self._members(dict(sorted(entries.items())), self._attributes(source))

    def _members(self, entries: dict[bytes, bytes], attributes: list[bytes]) -> bytes:
        """A group with these symbol table entries, by name, which are sorted."""
        heap, places = self._local_heap(list(entries))
        tree = self._tree(list(entries.values()), places)
        symbol_table = PAIR.pack(tree, heap)
        messages = [_message(SYMBOL_TABLE, symbol_table), *attributes]
        return ENTRY.pack(0, self._object_header(messages), SYMBOL_TABLE_CACHED, 0, symbol_table)

    def _object_header(self, messages: list[bytes]) -> int:
        body = b"".join(messages)
        if len(messages) > 0xFFFF:
            raise NotWritableError
        return self._append(PREFIX.pack(1, 0, len(messages), 1, len(body)) + body)

    def _local_heap(self, names: list[bytes]) -> tuple[int, list[int]]:
        """The heap of a group's names, and where in it each is. It begins with an empty name."""
        data = bytearray(8)
        places = []
        for name in names:
            places.append(len(data))
            data += padded(name + b"\0")
        address = self._end()
        begin = address + HEAP.size
        self._append(HEAP.pack(b"HEAP", 0, ZEROS, len(data), NO_FREE_BLOCK, begin) + data)
        return address, places

    def _tree(self, entries: list[bytes], places: list[int]) -> int:
        """The leaves of a group and the nodes above them; returns the root's address."""
        children: list[int] = []
        last_names: list[int] = []
        for first in range(0, len(entries), 2 * LEAF_K):
            part = entries[first : first + 2 * LEAF_K]
            names = places[first : first + 2 * LEAF_K]
            children.append(self._leaf(part, names))
            last_names.append(names[-1])
        level = 0
        while True:
            children, last_names = self._level(level, children, last_names)
            if len(children) == 1:
                return children[0]
            level += 1

    def _leaf(self, entries: list[bytes], names: list[int]) -> int:
        """A symbol table node."""
        data = LEAF.pack(b"SNOD", 1, 0, len(entries)) + b"".join(
            struct.pack("<Q", name) + entry[8:] for name, entry in zip(names, entries, strict=True)
        )
        return self._append(data.ljust(LEAF_BYTES, b"\0"))

    def _level(
        self, level: int, children: list[int], last_names: list[int]
    ) -> tuple[list[int], list[int]]:
        """The nodes of one level, which know their neighbours; one at least."""
        most = 2 * INTERNAL_K
        first_address = self._end()
        count = max(1, math.ceil(len(children) / most))
        nodes, ends = [], []
        before = 0  # the key in front of all names is the empty one
        for number in range(count):
            part = slice(number * most, (number + 1) * most)
            keys = [before, *last_names[part]]
            left = first_address + (number - 1) * NODE_BYTES if number else UNDEFINED
            right = first_address + (number + 1) * NODE_BYTES if number + 1 < count else UNDEFINED
            nodes.append(self._node(level, left, right, keys, children[part]))
            before = keys[-1]
            ends.append(before)
        return nodes, ends

    def _node(self, level: int, left: int, right: int, keys: list[int], children: list[int]) -> int:
        """A node of a group's B-tree: key, child, key, child, ..., key."""
        numbers = [keys[0]]
        for child, key in zip(children, keys[1:], strict=True):
            numbers += (child, key)
        data = NODE.pack(b"TREE", 0, level, len(children), left, right)
        data += struct.pack(f"<{len(numbers)}Q", *numbers)
        return self._append(data.ljust(NODE_BYTES, b"\0"))

    def _dataset(self, source: PlainObject, planned: Planned) -> bytes:
        """The object header of a dataset; returns its symbol table entry, without a name."""
        is_bfloat16 = planned.dtype.kind == "V"
        encoded = TWO_OPAQUE_BYTES if is_bfloat16 else _ENCODED.get(planned.dtype)
        if encoded is None:
            raise NotWritableError
        attributes = self._attributes(source, without=b"dtype")
        if is_bfloat16:
            attributes.append(self._attribute(b"dtype", _TEXT, _SCALAR, [b"bfloat16"]))
        first_byte = planned.first_byte if planned.nbytes else UNDEFINED
        layout = b"\x03\x01" + PAIR.pack(first_byte, planned.nbytes)
        messages = [
            _message(DATASPACE, source.dataspace()),
            _message(DATATYPE, encoded, _CONSTANT),
            _message(FILL_VALUE, _NO_VALUE, _CONSTANT),
            _message(DATA_LAYOUT, layout),
        ]
        address = self._object_header([*messages, *attributes])
        self._written += 1
        return ENTRY.pack(0, address, NOTHING_CACHED, 0, bytes(16))

    def _attributes(self, source: PlainObject, without: bytes | None = None) -> list[bytes]:
        return [
            self._attribute(name, datatype, dataspace, value)
            for name, datatype, dataspace, value in source.attributes()
            if name != without
        ]

    def _attribute(
        self, name: bytes, datatype: bytes, dataspace: bytes, value: bytes | list[bytes]
    ) -> bytes:
        """An attribute message, version 1."""
        if isinstance(value, list):
            value = b"".join(self._reference(each) for each in value)
        name += b"\0"
        body = struct.pack("<BBHHH", 1, 0, len(name), len(datatype), len(dataspace))
        body += padded(name) + padded(datatype) + padded(dataspace) + value
        if len(body) > LARGEST_MESSAGE:
            raise NotWritableError
        return _message(ATTRIBUTE, body)


class _Collection:
    """A global heap collection: strings that are numbered from 1 on."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self._size = size
        self._objects = bytearray()
        self._count = 0

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self._size - COLLECTION.size - len(self._objects)

    def add(self, text: bytes) -> bytes:
        """Stores a string; returns the reference to it."""
        self._count += 1
        self._objects += HEAP_OBJECT.pack(self._count, 1, 0, len(text)) + padded(text)
        return REFERENCE.pack(len(text), self.address, self._count)

    def encoded(self) -> bytes:
        """The collection; what is left of it is object 0, the free space."""
        data = COLLECTION.pack(b"GCOL", 1, ZEROS, self._size) + self._objects
        if self.free >= HEAP_OBJECT.size:
            data += HEAP_OBJECT.pack(0, 0, 0, self.free)
        return data


def _message(kind: int, body: bytes, flags: int = 0) -> bytes:
    body = padded(body)
    return MESSAGE.pack(kind, len(body), flags, ZEROS) + body
