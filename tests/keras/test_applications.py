"""The networks of keras.applications, with random values, in every format.

Slow: networks of up to a thousand variables are built, saved and loaded many times.
"""

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLASSES = 10
COPIES = 3
FORMATS = (".keras", ".weights.h5", ".h5")
MERGES = (*((suffix, suffix) for suffix in FORMATS), (".h5", ".weights.h5"))
"""Format of the checkpoints and of their mean."""
MEMORY_LIMIT = 64 * 1024**2


@dataclass(frozen=True)
class Network:
    name: str
    side: int = 32
    settings: tuple[tuple[str, object], ...] = ()

    def build(self, keras):
        application = getattr(keras.applications, self.name)
        return application(
            weights=None,
            input_shape=(self.side, self.side, 3),
            classes=CLASSES,
            **dict(self.settings),
        )


NETWORKS = (
    Network("MobileNetV2", settings=(("alpha", 0.35),)),
    Network("MobileNetV3Small"),
    Network("EfficientNetV2B0"),
    Network("DenseNet121"),
    Network("NASNetMobile"),
    Network("ResNet50V2"),
    Network("ConvNeXtTiny"),
    Network("Xception", side=71),
)


@dataclass(frozen=True)
class Saved:
    """Copies of one network on the disk, and the mean of them as Keras saves and loads it."""

    folder: Path
    model: object
    """The rebuilt network, to load weights into."""
    expected: list[np.ndarray]
    predictions: np.ndarray

    def copies(self, suffix):
        return [self.folder / f"copy-{number}{suffix}" for number in range(COPIES)]


def randomize(model, generator):
    """Gives every weight random values: variances positive, what `adapt` learns as it was."""
    for layer in model.layers:
        if hasattr(layer, "adapt"):
            continue
        for weight in layer.weights:
            values = generator.standard_normal(weight.shape, np.float32)
            values *= 1 / np.sqrt(max(1, np.prod(weight.shape[:-1])))
            weight.assign(np.abs(values) + 0.5 if "variance" in weight.name else values)


def images(side):
    return np.random.default_rng(20).uniform(0, 255, (2, side, side, 3)).astype(np.float32)


def predictions(model, side):
    return model(images(side), training=False).numpy()


def save(model, path):
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.name)
def network(request):
    return request.param


@pytest.fixture(scope="module")
def saved(network, keras, values_of, mean_of, assign, forget, tmp_path_factory):
    folder = tmp_path_factory.mktemp(network.name)
    model = network.build(keras)
    generator = np.random.default_rng(20)
    copies = []
    for number in range(COPIES):
        randomize(model, generator)
        copies.append(values_of(model))
        for suffix in FORMATS:
            save(model, folder / f"copy-{number}{suffix}")
    expected = mean_of(copies)
    del copies
    assign(model, expected)
    save(model, folder / "by-keras.weights.h5")
    forget(model).load_weights(folder / "by-keras.weights.h5")
    yield Saved(folder, model, expected, predictions(model, network.side))
    shutil.rmtree(folder)
    keras.backend.clear_session()
    gc.collect()


@pytest.fixture(scope="class", params=MERGES, ids=" to ".join)
def averaged(request, saved, keras, merge, forget):
    """The record of a merge within 64 MiB, and the network as Keras loads it."""
    suffix, output_suffix = request.param
    output = saved.folder / f"from{suffix}-averaged{output_suffix}"
    record = merge(saved.copies(suffix), output, "--memory-limit", str(MEMORY_LIMIT))
    if output_suffix == ".keras":
        return record, keras.saving.load_model(output, compile=False)
    forget(saved.model).load_weights(output)
    return record, saved.model


class TestTheMeanOfThreeCheckpoints:
    def test_is_made_in_less_memory_than_allowed(self, averaged):
        record, _ = averaged
        assert record["memory"]["limit"] == MEMORY_LIMIT
        assert 0 < record["memory"]["measured"] < MEMORY_LIMIT

    def test_is_bit_for_bit_that_of_numpy_in_every_variable(self, averaged, saved, assert_holds):
        _, model = averaged
        assert_holds(model, saved.expected)

    def test_predicts_what_the_mean_that_keras_saves_predicts(self, averaged, saved, network):
        _, model = averaged
        assert np.isfinite(saved.predictions).all()
        assert np.ptp(saved.predictions) > 0
        np.testing.assert_array_equal(predictions(model, network.side), saved.predictions)
