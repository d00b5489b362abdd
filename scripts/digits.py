"""What experiments on scikit-learn's digits share: images, network, training, measured pages.

A small network with BatchNormalization is trained with Adam, from whatever state it is given, and
its checkpoints are written by Keras. What a script measured goes into a page between two marks.
"""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import streamavg

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Weights = list[NDArray[Any]]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BATCH = 32
HELD_OUT, TESTED = 400, 800
"""Images to choose the best checkpoint by, and images that accuracies are of."""
DATA_SEED = 2024


def keep_quiet() -> None:
    """Has TensorFlow, which is imported later, compute on the processor and say errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


# --- data and network -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Images of shape (count, 8, 8, 1), pixels 0 to 16, and the digits that they show."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def take(self, rows: NDArray[np.intp]) -> Split:
        """Some of the images."""
        return Split(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Digits:
    """Images to train on, to choose by, and to judge by."""

    train: Split
    validation: Split
    test: Split


def load_digits() -> Digits:
    """Divides the 1797 digits once and for all, stratified."""
    from sklearn import datasets, model_selection

    def hold_out(split: Split, count: int) -> tuple[Split, Split]:
        kept_x, held_x, kept_y, held_y = model_selection.train_test_split(
            split.x, split.y, test_size=count, stratify=split.y, random_state=DATA_SEED
        )
        return Split(kept_x, kept_y), Split(held_x, held_y)

    bunch = datasets.load_digits()
    rest, test = hold_out(Split(bunch.images[..., None].astype("float32"), bunch.target), TESTED)
    train, validation = hold_out(rest, HELD_OUT)
    return Digits(train, validation, test)


def network() -> Any:
    """A small convolutional network; every checkpoint is one of its."""
    import keras

    layers = keras.layers
    stack = [
        layers.Rescaling(1 / 16),
        layers.Conv2D(16, 3, use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.Conv2D(32, 3, use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((8, 8, 1)), *stack])


class Trainer:
    """Trains one network from whatever state it is given; what Keras compiled is used again.

    Attributes:
        model: saves, loads and predicts; what is trained is another one, with an optimizer.
        digits: the images.
    """

    def __init__(self, digits: Digits) -> None:
        self.model, self._trained = network(), network()
        self._trained.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        self._optimizer = self._trained.optimizer
        self._optimizer.build(self._trained.trainable_variables)
        self._fresh = [variable.numpy() for variable in self._optimizer.variables]
        self.digits = digits

    def initial(self, seed: int) -> Weights:
        """A random initialisation."""
        import keras

        keras.utils.set_random_seed(seed)
        weights: Weights = network().get_weights()
        return weights

    def train(
        self, start: Weights, epochs: int, rate: float, seed: int, rows: NDArray[np.intp] | None
    ) -> Iterator[Weights]:
        """Trains from `start` with a new optimizer, and yields the weights after each epoch.

        Args:
            start: the weights to begin with.
            epochs: how many.
            rate: the learning rate.
            seed: of the order of the images.
            rows: the training images to use; all if None.
        """
        data = self.digits.train if rows is None else self.digits.train.take(rows)
        order = np.random.default_rng(seed)
        self._trained.set_weights(start)
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self._optimizer.learning_rate = rate
        for _ in range(epochs):
            shuffled = order.permutation(len(data.y))
            for first in range(0, len(shuffled) - BATCH + 1, BATCH):
                batch = data.take(shuffled[first : first + BATCH])
                self._trained.train_on_batch(batch.x, batch.y)
            yield self._trained.get_weights()

    def save(self, weights: Weights, path: Path) -> Path:
        """Writes a checkpoint, as Keras writes it."""
        self.model.set_weights(weights)
        self.model.save_weights(path)
        return path

    def renew_statistics(self) -> None:
        """Sets the moving statistics to those of the training images, in one pass over them.

        With a momentum of 0 a moving statistic is that of the last batch; all images are one.
        """
        import keras

        normalizations = [
            layer
            for layer in self.model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        momenta = [layer.momentum for layer in normalizations]
        for layer in normalizations:
            layer.momentum = 0.0
        self.model(self.digits.train.x, training=True)
        for layer, momentum in zip(normalizations, momenta, strict=True):
            layer.momentum = momentum

    def answers(self, split: Split) -> tuple[Score, NDArray[np.intp]]:
        """How the network does on some images, and what it says they are."""
        probabilities = self.model.predict_on_batch(split.x)
        return Score.of(probabilities, split.y), probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Score:
    """Accuracy, 0 to 1, and cross-entropy."""

    accuracy: float
    loss: float

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], y: NDArray[np.int64]) -> Score:
        """The score of predictions of shape (count, 10)."""
        of_truth = probabilities[np.arange(len(y)), y].astype(float)
        right = probabilities.argmax(axis=1) == y
        return cls(float(right.mean()), float(-np.log(np.maximum(of_truth, 1e-12)).mean()))

    @classmethod
    def mean(cls, scores: Sequence[Score]) -> Score:
        """The mean of several scores."""
        return cls(
            float(np.mean([score.accuracy for score in scores])),
            float(np.mean([score.loss for score in scores])),
        )


# --- the page -------------------------------------------------------------------------------------


def measured_with(seeds: Sequence[int]) -> str:
    """When, with which versions and seeds, as a sentence."""
    import keras
    import sklearn

    return (
        f"{datetime.date.today().isoformat()}; streamavg {streamavg.__version__}, Keras "
        f"{keras.__version__} on {keras.backend.backend()}, NumPy {np.__version__}, scikit-learn "
        f"{sklearn.__version__}, Python {platform.python_version()}; seeds "
        f"{', '.join(map(str, seeds))}."
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_measured(page: Path, text: str) -> None:
    """Replaces what is between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
