"""Whether the contenders wrote the same values: a fast wrong answer is not a contender.

Outputs are compared with the mean of the inputs in float64, computed here:

    exact         the mean, rounded once: within 0.5 ULP and what float64 sums are off by. Outputs
                  with the same coefficients are also the same bits
    float32 sums  of programs that sum in float32: within (N + 2) * 2**-24 * sum(c_i * |x_i|) more
    medians       the bits of `numpy.median` of the inputs

for a sum of N products c_i * x_i. Source: N. J. Higham, "Accuracy and Stability of Numerical
Algorithms", 2002, section 4.2.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from benchmarks.contenders import EXACT, FLOAT32_SUMS, MEDIANS, NOTHING
from benchmarks.inputs import numpy_dtype, suffix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from benchmarks.contenders import Contender
    from benchmarks.inputs import Model, Variable

    Reader = Callable[[Variable, slice], NDArray[Any]]
    """Gives some rows of a variable."""

ROWS = 2**21
"""Elements that are compared at once."""
SIGNIFICANT_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
SMALLEST_EXPONENT = {"float16": -24, "bfloat16": -133, "float32": -149, "float64": -1074}
"""Of two; the smallest positive number of each dtype, and its smallest ULP."""


class OutputsDifferError(Exception):
    """A contender did not write the values that are expected of it."""


def check_outputs(
    contenders: Sequence[Contender], model: Model, folder: Path, at_most: int | None = None
) -> None:
    """Compares the outputs of contenders that have the same inputs.

    Args:
        contenders: with their outputs in place.
        model: what the inputs are checkpoints of.
        folder: where the files are.
        at_most: how many variables are compared, evenly spread; all of them by default.

    Raises:
        OutputsDifferError: values are not what is expected; says which.
    """
    compared = [c for c in contenders if c.expected != NOTHING]
    if not compared:
        return
    with ExitStack() as stack:
        inputs = [stack.enter_context(reader(folder / name, model)) for name in compared[0].inputs]
        outputs = [
            (c, stack.enter_context(reader(folder / (c.output or ""), model))) for c in compared
        ]
        for variable, rows in _pieces(model, at_most):
            values = [read(variable, rows) for read in inputs]
            found = [(c, read(variable, rows)) for c, read in outputs]
            _check_piece(variable, values, found, model.dtype)


def _pieces(model: Model, at_most: int | None) -> Iterator[tuple[Variable, slice]]:
    variables = model.variables
    step = 1 if at_most is None else max(1, len(variables) // at_most)
    # An odd step meets kernels and biases alike.
    for variable in variables[:: step + (step > 1 and step % 2 == 0)]:
        length = variable.shape[0]
        rows = max(1, ROWS * length // variable.size)
        for start in range(0, length, rows):
            yield variable, slice(start, min(start + rows, length))


def _check_piece(
    variable: Variable,
    values: list[NDArray[Any]],
    found: list[tuple[Contender, NDArray[Any]]],
    dtype: str,
) -> None:
    bits: dict[object, tuple[str, NDArray[Any]]] = {}
    for contender, output in found:
        if output.dtype != values[0].dtype or output.shape != values[0].shape:
            _fail(contender, variable, f"{output.dtype} {output.shape}")
        if contender.expected == MEDIANS:
            if not np.array_equal(output, np.median(np.stack(values), axis=0)):
                _fail(contender, variable, "not the median")
            continue
        mean, magnitude = _weighted_mean(values, contender.weights)
        allowed = 0.5 * ulp(mean, dtype) + (len(values) + 2) * 2.0**-52 * magnitude
        if contender.expected == FLOAT32_SUMS:
            allowed += (len(values) + 2) * 2.0**-24 * magnitude
        errors = np.abs(output.astype(np.float64) - mean)
        is_wrong = ~(errors <= allowed)
        if is_wrong.any():
            _fail(contender, variable, f"off by {errors[is_wrong].max():g}")
        if contender.expected == EXACT:
            name, first = bits.setdefault(contender.weights, (contender.name, output))
            if first.tobytes() != output.tobytes():
                _fail(contender, variable, f"other bits than {name}")


def _weighted_mean(
    values: list[NDArray[Any]], weights: tuple[float, ...] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean and sum(c_i * |x_i|), in float64."""
    coefficients = [1.0] * len(values) if weights is None else list(weights)
    total = np.zeros(values[0].shape)
    magnitude = np.zeros(values[0].shape)
    for coefficient, one in zip(coefficients, values, strict=True):
        product = coefficient * one.astype(np.float64)
        total += product
        magnitude += np.abs(product)
    divisor = sum(coefficients)
    return total / divisor, magnitude / divisor


def ulp(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The distance of neighbouring numbers of a dtype around float64 values."""
    exponents = np.frexp(values)[1].astype(np.int64) - SIGNIFICANT_BITS[dtype]
    units: NDArray[Any] = np.ldexp(1.0, np.maximum(exponents, SMALLEST_EXPONENT[dtype]))
    return units


def _fail(contender: Contender, variable: Variable, problem: str) -> None:
    raise OutputsDifferError(f"{contender.name}: {variable.native_path}: {problem}")


# --- reading -------------------------------------------------------------------------------------


@contextmanager
def reader(path: Path, model: Model) -> Iterator[Reader]:
    """Opens a checkpoint in any of the layouts of `inputs`."""
    suffix = suffix_of(path)
    if suffix == ".safetensors":
        yield _safetensors_reader(path, model)
        return
    with ExitStack() as stack:
        if suffix == ".keras":
            path = stack.enter_context(_unpacked(path))
        file = stack.enter_context(h5py.File(path, "r"))

        def read(variable: Variable, rows: slice) -> NDArray[Any]:
            place = variable.legacy_path if suffix == ".h5" else variable.native_path
            values: NDArray[Any] = np.asarray(file[place][rows])
            return values.view(numpy_dtype("bfloat16")) if values.dtype.kind == "V" else values

        yield read


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The weights of an archive as a file; its checksum is checked on the way."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as target:
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member:
            shutil.copyfileobj(member, target, 2**20)
        target.flush()
        yield Path(target.name)


def _safetensors_reader(path: Path, model: Model) -> Reader:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

    def read(variable: Variable, rows: slice) -> NDArray[Any]:
        begin = 8 + length + header[variable.native_path]["data_offsets"][0]
        mapped = np.memmap(path, numpy_dtype(model.dtype), "r", begin, variable.shape)
        return np.array(mapped[rows])

    return read
