import itertools
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.formats.crc32 import RunningCrc, crc32, gaps, pieces
from tests.builders import run_python


@given(st.binary(max_size=500), st.lists(st.integers(0, 500)), st.randoms())
def test_pieces_in_any_order_give_the_crc_of_the_whole(content, cuts, random):
    ends = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    extents = list(itertools.pairwise(ends))
    random.shuffle(extents)
    crc = RunningCrc(len(content))
    for number, (first, last) in enumerate(extents):
        crc.add(first, content[first:last])
        left = sum(last - first for first, last in crc.missing())
        assert left == sum(last - first for first, last in extents[number + 1 :])
    assert crc.value == zlib.crc32(content)
    assert crc.missing() == []


@given(st.binary(max_size=500))
def test_whichever_function_is_taken_gives_the_number_of_zlib(content):
    assert crc32()(content) == zlib.crc32(content)
    assert crc32()(memoryview(content)) == zlib.crc32(content)


def test_the_function_of_isal_is_taken_where_that_is_installed():
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    assert crc32() is isal_zlib.crc32


def test_without_isal_zlib_does_it():
    done = run_python(
        "import sys, zlib\n"
        "sys.modules['isal'] = None\n"
        "from streamavg.formats.crc32 import crc32\n"
        "assert crc32() is zlib.crc32"
    )
    assert done.returncode == 0, done.stderr


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=200))
def test_a_content_may_grow_behind_what_was_added(content, more):
    crc = RunningCrc(len(content))
    crc.add(0, content)
    crc.grow(len(content) + len(more))
    for first, last in crc.missing():
        crc.add(first, (content + more)[first:last])
    assert crc.value == zlib.crc32(content + more)


def test_threads_may_add_at_once():
    content = np.random.default_rng(0).bytes(300_000)
    crc = RunningCrc(len(content))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda first: crc.add(first, content[first : first + 1000]),
                      range(0, len(content), 1000)))  # fmt: skip
    assert (crc.value, crc.missing()) == (zlib.crc32(content), [])


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(2, 4), (4, 6)], [(0, 2), (6, 10)]),
        ([(0, 5), (1, 3), (7, 8)], [(5, 7), (8, 10)]),
    ],
)
def test_gaps_are_what_extents_leave_over(extents, expected):
    assert list(gaps(extents, 10)) == expected


def test_extents_are_cut_into_pieces():
    assert list(pieces([(0, 5), (7, 8)], 2)) == [(0, 2), (2, 2), (4, 1), (7, 1)]
