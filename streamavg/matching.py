"""Do these checkpoints describe the same model? All differences at once, or a matched set.

Checkpoints are taken one after the other. Only the reference keeps its description; of each other
one, what stays is where its values are, eight bytes a variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.architecture import DIFFERENT_DATA, compare_configs
from streamavg.checkpoint import Checkpoint, FileIdentity, Role, Values, Variable, runs_of
from streamavg.errors import IncompatibleCheckpointsError
from streamavg.pairing import About, Described, Findings, pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.options import MatchBy, PreprocessingPolicy

COMPARED_ELEMENTS = 16384
"""Elements of two checkpoints that are compared at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of one checkpoint are, aligned with the reference's variables."""

    path: Path
    format: str
    producer: str | None
    values: Values
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class MatchedCheckpoints:
    """Checkpoints of the same model."""

    reference: Checkpoint
    sources: tuple[Source, ...]
    """One per checkpoint, in merge order."""
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""

    def close(self) -> None:
        """Closes all files."""
        for source in self.sources:
            source.values.close()
        self.reference.values.close()


def match(
    reference: Checkpoint,
    checkpoints: Iterable[Checkpoint],
    *,
    by: MatchBy = "name",
    preprocessing: PreprocessingPolicy = "equal",
) -> MatchedCheckpoints:
    """Pairs the variables of all checkpoints with those of the reference.

    Args:
        reference: the checkpoint whose structure the output takes.
        checkpoints: all checkpoints in merge order, the reference among them; each is read when
            its turn comes and then let go.
        by: "order" pairs legacy layers by their position whatever their names are.
        preprocessing: whether state learned from the data must be equal, or is taken from the
            reference with a note.

    Raises:
        IncompatibleCheckpointsError: with every difference of every checkpoint.
        FormatError: a file cannot be read.

    Memory: one description beside the reference's, and 8 bytes a variable and checkpoint.
    """
    matcher = Matcher(reference, by=by, preprocessing=preprocessing)
    differences: list[str] = []
    notes: list[str] = []
    sources: list[Source] = []
    try:
        for checkpoint in checkpoints:
            source, findings = matcher.add(checkpoint)
            sources.append(source)
            differences += [difference.text for difference in findings.differences]
            notes += [note.text for note in findings.notes]
        if differences:
            raise IncompatibleCheckpointsError(differences)
    except BaseException:
        for source in sources:
            source.values.close()
        raise
    notes += matcher.closing_notes()
    return MatchedCheckpoints(reference, tuple(sources), tuple(dict.fromkeys(notes)))


class Matcher:
    """Pairs checkpoints with the reference one by one, and tells of each what is different.

    Args:
        reference: as in `match`.
        by: as in `match`.
        preprocessing: as in `match`.
    """

    def __init__(
        self,
        reference: Checkpoint,
        *,
        by: MatchBy = "name",
        preprocessing: PreprocessingPolicy = "equal",
    ) -> None:
        self._by: MatchBy = by
        self._preprocessing: PreprocessingPolicy = preprocessing
        self._expected = Described(reference)
        self._whole = None if reference.config is None else self._expected
        self._weights_alone: list[str] = []

    def add(self, checkpoint: Checkpoint) -> tuple[Source, Findings]:
        """Pairs the variables of one checkpoint, which may be the reference itself.

        Returns:
            Where its values are, to be read only if there are no differences, and what was found.

        Raises:
            FormatError: a file cannot be read.
        """
        findings = Findings(self._expected, Described(checkpoint))
        source = _match_one(findings, self._whole, self._by, self._preprocessing)
        if checkpoint.config is None:
            self._weights_alone.append(str(checkpoint.path))
        elif self._whole is None:
            self._whole = findings.found
        return source, findings

    def closing_notes(self) -> list[str]:
        """What can be said when all checkpoints have been added."""
        if self._whole is None or not self._weights_alone:
            return []
        return [
            f"{len(self._weights_alone)} of the checkpoints hold weights alone "
            f"({self._weights_alone[0]}), so neither their configuration nor their vocabularies "
            "were compared."
        ]


def _match_one(
    findings: Findings,
    whole: Described | None,
    by: MatchBy,
    preprocessing: PreprocessingPolicy,
) -> Source:
    reference, checkpoint = findings.reference.checkpoint, findings.found.checkpoint
    is_reference = checkpoint.path == reference.path
    values = checkpoint.values
    has_same_headers = checkpoint.variables is reference.variables
    if not (is_reference or has_same_headers):
        values = values.aligned(pair(findings, by))
    if whole is not None:
        _compare_whole_models(whole, findings, preprocessing)
    if not findings.differences and not is_reference:
        _compare_preprocessing(values, preprocessing, findings)
    return Source(
        checkpoint.path, checkpoint.format, checkpoint.producer, values, checkpoint.identity
    )


def _compare_whole_models(
    whole: Described, findings: Findings, preprocessing: PreprocessingPolicy
) -> None:
    """Compares with the reference's configuration and assets, or the first ones there are."""
    expected, found = whole.checkpoint, findings.found.checkpoint
    if found.config is None:
        return
    if found.format == expected.format:
        _compare_assets(expected, found, preprocessing, findings)
    if found.config == expected.config:
        return
    versions = (expected.producer, found.producer)
    for difference in compare_configs(whole.config, findings.found.config, versions):
        text = f"configuration: {difference.text} as in {expected.path}."
        if difference.is_error:
            findings.differ(text, About.CONFIGURATION)
        else:
            text += " Its values are averaged all the same."
            findings.note(text, About.CONFIGURATION)


def _compare_assets(
    expected: Checkpoint, found: Checkpoint, policy: PreprocessingPolicy, findings: Findings
) -> None:
    for name in sorted({*expected.assets, *found.assets}):
        if expected.assets.get(name) != found.assets.get(name):
            what = f"asset {name!r}: its content differs from that in {expected.path}"
            _blame_data(what, policy, findings, None)


def _compare_preprocessing(values: Values, policy: PreprocessingPolicy, findings: Findings) -> None:
    reference = findings.reference.checkpoint
    positions = [
        position
        for position, variable in enumerate(reference.variables)
        if variable.role == Role.PREPROCESSING
    ]
    for position in differing(reference.variables, reference.values, values, positions):
        path = reference.variables[position].path
        what = f"variable {path!r}: its values differ from those in {reference.path}"
        _blame_data(what, policy, findings, path)


def _blame_data(
    what: str, policy: PreprocessingPolicy, findings: Findings, variable: str | None
) -> None:
    text = f"{what}: {DIFFERENT_DATA}."
    if policy == "equal":
        text += " To keep the reference's anyway, use --preprocessing reference."
        findings.differ(text, About.PREPROCESSING, variable)
    else:
        findings.note(f"{text} The reference's are kept.", About.PREPROCESSING, variable)


def differing(
    variables: Sequence[Variable], expected: Values, found: Values, positions: Iterable[int]
) -> Iterator[int]:
    """Positions of the variables whose values are not the same, bit for bit.

    Memory: two slabs of `COMPARED_ELEMENTS` elements.
    """
    for position in positions:
        variable = variables[position]
        for run in runs_of(position, variable.size, COMPARED_ELEMENTS):
            pair = [np.empty(run.count, variable.dtype) for _ in range(2)]
            for values, out in zip((expected, found), pair, strict=True):
                values.read_into(position, run.start, out)
            if not _same_bits(*pair):
                yield position
                break


def _same_bits(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.dtype.kind == "O":
        return bool(np.array_equal(first, second))
    return first.tobytes() == second.tobytes()
