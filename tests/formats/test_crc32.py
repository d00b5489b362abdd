import itertools
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.formats.crc32 import RunningCrc, fastest, gaps, pieces


def without_isal():
    """What is taken where isal is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "isal", None)
        return fastest.__wrapped__()


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


CRCS = {"fastest": fastest, "zlib": without_isal}


@pytest.mark.parametrize("crc", CRCS.values(), ids=CRCS)
@given(content=st.binary(max_size=500))
def test_whichever_function_is_taken_gives_the_number_of_zlib(crc, content):
    assert crc().of(content) == zlib.crc32(content)
    assert crc().of(memoryview(content)) == zlib.crc32(content)


@pytest.mark.parametrize("crc", CRCS.values(), ids=CRCS)
@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_a_shifted_crc_is_what_bytes_add_with_others_behind_them(crc, first, second):
    whole = crc().shifted(crc().of(first), len(second)) ^ crc().of(second)
    assert whole == zlib.crc32(first + second)


@pytest.mark.parametrize("crc", CRCS.values(), ids=CRCS)
def test_shifts_as_long_as_large_files_add_up(crc):
    once = crc().shifted(crc().shifted(12345, 3 * 2**33 + 1), 2**40)
    assert once == crc().shifted(12345, 3 * 2**33 + 1 + 2**40)


def test_isal_is_taken_where_it_is_installed():
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    assert fastest().of is isal_zlib.crc32


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
