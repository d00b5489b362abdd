"""The values of HDF5 files as Keras writes them, read by offset.

The headers are read by `plain_headers`, or by the HDF5 library where that declines. The values of a
plain dataset are then read by offset from the file itself: contiguous, unfiltered, in this
machine's byte order, of a type whose bytes are its values, completely stored and inside the file.
All other datasets (chunked, compressed, big-endian, never written) are read by the library, which
is slower and holds one global lock.
"""

from __future__ import annotations

import atexit
import copy
import functools
import hashlib
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamavg.checkpoint import ABSENT
from streamavg.errors import BeingWrittenError, CorruptFileError
from streamavg.formats import library as h5py
from streamavg.formats.crc32 import gaps
from streamavg.formats.datasets import THROUGH_LIBRARY, Dataset
from streamavg.formats.files import OPEN_HDF5_FILES, RandomAccessFile, RecentlyOpened
from streamavg.formats.hdf5_headers import Describer
from streamavg.formats.plain_headers import (
    Headers,
    Outline,
    PlainObject,
    open_root,
    read_headers,
    read_outline,
)
from streamavg.page_buffer import STRETCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.access import Access
    from streamavg.checkpoint import Checkpoint, Run, Slab
    from streamavg.page_buffer import SlabBuffer

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LARGEST_TILE_CACHE = 1024**2
METADATA_CACHE = 128 * 1024
"""Bytes a file. The library's default grows to 32 MiB, and reading is no faster for it."""
LARGEST_GAP = 4096
"""Bytes that are read for nothing rather than in a read of their own."""
LARGEST_COMPARED = 256 * 1024**2
"""Bytes of headers; a file that has more holds something else than a Keras model."""
_ABSENT_OFFSET = -2


class ContentCheck(Protocol):
    """The checksum of the container that an HDF5 file lies in."""

    def add(self, offset: int, piece: memoryview) -> None:
        """Takes in bytes of the HDF5 file; each byte may come once. Safe for threads."""
        ...

    def finish(self) -> None:
        """Reads what was not added, and compares.

        Raises:
            CorruptFileError: the checksum is another one.
        """
        ...


