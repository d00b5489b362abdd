"""Which soups are tried and which are taken, on scores that are made up."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamavg.errors import MissingDependencyError, OptionError
from streamavg.evaluation.strategies import (
    MOST_LEARNED,
    STRATEGIES,
    Search,
    Soup,
    greedy,
    greedy_swap,
    learned,
    run_strategy,
    uniform,
)

SEARCHES = settings(max_examples=60, deadline=None, derandomize=True)


class Table:
    """Scores of uniform soups by their members, and a list of what was asked for."""

    def __init__(self, scores, other=0.0):
        self.scores = scores
        self.other = other
        self.asked = []
        self.taken = []

    def score(self, soup):
        assert soup.numerators is None
        self.asked.append(soup.members)
        return self.scores.get(soup.members, self.other)

    def take(self, soup):
        self.taken.append(soup.members)


class Distance:
    """The distance of a soup of points from a target: convex, as a loss in one basin."""

    def __init__(self, points, target):
        self.points = np.asarray(points, float)
        self.target = np.asarray(target, float)
        self.asked = []

    def score(self, soup):
        self.asked.append(soup)
        mean = np.asarray(soup.coefficients) @ self.points[list(soup.members)]
        return float(np.linalg.norm(mean - self.target))

    def take(self, soup):
        pass


class Random:
    """A score for every soup that depends on nothing but its members."""

    def __init__(self, seed, values):
        self.seed, self.values = seed, values

    def score(self, soup):
        generator = np.random.default_rng([self.seed, *soup.members])
        return float(generator.choice(self.values))

    def take(self, soup):
        pass


def search_of(scorer, count, *, maximize=True, **options):
    return Search(scorer, count, maximize=maximize, **options)


def members_tried(search):
    return [trial.soup.members for trial in search.trials]


SINGLES = {(0,): 0.5, (1,): 0.9, (2,): 0.7}


class TestGreedy:
    def test_scores_all_alone_then_adds_the_best_first(self):
        table = Table(SINGLES | {(1, 2): 0.95, (0, 1, 2): 0.96})
        assert greedy(search_of(table, 3)) == Soup((0, 1, 2))
        assert table.asked == [(0,), (1,), (2,), (1, 2), (0, 1, 2)]
        assert table.taken == [(1,), (1, 2), (0, 1, 2)]

    def test_leaves_out_what_makes_it_worse(self):
        table = Table(SINGLES | {(1, 2): 0.89, (0, 1): 0.91})
        search = search_of(table, 3)
        assert greedy(search) == Soup((0, 1))
        taken = [trial.soup.members for trial in search.trials if trial.taken]
        assert taken == [(1,), (0, 1)]

    def test_adds_what_leaves_the_score_as_it_is(self):
        table = Table(SINGLES | {(1, 2): 0.9, (0, 1, 2): 0.9})
        assert greedy(search_of(table, 3)) == Soup((0, 1, 2))

    def test_is_the_best_single_one_if_nothing_helps(self):
        assert greedy(search_of(Table(SINGLES), 3)) == Soup((1,))

    def test_takes_equal_ones_in_the_order_given(self):
        table = Table({(0,): 0.5, (1,): 0.9, (2,): 0.9, (3,): 0.9})
        greedy(search_of(table, 4))
        assert table.asked[4:] == [(1, 2), (1, 3), (0, 1)]

    def test_minimizes_losses(self):
        table = Table({(0,): 0.5, (1,): 0.9, (2,): 0.7, (0, 2): 0.4}, other=2.0)
        assert greedy(search_of(table, 3, maximize=False)) == Soup((0, 2))
        assert table.asked[3:] == [(0, 2), (0, 1, 2)]

    def test_never_takes_a_soup_that_scores_nan(self):
        table = Table({(0,): math.nan, (1,): 0.9, (2,): 0.7}, other=math.nan)
        search = search_of(table, 3)
        assert greedy(search) == Soup((1,))
        assert table.asked[3:] == [(1, 2), (0, 1)]

    def test_of_one_checkpoint_is_that(self):
        assert greedy(search_of(Table({(0,): 0.1}), 1)) == Soup((0,))

    def test_scores_that_are_all_nan_are_an_error(self):
        with pytest.raises(OptionError, match="no checkpoint has a finite score"):
            greedy(search_of(Table({}, other=math.nan), 3))


class TestGreedySwap:
    def test_removes_what_only_helped_on_the_way(self):
        table = Table(SINGLES | {(1, 2): 0.91, (0, 1, 2): 0.92, (0, 1): 0.99})
        assert greedy_swap(search_of(table, 3)) == Soup((0, 1))

    def test_exchanges_a_member(self):
        table = Table(SINGLES | {(1, 2): 0.91, (0, 1): 0.95})
        search = search_of(table, 3)
        assert greedy_swap(search) == Soup((0, 1))
        assert members_tried(search)[3:] == [(1, 2), (0, 1, 2), (0, 1), (0, 2)]

    def test_tries_to_add_again_what_did_not_fit_before(self):
        scores = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (0, 1): 0.92, (1, 2): 0.95, (0, 1, 2): 0.91}
        assert greedy_swap(search_of(Table(scores), 3)) == Soup((1, 2))

    def test_does_not_remove_where_the_score_stays_as_it_is(self):
        table = Table(SINGLES | {(1, 2): 0.9, (0, 1, 2): 0.9, (0, 1): 0.9})
        assert greedy_swap(search_of(table, 3)) == Soup((0, 1, 2))

    def test_asks_for_no_score_twice(self):
        table = Random(1, [0.1, 0.2, 0.3])
        search = search_of(table, 5)
        greedy_swap(search)
        tried = members_tried(search)
        assert len(tried) == len(set(tried))

    def test_stops_after_so_many_averages(self):
        scorer = Distance(np.eye(6), [0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
        search = search_of(scorer, 6, maximize=False, most_trials=7)
        greedy_swap(search)
        assert sum(len(members) > 1 for members in members_tried(search)) == 7
        assert search.ended_early

    def test_tells_when_it_tried_all_there_is(self):
        search = search_of(Table(SINGLES), 3, most_trials=50)
        greedy_swap(search)
        assert not search.ended_early

    @SEARCHES
    @given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([3, 1000]))
    def test_ends_where_no_step_helps(self, seed, count, levels):
        search = search_of(Random(seed, np.arange(levels)), count)
        found = greedy_swap(search)
        others = set(range(count)) - set(found.members)
        for member in found.members:
            if len(found.members) > 1:
                assert search.goodness(found.without(member)) <= search.goodness(found)
            for other in others:
                swapped = found.having(other).without(member)
                assert search.goodness(swapped) <= search.goodness(found)
        for other in others:
            assert search.goodness(found.having(other)) < search.goodness(found)


class TestUniform:
    def test_takes_all_for_better_or_worse(self):
        table = Table(SINGLES)
        search = search_of(table, 3)
        assert uniform(search) == Soup((0, 1, 2))
        assert table.asked == [(0,), (1,), (2,), (0, 1, 2)]
        assert search.singles()[0] == 1


class TestLearned:
    def test_finds_a_point_between_the_candidates(self):
        target = np.array([0.2, 0.3, 0.5])
        scorer = Distance(np.eye(3), target)
        found = learned(search_of(scorer, 3, maximize=False, most_trials=200))
        np.testing.assert_allclose(found.coefficients, target, atol=0.02)

    def test_is_no_worse_than_any_trial(self):
        search = search_of(Distance(np.eye(3), [1, 0, 0]), 3, maximize=False, most_trials=30)
        assert learned(search) == Soup((0,))

    def test_starts_at_the_uniform_soup(self):
        scorer = Distance(np.eye(4), np.full(4, 0.25))
        search = search_of(scorer, 4, maximize=False, most_trials=50)
        assert learned(search) == Soup((0, 1, 2, 3))
        assert scorer.asked[4] == Soup((0, 1, 2, 3))

    def test_takes_the_best_candidates_if_there_are_many(self):
        points = np.diag(np.linspace(1, 2, MOST_LEARNED + 3))
        search = search_of(Distance(points, points[0]), len(points), maximize=False, most_trials=20)
        learned(search)
        averages = {t.soup.members for t in search.trials if len(t.soup.members) > 1}
        assert set().union(*averages) == set(range(MOST_LEARNED))

    def test_leaves_out_who_would_have_next_to_nothing(self):
        search = search_of(Distance(np.eye(3), [0.6, 0.4, 0]), 3, maximize=False, most_trials=200)
        found = learned(search)
        assert found.members == (0, 1)
        np.testing.assert_allclose(found.coefficients, [0.6, 0.4], atol=0.01)

    def test_makes_no_more_trials_than_allowed(self):
        search = search_of(Distance(np.eye(5), np.arange(5) / 10), 5, most_trials=17)
        learned(search)
        assert len(search.trials) == 5 + 17

    def test_lives_with_scores_that_are_nan(self):
        table = Table({(0,): 1.0, (1,): math.nan})
        table.score = lambda soup: math.nan if len(soup.members) > 1 else 0.5
        assert learned(search_of(table, 2, most_trials=10)) == Soup((0,))

    def test_needs_scipy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)
        with pytest.raises(MissingDependencyError, match=r"streamavg\[tensorflow\]"):
            learned(search_of(Table(SINGLES), 3))


@SEARCHES
@given(
    st.sampled_from(["greedy", "greedy-swap", "learned"]),
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.booleans(),
)
def test_on_validation_a_soup_is_never_worse_than_the_best_single_one(name, seed, count, maximize):
    search = search_of(
        Random(seed, [0.1, 0.2, 0.3, math.nan]), count, maximize=maximize, most_trials=30
    )
    try:
        found = run_strategy(name, search)
    except OptionError:
        assert all(math.isnan(trial.score) for trial in search.trials)
        return
    assert search.goodness(found) >= search.goodness(Soup((search.singles()[0],)))
    assert all(sum(trial.soup.coefficients) == pytest.approx(1) for trial in search.trials)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_tries_all_candidates_alone_first(name):
    search = search_of(Distance(np.eye(3), [1, 1, 1]), 3, maximize=False, most_trials=20)
    run_strategy(name, search)
    assert members_tried(search)[:3] == [(0,), (1,), (2,)]
    assert any(trial.taken for trial in search.trials)
