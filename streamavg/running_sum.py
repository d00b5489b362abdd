"""The sum of some of the checkpoints, so that another one costs one read and not all of them.

A search for the best average tries many sets of checkpoints, each a little different from the one
before. The sum of the set at hand is kept in float64, all variables behind each other, and a trial
reads the sum and the one checkpoint by which it differs:

    mean with c     (sum + x_c) / (n + 1)
    mean without m  (sum - x_m) / (n - 1)

Exactness. A float64 holds the sum of n values of float32 exactly if they lie within a factor
2**29 / n of each other (streamavg.methods.mean), and bfloat16 and float16 more easily; then a mean
has the bits that `merge` gives it, and what is removed leaves nothing behind. In general each
addition and removal adds an error of at most 2**-53 of the largest sum there was, so the last bit
of a mean may be another than that of `merge`. float64 values are summed in float64. A search needs
no more; what is kept in the end is for `merge` to write.

Memory: a slab of the plan as it is read, as float64, as its sum and as its mean, whatever the size
of the model; 8 bytes a value more where the sum is held in memory.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from streamavg.checkpoint import Kind, Slab, runs_of
from streamavg.errors import OutputError
from streamavg.formats import create_writer
from streamavg.methods.mean import round_into
from streamavg.page_buffer import SlabBuffer
from streamavg.planning import Action

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.checkpoint import CheckpointWriter, Run
    from streamavg.matching import Source
    from streamavg.planning import MergePlan

    Doubles = NDArray[np.float64]

_BYTES = 8
"""Of a float64."""


class RunningSum:
    """The sum of the checkpoints of a plan that were added and not removed. See above.

    A context manager, which gives back memory and disk. Not for several threads.

    Args:
        plan: all checkpoints that may be added, matched, and what happens to each variable; must
            stay open.
        folder: where a temporary file without a name holds the sum; None to hold it in memory.

    Raises:
        OutputError: no file can be made in the folder.
    """

    def __init__(self, plan: MergePlan, folder: Path | None) -> None:
        self._plan = plan
        self._starts: dict[int, int] = {}
        size = 0
        for position in _averaged(plan):
            self._starts[position] = size
            size += plan.variables[position].variable.size
        self._members: set[int] = set()
        self._sums: _Store = _InMemory(size) if folder is None else _OnDisk(folder)
        most = plan.memory.slab_elements
        self._held = np.empty(most, np.float64)
        self._widened = np.empty(most, np.float64)
        self._buffer = SlabBuffer(most * plan.widest_read)
        self.place = "memory" if folder is None else "disk"
        self.bytes_read = 0
        """Of values of checkpoints, since the beginning."""

    @staticmethod
    def bytes_needed(plan: MergePlan) -> int:
        """Bytes of the sum, in memory or on disk."""
        return _BYTES * sum(plan.variables[position].variable.size for position in _averaged(plan))

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the checkpoints in the sum, ascending."""
        return tuple(sorted(self._members))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sums.close()

    def add(self, checkpoint: int) -> None:
        """Adds a checkpoint, by its index in the plan.

        Raises:
            ValueError: it is in the sum.
            FormatError: it cannot be read, or changed since it was opened.
            OutputError: the disk does not take the sum.
        """
        self._require(checkpoint, is_member=False)
        self._move(added=checkpoint, removed=None)

    def remove(self, checkpoint: int) -> None:
        """Removes a checkpoint. Raises: as `add`; ValueError if it is not in the sum."""
        self._require(checkpoint, is_member=True)
        self._move(added=None, removed=checkpoint)

    def write_mean(
        self,
        output: Path,
        *,
        added: int | None = None,
        removed: int | None = None,
        force: bool = True,
        fsync: bool = False,
    ) -> None:
        """Writes the mean of the members, with one more or one less; the sum stays as it is.

        The file has the structure of the plan's reference. What is not averaged is copied from the
        first of the checkpoints that are averaged, as `merge` does.

        Args:
            output: where; its suffix picks the format.
            added: a checkpoint that counts as a member.
            removed: a member that does not.
            force: whether a file that is already there may be replaced, as a trial is.
            fsync: whether to wait until the disk has it.

        Raises:
            ValueError: `added` is a member, `removed` is none, or nothing is left.
            FormatError: a checkpoint cannot be read, or changed since it was opened.
            OutputError: the file cannot be written.
        """
        if added is not None:
            self._require(added, is_member=False)
        if removed is not None:
            self._require(removed, is_member=True)
        members = sorted(self._changed(added, removed))
        if not members:
            raise ValueError("no checkpoint is left to average")
        plan = self._plan
        with create_writer(plan.reference, plan.dtypes, output, force=force, fsync=fsync) as writer:
            for run, sums in self._summed_runs(added, removed):
                dtype = plan.variables[run.position].dtype
                writer.write(run.position, run.start, _mean(sums, len(members), dtype))
            self._carry(plan.matched.sources[members[0]], writer)
            self._require_unchanged(added, removed)
            writer.commit()

    def _require(self, checkpoint: int, *, is_member: bool) -> None:
        if (checkpoint in self._members) != is_member:
            found = "is not" if is_member else "is already"
            raise ValueError(f"checkpoint {checkpoint} {found} in the sum")

    def _changed(self, added: int | None, removed: int | None) -> set[int]:
        changed = set(self._members)
        if added is not None:
            changed.add(added)
        if removed is not None:
            changed.remove(removed)
        return changed

    def _move(self, added: int | None, removed: int | None) -> None:
        for run, sums in self._summed_runs(added, removed):
            self._sums.write(self._starts[run.position] + run.start, sums)
        self._require_unchanged(added, removed)
        self._members = self._changed(added, removed)

    def _summed_runs(self, added: int | None, removed: int | None) -> Iterator[tuple[Run, Doubles]]:
        """Each run of all averaged variables with its sum, which is valid until the next one."""
        for run in _averaged_runs(self._plan):
            sums = self._held[: run.count]
            if self._members:
                self._sums.read(self._starts[run.position] + run.start, sums)
            if added is not None:
                values = self._read(added, run)
                if self._members:
                    sums += values
                else:  # the first one itself: a sum with zero would lose the sign of -0.0
                    sums[...] = values
            if removed is not None:
                sums -= self._read(removed, run)
            yield run, sums

    def _read(self, checkpoint: int, run: Run) -> Doubles:
        values = self._values(self._plan.matched.sources[checkpoint], run)
        self.bytes_read += values.nbytes
        widened = self._widened[: run.count]
        np.copyto(widened, values, casting="unsafe")  # exact: no float here is wider
        return widened

    def _values(self, source: Source, run: Run) -> NDArray[Any]:
        """The values of a run as they are stored, valid until the next ones are read."""
        variable = self._plan.variables[run.position].variable
        if variable.kind == Kind.STRING:  # which lie in a heap, and not at an offset
            strings = np.empty(run.count, variable.dtype)
            source.values.read_into(run.position, run.start, strings)
            return strings
        return source.values.read_slab(Slab((run,), run.count), variable.dtype, self._buffer)

    def _carry(self, source: Source, writer: CheckpointWriter) -> None:
        """Copies what is not averaged."""
        plan = self._plan
        for position, planned in enumerate(plan.variables):
            if planned.action != Action.CARRY:
                continue
            if planned.variable.kind == Kind.STRING and source.path == plan.reference.path:
                continue  # the output's skeleton has them
            for run in runs_of(position, planned.variable.size, plan.memory.slab_elements):
                writer.write(position, run.start, self._values(source, run))

    def _require_unchanged(self, *checkpoints: int | None) -> None:
        for checkpoint in checkpoints:
            if checkpoint is not None:
                source = self._plan.matched.sources[checkpoint]
                source.identity.require_unchanged(source.path)


