"""Names of dtypes, and the one that NumPy does not know itself."""

from __future__ import annotations

from typing import Any

import numpy as np


def bfloat16() -> np.dtype[Any]:
    """NumPy's dtype of bfloat16, which the package ml_dtypes provides."""
    import ml_dtypes  # noqa: PLC0415 - only checkpoints with bfloat16 pay for the import

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype with this name, bfloat16 among them."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name of a dtype for people and JSON; strings of variable length are "string"."""
    return "string" if dtype.kind == "O" else str(dtype)
