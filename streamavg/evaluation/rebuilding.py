"""A whole model around averaged weights: built, filled, verified, compiled, saved.

MODEL --build-> model --load AVG-> verify --compile-> save --verify again-> commit
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from streamavg.errors import OptionError, OutputError
from streamavg.evaluation.keras_backend import quiet
from streamavg.evaluation.models import (
    Recipe,
    build_model,
    compile_for_use,
    load_weights,
    translated_errors,
)
from streamavg.evaluation.placing import hidden_folder
from streamavg.evaluation.verification import verify_file, verify_model
from streamavg.formats import open_checkpoint
from streamavg.formats.output import refuse_taken
from streamavg.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamavg.checkpoint import Checkpoint

    StrPath = str | os.PathLike[str]

SCHEMA_VERSION = 1
SUFFIX = ".keras"


class ModelOptions(TypedDict, total=False):
    """How models are built and compiled; all may be left out."""

    loss: str | None
    """Instead of the loss that the model was compiled with, by Keras' name for it."""
    metrics: Sequence[str] | None
    """Instead of its metrics."""
    optimizer: str | None
    """Instead of its optimizer."""
    imports: Sequence[str]
    """Modules that define custom classes and functions."""
    unsafe: bool
    """Run code that is in files, such as Lambda layers; False by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildRecord:
    """What was rebuilt."""

    schema_version: int
    streamavg_version: str
    weights: str
    model: str
    output: str
    variables: int
    """Of the model; each holds the file's values, compared value for value."""
    bytes_written: int
    is_compiled: bool
    loss: str | None
    metrics: tuple[str, ...]
    optimizer: str | None
    """It starts anew: an average has no optimizer state."""
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The record as JSON, indented."""
        return json.dumps(asdict(self), indent=2)


def recipe_of(model: StrPath | None, options: ModelOptions) -> Recipe:
    """The recipe that options describe."""
    metrics = options.get("metrics")
    return Recipe(
        model=None if model is None else os.fspath(model),
        loss=options.get("loss"),
        metrics=None if metrics is None else tuple(metrics),
        optimizer=options.get("optimizer"),
        imports=tuple(options.get("imports", ())),
        unsafe=options.get("unsafe", False),
    )


def rebuild(
    weights: StrPath,
    output: StrPath,
    *,
    model: StrPath,
    force: bool = False,
    **options: Unpack[ModelOptions],
) -> RebuildRecord:
    """Builds a model anew, fills it from a checkpoint, compiles it, and saves it as one file.

    Args:
        weights: the checkpoint, such as an average: `.weights.h5`, `.keras` or legacy `.h5`.
        output: a `.keras` file.
        model: where the model comes from: a `.keras` or whole legacy `.h5` file, a configuration as
            JSON, or "module:function".
        force: whether an existing output may be replaced.
        **options: see `ModelOptions`.

    Raises:
        ModelMismatchError: a variable of the model was not set from the file, or one of the file
            was left over.
        FormatError: a file cannot be read; UnsafeFileError: it holds code.
        OptionError: the options do not fit.
        OutputError: the output exists, is an input, or cannot be written.
        MissingDependencyError: Keras is not installed.

        After an error there is no output.

    Memory: that of one model, and of TensorFlow.
    """
    path, source = Path(output), Path(weights)
    recipe = recipe_of(model, options)
    check_output(path, [source, Path(model)], force=force)
    with open_checkpoint(source) as checkpoint:
        built = build_model(os.fspath(model), recipe)
        load_weights(built.model, checkpoint, recipe)
        verify_model(built.model, checkpoint)
        is_compiled = compile_for_use(built.model, built.compile_config, recipe)
        save_verified(built.model, path, checkpoint, recipe, force=force)
    config = {**(built.compile_config or {}), **recipe.given} if is_compiled else {}
    notes = [] if is_compiled else [
        f"{model} does not say how it was compiled, so neither is {path}: compile it with --loss, "
        "--metrics and --optimizer, or after loading."
    ]  # fmt: skip
    return RebuildRecord(
        schema_version=SCHEMA_VERSION,
        streamavg_version=__version__,
        weights=str(source),
        model=os.fspath(model),
        output=str(path),
        variables=len(built.model.weights),
        bytes_written=path.stat().st_size,
        is_compiled=is_compiled,
        loss=name_of(config.get("loss")),
        metrics=tuple(names_of(config.get("metrics"))),
        optimizer=name_of(config.get("optimizer", "rmsprop")) if is_compiled else None,
        notes=tuple(notes),
    )


def check_output(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Makes sure that a model can be saved there, before anything is read.

    Raises:
        OptionError: the suffix is another one than Keras' for whole models.
        OutputError: the file exists and `force` is not given, is an input, or has no folder.
    """
    if path.suffix != SUFFIX:
        raise OptionError(f"{path}: a whole model is saved as *{SUFFIX}. Name such a file.")
    if not path.parent.is_dir():
        raise OutputError(path, f"the folder {path.parent} does not exist. Create it first.")
    if path.exists() and any(path.samefile(other) for other in inputs if other.exists()):
        raise OutputError(path, "is one of the inputs, which are never written. Name another.")
    refuse_taken(path, force=force)


def save_verified(
    model: Any, path: Path, expected: Checkpoint, recipe: Recipe, *, force: bool
) -> None:
    """Saves a model that holds the values of a checkpoint, and reads the file to see that it does.

    Raises: as `rebuild`.
    """
    with placed(path, force=force) as temporary:
        save(model, temporary, recipe)
        with open_checkpoint(temporary) as saved:
            verify_file(saved, expected)


def save(model: Any, path: Path, recipe: Recipe) -> None:
    """Saves a model. Raises: UnsupportedFeatureError where Keras cannot."""
    with translated_errors(path, recipe), quiet():
        model.save(path)


@contextlib.contextmanager
def placed(path: Path, *, force: bool) -> Iterator[Path]:
    """A place to write a file that appears at `path`, whole, when the block ends without an error.

    Keras insists on a name with its suffix, so the file is in a hidden folder beside `path` until
    it is flushed to the disk and put in place.

    Raises:
        OutputError: the path is taken and `force` is not given, or nothing can be written there.
    """
    refuse_taken(path, force=force)
    with hidden_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if not force:
            refuse_taken(path, force=False)
        temporary.replace(path)


def names_of(parts: Any) -> Iterator[str]:
    """Names in the `metrics` of a compile configuration, however they are nested."""
    if isinstance(parts, dict) and "class_name" not in parts:
        parts = list(parts.values())
    if isinstance(parts, list | tuple):
        for part in parts:
            yield from names_of(part)
    elif parts is not None:
        yield name_of(parts) or "?"


def name_of(part: Any) -> str | None:
    """The name of a loss, metric or optimizer as a compile configuration has it."""
    if isinstance(part, dict):
        inner = part.get("config")
        if isinstance(inner, str):  # a function, by its name
            return inner
        name = inner.get("name") if isinstance(inner, dict) else None
        if "class_name" not in part:
            return ", ".join(f"{key}: {name_of(value)}" for key, value in part.items())
        return str(name or part["class_name"])
    if isinstance(part, list):
        return ", ".join(str(name_of(each)) for each in part)
    return None if part is None else str(part)
