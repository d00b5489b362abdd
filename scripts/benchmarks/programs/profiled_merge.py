"""Runs `streamavg merge` with timers in it, and writes where the time of each thread went.

    python profiled_merge.py REPORT.json merge INPUT... -o OUTPUT

Every call and return of a function tells the interpreter's profile hook (`sys.setprofile`); the
time since the last one is added to the phase that the thread is in. The phase follows from the
function at hand: system calls count by what they do, wherever they are made; Python functions by
the room of streamavg that they are in, and those of other packages as part of their caller. The
work of NumPy's ufuncs is not a call for the hook, so that it counts for the method that asks.

Waiting for the interpreter's lock counts for the phase that waits for it. The timers themselves
take time: compare the seconds of the report with those of an ordinary run.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    Hook = Callable[[FrameType, str, Any], None]

START_UP = "start-up and exit"
HEADERS = "headers, comparing, planning"
SKELETON = "skeleton of the output"
ENGINE = "the loop around"
ARITHMETIC = "arithmetic"
COMMIT = "commit"
READING, WRITING, FSYNC = "reading", "writing", "fsync"
CHECKSUM, WAITING = "checksum", "waiting for another thread"

SYSTEM_CALLS = {
    **dict.fromkeys(["pread", "preadv", "read", "readv", "readinto", "posix_fadvise"], READING),
    **dict.fromkeys(["pwrite", "pwritev", "write", "writev", "posix_fallocate"], WRITING),
    **dict.fromkeys(["fsync", "fdatasync"], FSYNC),
    **dict.fromkeys(["crc32", "crc32_combine"], CHECKSUM),
    **dict.fromkeys(["acquire", "wait", "join"], WAITING),
}
"""What functions written in C count as, whoever calls them."""


def phase_of(room: str, function: str, caller: str) -> str:
    """The phase of a Python function.

    Args:
        room: the module of streamavg without the package's name; "" for other packages.
        function: its name.
        caller: the phase of its caller.
    """
    if function == "<module>":
        return START_UP
    if not room:
        return caller
    if room.startswith("methods"):
        return ARITHMETIC
    if room.startswith("streaming"):
        return ENGINE
    if caller == ENGINE:  # reading and writing of slabs: what is not a system call is the loop's
        return ENGINE
    if function == "commit" or caller == COMMIT:
        return COMMIT
    if "writ" in room or "writ" in function or caller == SKELETON:
        return SKELETON
    return HEADERS


class PhaseTimer:
    """Adds up, for each thread, the seconds that it spent in each phase."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._rooms: dict[CodeType, str] = {}
        self.threads: list[dict[str, float]] = []

    def start_thread(self, frame: FrameType, event: str, argument: Any) -> None:
        """The first event of a new thread: from here on its own hook is called."""
        hook = self.hook(ENGINE)
        sys.setprofile(hook)
        hook(frame, event, argument)

    def hook(self, phase: str) -> Hook:
        """A profile hook for the thread at hand, which is in this phase."""
        totals: dict[str, float] = defaultdict(float)
        self.threads.append(totals)
        phases = [phase]
        last = time.perf_counter()

        def account(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal last
            now = time.perf_counter()
            totals[phases[-1]] += now - last
            last = now
            if event == "call":
                code = frame.f_code
                phases.append(phase_of(self._room(code), code.co_name, phases[-1]))
            elif event == "c_call":
                phases.append(SYSTEM_CALLS.get(argument.__name__, phases[-1]))
            elif len(phases) > 1:
                phases.pop()

        return account

    def _room(self, code: CodeType) -> str:
        if code not in self._rooms:
            path = Path(code.co_filename)
            inside = path.is_relative_to(self._package)
            relative = path.relative_to(self._package).with_suffix("") if inside else Path()
            self._rooms[code] = ".".join(relative.parts)
        return self._rooms[code]


def main(report: str, *arguments: str) -> None:
    """Merges, and writes the report."""
    import streamavg
    import streamavg.cli.merge
    import streamavg.merging  # commands import what they run; here it counts as start-up

    timer = PhaseTimer(Path(streamavg.__file__).parent)
    threading.setprofile(timer.start_thread)
    sys.setprofile(timer.hook(HEADERS))
    sys.argv = ["streamavg", *arguments]
    try:
        streamavg.cli.main()
    finally:  # it ends by SystemExit
        sys.setprofile(None)
        threading.setprofile(None)
        main_thread, *others = timer.threads
        Path(report).write_text(json.dumps({"main": main_thread, "others": others}), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
