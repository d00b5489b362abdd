"""Models from what a user names: built anew, filled from a checkpoint, compiled, verified.

    MODEL    model.keras      an archive: its configuration and vocabularies
             model.h5         a whole legacy model: its configuration
             model.json       a configuration, as `model.to_json()` writes it
             module:function  a function that returns the model

Code inside a file (Lambda layers, and layers that load other programs) is refused unless the user
says `--unsafe`; Keras' own safe mode is on as well. Custom classes come from modules that the user
names.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.architecture import parse_config
from streamavg.errors import (
    OptionError,
    StreamAvgError,
    UnsafeFileError,
    UnsupportedFeatureError,
)
from streamavg.evaluation.keras_backend import (
    import_modules,
    load_keras,
    named_function,
    quiet,
)
from streamavg.evaluation.verification import verify_model
from streamavg.formats import open_checkpoint
from streamavg.formats.hdf5 import hdf5_of
from streamavg.formats.keras_legacy import NAME as LEGACY

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from streamavg.checkpoint import Checkpoint

    StrPath = str | os.PathLike[str]

_CODE = frozenset({"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer",
                   "FlaxLayer"})  # fmt: skip
"""Classes whose configuration holds or loads code."""
_LARGEST_JSON = 64 * 1024**2
_SCORED = ("loss", "loss_weights", "metrics", "weighted_metrics")
_CHOSEN_BY_SHAPE = frozenset({"accuracy", "acc", "crossentropy", "ce"})
"""Names that stand for one of several losses or metrics, by the shapes of labels and outputs."""
_SHOWN_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How models are built, and what they are scored by."""

    model: str | None = None
    """MODEL for checkpoints that hold weights alone."""
    loss: str | None = None
    """Instead of that of the compile configuration, as are the two below."""
    metrics: tuple[str, ...] | None = None
    optimizer: str | None = None
    imports: tuple[str, ...] = ()
    """Modules that define custom classes and functions."""
    unsafe: bool = False
    """Whether code in files may run."""

    @property
    def given(self) -> dict[str, Any]:
        """The parts of a compile configuration that the user gave."""
        parts = {
            "optimizer": self.optimizer,
            "loss": self.loss,
            "metrics": None if self.metrics is None else list(self.metrics),
        }
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True, eq=False)
class BuiltModel:
    """A Keras model, not compiled, and how its source was."""

    model: Any
    compile_config: Mapping[str, Any] | None
    """Serialised as by `get_compile_config`; None where the source does not tell."""


def load_model(path: StrPath, recipe: Recipe | None = None) -> BuiltModel:
    """Builds the model of a checkpoint and makes sure that it holds the checkpoint's values.

    A whole model is loaded as it is; weights alone go into the model that the recipe names.

    Args:
        path: a `.keras`, `.weights.h5` or legacy `.h5` file.
        recipe: how; by default, from the file alone.

    Returns:
        The model, which no other call returns; forget it before the next one is loaded.

    Raises:
        OptionError: the file holds weights alone and the recipe names no model.
        UnsafeFileError: the file holds code.
        UnsupportedFeatureError: Keras cannot build or fill the model.
        ModelMismatchError: a variable of the model was not set, or one of the file left over.
        MissingDependencyError: Keras is not installed.
    """
    recipe = Recipe() if recipe is None else recipe
    path = Path(path)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.config is not None:
            built = build_model(str(path), recipe)
        elif recipe.model is None:
            raise OptionError(
                f"{path}: holds weights alone. Say with --model which model they belong to."
            )
        else:
            built = build_model(recipe.model, recipe)
            load_weights(built.model, checkpoint, recipe)
        verify_model(built.model, checkpoint)
    return built


