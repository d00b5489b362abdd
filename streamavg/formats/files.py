"""Reading bytes of files by offset, with few files open at a time.

Operating systems allow a process some hundred open files, and a merge may have a thousand
inputs. So files are opened when they are read and closed again when too many others were read
since; a file that is opened again must still be the one that was opened first.
"""

from __future__ import annotations

import atexit
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from streamavg.errors import ChangedFileError, CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from streamavg.checkpoint import FileIdentity

Opened = TypeVar("Opened")

OPEN_DESCRIPTORS = 64
OPEN_HDF5_FILES = 4
"""Each open HDF5 file holds up to about 2 MiB of metadata and chunk caches."""


class RecentlyOpened(Generic[Opened]):
    """Keeps the files that were used last open, and closes the others.

    Args:
        limit: how many stay open.
        close: closes one.
    """

    def __init__(self, limit: int, close: Callable[[Opened], None]) -> None:
        self._limit = limit
        self._close = close
        self._opened: OrderedDict[Hashable, Opened] = OrderedDict()

    def get(self, key: Hashable, opener: Callable[[], Opened]) -> Opened:
        """What is open under `key`, opened now if need be. Stays open until others push it out."""
        if key in self._opened:
            self._opened.move_to_end(key)
            return self._opened[key]
        opened = opener()
        self._opened[key] = opened
        while len(self._opened) > self._limit:
            self._close(self._opened.popitem(last=False)[1])
        return opened

    def close(self, key: Hashable) -> None:
        """Closes what is open under `key`, if anything is."""
        if key in self._opened:
            self._close(self._opened.pop(key))

    def close_all(self) -> None:
        """Closes everything."""
        while self._opened:
            self._close(self._opened.popitem()[1])


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

    def descriptor(self) -> int:
        """An open file descriptor, valid until the next file is read."""
        return _descriptors.get(self, self._open)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` with the bytes from `offset` on.

        Raises:
            CorruptFileError: the file ends before the buffer is full.
            ChangedFileError: the file is not the one that was opened.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor(), [buffer[done:]], offset + done)
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
