"""The nouns: where values are in variables, runs and slabs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.checkpoint import Role, Run, Slab, Variable, gathered, runs_of

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(SHAPES, st.data())
def test_an_element_has_the_index_that_numpy_gives_it(shape, data):
    variable = Variable("v", shape, np.dtype(np.float32), Role.WEIGHT, "layer")
    element = data.draw(st.integers(0, math.prod(shape) - 1))
    assert variable.index_of(element) == tuple(map(int, np.unravel_index(element, shape)))


@given(st.integers(0, 50), st.integers(1, 60))
def test_runs_are_a_variable_cut_into_pieces(size, most):
    runs = list(runs_of(7, size, most))
    assert [run.start + i for run in runs for i in range(run.count)] == list(range(size))
    assert all(run.position == 7 and 0 < run.count <= most for run in runs)


@given(st.lists(st.integers(1, 10), max_size=12), st.integers(10, 25))
def test_slabs_are_runs_put_together_in_order(counts, most):
    runs = [Run(position, 3, count) for position, count in enumerate(counts)]
    slabs = list(gathered(runs, most))
    assert [run for slab in slabs for run in slab.runs] == runs
    assert all(0 < slab.count <= most for slab in slabs)
    assert all(slab.count == sum(run.count for run in slab.runs) for slab in slabs)
    for slab, following in itertools.pairwise(slabs):
        assert slab.count + following.runs[0].count > most


@pytest.mark.parametrize(
    ("element", "place"),
    [(0, Run(4, 10, 1)), (1, Run(4, 11, 1)), (2, Run(9, 0, 1)), (4, Run(9, 2, 1))],
)
def test_an_element_of_a_slab_is_in_one_of_its_runs(element, place):
    assert Slab((Run(4, 10, 2), Run(9, 0, 3)), 5).place_of(element) == place
