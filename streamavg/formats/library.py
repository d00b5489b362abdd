"""The HDF5 library, h5py, loaded when it is first used.

Checkpoints in the dialect that Keras writes are read and written without it, and loading it takes
longer than describing one of them. Import it so: `from streamavg.formats import library as h5py`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import h5py  # noqa: PLC0415 - this is what the module is for

    found = globals()[name] = getattr(h5py, name)
    return found
