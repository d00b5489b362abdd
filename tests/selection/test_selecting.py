"""Which checkpoints, in which order, with which coefficients, after whose structure."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.errors import CoefficientError, OptionError, UnknownFormatError
from streamavg.options import Settings
from streamavg.selection import select, select_paths, select_reference
from tests.builders import ROOT


class TestPaths:
    def test_keep_the_order_given(self):
        assert select_paths(["b", Path("a"), "c"]) == (Path("b"), Path("a"), Path("c"))

    def test_may_come_from_a_generator(self):
        assert len(select_paths(name for name in "ab")) == 2

    @pytest.mark.parametrize("paths", [[], ["a"]])
    def test_are_at_least_two(self, paths):
        with pytest.raises(OptionError, match=f"two checkpoints, {len(paths)} given"):
            select_paths(paths)

    @pytest.mark.parametrize("again", ["a.h5", "./a.h5", "folder/../a.h5"])
    def test_name_each_checkpoint_once(self, again):
        with pytest.raises(OptionError, match=r"the same file as a\.h5"):
            select_paths(["a.h5", "b.h5", again])

    def test_name_each_checkpoint_once_through_links_too(self, tmp_path):
        (tmp_path / "a.h5").touch()
        (tmp_path / "link.h5").symlink_to("a.h5")
        with pytest.raises(OptionError, match="the same file"):
            select_paths([tmp_path / "a.h5", tmp_path / "link.h5"])

    def test_of_a_repeated_checkpoint_lead_to_weights(self):
        with pytest.raises(OptionError, match="use --weights"):
            select_paths(["a", "a"])


class TestReference:
    PATHS = (Path("a.h5"), Path("b.h5"))

    def test_is_the_first_by_default(self):
        assert select_reference(self.PATHS, None) == Path("a.h5")

    @pytest.mark.parametrize("name", ["b.h5", Path("b.h5"), "./b.h5"])
    def test_is_the_one_named(self, name):
        assert select_reference(self.PATHS, name) == Path("b.h5")

    def test_may_be_named_by_its_absolute_path(self):
        assert select_reference(self.PATHS, Path("b.h5").absolute()) == Path("b.h5")

    def test_must_be_one_of_the_checkpoints(self):
        with pytest.raises(OptionError, match=r"c\.h5 is not one of the checkpoints"):
            select_reference(self.PATHS, "c.h5")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes empty files in the current folder, each modified a second after the one before."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for seconds, name in enumerate(names):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).touch()
            os.utime(name, (seconds, seconds))
        return list(names)

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the checkpoints of twelve epochs."""
    run = tmp_path_factory.mktemp("run")
    for epoch in range(1, 13):
        (run / f"ckpt-{epoch}.h5").touch()
    return run


def selected(paths, **options):
    return [str(path) for path in select(paths, Settings(**options)).paths]


SHELL = ["ckpt-1.h5", "ckpt-10.h5", "ckpt-100.h5", "ckpt-2.h5", "ckpt-9.h5"]
"""As a shell sorts them."""


class TestOrder:
    def test_is_as_given_by_default(self, folder):
        assert selected(folder(*SHELL)) == SHELL

    def test_is_natural_where_asked_for(self, folder):
        expected = ["ckpt-1.h5", "ckpt-2.h5", "ckpt-9.h5", "ckpt-10.h5", "ckpt-100.h5"]
        assert selected(folder(*SHELL), order="natural") == expected

    def test_is_by_time_where_asked_for(self, folder):
        names = folder("b.h5", "a.h5", "c.h5")
        assert selected(sorted(names), order="mtime") == names

    def test_by_time_is_refused_for_files_of_one_time(self, folder):
        names = folder("a.h5", "b.h5", "c.h5")
        os.utime("c.h5", (1, 1))
        with pytest.raises(OptionError, match=r"b\.h5 and c\.h5 were modified at the same time"):
            selected(names, order="mtime")

    def test_by_time_needs_the_files(self, folder):
        with pytest.raises(UnknownFormatError, match=r"^no\.h5: cannot be opened: No such file"):
            selected([*folder("a.h5"), "no.h5"], order="mtime")

    @pytest.mark.parametrize(
        "options", [{"last": 5}, {"method": "ema", "decay": 0.9},
                    {"best": 5, "scores": dict.fromkeys(SHELL, 1), "maximize": True}],
        ids=["last", "ema", "best"],
    )  # fmt: skip
    def test_is_natural_by_default_where_it_decides_something(self, folder, options):
        expected = selected(folder(*SHELL), order="natural")
        assert selected(SHELL, **options) == expected
        assert select(SHELL, Settings(**options)).rules.order == "natural"
        assert selected(SHELL, order="given", **options) == SHELL

    def test_that_contradicts_the_epochs_is_refused_unless_asked_for(self, folder):
        names = folder("0.5-epoch1.h5", "0.4-epoch2.h5", "0.6-epoch3.h5")
        with pytest.raises(OptionError, match=r"0\.4-epoch2\.h5, of epoch 2, comes before 0\.5"):
            selected(names, last=2)
        with pytest.raises(OptionError, match="comes before"):
            selected(names, method="ema", decay=0.5)
        assert selected(names, last=2, order="given") == names[1:]
        assert selected(names, last=2, order="mtime") == names[1:]
        assert selected(names, last=2, order="natural") == ["0.5-epoch1.h5", "0.6-epoch3.h5"]

    def test_of_two_runs_is_refused_unless_asked_for(self, folder):
        names = folder("a/ckpt-1.h5", "a/ckpt-2.h5", "b/ckpt-1.h5", "b/ckpt-2.h5")
        with pytest.raises(OptionError, match="--order"):
            selected(names, last=3)
        assert selected(names, last=3, order="given") == names[1:]