class Hdf5File:
    """An HDF5 file on disk, or inside a stretch of another file.

    Args:
        file: the file on disk.
        start: byte of `file` where the HDF5 file begins.
        size: its size in bytes; None if it is the whole file.
        path: what errors name; the path of `file` unless that is a temporary one.
        check: of the container that it lies in, if that has a checksum.
    """

    def __init__(
        self,
        file: RandomAccessFile,
        start: int = 0,
        size: int | None = None,
        path: Path | None = None,
        check: ContentCheck | None = None,
    ) -> None:
        self.file = file
        self.start = start
        self.whole = size is None
        self.size = file.size if size is None else size
        self.path = file.path if path is None else path
        self.check = check
        self._last: tuple[str, h5py.h5d.DatasetID] | None = None

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on. Raises: as `RandomAccessFile.read`."""
        return self.file.read(self.start + offset, size)

    def plain_headers(self) -> Headers | None:
        """What the headers say, read without the library; None if only that can read them.

        Raises:
            CorruptFileError: the file ends too early, or another process is writing it.
            ChangedFileError: the file is not the one that was opened first.
        """
        with self._steady():
            return read_headers(self.read, self.size)

    def plain_outline(self) -> Outline | None:
        """The first two levels of groups. Result and errors: as `plain_headers`."""
        with self._steady():
            return read_outline(self.read, self.size)

    def plain_root(self) -> PlainObject:
        """The root group. Raises: NotPlain, and as `plain_headers`."""
        with self._steady():
            return open_root(self.read, self.size)

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """Notices what the library would when it opens a file; does not leave it open either."""
        if self.whole:
            self.file.require_not_being_written()
        try:
            self.file.require_same()
            yield
        finally:
            if self.whole:
                self.file.close()

    def describer(self) -> Describer:
        """What reads the headers of its datasets through the library."""
        return Describer(self.path, self.size)

    @contextmanager
    def opened(self) -> Iterator[h5py.File]:
        """Opens the headers, and closes them at the end of the block.

        Raises:
            CorruptFileError: not a complete HDF5 file, or being written by another process.
            ChangedFileError: the file is not the one that was opened first.
        """
        with self._translated_errors():
            # By its name, so that the library sees the lock of a process that is writing it.
            opened = self._open(self.path) if self.whole else self._open_window()
            with opened:
                self.file.require_same()
                yield opened

    def _open_window(self) -> h5py.File:
        """Opens the headers by way of the one descriptor whose identity is known."""
        return self._open(_Window(self))

    def _open(self, file: Path | _Window) -> h5py.File:
        opened = h5py.File(file, "r", rdcc_nbytes=LARGEST_TILE_CACHE)
        _close_at_exit()
        limit_metadata_cache(opened)
        return opened

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
            _raise_refusal()
        except BlockingIOError as error:
            raise BeingWrittenError(
                self.path,
                "is open for writing in another process. Wait until the checkpoint is saved.",
            ) from error
        except (OSError, RuntimeError, KeyError, ValueError, SystemError) as error:
            _raise_refusal()
            raise_interrupt(error)
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


def _close_hdf5(opened: h5py.File) -> None:
    opened.close()


_hdf5_files = RecentlyOpened["h5py.File"](lambda: OPEN_HDF5_FILES, _close_hdf5)


@functools.cache
def _close_at_exit() -> None:
    """An h5py file over a Python file object that is still open at exit crashes the interpreter.

    Called when the library is loaded: what is registered last is done first, before its own part.
    """
    atexit.register(_hdf5_files.close_all)


class _Refusals(threading.local):
    """What stopped the reading of a window inside the library, an interrupt or an error."""

    error: BaseException | None = None


_refusals = _Refusals()


def _raise_refusal() -> None:
    error, _refusals.error = _refusals.error, None
    if error is not None:
        raise error


def raise_interrupt(error: BaseException) -> None:
    """Raises the interrupt that `error` comes from, if it does.

    An interrupt inside a call of the library into Python comes out of the library as some other
    exception, with the interrupt as its cause.
    """
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if not isinstance(cause, Exception):
            raise cause
        cause = cause.__cause__ or cause.__context__


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

    Memory: 16 bytes a dataset, and the header of each that is not plain. Files whose headers are
    the same (see `values_like`) share them.
    """

    def __init__(self, hdf5: Hdf5File, datasets: Sequence[Dataset]) -> None:
        self._hdf5 = hdf5
        self._offsets = np.fromiter((d.offset for d in datasets), np.int64, len(datasets))
        self._sizes = np.fromiter((d.nbytes for d in datasets), np.int64, len(datasets))
        self._detours = {p: d for p, d in enumerate(datasets) if d.offset == THROUGH_LIBRARY}
        self._headers: _Headers | None = None

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
        if offset == THROUGH_LIBRARY:
            self._hdf5.read_through_library(self._detours[position], start, out)
        else:
            first = self._hdf5.start + offset + start * out.itemsize
            self._hdf5.file.read_into(first, out.view(np.uint8).data)

    def read_slab(self, slab: Slab, dtype: np.dtype[Any], buffer: SlabBuffer) -> NDArray[Any]:
        """See `Values`."""
        first = slab.runs[0]
        offset = int(self._offsets[first.position])
        if len(slab.runs) > 1 or offset < 0:
            return self._gather(slab, dtype, buffer)
        return self._hdf5.file.read_window(
            self._hdf5.start + offset + first.start * dtype.itemsize,
            first.count * dtype.itemsize,
            buffer.values,
        ).view(dtype)

    def _gather(self, slab: Slab, dtype: np.dtype[Any], buffer: SlabBuffer) -> NDArray[Any]:
        """Reads the runs of a slab, those that lie near each other in one read."""
        gathered = buffer.values.window(0, slab.count * dtype.itemsize)
        done = 0
        for runs, first, size in self._stretches(slab, dtype.itemsize):
            if first < 0:
                end = done + runs[0].count * dtype.itemsize
                out = gathered[done:end].view(dtype)
                self.read_into(runs[0].position, runs[0].start, out)
                done = end
                continue
            stretch = self._hdf5.file.read_window(self._hdf5.start + first, size, buffer.stretch)
            for run in runs:
                begin = self._first_byte(run, dtype.itemsize) - first
                end = done + run.count * dtype.itemsize
                gathered[done:end] = stretch[begin : begin + end - done]
                done = end
        return gathered.view(dtype)

    def _first_byte(self, run: Run, itemsize: int) -> int:
        """Where a run begins in the HDF5 file; negative if only the library can read it."""
        offset = int(self._offsets[run.position])
        assert offset != _ABSENT_OFFSET, "only variables of the checkpoint are read"
        return offset if offset < 0 else offset + run.start * itemsize

    def _stretches(self, slab: Slab, itemsize: int) -> Iterator[tuple[list[Run], int, int]]:
        """Yields runs that lie near each other, with the first byte and the size of the stretch.

        A run that only the library can read comes alone, with a negative first byte.
        """
        near: list[Run] = []
        first = end = 0
        for run in slab.runs:
            begin = self._first_byte(run, itemsize)
            last = begin + run.count * itemsize
            gap = begin - end
            if not (near and 0 <= gap <= LARGEST_GAP and last - first <= STRETCH_BYTES):
                if near:
                    yield near, first, end - first
                near, first = [], begin
            near.append(run)
            end = last
            if begin < 0:
                yield near, begin, 0
                near = []
        if near:
            yield near, first, end - first

    def read_ahead(self, slab: Slab, itemsize: int) -> None:
        """See `Values`."""
        for _, first, size in self._stretches(slab, itemsize):
            if size:
                self._hdf5.file.read_ahead(self._hdf5.start + first, size)

    def cached_probes(self) -> Iterable[bool | None]:
        """See `Values`."""
        return self._hdf5.file.cached_probes()

    def use(self, access: Access) -> None:
        """See `Values`."""
        self._hdf5.file.access = access

    def in_storage_order(self, positions: Sequence[int]) -> list[int]:
        """See `Values`."""
        return sorted(positions, key=lambda position: int(self._offsets[position]))

    def aligned(self, positions: NDArray[np.int64]) -> Hdf5Values:
        """See `Values`."""
        other = copy.copy(self)
        is_present = positions != ABSENT
        for name, absent in (("_offsets", _ABSENT_OFFSET), ("_sizes", 0)):
            values = np.full(len(positions), absent, np.int64)
            values[is_present] = getattr(self, name)[positions[is_present]]
            setattr(other, name, values)
        other._detours = {
            new: self._detours[old]
            for new, old in enumerate(positions.tolist())
            if old in self._detours
        }
        return other

    def note(self, slab: Slab, values: NDArray[Any]) -> None:
        """See `Values`."""
        check = self._hdf5.check
        if check is None:
            return
        done = 0
        data = values.view(np.uint8).data
        for run in slab.runs:
            size = run.count * values.itemsize
            first = self._first_byte(run, values.itemsize)
            if first >= 0:
                check.add(first, data[done : done + size])
            done += size

    def verify(self) -> None:
        """See `Values`. HDF5 itself keeps no checksum of contiguous data; an archive does."""
        if self._hdf5.check is not None:
            self._hdf5.check.finish()

    def headers(self) -> _Headers | None:
        """What the file holds beside the values of its datasets; None if that is not told apart."""
        headers_bytes = self._hdf5.size - int(self._sizes.sum())
        if self._detours or headers_bytes > LARGEST_COMPARED:
            return None
        if self._headers is None:
            ends = self._offsets + self._sizes
            order = np.argsort(self._offsets, kind="stable")
            extents = zip(self._offsets[order].tolist(), ends[order].tolist(), strict=True)
            self._headers = _Headers(self._hdf5, gaps(extents, self._hdf5.size))
        return self._headers

    def close(self) -> None:
        """See `Values`."""
        self._hdf5.close()


