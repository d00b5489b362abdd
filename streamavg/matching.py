"""Do these checkpoints describe the same model? All differences at once, or a matched set.

Checkpoints are taken one after the other. Only the reference keeps its description; of each other
one, what stays is where its values are, eight bytes a variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.architecture import DIFFERENT_DATA, compare_configs
from streamavg.checkpoint import Checkpoint, FileIdentity, Role, Values, Variable, slabs_of
from streamavg.errors import IncompatibleCheckpointsError
from streamavg.pairing import Described, Findings, pair

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
    differences: list[str] = []
    notes: list[str] = []
    sources: list[Source] = []
    expected = Described(reference)
    configured = None if reference.config is None else expected
    try:
        for checkpoint in checkpoints:
            findings = Findings(expected, Described(checkpoint))
            sources.append(_match_one(findings, configured, by, preprocessing))
            if configured is None and checkpoint.config is not None:
                configured = findings.found
            differences += findings.differences
            notes += findings.notes
        if differences:
            raise IncompatibleCheckpointsError(differences)
    except BaseException:
        for source in sources:
            source.values.close()
        raise
    return MatchedCheckpoints(reference, tuple(sources), tuple(dict.fromkeys(notes)))


def _match_one(
    findings: Findings,
    configured: Described | None,
    by: MatchBy,
    preprocessing: PreprocessingPolicy,
) -> Source:
    reference, checkpoint = findings.reference.checkpoint, findings.found.checkpoint
    is_reference = checkpoint.path == reference.path
    if is_reference:
        positions = np.arange(len(reference.variables))
    else:
        positions = pair(findings, by)
        _compare_assets(findings, preprocessing)
    if configured is not None:
        _compare_architectures(configured, findings)
    values = checkpoint.values.aligned(positions)
    if not findings.differences and not is_reference:
        _compare_preprocessing(values, preprocessing, findings)
    return Source(
        checkpoint.path, checkpoint.format, checkpoint.producer, values, checkpoint.identity
    )


def _compare_architectures(configured: Described, findings: Findings) -> None:
    """Compares with the reference's configuration, or with the first one if it has none."""
    expected, found = configured.checkpoint, findings.found.checkpoint
    if found.config is None or found.config == expected.config:
        return
    versions = (expected.producer, found.producer)
    for difference in compare_configs(configured.config, findings.found.config, versions):
        text = f"configuration: {difference.text} as in {expected.path}."
        if difference.is_error:
            findings.differ(text)
        else:
            findings.note(f"{text} Its values are averaged all the same.")


def _compare_assets(findings: Findings, policy: PreprocessingPolicy) -> None:
    """Vocabularies of archives; weights alone have none to compare."""
    reference, checkpoint = findings.reference.checkpoint, findings.found.checkpoint
    if reference.format != checkpoint.format:
        return
    for name in sorted({*reference.assets, *checkpoint.assets}):
        if reference.assets.get(name) != checkpoint.assets.get(name):
            _blame_data(f"asset {name!r}: its content differs", policy, findings)


def _compare_preprocessing(values: Values, policy: PreprocessingPolicy, findings: Findings) -> None:
    reference = findings.reference.checkpoint
    positions = [
        position
        for position, variable in enumerate(reference.variables)
        if variable.role == Role.PREPROCESSING
    ]
    for position in differing(reference.variables, reference.values, values, positions):
        path = reference.variables[position].path
        _blame_data(f"variable {path!r}: its values differ", policy, findings)


def _blame_data(what: str, policy: PreprocessingPolicy, findings: Findings) -> None:
    text = f"{what} from those in {findings.expected_in}: {DIFFERENT_DATA}."
    if policy == "equal":
        findings.differ(f"{text} To keep the reference's anyway, use --preprocessing reference.")
    else:
        findings.note(f"{text} The reference's are kept.")


def differing(
    variables: Sequence[Variable], expected: Values, found: Values, positions: Iterable[int]
) -> Iterator[int]:
    """Positions of the variables whose values are not the same, bit for bit.

    Memory: two slabs of `COMPARED_ELEMENTS` elements.
    """
    for position in positions:
        variable = variables[position]
        for slab in slabs_of(position, variable.size, COMPARED_ELEMENTS):
            pair = [np.empty(slab.count, variable.dtype) for _ in range(2)]
            for values, out in zip((expected, found), pair, strict=True):
                values.read_into(position, slab.start, out)
            if not _same_bits(*pair):
                yield position
                break


def _same_bits(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.dtype.kind == "O":
        return bool(np.array_equal(first, second))
    return first.tobytes() == second.tobytes()
