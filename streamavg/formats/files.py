"""Reading bytes of files by offset, with few files open at a time.

Operating systems allow a process some hundred open files, and a merge may have a thousand
inputs. So files are opened when they are read and closed again when too many others were read
since; a file that is opened again must still be the one that was opened first.
"""

from __future__ import annotations

import atexit
import os
import resource
import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from streamavg import system_calls
from streamavg.access import Access, probed_offsets
from streamavg.errors import BeingWrittenError, ChangedFileError, CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from streamavg.checkpoint import FileIdentity
    from streamavg.page_buffer import PageBuffer

Opened = TypeVar("Opened")
Descriptor = TypeVar("Descriptor", int, int | None)


def open_descriptors() -> int:
    """How many files stay open: a quarter of those that this process may open."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most, least = 512, 16
    return most if allowed == resource.RLIM_INFINITY else max(least, min(most, allowed // 4))


OPEN_HDF5_FILES = 4
"""Each open HDF5 file holds up to about 2 MiB of metadata and chunk caches."""


class RecentlyOpened(Generic[Opened]):
    """Keeps the files that were used last open, and closes the others. Safe for threads.

    A file that is in use is never closed, however many others are opened meanwhile.

    Args:
        limit: tells how many stay open; asked when one is opened.
        close: closes one.
    """

    def __init__(self, limit: Callable[[], int], close: Callable[[Opened], None]) -> None:
        self._limit = limit
        self._most = 0
        self._close = close
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, Held[Opened]] = OrderedDict()

    @contextmanager
    def using(self, key: Hashable, opener: Callable[[], Opened]) -> Iterator[Opened]:
        """What is open under `key`, opened now if need be, for the length of the block."""
        entry = self.acquire(key, opener)
        try:
            yield entry.opened
        finally:
            self.release(entry)

    def acquire(self, key: Hashable, opener: Callable[[], Opened]) -> Held[Opened]:
        """What `using` does when its block begins. What it returns must be released."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.make_room()
                entry = self._entries[key] = Held(opener())
            self._entries.move_to_end(key)
            entry.users += 1
            self._close_oldest()
            return entry

    def release(self, entry: Held[Opened]) -> None:
        """What `using` does when its block ends."""
        with self._lock:
            entry.users -= 1
            if entry.is_retired and not entry.users:
                self._close(entry.opened)
            self._close_oldest()

    def make_room(self) -> None:
        """Closes files so that one more can be opened; the limit may have become lower."""
        with self._lock:
            self._most = self._limit()
            self._close_oldest(room=1)

    def _close_oldest(self, room: int = 0) -> None:
        """Closes what is open beyond the limit, less `room` for what is to be opened."""
        surplus = len(self._entries) + room - self._most
        if surplus <= 0:
            return
        idle = [key for key, entry in self._entries.items() if not entry.users]
        for key in idle[:surplus]:
            self.close(key)

    def close(self, key: Hashable) -> None:
        """Closes what is open under `key`, if anything is; later, if it is in use."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None and entry.users:
                entry.is_retired = True
            elif entry is not None:
                self._close(entry.opened)

    def close_all(self) -> None:
        """Closes everything."""
        with self._lock:
            for key in list(self._entries):
                self.close(key)


def make_room() -> None:
    """Closes files so that one more can be opened."""
    _descriptors.make_room()


@dataclass(slots=True)
class Held(Generic[Opened]):
    """Something open, and how many are using it."""

    opened: Opened
    users: int = 0
    is_retired: bool = False
    """Whether it is closed as soon as nobody uses it."""


_REFUSED = -1
"""Stands for the descriptor of a file that cannot be read directly."""


def _close_descriptor(descriptor: int) -> None:
    if descriptor != _REFUSED:
        os.close(descriptor)


_descriptors = RecentlyOpened[int](open_descriptors, _close_descriptor)
atexit.register(_descriptors.close_all)


class RandomAccessFile:
    """A file that is read by offset. Several threads may read at once.

    Args:
        path: the file.
        identity: what the file must be whenever it is opened.

    Attributes:
        access: how `read_window` fetches bytes; other reads always go through the page cache.
    """

    def __init__(self, path: Path, identity: FileIdentity) -> None:
        self.path = path
        self.identity = identity
        self.access = Access.CACHED

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.identity.size

    def require_same(self) -> None:
        """Raises ChangedFileError if another file is at the path now."""
        self.identity.require_same_file(self.path)

    def require_not_being_written(self) -> None:
        """Raises BeingWrittenError if another process has it open to write HDF5."""
        with _descriptors.using(self, self._open) as descriptor:
            if system_calls.is_locked_by_a_writer(descriptor):
                raise BeingWrittenError(
                    self.path,
                    "is open for writing in another process. Wait until the checkpoint is saved.",
                )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes from `offset` on.

        Raises:
            CorruptFileError: the file ends before the buffer is full.
            ChangedFileError: the file is not the one that was opened.
        """
        held = _descriptors.acquire(self, self._open)
        try:
            self._fill(held.opened, offset, buffer, 0)
        finally:
            _descriptors.release(held)

    def read_window(self, offset: int, size: int, buffer: PageBuffer) -> NDArray[np.uint8]:
        """Reads bytes to the place in a page that they have in the file.

        Returns:
            The `size` bytes from `offset` on, in memory of `buffer`, until it is used again.

        Raises: as `read_into`.
        """
        is_direct = self.access == Access.DIRECT
        window = buffer.window(offset, size, exact=is_direct)
        done = self._read_directly(offset, size, buffer) if is_direct else 0
        if done < size:
            held = _descriptors.acquire(self, self._open)
            try:
                self._fill(held.opened, offset, window.data, done)
            finally:
                _descriptors.release(held)
        return window

    def _fill(self, descriptor: int, offset: int, buffer: memoryview, done: int) -> None:
        """Fills `buffer`, whose first `done` bytes are there already."""
        while done < len(buffer):
            try:
                count = system_calls.read_at(
                    descriptor, buffer[done:] if done else buffer, offset + done
                )
            except OSError as error:
                raise CorruptFileError(
                    self.path, f"cannot be read: {error.strerror} at byte {offset + done}."
                ) from error
            if count == 0:
                raise CorruptFileError(
                    self.path,
                    f"ends at byte {offset + done}, inside its data. "
                    "It is truncated; save or copy it again.",
                )
            done += count

    def _read_directly(self, offset: int, size: int, buffer: PageBuffer) -> int:
        """Reads whole pages past the page cache; returns how many bytes of the window that gave.

        Fewer than asked for near the end of a file, or none where the file system refuses: the rest
        is then read through the page cache.
        """
        held = _descriptors.acquire((self, Access.DIRECT), self._open_directly)
        try:
            if held.opened is _REFUSED:
                return 0
            first, pages = buffer.pages(offset, size)
            count = system_calls.read_at(held.opened, pages.data, first)
        except OSError:  # opened, but not read: some file systems refuse only then
            self.access = Access.READ_AHEAD
            return 0
        finally:
            _descriptors.release(held)
        return max(0, min(size, count - (offset - first)))

    def read_ahead(self, offset: int, size: int) -> None:
        """Asks for bytes that will be read soon, if that is how this file is read."""
        if self.access == Access.READ_AHEAD:
            held = _descriptors.acquire(self, self._open)
            try:
                system_calls.read_ahead(held.opened, offset, size)
            finally:
                _descriptors.release(held)

    def cached_probes(self) -> Iterator[bool | None]:
        """Whether the page cache holds the bytes at some places of the file."""
        with _descriptors.using(self, self._open) as descriptor:
            for offset in probed_offsets(self.size):
                yield system_calls.is_cached(descriptor, offset)

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on. Raises: as `read_into`."""
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        _descriptors.close(self)
        _descriptors.close((self, Access.DIRECT))

    def _open(self) -> int:
        return self._opened_by(system_calls.open_for_reading)

    def _open_directly(self) -> int:
        descriptor = self._opened_by(system_calls.open_for_direct_reading)
        return _REFUSED if descriptor is None else descriptor

    def _opened_by(self, opener: Callable[[Path], Descriptor]) -> Descriptor:
        try:
            descriptor = opener(self.path)
        except OSError as error:
            raise ChangedFileError(
                self.path, f"can no longer be opened ({error.strerror})."
            ) from error
        if descriptor is not None:
            stat = os.fstat(descriptor)
            if (stat.st_dev, stat.st_ino) != (self.identity.device, self.identity.inode):
                os.close(descriptor)
                raise ChangedFileError(self.path, "was replaced by another file while it was read.")
        return descriptor
