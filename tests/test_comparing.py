"""`compare`, on real checkpoints and against arrays that are read whole."""

import itertools
import json
import shutil
import threading

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamavg
from streamavg import compare, inspect, measuring, plan
from streamavg.comparison import SCHEMA_VERSION
from streamavg.errors import (
    ChangedFileError,
    CorruptFileError,
    IncompatibleCheckpointsError,
    MemoryLimitError,
    NonFiniteValuesError,
    OptionError,
    UnknownFormatError,
    UnsupportedFeatureError,
)
from streamavg.formats import open_checkpoint
from streamavg.planning import Action, is_averaged
from streamavg.units import parse_size
from tests.builders import (
    BFLOAT16,
    DIGITS,
    FIXTURES,
    LAYOUTS,
    LEGACY,
    MISMATCHED,
    contents,
    dense_legacy,
    write_weights,
)
from tests.checkpoint_files import STORAGES
from tests.checkpoint_files import write_weights as write_stored
from tests.oracle import read_arrays

MIB = 1024**2
THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
AVERAGED = {
    "layers/batch_normalization": [f"layers/batch_normalization/vars/{i}" for i in range(4)],
    "layers/conv2d": ["layers/conv2d/vars/0"],
    "layers/dense": ["layers/dense/vars/0", "layers/dense/vars/1"],
}
"""Of the digits network a merge averages neither Normalization's state nor the optimizer's."""
KEYS = {
    "schema_version", "streamavg_version", "reference", "checkpoints", "identical", "whole",
    "layers", "bytes_read", "slab_elements", "threads", "memory", "seconds", "plot", "notes",
}  # fmt: skip
PART_KEYS = {
    "name", "variables", "elements", "scale", "norms", "distances_from_rest",
    "mean_distances", "mean_cosines", "mean_sign_agreements", "outlier", "matrices",
}  # fmt: skip


def vectors(paths, names):
    """One row a checkpoint: the values of some variables behind each other, as float64."""
    loaded = [read_arrays(path) for path in paths]
    return np.stack(
        [
            np.concatenate([arrays[name].astype(np.float64).reshape(-1) for name in names])
            for arrays in loaded
        ]
    )


def assert_part(part, rows):
    """Compares a part with the naive numbers of its values."""
    norms = np.linalg.norm(rows, axis=1)
    scale = np.sqrt((norms**2).mean())
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1) / scale
    np.testing.assert_allclose(part.norms, norms, rtol=1e-10)
    assert part.elements == rows.shape[1]
    assert part.scale == pytest.approx(scale)
    np.testing.assert_allclose(part.matrices.relative_distances, distances, rtol=1e-8)
    cosines = rows @ rows.T / norms[:, None] / norms[None, :]
    np.testing.assert_allclose(part.matrices.cosines, cosines, atol=1e-10)
    signs = (np.sign(rows)[:, None] == np.sign(rows)[None]).mean(axis=-1)
    np.testing.assert_allclose(part.matrices.sign_agreements, signs, rtol=1e-10)


@pytest.fixture(scope="module")
def digits():
    return compare(THREE)


@pytest.fixture
def copies(tmp_path):
    return [shutil.copy(path, tmp_path) for path in THREE]


