"""Which variables are the moving statistics of BatchNormalization layers.

    layout          how a layer is recognised                                   its statistics
    --------------  ----------------------------------------------------------  ------------------
    legacy          variables `moving_mean` and `moving_variance` side by side  those two
    by place        class BatchNormalization (or SyncBatchNormalization), told  the last two of its
                    by `layers/<class>_k`, by the configuration, by the name    2 to 4 variables,
                    that Keras gave the layer, or by the end of its path (in    mean and variance
                    a list: `blocks/<class>_k`), the first of these that
                    tells; and 2 to 4 float variables of one shape

`scale=False` and `center=False` leave out gamma and beta, which come before the statistics. In the
layout by place an attribute of a subclassed model (`bn1/vars/0..3`) does not tell its class, unless
Keras 3.6 or later stored the layer's name and Keras gave it. A layer that might be one and is not
known to be another is told too, so that it is not left out without a word.

Source: keras/src/layers/normalization/batch_normalization.py (order of creation), Keras 2.2 to 3.15
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamavg.architecture import automatic_name, layer_classes, parse_config, snake_case
from streamavg.checkpoint import Kind, Naming, Role, last_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamavg.checkpoint import Checkpoint, Layer, Variable

_CLASSES = frozenset({"batch_normalization", "sync_batch_normalization"})
_OTHER_CLASSES = frozenset({"layer_normalization", "group_normalization"})
"""Keras' own layers of two to four vectors of one shape."""
_MEAN, _VARIANCE = "moving_mean", "moving_variance"


@dataclass(frozen=True, slots=True)
class MovingStatistics:
    """Of one BatchNormalization layer: positions of its variables."""

    mean: int
    variance: int


@dataclass(frozen=True, slots=True)
class BatchNormalizations:
    """What was recognised in one checkpoint."""

    statistics: tuple[MovingStatistics, ...]
    unknown: tuple[str, ...] = ()
    """Paths of layers that may be BatchNormalizations: the file does not tell."""


def find_batch_normalizations(checkpoint: Checkpoint) -> BatchNormalizations:
    """Finds the moving statistics of a checkpoint. Raises: CorruptFileError (its configuration)."""
    if checkpoint.naming == Naming.BY_LAYER:
        return _by_name(checkpoint)
    return _by_class(checkpoint)


def _by_name(checkpoint: Checkpoint) -> BatchNormalizations:
    pairs: dict[str, dict[str, int]] = {}
    for position, variable in enumerate(checkpoint.variables):
        name = last_part(variable.path)
        if name in {_MEAN, _VARIANCE} and variable.role == Role.WEIGHT:
            pairs.setdefault(variable.path.rpartition("/")[0], {})[name] = position
    found, unknown = [], []
    for owner, pair in pairs.items():
        members = [checkpoint.variables[position] for position in pair.values()]
        if len(pair) == 2 and _are_alike(members):
            found.append(MovingStatistics(pair[_MEAN], pair[_VARIANCE]))
        else:
            unknown.append(owner)
    return BatchNormalizations(tuple(found), tuple(unknown))


def _by_class(checkpoint: Checkpoint) -> BatchNormalizations:
    classes = {}
    if checkpoint.config is not None:
        classes = layer_classes(parse_config(checkpoint.config, checkpoint.path))
    members: dict[str, list[int]] = {}
    for position, variable in enumerate(checkpoint.variables):
        if variable.role == Role.WEIGHT:
            members.setdefault(variable.layer, []).append(position)
    found, unknown = [], []
    for layer in checkpoint.layers:
        positions = members.get(layer.path, [])
        variables = [checkpoint.variables[position] for position in positions]
        may_be = 2 <= len(variables) <= 4 and _are_alike(variables)
        class_name = _class_of(layer, classes)
        if class_name in _CLASSES and may_be:
            found.append(MovingStatistics(*positions[-2:]))
        elif class_name in _CLASSES or (may_be and class_name not in _OTHER_CLASSES):
            unknown.append(layer.path)
    return BatchNormalizations(tuple(found), tuple(unknown))


def _class_of(layer: Layer, classes: Mapping[str, str]) -> str | None:
    """Snake-case name of a layer's class, from the surest source that there is."""
    if layer.class_name is not None:
        return layer.class_name
    if layer.name is not None and layer.name in classes:
        return snake_case(classes[layer.name])
    for name in (layer.name, last_part(layer.path)):
        stem = None if name is None else automatic_name(name)[0]
        if stem in _CLASSES | _OTHER_CLASSES:
            return stem
    return None


def _are_alike(variables: Sequence[Variable]) -> bool:
    first = variables[0]
    return bool(first.shape) and all(
        variable.kind == Kind.FLOAT
        and variable.shape == first.shape
        and variable.dtype == first.dtype
        for variable in variables
    )
