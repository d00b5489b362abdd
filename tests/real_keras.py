"""What folders of tests with real Keras on the TensorFlow backend share in their `conftest.py`."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ALLOWED_WARNINGS = (
    # Keras reads TensorFlow's variables with numpy.array; TensorFlow 2.21 predates NumPy 2's rules.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ":keras.src.backend.tensorflow.core",
)


def run_last(items, folder):
    """Runs the tests of a folder last: TensorFlow takes half a gigabyte of the process.

    Tests that watch the memory of their own process would no longer see that of a merge.
    """
    items.sort(key=lambda item: folder in item.path.parents)
    for item in items:
        if folder in item.path.parents:
            for warning in ALLOWED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
