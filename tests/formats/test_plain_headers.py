"""What is read without the HDF5 library is what the library says, or nothing at all."""

import contextlib
import io
import random
import string
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamavg
from streamavg.formats import plain_headers
from streamavg.formats.hdf5_headers import Describer, read_text, walk
from streamavg.formats.plain_headers import read_headers, read_outline
from tests.builders import FIXTURES
from tests.checkpoint_files import ARRAYS, add_unwritten, weights_bytes, write_weights

KERAS_WRITES_NONE = {
    "bf16_native_float", "bigendian", "chunked", "gzip", "hardlink_shared", "libver_latest",
    "strings", "unwritten_fill",
}  # fmt: skip
"""Handmade files that can be averaged, but only through the library."""


def read(content):
    """The headers of an HDF5 file in memory."""
    return read_headers(lambda offset, size: content[offset : offset + size], len(content))


def read_by_library(content):
    """What the library says: all datasets, and the name of each group that has one."""
    with h5py.File(io.BytesIO(content), "r") as opened:
        datasets = tuple(walk(opened, Describer(Path("x"), len(content))))
        names = {}

        def note(path, item):
            if isinstance(item, h5py.Group) and "name" in item.attrs:
                names[path] = read_text(item.id, b"name")

        opened.visititems(note)
        return datasets, names


def hdf5_content(path):
    """The HDF5 file that a checkpoint is or holds; None if it holds none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, contextlib.suppress(KeyError, zipfile.BadZipFile):
            return archive.read("model.weights.h5")
        return None
    content = path.read_bytes()
    return content if content.startswith(b"\x89HDF") else None


WEIGHTS = [
    path
    for suffix in (".weights.h5", ".keras")
    for path in sorted(FIXTURES.rglob(f"*{suffix}"))
    if hdf5_content(path) is not None
]


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.name)
def test_files_of_keras_are_read_as_the_library_reads_them(path):
    content = hdf5_content(path)
    found = read(content)
    if found is not None:
        assert (found.datasets, found.names) == read_by_library(content)
    elif path.parent.name == "handmade":
        assert path.name.startswith("evil_") or path.name.split(".")[0] in KERAS_WRITES_NONE
    else:
        pytest.fail("a file that Keras wrote is declined")


def test_a_plain_file_is_described_without_the_library(tmp_path, monkeypatch):
    write_weights(tmp_path / "a.weights.h5", {"layers/dense/vars/0": ARRAYS["kernel"]})
    monkeypatch.setattr(h5py, "File", None)
    for path in (tmp_path / "a.weights.h5", FIXTURES / "digits" / "epoch-20.keras"):
        with streamavg.open_checkpoint(path) as checkpoint:
            assert checkpoint.variables


def test_a_file_that_is_being_written_is_refused(tmp_path):
    path = write_weights(tmp_path / "a.weights.h5", {"layers/dense/vars/0": ARRAYS["kernel"]})
    with (
        h5py.File(path, "r+"),
        pytest.raises(streamavg.CorruptFileError, match="open for writing"),
    ):
        streamavg.open_checkpoint(path)


def test_the_outline_has_two_levels_and_the_root_s_attributes():
    buffer = io.BytesIO(weights_bytes({"layers/dense/vars/0": 1.0, "layers/bn/vars/0": 1.0}))
    with h5py.File(buffer, "r+") as opened:
        opened.attrs["backend"] = "numpy"
    content = buffer.getvalue()
    outline = read_outline(lambda offset, size: content[offset : offset + size], len(content))
    assert outline.attributes == {b"backend"}
    assert outline.members == {"vars": frozenset(), "layers": {"dense", "bn"}}


NAMES = st.text(string.ascii_lowercase + string.digits + "_.: ", min_size=1, max_size=12).filter(
    lambda name: name.strip(".")
)
VALUES = st.sampled_from(sorted(ARRAYS)).map(ARRAYS.get)
TREES = st.recursive(
    VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=12), max_leaves=40
).filter(lambda tree: isinstance(tree, dict))


def paths_in(tree, prefix=""):
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield from paths_in(inner, f"{prefix}{name}/")
        else:
            yield prefix + name, inner


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(TREES, st.dictionaries(NAMES, NAMES, max_size=3))
def test_any_tree_of_groups_is_read_as_the_library_reads_it(tree, names):
    buffer = io.BytesIO(weights_bytes(dict(paths_in({"layers": tree}))))
    with h5py.File(buffer, "r+") as opened:
        for group, name in names.items():
            opened.require_group("named").create_group(group).attrs["name"] = name
    found = read(buffer.getvalue())
    assert (found.datasets, found.names) == read_by_library(buffer.getvalue())


@pytest.mark.parametrize("count", [0, 1, 8, 9, 300, 3000])
def test_groups_of_any_size_are_read(count):
    """More than 8 members need a second leaf, more than about 256 a second level of the tree."""
    names = [f"{name}" for name in range(count)]
    random.Random(count).shuffle(names)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        for name in names:
            opened[f"layers/{name}"] = np.float32(1)
    content = buffer.getvalue()
    assert read(content).datasets == read_by_library(content)[0]


def test_attributes_beyond_one_object_header_are_read():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        for number in range(300):
            opened.attrs[f"numbers{number}"] = np.arange(20.0)
        opened.create_group("vars").attrs["name"] = "n" * 5000
    assert read(buffer.getvalue()).names == {"vars": "n" * 5000}


def shared(opened):
    opened["layers/again"] = opened["layers/dense/vars/kernel"]


def strings(opened):
    opened["layers/dense/vars/1"] = ["a", "b"]


def nested(opened):
    opened.create_group("layers" + "/g" * 70)


OUTSIDE = {
    "shared dataset": shared,
    "shared group": lambda opened: opened.__setitem__("again", opened["layers"]),
    "soft link": lambda opened: opened.__setitem__("soft", h5py.SoftLink("/layers")),
    "external link": lambda opened: opened.__setitem__("x", h5py.ExternalLink("y", "/")),
    "strings": strings,
    "nested deep": nested,
    "committed type": lambda opened: opened.__setitem__("type", np.dtype("f4")),
    "name beyond ASCII": lambda opened: opened.create_group("layers/é"),
    "name without end": lambda opened: opened.create_group("layers/" + "n" * 2000),
    "no shape": lambda opened: opened.__setitem__("null", h5py.Empty("f4")),
    "compressed": lambda opened: opened.create_dataset("z", data=np.ones(9), compression="gzip"),
    "chunked": lambda opened: opened.create_dataset("c", shape=(4,), dtype="f4", chunks=(2,)),
    "never written": lambda opened: add_unwritten(opened, "u", (3,), "f4", 1.0),
    "other bfloat16 mark": lambda opened: opened["layers/dense/vars/brain"].attrs.__setitem__(
        "dtype", "float8"
    ),
    "name that is no string": lambda opened: opened["layers"].attrs.__setitem__("name", 3),
    "complex attribute": lambda opened: opened["layers"].attrs.__setitem__("x", np.complex64(1)),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_is_outside_the_dialect_is_left_to_the_library(kind):
    buffer = io.BytesIO(weights_bytes({f"layers/dense/vars/{n}": a for n, a in ARRAYS.items()}))
    assert read(buffer.getvalue()) is not None
    with h5py.File(buffer, "r+") as opened:
        OUTSIDE[kind](opened)
    assert read(buffer.getvalue()) is None


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 512}], ids=str)
def test_other_versions_and_user_blocks_are_left_to_the_library(options):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as opened:
        opened["vars/0"] = 1.0
    assert read(buffer.getvalue()) is None


def test_the_bytes_read_are_few_and_no_more_than_the_file_and_its_pieces_hold():
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as opened:
            for number in range(40):
                opened[f"layers/dense_{number}/vars/0"] = np.zeros((256, 256), "f4")
        content = buffer.getvalue()
    sizes = []

    def count(offset, size):
        sizes.append(size)
        return content[offset : offset + size]

    assert len(read_headers(count, len(content)).datasets) == 40
    assert max(sizes) <= plain_headers.PIECE_BYTES
    assert sum(sizes) < len(content) / 4


def test_one_long_string_that_every_group_refers_to_is_not_copied_for_each():
    """300 names of 60 kB each would be 18 MB from a file of a fraction of that."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        for number in range(300):
            opened.create_group(f"layers/d{number}/vars").attrs["name"] = "n"
        opened.create_group("long").attrs["name"] = "n" * 60_000
    content = buffer.getvalue()
    text = content.index(b"n" * 60_000) - 16
    collection = content.rindex(b"GCOL", 0, text)
    reference = (60_000).to_bytes(4, "little") + collection.to_bytes(8, "little") + bytes(4)
    short = (1).to_bytes(4, "little")
    assert read(content) is not None
    copy = bytearray(content)
    place = copy.find(b"name\0\0\0\0")
    while place >= 0:
        value = place + 8 + 24 + 8
        if copy[value : value + 4] == short:
            copy[value : value + 12] = reference[:12]
            copy[value + 12 : value + 16] = content[text : text + 2] + bytes(2)
        place = copy.find(b"name\0\0\0\0", place + 1)
    assert read(bytes(copy)) is None


