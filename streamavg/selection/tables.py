"""Numbers for checkpoints from a file: CSV as Keras' CSVLogger writes it, or by path.

    epoch,loss,val_loss          path,samples              {"clients/a.keras": 120,
    0,0.71,0.65                  clients/a.keras,120        "clients/b.keras": 300}
    1,0.52,0.55                  clients/b.keras,300

CSVLogger counts epochs from 0 and ModelCheckpoint, in the names of files, from 1: row 17 belongs
to `epoch-18.keras`.

A path in a file is looked for in the folder of that file and in the current one. If it is none of
the checkpoints there, its last part must be the name of exactly one of them, and the path must not
lead to another file that exists.
"""

from __future__ import annotations

import csv
import io
import json
import math
import numbers
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.errors import OptionError
from streamavg.selection.file_names import epochs_in_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    StrPath = str | os.PathLike[str]

LARGEST_FILE = 4 * 1024**2
"""Bytes; the history of some 30,000 epochs."""
_EPOCH, _PATHS = "epoch", ("path", "file", "filename", "checkpoint", "name")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """Numbers of one epoch or one checkpoint."""

    key: str
    """An epoch that counts from 0, or a path."""
    cells: tuple[Any, ...]
    """As they are in the file: text of a CSV, values of JSON."""
    where: str
    """Such as "history.csv: line 7"."""


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of numbers, by epoch or by path."""

    source: str
    """What it was read from, for messages."""
    folder: Path
    """Where its relative paths may start, beside the current folder."""
    is_by_epoch: bool
    columns: tuple[str, ...]
    """Names of the numbers; the only one may have none, ""."""
    rows: tuple[Row, ...]


# --- reading --------------------------------------------------------------------------------------


def read_table(source: StrPath | Mapping[Any, Any]) -> Table:
    """Reads a CSV or JSON file, or takes a mapping of paths to numbers.

    The content decides: a file that starts with a brace is JSON, any other CSV with commas,
    semicolons or tabs. A CSV has a first row with names, among them `epoch` (or a first column
    without a name, as pandas writes an index) or `path`; or two columns, paths and numbers.

    Raises:
        OptionError: it cannot be read, or is neither.

    Memory: some ten times the size of the file, which is `LARGEST_FILE` at most.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _table_of_mapping(source, "the mapping", Path())
    path = Path(source)
    text = _read_text(path)
    if text.lstrip()[:1] in {"{", "["}:
        return _table_of_mapping(_parse_json(text, path), str(path), path.parent)
    return _table_of_csv(text, path)


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            what = "there is no such file" if not path.exists() else "is no file"
            raise OptionError(f"{path}: {what}.")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise OptionError(f"{path}: has {size:,} bytes, expected {LARGEST_FILE:,} at most.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise OptionError(f"{path}: is no text in UTF-8, so neither CSV nor JSON.") from None


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise OptionError(f"{path}: {twice[0]!r} is there twice. Keep one of them.")
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=without_repetition)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}: is no valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise OptionError(f"{path}: expected a JSON object of {{path: number}}.")
    return document


def _table_of_mapping(mapping: Mapping[Any, Any], source: str, folder: Path) -> Table:
    if any(isinstance(value, list) for value in mapping.values()):
        raise OptionError(
            f"{source}: holds lists, as the history of a run does; expected {{path: number}}. "
            "Write the history as Keras' CSVLogger does: as CSV with a column 'epoch'."
        )
    for key in mapping:
        if not isinstance(key, (str, os.PathLike)):
            raise OptionError(f"{source}: {key!r} is no path; expected {{path: number}}.")
    rows = [Row(os.fspath(key), (value,), source) for key, value in mapping.items()]
    if not rows:
        raise OptionError(f"{source}: is empty.")
    return Table(source, folder, is_by_epoch=False, columns=("",), rows=tuple(rows))


def _table_of_csv(text: str, path: Path) -> Table:
    lines = _csv_lines(text, path)
    if not lines:
        raise OptionError(f"{path}: is empty.")
    _, names = lines[0]
    names = [name.strip() for name in names]
    lowered = [name.lower() for name in names]
    by_path = [i for i, name in enumerate(lowered) if name in _PATHS]
    by_epoch = [i for i, name in enumerate(lowered) if name == _EPOCH or (i == 0 and not name)]
    if len(names) == 2 and not by_epoch and _is_number(names[1]):
        key, names = 0, ["", ""]
    elif by_path or by_epoch:
        key, lines = (by_path or by_epoch)[0], lines[1:]
    else:
        raise OptionError(
            f"{path}: has no column 'epoch', as Keras' CSVLogger writes it, nor 'path': "
            f"found {', '.join(map(repr, names))}."
        )
    kept = [i for i in range(len(names)) if i != key and i not in by_epoch]
    rows = []
    for number, cells in lines:
        if len(cells) != len(names):
            raise OptionError(
                f"{path}: line {number}: expected {len(names)} fields, found {len(cells)}."
            )
        rows.append(
            Row(cells[key].strip(), tuple(cells[i] for i in kept), f"{path}: line {number}")
        )
    if not rows or not kept:
        raise OptionError(f"{path}: holds no numbers.")
    columns = tuple(names[i] for i in kept)
    return Table(str(path), path.parent, not by_path and key in by_epoch, columns, tuple(rows))


