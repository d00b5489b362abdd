"""Do these checkpoints describe the same model? All differences at once, or a matched set.

Checkpoints are taken one after the other. Only the reference keeps its description; of each other
one, what stays is where its values are, eight bytes a variable.

Variables are paired by name. Legacy files name layers by how many the process had built before
(`dense_3` against `dense`); where the names differ by nothing but that count, they are paired in
order, and a note says so. Layers in another order are a difference even where every shape fits:
Keras' own loader does not notice them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.architecture import (
    DIFFERENT_DATA,
    automatic_name,
    automatic_stems,
    compare_configs,
    parse_config,
)
from streamavg.checkpoint import (
    ABSENT,
    Checkpoint,
    FileIdentity,
    Layer,
    Role,
    Values,
    Variable,
    last_part,
    slabs_of,
)
from streamavg.errors import IncompatibleCheckpointsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from streamavg.options import MatchBy, PreprocessingPolicy

COMPARED_ELEMENTS = 16384
"""Elements of two checkpoints that are compared at once."""
_NOT_PAIRED = frozenset({Role.OPTIMIZER, Role.METRIC})
"""Taken from the reference alone, so other checkpoints need not have them."""
_SHOWN_NAMES = 3


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
    for checkpoint in checkpoints:
        findings = _Findings(reference, checkpoint)
        if checkpoint.path == reference.path:
            positions = np.arange(len(reference.variables))
        else:
            positions = _pair(reference, checkpoint, by, findings)
            _compare_architectures(reference, checkpoint, findings)
            _compare_assets(reference, checkpoint, preprocessing, findings)
        source = Source(
            checkpoint.path,
            checkpoint.format,
            checkpoint.producer,
            checkpoint.values.aligned(positions),
            checkpoint.identity,
        )
        if not findings.differences and checkpoint.path != reference.path:
            _compare_preprocessing(reference, source, preprocessing, findings)
        differences += findings.differences
        notes += findings.notes
        sources.append(source)
    if differences:
        raise IncompatibleCheckpointsError(differences)
    return MatchedCheckpoints(reference, tuple(sources), tuple(dict.fromkeys(notes)))


@dataclass
class _Findings:
    """What is said about one checkpoint against the reference."""

    reference: Checkpoint
    checkpoint: Checkpoint
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differ(self, text: str) -> None:
        self.differences.append(f"{self.checkpoint.path}: {text}")

    def note(self, text: str) -> None:
        self.notes.append(f"{self.checkpoint.path}: {text}")


def _pair(
    reference: Checkpoint, checkpoint: Checkpoint, by: MatchBy, findings: _Findings
) -> NDArray[np.int64]:
    """Position in `checkpoint` of each of the reference's variables, ABSENT where not needed."""
    if _is_legacy(reference) != _is_legacy(checkpoint):
        findings.differ(
            f"has the layout {checkpoint.format}, expected {reference.format} as in "
            f"{reference.path}: their names cannot be paired. Save all in the same format."
        )
        return np.full(len(reference.variables), ABSENT, np.int64)
    if _is_legacy(reference):
        pairs = list(_LegacyPairing(reference, checkpoint, by, findings).pairs())
    else:
        pairs = _pairs_by_path(reference, checkpoint, findings)
        _compare_layer_names(reference, checkpoint, findings)
    positions = np.full(len(reference.variables), ABSENT, np.int64)
    for expected, found in pairs:
        positions[expected] = found
        _compare_variables(reference.variables[expected], checkpoint.variables[found], findings)
    return positions


def _is_legacy(checkpoint: Checkpoint) -> bool:
    return checkpoint.format == "keras-legacy"


def _paired(checkpoint: Checkpoint) -> Iterator[tuple[int, Variable]]:
    for position, variable in enumerate(checkpoint.variables):
        if variable.role not in _NOT_PAIRED:
            yield position, variable


def _pairs_by_path(
    reference: Checkpoint, checkpoint: Checkpoint, findings: _Findings
) -> list[tuple[int, int]]:
    found = {variable.path: position for position, variable in _paired(checkpoint)}
    pairs: list[tuple[int, int]] = []
    missing: list[str] = []
    for expected, variable in _paired(reference):
        position = found.pop(variable.path, None)
        if position is None:
            missing.append(variable.path)
        else:
            pairs.append((expected, position))
    for path in missing:
        closest = difflib.get_close_matches(path, list(found)[:1000], _SHOWN_NAMES, 0.8)
        hint = f" Closest here: {', '.join(map(repr, closest))}." if closest else ""
        findings.differ(f"variable {path!r} is missing (present in {reference.path}).{hint}")
    for path in found:
        findings.differ(f"variable {path!r} is not in {reference.path}.")
    return pairs


