"""Which variables are BatchNormalization's moving statistics, and what happens to them."""

import json

import h5py
import numpy as np
import pytest

from streamavg import OptionError, merge, open_checkpoint, plan
from streamavg.moving_statistics import find_batch_normalizations
from tests.builders import (
    LAYOUTS,
    sequential,
    stored,
    write_archive,
    write_legacy,
    write_weights,
)
from tests.methods.test_pooled import exact

FILES = sorted(
    path.name.removesuffix(".expected.json")
    for path in LAYOUTS.glob("*.expected.json")
    if "moving_variance" in path.read_text() or "layer_normalization" in path.read_text()
)
TRIPLET = [LAYOUTS / f"keras3.15.1-tf-cnn_{x}.weights.h5" for x in "abc"]
MEAN, VARIANCE = (f"layers/batch_normalization/vars/{i}" for i in (2, 3))


def recognised(path):
    """Paths of the moving statistics, and the layers that may have some."""
    with open_checkpoint(path) as checkpoint:
        found = find_batch_normalizations(checkpoint)
        paths = [variable.path for variable in checkpoint.variables]
    return [(paths[one.mean], paths[one.variance]) for one in found.statistics], found.unknown


def told_by_keras(name):
    """Paths of the moving statistics as the Keras that wrote the file names its variables.

    Keras 2 does not tell which variable is where in its newer layouts: there, its last two.
    """
    document = json.loads((LAYOUTS / f"{name}.expected.json").read_text())
    document = document.get("model.weights.h5", {}) | document
    pairs = {"moving_mean": [], "moving_variance": []}
    for dataset in document["variables"]:
        path = dataset["path"].removeprefix("model_weights/")
        own_name = (dataset.get("keras_var") or path).rsplit("/", 1)[-1].removesuffix(":0")
        if own_name in pairs and not path.startswith("optimizer"):
            pairs[own_name].append(path)
        elif "keras_var" not in dataset and "batch_normalization" in path:
            for kind, number in (("moving_mean", "2"), ("moving_variance", "3")):
                if path.endswith(f"/vars/{number}"):
                    pairs[kind].append(path)
    return list(zip(pairs["moving_mean"], pairs["moving_variance"], strict=True))


@pytest.mark.parametrize("name", FILES)
def test_are_found_in_what_keras_wrote(name):
    found, unknown = recognised(LAYOUTS / name)
    assert sorted(found) == sorted(told_by_keras(name))
    assert unknown == ()


def test_the_files_hold_some():
    assert len(FILES) > 30
    assert told_by_keras("keras3.15.1-tf-cnn_a.weights.h5") == [(MEAN, VARIANCE)]


def vectors(count, size=3):
    return [np.full(size, i + 1, "f4") for i in range(count)]


class TestByPlace:
    @pytest.mark.parametrize("count", [2, 3, 4])
    @pytest.mark.parametrize("layer", ["batch_normalization", "batch_normalization_7",
                                       "sync_batch_normalization"])  # fmt: skip
    def test_are_the_last_two_of_the_layer(self, tmp_path, layer, count):
        path = write_weights(tmp_path / "a.weights.h5", {f"layers/{layer}": vectors(count)})
        prefix = f"layers/{layer}/vars"
        assert recognised(path) == ([(f"{prefix}/{count - 2}", f"{prefix}/{count - 1}")], ())

    def test_of_an_attribute_are_told_by_the_name_that_keras_gave(self, tmp_path):
        path = write_weights(tmp_path / "a.weights.h5", {"bn1": vectors(4), "bn2": vectors(4)},
                             names={"bn1": "batch_normalization_3", "bn2": "mine"})  # fmt: skip
        assert recognised(path) == ([("bn1/vars/2", "bn1/vars/3")], ("bn2",))

    def test_of_an_attribute_are_told_by_the_configuration(self, tmp_path):
        config = sequential(("BatchNormalization", {"name": "mine"}))
        path = write_archive(tmp_path / "a.keras", {"bn": vectors(3)}, names={"bn": "mine"},
                             config=config)  # fmt: skip
        assert recognised(path) == ([("bn/vars/1", "bn/vars/2")], ())

    def test_in_a_list_are_told_by_the_class_in_the_path(self, tmp_path):
        layers = {"net/blocks/batch_normalization_2": vectors(4),
                  "net/blocks/layer_normalization": vectors(2)}  # fmt: skip
        path = write_weights(tmp_path / "a.weights.h5", layers)
        prefix = "net/blocks/batch_normalization_2/vars"
        assert recognised(path) == ([(f"{prefix}/2", f"{prefix}/3")], ())

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_of_an_attribute_without_a_name_may_be_some(self, tmp_path, count):
        path = write_weights(tmp_path / "a.weights.h5", {"bn1": vectors(count)})
        assert recognised(path) == ([], ("bn1",))

    def test_of_a_class_of_ones_own_may_be_some(self, tmp_path):
        path = write_weights(tmp_path / "a.weights.h5", {"layers/my_norm": vectors(4)})
        assert recognised(path) == ([], ("layers/my_norm",))

    @pytest.mark.parametrize(
        "layers",
        [
            {"layers/layer_normalization": vectors(2)},
            {"layers/group_normalization_1": vectors(2)},
            {"layers/normalization": [*vectors(2), np.int64(5)]},
            {"norm": [*vectors(2), np.int64(5)]},
            {"layers/dense": [np.ones((3, 3), "f4"), np.ones(3, "f4")]},
            {"d": [np.ones((3, 3), "f4"), np.ones(3, "f4")]},
            {"layers/p_re_lu": vectors(1)},
        ],
    )
    def test_of_other_layers_there_are_none(self, tmp_path, layers):
        assert recognised(write_weights(tmp_path / "a.weights.h5", layers)) == ([], ())

    def test_with_renormalization_may_be_some(self, tmp_path):
        layers = {"layers/batch_normalization": vectors(7)}
        path = write_weights(tmp_path / "a.weights.h5", layers)
        assert recognised(path) == ([], ("layers/batch_normalization",))

    def test_that_are_not_as_keras_makes_them_may_be_some(self, tmp_path):
        layers = {"layers/batch_normalization": [*vectors(2), *vectors(2, size=4)]}
        path = write_weights(tmp_path / "a.weights.h5", layers)
        assert recognised(path) == ([], ("layers/batch_normalization",))


