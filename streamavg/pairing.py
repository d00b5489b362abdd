"""Which variable of one checkpoint is which of another's.

Where a variable is named by its place in the model, equal names are the same variable. Legacy files
name variables by layers, and layers by how many the process had built before (`dense_3` against
`dense`): where the names differ by nothing but that count, layers are paired in order, and a note
says so. Layers in another order are a difference even where every shape fits: Keras' own loader
does not notice them.
"""

from __future__ import annotations

import difflib
import enum
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.architecture import automatic_name, automatic_stems, parse_config
from streamavg.checkpoint import ABSENT, Checkpoint, Layer, Naming, Role, Variable, last_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from streamavg.options import MatchBy

_NOT_PAIRED = frozenset({Role.OPTIMIZER, Role.METRIC})
"""Taken from the reference alone, so other checkpoints need not have them."""
_SHOWN_NAMES = 3
_MOST_CANDIDATES = 1000
"""Names among which a close one is looked for."""


class Described:
    """A checkpoint, and what is worked out from its description once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def config(self) -> Any:
        """The parsed configuration; None for weights alone."""
        if self.checkpoint.config is None:
            return None
        return parse_config(self.checkpoint.config, self.checkpoint.path)

    def paired(self) -> Iterator[tuple[int, Variable]]:
        """Position and variable of all that other checkpoints must have too."""
        for position, variable in enumerate(self.checkpoint.variables):
            if variable.role not in _NOT_PAIRED:
                yield position, variable

    @cached_property
    def layers(self) -> dict[str, list[tuple[int, Variable]]]:
        """Position and variable of all that must be paired, by layer, in the file's order."""
        layers: dict[str, list[tuple[int, Variable]]] = {}
        for position, variable in self.paired():
            layers.setdefault(variable.layer, []).append((position, variable))
        return layers

    @cached_property
    def labels(self) -> dict[str, tuple[str, str]]:
        """Label and name of each named layer by its path; labels do not depend on counting."""
        named = [
            (layer, layer.name)
            for layer in self.checkpoint.layers
            if layer.name is not None and layer.path in self.layers
        ]
        ranks = _ranks(name for layer, name in named if _may_be_automatic(layer, name))
        return {layer.path: (ranks.get(name, name), name) for layer, name in named}

    @cached_property
    def attributes(self) -> frozenset[str]:
        """Paths of layers that an attribute holds, which itself tells them apart."""
        return frozenset(layer.path for layer in self.checkpoint.layers if layer.class_name is None)

    @cached_property
    def tokens(self) -> dict[str, str]:
        """Labels of all automatic names that occur in the paths of a legacy file.

        Where the file has a configuration, only stems of its classes are automatic names.
        """
        stems = None if self.config is None else automatic_stems(self.config)
        tokens = {
            token
            for _, variable in self.paired()
            for token in (*variable.path.split("/")[:-1], variable.layer)
        }
        return _ranks(
            token for token in tokens if stems is None or automatic_name(token)[0] in stems
        )

    def label(self, path: str) -> str:
        """A legacy name with all automatic names in it replaced by their labels."""
        whole = self.tokens.get(path)
        return whole or "/".join(self.tokens.get(part, part) for part in path.split("/"))


def _may_be_automatic(layer: Layer, name: str) -> bool:
    """Whether Keras may have given the name; of an attribute's class nothing is known."""
    return layer.class_name is None or automatic_name(name)[0] == layer.class_name


def _stem(label: str) -> str:
    """What is left of a label without its rank."""
    return label.partition(" #")[0]


def _ranks(names: Iterable[str]) -> dict[str, str]:
    """Replaces Keras' counters by ranks: dense_6, dense_9 become "dense #1", "dense #2"."""
    stems: dict[str, list[tuple[int, str]]] = {}
    for name in set(names):
        stem, number = automatic_name(name)
        stems.setdefault(stem, []).append((number, name))
    return {
        name: f"{stem} #{rank}"
        for stem, numbered in stems.items()
        for rank, (_, name) in enumerate(sorted(numbered), 1)
    }


class About(enum.StrEnum):
    """What a remark is about."""

    STRUCTURE = "structure"
    """Layers and variables: their names, order, shapes and dtypes."""
    CONFIGURATION = "configuration"
    PREPROCESSING = "preprocessing"
    """What was learned from the data before training."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that is said about a checkpoint."""

    text: str
    """One sentence that begins with the checkpoint's path."""
    about: About
    variable: str | None = None
    """The variable that it is about, as the checkpoint names it; None if it is about more."""


