"""`streamavg check`: the answer first, then a row a checkpoint, then what was found."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from streamavg import check, checking
from streamavg.cli.check import command
from tests.builders import DIGITS, FIXTURES, MISMATCHED, ROOT, contents, run, write_weights

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
WIDER = MISMATCHED / "wider.keras"
ORDERS = [MISMATCHED / f"order-{order}.weights.h5" for order in ("ab", "ba")]


@pytest.fixture(autouse=True)
def _files_are_old(monkeypatch):
    """Files that a test has just made count as complete."""
    monkeypatch.setattr(checking, "RECENT_SECONDS", -1.0)


def invoked(*arguments):
    arguments = [*map(str, arguments), "--quiet"]
    # Within the group an exit code is returned; a command alone hands it to its runner.
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.stderr == ""
    return result


def lines(*arguments):
    return invoked(*arguments).stdout.splitlines()


def rows(*arguments):
    """The cells of the table, header first."""
    shown = lines(*arguments)
    start = next(i for i, line in enumerate(shown) if "checkpoint  " in line)
    end = shown.index("", start) if "" in shown[start:] else len(shown)
    return [re.split(r"\s{2,}", line.strip()) for line in shown[start:end]]


class TestTheFirstLine:
    def test_says_that_they_can_be_averaged(self):
        assert lines(*THREE, "--optimizer", "drop")[0] == "These 3 checkpoints can be averaged."

    def test_counts_warnings(self):
        assert lines(*THREE)[0] == "These 3 checkpoints can be averaged: 1 warning."

    def test_counts_refusals_and_says_what_would_be_left(self):
        first, second, *_ = lines(*THREE, ROOT / "README.md")
        assert first == "These 4 checkpoints cannot be averaged: 1 refusal."
        assert second == "The 3 without a refusal can be averaged."

    def test_claims_nothing_about_the_others_if_the_reference_is_refused(self):
        shown = lines(ROOT / "README.md", WIDER, *THREE)
        assert not [line for line in shown if "without a refusal" in line]

    def test_is_followed_by_a_reference_that_no_other_is_like(self):
        shown = lines(WIDER, *THREE, "--optimizer", "drop")
        assert shown[1].startswith(f"{WIDER}: is what the others are compared with, and differs")
        assert not [line for line in shown if line.startswith("warning")]

    def test_says_that_only_a_sample_was_looked_at(self, tmp_path):
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/dense": [np.sin(np.arange(2_000_000) + i / 10).astype("f4")]},
            )
            for i in range(2)
        ]
        assert lines(*paths, "--sample")[0] == (
            "These 2 checkpoints can be averaged, as far as a sample of their values tells."
        )


class TestTheTable:
    def test_has_a_row_for_each_checkpoint(self):
        assert rows(*THREE, "--optimizer", "drop") == [
            ["checkpoint", "Keras", "size", "optimizer", "distance", "state"],
            ["epoch-18.keras", "3.15.1", "40.4 KiB", "3.56 KiB", "7.1%", "ok"],
            ["epoch-19.keras", "3.15.1", "40.4 KiB", "3.56 KiB", "5.6%", "ok"],
            ["epoch-20.keras", "3.15.1", "40.4 KiB", "3.56 KiB", "7.1%", "ok"],
        ]

    def test_marks_and_names_what_is_wrong(self):
        table = rows(*THREE, WIDER, ROOT / "README.md")
        assert [(cells[0], cells[-1]) for cells in table[1:]] == [
            ("!", "optimizer"),
            ("!", "optimizer"),
            ("!", "optimizer"),
            ("x", "structure, configuration, optimizer"),
            ("x", "unreadable"),
        ]

    def test_shows_what_is_not_known_as_a_dash(self, tmp_path):
        cells = rows(*THREE, tmp_path / "nothing.keras")[-1]
        assert cells[2:] == ["-", "-", "-", "-", "unreadable"]


class TestFindings:
    def test_are_told_with_file_variable_and_remedy(self, tmp_path):
        paths = []
        for i, value in enumerate((1.0, np.nan)):
            layers = {"layers/dense": [np.float32([1, 2 + i, value])]}
            paths.append(write_weights(tmp_path / f"{i}.weights.h5", layers))
        assert lines(*paths)[-1] == (
            f"refused (non-finite): {paths[1]}: variable 'layers/dense/vars/0': value nan at index "
            "[2]. Leave this checkpoint out, or average it with --allow-non-finite."
        )

    def test_of_one_checkpoint_are_a_few_and_a_count(self):
        shown = [line for line in lines(THREE[0], WIDER, ORDERS[0]) if line.startswith("refused")]
        for path in (WIDER, ORDERS[0]):
            assert 1 <= sum(f": {path}: " in line for line in shown) <= 3
        found = check([THREE[0], WIDER, ORDERS[0]])
        more = len(found.refusals) - len(shown)
        assert f"... and {more} more (all of them with --json)" in lines(THREE[0], WIDER, ORDERS[0])

    def test_are_refusals_first(self):
        labels = [line.split(" ")[0] for line in lines(*THREE, ROOT / "README.md")]
        assert labels.index("refused") < labels.index("warning")


class TestJson:
    def test_is_that_of_the_library(self):
        document = json.loads(invoked(*THREE, "--json").stdout)
        expected = json.loads(check([str(path) for path in THREE]).to_json())
        for measured in ("seconds", "memory"):
            del document[measured], expected[measured]
        assert document == expected

    def test_is_printed_of_a_refusal_too(self):
        document = json.loads(invoked(*THREE, WIDER, "--json").stdout)
        assert document["can_be_averaged"] is False
        assert {p for finding in document["refusals"] for p in finding["paths"]} == {str(WIDER)}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([*THREE, "--optimizer", "drop", "--strict"], 0),
        (THREE, 0),
        ([*THREE, "--strict"], 3),
        ([*THREE, WIDER], 1),
        ([*THREE, WIDER, "--strict"], 1),
        ([*THREE, WIDER, "--json"], 1),
        ([THREE[0]], 1),
        ([], 2),
        ([*THREE, "--reference", WIDER], 2),
        ([*THREE, "--memory-limit", "1MiB"], 1),
    ],
    ids=["fine", "warned", "warned, strict", "refused", "refused, strict", "refused, JSON",
         "one file", "no file", "wrong option", "no memory"],
)  # fmt: skip
def test_exit_codes(tmp_path, arguments, code):
    """0 fine or warnings only, 1 a merge would be refused, 2 wrong usage, 3 not strictly fine."""
    done = run("check", *arguments, "--quiet", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert contents(tmp_path) == {}


def test_options_that_change_what_a_merge_accepts_change_the_answer():
    other = FIXTURES / "digits-keras2" / "epoch-20.keras"
    assert invoked(*THREE, other).exit_code == 1
    assert invoked(*THREE, other, "--preprocessing", "reference").exit_code == 0


def test_what_was_read_is_told_on_stderr(tmp_path):
    done = run("check", *THREE, cwd=tmp_path)
    assert re.fullmatch(
        r"Checked 3 checkpoints: all values were read, distances are of 478 of 478 values; "
        r"11\.2 KiB read in [0-9.]+ s, peak memory [0-9.]+ MiB of 256 MiB allowed\.\n",
        done.stderr,
    )


def test_a_file_that_was_just_copied_is_a_warning(tmp_path):
    shutil.copyfile(THREE[0], tmp_path / "new.keras")
    done = run("check", "new.keras", *THREE[1:], "--optimizer", "drop", "--strict", cwd=tmp_path)
    assert done.returncode == 3
    assert "warning (being-written): new.keras: was modified" in done.stdout
