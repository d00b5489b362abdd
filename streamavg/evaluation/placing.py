"""Where something is made before it appears, whole, at its place."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from streamavg.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def hidden_folder(path: Path, *, make_parents: bool = False) -> Iterator[Path]:
    """A hidden folder beside `path`, to make in it what will be there; it vanishes with the block.

    Args:
        path: what errors of the file system inside the block are about.
        make_parents: whether to make the folder that `path` is in.

    Raises:
        OutputError: the file system refuses something inside the block.
    """
    folder = None
    try:
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield folder
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(path, f"cannot be written: {error.strerror or error}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
