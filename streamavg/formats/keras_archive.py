"""`.keras` archives, Keras 2.13 and later: a zip file around `.weights.h5`.

    metadata.json       {"keras_version": "3.15.1", "date_saved": "2026-11-23@07:38:11"}
    config.json         the serialised model
    model.weights.h5    the layout of `keras_weights`
    assets/...          vocabularies of lookup layers

Keras stores the members uncompressed, so `model.weights.h5` is read in place. Other tools may
have compressed it; then it is unpacked to a temporary file on disk, never to memory.
Source: keras/src/saving/saving_lib.py, Keras 2.13 to 3.15.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.checkpoint import Checkpoint, FileIdentity, Naming
from streamavg.errors import CorruptFileError, OutputError, UnsupportedFeatureError
from streamavg.formats import keras_weights
from streamavg.formats.archive import (
    ArchiveBuilder,
    Member,
    MemberCheck,
    content_pieces,
    read_content,
    read_members,
)
from streamavg.formats.files import RandomAccessFile
from streamavg.formats.hdf5 import Hdf5File
from streamavg.formats.hdf5_writing import Hdf5CheckpointWriter, Hdf5Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from streamavg.formats.output import OutputFile

NAME = "keras-archive"
METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
ASSETS = "assets/"
LARGEST_JSON = 16 * 1024**2
"""Bytes; the largest configuration in keras.applications has 0.6 MB."""


def read(file: RandomAccessFile, known: Checkpoint | None = None) -> Checkpoint:
    """Reads the headers of a `.keras` archive.

    Args:
        file: the archive.
        known: a checkpoint whose weights may have the same headers.

    Raises:
        FormatError: it cannot be read.
    """
    members = read_members(file)
    _require_keras(members, file.path)
    metadata = _metadata(file, members)
    hdf5 = _weights_file(file, members[WEIGHTS])
    variables, layers, values, notes = keras_weights.describe_weights(hdf5, known)
    config = read_content(file, members[CONFIG], LARGEST_JSON)
    return Checkpoint(
        path=file.path,
        format=NAME,
        naming=Naming.BY_PLACE,
        producer=str(metadata.get("keras_version", "")) or None,
        variables=variables,
        layers=layers,
        config=config.decode("utf-8", "replace"),
        assets=_asset_digests(file, members),
        values=values,
        identity=file.identity,
        notes=notes,
    )


def _require_keras(members: dict[str, Member], path: Path) -> None:
    if "model.weights.npz" in members:
        raise UnsupportedFeatureError(
            path,
            "holds its weights as pickled model.weights.npz, which is never opened. "
            "Save the model again with Keras' default weights format.",
        )
    for name in (CONFIG, WEIGHTS):
        if name not in members:
            raise CorruptFileError(
                path, f"is a zip archive without {name!r}, so not a complete .keras file."
            )


def _metadata(file: RandomAccessFile, members: dict[str, Member]) -> dict[str, Any]:
    if METADATA not in members:
        return {}
    content = read_content(file, members[METADATA], LARGEST_JSON)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(file.path, f"member {METADATA!r} is not JSON: {error}.") from error
    return document if isinstance(document, dict) else {}


def _asset_digests(file: RandomAccessFile, members: dict[str, Member]) -> dict[str, str]:
    digests = {}
    for name, member in sorted(members.items()):
        if name.startswith(ASSETS):
            digest = hashlib.sha256()
            for piece in content_pieces(file, member):
                digest.update(piece)
            digests[name.removeprefix(ASSETS)] = digest.hexdigest()
    return digests


def _weights_file(file: RandomAccessFile, member: Member) -> Hdf5File:
    """The weights where they lie, or unpacked to a temporary file if they are compressed."""
    if member.method:
        return _unpacked(file, member)
    return Hdf5File(file, member.data_offset, member.size, check=MemberCheck(file, member))


def _unpacked(file: RandomAccessFile, member: Member) -> Hdf5File:
    try:
        descriptor, name = tempfile.mkstemp(prefix="streamavg-", suffix=".weights.h5")
    except OSError as error:
        raise OutputError(
            file.path, f"is compressed and cannot be unpacked: {error.strerror}. Set TMPDIR."
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as unpacked:
            for piece in content_pieces(file, member):
                unpacked.write(piece)
        contents = RandomAccessFile(temporary, FileIdentity.of(temporary))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            temporary, f"cannot hold {file.path} unpacked: {error.strerror}. Set TMPDIR."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # A size is given, so that the library never opens the temporary file by its name.
    hdf5 = Hdf5File(contents, 0, member.size, path=file.path)
    weakref.finalize(hdf5, temporary.unlink, missing_ok=True)
    return hdf5


def create(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], output: OutputFile
) -> Hdf5CheckpointWriter:
    """Starts a `.keras` archive with the structure, config and assets of the reference.

    The other members are copied as they are stored, in Keras' order: metadata and config before
    the weights, assets after.

    Args:
        reference: a checkpoint in this format.
        dtypes: of the values that will be written, one per variable of the reference; None for
            variables that are left out.
        output: the file to write.
    """
    file = RandomAccessFile(reference.path, reference.identity)
    members = read_members(file)
    builder = ArchiveBuilder(output.write_at)
    for name in (METADATA, CONFIG):
        if name in members:
            builder.copy(file, members[name])
    start = builder.begin(WEIGHTS, aligned=True)

    def finish(output: OutputFile, size: int, crc: int) -> None:
        builder.end(Member(WEIGHTS, 0, crc, size, size, start))
        for name, member in members.items():
            if name not in {METADATA, CONFIG, WEIGHTS}:
                builder.copy(file, member)
        builder.close()
        file.close()

    return Hdf5CheckpointWriter(
        Hdf5Stretch(output, start),
        keras_weights.skeleton(reference, dtypes),
        keras_weights.targets(reference, dtypes),
        finish,
    )
