"""The tables of docs/strategies.md, made from numbers that are made up."""

import re

import compare_strategies
import digits
import numpy as np
import pytest

from streamavg.evaluation.bootstrap import Interval
from streamavg.evaluation.verdict import compare
from tests.builders import ROOT

PAGE = (ROOT / "docs" / "strategies.md").read_text("utf-8")
MEASURED = PAGE.partition(digits.BEGIN)[2].partition(digits.END)[0]


def difference(where, metric, first, second, half):
    middle = first - second
    interval = Interval(middle - half, middle + half, 2000)
    return compare(where, metric, (first, second), interval, metric == "accuracy", None)


def outcome(seed, test_accuracy, strategy="greedy soup", kind=compare_strategies.RUN):
    return compare_strategies.Outcome(
        kind, strategy, seed, 3,
        (
            difference("validation", "accuracy", 0.96, 0.90, 0.01),
            difference("validation", "loss", 0.10, 0.30, 0.05),
            difference("test", "accuracy", test_accuracy, 0.90, 0.015),
            difference("test", "loss", 0.20, 0.30, 0.25),
        ),
    )  # fmt: skip


def cells(table):
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def test_scores_are_means_over_seeds_below_those_of_the_best_single():
    single, soup = cells(compare_strategies.score_table([outcome(1, 0.92), outcome(2, 0.94)]))[2:]
    assert single == ["best single", "1", "90.00%", "0.3000", "90.00%", "0.3000"]
    assert soup == ["greedy soup", "3", "96.00%", "0.1000", "93.00%", "0.2000"]


def test_seeds_are_counted_by_what_their_intervals_say():
    pytest.importorskip("scipy")
    results = [outcome(1, 0.93), outcome(2, 0.92), outcome(3, 0.90), outcome(4, 0.87)]
    (row,) = cells(compare_strategies.difference_table(results))[2:]
    name, accuracy, found, loss, on_loss, chosen, beyond = row
    assert (name, found, on_loss) == ("greedy soup", "2 / 1 / 1", "0 / 0 / 4")
    assert accuracy.startswith("+0.50 (")
    assert loss == "-0.100 (-0.100 to -0.100)"
    assert chosen == "+6.00"
    assert beyond.startswith("+5.50 (")


def test_the_interval_over_seeds_is_that_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    values = [0.5, 1.25, -0.75, 2.0, 0.25]
    found = compare_strategies.estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), expected)
    assert found.mean == pytest.approx(0.65)


def test_the_page_has_a_table_of_scores_and_one_of_differences_for_each_set():
    for title in compare_strategies.SETS.values():
        section = MEASURED.partition(f"### {title}\n")[2].partition("###")[0]
        scores, differences = re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)
        (_, _, single, *averages) = cells(scores)
        assert single[0] == compare_strategies.SINGLE
        assert [row[0] for row in averages] == [row[0] for row in cells(differences)[2:]]


def test_every_seed_is_counted_on_the_page():
    counts = re.findall(r"\| (\d+) / (\d+) / (\d+) \|", MEASURED)
    assert counts
    assert {sum(map(int, found)) for found in counts} == {len(compare_strategies.SEEDS)}


def test_what_was_measured_goes_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{digits.BEGIN}\nold\n{digits.END}\nafter\n", encoding="utf-8")
    digits.write_measured(page, "new")
    assert page.read_text("utf-8") == f"before\n{digits.BEGIN}\nnew\n{digits.END}\nafter\n"