class TestRealCheckpoints:
    def test_the_whole_model_is_what_a_merge_averages(self, digits):
        names = list(itertools.chain(*AVERAGED.values()))
        assert_part(digits.whole, vectors(THREE, names))
        assert digits.whole.variables == 7

    def test_so_is_each_layer(self, digits):
        assert [layer.name for layer in digits.layers] == list(AVERAGED)
        for layer in digits.layers:
            assert_part(layer, vectors(THREE, AVERAGED[layer.name]))
            assert layer.variables == len(AVERAGED[layer.name])

    def test_late_epochs_of_one_run_have_no_outlier(self, digits):
        assert digits.outlier is None
        assert digits.identical == ()
        assert digits.answer(digits.names) == (
            "no checkpoint stands out: any two are 5.6% to 8.5% apart"
        )

    def test_an_epoch_on_other_data_stands_out_in_no_way_that_matters(self):
        """Its preprocessing differs, and that is what forbids the average."""
        paths = [*THREE[1:], MISMATCHED / "other-preprocessing.keras"]
        with pytest.raises(IncompatibleCheckpointsError, match="differently prepared data"):
            compare(paths)
        found = compare(paths, preprocessing="reference")
        assert len(found.notes) == 2
        assert found.outlier is None

    @pytest.mark.parametrize("pattern", ["keras2-epoch", "keras2-weights-epoch", "keras3-epoch"])
    def test_legacy_files_are_compared_too(self, pattern):
        paths = [LEGACY / f"{pattern}-{n}.h5" for n in (19, 20)]
        found = compare(paths)
        assert found.whole.elements == 478
        assert 0.01 < found.whole.mean_distances[0] < 0.2

    def test_the_container_does_not_matter(self, digits):
        mixed = [THREE[0], *(path.with_suffix(".weights.h5") for path in THREE[1:])]
        found = compare(mixed)
        assert found.whole.norms.tolist() == digits.whole.norms.tolist()
        assert (found.relative_distances == digits.relative_distances).all()

    def test_a_file_and_its_copy_are_equal(self, tmp_path):
        copy = shutil.copy(THREE[0], tmp_path / "copy.keras")
        found = compare([THREE[0], copy, THREE[1]])
        assert found.identical == ((str(THREE[0]), str(copy)),)
        assert found.relative_distances[0, 1] == 0
        assert found.outlier.checkpoint == str(THREE[1])
        assert found.outlier.ratio is None

    @pytest.mark.parametrize(
        "path",
        [
            path
            for path in sorted(FIXTURES.rglob("*"))
            if path.suffix in {".keras", ".h5"} and path.name != "wrong_crc.keras"
        ],
        ids=lambda path: path.name,
    )
    def test_what_is_compared_is_what_a_merge_would_average(self, path, tmp_path):
        copy = shutil.copy(path, tmp_path)
        try:
            record = plan([path, copy], tmp_path / f"out{output_suffix(path)}")
        except streamavg.StreamAvgError as error:
            with pytest.raises(type(error)):
                compare([path, copy])
            return
        averaged = {v.path for v in record.variables if v.action == Action.AVERAGE}
        with open_checkpoint(path) as checkpoint:
            assert averaged == {v.path for v in checkpoint.variables if is_averaged(v)}
            elements = sum(v.size for v in checkpoint.variables if v.path in averaged)
        if not elements:
            with pytest.raises(UnsupportedFeatureError, match="nothing to compare"):
                compare([path, copy])
        else:
            found = compare([path, copy])
            assert (found.whole.elements, len(found.identical)) == (elements, 1)


def output_suffix(path):
    layout = inspect(path).format
    return {"keras-archive": ".keras", "keras-weights": ".weights.h5"}.get(layout, ".h5")


