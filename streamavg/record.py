"""What a merge did, as plain data: for the screen, for JSON, for whoever asks later.

Memory is in bytes, time in seconds. `SCHEMA_VERSION` changes when a field changes its meaning or
goes away; new fields do not change it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.dtypes import dtype_name
from streamavg.planning import Action
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from streamavg.planning import MergePlan
    from streamavg.selection import Rules

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One checkpoint that was averaged."""

    path: str
    format: str
    producer: str | None
    """Version of the Keras that wrote it; None where the file does not tell."""
    file_bytes: int
    coefficient: float
    """What its values were multiplied with; all coefficients sum to 1. Of a method that has none,
    an equal share."""
    score: float | None
    """Where checkpoints were picked or weighted by it."""


@dataclass(frozen=True, slots=True)
class VariableRecord:
    """One variable of the reference, and what happened to it."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    action: str
    """`average`, `pooled`, `carry` or `drop`."""
    reason: str
    output_dtype: str | None
    carried_from: str | None
    """The checkpoint that a carried variable was copied from."""
    factors: tuple[float, ...] | None
    """What the values of each checkpoint were multiplied with, where it is not its coefficient."""


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """Resident memory of the whole process, in bytes."""

    limit: int
    limit_origin: str
    reserved: int
    projected: int
    measured: int | None
    """Peak since the process started; None before the merge has run. If the process had been larger
    before the merge, what it took at the end of it."""


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """A merge: planned (`measured` and `seconds` are None) or done."""

    schema_version: int
    streamavg_version: str
    method: str
    method_summary: str
    """What it does with the values of the checkpoints: how many the trimmed mean drops, say."""
    output: str
    output_format: str
    output_has_config: bool
    """Whether the output is a whole model, not the weights alone."""
    reference: str
    selection: Rules
    """How many checkpoints were given, which rule took which of them, and those left out."""
    inputs: tuple[InputRecord, ...]
    variables: tuple[VariableRecord, ...]
    averaged: int
    """Number of variables, pooled ones included."""
    carried: int
    dropped: int
    bytes_read: int
    """Of values, all checkpoints together, in all passes."""
    bytes_measured: int
    """Of these, what is read before any values are combined; 0 for most methods."""
    bytes_written: int
    dropped_bytes: int
    """What leaving out the optimizer state saved in the output."""
    slab_elements: int
    threads: int
    access: str
    """How inputs are read: `cached`, `read-ahead` or `direct`."""
    free_disk_bytes: int
    memory: MemoryRecord
    seconds: float | None
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The record as JSON, indented."""
        return "".join(json_pieces(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as JSON. Raises: OSError."""
        save_json(self, path)


def save_json(record: Any, path: str | os.PathLike[str]) -> None:
    """Writes a dataclass as JSON, indented. Raises: OSError."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json_pieces(record))
        file.write("\n")


def json_pieces(record: Any) -> Iterator[str]:
    """A dataclass as indented JSON, piece by piece: the whole of it is never in memory."""
    yield from json.JSONEncoder(indent=2, default=_fields).iterencode(_fields(record))


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def record_of(
    plan: MergePlan, *, measured: int | None = None, seconds: float | None = None
) -> MergeRecord:
    """Describes a plan, or with `measured` and `seconds` a merge that has run."""
    sources = plan.matched.sources
    return MergeRecord(
        schema_version=SCHEMA_VERSION,
        streamavg_version=__version__,
        method=plan.method.name,
        method_summary=plan.method.summary(len(sources)),
        output=str(plan.output),
        output_format=plan.output_format,
        output_has_config=plan.output_has_config,
        reference=str(plan.reference.path),
        selection=plan.selection.rules,
        inputs=tuple(
            InputRecord(
                str(source.path),
                source.format,
                source.producer,
                source.identity.size,
                coefficient,
                score,
            )
            for source, coefficient, score in zip(
                sources, plan.coefficients.values, plan.selection.scores, strict=True
            )
        ),
        variables=_variable_records(plan),
        averaged=plan.count(Action.AVERAGE) + plan.count(Action.POOL),
        carried=plan.count(Action.CARRY),
        dropped=plan.count(Action.DROP),
        bytes_read=plan.bytes_read,
        bytes_measured=plan.bytes_measured,
        bytes_written=plan.bytes_written,
        dropped_bytes=plan.dropped_bytes,
        slab_elements=plan.memory.slab_elements,
        threads=plan.memory.threads,
        access=str(plan.access),
        free_disk_bytes=plan.free_disk_bytes,
        memory=MemoryRecord(
            plan.memory.limit,
            plan.memory.limit_origin,
            plan.memory.reserved,
            plan.memory.projected,
            measured,
        ),
        seconds=seconds,
        notes=plan.notes,
    )


def _variable_records(plan: MergePlan) -> tuple[VariableRecord, ...]:
    paths = [str(source.path) for source in plan.matched.sources]
    return tuple(
        VariableRecord(
            path=planned.variable.path,
            shape=planned.variable.shape,
            dtype=dtype_name(planned.variable.dtype),
            role=str(planned.variable.role),
            action=str(planned.action),
            reason=planned.reason,
            output_dtype=None if planned.dtype is None else dtype_name(planned.dtype),
            carried_from=None if planned.carried_from is None else paths[planned.carried_from],
            factors=None if planned.factors is None else planned.factors.numerators,
        )
        for planned in plan.variables
    )