class TestLegacy:
    def test_are_told_by_their_names(self, tmp_path):
        gamma, beta, mean, variance = vectors(4)
        path = write_legacy(
            tmp_path / "a.h5",
            {
                "model": {
                    "bn/moving_mean:0": mean, "bn/moving_variance:0": variance,
                    "bn_1/gamma:0": gamma, "bn_1/beta:0": beta,
                    "bn_1/moving_mean:0": mean, "bn_1/moving_variance:0": variance,
                },
                "layer_normalization": {"layer_normalization/gamma:0": gamma},
                "normalization": {"mean:0": mean, "variance:0": variance},
            },
            version="2.15.0",
        )  # fmt: skip
        assert recognised(path) == (
            [
                ("model/bn/moving_mean:0", "model/bn/moving_variance:0"),
                ("model/bn_1/moving_mean:0", "model/bn_1/moving_variance:0"),
            ],
            (),
        )

    def test_of_which_one_is_missing_may_be_some(self, tmp_path):
        path = write_legacy(tmp_path / "a.h5", {"bn": {"bn/moving_mean:0": np.ones(3, "f4")}})
        assert recognised(path) == ([], ("bn/bn",))


class TestPooled:
    @pytest.mark.parametrize("weights", [None, [0.5, 0.25, 0.25]])
    @pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
    def test_are_the_variances_with_the_spread_of_the_means(self, tmp_path, suffix, weights):
        paths = [LAYOUTS / f"keras3.15.1-tf-cnn_{x}{suffix}" for x in "abc"]
        output = tmp_path / f"out{suffix}"
        record = merge(paths, output, batchnorm="pooled", weights=weights)
        plain = tmp_path / f"plain{suffix}"
        merge(paths, plain, weights=weights)
        inputs, out, mean = [stored(path) for path in paths], stored(output), stored(plain)
        means, variances = ([values[path] for values in inputs] for path in (MEAN, VARIANCE))
        assert out[VARIANCE].tolist() == exact(means, variances, weights).astype("f4").tolist()
        assert (out[VARIANCE] >= mean[VARIANCE]).all()
        assert (out[VARIANCE] > mean[VARIANCE]).any()
        for path in mean:
            if path != VARIANCE:
                assert out[path].tobytes() == mean[path].tobytes()
        policies = {v.path: (v.action, v.reason) for v in record.variables}
        assert policies[MEAN] == ("average", "moving mean")
        assert policies[VARIANCE] == ("pooled", "moving variance")
        assert record.averaged == plan(paths, output, force=True).averaged

    def test_of_legacy_files_are_the_same(self, tmp_path):
        paths = [LAYOUTS / f"keras3.15.1-tf-cnn_{x}.h5" for x in "ab"]
        merge(paths, tmp_path / "out.h5", batchnorm="pooled")
        name = "model_weights/batch_normalization/batch_normalization/moving_"
        inputs = [stored(path) for path in paths]
        means, variances = ([i[name + what] for i in inputs] for what in ("mean", "variance"))
        found = stored(tmp_path / "out.h5")[f"{name}variance"]
        assert found.tolist() == exact(means, variances).astype("f4").tolist()

    def test_do_not_depend_on_threads_slabs_or_order(self, tmp_path, monkeypatch):
        generator = np.random.default_rng(3)
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/batch_normalization": [generator.normal(size=5_000).astype("f4") ** 2
                                                for _ in range(4)]},
            )
            for i in range(3)
        ]  # fmt: skip
        output = tmp_path / "out.weights.h5"

        def result(paths=paths, **options):
            merge(paths, output, batchnorm="pooled", force=True, **options)
            return {path: values.tobytes() for path, values in stored(output).items()}

        expected = result()
        assert result(threads=3) == expected
        assert result(paths[::-1], memory_limit="1GiB") == expected
        for elements in (1, 7, 4_096):
            for name in ("MOST_SLAB_ELEMENTS", "LEAST_SLAB_ELEMENTS"):
                monkeypatch.setattr("streamavg.planning." + name, elements)
            assert result() == expected

    def test_are_told_of_in_bytes_and_progress(self, tmp_path):
        counts = []
        record = merge(TRIPLET, tmp_path / "out.weights.h5", batchnorm="pooled",
                       on_progress=counts.append)  # fmt: skip
        plain = plan(TRIPLET, tmp_path / "x.weights.h5")
        assert sum(counts) == record.bytes_read == plain.bytes_read + 3 * 4 * 4

    def test_go_with_the_geometric_median(self, tmp_path):
        record = merge(TRIPLET, tmp_path / "out.weights.h5", batchnorm="pooled",
                       method="geometric-median")  # fmt: skip
        shares = [entry.coefficient for entry in record.inputs]
        inputs = [stored(path) for path in TRIPLET]
        means, variances = ([i[path] for i in inputs] for path in (MEAN, VARIANCE))
        found = stored(tmp_path / "out.weights.h5")[VARIANCE]
        expected = exact(means, variances, shares)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @pytest.mark.parametrize("method", ["median", "trimmed-mean", "slerp"])
    def test_do_not_go_with_methods_without_coefficients(self, tmp_path, method):
        with pytest.raises(OptionError, match=f"--batchnorm pooled and --method {method}"):
            plan(TRIPLET, tmp_path / "out.weights.h5", batchnorm="pooled", method=method)

    def test_that_are_not_finite_are_refused_by_their_place(self, tmp_path):
        paths = [tmp_path / f"{i}.weights.h5" for i in range(2)]
        for path, original in zip(paths, TRIPLET, strict=False):
            path.write_bytes(original.read_bytes())
        with h5py.File(paths[1], "r+") as file:
            file[VARIANCE][2] = np.nan
        with pytest.raises(ValueError, match=rf"{paths[1]}: variable '{VARIANCE}'.*index \[2\]"):
            merge(paths, tmp_path / "out.weights.h5", batchnorm="pooled")

    def test_that_do_not_fit_their_dtype_are_refused(self, tmp_path):
        def write(name, mean):
            values = [np.array([x], "f2") for x in (1, 0, mean, 1)]
            return write_weights(tmp_path / name, {"layers/batch_normalization": values})

        paths = [write("a.weights.h5", 6e4), write("b.weights.h5", -6e4)]
        with pytest.raises(OptionError, match="does not fit float16"):
            merge(paths, tmp_path / "out.weights.h5", batchnorm="pooled")


