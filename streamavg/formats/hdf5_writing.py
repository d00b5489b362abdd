"""Writing HDF5 files whose values are filled in by offset.

The library makes the skeleton: groups, attributes and datasets, each with its bytes already
allocated in the file (contiguous, early allocation). Then the file is closed, and slabs go
straight to their offsets. The skeleton mirrors the reference: same groups, same attributes with
their HDF5 types, shared datasets still shared; only what is not to be written is left out.

Source: HDF5 reference, H5Pset_alloc_time. Keras writes the same contiguous layout.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np

from streamavg.errors import UnsupportedFeatureError
from streamavg.formats.hdf5 import limit_metadata_cache, raise_interrupt
from streamavg.formats.hdf5_headers import GroupGuard, is_hard_link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from streamavg.formats.output import OutputFile

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
            count = os.preadv(self._descriptor, [buffer], self._start + self._position)
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
        self._made: dict[int, str] = {}
        self._guard = GroupGuard(path)

    def fill(self, target: h5py.Group, source: h5py.Group, prefix: str = "") -> None:
        """Mirrors `source` and all below it, apart from what is excluded, into `target`."""
        self._guard.enter(source.id, prefix)
        copy_attributes(source, target, self._path)
        for name in source:
            path = prefix + name
            if path in self._excluded or not is_hard_link(source, name):
                continue
            child = source[name]
            if isinstance(child, h5py.Group):
                self.fill(target.create_group(name), child, f"{path}/")
            else:
                self._place(target, name, child, path)

    def _place(self, target: h5py.Group, name: str, source: h5py.Dataset, path: str) -> None:
        info = h5py.h5o.get_info(source.id)
        if info.addr in self._made:
            target[name] = target.file[self._made[info.addr]]
        elif path in self._dtypes:
            create_dataset(
                source,
                target,
                name,
                self._dtypes[path],
                self._path,
                marks_bfloat16=self._marks_bfloat16,
            )
            if info.rc > 1:
                self._made[info.addr] = target[name].name


def create_dataset(
    source: h5py.Dataset,
    group: h5py.Group,
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
        h5py.h5o.copy(source.id, b".", group.id, name.encode(), lcpl=_make_groups())
        return
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # the same merge writes the same bytes on any day
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    space = h5py.h5s.create_simple(source.shape) if source.shape else scalar
    stored_type = _stored_type(source, dtype)
    made = h5py.Dataset(
        h5py.h5d.create(
            group.id, name.encode(), stored_type, space, dcpl=creation, lcpl=_make_groups()
        )
    )
    copy_attributes(source, made, path, without="dtype" if marks_bfloat16 else None)
    if marks_bfloat16 and stored_type.get_class() == h5py.h5t.OPAQUE:
        made.attrs["dtype"] = "bfloat16"


def _make_groups() -> h5py.h5p.PropLCID:
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return links


def _stored_type(source: h5py.Dataset, dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    """The source's own HDF5 type where its bytes are the values, else the type of `dtype`."""
    stored = source.id.get_type()
    if dtype.kind == "V":
        is_bfloat16 = stored.get_size() == 2 and source.dtype.kind in "Vf" and source.dtype != "f2"
        return stored if is_bfloat16 else h5py.h5t.py_create(np.dtype("V2"))
    if source.dtype == dtype and source.dtype.isnative and stored.get_size() == dtype.itemsize:
        return stored
    return h5py.h5t.py_create(dtype, logical=True)


def copy_attributes(source: Any, target: Any, path: Path, without: str | None = None) -> None:
    """Copies attributes with their HDF5 types: fixed and variable strings, empty float arrays.

    Args:
        source: group or dataset of the reference.
        target: group or dataset of the output.
        path: of the reference, for errors.
        without: name of an attribute that is not copied.

    Raises:
        UnsupportedFeatureError: an attribute that refers to an object of its file.
    """
    for name in source.attrs:
        if name == without:
            continue
        try:
            _copy_attribute(h5py.h5a.open(source.id, name.encode()), target.id)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedFeatureError(
                path, f"attribute {name!r} of {source.name!r} cannot be copied: {error}."
            ) from error


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
    dataset = opened[path]
    if dataset.dtype.kind in "OS" or dataset.id.get_offset() is None:
        return _THROUGH_LIBRARY
    return int(dataset.id.get_offset())


class Hdf5CheckpointWriter:
    """Fills the skeleton with values. Implements `streamavg.checkpoint.CheckpointWriter`.

    Args:
        stretch: where the HDF5 file is in the output.
        make_skeleton: called once with the new, empty file.
        targets: path of each reference variable's dataset in the output; None where it is left
            out.
        finish: called with the output when all values are written (an archive adds its
            directory).
    """

    def __init__(
        self,
        stretch: Hdf5Stretch,
        make_skeleton: Callable[[h5py.File], None],
        targets: list[str | None],
        finish: Callable[[OutputFile], None] | None = None,
    ) -> None:
        self._stretch = stretch
        self._output = stretch.output
        self._targets = targets
        self._finish = finish
        self._library_lock = threading.Lock()
        with stretch.opened("w") as opened:
            make_skeleton(opened)
            self._offsets = [
                _THROUGH_LIBRARY if target is None else offset_of(opened, target)
                for target in targets
            ]

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
        offset = self._offsets[position]
        if offset == _THROUGH_LIBRARY:
            self._write_through_library(position, start, values)
            return
        first = self._stretch.start + offset + start * values.itemsize
        self._output.write_at(first, values.view(np.uint8).data)

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
        if self._finish is not None:
            self._finish(self._output)
        self._output.commit()
