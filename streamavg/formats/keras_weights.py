"""`.weights.h5` as Keras 2.12 and later write it ("version 3 of the saving format").

    /layers/<class>[_k]/vars/0, 1, ...           one dataset per variable   attribute name="dense_7"
    /layers/<class>/<attribute>/vars/0           a layer held by an attribute of a layer
    /<attribute>/vars/0                          an attribute of a subclassed model
    /_layer_checkpoint_dependencies/...          instead of /layers in Keras 2.12 to 2.14
    /optimizer/vars/0, ...                       optimizer state, if the model was compiled
    /metrics/<class>/vars/0, 1                   Keras 2.12 to 2.15 only

Every dataset below a group `vars` is a variable, named by its full path. Its owner is the group
above `vars`; the user's name of that layer is the attribute `name` (Keras 3.6 and later).
Source: keras/src/saving/saving_lib.py, Keras 2.12 to 3.15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamavg.architecture import automatic_name
from streamavg.checkpoint import Checkpoint, Layer, Naming, Role, Variable, last_part
from streamavg.formats import library as h5py
from streamavg.formats.hdf5 import Hdf5File, Hdf5Values, hdf5_of, values_like
from streamavg.formats.hdf5_headers import is_hard_link, read_text, walk
from streamavg.formats.hdf5_writing import Hdf5CheckpointWriter, Hdf5Stretch, Mirror
from streamavg.formats.plain_headers import NotPlain
from streamavg.formats.plain_writing import NotWritableError, Skeleton, make_skeleton
from streamavg.formats.roles import assign_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from streamavg.formats.datasets import Dataset
    from streamavg.formats.files import RandomAccessFile
    from streamavg.formats.output import OutputFile
    from streamavg.formats.plain_headers import Outline

NAME = "keras-weights"
VARIABLES_GROUP = "vars"
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""Groups whose members are named after their class."""
_ROLES = {"optimizer": Role.OPTIMIZER, "metrics": Role.METRIC}
"""Root groups that hold something other than layers."""


def recognises(opened: h5py.File) -> bool:
    """Whether an HDF5 file has this layout: a group of variables in the first two levels."""
    names = set(opened)
    if VARIABLES_GROUP in names or names & set(CONTAINERS):
        return True
    members = (opened[name] for name in names if is_hard_link(opened, name))
    return any(isinstance(m, h5py.Group) and VARIABLES_GROUP in set(m) for m in members)


def recognises_outline(outline: Outline) -> bool:
    """As `recognises`, for a file whose first two levels are known."""
    names = outline.members.keys()
    if VARIABLES_GROUP in names or names & set(CONTAINERS):
        return True
    return any(VARIABLES_GROUP in inner for inner in outline.members.values())


def read(file: RandomAccessFile) -> Checkpoint:
    """Reads the headers of a `.weights.h5` file. Raises: FormatError."""
    variables, layers, values, notes = describe_weights(Hdf5File(file))
    return Checkpoint(
        path=file.path,
        format=NAME,
        naming=Naming.BY_PLACE,
        producer=None,
        variables=variables,
        layers=layers,
        config=None,
        assets={},
        values=values,
        identity=file.identity,
        notes=notes,
    )


def describe_weights(
    hdf5: Hdf5File, known: Checkpoint | None = None
) -> tuple[tuple[Variable, ...], tuple[Layer, ...], Hdf5Values, tuple[str, ...]]:
    """Reads the headers of weights in this layout, wherever the HDF5 file lies.

    Args:
        hdf5: the file.
        known: a checkpoint in this layout whose headers may be the same.

    Returns:
        The variables, the layers that own them, the way to the values, and notes.

    Raises:
        FormatError: the file is damaged, unsafe, or holds what cannot be averaged.
    """
    if known is not None and known.naming == Naming.BY_PLACE:
        values = values_like(hdf5, known)
        if values is not None:
            return known.variables, known.layers, values, known.notes
    found, names = _headers(hdf5)
    datasets: list[Dataset] = []
    aliases: dict[str, list[str]] = {}
    by_address: dict[int, str] = {}
    unread = 0
    layers: dict[str, Layer] = {}
    for dataset in found:
        path = dataset.path
        layer_path = owner(path)
        if layer_path is None:
            unread += 1
            continue
        first = by_address.setdefault(dataset.address, path) if dataset.address else path
        if first != path:
            aliases.setdefault(first, []).append(path)
            continue
        datasets.append(dataset)
        if layer_path not in layers:
            layers[layer_path] = _layer(layer_path, names.get(_variables_group(layer_path)))
    variables = [
        Variable(
            path=dataset.path,
            shape=dataset.shape,
            dtype=dataset.dtype,
            role=_ROLES.get(dataset.path.split("/", 1)[0], Role.WEIGHT),
            layer=owner(dataset.path) or "",
            aliases=tuple(aliases.get(dataset.path, ())),
        )
        for dataset in datasets
    ]
    notes = (f"{unread} datasets outside any layer are left out: Keras does not read them",)
    return (
        assign_roles(variables),
        tuple(layers.values()),
        Hdf5Values(hdf5, datasets),
        notes if unread else (),
    )


