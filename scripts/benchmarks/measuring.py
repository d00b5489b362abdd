"""One command as a process of its own, and the state of the page cache before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cgroups import memory_cgroup
from benchmarks.results import DONE, OOM_KILL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
KILOBYTE = 1 if sys.platform == "darwin" else 1024
"""Unit of `ru_maxrss` in bytes (getrusage(2))."""


@dataclass(frozen=True, slots=True)
class Process:
    """A command that has ended."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    outcome: str
    """`done`, `OOM kill`, or how else it ended."""
    message: str
    """The last that it wrote to its standard error."""


def run(
    command: Sequence[str], folder: Path, *, memory: int | None = None, open_files: int = 0
) -> Process:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        folder: where it runs.
        memory: bytes that a memory cgroup of its own allows it, page cache included.
        open_files: how many files it may have open at once; 0 for as many as usual.

    Raises:
        CgroupUnavailableError: `memory` is given, and there are no cgroups here.
    """
    if memory is None:
        return _launch(command, folder, "", open_files)
    with memory_cgroup(memory) as cgroup:
        process = _launch(command, folder, str(cgroup.processes), open_files)
        if cgroup.oom_kills == 0:
            return process
    return Process(
        process.seconds, process.processor_seconds, process.peak_bytes, OOM_KILL, process.message
    )


def _launch(command: Sequence[str], folder: Path, cgroup: str, open_files: int) -> Process:
    launcher = [sys.executable, "-I", "-S", str(PROGRAMS / "launcher.py"), cgroup, str(open_files)]
    done = subprocess.run(
        [*launcher, *command],
        cwd=folder, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, processor_seconds, peak, code = json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    outcome = DONE if code == 0 else f"signal {-code}" if code < 0 else f"exit code {code}"
    return Process(seconds, processor_seconds, peak * KILOBYTE, outcome, lines[-1] if lines else "")


def environment() -> dict[str, str]:
    """Variables of the commands: this checkout comes first, and Keras says little."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def flush() -> None:
    """Writes to the disk what waits for that, so that the next command does not pay for it."""
    os.sync()


def fill_cache(paths: Iterable[Path]) -> None:
    """Reads files, so that the page cache holds them if it is large enough."""
    buffer = memoryview(bytearray(2**20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def can_drop_caches() -> bool:
    """Whether this process may empty the page cache of the machine."""
    try:
        os.close(os.open(DROP_CACHES, os.O_WRONLY))
    except OSError:
        return False
    return True


def drop_cache(paths: Iterable[Path], *, everything: bool) -> None:
    """Takes files out of the page cache.

    Args:
        paths: the files.
        everything: empties the page cache of the machine, programs and libraries included;
            otherwise asks the kernel to forget these files alone.
    """
    flush()
    if everything:
        DROP_CACHES.write_text("1")
        return
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
