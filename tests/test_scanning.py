"""Looking for what a merge refuses in the values."""

import h5py
import ml_dtypes
import numpy as np
import pytest

from streamavg import memory, scanning
from streamavg.errors import CorruptFileError, NonFiniteValuesError
from streamavg.formats import open_checkpoint
from streamavg.matching import match
from streamavg.measuring import Allowance, averaged_by_layer, plan_measuring
from streamavg.sampling import sample_runs
from streamavg.scanning import scan
from tests.builders import DIGITS, edited_archive, write_weights
from tests.checkpoint_files import STORAGES
from tests.checkpoint_files import write_weights as write_stored

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]


@pytest.fixture
def planned():
    opened = []

    def make(*paths, threads=1):
        reference = open_checkpoint(paths[0])
        matched = match(reference, map(open_checkpoint, paths))
        opened.append(matched)
        positions = [p for group in averaged_by_layer(reference).values() for p in group]
        reserved = memory.resident_bytes()
        allowance = Allowance("the test", reserved + 2**26, "as given", reserved, 0, threads)
        return plan_measuring(matched.sources, reference.variables, positions, allowance)

    yield make
    for matched in opened:
        matched.close()


def large(path, bad=None, size=300_000, dtype="f4"):
    """A checkpoint of one variable of many slabs, and some small ones."""
    values = np.ones(size, dtype)
    if bad is not None:
        values[bad] = np.nan
    small = {f"layers/dense_{i}": [np.ones((2, 3), dtype)] for i in range(5)}
    return write_weights(path, {"layers/dense": [values.reshape(-1, 100)], **small})


class TestFlaws:
    def test_are_none_in_sound_checkpoints(self, planned):
        assert scan(planned(*THREE)) == {}

    @pytest.mark.parametrize("threads", [1, 4])
    def test_are_told_of_each_checkpoint(self, planned, tmp_path, threads):
        bad = [None, 299_999, None, 131_072]
        paths = [large(tmp_path / f"{i}.weights.h5", place) for i, place in enumerate(bad)]
        flaws = scan(planned(*paths, threads=threads))
        assert {index: flaw.index for index, flaw in flaws.items()} == {
            1: (2999, 99),
            3: (1310, 72),
        }
        assert flaws[1].path == paths[1]
        assert flaws[1].variable == "layers/dense/vars/0"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_are_found_in_small_variables_that_are_read_together(self, planned, tmp_path, value):
        layers = {f"layers/dense_{i}": [np.ones((2, 3), "f4")] for i in range(6)}
        sound = write_weights(tmp_path / "a.weights.h5", layers)
        layers["layers/dense_4"][0][1, 2] = value
        flaws = scan(planned(sound, write_weights(tmp_path / "b.weights.h5", layers)))
        assert list(flaws) == [1]
        assert flaws[1].variable == "layers/dense_4/vars/0"
        assert flaws[1].index == (1, 2)

    @pytest.mark.parametrize("dtype", ["f2", "f8", ml_dtypes.bfloat16], ids=["f16", "f64", "bf16"])
    def test_are_found_in_every_dtype(self, planned, tmp_path, dtype):
        paths = [
            large(tmp_path / f"{i}.weights.h5", bad, 500, np.dtype(dtype))
            for i, bad in enumerate((None, 3))
        ]
        assert list(scan(planned(*paths))) == [1]

    @pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
    def test_are_found_however_values_are_stored(self, planned, tmp_path, storage):
        values = np.linspace(1, 2, 1_000, dtype="f4").reshape(25, 40)
        sound = write_stored(tmp_path / "a.weights.h5", {"layers/dense/vars/0": values}, storage)
        values[7, 9] = np.nan
        bad = write_stored(tmp_path / "b.weights.h5", {"layers/dense/vars/0": values}, storage)
        flaws = scan(planned(sound, bad))
        assert {index: flaw.index for index, flaw in flaws.items()} == {1: (7, 9)}

    def test_are_damaged_archives_too(self, planned, tmp_path):
        damaged = edited_archive(THREE[1], tmp_path / "damaged.keras")
        content = bytearray(damaged.read_bytes())
        with open_checkpoint(damaged) as checkpoint:
            kernel = checkpoint.read("layers/conv2d/vars/0").tobytes()
        place = content.index(kernel)
        content[place + 3] ^= 1
        damaged.write_bytes(content)
        flaws = scan(planned(THREE[0], damaged))
        assert isinstance(flaws[1], CorruptFileError)
        assert "CRC-32" in str(flaws[1])

    def test_are_values_that_cannot_be_decoded(self, planned, tmp_path):
        paths = [tmp_path / f"{i}.weights.h5" for i in range(3)]
        for path in paths:
            write_weights(
                path, {"layers/dense": [np.arange(5000, dtype="f4")]},
                chunks=(1000,), compression="gzip",
            )  # fmt: skip
        with h5py.File(paths[1]) as file:
            info = file["layers/dense/vars/0"].id.get_chunk_info(3)
        content = bytearray(paths[1].read_bytes())
        content[info.byte_offset + 20 : info.byte_offset + info.size] = bytes(info.size - 20)
        paths[1].write_bytes(content)
        flaws = scan(planned(*paths))
        assert list(flaws) == [1]
        assert isinstance(flaws[1], CorruptFileError)


class TestWhatIsRead:
    def test_is_each_value_once(self, planned, tmp_path):
        plan = planned(*(large(tmp_path / f"{i}.weights.h5") for i in range(2)))
        read = []
        scan(plan, None, read.append)
        assert sum(read) == plan.bytes_read
        assert max(read) <= 4 * scanning.most_elements(plan)

    def test_is_no_more_of_a_checkpoint_than_its_first_flaw(self, planned, tmp_path):
        plan = planned(
            large(tmp_path / "a.weights.h5", size=3_000_000),
            large(tmp_path / "b.weights.h5", bad=0, size=3_000_000),
        )
        read = []
        assert list(scan(plan, None, read.append)) == [1]
        assert sum(read) < 0.7 * plan.bytes_read

    def test_is_a_sample_if_asked_for(self, planned, tmp_path):
        bad = large(tmp_path / "bad.weights.h5", bad=10)
        plan = planned(large(tmp_path / "a.weights.h5"), bad)
        runs = [run for run in sample_runs(plan) if run.start]
        assert scan(plan, runs) == {}
        assert isinstance(scan(plan, list(sample_runs(plan)))[1], NonFiniteValuesError)


def test_an_error_of_who_is_told_of_progress_ends_the_scan(planned, tmp_path):
    plan = planned(*(large(tmp_path / f"{i}.weights.h5") for i in range(2)), threads=2)

    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(plan, None, interrupt)
