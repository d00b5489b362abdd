"""What every format's reader keeps."""

import contextlib

import numpy as np
import pytest

import streamavg
from streamavg.checkpoint import ABSENT, FileIdentity
from tests.checkpoint_files import ARRAYS, STORAGES

SLABS = (1, 2, 7, 64, 1000)


def bits(values):
    """An array's bytes with its shape and dtype: equal for NaN too, unequal for -0.0 and 0.0."""
    return values.shape, str(values.dtype), values.tobytes()


def read_in_slabs(checkpoint, position, slab):
    variable = checkpoint.variables[position]
    values = np.empty(variable.size, variable.dtype)
    for start in range(0, variable.size, slab):
        checkpoint.values.read_into(position, start, values[start : start + slab])
    return values.reshape(variable.shape)


class CheckpointContract:
    """Subclasses set `format` and the `suffix` of its files, and write arrays in their layout."""

    format: str
    suffix: str

    def write(self, path, arrays, storage):
        """Writes arrays by name; returns the path of the variable that each became."""
        raise NotImplementedError

    @pytest.fixture(params=STORAGES)
    def storage(self, request):
        return STORAGES[request.param]

    @pytest.fixture
    def written(self, tmp_path, storage):
        """A checkpoint file, and the arrays that it holds by variable path."""
        path = tmp_path / f"one{self.suffix}"
        names = self.write(path, ARRAYS, storage)
        return path, {names[name]: np.asarray(values) for name, values in ARRAYS.items()}

    def test_tells_its_format_and_path(self, written):
        with streamavg.open_checkpoint(written[0]) as checkpoint:
            assert (checkpoint.format, checkpoint.path) == (self.format, written[0])

    def test_lists_each_variable_once_with_its_shape_and_native_dtype(self, written):
        path, arrays = written
        with streamavg.open_checkpoint(path) as checkpoint:
            found = {v.path: (v.shape, v.dtype) for v in checkpoint.variables}
            assert len(found) == len(checkpoint.variables)
            assert found == {name: (a.shape, a.dtype) for name, a in arrays.items()}
            assert all(v.dtype.isnative for v in checkpoint.variables)

    @pytest.mark.parametrize("slab", SLABS)
    def test_values_read_in_slabs_of_any_size_equal_those_written(self, written, slab):
        path, arrays = written
        with streamavg.open_checkpoint(path) as checkpoint:
            for position, variable in enumerate(checkpoint.variables):
                values = read_in_slabs(checkpoint, position, slab)
                assert bits(values) == bits(arrays[variable.path]), variable.path

    def test_a_slab_from_the_middle_holds_those_elements(self, written):
        path, arrays = written
        with streamavg.open_checkpoint(path) as checkpoint:
            for position, variable in enumerate(checkpoint.variables):
                flat = arrays[variable.path].reshape(-1)
                first, last = variable.size // 3, variable.size - variable.size // 4
                values = np.empty(last - first, variable.dtype)
                checkpoint.values.read_into(position, first, values)
                assert bits(values) == bits(flat[first:last]), variable.path

    def test_a_variable_read_by_name_is_whole(self, written):
        path, arrays = written
        with streamavg.open_checkpoint(path) as checkpoint:
            for name, values in arrays.items():
                assert bits(checkpoint.read(name)) == bits(values)

    def test_values_can_be_put_in_another_order(self, written):
        path, arrays = written
        checkpoint = streamavg.open_checkpoint(path)
        count = len(checkpoint.variables)
        order = np.array([*reversed(range(count)), ABSENT, 0])
        aligned = checkpoint.values.aligned(order)
        for position, old in enumerate(order.tolist()):
            if old != ABSENT:
                variable = checkpoint.variables[old]
                values = np.empty(variable.size, variable.dtype)
                aligned.read_into(position, 0, values)
                assert bits(values) == bits(arrays[variable.path].reshape(-1))
        aligned.close()

    def test_values_can_be_read_again_after_closing(self, written):
        path, arrays = written
        checkpoint = streamavg.open_checkpoint(path)
        for _ in range(2):
            for name, values in arrays.items():
                assert bits(checkpoint.read(name)) == bits(values)
            checkpoint.values.close()

    def test_its_identity_is_that_of_the_file(self, written):
        with streamavg.open_checkpoint(written[0]) as checkpoint:
            assert checkpoint.identity == FileIdentity.of(written[0])
            checkpoint.identity.require_unchanged(written[0])

    def test_an_intact_file_passes_its_own_checksum(self, written):
        with streamavg.open_checkpoint(written[0]) as checkpoint:
            checkpoint.values.verify()

    def test_a_file_put_in_its_place_is_not_read(self, written, storage):
        path, arrays = written
        checkpoint = streamavg.open_checkpoint(path)
        checkpoint.values.close()
        other = path.with_name(f"other{self.suffix}")
        self.write(other, {name: np.zeros_like(a) for name, a in ARRAYS.items()}, storage)
        other.replace(path)
        for name, values in arrays.items():
            with contextlib.suppress(streamavg.ChangedFileError):
                assert bits(checkpoint.read(name)) == bits(values), name
        checkpoint.values.close()

    def test_a_checkpoint_without_variables_is_read(self, tmp_path, storage):
        path = tmp_path / f"none{self.suffix}"
        self.write(path, {}, storage)
        with streamavg.open_checkpoint(path) as checkpoint:
            assert checkpoint.variables == ()

    def test_a_checkpoint_without_variables_is_incompatible_with_one_that_has_some(self, tmp_path):
        paths = [tmp_path / f"{name}{self.suffix}" for name in ("none", "some")]
        for path, arrays in zip(paths, ({}, {"bias": np.float32([1])}), strict=True):
            self.write(path, arrays, STORAGES["contiguous"])
        for pair in (paths, paths[::-1]):
            with pytest.raises(streamavg.IncompatibleCheckpointsError):
                streamavg.merge(pair, tmp_path / f"out{self.suffix}")

    def test_another_with_the_same_headers_is_described_like_the_known_one(self, written, storage):
        path, _ = written
        twin = path.with_name(f"twin{self.suffix}")
        zeros = {name: np.zeros_like(values) for name, values in ARRAYS.items()}
        names = self.write(twin, zeros, storage)
        with streamavg.open_checkpoint(path) as known, streamavg.open_checkpoint(twin) as alone:
            described = streamavg.open_checkpoint(twin, known)
            assert described.path == twin
            for field in ("variables", "layers", "config", "producer", "notes", "identity"):
                assert getattr(described, field) == getattr(alone, field), field
            for name, values in zeros.items():
                assert bits(described.read(names[name])) == bits(np.asarray(values))
            described.values.close()

    def test_another_with_other_headers_is_described_as_it_is(self, written, storage):
        path, _ = written
        other = path.with_name(f"other{self.suffix}")
        self.write(other, {"kernel": np.ones((2, 3), np.float32)}, storage)
        with streamavg.open_checkpoint(path) as known, streamavg.open_checkpoint(other) as alone:
            described = streamavg.open_checkpoint(other, known)
            assert described.variables == alone.variables
            described.values.close()
