"""Which checkpoints are averaged, in which order, with which coefficients.

    given -> order -> scores -> pick (--last, --best) -> coefficients

A pick never reorders: what it leaves is merged in the order that it was found in. Nothing is left
out silently: a pick takes exactly as many as it was asked for, and tells which it left out.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

from streamavg.coefficients import (
    Coefficients,
    coefficients_for,
    ema_coefficients,
    softmax_coefficients,
)
from streamavg.errors import CoefficientError, OptionError, UnknownFormatError
from streamavg.natural_order import natural_path_key
from streamavg.selection.file_names import epochs_in_names
from streamavg.selection.scores import read_scores, unused_notes
from streamavg.selection.tables import listed, number_in, read_table, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamavg.options import Settings
    from streamavg.selection.scores import Scores

    StrPath = str | os.PathLike[str]


_TABLES = (str, os.PathLike, Mapping)
"""Weights that name their checkpoints: a file, or a mapping of paths."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A checkpoint that was given and not picked."""

    path: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Rules:
    """How the checkpoints were selected, as plain data."""

    given: int
    """Number of checkpoints."""
    order: str
    """`given`, `natural` or `mtime`."""
    picked: str
    """`all`, `last` or `best`."""
    left_out: tuple[LeftOut, ...]
    """In the same order."""
    coefficients: str
    """`uniform`, `weights`, `softmax` or `ema`; `none` where a method has none."""
    softmax: float | None
    """The temperature, in the unit of the scores."""
    decay: float | None
    metric: str | None
    """Name of the scores; None if there are none, or nothing names them."""
    maximize: bool | None
    """Whether more is better; None if there are no scores."""
    scores_from: str | None
    """The file, or "file names"."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The checkpoints to merge."""

    paths: tuple[Path, ...]
    """In merge order."""
    coefficients: Coefficients
    scores: tuple[float | None, ...]
    """One per checkpoint; None where none was asked for."""
    rules: Rules
    notes: tuple[str, ...]


def select(paths: Iterable[StrPath], settings: Settings) -> Selection:
    """Selects the checkpoints to merge and their coefficients.

    `--last K` of a run's checkpoints is latest weight averaging, LAWA: Kaddour, "Stop Wasting My
    Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging", 2022.

    Args:
        paths: the checkpoints given; none of them is opened.
        settings: the user's choices.

    Raises:
        OptionError: fewer than two checkpoints, or fewer than are to be picked; the same one
            twice; options that exclude each other; an order or a score that is not clear.
        CoefficientError: weights, a temperature or a decay that give no coefficients.
        UnknownFormatError: a checkpoint that is not picked does not exist.
    """
    refuse_contradictions(settings)
    given = select_paths(paths)
    ordered = _ordered(given, settings)
    candidates = _last(ordered, settings.last)
    scores = None if settings.scores is None else read_scores(candidates, given, settings)
    picked, ties = _best(candidates, scores, settings.best)
    taken = set(picked)
    left_out = tuple(path for path in ordered if path not in taken)
    for path in left_out:
        _stat(path)
    coefficients, remarks = _coefficients(picked, given, scores, settings)
    score_of = {} if scores is None else scores.values
    return Selection(
        paths=picked,
        coefficients=coefficients,
        scores=tuple(map(score_of.get, picked)),
        rules=Rules(
            given=len(given),
            order=_order(settings),
            picked="last" if settings.last else "best" if settings.best else "all",
            left_out=tuple(LeftOut(str(path), score_of.get(path)) for path in left_out),
            coefficients=_origin(settings),
            softmax=settings.softmax,
            decay=settings.decay,
            metric=None if scores is None else scores.metric,
            maximize=None if scores is None else scores.maximize,
            scores_from=None if scores is None else scores.source,
        ),
        notes=(*(() if scores is None else scores.notes), *ties, *remarks),
    )


def refuse_contradictions(settings: Settings) -> None:
    """Refuses options that exclude each other, or that do nothing without another.

    Raises:
        OptionError: with the names of both.
    """
    is_list = settings.weights is not None and not isinstance(settings.weights, _TABLES)
    chosen = {
        "--last": settings.last is not None,
        "--best": settings.best is not None,
        "--scores": settings.scores is not None,
        "--metric": settings.metric is not None,
        "--maximize": settings.maximize,
        "--minimize": settings.minimize,
        "--weights": settings.weights is not None,
        "a list of --weights": is_list,
        "--softmax": settings.softmax is not None,
        "--method ema": settings.method == "ema",
        "--method median": settings.method == "median",
        "--method trimmed-mean": settings.method == "trimmed-mean",
        "--trim": settings.trim is not None,
        "--decay": settings.decay is not None,
        f"--order {settings.order}": settings.order in {"natural", "mtime"},
    }
    for one, other in _EXCLUSIVE:
        if chosen[one] and chosen[other]:
            raise OptionError(f"{one} and {other} exclude each other. Choose one of them.")
    for option in ("--last", "--best", f"--order {settings.order}"):
        if is_list and chosen[option]:
            raise OptionError(
                f"a list of --weights and {option} exclude each other: it would not be clear which "
                "weight belongs to which checkpoint. Give --weights a file of paths and numbers."
            )
    for option, needed in _NEEDED.items():
        if chosen[option] and not any(chosen[other] for other in needed):
            raise OptionError(f"{option} goes with {' or '.join(needed)}, which is not there.")


