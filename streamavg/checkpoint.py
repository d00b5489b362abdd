"""The nouns: what a checkpoint is, before and without its values.

A `Checkpoint` is what the headers of one file say. Its values stay in the file and are reached
through `Values`, slab by slab. A `CheckpointWriter` takes slabs and makes a file of them. The
rooms above see only these, never a format.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from streamavg.errors import ChangedFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from streamavg.access import Access
    from streamavg.page_buffer import PageBuffer, SlabBuffer


class Role(enum.StrEnum):
    """What a variable is for, as far as its file tells."""

    WEIGHT = "weight"
    """A parameter or a moving statistic of a layer."""
    PREPROCESSING = "preprocessing"
    """Learned from the data before training: Normalization's mean, tf-idf weights."""
    SEED = "seed"
    """State of a random generator."""
    METRIC = "metric"
    """Running total of a metric (Keras 2.12 to 2.15 store them)."""
    OPTIMIZER = "optimizer"
    """State of the optimizer: iteration, learning rate, slots."""
    QUANTIZED = "quantized"
    """Codes, scales or histories of a quantized layer: their mean has no meaning."""
    ADAPTER = "adapter"
    """An unmerged low-rank factor (LoRA): the mean of factors is not the mean of products."""


class Kind(enum.StrEnum):
    """Family of a variable's dtype."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"
    STRING = "string"


class Naming(enum.StrEnum):
    """How a format names variables."""

    BY_PLACE = "by place"
    """By their place in the model, `layers/dense_1/vars/0`: the same in every process."""
    BY_LAYER = "by layer"
    """By the name of their layer, `dense_6/kernel`, in which Keras counts what it built."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A named array in a checkpoint; no values."""

    path: str
    """Name within the checkpoint, such as `layers/dense/vars/0` or `dense/dense/kernel`."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """In native byte order. `object` for strings of variable length."""
    role: Role
    layer: str
    """Path of the layer that owns it, such as `layers/dense`."""
    aliases: tuple[str, ...] = ()
    """Further paths of the same stored array, in file order (a shared variable)."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes; for strings of variable length, of their references."""
        return self.size * self.dtype.itemsize

    def index_of(self, element: int) -> tuple[int, ...]:
        """The index of an element that is numbered in C order."""
        index = []
        for length in reversed(self.shape):
            element, place = divmod(element, length)
            index.append(place)
        return tuple(reversed(index))

    @property
    def kind(self) -> Kind:
        """Family of the dtype. bfloat16, which NumPy knows as kind "V", is a float."""
        if self.dtype.kind in "SUO":
            return Kind.STRING
        if self.dtype.kind == "b":
            return Kind.BOOL
        return Kind.INTEGER if self.dtype.kind in "iu" else Kind.FLOAT


def last_part(path: str) -> str:
    """Last part of a path, without the ":0" that Keras 2 appends."""
    return path.rsplit("/", 1)[-1].removesuffix(":0")


ABSENT = -1
"""Stands for the position of a variable that a checkpoint does not have."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive elements of one variable, in C order."""

    position: int
    """Index of the variable in its checkpoint's `variables`."""
    start: int
    """First element."""
    count: int
    """Number of elements."""


@dataclass(frozen=True, slots=True)
class Slab:
    """What is handled at once: a run of one variable, or several small variables whole.

    Its values are one array: those of the first run, then those of the second, and so on.
    """

    runs: tuple[Run, ...]
    count: int
    """Number of elements of all runs."""

    def place_of(self, element: int) -> Run:
        """Where one element of the slab is: a run of it alone."""
        for run in self.runs:
            if element < run.count:
                break
            element -= run.count
        return Run(run.position, run.start + element, 1)


def runs_of(position: int, size: int, most_elements: int) -> Iterator[Run]:
    """Cuts a variable of `size` elements into runs of at most `most_elements`, in order."""
    for start in range(0, size, most_elements):
        yield Run(position, start, min(most_elements, size - start))