def _averaged(plan: MergePlan) -> list[int]:
    return [p for p, planned in enumerate(plan.variables) if planned.action == Action.AVERAGE]


def _averaged_runs(plan: MergePlan) -> Iterator[Run]:
    """In the order in which the reference stores the values."""
    for position in plan.reference.values.in_storage_order(_averaged(plan)):
        yield from runs_of(
            position, plan.variables[position].variable.size, plan.memory.slab_elements
        )


def _mean(sums: Doubles, count: int, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """The sums divided by a count, in place, and rounded to `dtype`."""
    np.divide(sums, count, out=sums)
    result = np.empty(sums.size, dtype)
    round_into(sums, result)
    return result


class _Store(Protocol):
    """Float64 values by their number."""

    def read(self, start: int, out: Doubles) -> None:
        """Fills `out` with values that were written before."""
        ...

    def write(self, start: int, values: Doubles) -> None:
        """Keeps a copy of the values."""
        ...

    def close(self) -> None:
        """Gives back what the values took."""
        ...


class _InMemory:
    def __init__(self, size: int) -> None:
        self._values = np.empty(size, np.float64)

    def read(self, start: int, out: Doubles) -> None:
        out[...] = self._values[start : start + out.size]

    def write(self, start: int, values: Doubles) -> None:
        self._values[start : start + values.size] = values

    def close(self) -> None:
        self._values = np.empty(0, np.float64)


class _OnDisk:
    """In a file that has no name: whatever ends the program, nothing is left of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise self._refusal(error) from error

    def read(self, start: int, out: Doubles) -> None:
        try:
            self._file.seek(start * _BYTES)
            count = self._file.readinto(out.data.cast("B"))
        except OSError as error:
            raise self._refusal(error) from error
        assert count == out.nbytes, "only what was written is read"

    def write(self, start: int, values: Doubles) -> None:
        try:
            self._file.seek(start * _BYTES)
            self._file.write(values.data.cast("B"))
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        self._file.close()

    def _refusal(self, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(
            self._folder,
            f"the running sum cannot be kept there: {reason}. Free some space, write elsewhere "
            "with --output, or let the sum be held in memory with a larger --memory-limit.",
        )
