"""The running sum, against checkpoints that are read whole."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamavg
from streamavg.errors import (
    ChangedFileError,
    CorruptFileError,
    NonFiniteValuesError,
    OutputError,
)
from streamavg.merging import planned
from streamavg.options import Settings
from streamavg.running_sum import RunningSum
from streamavg.scanning import require_finite
from tests.builders import BFLOAT16, DIGITS, LEGACY, write_archive, write_legacy, write_weights
from tests.contracts.reading import bits
from tests.oracle import naive_mean, read_arrays
from tests.properties.test_merge_properties import folder as folder_of_its_own
from tests.properties.test_merge_properties import slabs_of_at_most

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
SLABS = st.sampled_from([1, 3, 16, 1000])
SUMS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@contextmanager
def running_sum(paths, folder, *, on_disk=True, suffix=".weights.h5", **options):
    with (
        planned(paths, folder / f"soup{suffix}", Settings(**options)) as weighing,
        RunningSum(weighing.plan, folder if on_disk else None) as held,
    ):
        yield held


def bits_of(path, names=None):
    arrays = read_arrays(path)
    return {name: bits(arrays[name]) for name in names or arrays}


def mean_bits(paths):
    return {name: bits(values) for name, values in naive_mean(paths).items()}


def models(count, *, size=40, seed=1):
    """Values that are multiples of 1/64, as sums of which are exact."""
    generator = np.random.default_rng(seed)
    return [
        {
            "layers/dense": [
                np.asarray(generator.integers(-128, 129, size) / 64.0).astype(dtype)
                for dtype in DTYPES
            ]
        }
        for _ in range(count)
    ]


def write_all(folder, made):
    return [write_weights(folder / f"{i}.weights.h5", layers) for i, layers in enumerate(made)]


@pytest.fixture
def five(tmp_path):
    return write_all(tmp_path, models(5))


@pytest.fixture
def trial(tmp_path):
    return tmp_path / "trial.weights.h5"


class TestMeans:
    def test_the_mean_with_one_more(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(3)
            held.add(1)
            held.write_mean(trial, added=4)
            assert held.members == (1, 3)
        assert bits_of(trial) == mean_bits([five[1], five[3], five[4]])

    def test_the_mean_with_one_less(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            for member in (0, 2, 4):
                held.add(member)
            held.write_mean(trial, removed=2)
        assert bits_of(trial) == mean_bits([five[0], five[4]])

    def test_the_mean_with_one_exchanged(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(0)
            held.add(2)
            held.write_mean(trial, added=1, removed=0)
        assert bits_of(trial) == mean_bits([five[1], five[2]])

    def test_the_mean_as_it_is(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(0)
            held.add(2)
            held.write_mean(trial)
        assert bits_of(trial) == mean_bits([five[0], five[2]])

    def test_of_one_checkpoint_are_its_values_bit_for_bit(self, tmp_path, trial):
        values = np.array([-0.0, 0.0, 1e-45, -1e38, 0.1], np.float32)
        paths = write_all(tmp_path, [{"layers/dense": [values]}, {"layers/dense": [values + 1]}])
        with running_sum(paths, tmp_path) as held:
            held.add(0)
            held.write_mean(trial)
        assert bits_of(trial) == bits_of(paths[0])

    def test_a_trial_replaces_the_one_before(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(0)
            for other in (1, 2):
                held.write_mean(trial, added=other)
        assert bits_of(trial) == mean_bits([five[0], five[2]])

    def test_the_result_is_that_of_a_merge(self, tmp_path):
        trial, merged = tmp_path / "trial.keras", tmp_path / "merged.keras"
        with running_sum(THREE, tmp_path, suffix=".keras") as held:
            held.add(2)
            held.add(0)
            held.write_mean(trial, added=1)
        streamavg.merge(THREE, merged)
        assert trial.read_bytes() == merged.read_bytes()

    @pytest.mark.parametrize("pattern", ["keras2-epoch", "keras3-epoch", "keras2-weights-epoch"])
    def test_so_it_is_in_legacy_files(self, tmp_path, pattern):
        paths = [LEGACY / f"{pattern}-{n}.h5" for n in (19, 20)]
        trial, merged = tmp_path / "trial.h5", tmp_path / "merged.h5"
        with running_sum(paths, tmp_path, suffix=".h5") as held:
            held.add(0)
            held.write_mean(trial, added=1)
        streamavg.merge(paths, merged)
        assert bits_of(trial) == bits_of(merged)

    def test_what_is_not_averaged_is_the_first_member_s_as_in_a_merge(self, tmp_path, trial):
        paths = write_all(
            tmp_path,
            [{"layers/dense": {"0": np.float32([i]), "1": np.int64(i)}} for i in range(3)],
        )
        with running_sum(paths, tmp_path) as held:
            held.add(2)
            held.write_mean(trial, added=1)
        merged = tmp_path / "merged.weights.h5"
        streamavg.merge(paths[1:], merged)
        assert bits_of(trial) == bits_of(merged)
        assert read_arrays(trial)["layers/dense/vars/1"] == 1

    def test_strings_are_the_first_member_s_too(self, tmp_path):
        paths = [
            write_legacy(
                tmp_path / f"{i}.h5",
                {"d": {"d/kernel": np.float32([i]), "d/words": np.array([f"w{i}"], object)}},
            )
            for i in range(3)
        ]
        trial = tmp_path / "trial.h5"
        with running_sum(paths, tmp_path, suffix=".h5") as held:
            held.add(1)
            held.write_mean(trial, added=2)
        with streamavg.open_checkpoint(trial) as opened:
            assert opened.read("d/d/words").tolist() == [b"w1"]

    def test_optimizer_state_is_left_out(self, tmp_path):
        trial = tmp_path / "trial.keras"
        with running_sum(THREE, tmp_path, suffix=".keras") as held:
            held.add(0)
            held.write_mean(trial)
        assert not [name for name in read_arrays(trial) if name.startswith("optimizer")]


class TestMembers:
    @pytest.mark.parametrize("call", ["add", "added"])
    def test_a_member_is_not_added_again(self, tmp_path, five, trial, call):
        with running_sum(five, tmp_path) as held:
            held.add(1)
            with pytest.raises(ValueError, match="is already in the sum"):
                held.add(1) if call == "add" else held.write_mean(trial, added=1)

    @pytest.mark.parametrize("call", ["remove", "removed"])
    def test_what_is_no_member_is_not_removed(self, tmp_path, five, trial, call):
        with running_sum(five, tmp_path) as held:
            held.add(1)
            with pytest.raises(ValueError, match="is not in the sum"):
                held.remove(2) if call == "remove" else held.write_mean(trial, removed=2)

    def test_nothing_has_no_mean(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(1)
            with pytest.raises(ValueError, match="no checkpoint is left"):
                held.write_mean(trial, removed=1)
            held.remove(1)
            assert held.members == ()
            held.write_mean(trial, added=2)
        assert bits_of(trial) == bits_of(five[2])


class TestReading:
    def test_a_trial_reads_one_checkpoint(self, tmp_path, five, trial):
        size = sum(values.nbytes for values in read_arrays(five[0]).values())
        with running_sum(five, tmp_path) as held:
            for member in (0, 1, 2):
                held.add(member)
            assert held.bytes_read == 3 * size
            held.write_mean(trial, added=3)
            assert held.bytes_read == 4 * size
            held.write_mean(trial, removed=0)
            assert held.bytes_read == 5 * size
            held.write_mean(trial)
            assert held.bytes_read == 5 * size

    def test_a_sum_on_disk_has_no_name_and_leaves_nothing(self, tmp_path, five, trial):
        before = list(tmp_path.iterdir())
        with running_sum(five, tmp_path) as held:
            held.add(0)
            held.write_mean(trial, added=1)
            assert sorted(tmp_path.iterdir()) == sorted([*before, trial])

    def test_a_folder_that_takes_no_file_is_an_error(self, tmp_path, five):
        with (
            planned(five, tmp_path / "soup.weights.h5", Settings()) as weighing,
            pytest.raises(OutputError, match="the running sum cannot be kept there"),
        ):
            RunningSum(weighing.plan, tmp_path / "missing")

    def test_a_full_disk_is_an_error(self, tmp_path, five, monkeypatch):
        """/dev/full refuses every write for want of space."""
        with planned(five, tmp_path / "soup.weights.h5", Settings()) as weighing:
            full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
            with (
                RunningSum(weighing.plan, tmp_path) as held,
                pytest.raises(OutputError, match="--output"),
            ):
                held.add(0)

    def test_a_checkpoint_that_changed_is_an_error_and_no_trial(self, tmp_path, five, trial):
        with running_sum(five, tmp_path) as held:
            held.add(0)
            os.utime(five[1], ns=(1, 1))
            with pytest.raises(ChangedFileError, match=r"1\.weights\.h5"):
                held.write_mean(trial, added=1)
        assert not trial.exists()


class TestRequireFinite:
    def test_values_that_are_finite_pass(self, tmp_path, five):
        with planned(five, tmp_path / "soup.weights.h5", Settings()) as weighing:
            require_finite(weighing.plan)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_the_first_that_is_not_is_named(self, tmp_path, dtype, value):
        made = [np.zeros((4, 3), dtype) for _ in range(3)]
        made[1][2, 1] = value
        made[1][3, 0] = value
        paths = write_all(tmp_path, [{"layers/dense": [array]} for array in made])
        with (
            slabs_of_at_most(5),
            planned(paths, tmp_path / "soup.weights.h5", Settings()) as weighing,
            pytest.raises(NonFiniteValuesError) as caught,
        ):
            require_finite(weighing.plan)
        assert caught.value.path == paths[1]
        assert caught.value.index == (2, 1)
        assert "Leave this checkpoint out." in str(caught.value)

    def test_a_damaged_archive_is_found(self, tmp_path):
        paths = [write_archive(tmp_path / f"{i}.keras", {"d": [np.ones(99)]}) for i in range(2)]
        data = bytearray(paths[1].read_bytes())
        place = data.index(np.float64(1).tobytes() * 9)
        data[place] ^= 1
        paths[1].write_bytes(bytes(data))
        with (
            planned(paths, tmp_path / "soup.keras", Settings()) as weighing,
            pytest.raises(CorruptFileError, match=r"1\.keras"),
        ):
            require_finite(weighing.plan)


@st.composite
def histories(draw):
    """Checkpoints, and additions and removals in a row; at least one member is left."""
    count = draw(st.integers(2, 5))
    members, steps = [], []
    for _ in range(draw(st.integers(1, 12))):
        one = draw(st.integers(0, count - 1))
        steps.append(one)
        members.remove(one) if one in members else members.append(one)
    if not members:
        steps.append(0)
        members = [0]
    made = models(count, size=draw(st.integers(0, 9)), seed=draw(st.integers(0, 1000)))
    return made, steps, sorted(members)


@SUMS
@given(histories(), SLABS, st.booleans())
def test_any_history_of_exact_sums_ends_at_the_mean_of_its_members(history, slab, on_disk):
    made, steps, members = history
    with folder_of_its_own() as folder, slabs_of_at_most(slab):
        paths = write_all(folder, made)
        trial = folder / "trial.weights.h5"
        with running_sum(paths, folder, on_disk=on_disk) as held:
            for one in steps:
                held.remove(one) if one in held.members else held.add(one)
            assert list(held.members) == members
            held.write_mean(trial)
        expected = mean_bits([paths[member] for member in members])
        assert bits_of(trial) == expected


@SUMS
@given(st.integers(0, 1000), st.permutations(range(4)), SLABS)
def test_memory_and_disk_and_slabs_give_the_same_bits(seed, order, slab):
    """For any values, exact or not."""
    generator = np.random.default_rng(seed)
    made = [
        {"layers/dense": [generator.normal(size=50) * 10.0 ** generator.integers(-9, 9, 50)]}
        for _ in range(4)
    ]
    with folder_of_its_own() as folder:
        paths = write_all(folder, made)
        found = []
        for on_disk, most in [(True, slab), (False, slab), (False, 1000)]:
            trial = folder / f"trial-{len(found)}.weights.h5"
            with slabs_of_at_most(most), running_sum(paths, folder, on_disk=on_disk) as held:
                for one in order:
                    held.add(one)
                held.write_mean(trial, removed=order[0])
            found.append(json.dumps(bits_of(trial), default=repr))
        assert found[0] == found[1] == found[2]


@SUMS
@given(st.permutations(range(5)))
def test_float32_of_one_run_sums_to_the_same_bits_in_every_order(order):
    """Values within a factor 2**29 / n of each other: their float64 sums are exact."""
    generator = np.random.default_rng(7)
    made = [
        {"layers/dense": [generator.uniform(0.5, 1.5, 30).astype(np.float32)]} for _ in range(5)
    ]
    with folder_of_its_own() as folder:
        paths = write_all(folder, made)
        trial, merged = folder / "trial.weights.h5", folder / "merged.weights.h5"
        with running_sum(paths, folder) as held:
            for one in order:
                held.add(one)
            held.write_mean(trial, removed=order[2])
        streamavg.merge([path for i, path in enumerate(paths) if i != order[2]], merged)
        assert bits_of(trial) == bits_of(merged)
