"""Every measurement that was made, and what follows from them. Plain data; JSON in and out."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DONE = "done"
OOM_KILL = "OOM kill"
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one command."""

    mode: str
    scenario: str
    """The inputs and conditions that it shares with others."""
    contender: str
    repeat: int
    """Which of several measurements of the whole table, from 1."""
    round: int
    """Commands of one round ran side by side, from 1; round 0 fills the caches: it does not
    count."""
    seconds: float
    """Of wall-clock time, from start to end of the process."""
    processor_seconds: float
    """User and system time, of all threads and processes together."""
    peak_bytes: int
    """Largest resident memory of its largest process."""
    outcome: str = DONE


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is known of the inputs of a scenario."""

    mode: str
    name: str
    checkpoints: int
    variables: int
    """Of one checkpoint."""
    bytes_each: int
    """Of the values of one checkpoint."""
    dtype: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of averaged values, in ULP of the exact mean in the dtype of the output."""

    case: str
    dtype: str
    checkpoints: int
    weighted: bool
    values: int
    """How many were compared."""
    largest: float
    mean: float
    bound: float
    """What is promised."""
    largest_naive: float
    """Of the sum in the dtype of the inputs, divided at the end."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one merge went."""

    mode: str
    scenario: str
    seconds: float
    """Of wall-clock time, the process from start to end, with the timers in it."""
    threads: int
    main: dict[str, float]
    """Seconds of the main thread by phase; they add up to `seconds`."""
    others: dict[str, float]
    """Seconds of all other threads together."""


@dataclass
class Report:
    """All that was measured, and on what."""

    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    scenarios: list[Scenario] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def note(self, text: str) -> None:
        """Remembers what was left out, once."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Report:
        """Reads one or several reports as one.

        What a later file measured again counts as further repeats. Where machine and settings
        differ, each file's are told.
        """
        report = cls()
        for path in paths:
            before: dict[tuple[str, str], int] = {}
            for earlier in report.measurements:
                key = earlier.mode, earlier.scenario
                before[key] = max(before.get(key, 0), earlier.repeat)
            document = json.loads(path.read_text("utf-8"))
            _add_facts(report.machine, document["machine"])
            _add_facts(report.settings, document["settings"])
            report.scenarios += [Scenario(**entry) for entry in document["scenarios"]]
            for entry in document["measurements"]:
                again = Measurement(**entry)
                after = before.get((again.mode, again.scenario), 0)
                report.measurements.append(replace(again, repeat=after + again.repeat))
            report.accuracy += [Accuracy(**entry) for entry in document["accuracy"]]
            report.profiles += [Profile(**entry) for entry in document["profiles"]]
            for text in document["notes"]:
                report.note(text)
        return report

    def scenario(self, mode: str, name: str) -> Scenario | None:
        """What is known of a scenario's inputs."""
        found = (s for s in self.scenarios if (s.mode, s.name) == (mode, name))
        return next(found, None)

    def scenario_names(self, mode: str) -> list[str]:
        """Names of the scenarios of a mode, in the order in which they were measured."""
        return list(dict.fromkeys(m.scenario for m in self.measurements if m.mode == mode))

    def contenders(self, mode: str, scenario: str) -> list[str]:
        """Names of the contenders of a scenario, in the order in which they were measured."""
        return list(dict.fromkeys(m.contender for m in self.of(mode, scenario, counted=False)))

    def of(
        self,
        mode: str,
        scenario: str,
        contender: str | None = None,
        repeat: int | None = None,
        *,
        counted: bool = True,
    ) -> list[Measurement]:
        """The measurements of a scenario; those of one contender or repeat if asked for."""
        return [
            m
            for m in self.measurements
            if (m.mode, m.scenario) == (mode, scenario)
            and contender in {None, m.contender}
            and repeat in {None, m.repeat}
            and (m.round > 0 or not counted)
        ]

    def repeats(self, mode: str, scenario: str) -> list[int]:
        """Which measurements of the whole table have this scenario."""
        return sorted({m.repeat for m in self.of(mode, scenario)})

    def ratios(
        self, mode: str, scenario: str, contender: str, base: str, repeat: int | None = None
    ) -> list[float]:
        """Times of a contender divided by those of another, pair by pair of the same round."""
        bases = {
            (m.repeat, m.round): m.seconds
            for m in self.of(mode, scenario, base, repeat)
            if m.outcome == DONE
        }
        return [
            m.seconds / bases[m.repeat, m.round]
            for m in self.of(mode, scenario, contender, repeat)
            if m.outcome == DONE and (m.repeat, m.round) in bases
        ]

    def median_ratio(
        self, mode: str, scenario: str, contender: str, base: str, repeat: int | None = None
    ) -> float | None:
        """Median of `ratios`; None where there is no pair."""
        ratios = self.ratios(mode, scenario, contender, base, repeat)
        return statistics.median(ratios) if ratios else None

    def median_seconds(self, mode: str, scenario: str, contender: str) -> float | None:
        """Median time; None where it never ended well."""
        seconds = [m.seconds for m in self.of(mode, scenario, contender) if m.outcome == DONE]
        return statistics.median(seconds) if seconds else None

    def peak_bytes(self, mode: str, scenario: str, contender: str) -> int | None:
        """Largest peak of all its runs; None where there is none."""
        return max((m.peak_bytes for m in self.of(mode, scenario, contender)), default=None)

    def failures(self, mode: str, scenario: str, contender: str) -> list[str]:
        """How runs ended that did not end well."""
        return [
            m.outcome for m in self.of(mode, scenario, contender, counted=False)
            if m.outcome != DONE
        ]  # fmt: skip


def _add_facts(facts: dict[str, str], others: dict[str, str]) -> None:
    """Adds facts to others of the same names: what differs stands beside what was there."""
    for name, value in others.items():
        known = facts.setdefault(name, value)
        if value not in known.split(" / "):
            facts[name] = f"{known} / {value}"
