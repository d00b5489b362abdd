"""Files written without the HDF5 library hold what the library would have written."""

import io
import string
import struct

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamavg
from streamavg.formats import keras_weights
from streamavg.formats.output import OutputFile
from streamavg.formats.plain_writing import LARGE, Skeleton, plan_values
from tests.builders import FIXTURES, LAYOUTS, run_python, sha256, stored
from tests.checkpoint_files import ARRAYS, add_array, write_weights
from tests.oracle import BFLOAT16

REAL = [
    FIXTURES / "digits" / "epoch-20.weights.h5",
    FIXTURES / "digits" / "epoch-20.keras",
    FIXTURES / "digits-keras2" / "epoch-20.weights.h5",
    *(
        LAYOUTS / name
        for name in (
            "keras2.12.0-tf2.12.1-nested.weights.h5", "keras3.0.5-tf-subclassed.weights.h5",
            "keras3.10.0-jax-containers.weights.h5", "keras3.15.1-tf-bfloat16_a.weights.h5",
            "keras3.15.1-tf-bfloat16_a.keras", "keras3.15.1-tf-adamw_ema.weights.h5",
        )
    ),
]  # fmt: skip


def written(reference, path, dtypes=None, *, plain=True):
    """Writes the reference's own values, with a skeleton of either kind. Returns the file."""
    with streamavg.open_checkpoint(reference) as checkpoint:
        dtypes = dtypes or [variable.dtype for variable in checkpoint.variables]
        made = keras_weights.skeleton(checkpoint, dtypes)
        assert isinstance(made, Skeleton)
        if not plain:
            excluded = keras_weights.excluded_groups(checkpoint, dtypes)
            made = keras_weights.skeleton_by_library(checkpoint, dtypes, excluded)
        targets = keras_weights.targets(checkpoint, dtypes)
        stretch = keras_weights.Hdf5Stretch(OutputFile(path, force=True))
        with keras_weights.Hdf5CheckpointWriter(stretch, made, targets) as writer:
            for position, (variable, dtype) in enumerate(
                zip(checkpoint.variables, dtypes, strict=True)
            ):
                if dtype is not None:
                    values = checkpoint.read(variable.path).reshape(-1).astype(dtype)
                    if values.size:
                        writer.write(position, 0, values)
            writer.commit()
    return path


def content(path):
    """All objects of an HDF5 file: attributes with their types, values with theirs."""
    found = {}
    with h5py.File(path, "r") as opened:

        def note(name, item):
            attributes = {
                key: (str(value), h5py.h5a.open(item.id, key.encode()).get_type().encode())
                for key, value in item.attrs.items()
            }
            values = None
            if isinstance(item, h5py.Dataset):
                assert item.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
                values = item.shape, item.id.get_type().encode(), item[()].tobytes()
            found[name] = attributes, values

        note("", opened["/"])
        opened.visititems(note)
    return found


@pytest.mark.parametrize("reference", REAL, ids=lambda path: path.name)
def test_both_ways_to_write_give_the_same_objects(tmp_path, reference):
    plain = written(reference, tmp_path / "plain.weights.h5")
    assert content(plain) == content(written(reference, tmp_path / "library.h5", plain=False))


@pytest.mark.parametrize("dtype", ["f8", "f2", BFLOAT16], ids=str)
def test_both_ways_give_the_same_objects_in_another_dtype(tmp_path, dtype):
    for reference in (REAL[0], REAL[6]):
        with streamavg.open_checkpoint(reference) as checkpoint:
            dtypes = [
                np.dtype(dtype) if variable.dtype.kind in "fV" else None
                for variable in checkpoint.variables
            ]
        paths = [tmp_path / "plain.weights.h5", tmp_path / "library.weights.h5"]
        for path, plain in zip(paths, (True, False), strict=True):
            written(reference, path, dtypes, plain=plain)
        assert content(paths[0]) == content(paths[1])


NAMES = st.text(string.ascii_letters + string.digits + "_ :", min_size=1, max_size=12)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    st.dictionaries(NAMES, st.dictionaries(NAMES, st.sampled_from(sorted(ARRAYS)), max_size=9)),
    st.text(string.printable.strip(), min_size=1, max_size=5000),
)
def test_any_model_is_written_as_the_library_writes_it(tmp_path_factory, layers, name):
    folder = tmp_path_factory.mktemp("model")
    arrays = {
        f"layers/{layer}/vars/{key}": ARRAYS[kind]
        for layer, members in layers.items()
        for key, kind in members.items()
    }
    reference = write_weights(folder / "reference.weights.h5", arrays)
    with h5py.File(reference, "r+") as opened:
        opened["vars"].attrs["name"] = name
        opened.attrs["numbers"] = np.arange(6).reshape(2, 3)
        opened.attrs["flags"] = [True, False]
        opened.attrs["names"] = ["a", "bc", "d" * 100]
    plain = written(reference, folder / "plain.weights.h5")
    assert content(plain) == content(written(reference, folder / "library.h5", plain=False))


