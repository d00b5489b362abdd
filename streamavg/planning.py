"""What a merge will do, decided and checked before a byte is averaged.

The plan names every variable with what happens to it and why, and computes the memory. Four
quantities, all in bytes, all of the whole process:

    allowed    the user's limit
    reserved   resident when the plan is made: the interpreter, its libraries, the descriptions
    projected  the peak that the plan computes
    measured   the peak that the run saw

    projected = reserved + headers + what the library holds to decode chunks
                + threads * (slab_elements * (read buffer + accumulator + result, per element)
                             + a stretch of small variables + what a thread takes)

A plan that cannot keep the limit, or whose output cannot be written, is refused here.
"""

from __future__ import annotations

import enum
import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg import memory
from streamavg.access import Access, choose_access
from streamavg.architecture import parse_config, quantized_layers
from streamavg.checkpoint import Kind, Role, Variable
from streamavg.dtypes import dtype_named
from streamavg.errors import (
    IncompatibleCheckpointsError,
    MemoryLimitError,
    OptionError,
    OutputError,
    UnsupportedFeatureError,
)
from streamavg.formats import MOST_DECODING, default_output, output_format
from streamavg.formats.output import refuse_taken
from streamavg.matching import MatchedCheckpoints, differing
from streamavg.methods.pooled import PooledVariance
from streamavg.moving_statistics import (
    BatchNormalizations,
    MovingStatistics,
    find_batch_normalizations,
)
from streamavg.page_buffer import STRETCH_BYTES
from streamavg.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamavg.checkpoint import Checkpoint
    from streamavg.coefficients import Coefficients, Factors, Weighting
    from streamavg.formats import Format
    from streamavg.matching import Source
    from streamavg.methods import Combining, Method
    from streamavg.options import Settings
    from streamavg.selection import Selection

DEFAULT_MEMORY_LIMIT = 256 * 1024**2
GROUP_SHARE = 0.75
"""Of what a control group allows; the rest is for the page cache, which counts towards it."""
SMALLEST_HEADROOM = 64 * 1024**2
"""What the default limit leaves to the merge in a process that is large already."""
MOST_SLAB_ELEMENTS = 262144
"""A megabyte of float32 in a read. Smaller slabs spend more of the time between calls, where the
threads wait for each other; larger ones no longer stay in a processor's caches."""
WIDE_BYTES = 64
"""Slabs of elements that take more, as in float64 or for a median, have half as many: they are as
fast, and a thread takes less memory."""
MOST_DIRECT_ELEMENTS = 2 * MOST_SLAB_ELEMENTS
"""Reads past the page cache are not joined by the system: they must be long themselves."""
LEAST_SLAB_ELEMENTS = 4096
MOST_GROUPED_ELEMENTS = 16384
"""Variables of up to this size share slabs: each read and each sum then is worth its call."""
HEADER_BYTES = 3 * 1024**2 // 2
HEADER_BYTES_PER_VARIABLE = 1024
"""Measured: what the library and the allocator take for a skeleton, and the record for itself."""
MOST_THREADS = 4
"""By default: beyond it, the memory of most machines is the limit."""
LEAST_ELEMENTS_PER_THREAD = 2 * MOST_SLAB_ELEMENTS
"""Below it a thread takes longer to start than it saves."""
THREAD_BYTES = 512 * 1024 + STRETCH_BYTES
"""What a further thread takes: its stack, its share of the allocator, and a stretch."""
POOLED = PooledVariance()
_SAMPLED_ELEMENTS = 256
_SHOWN_NAMES = 3


