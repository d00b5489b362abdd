import math

import h5py
import numpy as np
import pytest

import streamavg
from streamavg.formats.datasets import natural_key
from streamavg.formats.hdf5 import boxes
from tests.checkpoint_files import add_unwritten, write_weights

SHAPES = [(), (1,), (6,), (2, 3), (3, 1, 4), (2, 3, 2, 2), (1, 1, 5), (4, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_cover_every_run_of_elements_in_order_and_are_few(shape):
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for start in range(numbers.size):
        for count in range(1, numbers.size - start + 1):
            cut = list(boxes(shape, start, count))
            covered = []
            for first, extent in cut:
                region = tuple(slice(f, f + e) for f, e in zip(first, extent, strict=True))
                covered += numbers[region].reshape(-1).tolist()
            assert covered == list(range(start, start + count))
            assert len(cut) <= max(1, 2 * len(shape) - 1)


def test_no_elements_need_no_box():
    assert list(boxes((3, 4), 5, 0)) == []


def test_numbers_in_names_sort_by_value():
    names = ["dense_10", "10", "dense", "2", "dense_2", "conv2d_1", "conv10d", "a"]
    expected = ["2", "10", "a", "conv2d_1", "conv10d", "dense", "dense_2", "dense_10"]
    assert sorted(names, key=natural_key) == expected


def test_digits_of_other_scripts_are_letters():
    assert natural_key("\u0663") == ((1, 0, "\u0663"),)


@pytest.mark.parametrize("fill", [7.0, -0.5])
def test_an_array_that_was_never_written_reads_as_its_fill_value(tmp_path, fill):
    path = write_weights(tmp_path / "a.weights.h5", {})
    with h5py.File(path, "r+") as opened:
        add_unwritten(opened, "layers/dense/vars/0", (5, 2), np.float32, fill)
    with streamavg.open_checkpoint(path) as checkpoint:
        values = checkpoint.read("layers/dense/vars/0")
    assert values.tolist() == np.full((5, 2), fill).tolist()


@pytest.mark.parametrize(
    ("names", "expected"), [(["2"], 0), (["0", "2"], 2**20), (["1"], 2**20 + 192)]
)
def test_only_what_the_library_decodes_needs_memory_beside_the_buffer(tmp_path, names, expected):
    with h5py.File(tmp_path / "a.weights.h5", "w") as opened:
        group = opened.create_group("layers/dense/vars")
        group.create_dataset("0", data=np.zeros((64, 64), "f4"), chunks=(32, 32))
        group.create_dataset("1", data=np.zeros(64, "f4"), chunks=(16,), compression="gzip")
        group.create_dataset("2", data=np.zeros(64, "f4"))
        for name in set(group) - set(names):
            del group[name]
    with streamavg.open_checkpoint(tmp_path / "a.weights.h5") as checkpoint:
        assert checkpoint.values.library_bytes == expected


def test_arrays_outside_any_layer_are_told_of(tmp_path):
    path = write_weights(tmp_path / "a.weights.h5", {"layers/d/vars/0": 1.0, "provenance/run": 2})
    with streamavg.open_checkpoint(path) as checkpoint:
        assert [variable.path for variable in checkpoint.variables] == ["layers/d/vars/0"]
        assert "1 datasets outside any layer" in checkpoint.notes[0]


UNSUPPORTED = {
    "complex": h5py.h5t.py_create(np.dtype("c8")),
    "long double": h5py.h5t.NATIVE_LDOUBLE,
    "bit field": h5py.h5t.STD_B32LE,
    "opaque of 4 bytes": h5py.h5t.create(h5py.h5t.OPAQUE, 4),
    "reference": h5py.h5t.STD_REF_OBJ,
    "ragged": h5py.h5t.vlen_create(h5py.h5t.IEEE_F32LE),
    "array": h5py.h5t.array_create(h5py.h5t.IEEE_F32LE, (2,)),
    "time": h5py.h5t.UNIX_D32LE,
}


def store_with_type(path, stored_type, values=None):
    with h5py.File(path, "w") as opened:
        group = opened.create_group("layers/dense/vars")
        made = h5py.h5d.create(group.id, b"0", stored_type, h5py.h5s.create_simple((4,)))
        if values is not None:
            memory_type = h5py.h5t.py_create(values.dtype)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, values, mtype=memory_type)
    return path


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_types_that_have_no_mean_are_refused_by_the_variables_name(tmp_path, kind):
    path = store_with_type(tmp_path / "a.weights.h5", UNSUPPORTED[kind])
    with pytest.raises(streamavg.UnsupportedFeatureError, match="'layers/dense/vars/0'"):
        streamavg.open_checkpoint(path)


def narrow_integer():
    made = h5py.h5t.STD_I16LE.copy()
    made.set_precision(12)
    return made


def shifted_float():
    made = h5py.h5t.IEEE_F32LE.copy()
    made.set_fields(18, 10, 8, 0, 10)
    made.set_precision(19)
    return made


@pytest.mark.parametrize(("stored_type", "dtype"), [(narrow_integer, "i2"), (shifted_float, "f4")])
def test_types_with_unusual_bits_are_converted_or_refused(tmp_path, stored_type, dtype):
    values = np.array([-1, 1, 5, -7], dtype)
    path = store_with_type(tmp_path / "a.weights.h5", stored_type(), values)
    with h5py.File(path) as opened:
        assert opened["layers/dense/vars/0"][:].tolist() == values.tolist()
    try:
        with streamavg.open_checkpoint(path) as checkpoint:
            assert checkpoint.read("layers/dense/vars/0").tolist() == values.tolist()
    except streamavg.UnsupportedFeatureError:
        pass


ATTRIBUTES = {
    "empty": h5py.Empty("f4"),
    "bool": True,
    "complex": np.complex64(3),
    "opaque": np.void(b"abc"),
    "array": np.arange(6.0).reshape(2, 3),
    "strings": ["a", "\u00e9"],
    "ragged": h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT32),
    "array type": h5py.h5t.array_create(h5py.h5t.NATIVE_INT32, (3,)),
    "time": h5py.h5t.UNIX_D32LE,
    "fixed UTF-8": (b"h\xc3\xa9", h5py.string_dtype("utf-8", 10)),
    "not UTF-8": (b"a\xff", h5py.string_dtype()),
}


def add_attribute(opened, value):
    if isinstance(value, h5py.h5t.TypeID):
        h5py.h5a.create(opened.id, b"x", value, h5py.h5s.create(h5py.h5s.SCALAR))
    elif isinstance(value, tuple):
        opened.attrs.create("x", value[0], dtype=value[1])
    else:
        opened.attrs["x"] = value


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_any_type_are_carried_or_refused(tmp_path, kind):
    paths = [tmp_path / f"{name}.weights.h5" for name in "ab"]
    for path in paths:
        write_weights(path, {"layers/dense/vars/0": np.float32([1])})
        with h5py.File(path, "r+") as opened:
            add_attribute(opened, ATTRIBUTES[kind])
    output = tmp_path / "c.weights.h5"
    try:
        streamavg.merge(paths, output)
    except streamavg.UnsupportedFeatureError:
        return
    with h5py.File(paths[0]) as source, h5py.File(output) as written:
        assert str(written.attrs["x"]) == str(source.attrs["x"])
        types = (h5py.h5a.open(file.id, b"x").get_type() for file in (source, written))
        assert next(types) == next(types)
