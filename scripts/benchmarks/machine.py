"""What was measured on: facts that a reader needs to compare, and no names or paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from importlib import metadata
from pathlib import Path

import h5py

GIB = 1024**3
PACKAGES = ("streamavg", "numpy", "h5py", "ml_dtypes", "isal", "keras")
TENSORFLOW = ("tensorflow", "tensorflow-cpu")


def describe(folder: Path, repository: Path) -> dict[str, str]:
    """The machine, the versions and the date.

    Args:
        folder: where the inputs lie.
        repository: the checkout that is measured.
    """
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        "memory": f"{memory_bytes() / GIB:.0f} GiB",
        "file system": file_system(folder),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES if version(name)},
        "TensorFlow": next(filter(None, map(version, TENSORFLOW)), ""),
        "HDF5": h5py.version.hdf5_version,
        "commit": commit(repository),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory_bytes() -> int:
    """The memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as ext4."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    place, best, kind = folder.resolve(), -1, "unknown"
    for _, mount, name, *_ in (line.split() for line in lines):
        if place.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), name
    return kind


def version(package: str) -> str:
    """The version of an installed package, or ""."""
    if package == "streamavg":
        return _source_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _source_version() -> str:
    from streamavg.version import __version__

    return __version__


def commit(repository: Path) -> str:
    """The commit of the checkout, marked where files differ from it; "" outside of one."""
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
