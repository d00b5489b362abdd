"""Starts a command, waits for its end and prints what the operating system saw of it, as JSON.

    python -I -S launcher.py CGROUP_PROCS OPEN_FILES COMMAND...

A small process between: on Linux a program starts with the peak memory of the one that started it.
CGROUP_PROCS is the file by which the command joins a cgroup, or ""; OPEN_FILES limits how many
files it may have open, 0 does not.
"""

import json
import os
import resource
import sys
import time


def child(cgroup: str, open_files: int, command: list[str]) -> None:
    """Becomes the command, within its limits."""
    if cgroup:
        with open(cgroup, "w") as file:  # noqa: PTH123 - pathlib would make this program larger
            file.write("0")
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    os.execvp(command[0], command)


def main() -> None:
    """Prints seconds, processor seconds, peak in kilobytes, exit code (negative: a signal)."""
    cgroup, open_files, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    started = time.perf_counter()
    process = os.fork()
    if process == 0:
        try:
            child(cgroup, open_files, command)
        except BaseException as error:  # the copy of this program must not go on
            os.write(2, f"{command[0]}: {error}\n".encode())
        os._exit(127)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    peak = max(usage.ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, peak, code]))


main()
