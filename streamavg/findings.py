"""What a check found, as plain data: for the screen, for JSON.

`SCHEMA_VERSION` changes when a field or a kind changes its meaning or goes away; new fields and new
kinds do not change it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.record import json_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamavg.record import MemoryRecord

SCHEMA_VERSION = 1


class FindingKind(enum.StrEnum):
    """What a finding is about."""

    TOO_FEW = "too-few"
    """Fewer than two checkpoints."""
    SAME_FILE = "same-file"
    """One file under two names, or named twice."""
    UNREADABLE = "unreadable"
    """No checkpoint, damaged, unsafe, or nothing that streamavg averages."""
    BEING_WRITTEN = "being-written"
    """Open for writing, changed while it was looked at, or modified just before."""
    ODD_REFERENCE = "odd-reference"
    """The reference differs from each of the others."""
    STRUCTURE = "structure"
    """Layers or variables: their names, order, shapes or dtypes."""
    CONFIGURATION = "configuration"
    PREPROCESSING = "preprocessing"
    """State learned from the data before training, or a vocabulary."""
    NON_FLOAT = "non-float"
    """Integers, bools or strings differ."""
    NON_FINITE = "non-finite"
    """NaN or Inf."""
    SAME_VALUES = "same-values"
    """The same checkpoint in several files."""
    NEAR_DUPLICATES = "near-duplicates"
    DISTANT = "distant"
    """Training states so far apart that their average is none of a trained model."""
    KERAS_VERSION = "keras-version"
    OPTIMIZER = "optimizer"
    NOT_COMPARED = "not-compared"
    """Something that could not be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that forbids an average, or that its user should know."""

    kind: FindingKind
    paths: tuple[str, ...]
    """Of the checkpoints that it is about, in the order given; none if it is about all."""
    variable: str | None
    """The variable that it is about; None if it is about more."""
    text: str
    """What it is and what to do, in full sentences."""


@dataclass(frozen=True, slots=True)
class CheckedCheckpoint:
    """One file that was given; what it does not tell, or could not be read, is None."""

    path: str
    format: str | None
    producer: str | None
    """Version of the Keras that wrote it."""
    file_bytes: int | None
    optimizer_bytes: int | None
    """Of the optimizer's variables."""
    distance: float | None
    """Mean relative distance to the other checkpoints, over the layers that are not the same in
    all; see `streamavg.comparison`. None where it was not measured."""


@dataclass(frozen=True, slots=True)
class ReadValues:
    """Which values were looked at, of the variables that a merge averages."""

    scope: str
    """Where NaN and Inf were looked for: in `all` values, in a `sample`, or in `none`."""
    checkpoints: int
    """How many checkpoints that was: those that match the reference."""
    elements: int
    """Of one checkpoint."""
    sampled: int
    """Of them, those that distances were measured on."""
    bytes_read: int
    """Of all checkpoints together."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Relative distances from which on, and below which, a check warns."""

    distant: float
    near_duplicates: float


@dataclass(frozen=True, slots=True)
class Check:
    """Whether some checkpoints may be averaged."""

    schema_version: int
    streamavg_version: str
    can_be_averaged: bool
    """Whether there are no refusals; with a `scope` of less than all, as far as was looked."""
    reference: str | None
    """The checkpoint that the others were compared with; None if none could be read."""
    checkpoints: tuple[CheckedCheckpoint, ...]
    """In the order given, each file once."""
    refusals: tuple[Finding, ...]
    """What a merge refuses."""
    warnings: tuple[Finding, ...]
    """What a merge does not refuse."""
    values: ReadValues
    thresholds: Thresholds
    memory: MemoryRecord
    seconds: float

    @property
    def others(self) -> tuple[str, ...]:
        """Paths of the checkpoints that would be left without those that are refused.

        None if the reference is refused: then nothing was compared with another one.
        """
        refused = {path for finding in self.refusals for path in finding.paths}
        if self.reference is None or self.reference in refused:
            return ()
        return tuple(c.path for c in self.checkpoints if c.path not in refused)

    def kinds_of(self, path: str) -> tuple[tuple[FindingKind, ...], tuple[FindingKind, ...]]:
        """Kinds of the refusals and of the warnings that are about a checkpoint, each once."""
        return _kinds(self.refusals, path), _kinds(self.warnings, path)

    def answer(self) -> str:
        """Whether they can be averaged, in one sentence."""
        count = len(self.checkpoints)
        these = f"These {count} checkpoints" if count != 1 else "This checkpoint"
        if self.refusals:
            return f"{these} cannot be averaged: {_counted(len(self.refusals), 'refusal')}."
        warnings = f": {_counted(len(self.warnings), 'warning')}" if self.warnings else ""
        if self.values.scope == "all":
            return f"{these} can be averaged{warnings}."
        return f"{these} can be averaged, as far as a sample of their values tells{warnings}."

    def to_json(self) -> str:
        """The check as JSON, indented."""
        return "".join(self.json_pieces())

    def json_pieces(self) -> Iterator[str]:
        """The check as JSON, piece by piece: the whole of it is never in memory."""
        return json_pieces(self)


def _kinds(findings: tuple[Finding, ...], path: str) -> tuple[FindingKind, ...]:
    return tuple(dict.fromkeys(f.kind for f in findings if path in f.paths))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