class Action(enum.StrEnum):
    """What happens to a variable."""

    AVERAGE = "average"
    POOL = "pooled"
    """The pooled variance of BatchNormalization layers, see `streamavg.methods.pooled`."""
    CARRY = "carry"
    """Copied bit for bit from one checkpoint."""
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class PlannedVariable:
    """One of the reference's variables and what happens to it."""

    variable: Variable
    action: Action
    reason: str
    """Why, in a few words."""
    dtype: np.dtype[Any] | None
    """Of the values written; None if it is dropped."""
    carried_from: int | None = None
    """Index of the checkpoint that it is copied from, in merge order."""
    factors: Factors | None = None
    """What the values of each checkpoint are multiplied with; None for the plan's coefficients."""
    partner: int | None = None
    """Of a pooled variance: position of the moving mean that it belongs to."""

    @property
    def output_bytes(self) -> int:
        """Bytes of its values in the output."""
        return 0 if self.dtype is None else self.variable.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The quantities described above, in bytes."""

    limit: int
    limit_origin: str
    reserved: int
    projected: int
    slab_elements: int
    threads: int

    @property
    def grouped_elements(self) -> int:
        """Variables of up to so many elements share slabs, which have at most so many."""
        return min(self.slab_elements, MOST_GROUPED_ELEMENTS)


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """A merge that can be run."""

    output: Path
    output_format: str
    force: bool
    fsync: bool
    access: Access
    method: Method
    matched: MatchedCheckpoints
    selection: Selection
    accumulation_order: tuple[int, ...]
    """Indices of the checkpoints in the order in which they are summed: see `summing_order`."""
    variables: tuple[PlannedVariable, ...]
    """Lines up with the reference's variables."""
    memory: MemoryPlan
    allow_non_finite: bool
    free_disk_bytes: int
    notes: tuple[str, ...]
    bytes_measured: int = 0
    """Bytes of values that the method reads before it can combine any, of all checkpoints."""

    @property
    def coefficients(self) -> Coefficients:
        """One per checkpoint, in merge order."""
        return self.selection.coefficients

    def weighting(self, planned: PlannedVariable) -> Weighting:
        """What the values of each checkpoint are multiplied with for a variable."""
        return self.coefficients if planned.factors is None else planned.factors

    def combining(self, planned: PlannedVariable) -> Combining:
        """What combines the values of a variable."""
        return POOLED if planned.action == Action.POOL else self.method

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint whose structure the output takes."""
        return self.matched.reference

    @property
    def output_has_config(self) -> bool:
        """Whether the output is a whole model, not the weights alone."""
        return self.reference.config is not None and self.output_format == self.reference.format

    @property
    def dtypes(self) -> list[np.dtype[Any] | None]:
        """Dtype of each variable in the output; None for those that are dropped."""
        return [planned.dtype for planned in self.variables]

    @property
    def widest_read(self) -> int:
        """Bytes of the largest number that is read."""
        kept = (p.variable.dtype.itemsize for p in self.variables if p.action != Action.DROP)
        return max(kept, default=1)

    @property
    def widest_written(self) -> int:
        """Bytes of the largest number that is written."""
        return max((dtype.itemsize for dtype in self.dtypes if dtype is not None), default=1)

    @property
    def bytes_read(self) -> int:
        """Bytes of values that will be read, those that are measured before included."""
        count = len(self.matched.sources)
        times = {Action.AVERAGE: count, Action.POOL: 2 * count, Action.CARRY: 1, Action.DROP: 0}
        combined = (p.variable.nbytes * times[p.action] for p in self.variables)
        return self.bytes_measured + sum(combined)

    @property
    def bytes_written(self) -> int:
        """Bytes of values that will be written."""
        return sum(planned.output_bytes for planned in self.variables)

    @property
    def dropped_bytes(self) -> int:
        """Bytes of values that are left out: the optimizer's, for the most part."""
        return sum(
            planned.variable.nbytes for planned in self.variables if planned.action == Action.DROP
        )

    def count(self, action: Action) -> int:
        """Number of variables with this action."""
        return sum(planned.action == action for planned in self.variables)


