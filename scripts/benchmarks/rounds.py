"""Measures contenders in turn, several times over.

A round runs every contender once, so that two times of one round were taken side by side, under
the same load of the machine; ratios are taken from such pairs. Every second round goes backwards:
what one command leaves behind for the next weighs on both of a pair alike. Round 0 does not count:
it fills the caches, and its outputs are compared.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import measuring
from benchmarks.cgroups import CgroupUnavailableError
from benchmarks.checks import check_outputs
from benchmarks.contenders import L_FSYNC, L
from benchmarks.results import DONE, OOM_KILL, Measurement, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.contenders import Contender
    from benchmarks.inputs import Model
    from benchmarks.results import Report


class CommandFailedError(Exception):
    """A command that must work did not."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What holds for all commands of a scenario."""

    mode: str
    scenario: str
    model: Model | None = None
    """What the inputs are checkpoints of."""
    is_cold: bool = False
    """Whether the page cache is emptied before each command, or filled with its inputs."""
    drops_everything: bool = True
    """Whether emptying means the whole page cache, or the inputs alone."""
    memory: int | None = None
    """Bytes that a memory cgroup allows each command."""
    open_files: int = 0
    at_most: int | None = None
    """How many variables of the outputs are compared; all of them by default."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How often contenders are run."""

    rounds: int
    peer_rounds: int
    """Of other programs, which are much slower."""
    repeat: int = 1
    """Which measurement of the whole table this is."""


def run_rounds(
    contenders: Sequence[Contender],
    conditions: Conditions,
    counts: Counts,
    folder: Path,
    report: Report,
) -> None:
    """Measures contenders of one scenario and adds the measurements to the report.

    Raises:
        CommandFailedError: a command failed, other than by the limit of its cgroup.
        OutputsDifferError: the contenders did not write the same values.
        CgroupUnavailableError: memory is limited, and there are no cgroups here.
    """
    _describe(contenders, conditions, report)
    for number in range(counts.rounds + 1):
        taking_part = [c for c in contenders if number <= counts.peer_rounds or not c.is_peer]
        done = []
        for contender in taking_part[:: -1 if number % 2 else 1]:
            say(f"{conditions.mode}, {conditions.scenario}, round {number}: {contender.name}")
            process = run_once(contender, conditions, folder)
            report.measurements.append(
                Measurement(
                    conditions.mode,
                    conditions.scenario,
                    contender.name,
                    counts.repeat,
                    number,
                    process.seconds,
                    process.processor_seconds,
                    process.peak_bytes,
                    process.outcome,
                )
            )
            if process.outcome == DONE:
                done.append(contender)
            if number > 0:
                remove_output(contender, folder)
        if number == 0:
            if conditions.model is not None:
                check_outputs(done, conditions.model, folder, conditions.at_most)
            for contender in contenders:
                remove_output(contender, folder)


def run_once(contender: Contender, conditions: Conditions, folder: Path) -> measuring.Process:
    """Runs a contender in the state of the page cache that the conditions ask for."""
    remove_output(contender, folder)
    inputs = [folder / name for name in contender.inputs]
    if conditions.is_cold:
        measuring.drop_cache(inputs, everything=conditions.drops_everything)
    else:
        measuring.flush()
        measuring.fill_cache(inputs)
    process = measuring.run(
        contender.command, folder, memory=conditions.memory, open_files=conditions.open_files
    )
    is_allowed = process.outcome == OOM_KILL and contender.name not in {L, L_FSYNC}
    if process.outcome != DONE and not is_allowed:
        raise CommandFailedError(f"{contender.name}: {process.outcome}: {process.message}")
    return process


def remove_output(contender: Contender, folder: Path) -> None:
    """Removes what a contender wrote."""
    if contender.output is None:
        return
    output = folder / contender.output
    if output.parent == folder:
        output.unlink(missing_ok=True)
    else:
        shutil.rmtree(output.parent, ignore_errors=True)


def is_cgroup_available(memory: int, folder: Path) -> str:
    """Why no command can be run in a memory cgroup; "" if it can."""
    try:
        measuring.run(["/bin/true"], folder, memory=memory)
    except CgroupUnavailableError as error:
        return str(error)
    return ""


def _describe(contenders: Sequence[Contender], conditions: Conditions, report: Report) -> None:
    if conditions.model is None or report.scenario(conditions.mode, conditions.scenario):
        return
    model = conditions.model
    report.scenarios.append(
        Scenario(
            conditions.mode,
            conditions.scenario,
            len(contenders[0].inputs),
            len(model.variables),
            model.size,
            model.dtype,
        )
    )


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)
