"""The median of checkpoints with NumPy: for each variable, all of them stacked.

    python median.py OUTPUT INPUT...

All inputs are open at once; memory is that of the largest variable of all of them, and more.
"""

import sys
from contextlib import ExitStack

import h5py
import numpy as np


def main(output: str, *inputs: str) -> None:
    """Writes the median of each variable of the first input."""
    with ExitStack() as stack:
        files = [stack.enter_context(h5py.File(path)) for path in inputs]
        target = stack.enter_context(h5py.File(output, "w"))

        def reduce(name: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                stacked = np.stack([file[name][()] for file in files])
                target[name] = np.median(stacked, axis=0)

        files[0].visititems(reduce)


main(*sys.argv[1:])