def make_plan(
    matched: MatchedCheckpoints,
    selection: Selection,
    output: Path | None,
    method: Method,
    settings: Settings,
) -> MergePlan:
    """Decides what the merge does with every variable, and that it can be done.

    Args:
        matched: the checkpoints.
        selection: where they and their coefficients come from.
        output: where to write; None for `averaged` with the suffix that fits, here.
        method: how values are combined.
        settings: the user's choices.

    Raises:
        OptionError: the output's suffix does not fit, or the memory limit is too small.
        OutputError: the output exists, is an input, or does not fit on the disk.
        UnsupportedFeatureError: quantized or unmerged low-rank layers.
        IncompatibleCheckpointsError: non-float variables that must be equal and are not.
    """
    reference = matched.reference
    output = default_output(reference) if output is None else output
    keeps_optimizer = settings.optimizer == "reference"
    written_as = output_format(reference, output, keeps_optimizer=keeps_optimizer)
    _refuse_output(output, matched.sources, settings.force)
    refuse_meaningless(reference)
    _refuse_unreadable_bfloat16(written_as, settings)
    policy = _Policy(matched, settings)
    variables = tuple(map(policy.decide, range(len(reference.variables))))
    notes = [
        *selection.notes,
        *matched.notes,
        *reference.notes,
        *_losses(reference, variables, written_as),
        *_compare_non_float(matched, settings),
        *policy.notes,
    ]
    access = _choose_access(matched, settings)
    plan = MergePlan(
        output=output,
        output_format=written_as.name,
        force=settings.force,
        fsync=settings.fsync,
        access=access,
        method=method,
        matched=matched,
        selection=selection,
        accumulation_order=summing_order(matched, selection.coefficients, variables),
        variables=variables,
        memory=_plan_memory(variables, matched, method, access, settings),
        allow_non_finite=settings.allow_non_finite,
        free_disk_bytes=shutil.disk_usage(output.parent).free,
        notes=tuple(notes),
    )
    if plan.bytes_written > plan.free_disk_bytes:
        raise OutputError(
            output,
            f"needs {format_size(plan.bytes_written)}, but its disk has only "
            f"{format_size(plan.free_disk_bytes)} free. Write elsewhere with --output.",
        )
    return plan


def _refuse_output(output: Path, sources: Sequence[Source], force: bool) -> None:
    if not output.parent.is_dir():
        raise OutputError(output, f"the folder {output.parent} does not exist. Create it first.")
    for source in sources:
        if output.exists() and output.samefile(source.path):
            raise OutputError(
                output, "is one of the inputs, which are never written. Name another."
            )
    refuse_taken(output, force=force)


def refuse_meaningless(reference: Checkpoint) -> None:
    """Raises UnsupportedFeatureError: quantized codes and low-rank factors have no mean."""
    by_role: dict[Role, dict[str, None]] = {}
    for variable in reference.variables:
        by_role.setdefault(variable.role, {})[variable.layer] = None
    quantized = list(by_role.get(Role.QUANTIZED, ()))
    if not quantized and reference.config is not None:
        quantized = quantized_layers(parse_config(reference.config, reference.path))
    if quantized:
        raise UnsupportedFeatureError(
            reference.path,
            f"layers {_some(quantized)} are quantized: the mean of codes or scales is not the mean "
            "of weights. Average the checkpoints from before quantization, then quantize.",
        )
    adapters = list(by_role.get(Role.ADAPTER, ()))
    if adapters:
        raise UnsupportedFeatureError(
            reference.path,
            f"layers {_some(adapters)} hold LoRA factors: the mean of factors is not the mean of "
            "their products. Save the models as .keras, which merges them.",
        )


def _refuse_unreadable_bfloat16(written_as: Format, settings: Settings) -> None:
    if settings.dtype == "bfloat16" and not written_as.reads_bfloat16:
        raise OptionError(
            f"--dtype bfloat16: Keras cannot load bfloat16 from a {written_as.title}. "
            "Use -o with *.weights.h5 or *.keras, or another --dtype."
        )


def _losses(
    reference: Checkpoint, variables: Sequence[PlannedVariable], written_as: Format
) -> list[str]:
    """What the output cannot hold or Keras cannot read of it, though nothing is wrong."""
    notes = []
    if reference.assets and written_as.name != reference.format:
        notes.append(
            f"{reference.path}: its assets ({_some(list(reference.assets))}) are not part of a "
            f"{written_as.title}; the rebuilt model must bring them along."
        )
    is_bfloat16 = any(p.dtype is not None and p.dtype.kind == "V" for p in variables)
    if is_bfloat16 and not written_as.reads_bfloat16:
        notes.append(
            f"Keras cannot load bfloat16 from a {written_as.title}; -o with *.weights.h5 can."
        )
    return notes


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES]))
    return f"{shown} and {more} more" if more > 0 else shown


