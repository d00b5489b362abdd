import h5py

from tests.checkpoint_files import write_weights
from tests.contracts.reading import CheckpointContract
from tests.contracts.writing import WriterContract


class TestKerasWeights(CheckpointContract, WriterContract):
    format, suffix = "keras-weights", ".weights.h5"

    def write(self, path, arrays, storage):
        names = {name: f"layers/dense/vars/{number}" for number, name in enumerate(arrays)}
        write_weights(path, {names[name]: values for name, values in arrays.items()}, storage)
        return names

    def write_with_optimizer(self, path):
        write_weights(path, {"layers/dense/vars/0": [1.0], "optimizer/vars/0": 7})

    def write_shared(self, path, first, second, values):
        paths = [f"layers/{first}/vars/0", f"layers/{second}/vars/0"]
        write_weights(path, {paths[0]: values})
        with h5py.File(path, "r+") as opened:
            opened[paths[1]] = opened[paths[0]]
        return paths
