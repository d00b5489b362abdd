"""Writing HDF5 files whose values are filled in by offset.

Where `plain_writing` cannot make the skeleton, the library does: groups, attributes and datasets,
each with its bytes already allocated in the file (contiguous, early allocation). Then the file is
closed, and slabs go straight to their offsets. The skeleton mirrors the reference: same groups,
same attributes with their HDF5 types, shared datasets still shared; only what is not to be written
is left out.

Source: HDF5 reference, H5Pset_alloc_time. Keras writes the same contiguous layout.
"""

from __future__ import annotations

import functools
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streamavg.checkpoint import Run
from streamavg.errors import UnsupportedFeatureError
from streamavg.formats import library as h5py
from streamavg.formats.crc32 import RunningCrc, pieces
from streamavg.formats.hdf5 import limit_metadata_cache, raise_interrupt
from streamavg.formats.hdf5_headers import GroupGuard
from streamavg.formats.plain_writing import Skeleton
from streamavg.system_calls import read_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from streamavg.checkpoint import Slab
    from streamavg.formats.output import OutputFile
    from streamavg.page_buffer import PageBuffer

PIECE_BYTES = 256 * 1024
_THROUGH_LIBRARY = -1


class Hdf5Stretch:
    """The part of an output that holds an HDF5 file: the whole of it, or an archive's member.

    Args:
        output: the file being written.
        start: byte of `output` where the HDF5 file begins.
    """

    def __init__(self, output: OutputFile, start: int = 0) -> None:
        self.output = output
        self.start = start

    @contextmanager
    def opened(self, mode: str) -> Iterator[h5py.File]:
        """Opens the stretch for the HDF5 library; mode "w" or "r+". Raises: OutputError.

        The library cannot pass on what the file system says, nor an interrupt, and fails in many
        ways when it is refused something: the first refusal is kept, and raised when it is done.
        """
        window = _WritableWindow(self.output, self.start)
        try:
            with h5py.File(window, mode, libver=("earliest", "v108")) as opened:
                limit_metadata_cache(opened)
                yield opened
        except Exception as error:
            raise_interrupt(error)
            if window.refusal is None:
                raise
        if window.refusal is not None:
            with self.output.translated_errors():
                raise window.refusal


class _WritableWindow:
    """A stretch of the output as the file object that h5py writes.

    Once the file system has refused something, everything else is done in appearance only.

    Attributes:
        refusal: what the file system said first.
    """

    def __init__(self, output: OutputFile, start: int) -> None:
        self._descriptor = output.descriptor
        self._start = start
        self._position = 0
        self._size = max(0, output.size() - start)
        self.refusal: BaseException | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = read_at(self._descriptor, memoryview(buffer), self._start + self._position)
        except BaseException as error:
            self.refusal = self.refusal or error
            return 0
        self._position += count
        return count

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.readinto(memoryview(data))])

    def write(self, data: memoryview) -> int:
        view = memoryview(data).cast("B")
        count = len(view)
        try:
            while len(view) and self.refusal is None:
                written = os.pwrite(self._descriptor, view, self._start + self._position)
                view = view[written:]
                self._position += written
        except BaseException as error:
            self.refusal = error
        self._size = max(self._size, self._position)
        return count

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        try:
            if self.refusal is None:
                os.ftruncate(self._descriptor, self._start + self._size)
        except BaseException as error:
            self.refusal = error
        return self._size

    def flush(self) -> None:
        """Everything is written at once."""


class Mirror:
    """Makes a skeleton with the reference's groups and attributes, and the datasets that go in.

    Args:
        dtypes: of the values that will be written, by the path of the dataset; datasets that are
            not named are left out.
        excluded: paths of groups that are left out with all that is in them.
        path: of the reference, for errors.
        marks_bfloat16: as `create_dataset`.

    Raises:
        UnsupportedFeatureError: an attribute that cannot be copied.
        UnsafeFileError: a group that several paths lead to.
    """

    def __init__(
        self,
        dtypes: Mapping[str, np.dtype[Any]],
        excluded: frozenset[str],
        path: Path,
        *,
        marks_bfloat16: bool = False,
    ) -> None:
        self._marks_bfloat16 = marks_bfloat16
        self._dtypes = dtypes
        self._excluded = excluded
        self._path = path
        self._made: dict[int, tuple[h5py.h5g.GroupID, bytes]] = {}
        self._guard = GroupGuard(path)

    def fill(self, target: h5py.Group, source: h5py.Group, prefix: str = "") -> None:
        """Mirrors `source` and all below it, apart from what is excluded, into `target`."""
        self._fill(target.id, source.id, prefix)

    def _fill(self, target: h5py.h5g.GroupID, source: h5py.h5g.GroupID, prefix: str) -> None:
        self._guard.enter(source, prefix)
        copy_attributes(source, target, self._path)
        for name in source:
            path = prefix + name.decode("utf-8")
            is_hard = source.links.get_info(name).type == h5py.h5l.TYPE_HARD
            if path in self._excluded or not is_hard:
                continue
            child = h5py.h5o.open(source, name)
            if isinstance(child, h5py.h5g.GroupID):
                self._fill(h5py.h5g.create(target, name), child, f"{path}/")
            elif isinstance(child, h5py.h5d.DatasetID):
                self._place(target, name, child, path)

    def _place(
        self, target: h5py.h5g.GroupID, name: bytes, source: h5py.h5d.DatasetID, path: str
    ) -> None:
        info = h5py.h5o.get_info(source)
        if info.addr in self._made:
            first = h5py.h5o.open(*self._made[info.addr])
            h5py.h5o.link(first, target, name)
        elif path in self._dtypes:
            create_dataset(
                source,
                target,
                name.decode("utf-8"),
                self._dtypes[path],
                self._path,
                marks_bfloat16=self._marks_bfloat16,
            )
            if info.rc > 1:
                self._made[info.addr] = target, name