_EXCLUSIVE = (
    ("--last", "--best"),
    ("--maximize", "--minimize"),
    ("--weights", "--softmax"),
    ("--weights", "--method ema"),
    ("--softmax", "--method ema"),
    *product(("--weights", "--softmax", "--decay"), ("--method median", "--method trimmed-mean")),
)
_NEEDED = {
    "--best": ("--scores",),
    "--softmax": ("--scores",),
    "--scores": ("--best", "--softmax"),
    "--metric": ("--scores",),
    "--maximize": ("--scores",),
    "--minimize": ("--scores",),
    "--method ema": ("--decay",),
    "--decay": ("--method ema",),
    "--trim": ("--method trimmed-mean",),
}
"""What an option can do nothing without: one of these."""


def select_paths(paths: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """The checkpoints to merge, in the order given.

    Raises:
        OptionError: fewer than two, or the same file twice.
    """
    distinct, again = distinct_files(paths)
    given = len(distinct) + len(again)
    if given < 2:
        raise OptionError(
            f"a merge or comparison needs at least two checkpoints, {given} given. "
            "Name more files, or check that the pattern matches them."
        )
    for path, first in again:
        raise OptionError(same_file(path, first))
    return distinct


def distinct_files(
    paths: Iterable[str | os.PathLike[str]],
) -> tuple[tuple[Path, ...], tuple[tuple[Path, Path], ...]]:
    """The files that were given, each once, in order.

    Returns:
        The files; and of each further name of one of them that name and the first one.

    Raises:
        OptionError: one path instead of several.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise OptionError(f"{paths!r} is one path; give a list of at least two.")
    first_of: dict[object, Path] = {}
    again = []
    for path in map(Path, paths):
        key = _identity(path)
        if key in first_of:
            again.append((path, first_of[key]))
        else:
            first_of[key] = path
    return tuple(first_of.values()), tuple(again)


def same_file(path: Path, first: Path) -> str:
    """Says of a path that it is another name of a file that was named before."""
    return (
        f"{path}: is the same file as {first}. Name each checkpoint once; "
        "to count one more than others in a merge, use --weights."
    )


# --- order ----------------------------------------------------------------------------------------


def _order(settings: Settings) -> str:
    """The order asked for; by default natural where the order decides something."""
    if settings.order != "auto":
        return settings.order
    decides = settings.last is not None or settings.best is not None or settings.method == "ema"
    return "natural" if decides else "given"


def _ordered(given: tuple[Path, ...], settings: Settings) -> tuple[Path, ...]:
    order = _order(settings)
    if order == "given":
        return given
    if order == "mtime":
        return _by_time(given)
    ordered = tuple(sorted(given, key=natural_path_key))
    if settings.order == "auto" and (settings.last is not None or settings.method == "ema"):
        _refuse_falling_epochs(ordered)
    return ordered


def _by_time(given: tuple[Path, ...]) -> tuple[Path, ...]:
    times = {path: _stat(path).st_mtime_ns for path in given}
    ordered = tuple(sorted(given, key=times.__getitem__))
    for one, other in pairwise(ordered):
        if times[one] == times[other]:
            raise OptionError(
                f"--order mtime: {one} and {other} were modified at the same time, as copies are. "
                "Use --order natural or given."
            )
    return ordered


def _refuse_falling_epochs(ordered: tuple[Path, ...]) -> None:
    """Natural order, if it was not asked for, must not contradict the epochs in the names."""
    try:
        epochs = epochs_in_names(ordered)
    except OptionError:  # the names do not tell
        return
    for one, other in pairwise(ordered):
        if epochs[one] > epochs[other]:
            raise OptionError(
                f"{one}, of epoch {epochs[one]}, comes before {other}, of epoch {epochs[other]}, "
                "in the natural order of their names. Say which order is meant with --order "
                "natural, given or mtime."
            )


# --- picks ----------------------------------------------------------------------------------------


def _last(ordered: tuple[Path, ...], last: int | None) -> tuple[Path, ...]:
    return ordered if last is None else ordered[-_count("--last", last, ordered) :]


def _best(
    candidates: tuple[Path, ...], scores: Scores | None, best: int | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The best checkpoints in merge order; of equals the earlier, as Keras' ModelCheckpoint."""
    if best is None or scores is None:
        return candidates, ()
    count = _count("--best", best, candidates)
    values = [scores.values[path] for path in candidates]
    ranking = sorted(range(len(values)), key=lambda i: -values[i] if scores.maximize else values[i])
    picked = tuple(candidates[i] for i in sorted(ranking[:count]))
    worst = values[ranking[count - 1]]
    if count == len(values) or values[ranking[count]] != worst:
        return picked, ()
    equals = [candidates[i] for i in ranking if values[i] == worst]
    taken = sum(path in picked for path in equals)
    return picked, (
        f"{listed(equals)} have the same score, {worst:g}: the first {taken} of these "
        f"{len(equals)} {'was' if taken == 1 else 'were'} taken.",
    )


def _count(option: str, value: object, candidates: Sequence[Path]) -> int:
    """The number of checkpoints to pick. Raises: OptionError, if there are not so many."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{option} {value!r}: expected a whole number.") from None
    if count < 2:
        raise OptionError(f"{option} {count}: an average needs at least two checkpoints.")
    if count > len(candidates):
        raise OptionError(
            f"{option} {count}: only {len(candidates)} checkpoints given. "
            "Name more files, or check that the pattern matches them."
        )
    return count


# --- coefficients ---------------------------------------------------------------------------------


def _origin(settings: Settings) -> str:
    if settings.method == "ema":
        return "ema"
    if settings.method in {"median", "trimmed-mean"}:
        return "none"
    if settings.softmax is not None:
        return "softmax"
    return "uniform" if settings.weights is None else "weights"


def _coefficients(
    picked: tuple[Path, ...], given: tuple[Path, ...], scores: Scores | None, settings: Settings
) -> tuple[Coefficients, tuple[str, ...]]:
    if settings.decay is not None:
        found = ema_coefficients(len(picked), settings.decay)
        return found, _vanished(found, picked)
    if settings.softmax is not None and scores is not None:
        values = [scores.values[path] for path in picked]
        found = softmax_coefficients(values, settings.softmax, maximize=scores.maximize)
        return found, _vanished(found, picked)
    if isinstance(settings.weights, _TABLES):
        weights, remarks = _weights_of(picked, given, settings.weights)
        return coefficients_for(len(picked), weights, normalize=settings.normalize), remarks
    return coefficients_for(len(picked), settings.weights, normalize=settings.normalize), ()


def _weights_of(
    picked: tuple[Path, ...], given: tuple[Path, ...], source: Mapping[StrPath, float] | StrPath
) -> tuple[list[float], tuple[str, ...]]:
    """The number of each checkpoint in a file or a mapping."""
    table = read_table(source)
    if table.is_by_epoch or len(table.columns) != 1:
        raise CoefficientError(
            f"--weights: {table.source}: expected paths and one number each, found the columns "
            f"{', '.join(map(repr, table.columns))}."
        )
    assigned = rows_of(table, picked, given)
    missing = [path for path in picked if path not in assigned.rows]
    if missing:
        raise CoefficientError(f"--weights: {table.source}: has no weight for {listed(missing)}.")
    weights = []
    for path in picked:
        row = assigned.rows[path]
        weights.append(number_in(row.cells[0], f"--weights: {row.where}, for {path}", "the weight"))
        if weights[-1] < 0:
            raise CoefficientError(
                f"--weights: {row.where}, for {path}: the weight is {row.cells[0]}. "
                "Weights are not negative."
            )
    return weights, unused_notes(table.source, assigned.unused)


def _vanished(coefficients: Coefficients, picked: tuple[Path, ...]) -> tuple[str, ...]:
    pairs = zip(picked, coefficients.numerators, strict=True)
    zero = [path for path, numerator in pairs if numerator == 0]
    return (f"{listed(zero)}: too small a coefficient, 0 takes its place.",) if zero else ()


# --- files ----------------------------------------------------------------------------------------


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UnknownFormatError(path, f"cannot be opened: {error.strerror}.") from error


def _identity(path: Path) -> object:
    """What two names of one file have in common, links of both kinds included."""
    try:
        stat = path.stat()
    except OSError:  # what is wrong with it is said when it is opened
        return path.resolve()
    return stat.st_dev, stat.st_ino


def select_reference(selected: Sequence[Path], reference: str | os.PathLike[str] | None) -> Path:
    """The checkpoint whose structure the output takes: the one named, or the first.

    Raises:
        OptionError: it is not one of the checkpoints.
    """
    if reference is None:
        return selected[0]
    for path in selected:
        if _identity(path) == _identity(Path(reference)):
            return path
    raise OptionError(f"--reference: {reference} is not one of the checkpoints to merge.")
