"""The paired bootstrap: what it draws, what it sums, what it says."""

import numpy as np
import pytest

from streamavg.evaluation import bootstrap
from streamavg.evaluation.bootstrap import (
    Interval,
    Statistic,
    mean_of,
    paired_intervals,
    ratio,
    resampled_counts,
)


def naive_interval(first, second, resamples, seed):
    """One resample after the other, from the definition."""
    generator = np.random.default_rng(seed)
    count = len(first)
    differences = []
    for _ in range(resamples):
        drawn = generator.integers(count, size=count)
        differences.append(np.mean(first[drawn]) - np.mean(second[drawn]))
    low, high = np.quantile(differences, [0.025, 0.975])
    return Interval(pytest.approx(low), pytest.approx(high), resamples)


@pytest.fixture
def pair():
    generator = np.random.default_rng(3)
    first = generator.normal(size=40)
    return first, first + generator.normal(0.3, 0.5, size=40)


def test_an_interval_is_that_of_the_definition(pair):
    first, second = pair
    (found,) = paired_intervals([(mean_of(first), mean_of(second))], seed=5, resamples=300)
    assert found == naive_interval(first, second, 300, 5)


def test_blocks_do_not_change_what_is_drawn(pair, monkeypatch):
    pairs = [(mean_of(pair[0]), mean_of(pair[1]))]
    whole = paired_intervals(pairs, resamples=500)
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 41)
    assert paired_intervals(pairs, resamples=500) == [
        Interval(pytest.approx(whole[0].low), pytest.approx(whole[0].high), 500)
    ]


def test_every_resample_draws_as_many_examples_as_there_are():
    counts = np.concatenate(list(resampled_counts(9, 50, seed=1)))
    assert counts.shape == (50, 9)
    assert (counts.sum(axis=1) == 9).all()


def test_the_same_seed_gives_the_same_interval_and_another_another(pair):
    pairs = [(mean_of(pair[0]), mean_of(pair[1]))]
    assert paired_intervals(pairs, seed=1) == paired_intervals(pairs, seed=1)
    assert paired_intervals(pairs, seed=1) != paired_intervals(pairs, seed=2)


def test_equal_models_differ_by_exactly_nothing(pair):
    (found,) = paired_intervals([(mean_of(pair[0]), mean_of(pair[0]))])
    assert (found.low, found.high) == (0.0, 0.0)


def test_pairing_takes_out_what_examples_have_in_common():
    hard = np.random.default_rng(0).normal(scale=100, size=50)
    (found,) = paired_intervals([(mean_of(hard + 1), mean_of(hard))])
    assert found == Interval(pytest.approx(1), pytest.approx(1), bootstrap.RESAMPLES)


@pytest.mark.parametrize("count", [50, 400])
def test_an_interval_of_normal_means_has_the_known_width(count):
    differences = np.random.default_rng(4).normal(size=count)
    (found,) = paired_intervals([(mean_of(differences), mean_of(np.zeros(count)))])
    expected = 2 * 1.96 * differences.std() / np.sqrt(count)
    assert found.high - found.low == pytest.approx(expected, rel=0.05)


def test_a_ratio_of_sums_is_resampled_as_one():
    states = np.array([[2.0, 1.0], [6.0, 3.0]])  # totals and counts of words in two sentences
    statistic = Statistic(states, np.zeros(2), ratio)
    assert statistic.value() == 2.0
    (found,) = paired_intervals([(statistic, Statistic(np.zeros((2, 2)), np.zeros(2), ratio))])
    assert (found.low, found.high) == (2.0, 2.0)


def test_what_is_there_before_the_first_example_counts_once():
    statistic = Statistic(np.ones((4, 1)), np.array([10.0]), lambda sums: sums[:, 0])
    assert statistic.value() == 14.0


def test_a_result_that_is_not_finite_gives_no_interval():
    bad = Statistic(np.ones((4, 1)), np.zeros(1), lambda sums: sums[:, 0] * np.nan)
    good = mean_of(np.arange(4.0))
    assert paired_intervals([(bad, bad), (good, good)], resamples=100)[0] is None
    assert paired_intervals([(bad, bad), (good, good)], resamples=100)[1] is not None


def test_no_pairs_give_no_intervals():
    assert paired_intervals([]) == []
