"""What a search for a soup tried, took and reached, as plain data.

`SCHEMA_VERSION` changes when a field changes its meaning or goes away; new fields do not change it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.record import json_pieces, save_json

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from streamavg.record import MergeRecord

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """A checkpoint that was given."""

    path: str
    score: float | None
    """Of it alone, on the validation data; None for NaN or infinity."""
    coefficient: float
    """In the soup; 0 if it is no member."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """An average that was scored on the validation data, or a single checkpoint."""

    members: tuple[str, ...]
    coefficients: tuple[float, ...]
    """One per member; they sum to 1."""
    score: float | None
    """None for NaN or infinity."""
    taken: bool
    """Whether it became the soup at hand. The last one that did is the soup."""


@dataclass(frozen=True, slots=True)
class ScoresRecord:
    """The loss and all metrics on one set of data, by their names."""

    data: str
    """What the user called it."""
    soup: Mapping[str, float | None]
    """Of the file that was written."""
    best_single: Mapping[str, float | None]
    """Of the checkpoint that alone is best on the validation data."""


@dataclass(frozen=True, slots=True)
class SoupRecord:
    """A search that is over."""

    schema_version: int
    streamavg_version: str
    strategy: str
    metric: str
    maximize: bool
    """Whether more of the metric is better."""
    output: str
    candidates: tuple[CandidateRecord, ...]
    """In the order given."""
    best_single: str
    """The checkpoint that alone is best on the validation data; of equal ones the first."""
    trials: tuple[TrialRecord, ...]
    """All that was scored to choose, in that order; nothing was scored twice."""
    most_trials: int | None
    """Averages that might be tried; None where the strategy decides."""
    ended_early: bool
    """Whether there was more to try."""
    validation: ScoresRecord
    """The soup was chosen by it, so its score here is higher than on other data."""
    test: ScoresRecord | None
    """Looked at once, after everything was chosen; None without test data."""
    running_sum: str | None
    """Where it was held: `memory` or `disk`; None where a strategy needs none."""
    merge: MergeRecord | None
    """How the output was written; None for a single checkpoint, whose values it holds."""
    seconds: float
    notes: tuple[str, ...]

    @property
    def members(self) -> tuple[CandidateRecord, ...]:
        """The checkpoints in the soup."""
        return tuple(one for one in self.candidates if one.coefficient)

    @property
    def answer(self) -> str:
        """What came of it, in one sentence."""
        soup, best = (
            shown(scores[self.metric])
            for scores in (self.validation.soup, self.validation.best_single)
        )
        count = len(self.members)
        if count == 1:
            return (
                f"The {self.strategy} soup is one checkpoint alone, {self.members[0].path}: no "
                f"average that was tried beats its val {self.metric} of {best}."
            )
        return (
            f"The {self.strategy} soup of {count} of {len(self.candidates)} checkpoints reaches "
            f"val {self.metric} {soup}, the best single one {best}."
        )

    def to_json(self) -> str:
        """The record as JSON, indented."""
        return "".join(json_pieces(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as JSON. Raises: OSError."""
        save_json(self, path)


def number(value: float) -> float | None:
    """A score as JSON knows it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def shown(value: float | None) -> str:
    """A score as people read it."""
    return "NaN" if value is None else f"{value:.4g}"
