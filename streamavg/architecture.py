"""The model's configuration: whether two of them describe the same computation.

Keras stores the architecture as JSON (`config.json`, or the attribute `model_config`). Two saves
of one model differ in automatic names, memory addresses and compile settings, which mean nothing
for an average. A difference in an activation or a stride means that the weights belong to another
function, although every shape is the same.

    what differs                                      is
    ------------------------------------------------  --------------------------------------------
    names Keras gave by counting, shared_object_id,   nothing
      build_config, compile_config, versions
    what acts in training only: initializers,         nothing
      regularizers, dropout rates, augmentation
    dtype policies, implementation choices            a warning: same function, other rounding
    settings of classes that are not Keras' own       a warning: their meaning is unknown
    all else: classes, activations, connections,      an error
      preprocessing constants, order of layers

Nothing in a configuration is ever executed. Source: keras/src/saving/serialization_lib.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamavg.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_AUTOMATIC_NAME = re.compile(r"(.*?)(?:_([0-9]{1,9}))?", re.DOTALL)
_BOOKKEEPING = frozenset(
    {"name", "shared_object_id", "build_config", "compile_config", "registered_name", "module",
     "keras_version", "backend", "build_input_shape", "batch_input_shape", "batch_shape"}
)  # fmt: skip
"""Shapes are among them: those of the variables are compared, and inputs may vary in size."""
_TRAINING = re.compile(
    r"trainable|seed|momentum|.*_initializer|.*_regularizer|.*_constraint|dropout|"
    r"recurrent_dropout|attention_dropout|synchronized|renorm.*|lora_rank|lora_alpha|"
    r"quantization_config|autocast"
)
_TRAINING_CLASSES = re.compile(
    r"(Spatial|Alpha|Gaussian)?Dropout(\dD)?|GaussianNoise|ActivityRegularization|"
    r"Random(Brightness|ColorDegeneration|ColorJitter|Contrast|Crop|ElasticTransform|Erasing|Flip|"
    r"GaussianBlur|Grayscale|Height|Hue|Invert|Perspective|Posterization|Rotation|Saturation|"
    r"Sharpness|Shear|Translation|Width|Zoom)|"
    r"RandAugment|AugMix|MixUp|CutMix|Solarization|Equalization"
)
_ROUNDING = re.compile(r"dtype|implementation|unroll|use_cudnn|flash_attention|seed_generator")
_PREPROCESSING_CLASSES = frozenset(
    {"Normalization", "Rescaling", "Resizing", "CenterCrop", "Discretization", "StringLookup",
     "IntegerLookup", "TextVectorization", "Hashing", "HashedCrossing", "CategoryEncoding",
     "FeatureSpace", "MelSpectrogram", "STFTSpectrogram"}
)  # fmt: skip
_SAME_CLASS = {"Model": "Functional"}
"""Older names of classes; Keras up to 2.2 wrote functional models so."""
_REFERENCES = frozenset({"inbound_nodes", "input_layers", "output_layers"})
_KERAS_2_STEMS = {"Functional": "model", "Model": "model", "InputLayer": "input"}
"""Classes whose automatic names are not their own in snake case (Keras 2)."""
DIFFERENT_DATA = "the checkpoints were trained on differently prepared data"
_MISSING = object()


def automatic_name(name: str) -> tuple[str, int]:
    """Splits a name as Keras numbers them: "dense_7" is ("dense", 7), "dense" is ("dense", 0)."""
    match = _AUTOMATIC_NAME.fullmatch(name)
    assert match is not None, "the pattern matches every name"
    return match[1], int(match[2] or 0)


def snake_case(class_name: str) -> str:
    """The name Keras gives to objects of a class: "Conv2DTranspose" is "conv2d_transpose".

    A registered class may be written with its package: "package>Class".

    Source: keras.src.utils.naming.to_snake_case.
    """
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """One difference between two configurations."""

    text: str
    """What differs, where, and both values; without the files."""
    is_error: bool
    """Whether it changes what the model computes; else it is worth a warning."""


def parse_config(text: str, path: Path) -> Any:
    """Parses a configuration. Raises: CorruptFileError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"its model configuration is not JSON: {error}.") from error


def automatic_stems(config: Any) -> frozenset[str]:
    """Snake-case names of all classes in a configuration: the stems of automatic names."""
    stems = {snake_case(item["class_name"]) for item in _objects(config)}
    stems |= {f"{stem}_cell" for stem in stems}  # what a recurrent layer calls its inside
    stems |= {f"{side}_{stem}" for stem in stems for side in ("forward", "backward")}
    return frozenset(stems | {*_KERAS_2_STEMS.values()})


def layer_classes(config: Any) -> dict[str, str]:
    """Class of each layer, nested ones included, by the layer's name."""
    return {name: item["class_name"] for item in _objects(config) if (name := _name_of(item))}


