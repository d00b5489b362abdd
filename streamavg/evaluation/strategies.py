"""How the ingredients of a soup are found: which checkpoints, with which coefficients.

A *soup* is a mean of some of the candidates, a *trial* one that was scored. A strategy decides what
is tried next; it knows numbers only, neither files nor models. What a trial is made of, and its
score, come from whoever runs the search.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML 2022: the uniform soup, the greedy soup (recipe 1)
and the learned soup, whose coefficients they find by gradient descent on held-out data; here they
are found without gradients, so that a trial is nothing but a score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from streamavg.coefficients import Coefficients
from streamavg.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

StrategyName = Literal["uniform", "greedy", "greedy-swap", "learned"]
STRATEGIES: tuple[str, ...] = get_args(StrategyName)
MOST_TRIALS = 200
"""Averages that greedy-swap and learned try at most, unless told otherwise."""
MOST_LEARNED = 10
"""Checkpoints of a learned soup at most: without gradients, more coefficients are not found in a
number of trials that anybody waits for."""
_STEP = 1.5
"""Of the first trials of a learned soup: one checkpoint weighs e**1.5, some 4.5 times another."""
_LEAST_COEFFICIENT = 0.001
"""Of a learned soup: whoever would have less is no member."""
_NUMBER_TOLERANCE = 0.01
_SCORE_TOLERANCE = 1e-6
_WORST = 1e300
"""Stands for a score that is no number, where a minimiser would compute with it."""


@dataclass(frozen=True, slots=True)
class Soup:
    """A mean of some of the candidates."""

    members: tuple[int, ...]
    """Indices of the candidates, ascending; at least one."""
    numerators: tuple[float, ...] | None = None
    """One per member: of coefficients that are not all the same."""

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One per member; they sum to 1."""
        return Coefficients(self.numerators or (1.0,) * len(self.members)).values

    def having(self, added: int) -> Soup:
        """The uniform soup with one more member."""
        return Soup(tuple(sorted({*self.members, added})))

    def without(self, removed: int) -> Soup:
        """The uniform soup with one member less."""
        return Soup(tuple(one for one in self.members if one != removed))


@dataclass(frozen=True, slots=True)
class Trial:
    """A soup that was scored."""

    soup: Soup
    score: float
    """By the metric of the search, in its own direction."""
    taken: bool
    """Whether it became the soup at hand."""


class Scorer(Protocol):
    """Makes soups and scores them."""

    def score(self, soup: Soup) -> float:
        """How good a soup is, by one metric; NaN is worse than any number."""
        ...

    def take(self, soup: Soup) -> None:
        """Says that soups to come will differ little from this one."""
        ...


