"""Names in the order that people expect."""

from pathlib import Path

import pytest

from streamavg.natural_order import natural_key, natural_path_key


def test_numbers_in_names_sort_by_value():
    names = ["dense_10", "10", "dense", "2", "dense_2", "conv2d_1", "conv10d", "a"]
    expected = ["2", "10", "a", "conv2d_1", "conv10d", "dense", "dense_2", "dense_10"]
    assert sorted(names, key=natural_key) == expected


def test_digits_of_other_scripts_are_letters():
    assert natural_key("\u0663") == ((1, 0, "\u0663"),)


@pytest.mark.parametrize(
    "expected",
    [
        ["ckpt-2.h5", "ckpt-10.h5", "ckpt-100.h5", "ckpt-1000.h5"],
        ["epoch-09.keras", "epoch-10.keras"],
        ["fold-2/best.h5", "fold-10/a.h5"],
        ["run-1/ckpt-9.h5", "run-1/ckpt-10.h5", "run-2/ckpt-1.h5"],
        ["ckpt-02.h5", "ckpt-2.h5", "ckpt-03.h5"],
    ],
    ids=" ".join,
)
def test_paths_sort_folder_by_folder_whatever_order_they_come_in(expected):
    for names in (sorted(expected), sorted(expected, reverse=True)):
        found = sorted(map(Path, names), key=natural_path_key)
        assert [str(path) for path in found] == expected


def test_paths_sort_alike_whether_they_are_relative_or_absolute():
    first, second, third = Path("ckpt-1.h5"), Path("ckpt-2.h5").absolute(), Path("ckpt-10.h5")
    assert sorted([third, second, first], key=natural_path_key) == [first, second, third]