class TestLast:
    def test_takes_the_last_epochs_whatever_the_shell_did(self, folder):
        assert selected(folder(*SHELL), last=2) == ["ckpt-10.h5", "ckpt-100.h5"]

    def test_takes_the_last_given_where_asked_for(self, folder):
        assert selected(folder(*SHELL), last=2, order="given") == ["ckpt-2.h5", "ckpt-9.h5"]

    @given(st.permutations(range(1, 13)), st.integers(2, 12))
    def test_takes_exactly_so_many_in_whatever_order_they_come(self, run, epochs, count):
        found = select([run / f"ckpt-{epoch}.h5" for epoch in epochs], Settings(last=count))
        expected = [f"ckpt-{epoch}.h5" for epoch in range(13 - count, 13)]
        assert [path.name for path in found.paths] == expected

    def test_tells_which_were_left_out(self, folder):
        rules = select(folder(*SHELL), Settings(last=3)).rules
        assert (rules.given, rules.picked) == (5, "last")
        assert [entry.path for entry in rules.left_out] == ["ckpt-1.h5", "ckpt-2.h5"]

    @pytest.mark.parametrize("option", ["last", "best"])
    @pytest.mark.parametrize(
        ("count", "problem"),
        [
            (6, "only 5 checkpoints given"),
            (1, "at least two"),
            (0, "at least two"),
            (-3, "at least two"),
            (2.5, "a whole number"),
            ("3", "a whole number"),
        ],
    )
    def test_takes_no_fewer(self, folder, option, count, problem):
        scores = {"scores": dict.fromkeys(SHELL, 1), "minimize": True} if option == "best" else {}
        with pytest.raises(OptionError, match=f"^--{option} ") as caught:
            selected(folder(*SHELL), **{option: count}, **scores)
        assert problem in str(caught.value)

    def test_does_not_leave_out_what_does_not_exist(self, folder):
        with pytest.raises(UnknownFormatError, match=r"^ckpt-0\.h5: cannot be opened"):
            selected([*folder(*SHELL), "ckpt-0.h5"], last=2)

    def test_counts_no_file_twice(self, folder):
        with pytest.raises(OptionError, match="the same file"):
            selected([*folder(*SHELL), "./ckpt-100.h5"], last=2)