def _compare_variables(expected: Variable, found: Variable, findings: _Findings) -> None:
    what = f"variable {found.path!r}: "
    source = f"as in {findings.reference.path}"
    if found.path != expected.path:
        source = f"like {expected.path!r} in {findings.reference.path}"
    if found.shape != expected.shape:
        findings.differ(f"{what}shape {found.shape}, expected {expected.shape} {source}.")
    if found.dtype != expected.dtype:
        findings.differ(f"{what}dtype {found.dtype}, expected {expected.dtype} {source}.")
    if len(found.aliases) != len(expected.aliases):
        ours, theirs = (", ".join(v.aliases) or "nothing" for v in (found, expected))
        findings.differ(f"{what}is shared with {ours}, expected with {theirs} {source}.")


def _compare_layer_names(
    reference: Checkpoint, checkpoint: Checkpoint, findings: _Findings
) -> None:
    """Finds swapped layers by their names, which Keras 3.6 and later keep beside the values."""
    expected, found = _layer_labels(reference), _layer_labels(checkpoint)
    for path, (label, name) in expected.items():
        other_label, other_name = found.get(path, (label, name))
        if label != other_label:
            findings.differ(
                f"layer {path!r} is named {other_name!r}, expected {name!r} as in "
                f"{reference.path}: its values belong to another layer."
            )


