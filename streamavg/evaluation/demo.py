"""A minute of real training: checkpoints that average well, others that do not, and what tells.

    train -> DIR/good, DIR/bad, DIR/val.npz, DIR/test.npz
    for either set: check, compare, merge, evaluate, each as its user would type it

Scikit-learn's digits: 1,797 images of 8 x 8 pixels. The network has two hidden layers and is
trained on noisy images with plain SGD at a constant learning rate. Its last epochs do not settle:
they circle around a minimum, and their mean lies nearer to it than any of them (Izmailov et al.
2018, arXiv:1803.05407, section 3). The other set is the last epochs of independent runs. Each of
them is as good, but they have their hidden units in another order, and a mean of them mixes units
that have nothing to do with each other (Frankle et al. 2020, arXiv:1912.05671; Ainsworth et al.
2023, arXiv:2209.04836).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.checking import RECENT_SECONDS
from streamavg.errors import MissingDependencyError, OutputError
from streamavg.evaluation.keras_backend import load_keras, load_tensorflow, quiet
from streamavg.evaluation.placing import hidden_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SEED = 9
"""Of the run whose last epochs are the good set; the bad set has runs of this seed and the next.
One of ten that were tried: the average beats the best epoch on validation and on test, in the loss
for nine of them, in accuracy for five, this one among both."""
EPOCHS, KEPT = 30, 8
"""Of every run, and how many of the last ones are in the good set."""
RUNS = 3
"""In the bad set."""
HIDDEN, NOISE, BATCH_SIZE, LEARNING_RATE = (64, 64), 0.4, 16, 0.3
"""HIDDEN are the units of the hidden layers; NOISE is the standard deviation of what is added to
pixels from 0 to 1 in training: it augments the few images, and without it the network would soon
fit all of them, have no gradients any more, and stand still."""
HELD_OUT = 500
"""Images in the validation set, and again in the test set."""
SPLIT_SEED = 2024
GOOD, BAD = "good", "bad"
VALIDATION, TEST = "val.npz", "test.npz"
_MARGIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images as float32 of shape (examples, 64), from 0 to 1, and the digits that they show."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the demonstration, and what is to be said of it."""

    typed: str
    """The command, as a user types it into a shell."""
    shows: dict[int, str]
    """What it showed, by the exit code with which it may end."""
    introduction: str = ""
    """What is said before it, where a part begins."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    output: str
    """Stdout and stderr, in the order in which they came."""


# --- the files ------------------------------------------------------------------------------------


def write_demo(folder: Path, *, on_run: Callable[[str], None] | None = None) -> None:
    """Trains networks, and writes their checkpoints and the data to judge them by.

    Args:
        folder: where to. It is made, unless it is there and empty.
        on_run: is told what is trained next.

    Raises:
        OutputError: the folder holds something already, or cannot be written.
        MissingDependencyError: Keras or scikit-learn is not installed.

        After an error the folder is as it was.

    Memory: TensorFlow's, some 600 MiB.
    """
    _refuse_taken(folder)
    train, validation, test = load_digits()
    with _placed(folder) as made:
        for name, split in ((VALIDATION, validation), (TEST, test)):
            np.savez_compressed(made / name, x=split.x, y=split.y)
        for name in (GOOD, BAD):
            (made / name).mkdir()
        for run in range(RUNS):
            if on_run is not None:
                on_run(f"run {run + 1} of {RUNS}: {EPOCHS} epochs")
            for epoch, model in epochs(train, SEED + run):
                if run == 0 and epoch > EPOCHS - KEPT:
                    model.save(made / GOOD / f"epoch-{epoch}.keras")
            model.save(made / BAD / f"run-{run + 1}.keras")


def load_digits() -> tuple[Split, Split, Split]:
    """Scikit-learn's digits: training, validation and test images, stratified, always the same.

    Raises: MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo's images come with scikit-learn, which cannot be imported ({error}). "
            "Install it with: python -m pip install 'streamavg[tensorflow]'"
        ) from error
    bunch = datasets.load_digits()
    rest = Split((bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64))
    held_out = []
    for _ in (VALIDATION, TEST):
        x, held_x, y, held_y = model_selection.train_test_split(
            rest.x, rest.y, test_size=HELD_OUT, stratify=rest.y, random_state=SPLIT_SEED
        )
        rest = Split(x, y)
        held_out.append(Split(held_x, held_y))
    return rest, held_out[0], held_out[1]