class TestLayers:
    def test_of_all_dtypes_and_kinds_of_storage(self, tmp_path):
        generator = np.random.default_rng(1)
        dtypes = [np.float16, BFLOAT16, np.float32, np.float64]
        for name, storage in STORAGES.items():
            arrays = [
                {
                    f"layers/dense/vars/{k}": generator.normal(size=(7, 11)).astype(dtype)
                    for k, dtype in enumerate(dtypes)
                }
                for _ in range(3)
            ]
            paths = [
                write_stored(tmp_path / f"{name}-{i}.weights.h5", one, storage)
                for i, one in enumerate(arrays)
            ]
            found = compare(paths)
            assert_part(found.whole, vectors(paths, arrays[0]))

    def test_leave_out_what_is_not_averaged(self, tmp_path):
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {
                    "layers/dense": [np.full(3, i + 1.0, "f4"), np.arange(5) + i],
                    "layers/table": [np.array([b"a", b"b"]), np.array([True, bool(i)])],
                    "layers/empty": [np.empty((0, 3), "f4")],
                    "optimizer": [np.full(9, 100.0 * i, "f4")],
                },
            )
            for i in range(2)
        ]
        found = compare(paths)
        assert [layer.name for layer in found.layers] == ["layers/dense"]
        assert (found.whole.elements, found.bytes_read) == (3, 24)

    def test_may_have_their_variables_apart_in_the_file(self, tmp_path):
        """Legacy files may list a layer's variables in several places."""
        generator = np.random.default_rng(2)
        layers = {"layers/dense": {}, "layers/dense/inner": {}, "layers/dense_1": {}}
        paths = []
        for i in range(2):
            for variables in layers.values():
                variables |= {str(k): generator.normal(size=4).astype("f4") for k in range(2)}
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", layers))
        found = compare(paths)
        assert sum(layer.elements for layer in found.layers) == found.whole.elements == 24
        assert len({layer.name for layer in found.layers}) == len(found.layers)

    def test_tell_where_a_checkpoint_differs_most(self, tmp_path):
        base = [np.ones(10, "f4"), np.ones(10, "f4")]
        paths = []
        for i in range(3):
            arrays = {f"layers/dense_{k}": [a.copy()] for k, a in enumerate(base)}
            arrays["layers/dense_1"][0][0] += 3 * i
            arrays["layers/dense_0"][0][0] += 0.1 * i
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", arrays))
        layer, share = compare(paths).where_it_differs(2)
        assert layer == "layers/dense_1"
        assert share == pytest.approx(9 / (9 + 0.01), rel=1e-6)

    def test_may_have_an_outlier_of_their_own(self, tmp_path):
        generator = np.random.default_rng(3)
        paths = []
        for i in range(5):
            arrays = {
                "layers/large": [10 + generator.normal(size=1000).astype("f4")],
                "layers/small": [(1 + 5 * (i == 3)) * generator.normal(size=100).astype("f4")],
            }
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", arrays))
        found = compare(paths)
        assert [layer.outlier is None for layer in found.layers] == [True, False]
        assert found.layers[1].outlier.checkpoint == str(paths[3])
        assert found.outlier is None

    def test_of_legacy_files_are_paired_by_order_if_asked_for(self, tmp_path):
        paths = [dense_legacy(tmp_path / "a.h5", ["x", "y"]),
                 dense_legacy(tmp_path / "b.h5", ["p", "q"], first=1.0)]  # fmt: skip
        with pytest.raises(IncompatibleCheckpointsError, match="--match order"):
            compare(paths)
        assert [layer.name for layer in compare(paths, match="order").layers] == ["x", "y"]
        found = compare(paths, match="order", reference=paths[1])
        assert [layer.name for layer in found.layers] == ["p", "q"]

    def test_keep_matrices_only_if_asked_for(self, digits):
        found = compare(THREE, layer_matrices=False)
        assert all(layer.matrices is None for layer in found.layers)
        for part, other in zip(found.layers, digits.layers, strict=True):
            assert part.mean_distances.tolist() == other.mean_distances.tolist()
        assert found.whole.matrices is not None


