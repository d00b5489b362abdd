"""HDF5 as Keras uses it, read without trust.

The headers are read with the HDF5 library; the values of a plain dataset are then read by offset
from the file itself. "Plain" means: contiguous, unfiltered, little-endian, of a type whose bytes
are its values, completely stored and inside the file. All other datasets (chunked, compressed,
big-endian, never written) are read by the library, which is slower and holds one global lock.

What reaches outside the file or promises more than it stores is refused by name: external and
soft links, external storage, virtual datasets, unknown filters, shapes far beyond the stored
bytes, cycles of groups.

Source: HDF5 File Format Specification version 3.0, and the Keras formats in docs/formats.md.
"""

from __future__ import annotations

import atexit
import copy
import math
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from streamavg.checkpoint import ABSENT
from streamavg.dtypes import bfloat16
from streamavg.errors import CorruptFileError, UnsafeFileError, UnsupportedFeatureError
from streamavg.formats.files import OPEN_HDF5_FILES, RandomAccessFile, RecentlyOpened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.checkpoint import Checkpoint

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DEEPEST_GROUP = 64
"""Nested models go a few levels deep; HDF5 itself allows cycles."""
LARGEST_TILE_CACHE = 1024**2
METADATA_CACHE = 128 * 1024
"""Bytes a file. The library's default grows to 32 MiB, and reading is no faster for it."""
INFLATION_FLOOR = 16 * 1024**2
LARGEST_INFLATION = 1000
"""A dataset above the floor may declare at most this many times the bytes that it stores."""
_KNOWN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,
}
_BFLOAT16_FIELDS = (15, 7, 8, 0, 7)
"""Sign, exponent and mantissa positions and widths of a bfloat16 stored as HDF5 float."""
_DIGITS = re.compile(r"([0-9]+)")
_THROUGH_LIBRARY = -1
_ABSENT_OFFSET = -2


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the header of one dataset says."""

    path: str
    """Within the HDF5 file, without a leading slash."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """In native byte order; bfloat16 where that is what the bytes are; object for strings."""
    offset: int
    """First byte of the values within the HDF5 file; -1 if only the library can read them."""
    tile_bytes: int
    """Bytes of one chunk that must be decoded whole; 0 if none."""
    address: int | None
    """Identifies the stored object if several paths may lead to it, else None."""


class Hdf5File:
    """An HDF5 file on disk, or inside a stretch of another file.

    Args:
        file: the file on disk.
        start: byte of `file` where the HDF5 file begins.
        size: its size in bytes; None if it is the whole file.
        path: what errors name; the path of `file` unless that is a temporary one.
        check: compares the content with the checksum of the container that it lies in.
    """

    def __init__(
        self,
        file: RandomAccessFile,
        start: int = 0,
        size: int | None = None,
        path: Path | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.file = file
        self.start = start
        self.whole = size is None
        self.size = file.size if size is None else size
        self.path = file.path if path is None else path
        self.check = check
        self._last: tuple[str, h5py.h5d.DatasetID] | None = None

    @contextmanager
    def opened(self) -> Iterator[h5py.File]:
        """Opens the headers, and closes them at the end of the block.

        Raises:
            CorruptFileError: not a complete HDF5 file, or being written by another process.
            ChangedFileError: the file is not the one that was opened first.
        """
        with self._translated_errors():
            # By its name, so that the library sees the lock of a process that is writing it.
            opened = h5py.File(self.path, "r") if self.whole else self._open_window()
            with opened:
                limit_metadata_cache(opened)
                self.file.require_same()
                yield opened

    def _open_window(self) -> h5py.File:
        """Opens the headers by way of the one descriptor whose identity is known."""
        opened = h5py.File(_Window(self), "r", rdcc_nbytes=LARGEST_TILE_CACHE)
        limit_metadata_cache(opened)
        return opened

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
            _raise_refusal()
        except BlockingIOError as error:
            raise CorruptFileError(
                self.path,
                "is open for writing in another process. Wait until the checkpoint is saved.",
            ) from error
        except (OSError, RuntimeError, KeyError, ValueError, SystemError) as error:
            _raise_refusal()
            if type(error).__module__.startswith("streamavg"):
                raise
            raise CorruptFileError(self.path, f"is not a readable HDF5 file: {error}.") from error

    def read_through_library(self, dataset: Dataset, start: int, out: NDArray[Any]) -> None:
        """Fills `out` with elements of a dataset that cannot be read by offset."""
        with self._translated_errors(), _hdf5_files.using(self, self._open_window) as opened:
            _read_elements(self._opened_dataset(opened, dataset), dataset, start, out)

    def _opened_dataset(self, opened: h5py.File, dataset: Dataset) -> h5py.h5d.DatasetID:
        """A dataset that stays open: the library drops decoded chunks when it is closed."""
        if self._last is None or self._last[0] != dataset.path or not self._last[1].id:
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            slots, _, weight = access.get_chunk_cache()
            access.set_chunk_cache(slots, max(LARGEST_TILE_CACHE, dataset.tile_bytes), weight)
            found = h5py.h5d.open(opened.id, dataset.path.encode(), dapl=access)
            self._last = dataset.path, found
        return self._last[1]

    def close(self) -> None:
        """Closes everything that is open; reading opens it again."""
        self._last = None
        _hdf5_files.close(self)
        self.file.close()


_hdf5_files = RecentlyOpened[h5py.File](OPEN_HDF5_FILES, h5py.File.close)
# An h5py file over a Python file object that is still open at exit crashes the interpreter.
atexit.register(_hdf5_files.close_all)


class _Refusals(threading.local):
    """What stopped the reading of a window inside the library, an interrupt or an error."""

    error: BaseException | None = None


_refusals = _Refusals()


def _raise_refusal() -> None:
    error, _refusals.error = _refusals.error, None
    if error is not None:
        raise error


class _Window:
    """The stretch of a file that holds an HDF5 file, as the file object that h5py reads."""

    def __init__(self, hdf5: Hdf5File) -> None:
        self._hdf5 = hdf5
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._hdf5.size)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._hdf5.size - self._position))
        try:
            self._hdf5.file.read_into(self._hdf5.start + self._position, memoryview(buffer)[:count])
        except BaseException as error:  # the library cannot pass it on
            _refusals.error = error
            return 0
        self._position += count
        return count

    def read(self, size: int = -1) -> bytes:
        remaining = max(0, self._hdf5.size - self._position)
        data = bytearray(remaining if size < 0 else min(size, remaining))
        self.readinto(memoryview(data))
        return bytes(data)

    def flush(self) -> None:
        """Nothing to flush: the window is read-only."""


class Hdf5Values:
    """The values of the datasets of one HDF5 file. Implements `streamavg.checkpoint.Values`.

    Memory: 8 bytes a dataset, and the header of each that is not plain.
    """

    def __init__(self, hdf5: Hdf5File, datasets: Sequence[Dataset]) -> None:
        self._hdf5 = hdf5
        self._offsets = np.fromiter((d.offset for d in datasets), np.int64, len(datasets))
        self._detours = {p: d for p, d in enumerate(datasets) if d.offset == _THROUGH_LIBRARY}

    @property
    def hdf5(self) -> Hdf5File:
        """The file that holds the values."""
        return self._hdf5

    @property
    def library_bytes(self) -> int:
        """See `Values`: the cache of decoded chunks, and one chunk before and after decoding."""
        if not self._detours:
            return 0
        return LARGEST_TILE_CACHE + 3 * max(d.tile_bytes for d in self._detours.values())

    def read_into(self, position: int, start: int, out: NDArray[Any]) -> None:
        """See `Values`."""
        if not out.size:
            return
        offset = int(self._offsets[position])
        assert offset != _ABSENT_OFFSET, "only variables of the checkpoint are read"
        if offset == _THROUGH_LIBRARY:
            self._hdf5.read_through_library(self._detours[position], start, out)
        else:
            first = self._hdf5.start + offset + start * out.itemsize
            self._hdf5.file.read_into(first, out.view(np.uint8).data)

    def aligned(self, positions: NDArray[np.int64]) -> Hdf5Values:
        """See `Values`."""
        other = copy.copy(self)
        is_present = positions != ABSENT
        other._offsets = np.full(len(positions), _ABSENT_OFFSET, np.int64)
        other._offsets[is_present] = self._offsets[positions[is_present]]
        other._detours = {
            new: self._detours[old]
            for new, old in enumerate(positions.tolist())
            if old in self._detours
        }
        return other

    def verify(self) -> None:
        """See `Values`. HDF5 itself keeps no checksum of contiguous data; an archive does."""
        if self._hdf5.check is not None:
            self._hdf5.check()

    def close(self) -> None:
        """See `Values`."""
        self._hdf5.close()


def limit_metadata_cache(opened: h5py.File) -> None:
    """Keeps the headers that the library holds in memory small, whatever the file's size."""
    cache = opened.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = METADATA_CACHE
    opened.id.set_mdc_config(cache)


