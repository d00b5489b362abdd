"""What a stored variable is for, told from the names that Keras gives.

Keras' files do not say which array is a weight. These rules do, from the path of the variable,
the name of its layer, and the shapes and dtypes of its siblings; docs/formats.md lists them with
the Keras versions they were checked on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from streamavg.checkpoint import Kind, Role, Variable, last_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NORMALIZATION_NAMES = ("mean", "variance", "count")
_TF_IDF_KEY = "idf_weights"
_AMAX_HISTORY = 1024
"""Length of the histories that float8 layers keep (keras.src.quantizers)."""
_QUANTIZED_NAME = re.compile(
    r"(kernel|embeddings)_(scale|zero)|g_idx|amax_history|awq_scales|_(kernel|embeddings)_packed"
)
_ADAPTER_NAME = re.compile(r"lora_(kernel|embeddings)_[ab]")


def assign_roles(variables: Sequence[Variable]) -> tuple[Variable, ...]:
    """Gives each variable the role that its whole layer tells.

    Args:
        variables: with role WEIGHT, or with the role that their place in the file gives.
    """
    groups: dict[str, list[Variable]] = {}
    for variable in variables:
        groups.setdefault(_parent(variable.path), []).append(variable)
    roles = {parent: _group_role(siblings) for parent, siblings in groups.items()}
    return tuple(
        _with_role(variable, _role(variable, roles[_parent(variable.path)]))
        for variable in variables
    )


def _with_role(variable: Variable, role: Role) -> Variable:
    return variable if variable.role == role else replace(variable, role=role)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _role(variable: Variable, group_role: Role) -> Role:
    name = last_part(variable.path)
    if variable.role != Role.WEIGHT:
        return variable.role
    if "seed_generator" in variable.path:
        return Role.SEED
    if name == _TF_IDF_KEY:
        return Role.PREPROCESSING
    if _ADAPTER_NAME.fullmatch(name):
        return Role.ADAPTER
    return group_role


def _group_role(siblings: Sequence[Variable]) -> Role:
    if is_quantized(siblings):
        return Role.QUANTIZED
    if _is_normalization(siblings):
        return Role.PREPROCESSING
    return Role.WEIGHT


def _is_normalization(siblings: Sequence[Variable]) -> bool:
    """Normalization keeps mean, variance and an integer count; no other Keras layer does.

    Its name does not matter: it may be an attribute of any name in a subclassed model.
    Source: keras.layers.Normalization.build, Keras 2.12 to 3.15.
    """
    if len(siblings) != len(_NORMALIZATION_NAMES):
        return False
    if tuple(last_part(variable.path) for variable in siblings) == _NORMALIZATION_NAMES:
        return True
    mean, variance, count = siblings
    return (
        all(last_part(variable.path).isdigit() for variable in siblings)
        and mean.shape == variance.shape
        and mean.kind == variance.kind == Kind.FLOAT
        and count.kind == Kind.INTEGER
        and count.shape == ()
    )


def is_quantized(siblings: Iterable[Variable]) -> bool:
    """Whether the variables of one layer are quantized codes with their scales.

    int8, int4, GPTQ and AWQ layers hold a matrix of one-byte integers beside floats of other
    shapes (scales, biases); float8 layers hold float32 kernels beside pairs of a scalar scale and
    a history of 1024 maxima. Source: keras.layers.Dense.quantized_build, Keras 3.3 to 3.15.
    """
    weights = [variable for variable in siblings if variable.role == Role.WEIGHT]
    if any(_QUANTIZED_NAME.fullmatch(last_part(variable.path)) for variable in weights):
        return True
    floats = [variable for variable in weights if variable.kind == Kind.FLOAT]
    histories = sum(variable.shape == (_AMAX_HISTORY,) for variable in floats)
    scales = sum(variable.shape == () for variable in floats)
    if histories >= 3 and scales >= 3:
        return True
    return any(
        code.kind == Kind.INTEGER
        and code.dtype.itemsize == 1
        and len(code.shape) >= 2
        and not any(other.shape == code.shape for other in floats)  # a mask of weights
        and any(other.shape != () and other.size for other in floats)
        for code in weights
    )
