"""How good each checkpoint is: from file names, or from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.errors import OptionError
from streamavg.selection.file_names import labelled_score, scores_in_names
from streamavg.selection.metrics import MONITORED, more_is_better
from streamavg.selection.tables import listed, number_in, read_table, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamavg.options import Settings
    from streamavg.selection.tables import Table

FILE_NAMES = "filename"
"""What `--scores` is called where names have the scores."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The score of each checkpoint."""

    values: dict[Path, float]
    """Finite; in the unit of the metric."""
    metric: str | None
    """Its name; None where neither the user nor the scores say."""
    maximize: bool
    """Whether more is better."""
    source: str
    """Such as "history.csv"."""
    notes: tuple[str, ...]


def read_scores(paths: Sequence[Path], given: Sequence[Path], settings: Settings) -> Scores:
    """Reads the score of each checkpoint, and which direction is better.

    Args:
        paths: the checkpoints that need a score.
        given: all checkpoints; scores that belong to the others are no surprise.
        settings: `scores` says where from, `metric` which of several, `maximize` and `minimize`
            the direction where the metric's name does not tell it, or tells another.

    Raises:
        OptionError: a checkpoint has no score, more than one, or one that is not finite; the metric
            or its direction is not clear.
    """
    assert settings.scores is not None
    if settings.scores == FILE_NAMES:
        named = scores_in_names(paths, settings.metric)
        maximize = _maximizes(named.metric, settings)
        return Scores(_finite(named.values), named.metric, maximize, "file names", ())
    table = read_table(settings.scores)
    column = _column(table, settings.metric)
    metric = table.columns[column] or settings.metric
    maximize = _maximizes(metric, settings)
    values, unused = _numbers(table, column, paths, given, metric)
    if table.is_by_epoch and metric is not None:
        _refuse_another_history(values, metric, table.source)
    return Scores(values, metric, maximize, table.source, unused_notes(table.source, unused))


def _finite(values: dict[Path, float]) -> dict[Path, float]:
    for path, score in values.items():
        if not math.isfinite(score):
            raise OptionError(f"{path}: its score is {score}. Leave that checkpoint out.")
    return values


def _numbers(
    table: Table, column: int, paths: Sequence[Path], given: Sequence[Path], metric: str | None
) -> tuple[dict[Path, float], tuple[str, ...]]:
    assigned = rows_of(table, paths, given)
    missing = [path for path in paths if path not in assigned.rows]
    if missing:
        raise OptionError(f"{table.source}: has no score for {listed(missing)}.")
    values = {
        path: number_in(
            assigned.rows[path].cells[column],
            f"{assigned.rows[path].where}, for {path}",
            metric or "the score",
        )
        for path in paths
    }
    return values, assigned.unused


def _refuse_another_history(values: dict[Path, float], metric: str, source: str) -> None:
    """Where names hold the metric too, both must say the same but for rounding."""
    for path, score in values.items():
        named = labelled_score(path, metric)
        if named is not None and abs(named.value - score) > 0.51 * named.unit:
            raise OptionError(
                f"{path}: its name says {metric} {named.text}, but {source} has {score:g} for that "
                "epoch. It may be the history of another run, or one whose epochs do not count "
                "from 0; --scores filename takes what the names say."
            )


def unused_notes(source: str, unused: Sequence[str]) -> tuple[str, ...]:
    """Tells of paths in a file that are none of the checkpoints."""
    if not unused:
        return ()
    return (f"{source}: {listed(unused)}: not among the checkpoints given, not used.",)


def _column(table: Table, metric: str | None) -> int:
    """The column asked for; without, `val_loss`, as Keras' callbacks monitor, or the only one."""
    columns = table.columns
    wanted = metric
    if columns == ("",) or (metric is None and len(columns) == 1):
        return 0
    if metric is None and MONITORED in columns:
        wanted = MONITORED
    if wanted is None:
        raise OptionError(
            f"{table.source}: has several metrics and no {MONITORED!r}: name one with --metric. "
            f"Found {', '.join(map(repr, columns))}."
        )
    if columns.count(wanted) != 1:
        what = f"two columns {wanted!r}" if wanted in columns else f"no metric {wanted!r}"
        raise OptionError(
            f"{table.source}: has {what}: found {', '.join(map(repr, columns))}. "
            "Name one with --metric."
        )
    return columns.index(wanted)


def _maximizes(metric: str | None, settings: Settings) -> bool:
    """Whether more is better: as the user says, else as the metric's name says."""
    by_name = None if metric is None else more_is_better(metric)
    if not (settings.maximize or settings.minimize):
        if by_name is None:
            what = "the scores have no name" if metric is None else repr(metric)
            remedy = "" if settings.metric else ", or name the metric with --metric"
            raise OptionError(
                f"--scores: {what}: cannot tell whether more is better. "
                f"Say so with --maximize or --minimize{remedy}."
            )
        return by_name
    if settings.metric is None and by_name is not None and by_name != settings.maximize:
        asked = "--maximize" if settings.maximize else "--minimize"
        raise OptionError(
            f"{asked}: the scores found are {metric!r}, of which {'more' if by_name else 'less'} "
            f"is better. Name the metric that is meant with --metric; with --metric {metric}, "
            f"{asked} is taken at its word."
        )
    return settings.maximize
