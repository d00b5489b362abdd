import h5py
import numpy as np
import pytest

import streamavg
from tests.checkpoint_files import write_legacy
from tests.contracts.reading import CheckpointContract
from tests.contracts.writing import WriterContract


class TestWholeModel(CheckpointContract, WriterContract):
    format, suffix, prefix = "keras-legacy", ".h5", "model_weights/"

    def write(self, path, arrays, storage):
        layers = {f"{name}_layer": {"w:0": values} for name, values in arrays.items()}
        write_legacy(path, layers, storage, whole=bool(self.prefix))
        return {name: f"{name}_layer/w:0" for name in arrays}

    def write_with_optimizer(self, path):
        write_legacy(path, {"a": {"w": 1.0}}, whole=True, optimizer={"Adam/iterations:0": 7})

    def write_shared(self, path, first, second, values):
        layers = {first: {"kernel": values}, second: {"kernel": values}}
        write_legacy(path, layers, whole=bool(self.prefix))
        paths = [f"{layer}/kernel" for layer in layers]
        with h5py.File(path, "r+") as opened:
            del opened[self.prefix + paths[1]]
            opened[self.prefix + paths[1]] = opened[self.prefix + paths[0]]
        return paths


class TestWeightsOnly(TestWholeModel):
    prefix = ""

    @pytest.mark.skip(reason="this layout has no optimizer")
    def test_the_optimizer_is_left_out_with_its_groups(self):
        """Keras stores it in whole models only."""


def test_variables_come_in_the_order_of_the_lists_not_of_their_names(tmp_path):
    layers = {name: {"z": 1.0, "a": 2.0} for name in ("dense_10", "dense_9", "conv")}
    path = write_legacy(tmp_path / "a.h5", layers)
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [variable.path for variable in checkpoint.variables] == [
            f"{layer}/{name}" for layer in ("dense_10", "dense_9", "conv") for name in "za"
        ]


def test_a_layer_may_lie_in_the_group_of_another(tmp_path):
    path = write_legacy(tmp_path / "a.h5", {"conv": {"w": [1.0]}, "conv/bn": {"w": [2.0]}})
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [checkpoint.read(v.path)[0] for v in checkpoint.variables] == [1.0, 2.0]


@pytest.mark.parametrize(
    "names", [["w", "v"], np.array([b"w", b"v"]), np.array([b"w\0\0\0", b"v"])]
)
def test_names_may_be_strings_of_fixed_or_variable_length(tmp_path, names):
    path = write_legacy(tmp_path / "a.h5", {"dense": {"w": 1.0, "v": 2.0}})
    with h5py.File(path, "r+") as opened:
        opened["dense"].attrs["weight_names"] = names
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [variable.path for variable in checkpoint.variables] == ["dense/w", "dense/v"]


def test_long_lists_of_names_are_put_together_again(tmp_path):
    path = write_legacy(tmp_path / "a.h5", {"a": {"x": 1.0, "y": 2.0, "z": 3.0}, "b": {"x": 4.0}})
    with h5py.File(path, "r+") as opened:
        for group, list_name in ((opened, "layer_names"), (opened["a"], "weight_names")):
            for number, name in enumerate(group.attrs.pop(list_name)):
                group.attrs[f"{list_name}{number}"] = [name]
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [v.path for v in checkpoint.variables] == ["a/x", "a/y", "a/z", "b/x"]


def test_an_empty_list_of_names_may_be_an_array_of_floats(tmp_path):
    path = write_legacy(tmp_path / "a.h5", {"relu": {}, "dense": {"w": 1.0}})
    with h5py.File(path, "r+") as opened:
        assert opened["relu"].attrs["weight_names"].dtype == np.float64
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [variable.path for variable in checkpoint.variables] == ["dense/w"]


def test_weights_of_the_model_itself_are_read(tmp_path):
    path = write_legacy(tmp_path / "a.h5", {"dense": {"w": 1.0}})
    with h5py.File(path, "r+") as opened:
        top = opened.create_group("top_level_model_weights")
        top.attrs["weight_names"] = ["scale"]
        top["scale"] = 2.0
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [v.path for v in checkpoint.variables] == [
            "dense/w",
            "top_level_model_weights/scale",
        ]
