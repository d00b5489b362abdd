"""The checkpoint formats: how a file is recognised, read and written.

The content of a file decides its format; the suffix only tells which layout Keras will expect
when it reads an output back. A new format is one new file here and one line in `FORMATS`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.checkpoint import Checkpoint, CheckpointWriter, FileIdentity
from streamavg.errors import OptionError, UnknownFormatError, UnsupportedFeatureError
from streamavg.formats import (
    archive,
    hdf5,
    keras_archive,
    keras_legacy,
    keras_weights,
    legacy_conversion,
)
from streamavg.formats.files import OPEN_HDF5_FILES, RandomAccessFile, make_room
from streamavg.formats.output import OutputFile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy as np

    Reader = Callable[[RandomAccessFile], Checkpoint]
    Creator = Callable[[Checkpoint, Sequence[np.dtype[Any] | None], OutputFile], CheckpointWriter]


@dataclass(frozen=True, slots=True)
class Format:
    """A file format."""

    name: str
    title: str
    """What people call it."""
    suffixes: tuple[str, ...]
    """Suffixes under which Keras reads this layout back, the usual one first."""
    read: Reader
    create: Creator
    reads_bfloat16: bool = True
    """Whether Keras reads bfloat16 values back from this layout."""


FORMATS = (
    Format(
        keras_archive.NAME, ".keras archive", (".keras",), keras_archive.read, keras_archive.create
    ),
    Format(
        keras_weights.NAME, "weights file", (".weights.h5",), keras_weights.read,
        keras_weights.create,
    ),
    Format(
        keras_legacy.NAME, "legacy HDF5 file", (".h5", ".hdf5"), keras_legacy.read,
        keras_legacy.create, reads_bfloat16=False,
    ),
)  # fmt: skip
MOST_DECODING = OPEN_HDF5_FILES
"""Checkpoints whose values a library may be decoding, and holding, at once."""
_BY_NAME = {format_.name: format_ for format_ in FORMATS}
_CONVERSIONS: dict[tuple[str, str], Creator] = {
    (keras_archive.NAME, keras_weights.NAME): keras_weights.create,
    (keras_legacy.NAME, keras_weights.NAME): legacy_conversion.create,
}
"""What else can be written: the weights alone of a checkpoint in another format."""
_SHARD = re.compile(r"_[0-9]{5}\.weights\.h5$")
_USER_BLOCKS = (0, 512, 1024, 2048, 4096)
"""Offsets at which an HDF5 file may begin after a block of the user's."""


def open_checkpoint(path: str | os.PathLike[str], known: Checkpoint | None = None) -> Checkpoint:
    """Opens a checkpoint: reads its headers, leaves its values in the file.

    Args:
        path: a `.keras`, `.weights.h5` or legacy `.h5` file, under any name.
        known: an open checkpoint; where the headers are the same byte for byte, as they are among
            the checkpoints of one run, its description is taken over instead of made again.

    Returns:
        The checkpoint, a context manager that closes the file.

    Raises:
        FormatError: the file cannot be read; the subclass tells why.

    Memory: about 500 bytes a variable, and the model's configuration.
    """
    path = Path(path)
    refusal = _other_format(path)
    if refusal is not None:
        raise UnsupportedFeatureError(path, refusal)
    try:
        file = RandomAccessFile(path, FileIdentity.of(path))
        if not path.is_file():  # reading a pipe or a device would wait, or change it
            raise UnknownFormatError(path, "is no regular file.")
        head = _head(path)
    except OSError as error:
        raise UnknownFormatError(path, f"cannot be opened: {error.strerror}.") from error
    try:
        if known is not None:
            twin = _described_like(file, head, known)
            if twin is not None:
                return twin
        return _recognise(file, head).read(file)
    except BaseException:
        file.close()
        raise


def _described_like(file: RandomAccessFile, head: bytes, known: Checkpoint) -> Checkpoint | None:
    """The checkpoint in `file` if its headers are those of `known`; None if they are not."""
    if head.startswith(archive.SIGNATURE):
        return keras_archive.read(file, known)
    if known.format == keras_archive.NAME:
        return None
    values = hdf5.values_like(hdf5.Hdf5File(file), known)
    if values is None:
        return None
    return dataclasses.replace(known, path=file.path, values=values, identity=file.identity)


def _recognise(file: RandomAccessFile, head: bytes) -> Format:
    """Tells the format of a file by its content. Raises: UnknownFormatError."""
    if head.startswith(archive.SIGNATURE):
        return _BY_NAME[keras_archive.NAME]
    if not any(head[start:].startswith(hdf5.SIGNATURE) for start in _USER_BLOCKS):
        raise UnknownFormatError(
            file.path,
            f"is no Keras checkpoint: it starts with {head[:8]!r}. "
            "Known: .keras archives, .weights.h5 and legacy .h5 files.",
        )
    name = _layout_of(hdf5.Hdf5File(file))
    if name is not None:
        return _BY_NAME[name]
    raise UnknownFormatError(
        file.path,
        "is an HDF5 file, but no Keras checkpoint: it has neither layer names nor 'vars'.",
    )