def is_averaged(variable: Variable) -> bool:
    """Whether a merge averages this variable, whatever its options."""
    return variable.role == Role.WEIGHT and variable.kind == Kind.FLOAT


def is_combined(planned: PlannedVariable) -> bool:
    """Whether the values of all checkpoints go into what is written."""
    return planned.action in {Action.AVERAGE, Action.POOL}


class _Policy:
    """Decides what happens to a variable."""

    def __init__(self, matched: MatchedCheckpoints, settings: Settings) -> None:
        paths = [source.path for source in matched.sources]
        self._reference = paths.index(matched.reference.path)
        self._last = len(paths) - 1
        self._dtype = None if settings.dtype == "keep" else dtype_named(settings.dtype)
        self._settings = settings
        self._variables = matched.reference.variables
        found = _batch_normalizations(matched.reference, settings)
        self._moving = {
            p: layer for layer in found.statistics for p in (layer.mean, layer.variance)
        }
        self.notes = _unknown_layers(found, settings)

    def decide(self, position: int) -> PlannedVariable:
        variable = self._variables[position]
        if variable.role == Role.OPTIMIZER and self._settings.optimizer == "drop":
            return PlannedVariable(variable, Action.DROP, "optimizer state", None)
        special = {
            Role.OPTIMIZER: "optimizer state",
            Role.METRIC: "running total of a metric",
            Role.SEED: "state of a random generator",
            Role.PREPROCESSING: "preprocessing state",
        }
        if variable.role in special:
            return self._carry(variable, special[variable.role], self._reference)
        if variable.kind != Kind.FLOAT:
            source = self._last if self._settings.non_float == "last" else self._reference
            return self._carry(variable, f"{variable.kind} values", source)
        if position in self._moving:
            return self._decide_moving(position, self._moving[position])
        return PlannedVariable(
            variable, Action.AVERAGE, "float values", self._dtype or variable.dtype
        )

    def _decide_moving(self, position: int, layer: MovingStatistics) -> PlannedVariable:
        variable = self._variables[position]
        if self._settings.batchnorm == "reference":
            return self._carry(variable, "moving statistics", self._reference)
        dtype = self._dtype or variable.dtype
        if position == layer.mean:
            return PlannedVariable(variable, Action.AVERAGE, "moving mean", dtype)
        return PlannedVariable(variable, Action.POOL, "moving variance", dtype, partner=layer.mean)

    def _carry(self, variable: Variable, reason: str, source: int) -> PlannedVariable:
        return PlannedVariable(variable, Action.CARRY, reason, variable.dtype, source)


def _batch_normalizations(reference: Checkpoint, settings: Settings) -> BatchNormalizations:
    """Those that need a policy of their own. Raises: OptionError, if there are none to be told."""
    if settings.batchnorm == "mean":
        return BatchNormalizations(())
    found = find_batch_normalizations(reference)
    if found.statistics:
        return found
    what = "has no BatchNormalization layer"
    if found.unknown:
        what = (
            f"does not tell which variables are moving statistics of BatchNormalizations; "
            f"{_some(found.unknown)} may be some"
        )
    raise OptionError(
        f"--batchnorm {settings.batchnorm}: {reference.path}: {what}. Use --batchnorm mean, which "
        "averages all statistics."
    )


def _unknown_layers(found: BatchNormalizations, settings: Settings) -> list[str]:
    if not found.unknown:
        return []
    return [
        f"--batchnorm {settings.batchnorm}: {_some(found.unknown)} may be BatchNormalizations "
        "too, but the file does not tell their moving statistics: their values are averaged."
    ]


