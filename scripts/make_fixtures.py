"""Train small networks and save their checkpoints: the files in ``fixtures/``.

Every checkpoint comes from a real training run on scikit-learn's digits, is written by Keras
itself, and is loaded back and compared before it is accepted. Nothing is edited afterwards.

    python scripts/make_fixtures.py            # train, save, verify, measure (needs both Keras)
    python scripts/make_fixtures.py --only make_logged    # one maker's files, the others stay
    python scripts/make_fixtures.py --check    # compare the files with fixtures/MANIFEST

Making fixtures needs ``pip install tensorflow tf_keras scikit-learn``; checking needs nothing but
Python. A second run gives other bytes, since Keras writes dates and object identities into its
files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    import numpy as np
    from keras import Model  # Keras 2 names and shapes everything used here alike

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LAYOUTS = "layouts/"
"""Files that other Keras versions wrote; they have a manifest of their own."""
MANIFEST, README, ACCURACIES, DATA = "MANIFEST", "README.md", "accuracies.json", "digits-data.npz"
TABLE_BEGIN, TABLE_END = "<!-- accuracies: begin -->", "<!-- accuracies: end -->"

SEED = 2024
EPOCHS = 20
BATCH_SIZE = 16
LEARNING_RATE = 0.01  # constant and rather high: the last epochs circle around a minimum
HELD_OUT = 400  # images in the validation split, and again in the test split

# What is saved after which epoch, per Keras. HDF5 takes some 35 KB for the smallest network, so the
# formats of lesser interest have two checkpoints only.
KERAS3_FILES = ("digits/epoch-{epoch}.keras", "digits/epoch-{epoch}.weights.h5")
KERAS3_ALL = (*KERAS3_FILES, "digits-legacy/keras3-epoch-{epoch}.h5")
KERAS3_RUN = ("digits", {EPOCHS - 2: KERAS3_FILES, EPOCHS - 1: KERAS3_ALL, EPOCHS: KERAS3_ALL})
KERAS2_ALL = (
    "digits-keras2/epoch-{epoch}.keras",
    "digits-keras2/epoch-{epoch}.weights.h5",
    "digits-legacy/keras2-epoch-{epoch}.h5",
    "digits-legacy/keras2-weights-epoch-{epoch}.h5",
)
DEMO = "demo"
LOGGED = "digits-logged"
LOGGED_EPOCHS, LOGGED_KEPT = 12, 5  # two-digit epochs come before "8" where a shell sorts
LOGGED_NAME = "ckpt-{epoch}-{val_loss:.4f}.weights.h5"
KERAS2_RUN = ("digits-keras2", {EPOCHS - 1: KERAS2_ALL, EPOCHS: KERAS2_ALL})


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Images of shape (count, 8, 8, 1) and the digits that they show."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's digits, divided once and for all."""

    train: Split
    validation: Split
    test: Split

    def scaled(self, factor: float) -> Digits:
        """Return the same images with every pixel multiplied by ``factor``."""
        splits = (self.train, self.validation, self.test)
        return Digits(*(replace(split, x=split.x * factor) for split in splits))


def load_digits() -> Digits:
    """Divide the 1797 digits into training, validation and test images, stratified."""
    from sklearn import datasets, model_selection

    def hold_out(split: Split) -> tuple[Split, Split]:
        kept_x, held_x, kept_y, held_y = model_selection.train_test_split(
            split.x, split.y, test_size=HELD_OUT, stratify=split.y, random_state=SEED
        )
        return Split(kept_x, kept_y), Split(held_x, held_y)

    bunch = datasets.load_digits()
    rest, test = hold_out(Split(bunch.images[..., None].astype("float32"), bunch.target))
    train, validation = hold_out(rest)
    return Digits(train, validation, test)