def small_files():
    """HDF5 files that the plain reader reads, with the places of their headers."""
    for path in WEIGHTS:
        if path.stat().st_size < 40_000 and not path.name.startswith("evil_"):
            content = hdf5_content(path)
            found = read(content)
            if found is not None:
                is_header = np.ones(len(content), bool)
                for dataset in found.datasets:
                    if dataset.offset >= 0:
                        is_header[dataset.offset : dataset.offset + dataset.nbytes] = False
                yield path.name, content, np.flatnonzero(is_header).tolist()


def damaged(content, places, chosen):
    """A copy with one to three bytes of its headers changed, sometimes cut short."""
    copy = bytearray(content)
    used = [place for place in places if content[place]]
    for _ in range(chosen.choice([1, 1, 1, 2, 3])):
        place = chosen.choice(used if chosen.random() < 0.7 else places)
        flipped = copy[place] ^ 1 << chosen.randrange(8)
        copy[place] = chosen.choice([flipped, 0, 255, copy[chosen.choice(places)]])
    return bytes(copy[: chosen.randrange(len(copy))] if chosen.random() < 0.05 else copy)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_declined_or_read_as_the_library_reads_it(seed):
    """The library is asked only about what was not declined: it loops over some damaged heaps."""
    chosen = random.Random(seed)
    files = list(small_files())
    declined = 0
    for _ in range(1000):
        name, content, places = chosen.choice(files)
        content = damaged(content, places, chosen)
        found = read(content)
        read_outline(lambda offset, size, content=content: content[offset : offset + size],
                     len(content))  # fmt: skip
        declined += found is None
        if found is not None:
            datasets, names = read_by_library(content)
            assert found.datasets == datasets, name
            assert found.names == names, name
    assert 0 < declined < 1000
