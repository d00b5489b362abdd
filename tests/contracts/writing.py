"""What every format's writer keeps."""

import contextlib
import os
import resource

import h5py
import numpy as np
import pytest

import streamavg
from streamavg.checkpoint import Role, runs_of
from streamavg.formats import create_writer
from tests.checkpoint_files import ARRAYS, STORAGES
from tests.contracts.reading import bits
from tests.oracle import BFLOAT16, open_hdf5, read_arrays


@contextlib.contextmanager
def files_end_at(size):
    """Makes the operating system refuse to write files beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(writer, reference, values_of, slab=17):
    """Writes all variables that `values_of` knows, last slab first."""
    for position, variable in enumerate(reference.variables):
        if variable.path in values_of:
            flat = np.asarray(values_of[variable.path]).reshape(-1)
            for part in reversed(list(runs_of(position, variable.size, slab))):
                writer.write(position, part.start, flat[part.start : part.start + part.count])


def structure(path):
    """Groups of a checkpoint's HDF5 file, and attributes of all objects, by their path."""
    found = {}
    with open_hdf5(path) as opened:
        found[""] = sorted(opened.attrs)
        opened.visititems(lambda name, item: found.__setitem__(name, sorted(item.attrs)))
    return found


class WriterContract:
    """Subclasses set `suffix` and `prefix` (of paths in the HDF5 file), and write references."""

    suffix: str
    prefix = ""

    def write(self, path, arrays, storage):
        """Writes arrays by name; returns the path of the variable that each became."""
        raise NotImplementedError

    def write_with_optimizer(self, path):
        """Writes a checkpoint with optimizer state."""
        raise NotImplementedError

    def write_shared(self, path, first, second, values):
        """Writes one array that the layers `first` and `second` share; returns its two paths."""
        raise NotImplementedError

    @pytest.fixture(params=["contiguous", "big-endian", "gzip"])
    def reference(self, tmp_path, request):
        path = tmp_path / f"reference{self.suffix}"
        self.write(path, ARRAYS, STORAGES[request.param])
        with streamavg.open_checkpoint(path) as checkpoint:
            yield checkpoint

    @pytest.fixture
    def output(self, tmp_path):
        folder = tmp_path / "out"
        folder.mkdir()
        return folder / f"output{self.suffix}"

    def new_values(self, reference):
        """Other values than the reference's, by variable path."""
        return {
            v.path: np.random.default_rng(5).integers(0, 2, v.shape).astype(v.dtype)
            for v in reference.variables
        }

    def write_all(self, reference, output, **options):
        values = self.new_values(reference)
        dtypes = [v.dtype for v in reference.variables]
        with create_writer(reference, dtypes, output, **options) as writer:
            fill(writer, reference, values)
            writer.commit()
        return {self.prefix + path: array for path, array in values.items()}

    def test_what_is_written_is_read_back_bit_for_bit(self, reference, output):
        expected = self.write_all(reference, output)
        found = read_arrays(output)
        assert {p: bits(a) for p, a in found.items()} == {p: bits(a) for p, a in expected.items()}

    def test_streamavg_reads_its_output_as_the_same_variables(self, reference, output):
        self.write_all(reference, output)
        with streamavg.open_checkpoint(output) as written:
            assert written.variables == reference.variables
            assert (written.format, written.config) == (reference.format, reference.config)
            written.values.verify()

    def test_groups_and_attributes_are_those_of_the_reference(self, reference, output):
        self.write_all(reference, output)
        assert structure(output) == structure(reference.path)

    def test_another_dtype_is_stored_where_it_is_asked_for(self, reference, output):
        values = {
            v.path: np.ones(v.shape, BFLOAT16) for v in reference.variables if v.dtype == np.float32
        }
        dtypes = [BFLOAT16 if v.path in values else v.dtype for v in reference.variables]
        with create_writer(reference, dtypes, output) as writer:
            fill(writer, reference, values)
            writer.commit()
        with streamavg.open_checkpoint(output) as written:
            for path, array in values.items():
                assert bits(written.read(path)) == bits(array)

    def test_nothing_is_at_the_place_before_it_is_committed(self, reference, output):
        with create_writer(reference, [v.dtype for v in reference.variables], output) as writer:
            fill(writer, reference, self.new_values(reference))
            assert not output.exists()
            writer.commit()
            assert [path.name for path in output.parent.iterdir()] == [output.name]

    def test_what_is_not_committed_leaves_nothing(self, reference, output):
        with create_writer(reference, [v.dtype for v in reference.variables], output) as writer:
            fill(writer, reference, self.new_values(reference))
        assert list(output.parent.iterdir()) == []

    def test_an_error_while_writing_leaves_nothing(self, reference, output):
        dtypes = [v.dtype for v in reference.variables]
        with pytest.raises(ZeroDivisionError), create_writer(reference, dtypes, output):
            raise ZeroDivisionError
        assert list(output.parent.iterdir()) == []

    def test_an_existing_file_is_refused_and_kept(self, reference, output):
        output.write_bytes(b"precious")
        with pytest.raises(streamavg.OutputError, match="exists already"):
            self.write_all(reference, output)
        assert output.read_bytes() == b"precious"
        assert [path.name for path in output.parent.iterdir()] == [output.name]

    def test_a_file_that_comes_into_being_meanwhile_is_kept(self, reference, output):
        dtypes = [v.dtype for v in reference.variables]
        with create_writer(reference, dtypes, output) as writer:
            output.write_bytes(b"precious")
            with pytest.raises(streamavg.OutputError, match="exists already"):
                writer.commit()
        assert output.read_bytes() == b"precious"
        assert [path.name for path in output.parent.iterdir()] == [output.name]

    def test_an_existing_file_is_replaced_with_force(self, reference, output):
        output.write_bytes(b"old")
        self.write_all(reference, output, force=True)
        with streamavg.open_checkpoint(output) as written:
            assert len(written.variables) == len(reference.variables)

    @pytest.mark.parametrize("fraction", [0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
    def test_a_disk_that_fills_up_gives_one_error_and_leaves_nothing(
        self, reference, output, fraction
    ):
        self.write_all(reference, output)
        size = output.stat().st_size
        output.unlink()
        with pytest.raises(streamavg.OutputError) as caught, files_end_at(int(size * fraction)):
            self.write_all(reference, output)
        assert caught.value.path == output
        assert list(output.parent.iterdir()) == []

    def test_a_full_disk_is_told_with_a_remedy(self, reference, output, monkeypatch):
        def full(*_):
            raise OSError(28, os.strerror(28))

        with create_writer(reference, [v.dtype for v in reference.variables], output) as writer:
            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(streamavg.OutputError, match=r"No space left.*Free some space"):
                fill(writer, reference, self.new_values(reference))
        assert list(output.parent.iterdir()) == []

    def test_the_optimizer_is_left_out_with_its_groups(self, tmp_path, output):
        path = tmp_path / f"compiled{self.suffix}"
        self.write_with_optimizer(path)
        with streamavg.open_checkpoint(path) as compiled:
            dtypes = [None if v.role == Role.OPTIMIZER else v.dtype for v in compiled.variables]
            assert None in dtypes
            with create_writer(compiled, dtypes, output) as writer:
                writer.commit()
        kept = {name: a for name, a in structure(path).items() if "optimizer" not in name}
        assert structure(output) == kept

    @pytest.mark.parametrize("order", [("dense", "dense_1"), ("dense_2", "dense_10")])
    def test_a_shared_array_is_stored_once_under_all_its_paths(self, tmp_path, output, order):
        path = tmp_path / f"shared{self.suffix}"
        paths = self.write_shared(path, *order, np.float32([1, 2]))
        with streamavg.open_checkpoint(path) as shared:
            assert [(v.path, *v.aliases) for v in shared.variables] == [tuple(paths)]
            with create_writer(shared, [v.dtype for v in shared.variables], output) as writer:
                fill(writer, shared, {paths[0]: np.float32([3, 4])})
                writer.commit()
        with open_hdf5(output) as opened:
            first, second = (opened.get(self.prefix + path) for path in paths)
            assert second is not None
            assert first[:].tolist() == second[:].tolist() == [3, 4]
            assert h5py.h5o.get_info(first.id).addr == h5py.h5o.get_info(second.id).addr

    @pytest.mark.parametrize(
        "strings",
        [["first", "second"], np.array([b"fixed", b"width"]), np.array(b"scalar", object)],
        ids=["variable length", "fixed length", "scalar"],
    )
    def test_strings_are_kept_or_replaced(self, tmp_path, output, strings):
        strings = np.asarray(strings, strings.dtype if hasattr(strings, "dtype") else object)
        path = tmp_path / f"strings{self.suffix}"
        name = self.write(path, {"words": strings}, STORAGES["contiguous"])["words"]
        with streamavg.open_checkpoint(path) as reference:
            for new in (None, np.full(strings.shape, b"other", object)):
                with create_writer(reference, [np.dtype(object)], output, force=True) as writer:
                    fill(writer, reference, {} if new is None else {name: new})
                    writer.commit()
                found = read_arrays(output)[self.prefix + name]
                expected = read_arrays(path)[self.prefix + name] if new is None else new
                assert found.tolist() == expected.tolist()
