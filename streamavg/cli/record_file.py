"""The file that `--record` names, checked before there is anything to record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streamavg.errors import OutputError

if TYPE_CHECKING:
    from streamavg.record import MergeRecord


def check_record_file(name: str | None, planned: MergeRecord) -> None:
    """Refuses a file for the record that is an input or the output, or has no folder.

    Raises:
        OutputError: with the reason.
    """
    if name is None:
        return
    path = Path(name)
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(path, "the record cannot be written there. Name a file in a folder.")
    for other in (planned.output, *(input_.path for input_ in planned.inputs)):
        if path.resolve() == Path(other).resolve() or _is_same_file(path, Path(other)):
            raise OutputError(path, f"is {other}, which the record must not replace.")


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