def epochs(train: Split, seed: int) -> Iterator[tuple[int, Any]]:
    """One run: yields the number of each epoch, from 1, and the model when it has ended.

    Args:
        train: what the network learns.
        seed: of its initial weights and of the order of the images. The same seed gives the same
            values again, with the same TensorFlow on the same kind of processor.

    Raises: MissingDependencyError: Keras is not installed.
    """
    keras = load_keras()
    with quiet():
        load_tensorflow().config.experimental.enable_op_determinism()
        keras.backend.clear_session()  # names count from the start: dense, not dense_2
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((train.x.shape[1],)),
                keras.layers.GaussianNoise(NOISE),
                *(keras.layers.Dense(units, activation="relu") for units in HIDDEN),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(
            keras.optimizers.SGD(LEARNING_RATE),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        for epoch in range(1, EPOCHS + 1):
            model.fit(train.x, train.y, batch_size=BATCH_SIZE, verbose=0)
            yield epoch, model


@contextmanager
def _placed(folder: Path) -> Iterator[Path]:
    """A place to fill, which is at `folder` when the block ends without an error."""
    with hidden_folder(folder, make_parents=True) as temporary:
        temporary.chmod(0o755)
        yield temporary
        _refuse_taken(folder)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(folder, "is a file. Name a folder that is empty or not there.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(folder, "is not empty. Name a folder that is empty or not there.")


def seconds_until_settled(folder: Path) -> float:
    """How long to wait until `check` does not take the files for some that are being written.

    Args:
        folder: where `write_demo` wrote them.
    """
    newest = max(path.stat().st_mtime for path in folder.rglob("*.keras"))
    return max(0.0, newest + RECENT_SECONDS + _MARGIN_SECONDS - time.time())


# --- the demonstration ----------------------------------------------------------------------------


def steps(folder: Path) -> list[Step]:
    """The commands of the demonstration on files that `write_demo` wrote.

    Args:
        folder: where the files are, as the commands are to name it.
    """
    place = shlex.quote(str(folder))
    data = f"--val {place}/{VALIDATION} --test {place}/{TEST}"
    good, bad = f"{place}/{GOOD}", f"{place}/{BAD}"
    return [
        Step(
            f"streamavg check --strict --optimizer drop {good}/*.keras",
            {0: "Nothing forbids an average, and there is no warning."},
            f"The last {KEPT} epochs of one run at a constant learning rate",
        ),
        Step(
            f"streamavg compare {good}/*.keras",
            {0: "They are close to each other: epochs of one run, around one minimum."},
        ),
        Step(
            f"streamavg merge {good}/*.keras -o {place}/good-average.keras",
            {0: "One file like the others. Whether it is better, only data can tell."},
        ),
        Step(
            f"streamavg evaluate {place}/good-average.keras --against {good}/*.keras {data} "
            "--require better --no-progress",
            {
                0: "The average is better than the best single epoch, and not by chance: deploy "
                "it.",
                3: "Here the average is not shown to be better. It is for most runs, but not for "
                "all: another TensorFlow or processor trains other weights.",
            },
        ),
        Step(
            f"streamavg check --strict --optimizer drop {bad}/*.keras",
            {3: "Nothing forbids an average, but there is a warning, and --strict stops here."},
            f"The last epochs of {RUNS} runs that began with other random weights",
        ),
        Step(
            f"streamavg compare {bad}/*.keras",
            {0: "They have nothing in common, although each of them is as good as those above."},
        ),
        Step(
            f"streamavg merge {bad}/*.keras -o {place}/bad-average.keras",
            {0: "A merge does not refuse this, and Keras loads the file."},
        ),
        Step(
            f"streamavg evaluate {place}/bad-average.keras --against {bad}/*.keras {data} "
            "--require not-worse --no-progress",
            {3: "The average is ruined: it guesses. The gate stops it."},
        ),
    ]


def run(step: Step) -> Outcome:
    """Runs a command in a shell, with `streamavg` as the Python that runs this one has it.

    Args:
        step: the command.
    """
    program = f'streamavg() {{ {shlex.quote(sys.executable)} -P -m streamavg "$@"; }}'
    done = subprocess.run(
        ["/bin/sh", "-c", f"{program}\n{step.typed}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout)