def hdf5_of(checkpoint: Checkpoint) -> Hdf5File:
    """The HDF5 file that holds a checkpoint's values."""
    values = checkpoint.values
    assert isinstance(values, Hdf5Values), "all formats here are HDF5 inside"
    return values.hdf5


def walk(group: h5py.Group, hdf5: Hdf5File, prefix: str = "") -> Iterator[Dataset]:
    """Finds all datasets in a group and below.

    Args:
        group: where to start.
        hdf5: the file.
        prefix: path of `group` with a slash behind it, or nothing for the root.

    Yields:
        The header of each dataset, groups in natural order (`dense_2` before `dense_10`); a
        dataset that several paths lead to comes once for each of them.

    Raises:
        FormatError: links, groups or datasets as described above.
    """
    yield from _walk_group(group.id, prefix, Describer(hdf5), GroupGuard(hdf5.path))


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


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers inside names by value: "2" < "10", "dense" < "dense_2" < "dense_10"."""
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if _DIGITS.fullmatch(part) else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )


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
        hdf5: the file.
    """

    def __init__(self, hdf5: Hdf5File) -> None:
        self.path = hdf5.path
        self._size = hdf5.size
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
            offset = _THROUGH_LIBRARY
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
        unknown = [code for code in filters if code not in _KNOWN_FILTERS]
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