def create_dataset(
    source: h5py.h5d.DatasetID,
    group: h5py.h5g.GroupID,
    name: str,
    dtype: np.dtype[Any],
    path: Path,
    *,
    marks_bfloat16: bool,
) -> None:
    """Makes an empty dataset like `source`, contiguous and with its bytes allocated.

    Strings of variable length are copied with their values: they lie in a heap of the file.

    Args:
        source: dataset of the reference.
        group: where the new one goes.
        name: of the new one, may contain slashes.
        dtype: of the values that will be written, native byte order; object for strings.
        path: of the reference, for errors.
        marks_bfloat16: whether the layout has the attribute `dtype` on opaque bfloat16 values;
            legacy files have none.
    """
    if dtype.kind == "O":
        h5py.h5o.copy(source, b".", group, name.encode(), lcpl=_makes_groups())
        return
    stored_type = _stored_type(source, dtype)
    made = h5py.h5d.create(
        group,
        name.encode(),
        stored_type,
        source.get_space(),
        dcpl=_allocated_at_once(),
        lcpl=_makes_groups(),
    )
    copy_attributes(source, made, path, without=b"dtype" if marks_bfloat16 else None)
    if marks_bfloat16 and stored_type.get_class() == h5py.h5t.OPAQUE:
        h5py.Dataset(made).attrs["dtype"] = "bfloat16"


@functools.cache
def _allocated_at_once() -> h5py.h5p.PropDCID:
    """How datasets are made: contiguous, with their bytes allocated and not written."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # the same merge writes the same bytes on any day
    return creation


@functools.cache
def _makes_groups() -> h5py.h5p.PropLCID:
    """How links are made: with the groups on the way."""
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return links


def _stored_type(source: h5py.h5d.DatasetID, dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    """The source's own HDF5 type where its bytes are the values, else the type of `dtype`."""
    stored, read_as = source.get_type(), source.dtype
    if dtype.kind == "V":
        is_bfloat16 = stored.get_size() == 2 and read_as.kind in "Vf" and read_as != "f2"
        return stored if is_bfloat16 else h5py.h5t.py_create(np.dtype("V2"))
    if read_as == dtype and read_as.isnative and stored.get_size() == dtype.itemsize:
        return stored
    return h5py.h5t.py_create(dtype, logical=True)


def copy_attributes(source: Any, target: Any, path: Path, without: bytes | None = None) -> None:
    """Copies attributes with their HDF5 types: fixed and variable strings, empty float arrays.

    Args:
        source: identifier of a group or dataset of the reference.
        target: identifier of a group or dataset of the output.
        path: of the reference, for errors.
        without: name of an attribute that is not copied.

    Raises:
        UnsupportedFeatureError: an attribute that refers to an object of its file.
    """
    for number in range(h5py.h5a.get_num_attrs(source)):
        attribute = h5py.h5a.open(source, index=number, index_type=h5py.h5.INDEX_NAME)
        if attribute.name == without:
            continue
        try:
            _copy_attribute(attribute, target)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedFeatureError(
                path,
                f"attribute {attribute.name.decode()!r} of {_name_of(source)!r} cannot be copied: "
                f"{error}.",
            ) from error


def _name_of(opened: Any) -> str:
    name = h5py.h5i.get_name(opened)
    return "" if name is None else name.decode("utf-8", "replace")


def _copy_attribute(attribute: h5py.h5a.AttrID, target: Any) -> None:
    """Copies one attribute as the library stores it, without interpreting its values."""
    stored = attribute.get_type()
    if stored.get_class() == h5py.h5t.REFERENCE:
        raise TypeError("it refers to an object inside the file")
    made = h5py.h5a.create(target, attribute.name, stored, attribute.get_space())
    if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return
    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values, mtype=stored)
    made.write(values, mtype=stored)


def offset_of(opened: h5py.File, path: str) -> int:
    """First byte of a dataset's values in the HDF5 file; -1 if only the library can write them."""
    dataset = h5py.h5d.open(opened.id, path.encode())
    offset = dataset.get_offset()
    if offset is None or dataset.get_type().get_class() == h5py.h5t.STRING:
        return _THROUGH_LIBRARY
    return int(offset)


