"""What distances between checkpoints mean for their average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.findings import FindingKind
from streamavg.judging import DISTANT, NEAR_DUPLICATES, groups_of_zeros, judge, linked, some
from streamavg.sampling import SampledDistances


def on_a_line(*places):
    """Relative distances of checkpoints that lie on a straight line."""
    points = np.array(places, float)
    return np.abs(points[:, None] - points[None, :])


def judged(relative, in_layers=None, equal=()):
    paths = [f"ckpt-{i}" for i in range(len(relative))]
    in_layers = relative if in_layers is None else in_layers
    return list(judge(SampledDistances(relative, in_layers, 10, 10), paths, equal))


def only(findings):
    (finding,) = findings
    return finding


class TestDistantStates:
    def test_are_none_among_checkpoints_of_one_run(self):
        assert judged(on_a_line(0, 0.1, 0.2)) == []

    def test_begin_beyond_the_threshold(self):
        assert judged(on_a_line(0, DISTANT)) == []
        assert only(judged(on_a_line(0, DISTANT * 1.001))).kind == FindingKind.DISTANT

    def test_are_none_where_steps_are_small_but_many(self):
        """A run that walks far is one run."""
        assert judged(on_a_line(*np.arange(10) * 0.3)) == []

    def test_name_the_outlier(self):
        finding = only(judged(on_a_line(0, 0.1, 1.2, 0.2)))
        assert finding.paths == ("ckpt-2",)
        assert finding.text.startswith(
            "ckpt-2: is the outlier, 110% away from the 3 checkpoints that are close to each other."
        )

    def test_name_each_of_several_that_do_not_belong(self):
        findings = judged(on_a_line(0, 5, 0.1, 9, 0.2))
        assert [finding.paths for finding in findings] == [("ckpt-1",), ("ckpt-3",)]
        assert "outlier" not in findings[0].text

    def test_say_of_independent_runs_how_far_they_are(self):
        finding = only(judged(on_a_line(0, 1.1, 2.5)))
        assert finding.paths == ("ckpt-0", "ckpt-1", "ckpt-2")
        assert "are 110% or more apart, as those of independent runs are" in finding.text

    def test_say_which_groups_there_are_if_none_is_larger(self):
        finding = only(judged(on_a_line(0, 1, 0.1, 1.1)))
        assert finding.text.startswith(
            "there are 2 groups that are more than 50% apart: ckpt-0 and ckpt-2; ckpt-1 and ckpt-3."
        )
        assert finding.paths == ("ckpt-0", "ckpt-1", "ckpt-2", "ckpt-3")


class TestDuplicates:
    def test_near_ones_are_named(self):
        finding = only(judged(on_a_line(0, 0.1, 0.1 + NEAR_DUPLICATES / 2)))
        assert finding.kind == FindingKind.NEAR_DUPLICATES
        assert finding.paths == ("ckpt-1", "ckpt-2")

    def test_are_judged_by_the_layer_that_differs_most(self):
        """A frozen backbone makes all distances small; a new head does not."""
        assert judged(on_a_line(0, NEAR_DUPLICATES / 2), on_a_line(0, 0.2)) == []

    def test_equal_ones_are_not_near_ones_too(self):
        finding = only(judged(on_a_line(0, 0.1, 0), equal=[[0, 2]]))
        assert finding.kind == FindingKind.SAME_VALUES
        assert finding.paths == ("ckpt-0", "ckpt-2")
        assert "count 2-fold" in finding.text

    def test_that_are_equal_in_the_sample_alone_are_near_ones(self):
        assert only(judged(on_a_line(0, 0.1, 0))).kind == FindingKind.NEAR_DUPLICATES

    def test_of_an_equal_pair_the_first_stands_for_both(self):
        places = on_a_line(0, 0, NEAR_DUPLICATES / 2)
        _, near = judged(places, equal=[[0, 1]])
        assert near.paths == ("ckpt-0", "ckpt-2")


class TestGroups:
    def test_of_zeros(self):
        assert groups_of_zeros(on_a_line(1, 2, 1, 3, 2, 2)) == [[0, 2], [1, 4, 5]]

    @given(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    def test_are_runs_of_neighbours_on_a_line(self, places):
        """A naive oracle: sort the places and cut where a gap is too wide."""
        order = sorted(range(len(places)), key=places.__getitem__)
        expected, last = [], None
        for index in order:
            if last is None or places[index] - places[last] > 2:
                expected.append([])
            expected[-1].append(index)
            last = index
        found = linked(on_a_line(*places) <= 2)
        assert sorted(map(sorted, expected)) == sorted(found)


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "a"), (2, "a and b"), (3, "a, b and c"), (4, "a, b, c and 1 more")],
)
def test_names_are_listed_in_words(count, text):
    assert some("abcd"[:count]) == text
