"""The main job: average checkpoints straight from their files.

    paths -> select -> open -> match -> plan (-> weigh) -> stream -> commit -> record

Each step is a room of its own below this one; here they are told in order.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from streamavg import memory
from streamavg.formats import create_writer, open_checkpoint
from streamavg.matching import match
from streamavg.methods import method_named
from streamavg.options import MergeOptions, Settings
from streamavg.planning import make_plan
from streamavg.record import MergeRecord, record_of
from streamavg.selection import select, select_reference
from streamavg.streaming import stream
from streamavg.weighing import Weighing, plan_weighing, weigh

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    StrPath = str | os.PathLike[str]


def merge(
    paths: Iterable[StrPath],
    output: StrPath | None = None,
    *,
    on_plan: Callable[[MergeRecord], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[MergeOptions],
) -> MergeRecord:
    """Averages checkpoints and writes the result as one checkpoint.

    Args:
        paths: two or more checkpoint files of one model; `last` and `best` pick among them.
        output: where to write; its suffix picks the format. By default `averaged` with the
            suffix that fits the inputs, in the current folder.
        on_plan: called with the plan before any values are read. What follows from the values (the
            coefficients of the geometric median, say) is in the result alone.
        on_progress: called with the number of bytes read since the last call, `bytes_read` of the
            plan in all.
        **options: see `MergeOptions`.

    Returns:
        What was done: inputs, coefficients, policies, bytes, seconds, memory.

    Raises:
        FormatError: an input cannot be read, or changed while it was.
        IncompatibleCheckpointsError: the inputs do not describe the same model; it holds every
            difference.
        NonFiniteValuesError: an input holds NaN or Inf.
        OptionError: the options do not fit; MemoryLimitError: the limit cannot be kept.
        OutputError: the output exists, is an input, or cannot be written.

        After an error there is no output, and the inputs are as they were.

    Memory: bounded by `memory_limit`, whatever the number and the size of the checkpoints.
    """
    started, peak_before = time.monotonic(), memory.peak_resident_bytes()
    with planned(paths, output, Settings(**options)) as weighing:
        if on_plan is not None:
            on_plan(record_of(weighing.plan))
        plan = weigh(weighing, on_progress)
        with create_writer(
            plan.reference, plan.dtypes, plan.output, force=plan.force, fsync=plan.fsync
        ) as writer:
            stream(plan, writer, on_progress)
            writer.commit()
        seconds = time.monotonic() - started
        measured = memory.measured_since(peak_before)
        return record_of(plan, measured=measured, seconds=seconds)


def plan(
    paths: Iterable[StrPath],
    output: StrPath | None = None,
    *,
    on_plan: Callable[[MergeRecord], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[MergeOptions],
) -> MergeRecord:
    """Says what `merge` would do with the same arguments, and writes nothing.

    Args:
        paths: as for `merge`, like all that follow.
        output: where `merge` would write.
        on_plan: called with the plan before any values are read.
        on_progress: called with the number of bytes read since the last call, `bytes_measured` of
            the plan in all.
        **options: see `MergeOptions`.

    Returns:
        A record whose `seconds` and measured memory are None. Values are read only where the method
        asks for it, `bytes_measured` bytes of them.

    Raises:
        StreamAvgError: as `merge`, for all that can be told before values are averaged.
    """
    with planned(paths, output, Settings(**options)) as weighing:
        if on_plan is not None:
            on_plan(record_of(weighing.plan))
        return record_of(weigh(weighing, on_progress))


@contextmanager
def planned(
    paths: Iterable[StrPath], output: StrPath | None, settings: Settings
) -> Iterator[Weighing]:
    """Opens and matches the checkpoints and plans their merge; closes them at the end."""
    selection = select(paths, settings)
    method = method_named(settings.method, settings.trim)
    with open_checkpoint(select_reference(selection.paths, settings.reference)) as reference:
        checkpoints = (open_checkpoint(path, reference) for path in selection.paths)
        matched = match(
            reference, checkpoints, by=settings.match, preprocessing=settings.preprocessing
        )
        try:
            target = None if output is None else Path(output)
            plan = make_plan(matched, selection, target, method, settings)
            yield plan_weighing(plan, settings)
        finally:
            matched.close()
