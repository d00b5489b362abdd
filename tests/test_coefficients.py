"""With which coefficients checkpoints are averaged."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.coefficients import coefficients_for, ema_coefficients, softmax_coefficients
from streamavg.errors import CoefficientError, OptionError


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


def softmax(scores, temperature):
    """The textbook formula, in exact arithmetic where it matters: no exponent overflows here."""
    powers = [math.exp(score / temperature) for score in scores]
    return [power / math.fsum(powers) for power in powers]


class TestSoftmax:
    @pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
    def test_follows_the_formula(self, temperature):
        scores = [0.91, 0.93, 0.9]
        found = softmax_coefficients(scores, temperature, maximize=True)
        assert found.values == pytest.approx(softmax(scores, temperature), rel=1e-12)

    def test_makes_less_loss_heavier(self):
        found = softmax_coefficients([0.3, 0.1, 0.2], 0.1, maximize=False)
        assert found.values == pytest.approx(softmax([-0.3, -0.1, -0.2], 0.1), rel=1e-12)
        assert found.values[1] > found.values[2] > found.values[0]

    def test_weighs_a_score_that_is_worse_by_the_temperature_37_percent(self):
        better, worse = softmax_coefficients([0.9, 0.8], 0.1, maximize=True).values
        assert worse / better == pytest.approx(math.exp(-1))

    def test_of_equal_scores_is_exactly_uniform(self):
        found = softmax_coefficients([0.1, 0.1, 0.1], 0.01, maximize=True)
        assert found.numerators == (1.0, 1.0, 1.0)

    @given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(0.5, 100))
    def test_sums_to_one_and_follows_the_scores(self, scores, temperature):
        found = softmax_coefficients(scores, temperature, maximize=True).values
        assert math.fsum(found) == pytest.approx(1)
        by_score = [value for _, value in sorted(zip(scores, found, strict=True))]
        assert by_score == sorted(found)

    @pytest.mark.parametrize("scores", [[1e308, -1e308], [-1e308, 1e308], [0, 1e6]])
    def test_overflows_nowhere(self, scores):
        found = softmax_coefficients(scores, 1e-3, maximize=True).values
        assert found == tuple(float(score == max(scores)) for score in scores)

    @pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
    def test_needs_a_temperature(self, temperature):
        with pytest.raises(CoefficientError, match="--softmax"):
            softmax_coefficients([1, 2], temperature, maximize=True)


def recurrence(values, decay):
    """The exponential moving average as it is defined, step by step."""
    average = Fraction(values[0])
    for value in values[1:]:
        average = Fraction(decay) * average + (1 - Fraction(decay)) * Fraction(value)
    return average


class TestMovingAverage:
    @given(
        st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40),
        st.floats(0, 1, exclude_min=True, exclude_max=True),
    )
    def test_is_the_recurrence(self, values, decay):
        coefficients = ema_coefficients(len(values), decay)
        weighed = zip(coefficients.numerators, map(Fraction, values), strict=True)
        found = sum(Fraction(n) * value for n, value in weighed) / coefficients.total
        tolerance = Fraction(1, 10**14) * max(abs(Fraction(value)) for value in values)
        assert abs(found - recurrence(values, decay)) <= tolerance

    def test_starts_at_the_first_checkpoint(self):
        assert ema_coefficients(2, 0.75).values == (0.75, 0.25)
        assert ema_coefficients(4, 0.5).values == (0.125, 0.125, 0.25, 0.5)

    @given(st.integers(2, 200), st.floats(0.01, 0.99))
    def test_has_coefficients_that_sum_to_one_even_before_they_are_divided(self, count, decay):
        assert float(ema_coefficients(count, decay).total) == pytest.approx(1, abs=1e-13)

    @pytest.mark.parametrize("decay", [0, 1, -0.1, 1.1, math.nan, math.inf])
    def test_needs_a_decay_between_0_and_1(self, decay):
        with pytest.raises(CoefficientError, match="--decay"):
            ema_coefficients(3, decay)