def _compare_non_float(matched: MatchedCheckpoints, settings: Settings) -> list[str]:
    """Tells which non-float variables are not the same in all checkpoints, or refuses them."""
    found = list(non_float_differences(matched, settings))
    if found and settings.non_float == "equal":
        raise IncompatibleCheckpointsError([text for _, text in found])
    return [text for _, text in found]


def non_float_differences(
    matched: MatchedCheckpoints, settings: Settings
) -> Iterator[tuple[Path, str]]:
    """Checkpoints whose non-float variables are not those of the reference, and what that means.

    It forbids a merge where they must be equal (`settings.non_float`).
    """
    kept = "last checkpoint's" if settings.non_float == "last" else "reference's"
    means = f"; the {kept} are kept."
    if settings.non_float == "equal":
        means = ". Take one's with --non-float reference or last."
    positions = [
        position
        for position, variable in enumerate(matched.reference.variables)
        if variable.role == Role.WEIGHT and variable.kind != Kind.FLOAT
    ]
    reference = matched.reference
    for source in matched.sources:
        if source.path == reference.path:
            continue
        different = differing(reference.variables, reference.values, source.values, positions)
        names = [reference.variables[position].path for position in different]
        if names:
            yield (
                source.path,
                f"{source.path}: variables {_some(names)} hold other integers, bools or strings "
                f"than {reference.path}{means}",
            )