class Search:
    """A search for the best soup of some candidates: what was tried, and what came of it.

    Args:
        scorer: scores a soup. Each is asked for once.
        count: number of candidates.
        maximize: whether more is better.
        most_trials: averages that a strategy may try before it stops; single candidates do not
            count. None for no limit.
    """

    def __init__(
        self, scorer: Scorer, count: int, *, maximize: bool, most_trials: int | None = None
    ) -> None:
        self.count = count
        self.most_trials = most_trials
        self.ended_early = False
        """Whether there was more to try than was allowed."""
        self._scorer = scorer
        self._sign = 1 if maximize else -1
        self._scores: dict[Soup, float] = {}
        self._taken: set[Soup] = set()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that was tried, in that order."""
        return tuple(Trial(s, score, s in self._taken) for s, score in self._scores.items())

    @property
    def trials_left(self) -> float:
        """How many more averages may be tried."""
        if self.most_trials is None:
            return math.inf
        return self.most_trials - sum(len(soup.members) > 1 for soup in self._scores)

    def may_try(self, soup: Soup) -> bool:
        """Whether a soup is known already, or may be tried."""
        may = soup in self._scores or len(soup.members) == 1 or self.trials_left > 0
        self.ended_early |= not may
        return may

    def goodness(self, soup: Soup) -> float:
        """The score of a soup, turned so that more is better; -inf for NaN."""
        if soup not in self._scores:
            self._scores[soup] = self._scorer.score(soup)
        score = self._sign * self._scores[soup]
        return -math.inf if math.isnan(score) else score

    def score(self, soup: Soup) -> float:
        """The score of a soup that was tried."""
        return self._scores[soup]

    def take(self, soup: Soup) -> Soup:
        """Makes a soup that was tried the one at hand."""
        self._taken.add(soup)
        self._scorer.take(soup)
        return soup

    def singles(self) -> list[int]:
        """All candidates, the best first; of equal ones the earlier first.

        Raises:
            OptionError: none has a score that is a number.
        """
        order = sorted(range(self.count), key=lambda single: -self.goodness(Soup((single,))))
        if self.goodness(Soup((order[0],))) == -math.inf:
            raise OptionError(
                "no checkpoint has a finite score. Choose another --metric, or check the data."
            )
        return order

    def best(self) -> Soup:
        """The best of all that was tried; of equal ones the earlier."""
        return max(self._scores, key=self.goodness)


def run_strategy(name: StrategyName, search: Search) -> Soup:
    """Searches, and returns the soup that is taken in the end.

    All candidates are tried alone first, so that the best single one is known whatever the
    strategy.

    Raises:
        OptionError: no candidate alone has a score that is a number.
        MissingDependencyError: a learned soup needs SciPy, which is not installed.
    """
    strategies: dict[StrategyName, Callable[[Search], Soup]] = {
        "uniform": uniform, "greedy": greedy, "greedy-swap": greedy_swap, "learned": learned,
    }  # fmt: skip
    return strategies[name](search)


def uniform(search: Search) -> Soup:
    """The mean of all candidates, for better or worse."""
    search.singles()
    soup = Soup(tuple(range(search.count)))
    search.goodness(soup)
    return search.take(soup)


def greedy(search: Search) -> Soup:
    """The greedy soup (recipe 1): each candidate is added unless the soup gets worse with it.

    Candidates are taken best first, so the soup is never worse than the best of them.
    """
    order = search.singles()
    taken = search.take(Soup((order[0],)))
    return _with_more(search, taken, order)


def greedy_swap(search: Search) -> Soup:
    """The greedy soup, improved until no addition, removal or exchange of one member helps.

    After each greedy pass members are removed, the worst first, and exchanged for others, the best
    first; what makes the soup better is taken at once. Then the others have their turn again. It
    ends: each step makes the soup better, or no worse and larger.
    """
    order = search.singles()
    taken = greedy(search)
    while True:
        larger = _with_more(search, taken, order)
        better = _first_better(search, larger, order)
        if better is None and larger == taken:
            return taken
        taken = larger if better is None else search.take(better)


def _with_more(search: Search, taken: Soup, order: Sequence[int]) -> Soup:
    """Adds, in that order, what does not make the soup worse."""
    for candidate in order:
        soup = taken.having(candidate)
        if soup == taken or not search.may_try(soup):
            continue
        if search.goodness(soup) >= search.goodness(taken):
            taken = search.take(soup)
    return taken


def _first_better(search: Search, taken: Soup, order: Sequence[int]) -> Soup | None:
    for soup in _neighbours(taken, order):
        if search.may_try(soup) and search.goodness(soup) > search.goodness(taken):
            return soup
    return None


def _neighbours(taken: Soup, order: Sequence[int]) -> Iterator[Soup]:
    """The soup with one member less, then with one exchanged."""
    members = [one for one in reversed(order) if one in taken.members]
    if len(members) > 1:
        for member in members:
            yield taken.without(member)
    for member in members:
        for other in order:
            if other not in taken.members:
                yield taken.having(other).without(member)


def learned(search: Search) -> Soup:
    """The soup of the best `MOST_LEARNED` candidates with the coefficients that score best.

    Coefficients are the softmax of one number a candidate, the last number being 0, so that they
    sum to 1 whatever the numbers are; those below 0.001 are 0. The numbers are found by the method
    of Nelder and Mead, "A simplex method for function minimization", 1965, with the parameters of
    Gao and Han, 2012, that adapt to their count. It starts at the uniform soup, and is done when
    the numbers and the scores of its simplex agree within 0.01 and 1e-6, or after the trials that
    it may make. What is taken is the best of all trials, single candidates included.
    """
    optimize = load_optimizer()
    members = tuple(sorted(search.singles()[:MOST_LEARNED]))
    unknowns = len(members) - 1

    def badness(numbers: NDArray[np.float64]) -> float:
        goodness = search.goodness(_softmax_soup(members, numbers))
        return -goodness if math.isfinite(goodness) else _WORST

    if unknowns:
        left = search.trials_left
        start = np.zeros(unknowns)
        outcome = optimize.minimize(
            badness,
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([start, _STEP * np.eye(unknowns)]),
                "maxfev": left if math.isfinite(left) else MOST_TRIALS,
                "xatol": _NUMBER_TOLERANCE,
                "fatol": _SCORE_TOLERANCE,
                "adaptive": True,
            },
        )
        search.ended_early = not outcome.success
    return search.take(search.best())


def _softmax_soup(members: tuple[int, ...], numbers: NDArray[np.float64]) -> Soup:
    logits = np.append(numbers, 0.0)
    numerators = np.exp(logits - logits.max())
    kept = np.flatnonzero(numerators >= _LEAST_COEFFICIENT * numerators.sum())
    taken = tuple(members[index] for index in kept)
    if (numerators[kept] == 1).all():
        return Soup(taken)
    return Soup(taken, tuple(map(float, numerators[kept])))


def load_optimizer() -> Any:
    """The module `scipy.optimize`. Raises: MissingDependencyError if SciPy is not installed."""
    try:
        from scipy import optimize  # noqa: PLC0415 - only learned soups need it
    except ImportError:
        raise MissingDependencyError(
            "--strategy learned needs SciPy, which is not installed. "
            "Install it with: python -m pip install 'streamavg[tensorflow]'"
        ) from None
    return optimize