def _write_skeleton(stretch: Hdf5Stretch, skeleton: Skeleton) -> list[int]:
    """Writes a skeleton; returns its offsets."""
    for offset, piece in skeleton.pieces():
        stretch.output.write_at(stretch.start + offset, memoryview(piece))
    return skeleton.offsets


def _make_skeleton(
    stretch: Hdf5Stretch, fill: Callable[[h5py.File], None], targets: Sequence[str | None]
) -> list[int]:
    """Makes a skeleton through the library; returns the offset of each target's values."""
    with stretch.opened("w") as opened:
        fill(opened)
        return [
            _THROUGH_LIBRARY if target is None else offset_of(opened, target) for target in targets
        ]


class Hdf5CheckpointWriter:
    """Fills the skeleton with values. Implements `streamavg.checkpoint.CheckpointWriter`.

    Args:
        stretch: where the HDF5 file is in the output.
        skeleton: the file without its values, or what fills the new, empty file with groups and
            datasets through the library.
        targets: path of each reference variable's dataset in the output; None where it is left
            out.
        finish: called when all values are written, with the size and the CRC-32 of the HDF5 file
            (an archive adds its directory). Without it no CRC is computed.
    """

    def __init__(
        self,
        stretch: Hdf5Stretch,
        skeleton: Skeleton | Callable[[h5py.File], None],
        targets: list[str | None],
        finish: Callable[[OutputFile, int, int], None] | None = None,
    ) -> None:
        self._stretch = stretch
        self._output = stretch.output
        self._targets = targets
        self._finish = finish
        self._library_lock = threading.Lock()
        self._offsets = (
            _write_skeleton(stretch, skeleton)
            if isinstance(skeleton, Skeleton)
            else _make_skeleton(stretch, skeleton, targets)
        )
        self._output.allocate()
        self._crc = None if finish is None else RunningCrc(self._output.size() - stretch.start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._output.discard()

    def write(self, position: int, start: int, values: NDArray[Any]) -> None:
        """See `CheckpointWriter`."""
        if self._offsets[position] == _THROUGH_LIBRARY:
            self._write_through_library(position, start, values)
        else:
            first = self._first_byte(Run(position, start, values.size), values.itemsize)
            self._write_at(first, values.view(np.uint8).data)

    def result(self, slab: Slab, dtype: np.dtype[Any], buffer: PageBuffer) -> NDArray[Any]:
        """See `CheckpointWriter`."""
        first = self._first_byte(slab.runs[0], dtype.itemsize)
        window = buffer.window(self._stretch.start + max(0, first), slab.count * dtype.itemsize)
        return window.view(dtype)

    def write_slab(self, slab: Slab, values: NDArray[Any]) -> None:
        """See `CheckpointWriter`. Runs that lie next to each other are written at once."""
        done = 0
        for runs, first in self._adjacent(slab, values.itemsize):
            part = values[done : done + sum(run.count for run in runs)]
            if first < 0:
                self._write_through_library(runs[0].position, runs[0].start, part)
            else:
                self._write_at(first, part.view(np.uint8).data)
            done += part.size

    def _adjacent(self, slab: Slab, itemsize: int) -> Iterator[tuple[list[Run], int]]:
        """Yields runs that lie next to each other, with the first byte of the first.

        A run that only the library can write comes alone, with a negative first byte.
        """
        together: list[Run] = []
        first = end = 0
        for run in slab.runs:
            begin = self._first_byte(run, itemsize)
            if together and (begin < 0 or begin != end):
                yield together, first
                together = []
            if not together:
                first = begin
            together.append(run)
            end = begin + run.count * itemsize if begin >= 0 else -1
        if together:
            yield together, first

    def _first_byte(self, run: Run, itemsize: int) -> int:
        """Where a run begins in the HDF5 file; negative if only the library can write it."""
        offset = self._offsets[run.position]
        return offset if offset == _THROUGH_LIBRARY else offset + run.start * itemsize

    def _write_at(self, first: int, data: memoryview) -> None:
        self._output.write_at(self._stretch.start + first, data)
        if self._crc is not None:
            self._crc.add(first, data)

    def _write_through_library(self, position: int, start: int, values: NDArray[Any]) -> None:
        target = self._targets[position]
        assert target is not None, "a variable that is left out has no values"
        with self._library_lock, self._stretch.opened("r+") as opened:
            dataset = opened[target]
            if dataset.shape:
                flat = dataset[()].reshape(-1)
                flat[start : start + values.size] = values
                dataset[...] = flat.reshape(dataset.shape)
            else:
                dataset[()] = values[0]

    def commit(self) -> None:
        """See `CheckpointWriter`."""
        if self._finish is not None and self._crc is not None:
            self._finish(self._output, self._crc.size, self._complete_crc(self._crc))
        self._output.commit()

    def _complete_crc(self, crc: RunningCrc) -> int:
        """The CRC-32 of the HDF5 file; reads what the library has written."""
        start = self._stretch.start
        crc.grow(self._output.size() - start)
        for begin, size in pieces(crc.missing(), PIECE_BYTES):
            crc.add(begin, self._output.read_at(start + begin, size))
        return crc.value
