"""Does a model hold what a file holds? By the values themselves, not by Keras' word.

Keras' loaders look for what the model wants and say nothing of what is left over; some versions
skip layers. So after loading, each variable of the file must be found in the model and each
variable of the model in the file, value for value. Both are compared by digests of their values as
float64 (or int64), which holds all narrower ones exactly: a value that was rounded on the way in
shows.

Memory: one slab, and one variable of the model where TensorFlow copies it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.architecture import automatic_name, snake_case
from streamavg.checkpoint import Checkpoint, Naming, Role, Variable, runs_of
from streamavg.errors import ModelMismatchError
from streamavg.evaluation.keras_backend import load_keras, quiet
from streamavg.formats import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_SLAB_ELEMENTS = 2**17
_NOT_IN_A_MODEL = frozenset({Role.OPTIMIZER, Role.METRIC, Role.SEED})


@dataclass(frozen=True, slots=True)
class _Values:
    """What identifies the values of a variable, wherever it is."""

    shape: tuple[int, ...]
    digest: bytes


def verify_model(model: Any, checkpoint: Checkpoint) -> None:
    """Makes sure that a model holds exactly the variables of a checkpoint.

    Args:
        model: a Keras model that the checkpoint was loaded into.
        checkpoint: open; its optimizer, metrics and seeds do not count.

    Raises:
        ModelMismatchError: with every variable that one has and the other has not, and every layer
            whose name is that of another one.
        FormatError: the file cannot be read.

    Memory: see the module. Where a layer stores what is no variable of the model, the model's
    weights are written to a temporary file once.
    """
    differences = list(_swapped_layers(model, checkpoint))
    held = {weight.path: _values_of_array(_array_of(weight)) for weight in model.weights}
    stored = {
        variable.path: _values_in_file(checkpoint, position)
        for position, variable in _variables(checkpoint)
    }
    missing, left_over = _without_each_other(held, stored)
    if missing or left_over:
        # Layers may store what is no variable, such as a vocabulary's weights. Saving tells.
        left_over = [] if not missing and _saves_the_same(model, checkpoint) else left_over
    differences += [
        f"variable {name!r} of the model was not set from the file: the file holds no values of "
        f"shape {held[name].shape} that equal it."
        for name in missing
    ]
    differences += [
        f"variable {name!r} of the file was left over: no variable of the model with shape "
        f"{stored[name].shape} holds its values."
        for name in left_over
    ]
    if differences:
        raise ModelMismatchError(checkpoint.path, differences)


def verify_file(saved: Checkpoint, expected: Checkpoint) -> None:
    """Makes sure that a file of a model holds exactly the variables of another checkpoint.

    Raises:
        ModelMismatchError: it does not.
        FormatError: a file cannot be read.
    """
    ours = {v.path: _values_in_file(saved, position) for position, v in _variables(saved)}
    theirs = {v.path: _values_in_file(expected, position) for position, v in _variables(expected)}
    missing, left_over = _without_each_other(theirs, ours)
    differences = [
        f"variable {name!r} is in {expected.path}, and was not saved." for name in missing
    ]
    differences += [f"variable {name!r} was saved, and is not in {expected.path}."
                    for name in left_over]  # fmt: skip
    if differences:
        raise ModelMismatchError(saved.path, differences)


def _variables(checkpoint: Checkpoint) -> Iterator[tuple[int, Variable]]:
    for position, variable in enumerate(checkpoint.variables):
        if variable.role not in _NOT_IN_A_MODEL:
            yield position, variable


def _without_each_other(
    ours: dict[str, _Values], theirs: dict[str, _Values]
) -> tuple[list[str], list[str]]:
    """Names on each side that have no equal on the other; equal ones are matched one to one."""
    return _unmatched(ours, Counter(theirs.values())), _unmatched(theirs, Counter(ours.values()))


def _unmatched(named: dict[str, _Values], others: Counter[_Values]) -> list[str]:
    names = []
    for name, values in named.items():
        if others[values]:
            others[values] -= 1
        else:
            names.append(name)
    return names


def _array_of(weight: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(weight.value.numpy())
    return array


def _values_of_array(array: NDArray[Any]) -> _Values:
    flat = np.ascontiguousarray(array).reshape(-1)
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(flat), _SLAB_ELEMENTS):
        digest.update(_canonical(flat[start : start + _SLAB_ELEMENTS]))
    return _Values(array.shape, digest.digest())


def _values_in_file(checkpoint: Checkpoint, position: int) -> _Values:
    variable = checkpoint.variables[position]
    digest = hashlib.blake2b(digest_size=16)
    buffer = np.empty(min(variable.size, _SLAB_ELEMENTS), variable.dtype)
    for run in runs_of(position, variable.size, _SLAB_ELEMENTS):
        slab = buffer[: run.count]
        checkpoint.values.read_into(position, run.start, slab)
        digest.update(_canonical(slab))
    return _Values(variable.shape, digest.digest())


def _canonical(values: NDArray[Any]) -> bytes:
    """The values in a form that does not depend on the dtype they are stored in."""
    if values.dtype.kind in "SUO":
        return repr(values.tolist()).encode()
    wide = np.int64 if values.dtype.kind in "iub" else np.float64
    return values.astype(wide).tobytes()


def _saves_the_same(model: Any, checkpoint: Checkpoint) -> bool:
    """Whether the model saves the very variables that the file has, path by path."""
    if checkpoint.naming != Naming.BY_PLACE:
        return False
    with tempfile.TemporaryDirectory(prefix="streamavg-") as folder:
        path = Path(folder) / "saved.weights.h5"
        with quiet():
            model.save_weights(path)
        with open_checkpoint(path) as saved:
            ours = {v.path: _values_in_file(saved, position) for position, v in _variables(saved)}
    theirs = {v.path: _values_in_file(checkpoint, p) for p, v in _variables(checkpoint)}
    return ours == theirs


def _swapped_layers(model: Any, checkpoint: Checkpoint) -> Iterator[str]:
    """Layers of one class whose names say that they changed places; Keras loads by place alone."""
    names = dict(layer_names(model))
    places = {name: path for path, name in names.items()}
    for layer in checkpoint.layers:
        expected = names.get(layer.path)
        if layer.name is None or expected is None or layer.name == expected:
            continue
        stem = layer.class_name
        if stem in {automatic_name(layer.name)[0], automatic_name(expected)[0]}:
            continue  # Keras counted at least one of them
        if layer.name in places:
            yield (
                f"layer {layer.path!r} is named {layer.name!r} in the file, and {expected!r} in "
                f"the model, whose {layer.name!r} is at {places[layer.name]!r}: its values belong "
                "to another layer."
            )


def layer_names(model: Any, prefix: str = "layers") -> Iterator[tuple[str, str]]:
    """Place in a `.weights.h5` file, and name, of the layers of a Functional or Sequential model.

    Source: keras.src.saving.saving_lib._save_container_state, Keras 3.0 to 3.15.
    """
    counts: Counter[str] = Counter()
    for layer in model.layers:
        stem = snake_case(type(layer).__name__)
        path = f"{prefix}/{stem}" + (f"_{counts[stem]}" if counts[stem] else "")
        counts[stem] += 1
        yield path, layer.name
        if isinstance(layer, load_keras().Model):
            yield from layer_names(layer, f"{path}/layers")