def _plan_memory(
    variables: Sequence[PlannedVariable],
    matched: MatchedCheckpoints,
    method: Method,
    access: Access,
    settings: Settings,
) -> MemoryPlan:
    reserved = memory.resident_bytes()
    limit, origin = limit_for(settings.memory_limit, reserved)
    held = sorted((source.values.library_bytes for source in matched.sources), reverse=True)
    headers = HEADER_BYTES + HEADER_BYTES_PER_VARIABLE * len(variables)
    fixed = reserved + headers + sum(held[:MOST_DECODING]) + STRETCH_BYTES
    count = len(matched.sources)
    per_element = max((_bytes_per_element(p, method, count) for p in variables), default=0)
    longest = max((planned.variable.size for planned in variables), default=1)
    wanted = max(1, min(_most_elements(access, per_element), longest))
    least = min(wanted, LEAST_SLAB_ELEMENTS)
    elements = sum(p.variable.size for p in variables if p.action != Action.DROP)
    threads = threads_for(elements, settings.threads)
    available = limit - fixed - least * per_element
    if settings.threads is None:  # fewer threads rather than no merge
        affordable = 1 + max(0, available) // (least * per_element + THREAD_BYTES)
        threads = min(threads, affordable)
    fixed += (threads - 1) * THREAD_BYTES
    needed = fixed + threads * least * per_element
    if needed > limit:
        remedy = f"Use --memory-limit {-(-needed // 1024**2) + 1}MiB."
        if threads > 1:
            remedy += " Fewer --threads need less."
        raise MemoryLimitError(
            f"the merge needs at least {format_size(needed)}: {format_size(reserved)} reserved "
            f"(interpreter, libraries, descriptions) and {format_size(needed - reserved)} for "
            f"values and headers, but --memory-limit is {format_size(limit)}. {remedy}",
            limit_bytes=limit,
            reserved_bytes=reserved,
            projected_bytes=needed,
        )
    slab_elements = wanted
    if per_element:
        slab_elements = min(wanted, (limit - fixed) // (threads * per_element))
    projected = fixed + threads * slab_elements * per_element
    return MemoryPlan(limit, origin, reserved, projected, slab_elements, threads)


def _most_elements(access: Access, per_element: int) -> int:
    """The elements of the largest slab that is worth its memory."""
    if access == Access.DIRECT:
        return MOST_DIRECT_ELEMENTS
    return MOST_SLAB_ELEMENTS // 2 if per_element > WIDE_BYTES else MOST_SLAB_ELEMENTS


def _choose_access(matched: MatchedCheckpoints, settings: Settings) -> Access:
    group_limit = memory.group_limit_bytes()
    sources = matched.sources
    cache_bytes = None
    if group_limit is not None:
        cache_bytes = group_limit - limit_for(settings.memory_limit, memory.resident_bytes())[0]
    return choose_access(
        settings.io,
        (is_cached for source in sources for is_cached in source.values.cached_probes()),
        len(sources),
        cache_bytes,
    )


def limit_for(memory_limit: int | str | None, reserved: int) -> tuple[int, str]:
    """The limit in bytes, as given or by default, and where it comes from."""
    limit = _parse_limit(memory_limit)
    if memory_limit is not None:
        return limit, "as given"
    group_limit = memory.group_limit_bytes()
    if group_limit is not None and group_limit * GROUP_SHARE < limit:
        text = f"default, lowered because a control group allows {format_size(group_limit)}"
        return int(group_limit * GROUP_SHARE), text
    if limit >= reserved + SMALLEST_HEADROOM:
        return limit, "default"
    origin = f"default, raised because this process already takes {format_size(reserved)}"
    return reserved + SMALLEST_HEADROOM, origin


def threads_for(elements: int, asked: int | None) -> int:
    """As many as were asked for, or as the machine has processors and `elements` are worth."""
    if asked is not None:
        if asked < 1:
            raise OptionError(f"--threads: {asked} is not a number of threads. Use 1 or more.")
        return asked
    worthwhile = max(1, elements // LEAST_ELEMENTS_PER_THREAD)
    return min(MOST_THREADS, os.cpu_count() or 1, worthwhile)


def _parse_limit(memory_limit: int | str | None) -> int:
    if memory_limit is None:
        return DEFAULT_MEMORY_LIMIT
    try:
        return parse_size(memory_limit)
    except OptionError as error:
        raise OptionError(f"--memory-limit: {error}") from None


def _bytes_per_element(planned: PlannedVariable, method: Method, count: int) -> int:
    """Read buffer, accumulator and result of one element, and a test of the result."""
    if planned.action == Action.DROP or planned.dtype is None:
        return 0
    read = planned.variable.dtype.itemsize
    if planned.action == Action.CARRY:
        return read
    combining = POOLED if planned.action == Action.POOL else method
    held = combining.bytes_per_element(planned.variable.dtype, planned.dtype, count)
    return read + held + planned.dtype.itemsize + 1


def summing_order(
    matched: MatchedCheckpoints,
    coefficients: Coefficients,
    variables: Sequence[PlannedVariable],
) -> tuple[int, ...]:
    """An order of the checkpoints that depends on their content alone.

    A floating-point sum may depend in its last bits on the order of its terms. Summing in an
    order that follows from the values themselves makes the result the same, bit for bit, in
    whatever order, under whatever names and in whatever container the checkpoints are given.

    The sample is the beginning of the largest variables; where checkpoints agree in that (a
    frozen embedding, say), the beginning of all variables.

    Returns:
        Indices of the checkpoints, by a digest of the sample, then by coefficient.
    """
    sizes = [p.variable.size if is_combined(p) else 0 for p in variables]
    averaged = [position for position, size in enumerate(sizes) if size]
    most = max(sizes, default=0)
    largest = [position for position in averaged if sizes[position] == most]
    keys = [(_sample_digest(source, matched.reference, largest),) for source in matched.sources]
    twins = {key for key, count in Counter(keys).items() if count > 1}
    full_keys = [
        (*key, _sample_digest(source, matched.reference, averaged) if key in twins else 0)
        for key, source in zip(keys, matched.sources, strict=True)
    ]
    return tuple(
        sorted(
            range(len(full_keys)),
            key=lambda index: (
                full_keys[index],
                coefficients.numerators[index],
                str(matched.sources[index].path),
            ),
        )
    )


def _sample_digest(source: Source, reference: Checkpoint, positions: Sequence[int]) -> int:
    """A number from the first elements of some variables, whatever the variables' order."""
    digests = 0
    for position in positions:
        variable = reference.variables[position]
        sample = np.empty(min(variable.size, _SAMPLED_ELEMENTS), variable.dtype)
        source.values.read_into(position, 0, sample)
        digest = hashlib.blake2b(sample.tobytes(), digest_size=16)
        digests += int.from_bytes(digest.digest(), "little")
    return digests
