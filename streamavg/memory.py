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


def _maxrss_bytes() -> int:
    """`ru_maxrss` is in kilobytes on Linux and in bytes on macOS (getrusage(2))."""
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maxrss if sys.platform == "darwin" else maxrss * 1024
