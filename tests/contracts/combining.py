"""What every method keeps, from files to a file."""

import itertools

import numpy as np
import pytest

from streamavg import NonFiniteValuesError, OptionError, merge, planning
from tests.checkpoint_files import write_keras, write_weights
from tests.contracts.reading import bits
from tests.oracle import BFLOAT16, read_arrays

SIZES = {"kernel": (40, 30), "bias": (30,), "gain": (1,), "table": (7, 5, 3)}
DTYPES = {"kernel": "f4", "bias": "f4", "gain": "f8", "table": BFLOAT16}


def checkpoint(seed, spread=0.5):
    """Variables of several dtypes that two checkpoints of one run might have."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    return {
        f"layers/dense/vars/{name}": np.asarray(
            common.normal(size=shape) + spread * own.normal(size=shape)
        ).astype(DTYPES[name])
        for name, shape in SIZES.items()
    }


class MethodContract:
    """Subclasses set `options`; `count` if the method takes another number of checkpoints."""

    options: dict
    count = 5

    @pytest.fixture
    def paths(self, tmp_path):
        return [
            write_weights(tmp_path / f"{seed}.weights.h5", checkpoint(seed))
            for seed in range(self.count)
        ]

    def merged(self, paths, output, **options):
        merge(paths, output, force=True, **{**self.options, **options})
        return {path: bits(values) for path, values in read_arrays(output).items()}

    def test_the_order_of_the_inputs_does_not_change_a_bit(self, paths, tmp_path):
        orders = itertools.islice(itertools.permutations(paths), 0, None, 17)
        results = [self.merged(order, tmp_path / "out.weights.h5") for order in (paths, *orders)]
        assert all(result == results[0] for result in results)

    def test_the_names_of_the_inputs_do_not_change_a_bit(self, paths, tmp_path):
        if self.options["method"] == "ema":
            pytest.skip("an exponential moving average goes by the names")
        before = self.merged(paths, tmp_path / "out.weights.h5")
        renamed = [p.rename(p.with_name(f"{9 - i}x.weights.h5")) for i, p in enumerate(paths)]
        assert self.merged(renamed, tmp_path / "out.weights.h5") == before

    def test_equal_checkpoints_give_themselves(self, tmp_path):
        values = checkpoint(3)
        paths = [write_weights(tmp_path / f"{i}.weights.h5", values) for i in range(self.count)]
        expected = {path: bits(array) for path, array in values.items()}
        assert self.merged(paths, tmp_path / "out.weights.h5") == expected

    def test_threads_do_not_change_a_bit(self, paths, tmp_path):
        one, three = (self.merged(paths, tmp_path / "o.weights.h5", threads=n) for n in (1, 3))
        assert one == three

    @pytest.mark.parametrize("elements", [64, 700])
    def test_the_size_of_slabs_does_not_change_a_bit(self, paths, tmp_path, monkeypatch, elements):
        before = self.merged(paths, tmp_path / "out.weights.h5")
        for name in ("MOST_SLAB_ELEMENTS", "LEAST_SLAB_ELEMENTS"):
            monkeypatch.setattr(planning, name, elements)
        assert self.merged(paths, tmp_path / "out.weights.h5") == before

    def test_the_container_does_not_change_a_bit(self, paths, tmp_path):
        archives = [
            write_keras(path.with_name(f"{path.name[0]}.keras"), read_arrays(path))
            for path in paths
        ]
        before = self.merged(paths, tmp_path / "out.weights.h5")
        assert self.merged(archives, tmp_path / "out.weights.h5") == before

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_refused_by_its_place(self, paths, tmp_path, value):
        spoilt = checkpoint(1)
        spoilt["layers/dense/vars/table"][3, 2, 1] = value
        write_weights(paths[1], spoilt)
        with pytest.raises(NonFiniteValuesError) as caught:
            merge(paths, tmp_path / "out.weights.h5", **self.options)
        assert caught.value.path == paths[1]
        assert caught.value.variable == "layers/dense/vars/table"
        assert caught.value.index == (3, 2, 1)
        assert not (tmp_path / "out.weights.h5").exists()

    def test_nan_that_is_allowed_stays_where_it_is_or_is_refused_as_an_option(
        self, paths, tmp_path
    ):
        spoilt = checkpoint(1)
        spoilt["layers/dense/vars/kernel"][3, 2] = np.nan
        write_weights(paths[1], spoilt)
        output = tmp_path / "out.weights.h5"
        options = {**self.options, "allow_non_finite": True}
        if self.options["method"] in {"geometric-median", "slerp"}:
            with pytest.raises(OptionError, match="--allow-non-finite and --method"):
                merge(paths, output, **options)
            assert not output.exists()
        else:
            merge(paths, output, **options)
            is_nan = np.isnan(read_arrays(output)["layers/dense/vars/kernel"])
            assert np.argwhere(is_nan).tolist() == [[3, 2]]

    def test_progress_tells_of_every_byte(self, paths, tmp_path):
        counts, plans = [], []
        record = merge(
            paths, tmp_path / "out.weights.h5", on_plan=plans.append, on_progress=counts.append,
            **self.options,
        )  # fmt: skip
        assert sum(counts) == plans[0].bytes_read == record.bytes_read

    def test_the_coefficients_in_the_record_sum_to_one(self, paths, tmp_path):
        record = merge(paths, tmp_path / "out.weights.h5", **self.options)
        assert sum(entry.coefficient for entry in record.inputs) == pytest.approx(1)