def _layer_labels(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Label and name of each named layer by its path; labels do not depend on counting."""
    left_out = {variable.layer for variable in checkpoint.variables if variable.role in _NOT_PAIRED}
    layers = [
        layer
        for layer in checkpoint.layers
        if layer.name is not None and layer.path not in left_out
    ]
    ranks = _ranks(layer.name for layer in layers if layer.name and _may_be_automatic(layer))
    return {
        layer.path: (ranks.get(layer.name, layer.name), layer.name)
        for layer in layers
        if layer.name is not None
    }


def _may_be_automatic(layer: Layer) -> bool:
    return layer.class_name is None or automatic_name(layer.name or "")[0] == layer.class_name


def _ranks(names: Iterable[str]) -> dict[str, str]:
    """Replaces Keras' counters by ranks: dense_6, dense_9 become "dense #1", "dense #2"."""
    numbers: dict[str, set[int]] = {}
    split = {name: automatic_name(name) for name in names}
    for stem, number in split.values():
        numbers.setdefault(stem, set()).add(number)
    ranked = {stem: sorted(found) for stem, found in numbers.items()}
    return {
        name: f"{stem} #{ranked[stem].index(number) + 1}" for name, (stem, number) in split.items()
    }


class _LegacyPairing:
    """Pairs the layers of two legacy files, and the weights inside each layer."""

    def __init__(
        self, reference: Checkpoint, checkpoint: Checkpoint, by: MatchBy, findings: _Findings
    ) -> None:
        self._reference = reference
        self._by = by
        self._findings = findings
        self._expected = _by_layer(reference)
        self._found = _by_layer(checkpoint)
        self._expected_tokens = _canonical_tokens(reference)
        self._found_tokens = _canonical_tokens(checkpoint)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Positions of paired variables; differences go to the findings."""
        expected, found = list(self._expected), list(self._found)
        if self._by == "name" and not self._names_agree(expected, found):
            return
        if len(expected) != len(found):
            self._findings.differ(
                f"has {len(found)} layers with weights, expected {len(expected)} as in "
                f"{self._reference.path}."
            )
            return
        for name, other_name in zip(expected, found, strict=True):
            yield from self._pairs_in_layer(name, other_name)

    def _names_agree(self, expected: list[str], found: list[str]) -> bool:
        if expected == found:
            return True
        labels = [_canonical(name, self._expected_tokens) for name in expected]
        other_labels = [_canonical(name, self._found_tokens) for name in found]
        if labels == other_labels:
            renamed = [(o, e) for e, o in zip(expected, found, strict=True) if e != o]
            shown = ", ".join(f"{o} against {e}" for o, e in renamed[:_SHOWN_NAMES])
            self._findings.note(
                f"{len(renamed)} layers are named by another count than in "
                f"{self._reference.path} ({shown}); they were matched by order."
            )
            return True
        if sorted(expected) == sorted(found):
            self._explain_order(expected, found)
        else:
            self._explain_names(expected, found)
        return False

    def _explain_order(self, expected: list[str], found: list[str]) -> None:
        pairs = enumerate(zip(expected, found, strict=True), 1)
        for number, (name, other_name) in pairs:
            if name != other_name:
                self._findings.differ(
                    f"layers are in another order: number {number} is {other_name!r}, expected "
                    f"{name!r} as in {self._reference.path}."
                )

    def _explain_names(self, expected: list[str], found: list[str]) -> None:
        missing = [name for name in expected if name not in set(found)]
        surplus = [name for name in found if name not in set(expected)]
        for name in missing:
            closest = difflib.get_close_matches(name, surplus[:1000], _SHOWN_NAMES)
            hint = f" Closest here: {', '.join(map(repr, closest))}." if closest else ""
            self._findings.differ(
                f"layer {name!r} is missing (present in {self._reference.path}).{hint}"
            )
        for name in surplus:
            self._findings.differ(f"layer {name!r} is not in {self._reference.path}.")
        if len(expected) == len(found):
            self._findings.differ(
                "if the layers are the same under other names, use --match order."
            )

    def _pairs_in_layer(self, name: str, other_name: str) -> Iterator[tuple[int, int]]:
        expected = {v.path.removeprefix(f"{name}/"): p for p, v in self._expected[name]}
        found = {v.path.removeprefix(f"{other_name}/"): p for p, v in self._found[other_name]}
        if expected.keys() != found.keys():
            for labels, other_labels in self._relabelled(expected, found):
                if labels.keys() == other_labels.keys():
                    expected, found = labels, other_labels
                    break
            else:
                if self._by == "order" and len(expected) == len(found):
                    yield from zip(expected.values(), found.values(), strict=True)
                    return
        for weight in [*expected, *(n for n in found if n not in expected)]:
            if weight in expected and weight in found:
                yield expected[weight], found[weight]
            elif weight in expected:
                self._findings.differ(
                    f"variable '{other_name}/{weight}' is missing "
                    f"(present in {self._reference.path})."
                )
            else:
                self._findings.differ(
                    f"variable '{other_name}/{weight}' is not in {self._reference.path}."
                )

    def _relabelled(
        self, expected: Mapping[str, int], found: Mapping[str, int]
    ) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
        """Other ways to name the weights of one layer: by rank, and by their last part alone.

        A model that was loaded from a file saves `dense/kernel` where the model that was built
        in the process saves `sequential/dense/kernel` (Keras 3), and Keras 2 `dense/kernel:0`.
        """
        yield (
            {_canonical(name, self._expected_tokens): p for name, p in expected.items()},
            {_canonical(name, self._found_tokens): p for name, p in found.items()},
        )
        last = {last_part(name): position for name, position in expected.items()}
        other_last = {last_part(name): position for name, position in found.items()}
        if len(last) == len(expected) and len(other_last) == len(found):
            yield last, other_last


def _by_layer(checkpoint: Checkpoint) -> dict[str, list[tuple[int, Variable]]]:
    layers: dict[str, list[tuple[int, Variable]]] = {}
    for position, variable in _paired(checkpoint):
        layers.setdefault(variable.layer, []).append((position, variable))
    return layers


def _canonical_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """Ranks of all automatic names that occur in the paths of a legacy file.

    Where the file has a configuration, only stems of its classes are automatic names.
    """
    stems = None
    if checkpoint.config is not None:
        stems = automatic_stems(parse_config(checkpoint.config, checkpoint.path))
    tokens = {
        token
        for _, variable in _paired(checkpoint)
        for token in (*variable.path.split("/")[:-1], variable.layer)
    }
    return _ranks(token for token in tokens if stems is None or automatic_name(token)[0] in stems)


def _canonical(path: str, tokens: Mapping[str, str]) -> str:
    return tokens.get(path) or "/".join(tokens.get(part, part) for part in path.split("/"))


def _compare_architectures(
    reference: Checkpoint, checkpoint: Checkpoint, findings: _Findings
) -> None:
    ours, theirs = reference.config, checkpoint.config
    if ours is None or theirs is None or ours == theirs:
        return
    differences = compare_configs(
        parse_config(ours, reference.path),
        parse_config(theirs, checkpoint.path),
        (reference.producer, checkpoint.producer),
    )
    for difference in differences:
        text = f"{difference.text} as in {reference.path}."
        if difference.is_error:
            findings.differ(f"configuration: {text}")
        else:
            findings.note(f"configuration: {text} Its values are averaged all the same.")


def _compare_assets(
    reference: Checkpoint,
    checkpoint: Checkpoint,
    policy: PreprocessingPolicy,
    findings: _Findings,
) -> None:
    """Vocabularies of archives; weights alone have none to compare."""
    if reference.format != checkpoint.format:
        return
    for name in sorted({*reference.assets, *checkpoint.assets}):
        if reference.assets.get(name) != checkpoint.assets.get(name):
            _blame_data(f"asset {name!r}: its content differs", policy, findings)


def _compare_preprocessing(
    reference: Checkpoint, source: Source, policy: PreprocessingPolicy, findings: _Findings
) -> None:
    positions = [
        position
        for position, variable in enumerate(reference.variables)
        if variable.role == Role.PREPROCESSING
    ]
    for position in differing(reference.variables, reference.values, source.values, positions):
        path = reference.variables[position].path
        _blame_data(f"variable {path!r}: its values differ", policy, findings)


def _blame_data(what: str, policy: PreprocessingPolicy, findings: _Findings) -> None:
    text = f"{what} from those in {findings.reference.path}: {DIFFERENT_DATA}."
    if policy == "equal":
        findings.differ(
            f"{text} To keep the reference's all the same, use --preprocessing reference."
        )
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