def save_data(digits: Digits, path: Path) -> None:
    """Write the validation and the test split; pixels are whole numbers from 0 to 16."""
    import numpy as np

    arrays = {
        f"{letter}_{name}": getattr(split, letter).astype("uint8")
        for name, split in (("validation", digits.validation), ("test", digits.test))
        for letter in "xy"
    }
    np.savez_compressed(path, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x_test"], digits.test.x)


# --- networks -------------------------------------------------------------------------------------


def digits_network(keras: ModuleType, digits: Digits, filters: int = 12) -> Model:
    """Build the network behind ``fixtures/digits``; the pixels' scale is learned by `adapt`."""
    layers = keras.layers
    normalization = layers.Normalization()
    normalization.adapt(digits.train.x)
    stack = [
        normalization,
        layers.Conv2D(filters, 5, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalMaxPooling2D(),
        layers.Dropout(0.2),
        layers.Dense(10, activation="softmax"),
    ]
    return compiled(keras, keras.Sequential([keras.Input((8, 8, 1)), *stack]))


def branches_network(keras: ModuleType, digits: Digits, order: Sequence[str]) -> Model:
    """Build two parallel convolutions, "edges" and "textures", listed in the given order.

    The branches are summed, so that the order changes nothing in the function computed. It does
    decide which of the two Keras stores as ``layers/conv2d`` and which as ``layers/conv2d_1``.
    """
    layers = keras.layers
    poolings = {"edges": layers.GlobalMaxPooling2D, "textures": layers.GlobalAveragePooling2D}
    normalization = layers.Normalization()
    normalization.adapt(digits.train.x)
    image = keras.Input((8, 8, 1))
    normal = normalization(image)
    branches = [
        poolings[name]()(layers.Conv2D(12, 5, activation="relu", name=name)(normal))
        for name in order
    ]
    outputs = layers.Dense(10, activation="softmax")(layers.Add()(branches))
    return compiled(keras, keras.Model(image, outputs))


def compiled(keras: ModuleType, model: Model) -> Model:
    """Compile with Adam, its slots allocated, so that a fresh model can take any checkpoint."""
    compile_with(model, keras.optimizers.Adam(LEARNING_RATE))
    model.optimizer.build(model.trainable_variables)
    return model


def compile_with(model: Model, optimizer: object) -> None:
    """Compile for classification; an optimizer in use keeps its state."""
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def train(model: Model, split: Split, epochs: range) -> Iterator[int]:
    """Train, yielding the number of each epoch when it has ended."""
    for epoch in epochs:
        model.fit(split.x, split.y, batch_size=BATCH_SIZE, verbose=0)
        yield epoch


def predictions(model: Model, split: Split) -> np.ndarray:
    """Return the probability of each digit for each image."""
    probabilities: np.ndarray = model.predict(split.x, verbose=0)
    return probabilities


# --- saving and loading ---------------------------------------------------------------------------


def is_weights_only(path: Path) -> bool:
    """Tell whether the file, by its name, holds weights without the architecture."""
    return "weights" in path.name


def save(model: Model, path: Path) -> None:
    """Save in the format that the file name asks for, leaving the model as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_weights_only(path):
        model.save_weights(path)
        return
    model.save(path)
    if path.suffix == ".h5":
        # That took the optimizer out of the compile configuration of the model in memory; without
        # compiling again, every .keras saved later would lack it.
        compile_with(model, model.optimizer)


def load(keras: ModuleType, path: Path, build: Callable[[], Model]) -> Model:
    """Load a checkpoint into a new model; a warning from Keras is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if not is_weights_only(path):
            return keras.models.load_model(path)
        model = build()
        model.load_weights(path)
        return model


def check_same(model: Model, loaded: Model, split: Split, path: Path) -> None:
    """Refuse a file whose model predicts otherwise, or trains on otherwise, than the saved one."""
    import numpy as np

    np.testing.assert_array_equal(
        predictions(loaded, split), predictions(model, split), err_msg=str(path)
    )
    if path.name.startswith("keras2-weights"):
        return  # the one layout without an optimizer
    if type(loaded.optimizer).__name__ != "Adam":
        raise RuntimeError(f"{path}: expected an Adam optimizer, found {loaded.optimizer!r}")
    steps = int(loaded.optimizer.iterations.numpy())
    if steps != int(model.optimizer.iterations.numpy()):
        raise RuntimeError(f"{path}: the optimizer was loaded at step {steps}, not where it was")


# --- the collection -------------------------------------------------------------------------------


@dataclass
class Collection:
    """Fixtures in the making: accepted files, who made them, and what was measured."""

    root: Path
    digits: Digits
    producers: dict[str, str] = field(default_factory=dict)
    accuracies: dict[str, dict[str, float]] = field(default_factory=dict)

    def accept(self, name: str, producer: str) -> None:
        """Note a finished file and its producer."""
        self.producers[name] = producer
        print(f"made {name}", file=sys.stderr)

    def measure(self, label: str, model: Model) -> None:
        """Note the validation and test accuracy of a model."""
        self.accuracies[label] = {
            name: float((predictions(model, split).argmax(axis=1) == split.y).mean())
            for name, split in (("validation", self.digits.validation), ("test", self.digits.test))
        }

    def run(
        self,
        keras: ModuleType,
        build: Callable[[], Model],
        saves: Mapping[int, Sequence[str]],
        maker: str,
        resume: Model | None = None,
    ) -> Model:
        """Train one network, save it in the formats listed for each epoch, verify every file.

        Args:
            keras: The Keras to train and save with, `keras` or `tf_keras`.
            build: Makes the compiled network.
            saves: File names (templates) by epoch; the last epoch ends the run.
            maker: The function named in the manifest.
            resume: A model after `EPOCHS` epochs to go on from, if not from scratch.

        Returns:
            The trained model.
        """
        keras.backend.clear_session()  # layer names count from the start: conv2d, not conv2d_7
        keras.utils.set_random_seed(SEED)
        model = build()
        if resume:
            copy_weights(resume, model)
        first = EPOCHS + 1 if resume else 1
        for epoch in train(model, self.digits.train, range(first, max(saves) + 1)):
            for name in (template.format(epoch=epoch) for template in saves.get(epoch, ())):
                save(model, self.root / name)
                loaded = load(keras, self.root / name, build)
                check_same(model, loaded, self.digits.test, self.root / name)
                self.accept(name, f"{keras.__name__} {keras.__version__}, {maker}")
                if name.endswith(".keras"):
                    self.measure(name, loaded)
        return model


def copy_weights(source: Model, target: Model) -> None:
    """Copy weights between layers of one name, all but those that `adapt` has set."""
    for layer in source.layers:
        if not layer.name.startswith("normalization"):
            target.get_layer(layer.name).set_weights(layer.get_weights())


def mean_model(keras: ModuleType, models: Sequence[Model]) -> Model:
    """Return a model with the plain NumPy mean of all models' weights, taken by position."""
    import numpy as np

    columns = zip(*(model.get_weights() for model in models), strict=True)
    mean = keras.models.clone_model(models[0])
    mean.set_weights(
        [np.mean(column, axis=0, dtype="float64").astype(column[0].dtype) for column in columns]
    )
    # In Keras 3 a Normalization computes with what `adapt` or loading left, whatever `set_weights`
    # assigned since: only a model that comes from a file uses the mean.
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "mean.keras")
        mean.save(path)
        return keras.models.load_model(path)


# --- makers ---------------------------------------------------------------------------------------


def make_digits(collection: Collection, keras: ModuleType) -> None:
    """Make the last checkpoints of one run, in every format of one Keras."""
    folder, saves = KERAS2_RUN if keras.__name__ == "tf_keras" else KERAS3_RUN
    collection.run(keras, lambda: digits_network(keras, collection.digits), saves, "make_digits")
    paths = sorted((collection.root / folder).glob("*.keras"))
    mean = mean_model(keras, [keras.models.load_model(path) for path in paths])
    collection.measure(f"mean of {folder}/*.keras", mean)


def make_wider(collection: Collection, keras: ModuleType) -> None:
    """Make a checkpoint of the digits network with a wider convolution."""
    saves = {EPOCHS: ("digits-mismatched/wider.keras",)}
    collection.run(keras, lambda: digits_network(keras, collection.digits, 16), saves, "make_wider")


def make_other_preprocessing(collection: Collection, keras: ModuleType) -> None:
    """Go on with the digits run on pixels from 0 to 1, where they had been from 0 to 16."""
    last, name = f"digits/epoch-{EPOCHS}.keras", "digits-mismatched/other-preprocessing.keras"
    scaled = replace(collection, digits=collection.digits.scaled(1 / 16))
    scaled.run(
        keras,
        lambda: digits_network(keras, scaled.digits),
        {EPOCHS + 1: (name,)},
        "make_other_preprocessing",
        resume=keras.models.load_model(collection.root / last),
    )
    models = [keras.models.load_model(collection.root / path) for path in (name, last)]
    collection.measure(f"{name} on pixels 0 to 16", models[0])
    mean = mean_model(keras, models)
    collection.measure(f"mean of {last} and {name} on pixels 0 to 16", mean)
    scaled.measure(f"mean of {last} and {name} on pixels 0 to 1", mean)


def make_swapped(collection: Collection, keras: ModuleType) -> None:
    """Make a run that is resumed after two lines of the network's code have changed places."""

    def build_ab() -> Model:
        return branches_network(keras, collection.digits, ("edges", "textures"))

    def build_ba() -> Model:
        return branches_network(keras, collection.digits, ("textures", "edges"))

    def files(name: str) -> Sequence[str]:
        return (f"digits-mismatched/{name}.keras", f"digits-mismatched/{name}.weights.h5")

    ab = collection.run(keras, build_ab, {EPOCHS: files("order-ab")}, "make_swapped")
    ba = collection.run(keras, build_ba, {EPOCHS + 1: files("order-ba")}, "make_swapped", ab)

    swapped = load(keras, collection.root / files("order-ba")[1], build_ab)  # without a warning
    collection.measure("order-ba.weights.h5 loaded into the network of order-ab", swapped)
    mean = mean_model(keras, [ab, swapped])
    collection.measure("mean of order-ab and order-ba by position", mean)
    keras.backend.clear_session()
    unswapped = build_ab()
    copy_weights(ba, unswapped)
    mean = mean_model(keras, [ab, unswapped])
    collection.measure("mean of order-ab and order-ba by layer name", mean)


def make_logged(collection: Collection, keras: ModuleType) -> None:
    """Make the last checkpoints of a run as ModelCheckpoint names them, and CSVLogger's history."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    digits = collection.digits
    model = digits_network(keras, digits)
    folder = collection.root / LOGGED
    folder.mkdir()
    callbacks = [
        keras.callbacks.ModelCheckpoint(folder / LOGGED_NAME, save_weights_only=True),
        keras.callbacks.CSVLogger(folder / "history.csv"),
    ]
    validation = (digits.validation.x, digits.validation.y)
    model.fit(
        digits.train.x, digits.train.y, batch_size=BATCH_SIZE, epochs=LOGGED_EPOCHS, verbose=0,
        validation_data=validation, callbacks=callbacks,
    )  # fmt: skip
    by_epoch = sorted(folder.glob("ckpt-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in by_epoch[:-LOGGED_KEPT]:
        path.unlink()
    kept = by_epoch[-LOGGED_KEPT:]
    for path in kept:
        loaded = load(keras, path, lambda: digits_network(keras, digits))
        loss = loaded.evaluate(*validation, verbose=0)[0]
        if f"-{loss:.4f}." not in path.name:
            raise RuntimeError(f"{path}: its loss is {loss}, not what its name says")
    check_same(model, loaded, digits.test, path)
    for path in (*kept, folder / "history.csv"):
        name = path.relative_to(collection.root).as_posix()
        collection.accept(name, f"{keras.__name__} {keras.__version__}, make_logged")


def make_demo(collection: Collection, keras: ModuleType) -> None:
    """Make what `streamavg demo` makes: a set whose average is best, and one whose is ruined."""
    from streamavg.evaluation import demo

    folder = collection.root / DEMO
    demo.write_demo(folder)
    splits = (Split(split.x, split.y) for split in demo.load_digits())
    scored = replace(collection, digits=Digits(*splits))
    for name in (demo.VALIDATION, demo.TEST):
        scored.accept(f"{DEMO}/{name}", "scikit-learn, streamavg.evaluation.demo")
    producer = f"{keras.__name__} {keras.__version__}, streamavg.evaluation.demo"
    for group in (demo.GOOD, demo.BAD):
        paths = sorted((folder / group).glob("*.keras"))
        models = [load(keras, path, keras.Sequential) for path in paths]
        for path, model in zip(paths, models, strict=True):
            name = path.relative_to(collection.root).as_posix()
            scored.accept(name, producer)
            scored.measure(name, model)
        scored.measure(f"mean of {DEMO}/{group}/*.keras", mean_model(keras, models))


KERAS3_MAKERS = (
    make_digits, make_wider, make_other_preprocessing, make_swapped, make_logged, make_demo,
)  # fmt: skip
ALONE = {maker.__name__: maker for maker in (make_logged, make_demo)}
"""Makers that need no files of others."""


def make_all(root: Path, only: str | None = None) -> Collection:
    """Make every fixture in a new folder, or those of one maker that needs no others."""
    root.mkdir()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the CPU gives the same numbers again
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Imported here, since `--check` must not need them, and only with the settings above.
    import keras
    import sklearn
    import tensorflow as tf

    logging.getLogger("absl").setLevel(logging.ERROR)  # "This file format is considered legacy"
    warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
    tf.config.experimental.enable_op_determinism()

    collection = Collection(root, load_digits())
    if only is not None:
        ALONE[only](collection, keras)
        return collection
    import tf_keras

    save_data(collection.digits, root / DATA)
    collection.accept(DATA, f"scikit-learn {sklearn.__version__}, save_data")
    for maker in KERAS3_MAKERS:
        maker(collection, keras)
    make_digits(collection, tf_keras)
    (root / ACCURACIES).write_text(json.dumps(collection.accuracies, indent=2) + "\n")
    collection.accept(ACCURACIES, "make_all")
    return collection


# --- installing and checking ----------------------------------------------------------------------


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(collection: Collection) -> str:
    """Return one line a file: SHA-256, bytes, path, producer."""
    rows = []
    for name, producer in sorted(collection.producers.items()):
        path = collection.root / name
        rows.append(f"{digest(path)} {path.stat().st_size:>6} {name}  {producer}\n")
    return "".join(rows)


def accuracy_table(accuracies: dict[str, dict[str, float]]) -> str:
    """Return the measured accuracies as a Markdown table."""
    rows = ["| model | validation | test |", "|---|---|---|"]
    rows += [
        f"| {label} | {row['validation']:.2%} | {row['test']:.2%} |"
        for label, row in accuracies.items()
    ]
    return "\n".join(rows)


def install(collection: Collection, folder: Path) -> None:
    """Replace the fixtures in a folder, and the table in its README."""
    folder.mkdir(exist_ok=True)
    for name in {name.partition("/")[0] for name in collection.producers if "/" in name}:
        shutil.rmtree(folder / name, ignore_errors=True)
    (collection.root / MANIFEST).write_text(manifest(collection))
    shutil.copytree(collection.root, folder, dirs_exist_ok=True)
    write_table(folder, collection.accuracies)


def write_table(folder: Path, accuracies: dict[str, dict[str, float]]) -> None:
    """Replace the table of accuracies in the fixtures' README."""
    readme = folder / README
    text = readme.read_text() if readme.exists() else "# Fixtures\n\n"
    before, _, rest = text.partition(TABLE_BEGIN)
    after = rest.partition(TABLE_END)[2] or "\n"
    table = accuracy_table(accuracies)
    readme.write_text(f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}")


def install_some(collection: Collection, folder: Path) -> None:
    """Replace the folders that one maker made, their lines in the manifest and their accuracies."""
    made = tuple({f"{name.partition('/')[0]}/" for name in collection.producers})
    if collection.accuracies:
        accuracies = json.loads((folder / ACCURACIES).read_text()) | collection.accuracies
        (collection.root / ACCURACIES).write_text(json.dumps(accuracies, indent=2) + "\n")
        collection.accept(ACCURACIES, "make_all")
        write_table(folder, accuracies)
    for name in made:
        shutil.rmtree(folder / name, ignore_errors=True)
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    replaced = (*made, *collection.producers)
    kept = [line for line in lines if not line.split(maxsplit=3)[2].startswith(replaced)]
    new = manifest(collection).splitlines(keepends=True)
    shutil.copytree(collection.root, folder, dirs_exist_ok=True)
    ordered = sorted([*kept, *new], key=lambda line: line.split(maxsplit=3)[2])
    (folder / MANIFEST).write_text("".join(ordered))


def check_manifest(folder: Path) -> list[str]:
    """Return every disagreement between a folder and its manifest."""
    problems = []
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith(LAYOUTS)}
    found -= {MANIFEST, README}
    for line in (folder / MANIFEST).read_text().splitlines():
        expected, size, name, producer = line.split(maxsplit=3)
        path = folder / name
        if name not in found:
            problems.append(f"{path}: missing: made by {producer}")
        elif path.stat().st_size != int(size):
            problems.append(f"{path}: expected {size} bytes, found {path.stat().st_size}")
        elif digest(path) != expected:
            problems.append(f"{path}: expected SHA-256 {expected}, found {digest(path)}")
        found.discard(name)
    return problems + [f"{folder / name}: not in {MANIFEST}" for name in sorted(found)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Make or check the checkpoints in fixtures/.")
    parser.add_argument("--check", action="store_true", help="only verify fixtures/MANIFEST")
    parser.add_argument("--only", choices=sorted(ALONE), help="make its files alone")
    parser.add_argument("--folder", type=Path, default=FIXTURES, help="default: fixtures/")
    options = parser.parse_args(arguments)
    if options.check:
        problems = check_manifest(options.folder)
        print("\n".join(problems) or f"{options.folder}: every file is as in {MANIFEST}")
        return 1 if problems else 0
    with tempfile.TemporaryDirectory() as scratch:
        collection = make_all(Path(scratch, "fixtures"), options.only)
        if options.only is not None:
            install_some(collection, options.folder)
            return 0
        install(collection, options.folder)
    print(accuracy_table(collection.accuracies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