class TestBest:
    SCORES: dict = dict(zip(SHELL, [0.5, 0.1, 0.4, 0.3, 0.2], strict=True))  # noqa: RUF012

    def test_takes_the_lowest_losses_in_merge_order(self, folder):
        names = folder(*SHELL)
        found = select(names, Settings(best=3, scores=self.SCORES, metric="loss"))
        assert [str(path) for path in found.paths] == ["ckpt-2.h5", "ckpt-9.h5", "ckpt-10.h5"]
        assert found.scores == (0.3, 0.2, 0.1)
        assert [(e.path, e.score) for e in found.rules.left_out] == [
            ("ckpt-1.h5", 0.5),
            ("ckpt-100.h5", 0.4),
        ]

    def test_takes_the_highest_accuracies(self, folder):
        names = folder(*SHELL)
        assert selected(names, best=2, scores=self.SCORES, metric="accuracy") == [
            "ckpt-1.h5",
            "ckpt-100.h5",
        ]

    @pytest.mark.parametrize("maximize", [True, False])
    def test_takes_the_earlier_of_equals_and_says_so(self, folder, maximize):
        names = folder(*SHELL)
        scores = dict.fromkeys(names, 0.5) | {"ckpt-9.h5": 1.0 if maximize else 0.0}
        options = {"maximize": maximize, "minimize": not maximize}
        for order in (names, names[::-1]):
            found = select(order, Settings(best=3, scores=scores, **options))
            assert [str(p) for p in found.paths] == ["ckpt-1.h5", "ckpt-2.h5", "ckpt-9.h5"]
            assert found.notes == (
                "ckpt-1.h5, ckpt-2.h5, ckpt-10.h5 and 1 more have the same score, 0.5: the first "
                "2 of these 4 were taken.",
            )

    def test_says_nothing_of_equals_that_are_all_taken_or_all_left(self, folder):
        names = folder("a.h5", "b.h5", "c.h5", "d.h5")
        for scores in ([1, 1, 2, 3], [1, 2, 3, 3]):
            mapping = dict(zip(names, scores, strict=True))
            assert select(names, Settings(best=2, scores=mapping, minimize=True)).notes == ()

    @given(st.lists(st.integers(0, 9), min_size=3, max_size=9), st.data())
    def test_takes_what_a_stable_sort_puts_first(self, scores, data):
        names = sorted(map(str, (ROOT / "streamavg").glob("*.py")))[: len(scores)]
        mapping = dict(zip(names, scores, strict=True))
        count = data.draw(st.integers(2, len(scores)))
        expected = sorted(sorted(names, key=mapping.__getitem__)[:count])
        assert selected(names, best=count, scores=mapping, minimize=True) == expected


class TestCoefficients:
    COUNTS: dict = {"b.h5": 300, "a.h5": 100, "c.h5": 600}  # noqa: RUF012

    def of(self, paths, **options):
        return select(paths, Settings(**options)).coefficients.values

    def test_are_uniform_by_default(self, folder):
        found = select(folder("a.h5", "b.h5"), Settings())
        assert found.coefficients.numerators == (1.0, 1.0)
        assert found.rules.coefficients == "uniform"

    def test_find_their_checkpoints_by_path(self, folder):
        names = folder("a.h5", "b.h5", "c.h5")
        assert self.of(names, weights=self.COUNTS, normalize=True) == (0.1, 0.3, 0.6)
        assert self.of(names[::-1], weights=self.COUNTS, normalize=True) == (0.6, 0.3, 0.1)

    def test_are_those_of_the_checkpoints_that_were_picked(self, folder):
        names = folder("a.h5", "b.h5", "c.h5")
        found = select(names, Settings(last=2, weights=self.COUNTS, normalize=True))
        assert found.coefficients.values == (1 / 3, 2 / 3)
        assert found.notes == ()

    def test_sum_to_one_also_in_a_file(self, folder):
        with pytest.raises(CoefficientError, match=r"sum to 1000, not 1\. Add --normalize"):
            self.of(folder("a.h5", "b.h5", "c.h5"), weights=self.COUNTS)

    def test_of_other_files_are_told(self, folder):
        found = select(folder("a.h5", "b.h5"), Settings(weights=self.COUNTS, normalize=True))
        assert found.notes == ("the mapping: c.h5: not among the checkpoints given, not used.",)

    @pytest.mark.parametrize(
        ("weights", "problem"),
        [
            ({"a.h5": 1}, "has no weight for b.h5"),
            ({"a.h5": 1, "b.h5": -1}, "for b.h5: the weight is -1. Weights are not negative"),
            ({"a.h5": 0, "b.h5": 0}, "all weights are 0"),
        ],
    )
    def test_in_a_file_are_checked(self, folder, weights, problem):
        with pytest.raises(CoefficientError, match=r"^--weights: ") as caught:
            self.of(folder("a.h5", "b.h5"), weights=weights, normalize=True)
        assert problem in str(caught.value)

    def test_in_a_file_are_numbers(self, folder):
        with pytest.raises(OptionError, match="the weight is 'many', expected a number"):
            self.of(folder("a.h5", "b.h5"), weights={"a.h5": 1, "b.h5": "many"})

    def test_in_a_file_are_one_a_path(self, folder):
        folder("a.h5", "b.h5")
        Path("w.csv").write_text("path,samples,loss\na.h5,1,2\nb.h5,1,2\n")
        with pytest.raises(CoefficientError, match="found the columns 'samples', 'loss'"):
            self.of(["a.h5", "b.h5"], weights="w.csv")
        Path("w.csv").write_text("epoch,weight\n0,1\n1,2\n")
        with pytest.raises(CoefficientError, match="expected paths and one number each"):
            self.of(["a.h5", "b.h5"], weights="w.csv")

    def test_follow_the_scores_with_softmax(self, folder):
        names = folder("a.h5", "b.h5")
        scores = {"a.h5": 0.9, "b.h5": 0.8}
        more = self.of(names, softmax=0.1, scores=scores, metric="accuracy")
        less = self.of(names, softmax=0.1, scores=scores, metric="loss")
        assert more == less[::-1]
        assert more[0] / more[1] == pytest.approx(2.718281828)

    def test_follow_the_scores_of_the_best(self, folder):
        names = folder("a.h5", "b.h5", "c.h5")
        scores = dict(zip(names, [3, 1, 2], strict=True))
        found = select(names, Settings(best=2, softmax=1, scores=scores, minimize=True))
        assert found.coefficients.values == pytest.approx((0.731058578, 0.268941421))

    def test_that_vanish_are_told(self, folder):
        names = folder("a.h5", "b.h5")
        scores = {"a.h5": 1, "b.h5": 2}
        found = select(names, Settings(softmax=1e-5, scores=scores, maximize=True))
        assert found.coefficients.values == (0, 1)
        assert found.notes == ("a.h5: too small a coefficient, 0 takes its place.",)

    def test_decay_from_the_newest_on(self, folder):
        names = folder("ckpt-1.h5", "ckpt-10.h5", "ckpt-9.h5")
        found = select(names, Settings(method="ema", decay=0.5))
        assert [str(path) for path in found.paths] == ["ckpt-1.h5", "ckpt-9.h5", "ckpt-10.h5"]
        assert found.coefficients.values == (0.25, 0.25, 0.5)


