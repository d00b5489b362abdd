"""Threads work, and results come in the order of the work."""

import threading
import time
from contextlib import closing

import pytest

from streamavg.ordered import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads):
    def slow_if_even(number):
        if number % 2 == 0:
            time.sleep(0.002)
        return number * number

    found = in_order(slow_if_even, range(20), threads)
    assert list(found) == [number * number for number in range(20)]


def test_items_are_asked_for_as_they_are_needed():
    asked = []

    def items():
        for number in range(100):
            asked.append(number)
            yield number

    with closing(in_order(lambda number: number, items(), 2)) as found:
        assert next(found) == 0
        assert asked == [0, 1, 2]


def test_the_error_of_the_first_item_is_raised_and_no_further_item_is_begun():
    begun = []

    def fail_from_three(number):
        begun.append(number)
        if number >= 3:
            raise ValueError(str(number))
        return number

    with pytest.raises(ValueError, match=r"^3$"):
        list(in_order(fail_from_three, range(100), 2))
    assert max(begun) <= 3 + 2


def test_what_is_closed_leaves_no_thread_behind():
    before = threading.active_count()
    with closing(in_order(lambda number: number, iter(range(10**9)), 3)) as found:
        next(found)
    assert threading.active_count() == before
