"""Resident memory of this process, as the operating system accounts for it.

All sizes are in bytes. Where Linux tells it, the peak is that of the program itself (`VmHWM`):
`ru_maxrss` also remembers the program that started this one, which a memory limit must not count.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_CONTROL_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60
"""Limits of control groups from here on mean none: version 1 writes the largest page count."""


def peak_resident_bytes() -> int:
    """Largest resident memory of this process since it started."""
    try:
        status = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return _maxrss_bytes()
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _maxrss_bytes()


def resident_bytes() -> int:
    """Resident memory of this process now; the peak where the system does not tell."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_resident_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def measured_since(peak_before: int) -> int:
    """Peak of a job that began when `peak_resident_bytes` gave `peak_before`.

    A job that stayed below an earlier peak of the process leaves no trace of its own peak; then it
    is what the process holds now.
    """
    peak = peak_resident_bytes()
    return peak if peak > peak_before else resident_bytes()


def group_limit_bytes(memberships: Path = _CONTROL_GROUPS, root: Path = _GROUP_ROOT) -> int | None:
    """Memory that the control group of this process allows to it; None if nothing limits it.

    Containers and batch systems limit a group of processes. What counts is the lowest limit on the
    way from the process's group to the root, and page cache counts too.

    Args:
        memberships: file that names the groups of the process.
        root: folder where the groups are mounted, of version 1, of version 2, or of both.

    Source: Linux kernel documentation, admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
    """
    try:
        lines = memberships.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for mount in (root, root / "unified"):
                limits += _limits_up_to(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_up_to(root / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits_up_to(mount: Path, path: str, name: str) -> list[int]:
    """Limits of a group and all above it. In a container the groups above may not be visible."""
    group = mount.joinpath(*(part for part in path.split("/") if part not in {"", ".."}))
    limits = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            break
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return limits


def _maxrss_bytes() -> int:
    """`ru_maxrss` is in kilobytes on Linux and in bytes on macOS (getrusage(2))."""
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maxrss if sys.platform == "darwin" else maxrss * 1024