class TestContradictions:
    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"last": 2, "best": 2}, ("--last", "--best")),
            ({"maximize": True, "minimize": True}, ("--maximize", "--minimize")),
            ({"weights": [1, 0], "softmax": 1}, ("--weights", "--softmax")),
            ({"weights": {"a": 1}, "softmax": 1}, ("--weights", "--softmax")),
            ({"weights": [1, 0], "method": "ema"}, ("--weights", "--method ema")),
            ({"softmax": 1, "method": "ema"}, ("--softmax", "--method ema")),
            ({"weights": [1, 0], "last": 2}, ("a list of --weights", "--last")),
            ({"weights": [1, 0], "best": 2}, ("a list of --weights", "--best")),
            ({"weights": [1, 0], "order": "natural"}, ("a list of --weights", "--order natural")),
            ({"weights": [1, 0], "order": "mtime"}, ("a list of --weights", "--order mtime")),
            ({"best": 2}, ("--best", "--scores")),
            ({"softmax": 1}, ("--softmax", "--scores")),
            ({"scores": "filename"}, ("--scores", "--best", "--softmax")),
            ({"metric": "loss"}, ("--metric", "--scores")),
            ({"maximize": True}, ("--maximize", "--scores")),
            ({"minimize": True}, ("--minimize", "--scores")),
            ({"decay": 0.9}, ("--decay", "--method ema")),
            ({"method": "ema"}, ("--method ema", "--decay")),
            ({"method": "median", "weights": [1, 0]}, ("--weights", "--method median")),
            ({"method": "median", "weights": {"a": 1}}, ("--weights", "--method median")),
            ({"method": "median", "softmax": 1}, ("--softmax", "--method median")),
            ({"method": "median", "decay": 0.9}, ("--decay", "--method median")),
            ({"method": "median", "trim": 0.1}, ("--trim", "--method trimmed-mean")),
            ({"trim": 0.1}, ("--trim", "--method trimmed-mean")),
            ({"method": "trimmed-mean", "weights": [1, 0]}, ("--weights", "--method trimmed-mean")),
            ({"method": "trimmed-mean", "softmax": 1}, ("--softmax", "--method trimmed-mean")),
            ({"method": "trimmed-mean", "decay": 0.9}, ("--decay", "--method trimmed-mean")),
        ],
    )
    def test_name_all_options(self, options, names):
        with pytest.raises(OptionError) as caught:
            select(["a.h5", "b.h5"], Settings(**options))
        assert all(name in str(caught.value) for name in names)

    def test_are_none_between_a_list_of_weights_and_the_order_given(self):
        found = select(["b.h5", "a.h5"], Settings(weights=[0.75, 0.25], order="given"))
        assert found.coefficients.values == (0.75, 0.25)
