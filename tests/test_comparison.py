"""What follows from the sums: distances, cosines, the outlier, names, JSON."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamavg.comparison import (
    OUTLIER_RATIO,
    Matrices,
    find_outlier,
    groups_of_equal,
    part_of,
    percent,
    short_names,
    shortened,
    squared_from_mean,
)
from streamavg.distances import Meter


def part(block, **options):
    sums = Meter(len(block)).measure(block)
    paths = [f"{i}.keras" for i in range(len(block))]
    return part_of("dense", 1, sums, paths, **{"keeps_matrices": True, **options})


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pairwise(function, vectors):
    return np.array([[function(a, b) for b in vectors] for a in vectors])


def points(*positions):
    """Distances between points on a line, in a plane, and so on."""
    places = np.array(positions, float).reshape(len(positions), -1)
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def outlier_of(*positions):
    found = find_outlier(points(*positions), [f"{i}" for i in range(len(positions))])
    return None if found is None else (int(found.checkpoint), found.ratio)


@pytest.mark.parametrize("count", [2, 3, 9, 30])
class TestAgainstTheTextbook:
    @pytest.fixture
    def block(self, count):
        generator = np.random.default_rng(count)
        return generator.normal(size=500) + generator.normal(size=(count, 500)) * 0.3

    def test_norms_and_their_scale(self, block):
        norms = np.linalg.norm(block, axis=1)
        np.testing.assert_allclose(part(block).norms, norms, rtol=1e-12)
        assert part(block).scale == pytest.approx(math.sqrt((norms**2).mean()))

    def test_distances(self, block):
        scale = math.sqrt((block**2).sum(axis=1).mean())
        expected = pairwise(lambda a, b: np.linalg.norm(a - b) / scale, block)
        found = part(block)
        np.testing.assert_allclose(found.matrices.relative_distances, expected, rtol=1e-10)
        others = expected.sum(axis=1) / (len(block) - 1)
        np.testing.assert_allclose(found.mean_distances, others, rtol=1e-10)

    def test_distances_from_the_mean_of_the_rest(self, block):
        scale = math.sqrt((block**2).sum(axis=1).mean())
        expected = [
            np.linalg.norm(row - np.delete(block, i, axis=0).mean(axis=0)) / scale
            for i, row in enumerate(block)
        ]
        np.testing.assert_allclose(part(block).distances_from_rest, expected, rtol=1e-10)

    def test_cosines(self, block):
        expected = pairwise(cosine, block)
        np.testing.assert_allclose(part(block).matrices.cosines, expected, atol=1e-12)
        others = (expected.sum(axis=1) - 1) / (len(block) - 1)
        np.testing.assert_allclose(part(block).mean_cosines, others, atol=1e-12)

    def test_cosines_of_the_differences_from_the_mean(self, block):
        expected = pairwise(cosine, block - block.mean(axis=0))
        np.testing.assert_allclose(part(block).matrices.cosines_from_mean, expected, atol=1e-9)

    def test_sign_agreement(self, block):
        expected = pairwise(lambda a, b: (np.sign(a) == np.sign(b)).mean(), block)
        np.testing.assert_allclose(part(block).matrices.sign_agreements, expected, rtol=1e-12)
        others = (expected.sum(axis=1) - 1) / (len(block) - 1)
        np.testing.assert_allclose(part(block).mean_sign_agreements, others, rtol=1e-12)


class TestOfNearlyEqualCheckpoints:
    """Differences of 1e-7 and less keep their digits."""

    @pytest.fixture
    def differences(self):
        return np.random.default_rng(1).normal(size=(6, 2000))

    @pytest.mark.parametrize("step", [1e-3, 1e-7, 1e-10])
    def test_cosines_of_differences_are_those_of_the_differences(self, differences, step):
        base = np.random.default_rng(2).normal(size=2000)
        block = base + step * differences
        actual = (block - base).astype(np.longdouble)  # what the rounding of the block left
        expected = pairwise(cosine, actual - actual.mean(axis=0))
        found = part(block).matrices.cosines_from_mean
        np.testing.assert_allclose(found, expected, atol=1e-9)

    @pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
    def test_what_cosines_lack_to_1_keeps_its_digits(self, step):
        base, direction = np.random.default_rng(3).normal(size=(2, 2000))
        direction -= base * (base @ direction) / (base @ base)
        block = np.stack([base, base + step * direction])
        angle = math.atan2(step * np.linalg.norm(direction), np.linalg.norm(base))
        lacking = 1 - part(block).matrices.cosines[0, 1]
        assert lacking == pytest.approx(2 * math.sin(angle / 2) ** 2, abs=2**-52, rel=1e-6)


class TestOfZerosAndEqualCheckpoints:
    def test_equal_checkpoints_are_at_0_with_cosine_1(self):
        found = part(np.repeat(np.random.default_rng(4).normal(size=(1, 999)), 5, axis=0))
        matrices = found.matrices
        assert (matrices.relative_distances == 0).all()
        assert (found.distances_from_rest == 0).all()
        for ones in (matrices.cosines, matrices.cosines_from_mean, matrices.sign_agreements):
            assert (ones == 1).all()

    def test_checkpoints_that_are_all_zero_are_equal(self):
        found = part(np.zeros((3, 20)))
        assert found.scale == 0
        assert (found.mean_distances == 0).all()
        assert (found.mean_cosines == 1).all()
        assert found.outlier is None

    def test_a_checkpoint_of_zeros_has_cosine_0_with_others(self):
        block = np.array([[0.0, 0, 0], [1, 2, 3], [0, 0, 0]])
        expected = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
        assert part(block).matrices.cosines.tolist() == expected

    def test_a_checkpoint_that_is_the_mean_has_no_direction_from_it(self):
        ends = np.random.default_rng(5).normal(size=(2, 400))
        found = part(np.stack([*ends, ends.mean(axis=0)])).matrices.cosines_from_mean
        np.testing.assert_allclose(found, [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-9)

    def test_no_number_is_ever_missing(self):
        for block in itertools.product([0.0, 1.0, -1.0], repeat=6):
            found = part(np.array(block).reshape(3, 2))
            matrices = found.matrices
            for numbers in (
                matrices.relative_distances, matrices.cosines, matrices.cosines_from_mean,
                matrices.sign_agreements, found.distances_from_rest,
            ):  # fmt: skip
                assert np.isfinite(numbers).all()


class TestTheOutlier:
    def test_is_the_one_that_is_far_from_the_rest(self):
        assert outlier_of(0, 1, 2, 100) == (3, pytest.approx(99 / 1.5))

    def test_of_three_is_measured_against_the_distance_of_the_other_two(self):
        assert outlier_of(0, 0.1, 5) == (2, pytest.approx(4.95 / 0.1))

    def test_does_not_hide_behind_the_distances_that_it_causes(self):
        """Plain means would differ by a factor of less than N - 1."""
        distances = points(0, 1, 1e6)
        plain = distances.sum(axis=1)
        assert plain.max() / np.sort(plain)[-2] < 2
        assert outlier_of(0, 1, 1e6)[1] > 1e5

    @pytest.mark.parametrize("count", [3, 4, 5, 10, 64])
    def test_is_none_of_a_steady_run(self, count):
        """Neither on a straight line nor in a random walk."""
        assert outlier_of(*range(count)) is None
        walk = np.random.default_rng(count).normal(size=(count, 2000)).cumsum(axis=0)
        assert outlier_of(*walk) is None

    @pytest.mark.parametrize("count", [3, 8, 40])
    def test_is_none_of_independent_runs(self, count):
        assert outlier_of(*np.random.default_rng(count).normal(size=(count, 1000))) is None

    def test_is_none_where_two_are_off_together(self):
        assert outlier_of(0, 1, 2, 100, 101) is None

    @pytest.mark.parametrize("count", [2, 1])
    def test_is_none_of_fewer_than_three(self, count):
        assert outlier_of(*(10.0**i for i in range(count))) is None

    def test_is_none_of_equal_checkpoints(self):
        assert outlier_of(1, 1, 1, 1) is None

    def test_has_no_ratio_where_the_others_are_equal(self):
        assert outlier_of(1, 1, 1.001, 1) == (2, None)

    def test_begins_at_the_ratio_that_is_stated(self):
        assert outlier_of(0, 1, 0.5 + OUTLIER_RATIO * 0.99) is None
        assert outlier_of(0, 1, 0.5 + OUTLIER_RATIO * 1.01)[0] == 2

    def test_tells_both_distances(self):
        found = find_outlier(points(0, 1, 2, 101), list("abcd"))
        assert (found.checkpoint, found.distance, found.others) == ("d", 100, 1.5)

    @settings(deadline=None, derandomize=True)
    @given(
        st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8),
        st.floats(0.1, 10),
        st.randoms(use_true_random=False),
    )
    def test_depends_on_neither_order_nor_scale(self, positions, scale, random):
        order = list(range(len(positions)))
        random.shuffle(order)
        plain = outlier_of(*positions)
        found = outlier_of(*(scale * positions[index] for index in order))
        if plain is not None and plain[1] is not None and plain[1] > 1.01 * OUTLIER_RATIO:
            assert found is not None
            assert positions[order[found[0]]] == positions[plain[0]]


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 12), st.integers(0, 2**32), st.floats(-5, 5))
def test_squared_distances_from_the_mean_follow_from_those_between(count, seed, exponent):
    block = 10**exponent * np.random.default_rng(seed).normal(size=(count, 7)).cumsum(axis=0)
    expected = ((block - block.mean(axis=0)) ** 2).sum(axis=1)
    found = squared_from_mean(points(*block) ** 2)
    np.testing.assert_allclose(found, expected, atol=1e-10 * expected.max())


def test_groups_of_equal_checkpoints_are_told():
    assert groups_of_equal(points(1, 2, 1, 3, 2), list("abcde")) == (("a", "c"), ("b", "e"))
    assert groups_of_equal(points(1, 2), list("ab")) == ()


def test_matrices_keep_two_numbers_a_pair():
    sums = Meter(30).measure(np.random.default_rng(1).normal(size=(30, 50)))
    matrices = Matrices.of(sums)
    held = sum(getattr(matrices, name).nbytes for name in ("_pairs", "_squared_norms"))
    assert held == Matrices.bytes_needed(30)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.0714, "7.1%"), (0.0996, "10%"), (0.34, "34%"), (1.412, "141%"),
     (0.00034, "0.034%"), (1.2e-8, "1.2e-06%")],
)  # fmt: skip
def test_shares_have_two_digits(share, text):
    assert percent(share) == text


class TestNames:
    def test_leave_out_the_folders_that_all_share(self):
        assert short_names(["/runs/a/1.keras", "/runs/a/2.keras"]) == ("1.keras", "2.keras")
        assert short_names(["a/best.h5", "b/best.h5"]) == ("a/best.h5", "b/best.h5")
        assert short_names(["best.h5", "b/best.h5"]) == ("best.h5", "b/best.h5")

    def test_that_fit_are_left_alone(self):
        assert shortened(["epoch-1.keras", "epoch-2.keras"], 20) == [
            "epoch-1.keras", "epoch-2.keras",
        ]  # fmt: skip

    def test_lose_first_the_words_that_all_share(self):
        names = [f"resnet50-imagenet-epoch-{n:03}.weights.h5" for n in (1, 2, 10)]
        assert shortened(names, 20) == ["…001.weights.h5", "…002.weights.h5", "…010.weights.h5"]
        assert shortened(names, 10) == ["…001…", "…002…", "…010…"]

    def test_are_cut_in_the_middle_if_that_is_not_enough(self):
        names = ["a" + 50 * "x" + "1", "b" + 50 * "x" + "2"]
        assert shortened(names, 9) == ["axxx…xxx1", "bxxx…xxx2"]

    def test_that_would_become_equal_are_numbered(self):
        names = [f"a{40 * 'x'}{middle}{40 * 'x'}b" for middle in "pqr"]
        found = shortened(names, 20)
        assert [name[:3] for name in found] == ["1: ", "2: ", "3: "]

    @settings(deadline=None, derandomize=True)
    @given(
        st.lists(st.text("ab/-. ", min_size=1, max_size=60), min_size=1, max_size=12),
        st.integers(8, 40),
    )
    def test_stay_as_different_as_they_were_and_fit(self, names, width):
        found = shortened(names, width)
        assert all(len(name) <= width for name in found)
        assert len(set(zip(names, found, strict=True))) == len(set(names)) == len(set(found))


def test_json_has_a_row_of_a_matrix_in_a_line_and_no_number_that_is_none():
    from streamavg.comparison import _pieces

    text = "".join(_pieces(part(np.zeros((3, 4))), ""))
    assert "[1.0, 1.0, 1.0]" in text
    assert set(json.loads(text)["matrices"]) == {
        "relative_distances", "cosines", "cosines_from_mean", "sign_agreements",
    }  # fmt: skip
    assert "NaN" not in text
    assert "Infinity" not in text
