"""An output file that appears whole or not at all.

It is written under a temporary name in the folder of the output, flushed to the disk, and then
put at its place in one step. Whatever stops the program before that step leaves the folder as it
was; only a killed process leaves its temporary file (`.<name>.<random>.partial`) behind.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import threading
from typing import TYPE_CHECKING, Self

from streamavg import system_calls
from streamavg.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType


FLUSHED_AT_ONCE = 64 * 1024**2
"""Bytes after which the disk is given work: enough for long writes."""
_unfinished: set[OutputFile] = set()


@atexit.register
def _discard_unfinished() -> None:
    """For an interrupt between the making of a file and the block that discards it."""
    for output in tuple(_unfinished):
        output.discard()


class OutputFile:
    """A file being written, see above. A context manager that discards what is not committed.

    Args:
        path: where the file will be.
        force: whether a file that is already there may be replaced.
        fsync: whether `commit` waits until the disk has all of it.

    Raises:
        OutputError: the path is taken and `force` is not given, or nothing can be written there.
    """

    def __init__(self, path: Path, *, force: bool, fsync: bool = True) -> None:
        self.path = path
        self._force = force
        self._flusher: _Flusher | None = None
        self._open = False
        refuse_taken(path, force=force)
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        _unfinished.add(self)  # before the file exists: an interrupt may come at any moment
        try:
            with self.translated_errors():
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
                self._descriptor = os.open(self.temporary, flags, 0o666)
                self._open = True
            self._flusher = _Flusher(self._descriptor) if fsync else None
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    @property
    def descriptor(self) -> int:
        """The open file descriptor; valid until `commit` or `discard`."""
        return self._descriptor

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data` at a byte offset. Raises: OutputError."""
        view = memoryview(data)
        with self.translated_errors():
            while len(view):
                written = os.pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
        if self._flusher is not None:
            self._flusher.note(len(data))

    def read_at(self, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on, which were written before. Raises: OutputError."""
        data = bytearray(size)
        with self.translated_errors():
            count = system_calls.read_at(self._descriptor, memoryview(data), offset)
        return bytes(data[:count])

    def allocate(self) -> None:
        """Reserves the room of the file as large as it is now. Raises: OutputError."""
        with self.translated_errors():
            system_calls.allocate(self._descriptor, self.size())

    def size(self) -> int:
        """Size in bytes so far."""
        return os.fstat(self._descriptor).st_size

    def commit(self) -> None:
        """Flushes the file to the disk, if so asked, and puts it in place. Raises: OutputError."""
        with self.translated_errors():
            if self._flusher is not None:
                self._flusher.finish()
                os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._open = False
            self._put_in_place()
            if self._flusher is not None:
                _flush_folder(self.path.parent)
        _unfinished.discard(self)

    def _put_in_place(self) -> None:
        if self._force:
            self.temporary.replace(self.path)
            return
        try:
            # Unlike a rename, a link never replaces a file that came into being meanwhile.
            os.link(self.temporary, self.path)
        except FileExistsError:
            self.temporary.unlink()
            refuse_taken(self.path, force=False)
        except OSError:  # no hard links here (FAT, some network file systems)
            refuse_taken(self.path, force=False)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink()

    def discard(self) -> None:
        """Removes what is not committed. Does nothing after `commit`."""
        if self._open:
            self._open = False
            if self._flusher is not None:
                self._flusher.wait()
            os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)
        _unfinished.discard(self)

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turns the file system's refusals inside the block into OutputError."""
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            remedy = ""
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                remedy = " Free some space, or write elsewhere with --output."
            reason = error.strerror or str(error)
            raise OutputError(self.path, f"cannot be written: {reason}.{remedy}") from error


class _Flusher:
    """Brings what was written to the disk meanwhile, so that little is left to do at the end.

    One flush runs at a time, in a thread of its own, and takes all that was written before it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._unflushed = 0
        self._running: threading.Thread | None = None
        self._error: OSError | None = None

    def note(self, count: int) -> None:
        """Tells of `count` more bytes that were written."""
        with self._lock:
            self._unflushed += count
            is_running = self._running is not None and self._running.is_alive()
            if self._unflushed < FLUSHED_AT_ONCE or is_running:
                return
            self._unflushed = 0
            self._running = threading.Thread(target=self._flush, daemon=True)
            self._running.start()

    def _flush(self) -> None:
        try:
            system_calls.flush_data(self._descriptor)
        except OSError as error:  # the system tells of it once only
            self._error = error

    def wait(self) -> None:
        """Returns when no flush is running."""
        if self._running is not None and self._running.ident is not None:
            self._running.join()

    def finish(self) -> None:
        """Waits for the last flush. Raises: OSError if one of them failed."""
        self.wait()
        if self._error is not None:
            raise self._error


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raises OutputError if something is at `path` that may not be replaced."""
    if path.is_dir():
        raise OutputError(path, "is a folder. Name a file with --output.")
    if not force and (path.exists() or path.is_symlink()):
        raise OutputError(path, "exists already. Replace it with --force, or choose another name.")


def _flush_folder(folder: Path) -> None:
    """Makes the new name itself durable; some file systems do not know how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
