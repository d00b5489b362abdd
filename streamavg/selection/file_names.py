"""What the name of a checkpoint says: its epoch and its score.

Keras' ModelCheckpoint fills a template of the user's, such as `{epoch:02d}-{val_loss:.4f}.keras`,
with an epoch that counts from 1 and with metrics. The template is not in the file, so a name is
read by these rules, and refused where they leave a doubt:

- The suffix goes first (`.weights.h5`, `.keras`, `.h5`, `.hdf5`), so that the dot before it is not
  taken for a decimal point.
- A number has a *label* if letters stand directly before it, with at most separators between:
  `val_loss0.12`, `val_loss-0.12`, `val_loss=0.12`.
- A hyphen after a letter or a digit separates; a hyphen after another separator, or at the very
  beginning, is a minus: `03-0.12` and `loss-0.12` are positive, `03--0.12` and `loss=-0.12`
  negative.
- Several dots in one number (`03.0.1234`, `2024.01.05`) can be read in more than one way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.errors import OptionError
from streamavg.selection.metrics import MONITORED, more_is_better

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SUFFIXES = (".weights.h5", ".keras", ".h5", ".hdf5")
EPOCH_LABELS = {"epoch", "epochs", "ep", "e"}
STEP_LABELS = {"step", "steps", "batch", "iter", "iteration", "iterations"}
_CHECKPOINT_LABELS = {"ckpt", "checkpoint", "cp", "weights", "model"}
_NUMBER = re.compile(
    r"[0-9]+(?:\.[0-9]+)*(?:[eE][+-][0-9]+)?|(?<![A-Za-z])(?:nan|inf)(?![A-Za-z])", re.IGNORECASE
)
_LABEL = re.compile(r"[A-Za-z][A-Za-z_]*$")
_SEPARATORS = "-_=:., ([@"
_VALIDATION = re.compile(r"val[- ](?=[a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NamedNumber:
    """A number in a file name."""

    text: str
    """As it is written, with its sign."""
    label: str
    """The word directly before it, "" if there is none."""
    joint: str
    """What stands between the label and the number."""
    before: str
    """All of the name before the number, without the separators between."""

    @property
    def value(self) -> float:
        """The number; NaN where it can be read in more than one way."""
        return math.nan if self.text.count(".") > 1 else float(self.text)

    @property
    def unit(self) -> float:
        """What its last digit counts: 0.01 in 0.25, 1e-6 in 1.5e-05."""
        digits, _, exponent = self.text.lower().partition("e")
        return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))

    @property
    def is_whole(self) -> bool:
        """Whether it is written without a decimal point or an exponent."""
        return self.text.lstrip("-").isdigit()

    @property
    def is_setting(self) -> bool:
        """Whether it belongs to its label, as in `v1.2` or `lr=0.001`."""
        return self.label != "" and (not self.joint or self.joint[0] in "=:")

    def __str__(self) -> str:
        return f"{self.label} {self.text}".lstrip()


def numbers_in(path: Path) -> list[NamedNumber]:
    """All numbers in the name of a file, from left to right."""
    name = path.name
    fitting = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    stem = name[: len(name) - len(fitting[0])] if fitting else path.stem
    stem = _VALIDATION.sub("val_", stem)
    numbers, end = [], 0
    for match in _NUMBER.finditer(stem):
        between = stem[end : match.start()]
        is_negative = between.endswith("-") and (
            between[-2:-1] in set(_SEPARATORS) if len(between) > 1 else end == 0
        )
        between = between[:-1] if is_negative else between
        label = _LABEL.search(between.rstrip(_SEPARATORS))
        numbers.append(
            NamedNumber(
                text="-" * is_negative + match[0],
                label="" if label is None else label[0].strip("_"),
                joint="" if label is None else between[label.end() :],
                before=stem[: match.start() - is_negative].rstrip(_SEPARATORS),
            )
        )
        end = match.end()
    return numbers


# --- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NamedScores:
    """Scores that file names tell."""

    metric: str | None
    """As the names say, or as it was asked for; None where neither says."""
    values: dict[Path, float]
    """May be NaN or infinite."""


def scores_in_names(paths: Sequence[Path], metric: str | None = None) -> NamedScores:
    """Reads the score of each checkpoint from its name.

    With a metric asked for, the score is the number labelled with it; in names that label no
    number with a metric, the one number with a decimal point or exponent that is no setting
    (`lr0.001`). Without, it is the one labelled `val_loss`, as Keras' callbacks monitor; or the one
    labelled with any metric whose direction is known; or again the one with a decimal point.

    Args:
        paths: the checkpoints; only their names are looked at.
        metric: such as "val_loss".

    Raises:
        OptionError: a name has no such number or several, or the names follow different patterns.
    """
    found = {path: _score_in(numbers_in(path), path, metric) for path in paths}
    _refuse_two_patterns(found)
    labels = {_metric_of(number) for number in found.values()}
    return NamedScores(
        metric=metric if metric is not None else labels.pop(),
        values={path: number.value for path, number in found.items()},
    )


def labelled_score(path: Path, metric: str) -> NamedNumber | None:
    """The number in a name that is labelled with a metric, if there is just one."""
    found = [number for number in numbers_in(path) if _follows(number.before, metric)]
    is_clear = len(found) == 1 and math.isfinite(found[0].value) and not found[0].is_whole
    return found[0] if is_clear else None


def _score_in(numbers: list[NamedNumber], path: Path, metric: str | None) -> NamedNumber:
    labelled = [number for number in numbers if _metric_of(number) is not None]
    if metric is not None:
        candidates = [number for number in numbers if _follows(number.before, metric)]
        what = repr(metric)
    else:
        candidates = [n for n in labelled if _metric_of(n) == MONITORED] or labelled
        what = "score"
    if not candidates and not labelled:
        candidates = [n for n in numbers if not n.is_whole and not n.is_setting]
    if len(candidates) == 1 and not _is_unclear(candidates[0], numbers):
        return candidates[0]
    shown = _shown(candidates or numbers)
    if candidates:
        problem = f"its name can be read in more than one way: found {shown}"
    else:
        problem = f"its name has no {what}: found {shown}"
    name_it = "Name one with --metric, or give" if metric is None and labelled else "Give"
    raise OptionError(f"{path}: {problem}. {name_it} a file with --scores.")


def _is_unclear(number: NamedNumber, numbers: list[NamedNumber]) -> bool:
    """Whether a score may be something else: `03.0.1234`, or the 1 of `auc_1-0.93`."""
    following = numbers[numbers.index(number) + 1 :]
    is_count = number.is_whole and bool(following) and following[0].label == ""
    return number.text.count(".") > 1 or (is_count and not following[0].is_whole)


def _metric_of(number: NamedNumber) -> str | None:
    """The metric that a number is labelled with, without what else stands before `val_`."""
    if more_is_better(number.label) is None:
        return None
    start = re.search(r"(?:^|_)(?=val_)", number.label, re.IGNORECASE)
    return number.label[start.end() :] if start else number.label


def _follows(before: str, metric: str) -> bool:
    """Whether a metric's name ends a text; `loss` does not end `val_loss`, which is another."""
    before, metric = (re.sub("[- ]", "_", text.lower()) for text in (before, metric))
    if not before.endswith(metric):
        return False
    rest = before[: len(before) - len(metric)]
    is_validation = rest.endswith("val_") and not metric.startswith("val_")
    return not rest[-1:].isalnum() and not is_validation


