"""The values of HDF5 files as Keras writes them, read by offset.

The headers are read with the HDF5 library; the values of a plain dataset are then read by offset
from the file itself. "Plain" means: contiguous, unfiltered, in this machine's byte order, of a type
whose bytes are its values, completely stored and inside the file. All other datasets (chunked,
compressed, big-endian, never written) are read by the library, which is slower and holds one
global lock.
"""

from __future__ import annotations

import atexit
import copy
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from streamavg.checkpoint import ABSENT
from streamavg.errors import CorruptFileError
from streamavg.formats.files import OPEN_HDF5_FILES, RandomAccessFile, RecentlyOpened
from streamavg.formats.hdf5_headers import THROUGH_LIBRARY, Dataset, Describer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.checkpoint import Checkpoint

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LARGEST_TILE_CACHE = 1024**2
METADATA_CACHE = 128 * 1024
"""Bytes a file. The library's default grows to 32 MiB, and reading is no faster for it."""
_ABSENT_OFFSET = -2


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

    def describer(self) -> Describer:
        """What reads the headers of its datasets."""
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

    Memory: 8 bytes a dataset, and the header of each that is not plain.
    """

    def __init__(self, hdf5: Hdf5File, datasets: Sequence[Dataset]) -> None:
        self._hdf5 = hdf5
        self._offsets = np.fromiter((d.offset for d in datasets), np.int64, len(datasets))
        self._detours = {p: d for p, d in enumerate(datasets) if d.offset == THROUGH_LIBRARY}

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
