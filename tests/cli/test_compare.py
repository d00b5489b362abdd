"""`streamavg compare`: the answer first, then a row a checkpoint."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from streamavg import compare
from streamavg.cli.compare import command
from tests.builders import (
    DIGITS,
    LEGACY,
    MISMATCHED,
    contents,
    dense_legacy,
    run,
    run_python,
    write_weights,
)

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]


def shown(*arguments):
    arguments = [*map(str, arguments), "--quiet"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def answer(*arguments):
    return shown(*arguments).splitlines()[0]


def rows(*arguments):
    """The cells of the table, header first."""
    lines = shown(*arguments).splitlines()
    start = next(i for i, line in enumerate(lines) if "checkpoint  " in line)
    end = lines.index("", start)
    return [re.split(r"\s{2,}", line.strip()) for line in lines[start:end]]


@pytest.fixture
def points(tmp_path):
    """Checkpoints of one layer, near 100 in all elements but the first."""

    def make(*positions, layer="layers/dense"):
        return [
            write_weights(
                tmp_path / f"ckpt-{i:02}.weights.h5",
                {layer: [np.float64([position, *([100.0] * 24)])]},
            )
            for i, position in enumerate(positions)
        ]

    return make


class TestTheFirstLine:
    def test_names_the_outlier_and_by_how_much(self, points):
        assert answer(*points(0, 1, 2, 1, 9.5)) == (
            "ckpt-04.weights.h5 is 6.4x farther from the rest than any other: 1.7% against 0.27%"
        )

    def test_says_that_none_stands_out_and_how_far_they_are(self):
        assert answer(*THREE) == "no checkpoint stands out: any two are 5.6% to 8.5% apart"

    def test_says_that_of_two_none_can_be_told(self):
        paths = [LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20)]
        assert answer(*paths) == (
            "keras3-epoch-19.h5 and keras3-epoch-20.h5 are 5.6% apart; of two, none can be told to "
            "stand out"
        )

    @pytest.mark.parametrize(("count", "who"), [(2, "both"), (4, "all 4")])
    def test_says_that_all_are_equal(self, points, count, who):
        assert answer(*points(*[3.0] * count)) == f"{who} checkpoints hold the same values"

    def test_says_that_all_but_one_are_equal(self, points):
        assert answer(*points(1, 1, 5, 1)) == (
            "ckpt-02.weights.h5 is the only one that differs (0.82%): the other 3 are equal"
        )

    def test_does_not_count_beyond_a_thousand(self, points):
        assert "is over 1000x farther" in answer(*points(0, 1e-6, 5))

    def test_is_followed_by_copies_among_the_checkpoints(self, points):
        lines = shown(*points(1, 2, 1, 3)).splitlines()
        assert lines[1] == "ckpt-00.weights.h5, ckpt-02.weights.h5 hold the same values"

    def test_counts_copies_if_there_are_many(self, points):
        lines = shown(*points(1, 2, *[3] * 8)).splitlines()
        assert lines[1].endswith("ckpt-06.weights.h5 and 3 more hold the same values")

    def test_is_followed_by_layers_in_which_another_stands_out(self, tmp_path):
        generator = np.random.default_rng(1)
        paths = []
        for i in range(5):
            layers = {"layers/large": [10 + generator.normal(size=20_000).astype("f4")]}
            layers |= {
                f"layers/small_{k}": [(1 + (k + 5) * (i == 3)) * generator.normal(size=50)]
                for k in range(5)
            }
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", layers))
        lines = shown(*paths).splitlines()
        assert lines[0].startswith("no checkpoint stands out")
        told = [line.split(", ")[0] for line in lines[1:4]]
        assert set(told) < {f"in layers/small_{k}" for k in range(5)}
        assert all(", 3.weights.h5 is " in line for line in lines[1:4])
        assert lines[4] == "and so in 2 more layers, see --json or --plot"


class TestTheTable:
    def test_has_a_row_for_each_checkpoint(self):
        assert rows(*THREE) == [
            ["checkpoint", "norm", "distance", "cosine", "signs", "differs most in"],
            ["epoch-18.keras", "15.325", "7.1%", "0.9982", "95.1%", "layers/conv2d (40%)"],
            ["epoch-19.keras", "15.725", "5.6%", "0.9988", "95.8%", "layers/conv2d (73%)"],
            ["epoch-20.keras", "16.158", "7.1%", "0.9983", "95.7%", "layers/conv2d (39%)"],
        ]

    def test_marks_the_outlier(self, points):
        marks = [cells[0] == ">" for cells in rows(*points(0, 1, 50, 2))[1:]]
        assert marks == [False, False, True, False]

    def test_has_64_rows_for_64_checkpoints(self, points):
        table = rows(*points(*range(64)))
        assert [cells[0] for cells in table[1:]] == [f"ckpt-{i:02}.weights.h5" for i in range(64)]

    def test_names_folders_where_names_are_not_enough(self, tmp_path):
        for fold, path in enumerate(THREE):
            (tmp_path / f"fold-{fold}").mkdir()
            shutil.copy(path, tmp_path / f"fold-{fold}" / "best.keras")
        table = rows(*sorted(tmp_path.glob("*/best.keras")))
        assert [cells[0] for cells in table[1:]] == [f"fold-{i}/best.keras" for i in range(3)]

    def test_shortens_long_names_and_keeps_them_different(self, tmp_path):
        paths = [
            shutil.copy(path, tmp_path / f"{'long-' * 12}run-{i}-{'x' * 10}.keras")
            for i, path in enumerate(THREE)
        ]
        names = [cells[0] for cells in rows(*paths)[1:]]
        assert [name[:3] for name in names] == ["…0-", "…1-", "…2-"]

    def test_has_no_layer_for_a_checkpoint_that_does_not_differ(self, points):
        assert [cells[-1] for cells in rows(*points(1, 1))[1:]] == ["-", "-"]

    def test_names_variables_of_the_model_itself(self, points):
        assert rows(*points(1, 2, layer=""))[1][-1] == "(model) (100%)"

    def test_aligns_its_columns(self, points):
        lines = shown(*points(0, 1, 50, 2)).splitlines()[2:7]
        ends = {line.index("layers/dense") for line in lines[1:]}
        assert ends == {lines[0].index("differs most in")}

    def test_says_what_its_columns_are(self):
        text = shown(*THREE)
        assert "478 values in 3 layers; distances relative to a norm of 15.74." in text
        assert "mean over the other checkpoints" in text


class TestForPrograms:
    def test_json_is_the_comparison_of_the_library(self):
        document = json.loads(shown(*THREE, "--json"))
        expected = json.loads(compare(THREE).to_json())
        for name in ("whole", "layers", "checkpoints", "identical"):
            assert document[name] == expected[name]

    def test_json_is_alone_on_stdout(self, tmp_path):
        done = run("compare", *THREE, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["schema_version"] == 1
        assert "Compared 3 checkpoints" in done.stderr

    def test_json_has_every_difference_of_checkpoints_that_do_not_match(self, tmp_path):
        paths = sorted(MISMATCHED.glob("order-*.weights.h5"))
        done = run("compare", *paths, "--json", cwd=tmp_path)
        assert done.returncode == 1
        assert len(json.loads(done.stdout)["differences"]) == 2


class TestThePicture:
    def test_is_drawn_beside_the_table(self, tmp_path):
        done = run("compare", *THREE, "--plot", "x.png", cwd=tmp_path)
        assert done.returncode == 0
        assert "no checkpoint stands out" in done.stdout
        assert done.stderr.endswith("Drawn in x.png.\n")
        assert imread(tmp_path / "x.png").ndim == 3
        assert list(contents(tmp_path)) == ["x.png"]

    def test_is_named_in_json(self, tmp_path):
        done = run("compare", *THREE, "--plot", "x.svg", "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["plot"] == "x.svg"

    def test_that_exists_is_refused_without_force(self, tmp_path):
        (tmp_path / "x.png").write_bytes(b"mine")
        done = run("compare", *THREE, "--plot", "x.png", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "x.png: exists already. Replace it with --force" in done.stderr
        assert run("compare", *THREE, "--plot", "x.png", "--force", cwd=tmp_path).returncode == 0

    def test_of_another_kind_is_wrong_usage(self, tmp_path):
        done = run("compare", *THREE, "--plot", "x.pdf", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "x.pdf is neither a *.png nor a *.svg" in done.stderr

    def test_needs_more_memory_and_says_so(self, tmp_path):
        done = run("compare", *THREE, "--plot", "x.png", "--memory-limit", "64MiB", cwd=tmp_path)
        assert done.returncode == 1
        assert "Without --plot it is 96" in done.stderr

    def test_without_matplotlib_leads_to_it(self, tmp_path):
        done = run_python(
            "import sys; sys.modules['matplotlib'] = None\n"
            "sys.argv[0] = 'streamavg'\n"
            "from streamavg.cli import main; main()",
            "compare", *THREE, "--plot", tmp_path / "x.png",
        )  # fmt: skip
        assert done.returncode == 1
        assert "error: --plot needs matplotlib, which is not installed" in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestOptions:
    def test_pair_legacy_layers_by_order(self, tmp_path):
        paths = [dense_legacy(tmp_path / "a.h5", ["x", "y"]),
                 dense_legacy(tmp_path / "b.h5", ["p", "q"], first=1.0)]  # fmt: skip
        assert run("compare", *paths, cwd=tmp_path).returncode == 1
        assert "apart" in answer(*paths, "--match", "order")
        assert rows(*paths, "--match", "order", "--reference", paths[1])[1][-1] == "p (50%)"

    def test_let_preprocessing_differ_with_a_note(self, tmp_path):
        paths = [*THREE, MISMATCHED / "other-preprocessing.keras"]
        refused = run("compare", *paths, cwd=tmp_path)
        assert refused.returncode == 1
        assert "--preprocessing reference" in refused.stderr
        done = run("compare", *paths, "--preprocessing", "reference", cwd=tmp_path)
        assert done.returncode == 0
        assert "note: " in done.stderr
        assert "differently prepared data" in done.stderr

    def test_limit_memory_and_threads(self, tmp_path):
        done = run("compare", *THREE, "--memory-limit", "64MiB", "--threads", 2, "--json",
                   cwd=tmp_path)  # fmt: skip
        document = json.loads(done.stdout)
        assert (document["threads"], document["memory"]["limit"]) == (2, 64 * 1024**2)
        assert document["memory"]["measured"] < 64 * 1024**2

    def test_quiet_leaves_the_result_alone(self, tmp_path):
        done = run("compare", *THREE, "--quiet", cwd=tmp_path)
        assert done.stderr == ""
        assert "no checkpoint stands out" in done.stdout

    def test_debug_shows_the_traceback_of_an_error(self, tmp_path):
        done = run("compare", "none.keras", *THREE, "--debug", cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr


class TestTheProcess:
    def test_says_what_it_cost(self, tmp_path):
        done = run("compare", *THREE, cwd=tmp_path)
        assert re.search(
            r"Compared 3 checkpoints: 5.6 KiB read in \d+\.\d\d s, peak memory \d+(\.\d)? MiB of "
            r"256 MiB allowed\.\n$",
            done.stderr,
        )

    def test_writes_nothing_anywhere(self, tmp_path):
        assert run("compare", *THREE, cwd=tmp_path).returncode == 0
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize("arguments", [[], [THREE[0]], [*THREE, "--match", "luck"],
                                           [*THREE, "--memory-limit", "much"]])  # fmt: skip
    def test_refuses_wrong_usage_with_exit_code_2(self, tmp_path, arguments):
        done = run("compare", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")

    def test_refuses_values_that_are_no_numbers_with_exit_code_1(self, points, tmp_path):
        done = run("compare", *points(1, 2, np.nan), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "ckpt-02.weights.h5: variable 'layers/dense/vars/0': value nan" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_is_listed_with_the_other_commands(self, tmp_path):
        text = run("--help", cwd=tmp_path).stdout
        assert re.search(r"compare +Tell how far apart", text)
        assert "--plot" in run("compare", "--help", cwd=tmp_path).stdout

    def test_does_not_import_matplotlib_without_a_picture(self):
        done = run_python(
            "import sys\n"
            "from streamavg import compare\n"
            "compare(sys.argv[1:])\n"
            "assert 'matplotlib' not in sys.modules",
            *THREE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
