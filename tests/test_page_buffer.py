import numpy as np
import pytest

from streamavg.page_buffer import PAGE_BYTES, PageBuffer


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("offset", [0, 8, 4088, 4096, 10_000, 2**40 + 24])
def test_a_window_begins_where_its_bytes_begin_in_a_page_of_the_file(offset):
    window = PageBuffer(5000).window(offset, 5000)
    assert address(window) % PAGE_BYTES == offset % PAGE_BYTES
    assert window.size == 5000


@pytest.mark.parametrize("offset", [1, 7, 4095, 12_345])
def test_numbers_in_a_window_are_aligned_unless_it_must_be_exact(offset):
    buffer = PageBuffer(5000)
    assert address(buffer.window(offset, 8)) % 8 == 0
    assert address(buffer.window(offset, 8, exact=True)) % PAGE_BYTES == offset % PAGE_BYTES


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (4095, 2), (5000, 5000), (8192, 4096)])
def test_the_pages_around_a_window_hold_it(offset, size):
    buffer = PageBuffer(5000)
    first, pages = buffer.pages(offset, size)
    window = buffer.window(offset, size, exact=True)
    assert first % PAGE_BYTES == address(pages) % PAGE_BYTES == pages.size % PAGE_BYTES == 0
    assert address(pages) + (offset - first) == address(window)
    pages[:] = 1
    assert np.all(window == 1)