class _Headers:
    """The bytes of an HDF5 file that are no values: superblock, groups, attributes, layouts.

    Memory: four integers a stretch of headers, of which there is about one a layer.
    """

    def __init__(self, hdf5: Hdf5File, stretches: Iterable[tuple[int, int]]) -> None:
        self._size = hdf5.size
        self._reads = list(_reads_of(stretches))
        self._digest = self._digest_of(hdf5)

    def are_those_of(self, other: Hdf5File) -> bool:
        """Whether another file has the same bytes at the same places. Raises: FormatError."""
        return other.size == self._size and self._digest_of(other) == self._digest

    def _digest_of(self, hdf5: Hdf5File) -> bytes:
        digest = hashlib.blake2b()
        for begin, end, stretches in self._reads:
            data = memoryview(hdf5.file.read(hdf5.start + begin, end - begin))
            for first, last in stretches:
                digest.update(data[first - begin : last - begin])
        return digest.digest()


def _reads_of(
    stretches: Iterable[tuple[int, int]],
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Gathers stretches that lie near each other, and cuts long ones, into reads of bounded size.

    Yields:
        First byte of a read, the one behind its last, and the stretches inside it.
    """
    near: list[tuple[int, int]] = []
    for first, last in stretches:
        for begin in range(first, last, STRETCH_BYTES):
            end = min(last, begin + STRETCH_BYTES)
            is_near = near and begin - near[-1][1] <= LARGEST_GAP
            if near and not (is_near and end - near[0][0] <= STRETCH_BYTES):
                yield near[0][0], near[-1][1], near
                near = []
            near.append((begin, end))
    if near:
        yield near[0][0], near[-1][1], near


def values_like(hdf5: Hdf5File, known: Checkpoint) -> Hdf5Values | None:
    """The values of a file whose headers are those of a known checkpoint, byte for byte.

    Keras writes the checkpoints of one run with the same headers, at the same places: all that the
    headers say of one then holds for the other, and nothing of it needs to be read again.

    Returns:
        None if the headers are not the same.

    Raises:
        CorruptFileError: another process is writing the file.
    """
    values = known.values
    assert isinstance(values, Hdf5Values), "all formats here are HDF5 inside"
    headers = values.headers()
    if headers is None or not headers.are_those_of(hdf5):
        return None
    if hdf5.whole:
        hdf5.file.require_not_being_written()
    twin = copy.copy(values)
    twin._hdf5 = hdf5
    return twin


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
        memory_type = source.get_type() if is_raw else h5py.h5t.py_create(dataset.dtype)
        if first:
            space.select_hyperslab(first, extent)
        memory = h5py.h5s.create_simple((count,))
        source.read(memory, space, target.view(_readable(target.dtype)), mtype=memory_type)


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
