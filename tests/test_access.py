import pytest

from streamavg.access import CACHE_BYTES_PER_FILE, Access, choose_access, probed_offsets

ROOM = 8 * CACHE_BYTES_PER_FILE


@pytest.mark.parametrize(
    ("asked", "are_cached", "cache_bytes", "expected"),
    [
        ("auto", [True, True, True], None, Access.CACHED),
        ("auto", [False, False, True], None, Access.READ_AHEAD),
        ("auto", [True, True, None], None, Access.CACHED),
        ("auto", [None, None], None, Access.READ_AHEAD),
        ("auto", [], None, Access.READ_AHEAD),
        ("auto", [True, True], ROOM, Access.CACHED),
        ("auto", [True, True], ROOM - 1, Access.DIRECT),
        ("buffered", [True, True], ROOM - 1, Access.CACHED),
        ("buffered", [False], 0, Access.READ_AHEAD),
        ("direct", [True, True], None, Access.DIRECT),
    ],
)
def test_what_is_seen_decides_unless_the_user_does(asked, are_cached, cache_bytes, expected):
    assert choose_access(asked, are_cached, 8, cache_bytes) == expected


@pytest.mark.parametrize("size", [0, 1, 3, 10**12])
def test_the_places_that_are_looked_up_lie_in_the_file(size):
    offsets = probed_offsets(size)
    assert all(0 <= offset < size for offset in offsets)
    assert bool(offsets) == bool(size)
