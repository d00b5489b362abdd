"""What is in one checkpoint file: format, producer, layers, variables, sizes; no values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamavg.architecture import layer_classes, parse_config
from streamavg.checkpoint import Role
from streamavg.dtypes import dtype_name
from streamavg.formats import FORMATS, open_checkpoint
from streamavg.record import SCHEMA_VERSION, json_pieces

if TYPE_CHECKING:
    import os

    from streamavg.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class VariableSummary:
    """One variable."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    size_bytes: int
    shared_with: tuple[str, ...]
    """Further paths of the same stored array."""


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer that owns variables."""

    path: str
    name: str | None
    class_name: str | None
    """From the configuration, or in snake case from the path; None where neither tells."""
    variables: int
    elements: int


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """One checkpoint."""

    schema_version: int
    path: str
    format: str
    title: str
    """What people call the format."""
    producer: str | None
    """Version of the Keras that wrote it; None where the file does not tell."""
    file_bytes: int
    weights: int
    """Elements of all variables apart from the optimizer's and metrics'."""
    weights_bytes: int
    optimizer_variables: int
    optimizer_bytes: int
    has_config: bool
    assets: tuple[str, ...]
    layers: tuple[LayerSummary, ...]
    variables: tuple[VariableSummary, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The summary as JSON, indented."""
        return "".join(json_pieces(self))


def inspect(path: str | os.PathLike[str]) -> CheckpointSummary:
    """Describes a checkpoint file from its headers.

    Raises:
        FormatError: the file cannot be read.

    Memory: about a kilobyte a variable, and the model's configuration.
    """
    with open_checkpoint(Path(path)) as checkpoint:
        optimizer = [v for v in checkpoint.variables if v.role == Role.OPTIMIZER]
        state = {Role.OPTIMIZER, Role.METRIC}
        weights = [v for v in checkpoint.variables if v.role not in state]
        titles = {format_.name: format_.title for format_ in FORMATS}
        return CheckpointSummary(
            schema_version=SCHEMA_VERSION,
            path=str(checkpoint.path),
            format=checkpoint.format,
            title=titles[checkpoint.format],
            producer=checkpoint.producer,
            file_bytes=checkpoint.identity.size,
            weights=sum(variable.size for variable in weights),
            weights_bytes=sum(variable.nbytes for variable in weights),
            optimizer_variables=len(optimizer),
            optimizer_bytes=sum(variable.nbytes for variable in optimizer),
            has_config=checkpoint.config is not None,
            assets=tuple(checkpoint.assets),
            layers=_layers(checkpoint),
            variables=tuple(
                VariableSummary(
                    variable.path,
                    variable.shape,
                    dtype_name(variable.dtype),
                    str(variable.role),
                    variable.nbytes,
                    variable.aliases,
                )
                for variable in checkpoint.variables
            ),
            notes=checkpoint.notes,
        )


def _layers(checkpoint: Checkpoint) -> tuple[LayerSummary, ...]:
    classes: dict[str, str] = {}
    if checkpoint.config is not None:
        classes = layer_classes(parse_config(checkpoint.config, checkpoint.path))
    counts: dict[str, list[int]] = {}
    for variable in checkpoint.variables:
        if variable.role not in {Role.OPTIMIZER, Role.METRIC}:
            counts.setdefault(variable.layer, []).append(variable.size)
    return tuple(
        LayerSummary(
            layer.path,
            layer.name,
            classes.get(layer.name or "", layer.class_name),
            len(counts[layer.path]),
            sum(counts[layer.path]),
        )
        for layer in checkpoint.layers
        if layer.path in counts
    )
