"""What `--batchnorm` makes of the moving statistics, as the layers of real Keras see it."""

import numpy as np
import pytest


def network(keras, **settings):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="first"),
         layers.BatchNormalization(name="norm", **settings), layers.LayerNormalization(),
         layers.Dense(3)]
    )  # fmt: skip


def saved(keras, folder, suffix, count=3, **settings):
    """Models whose layers have seen data of other means and spreads, and their files."""
    models, paths = [], []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        model = network(keras, **settings)
        model.set_weights([generator.uniform(0.5, 2, w.shape) for w in model.get_weights()])
        model(generator.normal(seed, 1 + seed, (64, 6)).astype("f4"), training=True)
        paths.append(folder / f"{seed}{suffix}")
        (model.save_weights if suffix == ".weights.h5" else model.save)(paths[-1])
        models.append(model)
    return models, paths


def statistics(model):
    layer = model.get_layer("norm")
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"center": False},
                                      {"scale": False, "center": False}])  # fmt: skip
def test_pooled_statistics_are_those_of_all_together(keras, merge, tmp_path, suffix, settings):
    models, paths = saved(keras, tmp_path, suffix, **settings)
    merge(paths, tmp_path / f"out{suffix}", "--batchnorm", "pooled")
    loaded = network(keras, **settings)
    loaded.load_weights(tmp_path / f"out{suffix}")
    means, variances = (np.array(all_, "f8") for all_ in zip(*map(statistics, models), strict=True))
    mean, variance = statistics(loaded)
    np.testing.assert_array_equal(mean, means.mean(axis=0).astype("f4"))
    expected = variances.mean(axis=0) + means.var(axis=0)
    np.testing.assert_allclose(variance, expected, rtol=1e-7)
    assert (variance > variances.mean(axis=0)).all()
    for name in ("first", "layer_normalization"):
        found = next(layer for layer in loaded.layers if layer.name.startswith(name))
        others = [
            next(one for one in model.layers if one.name.startswith(name)).get_weights()
            for model in models
        ]
        for array, *rest in zip(found.get_weights(), *others, strict=True):
            np.testing.assert_allclose(array, np.mean(rest, axis=0), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_statistics_of_the_reference_are_its_own(keras, merge, tmp_path, suffix):
    models, paths = saved(keras, tmp_path, suffix)
    merge(paths, tmp_path / f"out{suffix}", "--batchnorm", "reference", "--reference", paths[1])
    loaded = network(keras)
    loaded.load_weights(tmp_path / f"out{suffix}")
    for found, expected in zip(statistics(loaded), statistics(models[1]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_layers_of_a_subclassed_model_are_known_by_the_names_that_keras_gave(
    keras, merge, tmp_path
):
    @keras.saving.register_keras_serializable("streamavg_tests")
    class Net(keras.Model):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.bn1 = keras.layers.BatchNormalization()
            self.ln1 = keras.layers.LayerNormalization()
            self.head = keras.layers.Dense(2)

        def call(self, x, training=False):
            return self.head(self.ln1(self.bn1(x, training=training)))

    paths = []
    for seed in range(2):
        model = Net()
        model(np.ones((1, 4), "f4"))
        model(np.random.default_rng(seed).normal(seed, 1, (64, 4)).astype("f4"), training=True)
        paths.append(tmp_path / f"{seed}.weights.h5")
        model.save_weights(paths[-1])
    record = merge(paths, tmp_path / "out.weights.h5", "--batchnorm", "pooled")
    pooled = [v["path"] for v in record["variables"] if v["action"] == "pooled"]
    assert pooled == ["bn1/vars/3"]
    assert not [note for note in record["notes"] if "batchnorm" in note]