@st.composite
def models(draw):
    count = draw(st.integers(2, 7))
    shapes = draw(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4))
    step = draw(st.sampled_from([1.0, 1e-3, 1e-7, 0.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = [generator.normal(size=shape) for shape in shapes]
    return [
        {f"layers/dense_{k}/vars/0": array * (1 + step * generator.normal()) for k, array in
         enumerate(base)}
        for _ in range(count)
    ]  # fmt: skip


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(models(), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 3]))
def test_whatever_the_checkpoints_are_the_numbers_are_the_naive_ones(
    tmp_path, arrays, dtype, threads
):
    paths = [
        write_stored(
            tmp_path / f"{i}.weights.h5", {name: a.astype(dtype) for name, a in one.items()}
        )
        for i, one in enumerate(arrays)
    ]
    found = compare(paths, threads=threads)
    assert_part(found.whole, vectors(paths, arrays[0]))
    for layer in found.layers:
        assert_part(layer, vectors(paths, [f"{layer.name}/vars/0"]))


class TestNonFiniteValues:
    @pytest.fixture
    def paths(self, tmp_path):
        return [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/dense": [np.ones((30, 40), "f4"), np.ones(3, "f4")]},
            )
            for i in range(4)
        ]

    @staticmethod
    def spoil(path, value, index=(12, 7), name="layers/dense/vars/0"):
        with h5py.File(path, "r+") as file:
            file[name][index] = value

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_are_refused_by_file_variable_and_index(self, paths, value):
        self.spoil(paths[2], value)
        with pytest.raises(NonFiniteValuesError) as caught:
            compare(paths)
        error = caught.value
        assert (error.path, error.variable) == (paths[2], "layers/dense/vars/0")
        assert error.index == (12, 7)
        assert str(error).endswith(f"value {value} at index [12, 7]. Leave this checkpoint out.")

    def test_name_all_checkpoints_that_have_them_there(self, paths):
        self.spoil(paths[3], np.nan)
        self.spoil(paths[1], np.inf, (29, 39))
        with pytest.raises(NonFiniteValuesError) as caught:
            compare(paths)
        assert caught.value.path == paths[1]
        assert f"and {paths[3]}, where it has such values too" in str(caught.value)

    def test_are_the_first_ones_whatever_the_number_of_threads(self, paths):
        self.spoil(paths[0], np.nan, 1, "layers/dense/vars/1")
        self.spoil(paths[3], np.nan)
        for threads in (1, 4):
            with pytest.raises(NonFiniteValuesError) as caught:
                compare(paths, threads=threads)
            assert caught.value.variable == "layers/dense/vars/0"

    def test_in_bfloat16_are_found_too(self, tmp_path):
        array = np.ones(9, BFLOAT16)
        paths = [write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [array]})
                 for i in range(2)]  # fmt: skip
        array[4] = np.nan
        paths.append(write_weights(tmp_path / "2.weights.h5", {"layers/dense": [array]}))
        with pytest.raises(NonFiniteValuesError, match=r"2\.weights\.h5"):
            compare(paths)

    def test_in_what_is_not_compared_are_nobody_s_business(self, tmp_path):
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/dense": [np.ones(3, "f4")], "optimizer": [np.full(3, np.nan, "f4")]},
            )
            for i in range(2)
        ]
        assert compare(paths).whole.elements == 3

    def test_values_whose_squares_overflow_are_refused_too(self, tmp_path):
        paths = [write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.array([x])]})
                 for i, x in enumerate((1.0, -1e200))]  # fmt: skip
        with pytest.raises(UnsupportedFeatureError, match="value 1e\\+200 is too large") as caught:
            compare(paths)
        assert caught.value.path == paths[1]


