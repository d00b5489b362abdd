"""The headers of any HDF5 file, read through the HDF5 library, without trust.

What reaches outside the file or promises more than it stores is refused by name: external and
soft links, external storage, virtual datasets, unknown filters, shapes far beyond the stored
bytes, groups that several paths lead to.

Source: HDF5 File Format Specification version 3.0, and the Keras formats in docs/formats.md.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.dtypes import bfloat16
from streamavg.errors import CorruptFileError, UnsafeFileError, UnsupportedFeatureError
from streamavg.formats import library as h5py
from streamavg.formats.datasets import DEEPEST_GROUP, THROUGH_LIBRARY, Dataset
from streamavg.natural_order import natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INFLATION_FLOOR = 16 * 1024**2
LARGEST_INFLATION = 1000
"""A dataset above the floor may declare at most this many times the bytes that it stores."""
_BFLOAT16_FIELDS = (15, 7, 8, 0, 7)
"""Sign, exponent and mantissa positions and widths of a bfloat16 stored as HDF5 float."""


def walk(group: h5py.Group, describer: Describer, prefix: str = "") -> Iterator[Dataset]:
    """Finds all datasets in a group and below.

    Args:
        group: where to start.
        describer: reads the headers of this file.
        prefix: path of `group` with a slash behind it, or nothing for the root.

    Yields:
        The header of each dataset, groups in natural order (`dense_2` before `dense_10`); a
        dataset that several paths lead to comes once for each of them.

    Raises:
        FormatError: links, groups or datasets as described above.
    """
    yield from _walk_group(group.id, prefix, describer, GroupGuard(describer.path))


class GroupGuard:
    """Refuses groups that several paths lead to: Keras makes none, and cycles have no end.

    Args:
        path: of the file, for errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[int, str] = {}

    def enter(self, group: h5py.h5g.GroupID, prefix: str) -> None:
        """Takes note of a group. Raises: UnsafeFileError."""
        name = prefix.rstrip("/") or "/"
        if prefix.count("/") > DEEPEST_GROUP:
            raise UnsafeFileError(
                self._path, f"groups are nested more than {DEEPEST_GROUP} deep at {name[:80]!r}."
            )
        address = h5py.h5o.get_info(group).addr
        first = self._seen.setdefault(address, name)
        if first != name:
            is_inside = name.startswith(f"{first}/") or first == "/"
            what = "contains itself" if is_inside else f"is {first!r} under another name"
            raise UnsafeFileError(self._path, f"group {name!r} {what}.")


def _walk_group(
    group: h5py.h5g.GroupID, prefix: str, describer: Describer, guard: GroupGuard
) -> Iterator[Dataset]:
    guard.enter(group, prefix)
    for name in sorted((raw.decode("utf-8") for raw in group), key=natural_key):
        child = open_child(group, name, prefix, describer.path)
        if isinstance(child, h5py.h5g.GroupID):
            yield from _walk_group(child, f"{prefix}{name}/", describer, guard)
        elif isinstance(child, h5py.h5d.DatasetID):
            yield describer.describe(child, prefix + name)


def open_child(group: h5py.h5g.GroupID, name: str, prefix: str, path: Path) -> Any:
    """Opens a member of a group, if it is part of the same file.

    Raises:
        UnsafeFileError: the member is a soft, external or user-defined link.
        CorruptFileError: there is no such member.
    """
    raw = name.encode()
    try:
        link = group.links.get_info(raw)
    except KeyError:
        raise CorruptFileError(
            path, f"{prefix + name!r} is named in the file but not stored."
        ) from None
    if link.type != h5py.h5l.TYPE_HARD:
        raise UnsafeFileError(
            path,
            f"{prefix + name!r} is a link to somewhere else. Keras writes no such links; "
            "load the checkpoint where it was made and save it again.",
        )
    return h5py.h5o.open(group, raw)


def is_hard_link(group: h5py.Group, name: str) -> bool:
    """Whether a member is part of the same file; looks at the link without following it."""
    return bool(group.get(name, getclass=True, getlink=True) == h5py.HardLink)


def read_text(opened: h5py.h5g.GroupID, attribute: bytes) -> str | None:
    """The value of an attribute that is one string of variable length; None if there is none."""
    if not h5py.h5a.exists(opened, attribute):
        return None
    found = h5py.h5a.open(opened, attribute)
    stored = found.get_type()
    if not isinstance(stored, h5py.h5t.TypeStringID) or not stored.is_variable_str() or found.shape:
        return None
    value = np.empty((), found.dtype)
    found.read(value)
    text = value[()]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def resolve(group: h5py.Group, relative: str, path: Path) -> Any:
    """Opens what lies at a relative path below `group`, refusing links on the way.

    Raises:
        UnsafeFileError: a link, or a path that is absolute or has empty or dotted parts.
        CorruptFileError: nothing is there.
    """
    parts = relative.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise UnsafeFileError(path, f"the name {relative!r} leads out of its layer.")
    current = group.id
    for depth, part in enumerate(parts):
        if not isinstance(current, h5py.h5g.GroupID):
            raise CorruptFileError(path, f"{relative!r} is named in the file but not stored.")
        current = open_child(current, part, "/".join(parts[:depth]) + "/" * bool(depth), path)
    return current


