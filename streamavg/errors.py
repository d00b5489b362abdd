"""Every error that streamavg raises on purpose, in one tree.

    StreamAvgError
      FormatError               a file cannot be read
        UnknownFormatError        not a checkpoint that we know
        CorruptFileError          truncated or damaged
          BeingWrittenError         open for writing in another process
        ChangedFileError          changed between planning and the end of the merge
        UnsupportedFeatureError   a valid file that holds something we do not average
        UnsafeFileError           a file built to do harm, or one that could
      IncompatibleCheckpointsError  the checkpoints do not describe the same model
      ModelMismatchError        a model does not hold what a checkpoint holds
      NonFiniteValuesError      NaN or Inf in the values
      OptionError               the caller asked for something that does not fit
        CoefficientError          weights that cannot be coefficients
        MemoryLimitError          the plan does not fit the memory limit
      OutputError               the output cannot be written
      MissingDependencyError    an optional package is not installed

Messages read `path: variable 'x': what is wrong: expected E (from where), found F. What to do.`
The facts in a message are attributes of the error too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHOWN_DIFFERENCES = 10


class StreamAvgError(Exception):
    """Base of all errors that streamavg raises on purpose."""


class FormatError(StreamAvgError, ValueError):
    """A file cannot be read.

    Attributes:
        path: the file.
        reason: what is wrong and what to do, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class UnknownFormatError(FormatError):
    """The content is no checkpoint that streamavg knows."""


class CorruptFileError(FormatError):
    """The file is truncated, damaged, or still being written."""


class BeingWrittenError(CorruptFileError):
    """Another process has the file open for writing."""


class ChangedFileError(FormatError):
    """The file changed between planning and the end of the merge."""


class UnsupportedFeatureError(FormatError):
    """The file is valid, but holds something that streamavg does not average."""


class UnsafeFileError(FormatError):
    """The file holds a construct that reaches outside itself or exhausts the machine."""


class IncompatibleCheckpointsError(StreamAvgError, ValueError):
    """The checkpoints do not describe the same model.

    Attributes:
        differences: one full sentence per difference, of all checkpoints.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        shown = list(self.differences[:SHOWN_DIFFERENCES])
        hidden = len(self.differences) - len(shown)
        if hidden:
            shown.append(f"... and {hidden} more (all of them with --json)")
        count = len(self.differences)
        head = f"the checkpoints cannot be averaged: {count} difference{'s' * (count != 1)}"
        super().__init__("\n  ".join([head, *shown]))


class ModelMismatchError(StreamAvgError, ValueError):
    """A model does not hold exactly what a checkpoint holds.

    Attributes:
        path: the checkpoint.
        differences: one sentence per variable or layer.
    """

    def __init__(self, path: Path | str, differences: Sequence[str]) -> None:
        self.path = path
        self.differences = tuple(differences)
        shown = list(self.differences[:SHOWN_DIFFERENCES])
        hidden = len(self.differences) - len(shown)
        if hidden:
            shown.append(f"... and {hidden} more")
        head = f"{path}: does not fit the model. Is it a checkpoint of another one?"
        super().__init__("\n  ".join([head, *shown]))


class NonFiniteValuesError(StreamAvgError, ValueError):
    """A value is NaN or infinite.

    Attributes:
        path: the file that holds the value.
        variable: path of the variable in the checkpoint.
        index: position of the first such value, one integer per axis.
    """

    def __init__(
        self, path: Path | str, variable: str, index: tuple[int, ...], value: float, remedy: str
    ) -> None:
        where = f"[{', '.join(map(str, index))}]" if index else "(a scalar)"
        super().__init__(f"{path}: variable {variable!r}: value {value} at index {where}. {remedy}")
        self.path = path
        self.variable = variable
        self.index = index


class OptionError(StreamAvgError, ValueError):
    """The options do not fit together or do not fit the checkpoints."""


class CoefficientError(OptionError):
    """The weights given cannot be coefficients of a mean."""


class MemoryLimitError(OptionError):
    """The merge cannot keep the memory limit.

    Attributes:
        limit_bytes: the limit that was asked for.
        reserved_bytes: resident memory before any values are read.
        projected_bytes: the least peak that the merge needs.
    """

    def __init__(
        self, message: str, *, limit_bytes: int, reserved_bytes: int, projected_bytes: int
    ) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes
        self.reserved_bytes = reserved_bytes
        self.projected_bytes = projected_bytes


class OutputError(StreamAvgError, OSError):
    """The output cannot be written.

    Attributes:
        path: the output.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class MissingDependencyError(StreamAvgError, ImportError):
    """An optional package is needed and not installed."""
