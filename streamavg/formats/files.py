"""Reading bytes of files by offset, with few files open at a time.

Operating systems allow a process some hundred open files, and a merge may have a thousand
inputs. So files are opened when they are read and closed again when too many others were read
since; a file that is opened again must still be the one that was opened first.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from streamavg.errors import ChangedFileError, CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from streamavg.checkpoint import FileIdentity

Opened = TypeVar("Opened")

OPEN_DESCRIPTORS = 64
OPEN_HDF5_FILES = 4
"""Each open HDF5 file holds up to about 2 MiB of metadata and chunk caches."""


class RecentlyOpened(Generic[Opened]):
    """Keeps the files that were used last open, and closes the others. Safe for threads.

    A file that is in use is never closed, however many others are opened meanwhile.

    Args:
        limit: how many stay open.
        close: closes one.
    """

    def __init__(self, limit: int, close: Callable[[Opened], None]) -> None:
        self._limit = limit
        self._close = close
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, _Entry[Opened]] = OrderedDict()

    @contextmanager
    def using(self, key: Hashable, opener: Callable[[], Opened]) -> Iterator[Opened]:
        """What is open under `key`, opened now if need be, for the length of the block."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = _Entry(opener())
            entry = self._entries[key]
            self._entries.move_to_end(key)
            entry.users += 1
            self._close_oldest()
        try:
            yield entry.opened
        finally:
            with self._lock:
                entry.users -= 1
                if entry.is_retired and not entry.users:
                    self._close(entry.opened)
                self._close_oldest()

    def _close_oldest(self) -> None:
        idle = [key for key, entry in self._entries.items() if not entry.users]
        for key in idle[: max(0, len(self._entries) - self._limit)]:
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


@dataclass
class _Entry(Generic[Opened]):
    opened: Opened
    users: int = 0
    is_retired: bool = False


_descriptors = RecentlyOpened[int](OPEN_DESCRIPTORS, os.close)
atexit.register(_descriptors.close_all)


class RandomAccessFile:
    """A file that is read by offset.

    Args:
        path: the file.
        identity: what the file must be whenever it is opened.
    """

    def __init__(self, path: Path, identity: FileIdentity) -> None:
        self.path = path
        self.identity = identity

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.identity.size

    def require_same(self) -> None:
        """Raises ChangedFileError if another file is at the path now."""
        with self._using():
            self.identity.require_same_file(self.path)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes from `offset` on.

        Raises:
            CorruptFileError: the file ends before the buffer is full.
            ChangedFileError: the file is not the one that was opened.
        """
        done = 0
        with self._using() as descriptor:
            while done < len(buffer):
                try:
                    count = os.preadv(descriptor, [buffer[done:]], offset + done)
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

    def _using(self) -> AbstractContextManager[int]:
        return _descriptors.using(self, self._open)

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on. Raises: as `read_into`."""
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        _descriptors.close(self)

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ChangedFileError(
                self.path, f"can no longer be opened ({error.strerror})."
            ) from error
        stat = os.fstat(descriptor)
        identity = self.identity
        if (stat.st_dev, stat.st_ino) != (identity.device, identity.inode):
            os.close(descriptor)
            raise ChangedFileError(self.path, "was replaced by another file while it was read.")
        return descriptor