def _refuse_two_patterns(found: dict[Path, NamedNumber]) -> None:
    """Names of one run are alike: another label, or no hyphen where others have one, is a doubt."""
    first_path, first = next(iter(found.items()))
    for path, number in found.items():
        if (_metric_of(number), number.joint) != (_metric_of(first), first.joint):
            raise OptionError(
                f"{path}: its score {number.label}{number.joint}{number.text} is written otherwise "
                f"than {first.label}{first.joint}{first.text} of {first_path}. "
                "Give a file with --scores."
            )


# --- epochs ---------------------------------------------------------------------------------------


def epochs_in_names(paths: Sequence[Path]) -> dict[Path, int]:
    """Reads the epoch of each checkpoint, which counts from 1, from its name.

    It is the whole number labelled `epoch`, `ep` or `e`; in names without such a label, the one
    whole number. Numbers that belong to a word and are the same in all names (`resnet50`) do not
    count, nor do those that count steps or batches.

    Raises:
        OptionError: a name has no such number or several.
    """
    whole = {path: [n for n in numbers_in(path) if n.is_whole] for path in paths}
    shared = _shared_parts(whole.values())
    epochs = {}
    for path, numbers in whole.items():
        labelled = [n for n in numbers if _last_word(n) in EPOCH_LABELS]
        candidates = labelled or [
            n
            for n in numbers
            if _last_word(n) not in STEP_LABELS and (n.label, n.joint, n.text) not in shared
        ]
        if len(candidates) != 1 or candidates[0].value < 0:
            raise OptionError(
                f"{path}: its name does not tell its epoch: found {_shown(numbers)}, expected one "
                "number, or one labelled 'epoch'. Give a JSON file of {path: score} instead."
            )
        epochs[path] = int(candidates[0].text)
    return epochs


def _shared_parts(names: Iterable[list[NamedNumber]]) -> set[tuple[str, str, str]]:
    parts = [
        {
            (n.label, n.joint, n.text)
            for n in numbers
            if n.is_setting and _last_word(n) not in _CHECKPOINT_LABELS
        }
        for numbers in names
    ]
    return set.intersection(*parts) if len(parts) > 1 else set()


def _last_word(number: NamedNumber) -> str:
    return number.label.lower().rpartition("_")[2]


def _shown(numbers: Sequence[NamedNumber]) -> str:
    return ", ".join(map(repr, map(str, numbers))) or "no number"
