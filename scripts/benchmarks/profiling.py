"""Where the time of a merge goes: phases of its threads, measured inside one run of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import PROGRAMS
from benchmarks.results import Profile
from benchmarks.rounds import remove_output, run_once, say

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders import Contender
    from benchmarks.results import Report
    from benchmarks.rounds import Conditions

START_UP = "start-up and exit"
WAITING = "waiting for another thread"
RUNS = 3
"""The fastest counts: the others were disturbed more."""


def profile(contender: Contender, conditions: Conditions, folder: Path, report: Report) -> None:
    """Adds the profile of a merge to the report.

    Args:
        contender: a merge by streamavg.
        conditions: under which it runs.
        folder: where the inputs are.
        report: takes the profile.
    """
    target = folder / "profile.json"
    program = [sys.executable, str(PROGRAMS / "profiled_merge.py"), str(target)]
    timed = replace(contender, command=[*program, *contender.command[3:]])
    profiles = []
    for number in range(RUNS):
        say(f"{conditions.mode}, {conditions.scenario}, profile {number}: {contender.name}")
        process = run_once(timed, conditions, folder)
        remove_output(timed, folder)
        if not target.exists():
            return  # ended by the limit of its cgroup
        document = json.loads(target.read_text("utf-8"))
        target.unlink()
        profiles.append(_profile(document, process.seconds, conditions))
    report.profiles.append(min(profiles, key=lambda p: p.seconds))


def _profile(document: dict[str, Any], seconds: float, conditions: Conditions) -> Profile:
    main: dict[str, float] = document["main"]
    threads: list[dict[str, float]] = document["others"]
    # What no timer saw is the interpreter and the imports, before and after.
    main[START_UP] = main.get(START_UP, 0) + seconds - sum(main.values())
    others = {
        phase: sum(thread.get(phase, 0) for thread in threads)
        for phase in dict.fromkeys(phase for thread in threads for phase in thread)
    }
    return Profile(
        conditions.mode,
        conditions.scenario,
        seconds,
        1 + len(threads),
        main,
        others,
    )
