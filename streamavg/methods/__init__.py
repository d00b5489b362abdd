"""How the values of checkpoints are combined: one file a method, pure NumPy, no files, no threads.

A new method is one new file here and one line in `METHODS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from streamavg.methods.mean import Mean
from streamavg.methods.median import Median
from streamavg.methods.trimmed_mean import TrimmedMean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamavg.coefficients import Weighting


class Accumulator(Protocol):
    """The running state of one slab; made once, and started again for each slab."""

    def start(self, count: int) -> None:
        """Forgets everything and expects slabs of `count` elements, at most the capacity."""
        ...

    def add(self, values: NDArray[Any], checkpoint: int) -> None:
        """Takes in the values of one checkpoint.

        Args:
            values: one-dimensional, of the started length; read, not kept.
            checkpoint: index of the checkpoint in merge order; each comes exactly once.
        """
        ...

    def all_finite(self) -> bool:
        """Whether no value that was added is NaN or infinite."""
        ...

    def result(self, out: NDArray[Any]) -> None:
        """Writes the combined values, rounded once to the dtype of `out`, which the caller owns."""
        ...


class Combining(Protocol):
    """A way to combine the values of one variable."""

    def bytes_per_element(self, dtype: np.dtype[Any], output: np.dtype[Any], count: int) -> int:
        """Bytes that an accumulator takes per element of its capacity, temporaries included.

        Args:
            dtype: of the values added.
            output: of the result.
            count: number of checkpoints.
        """
        ...

    def accumulator(
        self, dtype: np.dtype[Any], capacity: int, coefficients: Weighting
    ) -> Accumulator:
        """Makes an accumulator for slabs of up to `capacity` elements of `dtype`."""
        ...


class Method(Combining, Protocol):
    """A way to combine checkpoints."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    def summary(self, count: int) -> str:
        """What it does with the values of `count` checkpoints, in a few words."""
        ...


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Mean(),
        Mean("ema"),
        Mean("geometric-median"),
        Mean("slerp", "turns between"),
        Median(),
        TrimmedMean(),
    )
}
"""An exponential moving average and a geometric median are means: only their coefficients are
special. So is slerp, with factors for each variable. `streamavg.weighing` finds what follows from
the values."""


def method_named(name: str, trim: float | None = None) -> Method:
    """The method with a name.

    Args:
        name: as on the command line.
        trim: of the trimmed mean; None for its default.

    Raises:
        OptionError: a trim that leaves nothing.
    """
    return METHODS[name] if trim is None else TrimmedMean(trim)