class TestRefusals:
    def test_are_those_of_a_merge(self):
        with pytest.raises(IncompatibleCheckpointsError, match="'textures'"):
            compare(sorted(MISMATCHED.glob("order-*.keras")))
        with pytest.raises(IncompatibleCheckpointsError, match="shape"):
            compare([THREE[0], MISMATCHED / "wider.keras"])

    @pytest.mark.parametrize("what", ["quant_int8", "qlora_int8"])
    def test_of_codes_and_factors_are_too(self, what, tmp_path):
        path = LAYOUTS / f"keras3.15.1-tf-{what}.weights.h5"
        with pytest.raises(UnsupportedFeatureError, match="the mean of"):
            compare([path, shutil.copy(path, tmp_path)])

    def test_of_checkpoints_without_weights_say_so(self, tmp_path):
        path = LAYOUTS / "keras3.15.1-tf-noweights.keras"
        with pytest.raises(UnsupportedFeatureError, match="nothing to compare"):
            compare([path, shutil.copy(path, tmp_path)])

    @pytest.mark.parametrize("paths", [[], THREE[:1]])
    def test_of_fewer_than_two_checkpoints_count_them(self, paths):
        with pytest.raises(OptionError, match=f"at least two checkpoints, {len(paths)} given"):
            compare(paths)

    def test_of_one_file_under_two_names(self, tmp_path):
        link = tmp_path / "link.keras"
        link.symlink_to(THREE[0])
        with pytest.raises(OptionError, match="is the same file"):
            compare([THREE[0], link])

    def test_of_files_that_are_none(self, tmp_path):
        (tmp_path / "x.keras").write_bytes(b"nothing")
        with pytest.raises(UnknownFormatError):
            compare([THREE[0], tmp_path / "x.keras"])

    @pytest.mark.parametrize(
        "options",
        [{"match": "x"}, {"preprocessing": "x"}, {"threads": 0}, {"memory_limit": "x"},
         {"reference": "elsewhere.keras"}],
    )  # fmt: skip
    def test_of_options_that_are_none(self, options):
        with pytest.raises(OptionError):
            compare(THREE, **options)

    def test_of_checkpoints_that_change_meanwhile(self, copies):
        def change(_):
            with h5py.File(copies[1].replace(".keras", ".other"), "w"):
                pass
            shutil.move(copies[1].replace(".keras", ".other"), copies[1])

        with pytest.raises(ChangedFileError, match="epoch-19"):
            compare(copies, on_plan=change)

    def test_of_archives_with_a_wrong_checksum(self, tmp_path, copies):
        content = bytearray((tmp_path / "epoch-19.keras").read_bytes())
        kernel = read_arrays(copies[1])["layers/dense/vars/0"].tobytes()
        content[bytes(content).index(kernel) + 4] ^= 1
        (tmp_path / "epoch-19.keras").write_bytes(content)
        with pytest.raises(CorruptFileError, match="epoch-19"):
            compare(copies)


class TestThreads:
    @pytest.fixture
    def paths(self, tmp_path):
        generator = np.random.default_rng(4)
        return [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {f"layers/dense_{k}": [generator.normal(size=(300, 700)).astype("f4")]
                 for k in range(3)},
            )
            for i in range(3)
        ]  # fmt: skip

    def test_change_nothing(self, paths):
        documents = set()
        for threads in (1, 2, 5):
            found = compare(paths, threads=threads, memory_limit="1GiB")
            assert found.threads == threads
            document = json.loads(found.to_json())
            documents.add(json.dumps([document["whole"], document["layers"]]))
        assert len(documents) == 1

    def test_tell_of_every_byte_in_the_caller_s(self, paths):
        told, callers, planned = [], set(), []

        def advance(count):
            told.append(count)
            callers.add(threading.get_ident())

        found = compare(paths, threads=3, on_plan=planned.append, on_progress=advance)
        assert sum(told) == found.bytes_read == planned[0] == 3 * 3 * 300 * 700 * 4
        assert callers == {threading.get_ident()}

    def test_end_when_the_caller_raises(self, paths):
        def advance(_):
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            compare(paths, threads=3, on_progress=advance)
        assert threading.active_count() == before


class TestMemory:
    def test_is_within_the_limit_and_above_the_reserve(self, digits):
        memory = digits.memory
        assert memory.reserved < memory.projected <= memory.limit
        assert memory.measured > 0

    def test_refusals_carry_the_three_numbers_and_name_a_limit_that_works(self):
        with pytest.raises(MemoryLimitError) as caught:
            compare(THREE, memory_limit="1MiB")
        error = caught.value
        assert error.limit_bytes == MIB
        assert 0 < error.reserved_bytes < error.projected_bytes
        limit = str(error).rsplit("--memory-limit ", 1)[1].removesuffix(".")
        assert parse_size(limit) >= error.projected_bytes
        assert compare(THREE, memory_limit=limit).memory.limit_origin == "as given"

    def test_slabs_and_threads_shrink_with_the_limit_and_change_nothing(self, tmp_path):
        generator = np.random.default_rng(5)
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/dense": [generator.normal(size=600_001).astype("f4")]},
            )
            for i in range(12)
        ]
        with pytest.raises(MemoryLimitError) as caught:
            compare(paths, memory_limit=1)
        tight = compare(paths, memory_limit=caught.value.projected_bytes + MIB)
        roomy = compare(paths, memory_limit="1GiB")
        assert tight.slab_elements < roomy.slab_elements
        assert tight.threads == 1
        np.testing.assert_allclose(tight.relative_distances, roomy.relative_distances, rtol=1e-12)

    def test_counts_what_is_kept_of_each_layer(self, tmp_path):
        layers = {f"layers/dense_{k}": [np.ones(2, "f4")] for k in range(100)}
        paths = [write_weights(tmp_path / f"{i}.weights.h5", layers) for i in range(40)]
        least = {}
        for keeps in (True, False):
            with pytest.raises(MemoryLimitError) as caught:
                compare(paths, memory_limit=1, layer_matrices=keeps)
            least[keeps] = caught.value.projected_bytes - caught.value.reserved_bytes
        kept = 100 * 8 * 40 * 39
        assert kept <= least[True] - least[False] <= 1.1 * kept