def quantized_layers(config: Any) -> list[str]:
    """Names of layers whose dtype policy is a quantized one."""
    names = []
    for item in _objects(config):
        settings = item["config"]
        if isinstance(settings, dict) and _is_quantized(settings.get("dtype")):
            names.append(_name_of(item) or item["class_name"])
    return names


def _is_quantized(policy: Any) -> bool:
    if isinstance(policy, str):
        return "_from_" in policy
    if not isinstance(policy, dict):
        return False
    settings = policy.get("config")
    mode = settings.get("mode") if isinstance(settings, dict) else None
    return "Quantized" in str(policy.get("class_name")) or mode is not None


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """All serialised objects in a configuration, outer before inner."""
    pending = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            if isinstance(current.get("class_name"), str) and "config" in current:
                yield current
            pending.extend(reversed(current.values()))
        elif isinstance(current, list):
            pending.extend(reversed(current))


def _name_of(item: Mapping[str, Any]) -> str | None:
    settings = item["config"]
    name = settings.get("name") if isinstance(settings, dict) else None
    is_policy = "Policy" in item["class_name"]
    return name if isinstance(name, str) and not is_policy else None


def compare_configs(
    reference: Any, other: Any, versions: tuple[str | None, str | None]
) -> list[ConfigDifference]:
    """Lists what differs between two configurations, apart from what means nothing.

    Args:
        reference: parsed configuration of the reference.
        other: parsed configuration of another checkpoint.
        versions: of the Keras that wrote each, such as "3.15.1". Between two versions, a setting
            that only one of them knows is no difference; between Keras 2 and 3, which write the
            same setting in different ways, only classes and the order of layers can be errors.
    """
    comparison = _Comparison(_canonical_names(reference), _canonical_names(other), versions)
    try:
        comparison.compare_objects(reference, other, "the model")
    except RecursionError:
        text = "the model: its configuration is nested too deeply to be compared"
        comparison.found.append(ConfigDifference(text, is_error=True))
    return comparison.found


def _canonical_names(config: Any) -> dict[str, str]:
    """Maps each layer's name to one that does not depend on what the process built before.

    "dense_6" and "dense_7" become "Dense #1" and "Dense #2"; the user's names stay.
    """
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    automatic: list[tuple[str, int, str]] = []
    for item in _objects(config):
        name = _name_of(item)
        if name is None or name in names:
            continue
        stem, number = automatic_name(name)
        class_name = item["class_name"]
        names[name] = name
        if stem in {snake_case(class_name), _KERAS_2_STEMS.get(class_name)}:
            automatic.append((class_name, number, name))
    for class_name, _, name in sorted(automatic):
        counts[class_name] = counts.get(class_name, 0) + 1
        names[name] = f"{class_name} #{counts[class_name]}"
    return names


