"""The options of a merge: their names, their choices, their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from streamavg.errors import OptionError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    StrPath = str | os.PathLike[str]

MethodName = Literal["mean", "ema", "median", "trimmed-mean", "geometric-median", "slerp"]
Order = Literal["auto", "given", "natural", "mtime"]
OutputDtype = Literal["keep", "float16", "bfloat16", "float32", "float64"]
OptimizerPolicy = Literal["drop", "reference"]
NonFloatPolicy = Literal["reference", "last", "equal"]
PreprocessingPolicy = Literal["equal", "reference"]
BatchNormPolicy = Literal["mean", "pooled", "reference"]
MatchBy = Literal["name", "order"]
AccessOption = Literal["auto", "buffered", "direct"]

CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(MethodName),
    "order": get_args(Order),
    "dtype": get_args(OutputDtype),
    "optimizer": get_args(OptimizerPolicy),
    "non_float": get_args(NonFloatPolicy),
    "preprocessing": get_args(PreprocessingPolicy),
    "batchnorm": get_args(BatchNormPolicy),
    "match": get_args(MatchBy),
    "io": get_args(AccessOption),
}


class MergeOptions(TypedDict, total=False):
    """Options of `merge` and `plan`; all may be left out."""

    method: MethodName
    """The "mean" (default), or "ema", the exponential moving average, oldest checkpoint first; or,
    robust against outliers, the elementwise "median" or "trimmed-mean", or the "geometric-median"
    of whole checkpoints; or, between two, "slerp", spherical linear interpolation of each variable.
    The last two read the values twice."""
    order: Order
    """In which the checkpoints are merged: as "given", in the "natural" order of their names
    (ckpt-2 before ckpt-10), or by modification time, "mtime". The default, "auto", is natural with
    `last`, `best` and `method="ema"`, where it decides something, and as given otherwise."""
    last: int | None
    """Merge only the last so many checkpoints in that order."""
    best: int | None
    """Merge only the so many checkpoints with the best scores."""
    scores: StrPath | Mapping[StrPath, float] | None
    """Where scores are: a CSV as Keras' CSVLogger writes it, a JSON or CSV file of paths and
    scores, such a mapping, or "filename" if the names of the checkpoints hold them."""
    metric: str | None
    """Which of several metrics in `scores`; `val_loss` by default, if it is there."""
    maximize: bool
    """More of the metric is better. By default its name tells."""
    minimize: bool
    """Less of the metric is better. By default its name tells."""
    weights: Sequence[float] | Mapping[StrPath, float] | StrPath | None
    """One per checkpoint, as in `numpy.average`; uniform without. A mapping of paths to numbers, or
    a JSON or CSV file of them, finds its checkpoints in any order."""
    normalize: bool
    """Divide the weights by their sum instead of requiring that they sum to 1."""
    softmax: float | None
    """Weight by exp(score / softmax): a temperature, in the unit of the scores."""
    decay: float | None
    """Of `method="ema"`: how much of the average is kept at each checkpoint."""
    trim: float | None
    """Of `method="trimmed-mean"`: the share of the values that is dropped at each end, at least 0
    and less than 0.5; 0.1 by default."""
    dtype: OutputDtype
    """Of averaged values in the output; "keep" by default."""
    optimizer: OptimizerPolicy
    """"drop" the optimizer's variables (default), or keep the "reference"'s."""
    non_float: NonFloatPolicy
    """Integers, bools and strings are the "reference"'s (default), the "last" checkpoint's, or
    must be "equal"."""
    preprocessing: PreprocessingPolicy
    """Normalization state and vocabularies must be "equal" (default), or are the "reference"'s."""
    batchnorm: BatchNormPolicy
    """Moving variances of BatchNormalization layers are the "mean" (default), or "pooled", the mean
    and how far the moving means are apart; or moving means and variances are the "reference"'s."""
    match: MatchBy
    """Pair the layers of legacy files by "name" (default) or by "order"."""
    reference: str | os.PathLike[str] | None
    """The input whose structure the output takes; the first by default."""
    memory_limit: int | str | None
    """Peak resident memory of this process, in bytes or as text like "64MiB"; 256 MiB by default,
    and more in a process that is large already."""
    threads: int | None
    """That read, average and write slabs; the bits of the result do not depend on it. By default as
    many as there are processors, up to four."""
    io: AccessOption
    """How inputs are read: "buffered" through the page cache, "direct" past it, or "auto" (default)
    by what is in the cache and what memory there is for it."""
    fsync: bool
    """Wait until the disk has all of the output before it is put in place; True by default."""
    allow_non_finite: bool
    """Average NaN and Inf like other values instead of refusing them."""
    force: bool
    """Replace an existing output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`MergeOptions` with all defaults filled in and all choices checked."""

    method: MethodName = "mean"
    order: Order = "auto"
    last: int | None = None
    best: int | None = None
    scores: StrPath | Mapping[StrPath, float] | None = None
    metric: str | None = None
    maximize: bool = False
    minimize: bool = False
    weights: Sequence[float] | Mapping[StrPath, float] | StrPath | None = None
    normalize: bool = False
    softmax: float | None = None
    decay: float | None = None
    trim: float | None = None
    dtype: OutputDtype = "keep"
    optimizer: OptimizerPolicy = "drop"
    non_float: NonFloatPolicy = "reference"
    preprocessing: PreprocessingPolicy = "equal"
    batchnorm: BatchNormPolicy = "mean"
    match: MatchBy = "name"
    reference: str | os.PathLike[str] | None = None
    memory_limit: int | str | None = None
    threads: int | None = None
    io: AccessOption = "auto"
    fsync: bool = True
    allow_non_finite: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            choices = CHOICES.get(field.name)
            value = getattr(self, field.name)
            if choices is not None and value not in choices:
                raise OptionError(f"{field.name}={value!r}: choose one of {', '.join(choices)}.")
