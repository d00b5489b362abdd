"""System calls that not every operating system or file system has, each with a way to do without.

Linux has all of them. Where one is missing, or a file system refuses it (tmpfs knows no direct
reads, network file systems no allocation), the work is done without it, slower but the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)


def open_for_reading(path: str | os.PathLike[str]) -> int:
    """Opens a file for reads through the page cache. Raises: OSError."""
    return os.open(path, os.O_RDONLY | _CLOSE_ON_EXEC)


def open_for_direct_reading(path: str | os.PathLike[str]) -> int | None:
    """Opens a file for reads past the page cache (`O_DIRECT`); None where that is refused."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return None
    try:
        return os.open(path, os.O_RDONLY | _CLOSE_ON_EXEC | direct)
    except OSError as error:
        if error.errno in _REFUSED:
            return None
        raise


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Reads up to `len(buffer)` bytes from `offset` on into `buffer`; returns their number.

    Raises: OSError.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    data = os.pread(descriptor, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def is_cached(descriptor: int, offset: int) -> bool | None:
    """Whether the page cache holds the byte at `offset`; None where the system does not tell."""
    no_wait = getattr(os, "RWF_NOWAIT", 0)
    if not no_wait or not hasattr(os, "preadv"):
        return None
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, no_wait) == 1
    except BlockingIOError:
        return False
    except OSError:
        return None


def read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Asks the system to fetch bytes into the page cache meanwhile."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def flush_data(descriptor: int) -> None:
    """Waits until the disk has what was written so far. Raises: OSError."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def allocate(descriptor: int, size: int) -> None:
    """Reserves the room of a file of `size` bytes; does nothing where that is refused.

    Raises: OSError if there is no room.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise


def is_locked_by_a_writer(descriptor: int) -> bool:
    """Whether another process holds the lock that the HDF5 library takes on a file it writes."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: the library does without them too
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
