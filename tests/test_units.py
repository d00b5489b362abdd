"""Byte counts as people write and read them."""

import contextlib

import pytest

from streamavg import OptionError
from streamavg.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 * 1024**2),
        ("64mib", 64 * 1024**2),
        ("64 MiB", 64 * 1024**2),
        (" 64MiB ", 64 * 1024**2),
        ("64M", 64 * 1024**2),
        ("64MB", 64 * 1000**2),
        ("1.5GB", 1_500_000_000),
        ("2G", 2 * 1024**3),
        ("2GiB", 2 * 1024**3),
        ("1T", 1024**4),
        ("3TB", 3 * 1000**4),
        ("512K", 512 * 1024),
        ("512kb", 512_000),
        ("100", 100),
        ("100B", 100),
        ("0.5KiB", 512),
        (1, 1),
        (1048576, 1048576),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "64 miles", "64MiBs", "-1", "-64MiB", "1e9", "nan", "inf", "1,5GB", "0x40", "1 2",
     "6 4MiB", "1.MiB", ".5MiB"],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_showing_how_to_write_one(text):
    with pytest.raises(OptionError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("size", ["0", "0MiB", "0.1", 0, -1, -(2**40)])
def test_nothing_is_no_size(size):
    with pytest.raises(OptionError, match="more than zero"):
        parse_size(size)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "TiB"])
def test_sizes_beyond_all_numbers_are_refused_or_read(text):
    with contextlib.suppress(OptionError):
        assert parse_size(text) > 1024**5


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1 MiB"),
        (46_242_202, "44.1 MiB"),
        (1000 * 1024, "1000 KiB"),
        (1024**3, "1 GiB"),
        (1024**4, "1 TiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_sizes_are_written_with_three_digits(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("part", [999.4, 999.6, 1000, 1023.4])
def test_no_size_is_written_with_an_exponent(power, part):
    assert "e" not in format_size(part * 1024**power)


@pytest.mark.parametrize("size", [1, 1000, 1024, 10**6, 2**20, 10**9, 2**30 + 5, 10**13])
def test_what_is_written_reads_back_within_its_digits(size):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.005)
