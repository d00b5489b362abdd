"""Averages whole models over h5py: one float64 accumulator a variable, as many scripts do it.

    python whole_models.py OUTPUT INPUT...

Memory is that of one model in float64, and more; the inputs are float32.
"""

import sys
from typing import Any

import h5py
import numpy as np


def main(output: str, *inputs: str) -> None:
    """Sums all variables of all inputs, then writes their means."""
    sums: dict[str, Any] = {}
    for path in inputs:
        with h5py.File(path) as file:

            def add(name: str, item: h5py.HLObject) -> None:
                if isinstance(item, h5py.Dataset):
                    values = item[()].astype(np.float64)
                    sums[name] = sums[name] + values if name in sums else values

            file.visititems(add)
    with h5py.File(output, "w") as file:
        for name, total in sums.items():
            file[name] = (total / len(inputs)).astype(np.float32)


main(*sys.argv[1:])
