"""Writing the headers of an HDF5 file in the dialect that Keras writes, without the HDF5 library.

    superblock -> object header of the root group, which is the last header
    of each dataset:   object header -> values
    of each group, behind all that is in it:
        HEAP (local heap)     names of the members, sorted
        SNOD, SNOD, ...       8 symbol table entries each: name, object header
        TREE, TREE, ...       level 0, 32 leaves each; then level 1, ..., up to one node
        object header         symbol table message -> root of the tree, heap; attributes
    GCOL, in between:         strings that attributes refer to
    values, in the order of the reference's variables

The headers mirror the reference: same groups, same attributes, the datasets that are written. Where
nothing depends on time or chance, the same merge writes the same bytes on any day.

The values of small variables lie next to each other, so that a slab of them is written at once.
Source: HDF5 File Format Specification version 3.0, as in `plain_headers`.
"""

from __future__ import annotations

import math
import struct
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
    from collections.abc import Mapping, Sequence

    import numpy as np

    from streamavg.checkpoint import Variable
    from streamavg.formats.plain_headers import PlainObject

VALUES_ALIGNMENT = 64
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
    """Of the values, counted from the first value of all."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """An HDF5 file without its values.

    Memory: about 0.3 kB a dataset and 1.2 kB a group, until it is written.
    """

    headers: bytearray
    """Its beginning, up to the values."""
    offsets: list[int]
    """First byte of the values of each variable; -1 where it is left out."""
    size: int
    """Of the whole file in bytes."""


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
    planned = plan_values([variable.shape for variable in variables], dtypes)
    datasets = {
        variable.path: place
        for variable, place in zip(variables, planned, strict=True)
        if place is not None
    }
    writer = _Writer(datasets, excluded)
    writer.root(root, required)
    first, end = writer.finish()
    offsets = [THROUGH_LIBRARY if place is None else first + place.first_byte for place in planned]
    return Skeleton(writer.headers, offsets, end)


def plan_values(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any] | None]
) -> list[Planned | None]:
    """Places values one behind the other, in the order given.

    Args:
        shapes: one a variable.
        dtypes: of the values that will be written; None for variables that are left out.
    """
    planned: list[Planned | None] = []
    end = 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        if dtype is None:
            planned.append(None)
            continue
        nbytes = math.prod(shape) * dtype.itemsize
        end += -end % (VALUES_ALIGNMENT if nbytes >= LARGE else dtype.itemsize)
        planned.append(Planned(dtype, end, nbytes))
        end += nbytes
    return planned


class _Writer:
    """Appends structures, each by a method of its own.

    Attributes:
        headers: what was written so far.
    """

    def __init__(self, datasets: Mapping[str, Planned], excluded: frozenset[str]) -> None:
        self.headers = bytearray(SUPERBLOCK.size + ENTRY.size)
        self._datasets = datasets
        self._excluded = excluded
        self._layouts: list[tuple[int, Planned]] = []
        self._strings = _Strings(self.headers)
        self._root = b""

    def root(self, source: PlainObject, required: bytes) -> None:
        """Mirrors the root group and all below it."""
        self._root = self._group(source, "", required)

    def finish(self) -> tuple[int, int]:
        """Completes the headers. Returns the first byte of the values, and the file's size."""
        if len(self._layouts) != len(self._datasets):
            raise NotWritableError
        self._strings.close()
        self.headers += bytes(-len(self.headers) % VALUES_ALIGNMENT)
        first = end = len(self.headers)
        for position, planned in self._layouts:
            if planned.nbytes:
                struct.pack_into("<Q", self.headers, position, first + planned.first_byte)
                end = max(end, first + planned.first_byte + planned.nbytes)
        versions = (SIGNATURE, VERSIONS_AND_SIZES)
        SUPERBLOCK.pack_into(self.headers, 0, *versions, 0, UNDEFINED, end, UNDEFINED)
        self.headers[SUPERBLOCK.size : SUPERBLOCK.size + ENTRY.size] = self._root
        return first, end

    def _append(self, data: bytes) -> int:
        address = len(self.headers)
        self.headers += padded(data)
        return address

    def _group(self, source: PlainObject, prefix: str, required: bytes = b"") -> bytes:
        """A group and all below it; returns its symbol table entry, without a name."""
        entries: dict[bytes, bytes] = {}
        for name, member in source.members():
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
        address = len(self.headers)
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
        first_address = len(self.headers)
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
        layout = b"\x03\x01" + PAIR.pack(UNDEFINED, planned.nbytes)
        messages = [
            _message(DATASPACE, source.dataspace()),
            _message(DATATYPE, encoded, _CONSTANT),
            _message(FILL_VALUE, _NO_VALUE, _CONSTANT),
            _message(DATA_LAYOUT, layout),
        ]
        address = self._object_header([*messages, *attributes])
        before_layout = PREFIX.size + sum(map(len, messages[:-1])) + MESSAGE.size
        self._layouts.append((address + before_layout + 2, planned))
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
            value = b"".join(self._strings.add(each) for each in value)
        name += b"\0"
        body = struct.pack("<BBHHH", 1, 0, len(name), len(datatype), len(dataspace))
        body += padded(name) + padded(datatype) + padded(dataspace) + value
        if len(body) > LARGEST_MESSAGE:
            raise NotWritableError
        return _message(ATTRIBUTE, body)


class _Strings:
    """The global heap: collections of strings, appended to `out` as they are begun."""

    def __init__(self, out: bytearray) -> None:
        self._out = out
        self._address = 0
        self._objects = bytearray()
        self._count = 0
        self._size = 0

    def add(self, text: bytes) -> bytes:
        """Stores a string; returns the reference to it."""
        stored = HEAP_OBJECT.pack(self._count + 1, 1, 0, len(text)) + padded(text)
        if COLLECTION.size + len(self._objects) + len(stored) > self._size:
            self.close()
            self._begin(COLLECTION.size + len(stored))
            stored = HEAP_OBJECT.pack(1, 1, 0, len(text)) + padded(text)
        self._objects += stored
        self._count += 1
        return REFERENCE.pack(len(text), self._address, self._count)

    def _begin(self, least: int) -> None:
        self._address = len(self._out)
        self._size = max(SMALLEST_COLLECTION, least)
        self._out += bytes(self._size)

    def close(self) -> None:
        """Writes the collection at hand; what is left of it becomes object 0, the free space."""
        if not self._size:
            return
        data = COLLECTION.pack(b"GCOL", 1, ZEROS, self._size) + self._objects
        free = self._size - len(data)
        if free >= HEAP_OBJECT.size:
            data += HEAP_OBJECT.pack(0, 0, 0, free)
        self._out[self._address : self._address + len(data)] = data
        self._objects = bytearray()
        self._count = self._size = 0


def _message(kind: int, body: bytes, flags: int = 0) -> bytes:
    body = padded(body)
    return MESSAGE.pack(kind, len(body), flags, ZEROS) + body