def owner(path: str) -> str | None:
    """Path of the layer that owns a dataset; None for a dataset that is no variable."""
    parts = path.split("/")
    if VARIABLES_GROUP not in parts[:-1]:
        return None
    return "/".join(parts[: parts.index(VARIABLES_GROUP)])


def _headers(hdf5: Hdf5File) -> tuple[Sequence[Dataset], Mapping[str, str | None]]:
    """The headers of all datasets, and the names that the groups of variables have.

    Raises: FormatError.
    """
    plain = hdf5.plain_headers()
    if plain is not None:
        return plain.datasets, plain.names
    names: dict[str, str | None] = {}
    with hdf5.opened() as opened:
        datasets = list(walk(opened, hdf5.describer()))
        for layer_path in map(owner, (dataset.path for dataset in datasets)):
            group = "" if layer_path is None else _variables_group(layer_path)
            if group and group not in names:
                names[group] = read_text(h5py.h5g.open(opened.id, group.encode()), b"name")
    return datasets, names


def _variables_group(layer_path: str) -> str:
    """Path of the group that holds the variables of a layer."""
    return f"{layer_path}/{VARIABLES_GROUP}".lstrip("/")


def _layer(path: str, name: str | None) -> Layer:
    parent, _, member = path.rpartition("/")
    in_container = last_part(parent) in CONTAINERS
    return Layer(
        path=path,
        name=name,
        class_name=automatic_name(member)[0] if in_container else None,
    )


def create(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], output: OutputFile
) -> Hdf5CheckpointWriter:
    """Starts a `.weights.h5` file with the structure of the reference.

    Args:
        reference: a checkpoint in this layout, alone or inside an archive.
        dtypes: of the values that will be written, one per variable of the reference; None for
            variables that are left out.
        output: the file to write.
    """
    return Hdf5CheckpointWriter(
        Hdf5Stretch(output), skeleton(reference, dtypes), targets(reference, dtypes)
    )


def skeleton(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None]
) -> Skeleton | Callable[[h5py.File], None]:
    """The reference's structure as a new HDF5 file, or the function that fills one with it."""
    excluded = excluded_groups(reference, dtypes)
    try:
        root = hdf5_of(reference).plain_root()
        # Keras 2.12 to 3.5 do not load a file without the group of variables.
        required = VARIABLES_GROUP.encode()
        return make_skeleton(root, reference.variables, dtypes, excluded, required)
    except (NotPlain, NotWritableError):
        return skeleton_by_library(reference, dtypes, excluded)


def skeleton_by_library(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None], excluded: frozenset[str]
) -> Callable[[h5py.File], None]:
    """As `skeleton`, for any reference.

    Args:
        reference: see `create`.
        dtypes: see `create`.
        excluded: root groups that are left out.
    """
    placed = {
        path: dtype
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
        if dtype is not None
        for path in (variable.path, *variable.aliases)
    }

    def make(target: h5py.File) -> None:
        with hdf5_of(reference).opened() as source:
            mirror = Mirror(placed, excluded, reference.path, marks_bfloat16=True)
            mirror.fill(target, source)
            target.require_group(VARIABLES_GROUP)

    return make


def targets(reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None]) -> list[str | None]:
    """Where each variable of the reference goes: to its own path, or nowhere."""
    return [
        None if dtype is None else variable.path
        for variable, dtype in zip(reference.variables, dtypes, strict=True)
    ]


def excluded_groups(
    reference: Checkpoint, dtypes: Sequence[np.dtype[Any] | None]
) -> frozenset[str]:
    """Root groups of which no variable is written, such as `optimizer`."""
    written: set[str] = set()
    left_out: set[str] = set()
    for variable, dtype in zip(reference.variables, dtypes, strict=True):
        if variable.role == Role.OPTIMIZER:
            (left_out if dtype is None else written).add(variable.path.split("/", 1)[0])
    return frozenset(left_out - written)
