"""Which checkpoints, with which coefficients, after whose structure."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.errors import CoefficientError, OptionError
from streamavg.selection import coefficients_for, select_paths, select_reference


class TestCoefficients:
    @pytest.mark.parametrize("count", [2, 3, 7, 100])
    def test_are_uniform_without_weights(self, count):
        found = coefficients_for(count)
        assert found.numerators == (1.0,) * count
        assert found.total == count
        assert found.values == (1 / count,) * count

    def test_are_the_weights_where_they_sum_to_one(self):
        assert coefficients_for(3, [0.5, 0.25, 0.25]).values == (0.5, 0.25, 0.25)

    def test_take_the_usual_decimals(self):
        assert coefficients_for(3, [0.5, 0.3, 0.2]).values == pytest.approx((0.5, 0.3, 0.2))

    def test_may_be_zero(self):
        assert coefficients_for(2, [1, 0]).values == (1.0, 0.0)

    def test_take_arrays(self):
        assert coefficients_for(2, np.array([0.25, 0.75])).values == (0.25, 0.75)

    def test_sum_to_one_after_a_tolerated_rest(self):
        found = coefficients_for(3, [0.333333, 0.333333, 0.333333])
        assert found.values == (1 / 3,) * 3

    def test_are_sample_counts_divided_by_their_sum_with_normalize(self):
        found = coefficients_for(3, [100, 300, 600], normalize=True)
        assert found.values == (0.1, 0.3, 0.6)

    @given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20))
    def test_sum_to_one_and_keep_the_proportions(self, weights):
        found = coefficients_for(len(weights), weights, normalize=True)
        assert math.fsum(found.values) == pytest.approx(1, abs=1e-12)
        total = sum(map(Fraction, weights))
        assert found.values == tuple(float(Fraction(w) / total) for w in weights)

    @pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-30, 1.0, 2.0**900])
    def test_do_not_depend_on_the_scale_of_the_weights(self, scale):
        weights = [scale, 3 * scale]
        assert coefficients_for(2, weights, normalize=True).values == (0.25, 0.75)

    def test_take_the_smallest_numbers_there_are(self):
        assert coefficients_for(2, [5e-324, 5e-324], normalize=True).values == (0.5, 0.5)

    @pytest.mark.parametrize(
        ("weights", "text"),
        [
            ([1.0], "1 weights for 2 checkpoints"),
            ([0.2, 0.3, 0.5], "3 weights for 2 checkpoints"),
            ([], "0 weights for 2 checkpoints"),
            ([1.5, -0.5], "weight 2 is -0.5"),
            ([math.nan, 1.0], "weight 1 is nan"),
            ([1.0, math.inf], "weight 2 is inf"),
            ([0.5, 0.4], "sum to 0.9, not 1"),
            ([0.5, 0.50001], "sum to 1.00001, not 1"),
            ([1, 1], "--normalize"),
        ],
    )
    def test_refuse_what_cannot_be_one(self, weights, text):
        with pytest.raises(CoefficientError, match="--weights") as caught:
            coefficients_for(2, weights)
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        ("weights", "text"),
        [
            ([0, 0], "all weights are 0"),
            ([1e308, 1e308], "too large"),
            ([-1, 2], "weight 1 is -1.0"),
            ([math.nan, 1], "weight 1 is nan"),
        ],
    )
    def test_refuse_what_cannot_be_normalized(self, weights, text):
        with pytest.raises(CoefficientError) as caught:
            coefficients_for(2, weights, normalize=True)
        assert text in str(caught.value)

    def test_are_refused_as_options(self):
        assert issubclass(CoefficientError, OptionError)


class TestPaths:
    def test_keep_the_order_given(self):
        assert select_paths(["b", Path("a"), "c"]) == (Path("b"), Path("a"), Path("c"))

    def test_may_come_from_a_generator(self):
        assert len(select_paths(name for name in "ab")) == 2

    @pytest.mark.parametrize("paths", [[], ["a"]])
    def test_are_at_least_two(self, paths):
        with pytest.raises(OptionError, match=f"two checkpoints, {len(paths)} given"):
            select_paths(paths)

    @pytest.mark.parametrize("again", ["a.h5", "./a.h5", "folder/../a.h5"])
    def test_name_each_checkpoint_once(self, again):
        with pytest.raises(OptionError, match=r"the same file as a\.h5"):
            select_paths(["a.h5", "b.h5", again])

    def test_name_each_checkpoint_once_through_links_too(self, tmp_path):
        (tmp_path / "a.h5").touch()
        (tmp_path / "link.h5").symlink_to("a.h5")
        with pytest.raises(OptionError, match="the same file"):
            select_paths([tmp_path / "a.h5", tmp_path / "link.h5"])

    def test_of_a_repeated_checkpoint_lead_to_weights(self):
        with pytest.raises(OptionError, match="use --weights"):
            select_paths(["a", "a"])


class TestReference:
    PATHS = (Path("a.h5"), Path("b.h5"))

    def test_is_the_first_by_default(self):
        assert select_reference(self.PATHS, None) == Path("a.h5")

    @pytest.mark.parametrize("name", ["b.h5", Path("b.h5"), "./b.h5"])
    def test_is_the_one_named(self, name):
        assert select_reference(self.PATHS, name) == Path("b.h5")

    def test_may_be_named_by_its_absolute_path(self):
        assert select_reference(self.PATHS, Path("b.h5").absolute()) == Path("b.h5")

    def test_must_be_one_of_the_checkpoints(self):
        with pytest.raises(OptionError, match=r"c\.h5 is not one of the checkpoints"):
            select_reference(self.PATHS, "c.h5")
