"""`streamavg inspect`: what is in a checkpoint file, for people and for programs."""

import json

import pytest
from click.testing import CliRunner

from streamavg.cli.inspect import command
from tests.builders import DIGITS, LAYOUTS, LEGACY, contents, run

ARCHIVE = DIGITS / "epoch-20.keras"


def shown(*arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


class TestForPeople:
    @pytest.mark.parametrize(
        "line",
        [
            "format      .keras archive (keras-archive)",
            "written by  Keras 3.15.1",
            "file        40.4 KiB",
            "weights     481 in 4 layers, 1.88 KiB",
            "optimizer   12 variables, 3.56 KiB",
            "config      yes",
        ],
    )
    def test_tells(self, line):
        assert line in shown(ARCHIVE)

    def test_names_the_file_first(self):
        assert shown(ARCHIVE).splitlines()[0] == str(ARCHIVE)

    def test_has_a_row_for_each_layer_and_variable(self):
        lines = [" ".join(line.split()) for line in shown(ARCHIVE).splitlines()]
        assert "layers/conv2d conv2d Conv2D 1 300" in lines
        assert "layers/conv2d/vars/0 5 x 5 x 1 x 12 float32 weight 1,200" in lines
        assert "layers/normalization/vars/2 scalar int64 preprocessing 8" in lines

    def test_leaves_out_the_optimizer_s_variables(self):
        assert "optimizer/vars" not in shown(ARCHIVE)

    def test_says_what_is_not_there(self):
        text = shown(LEGACY / "keras2-weights-epoch-19.h5")
        assert "optimizer   none" in text
        assert "config      no (weights alone)" in text
        assert "not recorded" in shown(DIGITS / "epoch-20.weights.h5")

    def test_names_vocabularies(self):
        assert "layers/string_lookup/vocabulary.txt" in shown(
            LAYOUTS / "keras3.15.1-tf-lookups.keras"
        )

    def test_shows_shared_variables_as_equal(self):
        text = shown(LAYOUTS / "handmade" / "hardlink_shared.weights.h5")
        assert "layers/dense/vars/0 = layers/dense_1/vars/0" in text

    @pytest.mark.parametrize("suffix", ["keras", "h5", "weights.h5"])
    def test_works_without_any_weights(self, suffix):
        assert "weights     0 in 0 layers" in shown(LAYOUTS / f"keras3.15.1-tf-noweights.{suffix}")


class TestForPrograms:
    def test_is_the_summary_of_the_library(self):
        from streamavg import inspect

        assert shown(ARCHIVE, "--json") == inspect(ARCHIVE).to_json() + "\n"
        assert json.loads(shown(ARCHIVE, "--json"))["optimizer_variables"] == 12


class TestTheProcess:
    def test_writes_nothing_anywhere(self, tmp_path):
        done = run("inspect", ARCHIVE, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize("name", ["missing.keras", "."])
    def test_refuses_what_is_no_file_with_exit_code_1(self, tmp_path, name):
        done = run("inspect", name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1

    def test_wants_one_file(self, tmp_path):
        assert run("inspect", cwd=tmp_path).returncode == 2
        assert run("inspect", ARCHIVE, ARCHIVE, cwd=tmp_path).returncode == 2