@dataclass
class Findings:
    """What is said about one checkpoint against the reference."""

    reference: Described
    found: Described
    differences: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    @property
    def expected_in(self) -> str:
        """Path of the reference."""
        return str(self.reference.checkpoint.path)

    def differ(
        self, text: str, about: About = About.STRUCTURE, variable: str | None = None
    ) -> None:
        """Adds a difference, one sentence."""
        self.differences.append(Remark(f"{self.found.checkpoint.path}: {text}", about, variable))

    def note(self, text: str, about: About = About.STRUCTURE, variable: str | None = None) -> None:
        """Adds a note, one sentence."""
        self.notes.append(Remark(f"{self.found.checkpoint.path}: {text}", about, variable))


def pair(findings: Findings, by: MatchBy) -> NDArray[np.int64]:
    """Pairs the variables of a checkpoint with the reference's.

    Args:
        findings: the two checkpoints; takes the differences.
        by: "order" pairs legacy layers by their position whatever their names are.

    Returns:
        Position in the checkpoint of each of the reference's variables; ABSENT where there is
        none, or none is needed.
    """
    reference, found = findings.reference.checkpoint, findings.found.checkpoint
    positions = np.full(len(reference.variables), ABSENT, np.int64)
    if reference.naming != found.naming:
        findings.differ(
            f"has the layout {found.format}, expected {reference.format} as in "
            f"{reference.path}: their names cannot be paired. Save all in the same format."
        )
        return positions
    if reference.naming == Naming.BY_PLACE:
        pairs = _pairs_by_path(findings)
        _compare_layer_names(findings)
    else:
        pairs = list(_LegacyPairing(findings, by).pairs())
    for expected, position in pairs:
        positions[expected] = position
        _compare_variables(reference.variables[expected], found.variables[position], findings)
    return positions


def _pairs_by_path(findings: Findings) -> list[tuple[int, int]]:
    found = {variable.path: position for position, variable in findings.found.paired()}
    pairs: list[tuple[int, int]] = []
    missing: list[str] = []
    for expected, variable in findings.reference.paired():
        position = found.pop(variable.path, None)
        if position is None:
            missing.append(variable.path)
        else:
            pairs.append((expected, position))
    containers = [_containers(described) for described in (findings.reference, findings.found)]
    if not pairs and missing and containers[0] != containers[1]:
        findings.differ(
            f"keeps its layers in {containers[1]}, expected {containers[0]} as in "
            f"{findings.expected_in}: another Keras wrote it. Save all with the same version."
        )
        return pairs
    for path in missing:
        hint = _closest(path, found)
        text = f"variable {path!r} is missing (present in {findings.expected_in}).{hint}"
        findings.differ(text, variable=path)
    for path in found:
        findings.differ(f"variable {path!r} is not in {findings.expected_in}.", variable=path)
    return pairs


def _containers(described: Described) -> list[str]:
    """Root groups that hold variables to be paired."""
    return sorted({variable.path.split("/", 1)[0] for _, variable in described.paired()})


def _closest(name: str, candidates: Iterable[str]) -> str:
    few = list(candidates)[:_MOST_CANDIDATES]
    closest = difflib.get_close_matches(name, few, _SHOWN_NAMES, 0.8)
    return f" Closest here: {', '.join(map(repr, closest))}." if closest else ""


def _compare_variables(expected: Variable, found: Variable, findings: Findings) -> None:
    what = f"variable {found.path!r}: "
    source = f"as in {findings.expected_in}"
    if found.path != expected.path:
        source = f"like {expected.path!r} in {findings.expected_in}"
    different = []
    if found.shape != expected.shape:
        different.append(f"shape {found.shape}, expected {expected.shape}")
    if found.dtype != expected.dtype:
        different.append(f"dtype {found.dtype}, expected {expected.dtype}")
    if len(found.aliases) != len(expected.aliases):
        ours, theirs = (", ".join(v.aliases) or "nothing" for v in (found, expected))
        different.append(f"is shared with {ours}, expected with {theirs}")
    for text in different:
        findings.differ(f"{what}{text} {source}.", variable=found.path)


def _compare_layer_names(findings: Findings) -> None:
    """Finds swapped layers by their names, which Keras 3.6 and later keep beside the values."""
    found = findings.found.labels
    for path, (label, name) in findings.reference.labels.items():
        other_label, other_name = found.get(path, (label, name))
        if label == other_label:
            continue
        if path in findings.reference.attributes and _stem(label) == _stem(other_label):
            findings.note(
                f"layer {path!r} is named {other_name!r} here and {name!r} in "
                f"{findings.expected_in}: the attributes were made in another order."
            )
        else:
            findings.differ(
                f"layer {path!r} is named {other_name!r}, expected {name!r} as in "
                f"{findings.expected_in}: its values belong to another layer."
            )