def build_model(source: str, recipe: Recipe) -> BuiltModel:
    """Builds a model from what a user named, with the values that its source gives it.

    Args:
        source: MODEL, see the module.
        recipe: custom classes, and whether code may run.

    Raises: as `load_model`.
    """
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        return _from_json(path, recipe)
    if path.exists():
        with open_checkpoint(path) as checkpoint:
            return _from_checkpoint(checkpoint, recipe)
    if ":" in source:
        return _from_function(source, recipe)
    raise OptionError(
        f"--model {source}: is no file, nor module:function. "
        "Name a .keras or whole .h5 model, a configuration as JSON, or a function."
    )


def _from_checkpoint(checkpoint: Checkpoint, recipe: Recipe) -> BuiltModel:
    path = checkpoint.path
    if checkpoint.config is None:
        raise OptionError(f"--model {path}: holds weights alone. Name a file of a whole model.")
    config = parse_config(checkpoint.config, path)
    _refuse_code(config, path, recipe)
    with translated_errors(path, recipe):
        model = load_keras().saving.load_model(path, compile=False, safe_mode=not recipe.unsafe)
    if checkpoint.format == LEGACY:
        return BuiltModel(model, _legacy_compile_config(checkpoint))
    return BuiltModel(model, config.get("compile_config") or None)


def _legacy_compile_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The `training_config` of a legacy file, under the names of today."""
    with hdf5_of(checkpoint).opened() as opened:
        text = opened.attrs.get("training_config")
    if text is None:
        return None
    content = text.decode() if isinstance(text, bytes) else str(text)
    training = parse_config(content, checkpoint.path)
    config = {name: training.get(name) for name in _SCORED}
    config["optimizer"] = training.get("optimizer_config")
    return {name: part for name, part in config.items() if part is not None}


def _from_json(path: Path, recipe: Recipe) -> BuiltModel:
    if path.stat().st_size > _LARGEST_JSON:
        raise UnsafeFileError(path, "is too large for a model's configuration.")
    config = parse_config(path.read_text(encoding="utf-8", errors="replace"), path)
    if not isinstance(config, dict) or "class_name" not in config:
        raise UnsupportedFeatureError(path, "is no configuration of a Keras model.")
    _refuse_code(config, path, recipe)
    compile_config = config.pop("compile_config", None) or None
    with translated_errors(path, recipe):
        model = load_keras().saving.deserialize_keras_object(config, safe_mode=not recipe.unsafe)
    return BuiltModel(model, compile_config)


def _from_function(source: str, recipe: Recipe) -> BuiltModel:
    keras = load_keras()
    with translated_errors(source, recipe):
        model = named_function(source, "--model")()
    if not isinstance(model, keras.Model):
        raise OptionError(f"--model {source}: returned {type(model).__name__}, no Keras model.")
    if not model.built:
        raise OptionError(
            f"--model {source}: returned a model that is not built, so it has no variables. "
            "Give it an Input, or call it once."
        )
    return BuiltModel(model, model.get_compile_config() if model.compiled else None)


def load_weights(model: Any, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Loads the values of a checkpoint into a model, without verifying that all arrived.

    Raises:
        UnsupportedFeatureError: Keras cannot load them.
    """
    with translated_errors(checkpoint.path, recipe):
        model.load_weights(checkpoint.path)


def compile_for_scoring(model: Any, config: Mapping[str, Any] | None, recipe: Recipe) -> None:
    """Compiles a model with the loss and metrics that a source or the user names.

    The optimizer is one without state, because no training follows.

    Args:
        model: see `load_model`.
        config: the compile configuration of its source, or of that of another model.
        recipe: has what the user gave instead.

    Raises:
        OptionError: neither names a loss, or Keras does not know what they name.
    """
    parts = {name: part for name, part in (config or {}).items() if name in _SCORED}
    parts |= {name: part for name, part in recipe.given.items() if name in _SCORED}
    _compile(model, {**parts, "optimizer": "sgd"}, recipe)


def compile_for_use(model: Any, config: Mapping[str, Any] | None, recipe: Recipe) -> bool:
    """Compiles a model as its source was compiled, or as the user says.

    The optimizer has no state yet.

    Returns:
        Whether there was anything to compile it with.

    Raises:
        OptionError: Keras does not know what the source or the user names.
    """
    parts = {**(config or {}), **recipe.given}
    if not parts.get("loss"):
        return False
    _compile(model, {"optimizer": "rmsprop", **parts}, recipe)
    return True