class TestTheResult:
    def test_is_json_with_keys_that_programs_may_rely_on(self, digits):
        document = json.loads(digits.to_json())
        assert document["schema_version"] == SCHEMA_VERSION == 1
        assert set(document) >= KEYS
        for part in (document["whole"], *document["layers"]):
            assert set(part) >= PART_KEYS
            assert all(len(rows) == 3 for rows in part["matrices"].values())
        assert set(document["checkpoints"][0]) >= {"path", "format", "producer", "file_bytes"}

    def test_has_the_numbers_of_the_objects_in_json(self, digits):
        document = json.loads(digits.to_json())
        matrices = document["whole"]["matrices"]
        assert matrices["relative_distances"] == digits.relative_distances.tolist()
        assert document["layers"][1]["norms"] == digits.layers[1].norms.tolist()
        assert document["whole"]["name"] is None

    def test_describes_the_outlier(self, tmp_path):
        arrays = [np.float32([0, 1]), np.float32([0, 2]), np.float32([50, 1])]
        paths = [write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [a]})
                 for i, a in enumerate(arrays)]  # fmt: skip
        found = json.loads(compare(paths).to_json())["whole"]["outlier"]
        assert found["checkpoint"] == str(paths[2])
        assert found["ratio"] == pytest.approx(50, rel=0.01)
        assert found["distance"] / found["others"] == pytest.approx(found["ratio"])

    def test_takes_text_paths_and_generators(self, digits):
        found = compare(str(path) for path in THREE)
        assert found.paths == tuple(map(str, THREE))
        assert isinstance(found, streamavg.Comparison)


class TestInputs:
    def test_are_left_as_they_were(self, tmp_path, copies):
        before = contents(tmp_path)
        compare(copies)
        assert contents(tmp_path) == before

    def test_may_be_many_more_than_open_files_are_allowed(self, tmp_path):
        paths = [
            write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.float32([1, i])]})
            for i in range(150)
        ]
        found = compare(paths)
        assert found.whole.norms[149] == pytest.approx(np.hypot(1, 149))

    def test_are_told_in_the_order_given(self):
        found = compare(THREE[::-1], reference=THREE[0])
        assert found.paths == tuple(map(str, THREE[::-1]))
        assert found.reference == str(THREE[0])


def test_a_slab_is_cut_where_its_variable_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_SLAB_ELEMENTS", 5)
    monkeypatch.setattr(measuring, "LEAST_SLAB_ELEMENTS", 5)
    generator = np.random.default_rng(6)
    arrays = [
        {f"layers/dense/vars/{k}": generator.normal(size=size).astype("f4")
         for k, size in enumerate((1, 5, 6, 14))}
        for _ in range(3)
    ]  # fmt: skip
    paths = [write_stored(tmp_path / f"{i}.weights.h5", one) for i, one in enumerate(arrays)]
    found = compare(paths)
    assert found.slab_elements == 5
    assert_part(found.whole, vectors(paths, arrays[0]))