class _LegacyPairing:
    """Pairs the layers of two legacy files, and the weights inside each layer."""

    def __init__(self, findings: Findings, by: MatchBy) -> None:
        self._reference = findings.reference
        self._checkpoint = findings.found
        self._by = by
        self._findings = findings

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Positions of paired variables; differences go to the findings."""
        expected, found = list(self._reference.layers), list(self._checkpoint.layers)
        if self._by == "name" and not self._names_agree(expected, found):
            return
        if len(expected) != len(found):
            self._findings.differ(
                f"has {len(found)} layers with weights, expected {len(expected)} as in "
                f"{self._findings.expected_in}."
            )
            return
        for name, other_name in zip(expected, found, strict=True):
            yield from self._pairs_in_layer(name, other_name)

    def _names_agree(self, expected: list[str], found: list[str]) -> bool:
        if expected == found:
            return True
        labels = [self._reference.label(name) for name in expected]
        other_labels = [self._checkpoint.label(name) for name in found]
        if labels == other_labels:
            renamed = [(o, e) for e, o in zip(expected, found, strict=True) if e != o]
            shown = ", ".join(f"{o} against {e}" for o, e in renamed[:_SHOWN_NAMES])
            self._findings.note(
                f"{len(renamed)} layers are named by another count than in "
                f"{self._findings.expected_in} ({shown}); they were matched by order."
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
                    f"{name!r} as in {self._findings.expected_in}."
                )

    def _explain_names(self, expected: list[str], found: list[str]) -> None:
        missing = [name for name in expected if name not in set(found)]
        surplus = [name for name in found if name not in set(expected)]
        for name in missing:
            hint = _closest(name, surplus)
            self._findings.differ(
                f"layer {name!r} is missing (present in {self._findings.expected_in}).{hint}"
            )
        for name in surplus:
            self._findings.differ(f"layer {name!r} is not in {self._findings.expected_in}.")
        if len(expected) == len(found):
            self._findings.differ(
                "if the layers are the same under other names, use --match order."
            )

    def _pairs_in_layer(self, name: str, other_name: str) -> Iterator[tuple[int, int]]:
        expected = _weights_of(self._reference, name)
        found = _weights_of(self._checkpoint, other_name)
        if expected.keys() != found.keys():
            for labels, other_labels in self._relabelled(expected, found):
                if labels.keys() == other_labels.keys():
                    expected, found = labels, other_labels
                    break
            else:
                is_same_count = len(expected) == len(found)
                if is_same_count and self._by == "order":
                    yield from zip(expected.values(), found.values(), strict=True)
                    return
                if is_same_count:
                    self._findings.differ(
                        f"layer {other_name!r} names its weights in another way. If they are the "
                        "same under other names, use --match order."
                    )
        for weight in [*expected, *(n for n in found if n not in expected)]:
            if weight in expected and weight in found:
                yield expected[weight], found[weight]
            elif weight in expected:
                self._findings.differ(
                    f"variable '{other_name}/{weight}' is missing "
                    f"(present in {self._findings.expected_in})."
                )
            else:
                self._findings.differ(
                    f"variable '{other_name}/{weight}' is not in {self._findings.expected_in}."
                )

    def _relabelled(
        self, expected: Mapping[str, int], found: Mapping[str, int]
    ) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
        """Other ways to name the weights of one layer: by rank, and by their last part alone.

        A model that was loaded from a file saves `dense/kernel` where the model that was built
        in the process saves `sequential/dense/kernel` (Keras 3), and Keras 2 `dense/kernel:0`.
        """
        yield (
            {self._reference.label(name): p for name, p in expected.items()},
            {self._checkpoint.label(name): p for name, p in found.items()},
        )
        last = {last_part(name): position for name, position in expected.items()}
        other_last = {last_part(name): position for name, position in found.items()}
        if len(last) == len(expected) and len(other_last) == len(found):
            yield last, other_last


def _weights_of(described: Described, layer: str) -> dict[str, int]:
    """Position of each weight of a legacy layer, by its name within the layer."""
    return {
        variable.path.removeprefix(f"{layer}/"): position
        for position, variable in described.layers[layer]
    }