class TestReference:
    @pytest.mark.parametrize("method", ["mean", "median", "geometric-median"])
    def test_are_copied(self, tmp_path, method):
        output = tmp_path / "out.weights.h5"
        record = merge(TRIPLET, output, batchnorm="reference", reference=TRIPLET[1], method=method)
        out, kept = stored(output), stored(TRIPLET[1])
        for path in (MEAN, VARIANCE):
            assert out[path].tobytes() == kept[path].tobytes()
        plain = tmp_path / "plain.weights.h5"
        merge(TRIPLET, plain, method=method)
        gamma = "layers/batch_normalization/vars/0"
        np.testing.assert_allclose(out[gamma], stored(plain)[gamma], rtol=1e-3)
        policies = {v.path: (v.action, v.carried_from) for v in record.variables}
        assert policies[VARIANCE] == ("carry", str(TRIPLET[1]))
        assert record.notes == plan(TRIPLET, tmp_path / "x.weights.h5", method=method).notes


class TestRefusals:
    @pytest.mark.parametrize("policy", ["pooled", "reference"])
    def test_of_models_without_any(self, tmp_path, policy):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": vectors(1)})
            for i in range(2)
        ]
        with pytest.raises(OptionError, match=f"--batchnorm {policy}.*has no BatchNormalization"):
            plan(paths, tmp_path / "out.weights.h5", batchnorm=policy)

    @pytest.mark.parametrize("policy", ["pooled", "reference"])
    def test_of_files_that_do_not_tell_name_the_layers_in_question(self, tmp_path, policy):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"bn1": vectors(4), "d": vectors(1)})
            for i in range(2)
        ]
        with pytest.raises(OptionError, match=r"'bn1' may be some.*--batchnorm mean"):
            plan(paths, tmp_path / "out.weights.h5", batchnorm=policy)

    def test_are_a_note_where_others_are_recognised(self, tmp_path):
        layers = {"bn1": vectors(4), "layers/batch_normalization": vectors(4)}
        paths = [write_weights(tmp_path / f"{i}.weights.h5", layers) for i in range(2)]
        record = plan(paths, tmp_path / "out.weights.h5", batchnorm="pooled")
        assert any("'bn1' may be BatchNormalizations too" in note for note in record.notes)
        assert plan(paths, tmp_path / "out.weights.h5").notes == ()