class _Comparison:
    def __init__(
        self,
        names: Mapping[str, str],
        other_names: Mapping[str, str],
        versions: tuple[str | None, str | None],
    ) -> None:
        self._names = names
        self._other_names = other_names
        self._same_version = versions[0] == versions[1]
        self._same_major = len({(version or "").split(".")[0] for version in versions}) == 1
        self.found: list[ConfigDifference] = []

    def compare_objects(self, reference: Any, other: Any, where: str) -> None:
        """Compares two serialised objects: class, then settings."""
        if not isinstance(reference, dict) or not isinstance(other, dict):
            if reference != other:
                self._differ(where, "configuration", reference, other, is_error=True)
            return
        class_name, other_class = reference.get("class_name"), other.get("class_name")
        if _current_class(class_name) != _current_class(other_class):
            self._differ(where, "class", class_name, other_class, is_error=True)
            return
        for key in _REFERENCES:
            self._compare_references(reference.get(key), other.get(key), where, key)
        if _TRAINING_CLASSES.fullmatch(str(class_name)):
            return
        if class_name == "__lambda__":
            # Compiled code names the file and line that it was written in: never the same twice.
            if reference != other:
                text = f"{where}: its code is compiled to other bytes, expected the same"
                self.found.append(ConfigDifference(text, is_error=False))
            return
        first = len(self.found)
        settings, other_settings = reference.get("config"), other.get("config")
        is_known = is_from_keras(reference)
        if not isinstance(settings, dict) or not isinstance(other_settings, dict):
            self._compare(settings, other_settings, where, "config", is_known)
        else:
            self._compare_settings(settings, other_settings, where, is_known)
        if str(class_name) in _PREPROCESSING_CLASSES:
            self._blame_preprocessing(first)

    def _compare_settings(
        self,
        reference: Mapping[str, Any],
        other: Mapping[str, Any],
        where: str,
        is_known: bool,
    ) -> None:
        for key in [*reference, *(key for key in other if key not in reference)]:
            if key in _BOOKKEEPING or _TRAINING.fullmatch(key):
                continue
            ours, theirs = reference.get(key, _MISSING), other.get(key, _MISSING)
            if not self._same_version and (key == "axis" or _MISSING in (ours, theirs)):
                continue  # an axis is 3, [3] or -1, as the version likes it
            if key == "layers" and isinstance(ours, list) and isinstance(theirs, list):
                self._compare_layers(ours, theirs, where)
            elif key in _REFERENCES:
                self._compare_references(ours, theirs, where, key)
            elif _ROUNDING.fullmatch(key):
                policies = _policy_name(ours), _policy_name(theirs)
                if policies[0] != policies[1]:
                    self._differ(where, key, *policies, is_error=False)
            else:
                self._compare(ours, theirs, where, key, is_known)

    def _compare_layers(self, ours: list[Any], theirs: list[Any], where: str) -> None:
        if len(ours) != len(theirs):
            self._differ(where, "number of layers", len(ours), len(theirs), is_error=True)
            return
        for layer, other in zip(ours, theirs, strict=True):
            if not isinstance(layer, dict) or not isinstance(other, dict):
                continue
            name, other_name = self._layer_names(layer, other)
            here = f"layer {_name_of(layer)!r}" if "config" in layer else where
            if name != other_name and layer.get("class_name") == other.get("class_name"):
                self._differ(here, "name", _name_of(layer), _name_of(other), is_error=True)
            self.compare_objects(layer, other, here)

    def _layer_names(self, layer: Any, other: Any) -> tuple[str | None, str | None]:
        if "config" not in layer or "config" not in other:
            return None, None
        name, other_name = _name_of(layer), _name_of(other)
        return self._names.get(name or ""), self._other_names.get(other_name or "")

    def _compare_references(self, ours: Any, theirs: Any, where: str, key: str) -> None:
        """Compares connections; one difference says enough.

        Between versions only who is connected to whom is compared, not how it is written.
        """
        simplify = _renamed if self._same_version else _connections
        if simplify(ours, self._names) != simplify(theirs, self._other_names):
            text = f"{where}: {key} are other connections, expected the same"
            self.found.append(ConfigDifference(text, is_error=True))

    def _compare(self, ours: Any, theirs: Any, where: str, key: str, is_known: bool) -> None:
        if ours == theirs:
            return
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if "class_name" in ours and "class_name" in theirs:
                self.compare_objects(ours, theirs, f"{where}, {key}")
            else:
                for inner in [*ours, *(name for name in theirs if name not in ours)]:
                    if inner in _BOOKKEEPING:
                        continue
                    pair = ours.get(inner, _MISSING), theirs.get(inner, _MISSING)
                    self._compare(*pair, where, f"{key}.{inner}", is_known)
        elif _are_nested(ours, theirs):
            for index, pair in enumerate(zip(ours, theirs, strict=True)):
                self._compare(*pair, where, f"{key}[{index}]", is_known)
        else:
            self._differ(where, key, ours, theirs, is_error=is_known and self._same_major)

    def _differ(self, where: str, key: str, ours: Any, theirs: Any, *, is_error: bool) -> None:
        text = f"{where}: {key} is {_shown(theirs)}, expected {_shown(ours)}"
        self.found.append(ConfigDifference(text, is_error))

    def _blame_preprocessing(self, first: int) -> None:
        """Says of the differences found since `first` what they mean for the data."""
        for index, difference in enumerate(self.found[first:], first):
            text = f"{difference.text} ({DIFFERENT_DATA})"
            self.found[index] = ConfigDifference(text, difference.is_error)


def _policy_name(policy: Any) -> Any:
    """A dtype policy by its name, however it is written."""
    if isinstance(policy, dict) and isinstance(policy.get("config"), dict):
        return policy["config"].get("name", policy.get("class_name"))
    return policy


def _are_nested(ours: Any, theirs: Any) -> bool:
    """Whether two values are lists of the same length that hold more than plain numbers."""
    return (
        isinstance(ours, list)
        and isinstance(theirs, list)
        and len(ours) == len(theirs)
        and any(isinstance(item, (dict, list)) for item in ours)
    )


def is_from_keras(item: Mapping[str, Any]) -> bool:
    """Whether a class is one of Keras' own; legacy files tell it of registered classes only."""
    module = item.get("module")
    if any(">" in str(item.get(key)) for key in ("registered_name", "class_name")):
        return False
    return module is None or str(module).split(".", 1)[0] in {"keras", "builtins"}


def _connections(node: Any, names: Mapping[str, str]) -> list[str]:
    """Canonical names of all layers that a node refers to, in order."""
    if isinstance(node, str):
        return [names[node]] if node in names else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [name for item in inner for name in _connections(item, names)]


def _current_class(class_name: Any) -> Any:
    return _SAME_CLASS.get(class_name, class_name) if isinstance(class_name, str) else class_name


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of `node` with canonical layer names and without bookkeeping."""
    if isinstance(node, str):
        return names.get(node, node)
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if isinstance(node, dict):
        return {
            key: _renamed(value, names)
            for key, value in node.items()
            if key not in _BOOKKEEPING and key not in {"shape", "dtype"}
        }
    return node


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