def _read_elements(
    source: h5py.h5d.DatasetID, dataset: Dataset, start: int, out: NDArray[Any]
) -> None:
    space = source.get_space()
    done = 0
    for first, extent in boxes(dataset.shape, start, out.size):
        count = math.prod(extent)
        target = out[done : done + count]
        done += count
        if dataset.dtype.kind == "O":
            index = tuple(slice(f, f + e) for f, e in zip(first, extent, strict=True))
            target[:] = np.asarray(h5py.Dataset(source)[index], object).reshape(-1)
            continue
        is_raw = dataset.dtype.kind == "V"
        memory_type = source.get_type() if is_raw else _memory_type(dataset.dtype)
        if first:
            space.select_hyperslab(first, extent)
        memory = h5py.h5s.create_simple((count,))
        source.read(memory, space, target.view(_readable(target.dtype)), mtype=memory_type)


def _memory_type(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype)


def _readable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """bfloat16 under the dtype that h5py accepts for it: opaque bytes."""
    return np.dtype(f"V{dtype.itemsize}") if dtype.kind == "V" else dtype


def boxes(
    shape: tuple[int, ...], start: int, count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts a run of consecutive elements into boxes (HDF5 hyperslabs), in C order.

    Args:
        shape: of the array.
        start: first element of the run, in C order.
        count: number of elements in the run.

    Yields:
        First index and extent of each box, one integer per axis; at most 2 * rank - 1 boxes.
    """
    if len(shape) <= 1:
        if count:
            yield ((start,), (count,)) if shape else ((), ())
        return
    row_elements = math.prod(shape[1:])
    row, skipped = divmod(start, row_elements)
    if skipped or count < row_elements:
        head = min(row_elements - skipped, count)
        for first, extent in boxes(shape[1:], skipped, head):
            yield (row, *first), (1, *extent)
        row, count = row + 1, count - head
    rows, tail = divmod(count, row_elements)
    if rows:
        yield (row, *(0 for _ in shape[1:])), (rows, *shape[1:])
    if tail:
        for first, extent in boxes(shape[1:], 0, tail):
            yield (row + rows, *first), (1, *extent)
