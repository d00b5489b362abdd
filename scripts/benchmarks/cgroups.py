"""A memory cgroup around one command, version 1 or 2 of the interface.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = count(1)


class CgroupUnavailableError(Exception):
    """No memory cgroup can be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """A cgroup that a process joins by writing to `processes`."""

    folder: Path
    is_v2: bool

    @property
    def processes(self) -> Path:
        """Whoever writes 0 here moves into the cgroup."""
        return self.folder / "cgroup.procs"

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for want of memory."""
        events = self.folder / ("memory.events" if self.is_v2 else "memory.oom_control")
        for line in events.read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def limit(self, size: int) -> None:
        """Allows so many bytes of memory, page cache included, and no swap."""
        if self.is_v2:
            (self.folder / "memory.max").write_text(str(size))
            _write_if_there(self.folder / "memory.swap.max", "0")
        else:
            (self.folder / "memory.limit_in_bytes").write_text(str(size))
            _write_if_there(self.folder / "memory.memsw.limit_in_bytes", str(size))

    def remove(self) -> None:
        """Removes it; its processes have ended, but the kernel may take a moment to see that."""
        for _ in range(50):
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)
        self.folder.rmdir()


@contextmanager
def memory_cgroup(size: int) -> Iterator[MemoryCgroup]:
    """A new cgroup with a limit in bytes; removed at the end.

    Raises:
        CgroupUnavailableError: it cannot be made.
    """
    cgroup = _make()
    try:
        cgroup.limit(size)
    except OSError as error:
        cgroup.remove()
        raise CgroupUnavailableError(f"a memory cgroup takes no limit: {error.strerror}") from error
    try:
        yield cgroup
    finally:
        cgroup.remove()


def _make() -> MemoryCgroup:
    name = f"streamavg-benchmark-{os.getpid()}-{next(_NUMBERS)}"
    reason = "no memory controller is mounted"
    for parent, is_v2 in _parents():
        if is_v2 and "memory" not in _read(parent / "cgroup.subtree_control").split():
            reason = "the memory controller is not handed down"
            continue
        try:
            (parent / name).mkdir()
        except OSError as error:
            reason = f"a memory cgroup cannot be made: {error.strerror}"
            continue
        return MemoryCgroup(parent / name, is_v2)
    raise CgroupUnavailableError(reason)


def _parents() -> Iterator[tuple[Path, bool]]:
    """Where a cgroup may be made, at the top or beside ours, and whether it is of version 2."""
    for line in _read(Path("/proc/self/mounts")).splitlines():
        _, mount, kind, options, *_ = line.split()
        is_v2 = kind == "cgroup2"
        if not (is_v2 or (kind == "cgroup" and "memory" in options.split(","))):
            continue
        yield Path(mount), is_v2
        for entry in _read(Path("/proc/self/cgroup")).splitlines():
            _, controllers, path = entry.split(":", 2)
            is_ours = controllers == "" if is_v2 else "memory" in controllers.split(",")
            if is_ours and path != "/":
                yield Path(mount) / Path(path.lstrip("/")).parent, is_v2


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _write_if_there(path: Path, text: str) -> None:
    with suppress(OSError):
        path.write_text(text)