def _layout_of(file: hdf5.Hdf5File) -> str | None:
    """Name of the layout that an HDF5 file has, if it is one of Keras'. Raises: FormatError."""
    layouts = (keras_legacy, keras_weights)
    outline = file.plain_outline()
    if outline is not None:
        return next((each.NAME for each in layouts if each.recognises_outline(outline)), None)
    with file.opened() as opened:
        return next((each.NAME for each in layouts if each.recognises(opened)), None)


def _head(path: Path) -> bytes:
    make_room()
    with path.open("rb") as file:
        return file.read(_USER_BLOCKS[-1] + len(hdf5.SIGNATURE))


def _other_format(path: Path) -> str | None:
    """Why a well-known format is not read, and what to do; None if `path` is not one."""
    save_again = "Load it with Keras and save it as .keras or .weights.h5."
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return f"is a TensorFlow SavedModel, which is not read. {save_again}"
        if (path / keras_archive.WEIGHTS).exists():
            return f"is an unzipped .keras folder. Name its {keras_archive.WEIGHTS} instead."
        if (path / "_CHECKPOINT_METADATA").exists() or any(path.glob("*/pytree")):
            return f"is an Orbax checkpoint, which is not read. {save_again}"
        if any(path.glob("*.index")):
            return f"holds a TensorFlow checkpoint, which is not read. {save_again}"
        if any(path.glob("*.weights.json")):
            return f"holds sharded weights, which are not read. {save_again}"
        return "is a folder. Name the checkpoint files in it."
    if path.suffix == ".index" or (not path.exists() and Path(f"{path}.index").exists()):
        return f"is a TensorFlow checkpoint, which is not read. {save_again}"
    if _SHARD.search(path.name) and Path(_SHARD.sub(".weights.json", str(path))).exists():
        return f"is one shard of several, which are not read. {save_again}"
    if path.name.endswith(".weights.json"):
        return f"is the index of sharded weights, which are not read. {save_again}"
    return None


def default_output(reference: Checkpoint) -> Path:
    """Name of the output when none is given: `averaged` and the suffix that fits the content."""
    suffixes = _BY_NAME[reference.format].suffixes
    matching = [suffix for suffix in suffixes if reference.path.name.endswith(suffix)]
    return Path("averaged" + (matching or list(suffixes))[0])


def output_format(reference: Checkpoint, output: Path, *, keeps_optimizer: bool = False) -> Format:
    """The format that `output` asks for by its suffix, if the reference can be written so.

    Keras picks its reader by the suffix of the file, so a file under another suffix would not
    load: that is refused.

    Args:
        reference: gives the layout.
        output: where the file will be.
        keeps_optimizer: whether the optimizer's variables are to be written too.

    Raises:
        OptionError: the suffix is unknown, or does not fit the reference's layout.
    """
    own = _BY_NAME[reference.format]
    writable = [own, *(_BY_NAME[to] for (source, to) in _CONVERSIONS if source == own.name)]
    asked = _format_of_suffix(output)
    suffixes = [f"*{suffix}" for format_ in writable for suffix in format_.suffixes]
    remedy = f"Use {' or '.join(suffixes)}"
    if asked is None:
        raise OptionError(f"{output}: Keras does not load this suffix. {remedy}.")
    if asked not in writable:
        raise OptionError(
            f"{output}: the suffix asks for a {asked.title}, but {reference.path} is a "
            f"{own.title}, and Keras could not load the one under the name of the other. {remedy}."
        )
    if own.name == keras_legacy.NAME and asked is not own:
        legacy_conversion.check(reference, keeps_optimizer=keeps_optimizer)
    return asked


def _format_of_suffix(output: Path) -> Format | None:
    fitting = [
        (len(suffix), format_)
        for format_ in FORMATS
        for suffix in format_.suffixes
        if output.name.endswith(suffix)
    ]
    return max(fitting, key=lambda entry: entry[0])[1] if fitting else None


def create_writer(
    reference: Checkpoint,
    dtypes: Sequence[np.dtype[Any] | None],
    output: Path,
    *,
    force: bool = False,
    fsync: bool = True,
) -> CheckpointWriter:
    """Starts an output with the structure of the reference.

    Args:
        reference: gives groups, attributes, configuration and assets.
        dtypes: of the values that will be written, one per variable of the reference; None for
            variables that are left out.
        output: where the file will be; its suffix picks the format.
        force: whether a file that is already there may be replaced.
        fsync: whether the writer's `commit` waits until the disk has all of it.

    Raises:
        OptionError: as `output_format`.
        OutputError: the file cannot be created.
    """
    format_ = output_format(reference, output)
    create = _CONVERSIONS.get((reference.format, format_.name), format_.create)
    file = OutputFile(output, force=force, fsync=fsync)
    try:
        return create(reference, dtypes, file)
    except BaseException:
        file.discard()
        raise