def gathered(runs: Iterable[Run], most_elements: int) -> Iterator[Slab]:
    """Puts runs, of at most `most_elements` each, together into slabs of at most so many."""
    together: list[Run] = []
    count = 0
    for run in runs:
        if together and count + run.count > most_elements:
            yield Slab(tuple(together), count)
            together, count = [], 0
        together.append(run)
        count += run.count
    if together:
        yield Slab(tuple(together), count)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that owns variables, as the file names it."""

    path: str
    """Where its variables are: `layers/dense_1` (Keras 3 layout) or `dense_6` (legacy)."""
    name: str | None
    """The user's or Keras' automatic name; None where the file does not tell."""
    class_name: str | None
    """Snake-case name of its class, as in `layers/<class>_1`; None where unknown."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What must stay the same while a file is read."""

    device: int
    inode: int
    size: int
    """In bytes."""
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Identity of the file at `path` now. Raises: OSError."""
        stat = path.stat()
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def require_same_file(self, path: Path) -> None:
        """Raises ChangedFileError if another file is at `path`; its content may have changed."""
        now = self._identity_now(path)
        if (now.device, now.inode) != (self.device, self.inode):
            raise ChangedFileError(path, "was replaced by another file while it was read.")

    def require_unchanged(self, path: Path) -> None:
        """Raises ChangedFileError if `path` no longer has this identity."""
        if self._identity_now(path) != self:
            raise ChangedFileError(
                path, "changed while it was read. Merge again once it is completely written."
            )

    @staticmethod
    def _identity_now(path: Path) -> FileIdentity:
        try:
            return FileIdentity.of(path)
        except OSError as error:
            raise ChangedFileError(
                path, f"vanished while it was read ({error.strerror})."
            ) from None


class Values(Protocol):
    """The values of one checkpoint, still in its file. Positions index its `variables`.

    Several threads may read at once.
    """

    @property
    def library_bytes(self) -> int:
        """Bytes that a library holds beside the caller's buffer while it decodes values, or 0."""
        ...

    def read_into(self, position: int, start: int, out: NDArray[Any]) -> None:
        """Fills `out` with consecutive elements of a variable.

        Args:
            position: index of the variable.
            start: first element, in C order.
            out: one-dimensional, contiguous, of the variable's dtype; owned by the caller.

        Raises:
            CorruptFileError: the file ends early or cannot be decoded.
            ChangedFileError: the file is not the one that was opened.
        """
        ...

    def read_slab(self, slab: Slab, dtype: np.dtype[Any], buffer: SlabBuffer) -> NDArray[Any]:
        """Reads the values of a slab, of which all variables have the same `dtype`.

        Returns:
            One-dimensional, of `dtype`, in the memory of `buffer` until that is used again.

        Raises: as `read_into`.
        """
        ...

    def read_ahead(self, slab: Slab, itemsize: int) -> None:
        """Says that a slab of elements of `itemsize` bytes will be read soon."""
        ...

    def cached_probes(self) -> Iterable[bool | None]:
        """Whether the system holds the file's bytes in memory, at some places of it."""
        ...

    def use(self, access: Access) -> None:
        """Chooses how slabs are read from now on."""
        ...

    def in_storage_order(self, positions: Sequence[int]) -> list[int]:
        """Positions sorted by where their values lie in the file."""
        ...

    def aligned(self, positions: NDArray[np.int64]) -> Values:
        """The same values in another order: position i of the result is `positions[i]` here.

        A position that is `ABSENT` may not be read from the result. The result takes over the
        open file, so only the result may be used afterwards. It holds 16 bytes a variable,
        whatever the checkpoint's description needed.
        """
        ...

    def note(self, slab: Slab, values: NDArray[Any]) -> None:
        """Takes the values of a slab, as `read_slab` returned them, into the file's checksum.

        Does nothing where the file has none. Each slab may be noted once.
        """
        ...

    def verify(self) -> None:
        """Checks the container's own checksum, where it has one, in bounded memory.

        What was noted is not read again.

        Raises:
            CorruptFileError: the checksum does not match the content.
        """
        ...

    def close(self) -> None:
        """Closes the file. Reading afterwards opens it again."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One saved state of a model: what its headers say, and the way to its values.

    A context manager: leaving it closes the file.
    """

    path: Path
    format: str
    """Name of the format: `keras-weights`, `keras-archive` or `keras-legacy`."""
    naming: Naming
    producer: str | None
    """Version of the Keras that wrote it, such as "3.15.1"; None where the file does not tell."""
    variables: tuple[Variable, ...]
    layers: tuple[Layer, ...]
    """Layers that own variables, in the file's order."""
    config: str | None
    """The model's configuration, JSON as stored; None for weights alone."""
    assets: Mapping[str, str]
    """SHA-256 of each asset (vocabularies), by name."""
    values: Values
    identity: FileIdentity
    notes: tuple[str, ...] = ()
    """What a reader of this file should know, one sentence each."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.values.close()

    def position(self, path: str) -> int:
        """Index of the variable named `path`. Raises: KeyError."""
        for position, variable in enumerate(self.variables):
            if path == variable.path or path in variable.aliases:
                return position
        raise KeyError(path)

    def read(self, path: str) -> NDArray[Any]:
        """Reads one variable whole.

        Returns:
            A new array with the variable's shape and dtype, owned by the caller.

        Raises:
            KeyError: no variable of that name.
            FormatError: the values cannot be read.
        """
        import numpy as np  # noqa: PLC0415 - the nouns load without NumPy

        position = self.position(path)
        variable = self.variables[position]
        values = np.empty(variable.size, variable.dtype)
        self.values.read_into(position, 0, values)
        return values.reshape(variable.shape)


class CheckpointWriter(Protocol):
    """Makes one checkpoint file. Nothing is at its place until `commit`.

    Several threads may write at once, each its own slab. A context manager: leaving it without
    `commit` removes everything that was written.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def write(self, position: int, start: int, values: NDArray[Any]) -> None:
        """Stores consecutive elements of one variable.

        Args:
            position: index of the variable in the reference's `variables`.
            start: first element, in C order.
            values: one-dimensional, of the output dtype; read, not kept.

        Raises:
            OutputError: the file system refuses.
        """
        ...

    def result(self, slab: Slab, dtype: np.dtype[Any], buffer: PageBuffer) -> NDArray[Any]:
        """Room in `buffer` for the values of a slab, from where they are written fastest."""
        ...

    def write_slab(self, slab: Slab, values: NDArray[Any]) -> None:
        """Stores the values of a slab, of which all variables have the same dtype.

        Args:
            slab: positions are indices of the reference's `variables`.
            values: one-dimensional, of the output dtype; read, not kept.

        Raises: as `write`.
        """
        ...

    def commit(self) -> None:
        """Flushes the file to the disk and puts it at its place, whole.

        Raises:
            OutputError: the file system refuses, or the place was taken meanwhile.
        """
        ...