def _compile(model: Any, config: dict[str, Any], recipe: Recipe) -> None:
    keras = load_keras()
    if not config.get("loss"):
        raise OptionError(
            "the model does not say by which loss and metrics it is scored. Give --loss and "
            "--metrics, such as --loss sparse_categorical_crossentropy --metrics accuracy."
        )
    try:
        with quiet(), keras.saving.custom_object_scope(import_modules(recipe.imports)):
            if type(model).compile is not keras.Model.compile:
                model.compile_from_config(config)
            else:
                model.compile(**_deserialized(config))
    except StreamAvgError:
        raise
    except Exception as error:
        raise OptionError(
            f"the model cannot be compiled with {_shown(config)}: {_reason(error)} "
            "Name others with --loss, --metrics and --optimizer, and modules of custom ones with "
            "--import."
        ) from error


def _deserialized(config: Mapping[str, Any]) -> dict[str, Any]:
    """A compile configuration as arguments of `compile`. Raises what Keras raises."""
    keras = load_keras()
    getters = {
        "loss": keras.losses.get,
        "metrics": keras.metrics.get,
        "weighted_metrics": keras.metrics.get,
        "optimizer": keras.optimizers.get,
    }
    return {
        name: _objects(part, getters[name])
        if name in getters
        else keras.saving.deserialize_keras_object(part)
        for name, part in config.items()
    }


def _objects(part: Any, get: Callable[[Any], Any]) -> Any:
    """What a part of a compile configuration describes; names that Keras knows stay names."""
    if isinstance(part, str):
        if part.lower() in _CHOSEN_BY_SHAPE:
            return part
        custom = load_keras().saving.get_registered_object(part)
        if custom is not None:
            return custom() if isinstance(custom, type) else custom
        get(part)  # an unknown one would show much later
        return part
    if isinstance(part, list | tuple):
        return [_objects(each, get) for each in part]
    if isinstance(part, dict) and "class_name" not in part:
        return {key: _objects(each, get) for key, each in part.items()}
    if isinstance(part, dict) and "module" not in part:  # as legacy files have it
        return get(part)
    return load_keras().saving.deserialize_keras_object(part)


def _shown(config: Mapping[str, Any]) -> str:
    return json.dumps({name: config.get(name) for name in ("loss", "metrics")}, default=str)[:200]


@contextmanager
def translated_errors(path: StrPath, recipe: Recipe) -> Iterator[None]:
    """Knows the user's classes inside the block, and turns Keras' errors into one sentence.

    Raises:
        UnsupportedFeatureError: for whatever Keras raised.
    """
    keras = load_keras()
    try:
        with quiet(), keras.saving.custom_object_scope(import_modules(recipe.imports)):
            yield
    except StreamAvgError:
        raise
    except Exception as error:  # Keras raises all sorts
        raise UnsupportedFeatureError(
            str(path),
            f"Keras cannot build or load it: {_reason(error)} Custom classes come with "
            "--import MODULE.",
        ) from error


def _reason(error: Exception) -> str:
    """What Keras says, without the configurations that it likes to quote."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN_REASON else f"{text[:_SHOWN_REASON]}..."


def _refuse_code(config: Any, path: Path, recipe: Recipe) -> None:
    """Raises UnsafeFileError if a configuration holds code and the user did not allow it."""
    if recipe.unsafe:
        return
    pending = [config]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if node.get("class_name") in _CODE:
                inner = node.get("config")
                name = inner.get("name", "") if isinstance(inner, dict) else ""
                raise UnsafeFileError(
                    path,
                    f"layer {name!r} is a {node['class_name']}: it runs code that is in the file "
                    "or beside it. If you trust where the file comes from, allow it with --unsafe.",
                )
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
