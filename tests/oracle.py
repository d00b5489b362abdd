"""What the tests compare with: checkpoints read whole, means computed without streamavg."""

import io
import zipfile
from fractions import Fraction

import h5py
import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def open_hdf5(path):
    """The HDF5 file at `path`, or the one inside the archive at `path`."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")
    return h5py.File(path, "r")


def read_arrays(path):
    """All arrays of a checkpoint by their path in its HDF5 file, in native byte order."""
    with open_hdf5(path) as opened:
        return dict(_arrays_below(opened, ""))


def _arrays_below(group, prefix):
    for name, member in group.items():
        if isinstance(member, h5py.Group):
            yield from _arrays_below(member, f"{prefix}{name}/")
        else:
            values = np.asarray(member[()])
            is_bfloat16 = values.dtype == "V2"
            dtype = BFLOAT16 if is_bfloat16 else values.dtype.newbyteorder("=")
            yield prefix + name, values.view(dtype) if is_bfloat16 else values.astype(dtype)


def naive_mean(paths, weights=None):
    """Loads all checkpoints; float64 mean of each float array, rounded once to its dtype."""
    loaded = [read_arrays(path) for path in paths]
    weights = np.ones(len(paths)) if weights is None else np.asarray(weights, np.float64)
    means = {}
    for path, values in loaded[0].items():
        if values.dtype.kind in "fV":
            stack = [arrays[path].astype(np.float64) for arrays in loaded]
            total = sum(weight * one for weight, one in zip(weights, stack, strict=True))
            means[path] = rounded(_fractions(total / weights.sum()), values.dtype)
    return means


def exact_mean(arrays, weights=None):
    """The rational mean of each element, an array of Fractions."""
    weights = [Fraction(1)] * len(arrays) if weights is None else list(map(Fraction, weights))
    pairs = zip(weights, arrays, strict=True)
    return np.asarray(sum(weight * _fractions(one) for weight, one in pairs) / sum(weights), object)


def _fractions(values):
    flat = [Fraction(float(value)) for value in np.asarray(values, np.float64).reshape(-1)]
    made = np.empty(len(flat), object)
    made[:] = flat
    return made.reshape(np.shape(values))


def rounded(fractions, dtype):
    """Fractions rounded once to `dtype`, to nearest and ties to even."""
    flat = [_round(value, dtype) for value in np.asarray(fractions, object).reshape(-1)]
    return np.asarray(flat, np.float64).astype(dtype).reshape(np.shape(fractions))


def _round(value, dtype):
    """The value of `dtype` next to a Fraction, as a float (which holds it exactly)."""
    nearest = round(value / ulp(value, dtype)) * ulp(value, dtype)
    try:
        largest = Fraction(float(ml_dtypes.finfo(dtype).max))
        return (
            float(nearest) if abs(nearest) <= largest else float("inf") * (1 if value > 0 else -1)
        )
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def ulp(value, dtype):
    """Distance of two neighbours of `dtype` at a Fraction, exact."""
    info = ml_dtypes.finfo(dtype)
    exponent = info.minexp
    if value:
        exponent = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
        exponent -= Fraction(2) ** exponent > abs(value)
    return Fraction(2) ** (max(exponent, info.minexp) - info.nmant)