@pytest.mark.parametrize("count", [0, 1, 8, 9, 256, 257, 20_000])
def test_the_library_finds_every_member_of_a_group_by_its_name(tmp_path, count):
    """8 members fill a leaf, 256 a tree of one node; 20,000 need three levels."""
    reference = tmp_path / "a.weights.h5"
    with h5py.File(reference, "w") as opened:
        group = opened.create_group("layers/dense/vars")
        for number in range(count):
            group[str(number)] = np.float32(number)
    plain = written(reference, tmp_path / "b.weights.h5")
    with h5py.File(plain, "r") as opened:
        group = opened["layers/dense/vars"]
        assert len(group) == count
        assert all(group[str(number)][()] == number for number in range(count))
        assert "x" not in group
        assert "" not in group
        assert h5py.h5g.get_objinfo(group.id).nlink == 1


@pytest.mark.parametrize("count", [1, 9, 400])
def test_the_library_can_change_what_was_written(tmp_path, count):
    """Its own rules for trees and heaps hold: it inserts, removes and renames in them."""
    arrays = {f"layers/dense_{number}/vars/0": np.float32(number) for number in range(count)}
    reference = write_weights(tmp_path / "a.weights.h5", arrays)
    plain = written(reference, tmp_path / "b.weights.h5")
    with h5py.File(plain, "r+") as opened:
        for number in range(300):
            add_array(opened, f"layers/added_{number}/vars/0", np.float32(-number))
            opened["layers"].attrs[f"text{number}"] = "x" * number
        for number in range(0, count, 2):
            del opened[f"layers/dense_{number}"]
        opened.move("vars", "other")
    with h5py.File(plain, "r") as opened:
        assert len(opened["layers"]) == 300 + count // 2
        assert len(opened["layers"].attrs) == 300
        assert opened["layers/added_299/vars/0"][()] == -299


def test_the_same_reference_gives_the_same_bytes(tmp_path):
    paths = [written(REAL[0], tmp_path / name) for name in ("a.weights.h5", "b.weights.h5")]
    assert sha256(paths[0]) == sha256(paths[1])


def test_what_was_written_is_read_and_mirrored_again(tmp_path):
    first = written(REAL[0], tmp_path / "a.weights.h5")
    assert sha256(written(first, tmp_path / "b.weights.h5")) == sha256(first)


def test_a_root_group_of_which_nothing_is_written_is_left_out(tmp_path):
    reference = write_weights(
        tmp_path / "a.weights.h5", {"layers/d/vars/0": 1.0, "optimizer/vars/0": 2.0}
    )
    with streamavg.open_checkpoint(reference) as checkpoint:
        dtypes = [None if v.path.startswith("opt") else v.dtype for v in checkpoint.variables]
    plain = written(reference, tmp_path / "b.weights.h5", dtypes)
    assert list(stored(plain)) == ["layers/d/vars/0"]
    assert "optimizer" not in content(plain)


def test_a_root_without_variables_gets_their_group(tmp_path):
    reference = write_weights(tmp_path / "a.weights.h5", {"layers/d/vars/0": 1.0})
    with h5py.File(reference, "r+") as opened:
        del opened["vars"]
    assert content(written(reference, tmp_path / "b.weights.h5"))["vars"] == ({}, None)


def test_small_values_lie_next_to_each_other_and_large_ones_are_aligned():
    f4, f8 = np.dtype("f4"), np.dtype("f8")
    places, end = plan_values([(3,), (), (5, 0), (LARGE,), (2,), (7,)], [f4, f4, f4, f4, None, f8])
    firsts = [None if place is None else place.first_byte for place in places]
    assert firsts == [128, 140, 144, 192, None, 192 + 4 * LARGE]
    assert end == firsts[-1] + 56


def test_a_file_that_is_cut_short_is_known_by_its_end(tmp_path):
    plain = written(REAL[0], tmp_path / "a.weights.h5").read_bytes()
    assert struct.unpack_from("<Q", plain, 40)[0] == len(plain)
    with h5py.File(io.BytesIO(plain), "r") as opened:
        assert opened["layers"]
    with pytest.raises(OSError, match="truncated"):
        h5py.File(io.BytesIO(plain[:-1]), "r")


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_merge_of_what_keras_writes_does_not_load_the_library(tmp_path, suffix):
    code = (
        "import sys, streamavg\n"
        "streamavg.merge(sys.argv[1:3], sys.argv[3])\n"
        "assert 'h5py' not in sys.modules"
    )
    inputs = [FIXTURES / "digits" / f"epoch-{number}{suffix}" for number in (19, 20)]
    done = run_python(code, *inputs, tmp_path / f"out{suffix}")
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path / f"out{suffix}")