class Describer:
    """Reads the headers of the datasets of one file.

    Args:
        path: of the file, for errors.
        size: of the HDF5 file in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._types: dict[bytes, tuple[np.dtype[Any], bool]] = {}

    def describe(self, dataset: h5py.h5d.DatasetID, path: str) -> Dataset:
        """Reads the header of one dataset.

        Raises:
            UnsafeFileError: its data lie outside the file, or its shape is far beyond its data.
            UnsupportedFeatureError: a type or filter that cannot be averaged or carried.
            CorruptFileError: its data lie beyond the end of the file.
        """
        refuse = f"variable {path!r}: "
        space = dataset.get_space()
        if space.get_simple_extent_type() == h5py.h5s.NULL:
            raise UnsupportedFeatureError(self.path, f"{refuse}it has no shape (null dataspace).")
        shape: tuple[int, ...] = space.get_simple_extent_dims()
        offset = dataset.get_offset()  # None unless contiguous, in this file, and written
        tile_elements = 0
        if offset is None:
            tile_elements = self._tile_elements(dataset, refuse)
        dtype, is_plain = self._type_of(dataset, refuse)
        declared = math.prod(shape) * dtype.itemsize
        stored = dataset.get_storage_size()
        if declared > INFLATION_FLOOR and declared > LARGEST_INFLATION * stored:
            raise UnsafeFileError(
                self.path,
                f"{refuse}declares shape {shape}, {declared:,} bytes, but stores {stored:,} bytes.",
            )
        if offset is None or not is_plain or stored != declared:
            offset = THROUGH_LIBRARY
        elif offset + declared > self._size:
            raise CorruptFileError(self.path, f"{refuse}its data lie beyond the end of the file.")
        info = h5py.h5o.get_info(dataset)
        address = info.addr if info.rc > 1 else None
        return Dataset(path, shape, dtype, offset, tile_elements * dtype.itemsize, address)

    def _tile_elements(self, dataset: h5py.h5d.DatasetID, refuse: str) -> int:
        """Elements that the library decodes at once; refuses what is not stored in this file."""
        creation = dataset.get_create_plist()
        layout = creation.get_layout()
        if layout == h5py.h5d.VIRTUAL or creation.get_external_count():
            raise UnsafeFileError(self.path, f"{refuse}its data are in another file.")
        filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
        unknown = [code for code in filters if code not in _known_filters()]
        if unknown:
            raise UnsupportedFeatureError(
                self.path,
                f"{refuse}it is compressed with HDF5 filter {unknown[0]}. "
                "Known filters: gzip, shuffle, fletcher32, lzf.",
            )
        if layout != h5py.h5d.CHUNKED or not filters:
            return 0
        return math.prod(map(int, creation.get_chunk()))

    def _type_of(self, dataset: h5py.h5d.DatasetID, refuse: str) -> tuple[np.dtype[Any], bool]:
        """The dtype of the values, and whether the stored bytes are the array's bytes here."""
        stored = dataset.get_type()
        if stored.get_class() == h5py.h5t.OPAQUE:  # its meaning is in an attribute
            return _native_dtype(dataset, stored, refuse, self.path), True
        key = stored.encode()
        if key not in self._types:
            dtype = _native_dtype(dataset, stored, refuse, self.path)
            self._types[key] = dtype, _bytes_are_values(stored, dtype)
        return self._types[key]


def _known_filters() -> set[int]:
    h5z = h5py.h5z
    return {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF}


def _native_dtype(
    dataset: h5py.h5d.DatasetID, stored: h5py.h5t.TypeID, refuse: str, path: Path
) -> np.dtype[Any]:
    """The NumPy dtype whose values the dataset holds, in native byte order."""
    kind, size = stored.get_class(), stored.get_size()
    if kind == h5py.h5t.OPAQUE and size == 2 and _opaque_is_bfloat16(dataset):
        return bfloat16()
    if kind == h5py.h5t.FLOAT and size == 2 and _is_bfloat16_float(stored):
        return bfloat16()
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except TypeError:
        dtype = np.dtype(np.void)
    if kind == h5py.h5t.STRING or h5py.check_string_dtype(dtype) is not None:
        return np.dtype(object)
    is_number = kind in {h5py.h5t.FLOAT, h5py.h5t.INTEGER, h5py.h5t.ENUM}
    if not is_number or size != dtype.itemsize or size > 8:
        raise UnsupportedFeatureError(
            path,
            f"{refuse}values of HDF5 type {type(stored).__name__} ({size} bytes) are not "
            "averaged. Known: floats of 2 to 8 bytes, bfloat16, integers, bools, strings.",
        )
    return dtype.newbyteorder("=")


def _opaque_is_bfloat16(dataset: h5py.h5d.DatasetID) -> bool:
    """Keras marks bfloat16 with a `dtype` attribute in `.weights.h5`, and not at all in `.h5`."""
    if not h5py.h5a.exists(dataset, b"dtype"):
        return True
    return str(h5py.Dataset(dataset).attrs["dtype"]) == "bfloat16"


def _is_bfloat16_float(stored: h5py.h5t.TypeFloatID) -> bool:
    return bool(stored.get_fields() == _BFLOAT16_FIELDS and stored.get_ebias() == 127)


def _bytes_are_values(stored: h5py.h5t.TypeID, dtype: np.dtype[Any]) -> bool:
    """Whether stored bytes of this type are the array's bytes on this machine.

    The type must be the very one that the dtype has in memory: HDF5 also knows numbers of other
    byte orders, and of fewer bits than their bytes hold.
    """
    if dtype.kind == "O":
        return False
    if dtype.kind == "V":
        return sys.byteorder == "little" and bool(stored.get_order() == h5py.h5t.ORDER_LE)
    if stored.get_class() == h5py.h5t.ENUM:
        stored, dtype = stored.get_super(), np.dtype(np.int8) if dtype.kind == "b" else dtype
    return bool(stored == h5py.h5t.py_create(dtype))
