"""May these checkpoints be averaged? Everything that a merge refuses, and what it only warns of.

    paths -> open each -> match each -> values: finite? -> a sample of them: how far apart? -> Check

Nothing is decided here that a merge decides: files are opened, matched and refused by the same
rooms. What differs is that a checkpoint with a flaw is a finding, and the others are looked at all
the same.

What is read: the headers of each file; all values that a merge averages, since one NaN in them is a
refusal, and with them the checksum of each `.keras` archive, or a sample only if that is asked for;
a sample for distances; and of checkpoints that are equal in the sample, all values until one
differs.

Memory, beside what a pass over the values takes (`streamavg.measuring`): some hundred bytes a
finding, of which each checkpoint has a few hundred at most, and a few numbers for each pair of
checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

from streamavg import memory
from streamavg.checkpoint import FileIdentity, Role
from streamavg.errors import (
    BeingWrittenError,
    ChangedFileError,
    FormatError,
    NonFiniteValuesError,
    OptionError,
    UnsupportedFeatureError,
)
from streamavg.findings import (
    SCHEMA_VERSION,
    Check,
    CheckedCheckpoint,
    Finding,
    FindingKind,
    ReadValues,
    Thresholds,
)
from streamavg.formats import open_checkpoint
from streamavg.judging import DISTANT, NEAR_DUPLICATES, groups_of_zeros, judge, some
from streamavg.matching import MatchedCheckpoints, Matcher, Source, differing
from streamavg.measuring import Allowance, MeasuringPlan, averaged_by_layer, plan_measuring
from streamavg.options import (
    MatchBy,
    NonFloatPolicy,
    OptimizerPolicy,
    PreprocessingPolicy,
    Settings,
)
from streamavg.pairing import About
from streamavg.planning import limit_for, non_float_differences, refuse_meaningless
from streamavg.record import MemoryRecord
from streamavg.sampling import SampledDistances, measure_sample, sample_bytes, sample_runs
from streamavg.scanning import scan
from streamavg.selection import distinct_files, same_file, select_reference
from streamavg.units import format_size
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from streamavg.checkpoint import Checkpoint
    from streamavg.pairing import Findings, Remark

    StrPath = str | os.PathLike[str]

MOST_REMARKS = 200
"""Differences of one checkpoint that are told one by one; another model has thousands, and memory
is bounded."""
RECENT_SECONDS = 5.0
"""A file that was modified within so many seconds may not be complete."""
_NUMBERS_PER_PAIR = 16
"""Matrices that are held at once."""
_BYTES_PER_CHECKPOINT = 4096
"""What is said of one that matches the reference."""
_DECODING_BYTES = 3 * 1024**2
"""What the allocator keeps of chunks that one pass decoded while the next decodes its own: up to
2.5 MB, in one run of seven."""
_KIND_OF = {
    About.STRUCTURE: FindingKind.STRUCTURE,
    About.CONFIGURATION: FindingKind.CONFIGURATION,
    About.PREPROCESSING: FindingKind.PREPROCESSING,
}


class CheckOptions(TypedDict, total=False):
    """Options of `check`; all may be left out. They are those of a merge."""

    preprocessing: PreprocessingPolicy
    """Normalization state and vocabularies must be "equal" (default), or may differ: "reference".
    Then a difference is a warning."""
    match: MatchBy
    """Pair the layers of legacy files by "name" (default) or by "order"."""
    non_float: NonFloatPolicy
    """Integers, bools and strings are the "reference"'s (default) or the "last" checkpoint's, where
    a difference is a warning, or must be "equal"."""
    reference: str | os.PathLike[str] | None
    """The input that the others are compared with; the first by default."""
    allow_non_finite: bool
    """NaN and Inf are a warning, not a refusal."""
    memory_limit: int | str | None
    """Peak resident memory of this process, as for a merge."""
    threads: int | None
    """That read values; by default as many as there are processors, up to four."""


def check(
    paths: Iterable[StrPath],
    *,
    sample: bool = False,
    optimizer: OptimizerPolicy | None = None,
    on_plan: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[CheckOptions],
) -> Check:
    """Tells whether checkpoints may be averaged, and what a merge would refuse.

    Args:
        paths: checkpoint files, as a merge would take them.
        sample: look for NaN and Inf in a sample of the values only, and leave checksums out: much
            faster for large files, and what it finds is not all there may be.
        optimizer: what a merge will do with the optimizer's variables; without it, that there are
            such is a warning.
        on_plan: called with the number of bytes of values that will be read, or a little less.
        on_progress: called with the number of bytes read since the last call.
        **options: see `CheckOptions`.

    Returns:
        Refusals and warnings. A file that cannot be read is a refusal, not an error.

    Raises:
        OptionError: the options do not fit; MemoryLimitError: the limit cannot be kept.

    Memory: bounded by `memory_limit`, whatever the number and the size of the checkpoints.
    """
    started, peak_before = time.monotonic(), memory.peak_resident_bytes()
    settings = Settings(**options)
    with ExitStack() as files:
        checking = _Checking(settings, optimizer, sample=sample)
        checking.gather(paths, files)
        checking.look_at_values(on_plan, on_progress)
        checking.look_at_files_again()
    found = checking.result()
    measured = memory.measured_since(peak_before)
    return dataclasses.replace(
        found,
        memory=dataclasses.replace(found.memory, measured=measured),
        seconds=time.monotonic() - started,
    )


@dataclass(slots=True)
class _Facts:
    """What is known of one file."""

    path: Path
    identity: FileIdentity | None = None
    format: str | None = None
    producer: str | None = None
    optimizer_bytes: int | None = None
    distance: float | None = None


@dataclass
class _Checking:
    """One check: what was found so far."""

    settings: Settings
    optimizer: OptimizerPolicy | None
    sample: bool
    facts: dict[Path, _Facts] = field(default_factory=dict)
    refusals: dict[Finding, None] = field(default_factory=dict)
    warnings: dict[Finding, None] = field(default_factory=dict)
    reference: Checkpoint | None = None
    sources: list[Source] = field(default_factory=list)
    """Checkpoints that match the reference."""
    values: ReadValues = field(default_factory=lambda: ReadValues("none", 0, 0, 0, 0))
    memory: MemoryRecord | None = None

    # --- findings ---------------------------------------------------------------------------------

    def refuse(
        self,
        kind: FindingKind,
        paths: Iterable[Path | str],
        text: str,
        variable: str | None = None,
    ) -> None:
        """Adds a refusal, unless it is there already."""
        self.refusals[Finding(kind, tuple(map(str, paths)), variable, text)] = None

    def warn(
        self,
        kind: FindingKind,
        paths: Iterable[Path | str],
        text: str,
        variable: str | None = None,
    ) -> None:
        """Adds a warning, unless it is there already."""
        self.warnings[Finding(kind, tuple(map(str, paths)), variable, text)] = None

    def refuse_error(self, error: FormatError) -> None:
        """Adds a refusal of the file that an error is about."""
        is_moving = isinstance(error, (BeingWrittenError, ChangedFileError))
        kind = FindingKind.BEING_WRITTEN if is_moving else FindingKind.UNREADABLE
        self.refuse(kind, [error.path], str(error))

    # --- headers ----------------------------------------------------------------------------------

    def gather(self, paths: Iterable[StrPath], files: ExitStack) -> None:
        """Opens all files, matches them with the reference, and keeps those that belong to it.

        Args:
            paths: as they were given.
            files: closes what stays open.
        """
        given, again = distinct_files(paths)
        for path, first in again:
            self.refuse(
                FindingKind.SAME_FILE,
                dict.fromkeys([first, path]),
                same_file(path, first),
            )
        if not given:
            raise OptionError("no checkpoint is given. Name two files or more.")
        if len(given) + len(again) < 2:
            self.refuse(
                FindingKind.TOO_FEW,
                given,
                f"{given[0]}: is the only checkpoint given, and a merge needs at least two. Name "
                "more files, or check that the pattern matches them.",
            )
        self.facts = {path: _Facts(path) for path in given}
        for facts in self.facts.values():
            facts.identity = _identity_of(facts.path)
            self._warn_if_recent(facts)
        self._open_reference(given, files)
        if self.reference is not None:
            self._match_all(self.reference, given, files)
        self._warn_of_versions()
        self._warn_of_optimizers()

    def _warn_if_recent(self, facts: _Facts) -> None:
        if facts.identity is None:
            return
        age = time.time() - facts.identity.modified_ns / 1e9
        if abs(age) < RECENT_SECONDS:
            self.warn(
                FindingKind.BEING_WRITTEN,
                [facts.path],
                f"{facts.path}: was modified {max(0, age):.0f} s ago, and may still be written. "
                "Check again in a few seconds.",
            )

    def _open_reference(self, given: Sequence[Path], files: ExitStack) -> None:
        """Opens the reference; if it cannot be read, the first file that can takes its place."""
        wanted = select_reference(given, self.settings.reference)
        for path in [wanted, *(path for path in given if path != wanted)]:
            try:
                self.reference = files.enter_context(open_checkpoint(path))
            except FormatError as error:
                self.refuse_error(error)
                continue
            break

    def _match_all(self, reference: Checkpoint, given: Sequence[Path], files: ExitStack) -> None:
        matcher = Matcher(
            reference, by=self.settings.match, preprocessing=self.settings.preprocessing
        )
        readable = 0
        for path in given:
            try:
                source, findings = self._matched(path, reference, matcher)
            except FormatError as error:
                self.refuse_error(error)
                continue
            readable += 1
            self._add_remarks(path, findings.differences, findings.notes)
            if findings.differences:  # nothing is kept of it: its description may be a large one
                source.values.close()
            else:
                files.callback(source.values.close)
                self.sources.append(source)
        for text in reference.notes:
            self.warn(FindingKind.NOT_COMPARED, [reference.path], text)
        for text in matcher.closing_notes():
            self.warn(FindingKind.NOT_COMPARED, (), text)
        if readable > 2 and len(self.sources) == 1:
            self.warn(
                FindingKind.ODD_REFERENCE,
                [reference.path],
                f"{reference.path}: is what the others are compared with, and differs from each of "
                "them: it may be the one that does not belong. Leave it out, or compare with "
                "another --reference.",
            )
        self._refuse_meaningless(reference)

    def _matched(
        self, path: Path, reference: Checkpoint, matcher: Matcher
    ) -> tuple[Source, Findings]:
        """Opens one file and compares it with the reference. Raises: FormatError."""
        checkpoint = open_checkpoint(path, reference)
        try:
            self._note_facts(checkpoint)
            return matcher.add(checkpoint)
        except FormatError:
            checkpoint.values.close()
            raise

    def _add_remarks(
        self, path: Path, differences: Sequence[Remark], notes: Sequence[Remark]
    ) -> None:
        for remark in differences[:MOST_REMARKS]:
            self.refuse(_KIND_OF[remark.about], [path], remark.text, remark.variable)
        more = len(differences) - MOST_REMARKS
        if more > 0:
            text = f"{path}: and {more} more differences from the reference."
            self.refuse(_KIND_OF[differences[-1].about], [path], text)
        for remark in notes[:MOST_REMARKS]:
            self.warn(_KIND_OF[remark.about], [path], remark.text, remark.variable)

    def _note_facts(self, checkpoint: Checkpoint) -> None:
        facts = self.facts[checkpoint.path]
        facts.format, facts.producer = checkpoint.format, checkpoint.producer
        facts.optimizer_bytes = sum(
            variable.nbytes for variable in checkpoint.variables if variable.role == Role.OPTIMIZER
        )

    def _refuse_meaningless(self, reference: Checkpoint) -> None:
        """Refuses what has no mean; then there is nothing to look at in the values."""
        try:
            refuse_meaningless(reference)
        except FormatError as error:
            self.refuse_error(error)
            self.sources = []

    def _warn_of_versions(self) -> None:
        by_version: dict[str, list[Path]] = defaultdict(list)
        for facts in self.facts.values():
            if facts.producer is not None:
                by_version[facts.producer].append(facts.path)
        if len(by_version) > 1:
            told = "; ".join(
                f"{version}: {some([str(path) for path in paths])}"
                for version, paths in by_version.items()
            )
            self.warn(
                FindingKind.KERAS_VERSION,
                [path for paths in by_version.values() for path in paths],
                f"the checkpoints were written by different versions of Keras ({told}). Evaluate "
                "the average with the version that will load it.",
            )

    def _warn_of_optimizers(self) -> None:
        holding = [facts for facts in self.facts.values() if facts.optimizer_bytes]
        if not holding or self.optimizer is not None:
            return
        total = sum(facts.optimizer_bytes or 0 for facts in holding)
        self.warn(
            FindingKind.OPTIMIZER,
            [facts.path for facts in holding],
            f"{some([str(facts.path) for facts in holding])} "
            f"hold{'s' * (len(holding) == 1)} optimizer state ({format_size(total)}), which has no "
            "mean: a merge leaves it out. --optimizer drop says that this is meant, and "
            "--optimizer reference keeps the reference's.",
        )

    # --- values -----------------------------------------------------------------------------------

    def look_at_values(
        self,
        on_plan: Callable[[int], None] | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        """Reads the values of all checkpoints that match the reference."""
        reserved = memory.resident_bytes()
        limit, origin = limit_for(self.settings.memory_limit, reserved)
        self.memory = MemoryRecord(limit, origin, reserved, reserved, None)
        if self.reference is None or not self.sources:
            return
        self._compare_non_float(self.reference)
        layers = averaged_by_layer(self.reference)
        if not layers:
            self.warn(
                FindingKind.NOT_COMPARED,
                (),
                f"{self.reference.path}: has no float variables that a merge would average.",
            )
            return
        plan = plan_measuring(
            self.sources,
            self.reference.variables,
            list(itertools.chain.from_iterable(layers.values())),
            Allowance(
                job="the check",
                limit=limit,
                limit_origin=origin,
                reserved=reserved,
                besides=_bytes_besides(self.sources),
                threads=self.settings.threads,
            ),
        )
        self.memory = dataclasses.replace(self.memory, projected=plan.memory.projected)
        self._read(plan, on_plan, on_progress)

    def _compare_non_float(self, reference: Checkpoint) -> None:
        matched = MatchedCheckpoints(reference, tuple(self.sources), ())
        for path, text in non_float_differences(matched, self.settings):
            if self.settings.non_float == "equal":
                self.refuse(FindingKind.NON_FLOAT, [path], text)
            else:
                self.warn(FindingKind.NON_FLOAT, [path], text)

    def _read(
        self,
        plan: MeasuringPlan,
        on_plan: Callable[[int], None] | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        bytes_read = 0

        def advance(count: int) -> None:
            nonlocal bytes_read
            bytes_read += count
            if on_progress is not None:
                on_progress(count)

        of_sample = sample_bytes(plan)
        if on_plan is not None:
            on_plan(of_sample + (of_sample if self.sample else plan.bytes_read))
        runs = list(sample_runs(plan)) if self.sample else None
        flaws = scan(plan, runs, advance)
        for index, flaw in sorted(flaws.items()):
            self._add_flaw(plan.sources[index], flaw)
        sound = tuple(s for index, s in enumerate(plan.sources) if index not in flaws)
        measured = None
        if len(sound) > 1:
            measured = self._measure(dataclasses.replace(plan, sources=sound), advance)
        elements = sum(plan.variables[position].size for position in plan.positions)
        is_all = runs is None or sum(run.count for run in runs) == elements
        self.values = ReadValues(
            scope="all" if is_all else "sample",
            checkpoints=len(plan.sources),
            elements=elements,
            sampled=0 if measured is None else measured.sampled,
            bytes_read=bytes_read,
        )

    def _add_flaw(self, source: Source, flaw: FormatError | NonFiniteValuesError) -> None:
        if isinstance(flaw, FormatError):
            self.refuse_error(flaw)
        elif self.settings.allow_non_finite:
            text = f"{flaw} It is averaged with --allow-non-finite, and was not compared."
            self.warn(FindingKind.NON_FINITE, [source.path], text, flaw.variable)
        else:
            self.refuse(FindingKind.NON_FINITE, [source.path], str(flaw), flaw.variable)

    def _measure(
        self, plan: MeasuringPlan, on_progress: Callable[[int], None]
    ) -> SampledDistances | None:
        """Measures distances on a sample, and says what they mean."""
        try:
            measured = measure_sample(plan, on_progress)
            groups = [
                group
                for alike in groups_of_zeros(measured.in_layers)
                for group in _equal_in_all_values(plan, alike, measured)
            ]
        except UnsupportedFeatureError as error:
            self.warn(FindingKind.NOT_COMPARED, [error.path], f"{error} Nothing was compared.")
            return None
        except NonFiniteValuesError as error:  # it was finite a moment ago
            self.refuse_error(ChangedFileError(error.path, "changed while it was read."))
            return None
        except FormatError as error:
            self.refuse_error(error)
            return None
        count = len(plan.sources)
        for source, distance in zip(plan.sources, measured.relative.sum(axis=1), strict=True):
            self.facts[source.path].distance = float(distance) / (count - 1)
        paths = [str(source.path) for source in plan.sources]
        self.warnings |= dict.fromkeys(judge(measured, paths, groups))
        return measured

    # --- the end ----------------------------------------------------------------------------------

    def look_at_files_again(self) -> None:
        """Finds files that changed meanwhile."""
        for facts in self.facts.values():
            if facts.identity is not None:
                try:
                    facts.identity.require_unchanged(facts.path)
                except ChangedFileError as error:
                    self.refuse_error(error)

    def result(self) -> Check:
        """What was found, without what is measured at the very end."""
        assert self.memory is not None, "values were looked at"
        place = {str(path): number for number, path in enumerate(self.facts)}
        order = list(FindingKind)

        def key(finding: Finding) -> tuple[int, int]:
            places = [place[path] for path in finding.paths if path in place]
            return order.index(finding.kind), min(places, default=-1)

        return Check(
            schema_version=SCHEMA_VERSION,
            streamavg_version=__version__,
            can_be_averaged=not self.refusals,
            reference=None if self.reference is None else str(self.reference.path),
            checkpoints=tuple(
                CheckedCheckpoint(
                    path=str(facts.path),
                    format=facts.format,
                    producer=facts.producer,
                    file_bytes=None if facts.identity is None else facts.identity.size,
                    optimizer_bytes=facts.optimizer_bytes,
                    distance=facts.distance,
                )
                for facts in self.facts.values()
            ),
            refusals=tuple(sorted(self.refusals, key=key)),
            warnings=tuple(sorted(self.warnings, key=key)),
            values=self.values,
            thresholds=Thresholds(DISTANT, NEAR_DUPLICATES),
            memory=self.memory,
            seconds=0.0,
        )


def _identity_of(path: Path) -> FileIdentity | None:
    try:
        return FileIdentity.of(path) if path.is_file() else None
    except OSError:  # what is wrong with it is said when it is opened
        return None


def _equal_in_all_values(
    plan: MeasuringPlan, alike: Sequence[int], measured: SampledDistances
) -> Iterator[list[int]]:
    """Groups of checkpoints that hold the same values, among those that are equal in the sample.

    Each is compared with the first of each group, up to the first value that differs.

    Raises: FormatError.
    """
    groups: list[list[int]] = []
    for index in alike:
        for group in groups:
            values = plan.sources[group[0]].values, plan.sources[index].values
            different = differing(plan.variables, *values, plan.positions)
            if measured.is_whole or next(different, None) is None:
                group.append(index)
                break
        else:
            groups.append([index])
    yield from (group for group in groups if len(group) > 1)


def _bytes_besides(sources: Sequence[Source]) -> int:
    """What a check takes beside the buffers of its passes."""
    count = len(sources)
    decodes = any(source.values.library_bytes for source in sources)
    fixed = _DECODING_BYTES if decodes else 0
    return 8 * _NUMBERS_PER_PAIR * count**2 + _BYTES_PER_CHECKPOINT * count + fixed