def _csv_lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, with their line numbers."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise OptionError(f"{path}: line {reader.line_num}: is no valid CSV: {error}.") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- finding the row of each checkpoint -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assigned:
    """The rows of the checkpoints that have one, the needed ones at least."""

    rows: dict[Path, Row]
    unused: tuple[str, ...]
    """Paths in the table that belong to none of the checkpoints."""


def rows_of(table: Table, paths: Sequence[Path], given: Sequence[Path]) -> Assigned:
    """Finds the row of each checkpoint, by the epoch in its name or by its path.

    Args:
        table: the rows.
        paths: the checkpoints whose rows are needed.
        given: all checkpoints; a path in the table may be that of any of them.

    Raises:
        OptionError: more than one row for a checkpoint, or more than one checkpoint for a row.
    """
    if table.is_by_epoch:
        return Assigned(_rows_by_epoch(table, paths), ())
    return _rows_by_path(table, given)


def _rows_by_epoch(table: Table, paths: Sequence[Path]) -> dict[Path, Row]:
    rows: dict[int, list[Row]] = {}
    for row in table.rows:
        rows.setdefault(_epoch_of(row), []).append(row)
    if min(rows) == 1:
        raise OptionError(
            f"{table.source}: its epochs start at 1. Keras' CSVLogger counts from 0, so that it is "
            "not clear which row belongs to which checkpoint. Let them start at 0, or give a JSON "
            "file of {path: score}."
        )
    path_of: dict[int, Path] = {}
    found = {}
    for path, epoch in epochs_in_names(paths).items():
        other = path_of.setdefault(epoch, path)
        if other is not path:
            raise OptionError(
                f"{path}: is of epoch {epoch}, as {other} is, but {table.source} has one row an "
                "epoch. Give a JSON file of {path: score}."
            )
        belonging = rows.get(epoch - 1, [])
        if len(belonging) > 1:
            raise OptionError(
                f"{belonging[1].where}: epoch {epoch - 1} is there twice (also "
                f"{belonging[0].where.rpartition(': ')[2]}), and {path} is of that epoch. "
                "Keep the rows of one run."
            )
        if not belonging:
            raise OptionError(
                f"{path}: is of epoch {epoch}, counted from 1, but {table.source} has the epochs "
                f"{min(rows) + 1} to {max(rows) + 1}, counted so ({min(rows)} to {max(rows)} in "
                "the file, as Keras' CSVLogger counts)."
            )
        found[path] = belonging[0]
    return found


def _epoch_of(row: Row) -> int:
    number = number_in(row.key, row.where, "epoch")
    if number != int(number) or number < 0:
        raise OptionError(f"{row.where}: epoch {row.key!r} is no whole number from 0 on.")
    return int(number)


def _rows_by_path(table: Table, paths: Sequence[Path]) -> Assigned:
    """Exact paths first; then names, for what is left."""
    found: dict[Path, Row] = {}
    by_resolved = {_resolved(path): path for path in paths}
    others = []
    for row in table.rows:
        candidates = _exact_matches(row, table, by_resolved)
        if candidates:
            _take(row, candidates, found)
        else:
            others.append(row)
    exact = set(found)
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    unused = []
    for row in others:
        candidates = by_name.get(Path(row.key).name, [])
        if not candidates or exact.issuperset(candidates) or _leads_elsewhere(row, table):
            unused.append(row.key)
        else:
            _take(row, candidates, found)
    return Assigned(found, tuple(unused))


def _take(row: Row, candidates: list[Path], found: dict[Path, Row]) -> None:
    """Gives a row to its checkpoint. Raises: OptionError, if there is another of either."""
    if len(candidates) > 1:
        raise OptionError(
            f"{row.where}: {row.key!r} may be {candidates[0]} or {candidates[1]}. "
            "Write their paths."
        )
    other = found.setdefault(candidates[0], row)
    if other is not row:
        raise OptionError(
            f"{row.where}: {other.key!r} and {row.key!r} are both {candidates[0]}. "
            "Keep one of them."
        )


def _exact_matches(row: Row, table: Table, by_resolved: Mapping[Path, Path]) -> list[Path]:
    places = [_resolved(place) for place in (table.folder / row.key, Path(row.key))]
    return list(dict.fromkeys(by_resolved[place] for place in places if place in by_resolved))


def _leads_elsewhere(row: Row, table: Table) -> bool:
    """Whether the path of a row is that of another file, which only has the same name."""
    return any(_exists(place) for place in (table.folder / row.key, Path(row.key)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path.absolute()


# --- reading the numbers --------------------------------------------------------------------------


def number_in(cell: Any, where: str, name: str) -> float:
    """A number as a float.

    Raises:
        OptionError: it is none, or is not finite.
    """
    is_text = isinstance(cell, str)
    if isinstance(cell, bool) or not isinstance(cell, (str, numbers.Real)):
        raise OptionError(f"{where}: {name} is {cell!r}, expected a number.")
    try:
        number = float(cell)
    except ValueError:
        raise OptionError(f"{where}: {name} is {cell!r}, expected a number.") from None
    except OverflowError:
        raise OptionError(f"{where}: {name} is too large.") from None
    if not math.isfinite(number):
        shown = cell if is_text else repr(number)
        raise OptionError(f"{where}: {name} is {shown}, expected a finite number.")
    return number


def listed(names: Iterable[object]) -> str:
    """The first few of many names, and how many more there are."""
    shown = list(map(str, names))
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
