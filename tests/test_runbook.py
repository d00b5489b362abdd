"""The runbook is checked by executing it; here the checker is checked, and the page's shape."""

import re
import tomllib

import pytest
import runbook

from tests.builders import ROOT

PAGE = ROOT / "docs" / "runbook.md"


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text, "utf-8")
    return path


def check(tmp_path, text):
    """The exit code of the checker for a page."""
    return runbook.main(["--page", str(page(tmp_path, text)), "--folder", str(tmp_path / "run")])


def console(*lines, info="console"):
    return "\n".join([f"```{info}", *lines, "```", ""])


# --- pages that are right -------------------------------------------------------------------------


def test_a_page_whose_commands_print_what_it_says_is_right(tmp_path, capsys):
    text = console("$ printf 'one\\ntwo\\n'", "one", "two", "$ echo three >&2", "three")
    assert check(tmp_path, text) == 0
    assert "2 ok, 0 WRONG, 0 not executed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "expected",
    [
        ["a", "b 17 s", "c"],
        ["a", "...", "c"],
        ["..."],
        ["a", "b ... s", "c"],
        ["...", "c"],
        ["a", "b 17 s", "c", "..."],
    ],
)
def test_three_dots_stand_for_anything(expected):
    assert runbook.difference(expected, ["a", "b 17 s", "c"]) == []


def test_a_failure_has_its_exit_code_and_its_text(tmp_path):
    text = console("$ echo refused >&2; exit 3", "refused", info="console failure exit=3")
    assert check(tmp_path, text) == 0


def test_files_and_exported_variables_last_until_the_end_of_the_page(tmp_path):
    text = console("$ export COLOR=green", "$ echo $COLOR > file") + console("$ cat file", "green")
    assert check(tmp_path, text) == 0


def test_a_command_may_take_several_lines(tmp_path):
    assert check(tmp_path, console("$ echo one \\", ">   two", "one two")) == 0


def test_commands_are_those_of_this_checkout(tmp_path):
    lines = (
        "$ streamavg inspect fixtures/digits/epoch-20.keras | head -n 1",
        "fixtures/digits/epoch-20.keras...",
        "$ python -c 'import streamavg; print(streamavg.__file__)'",
        f"{ROOT}/streamavg/__init__.py",
    )
    assert check(tmp_path, console(*lines)) == 0


def test_what_is_not_executed_is_counted_and_shown(tmp_path, capsys):
    text = console("$ touch made", info="console not-executed") + console("$ ls", "fixtures")
    assert check(tmp_path, text) == 0
    assert re.search(r"not executed +page.md:2: touch made", capsys.readouterr().out)
    assert not (tmp_path / "run" / "made").exists()


def test_other_blocks_are_left_alone(tmp_path):
    text = "```python\n1 / 0\n```\n```\n$ false\n```\n" + console("$ true")
    assert check(tmp_path, text) == 0


# --- pages that are wrong -------------------------------------------------------------------------


def test_a_wrong_expectation_is_caught_and_shown(tmp_path, capsys):
    text = "# Page\n\n" + console("$ printf 'one\\n2\\nthree\\n'", "one", "two", "three")
    assert check(tmp_path, text) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  1 of the page's 3 lines were printed",
        "- two",
        "+ 2",
        "+ three",
        "0 ok, 1 WRONG, 0 not executed",
    ]


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (["one"], ["one", "two"]),
        (["one", "two"], ["one"]),
        (["one"], []),
        ([], ["one"]),
        (["one"], ["one "]),
        ([".."], ["one"]),
        (["one ... three"], ["one", "three"]),
        (["...", "two"], ["two", "one"]),
        (["o.e"], ["one"]),
    ],
    ids=repr,
)
def test_text_that_is_otherwise_is_a_difference(expected, printed):
    assert runbook.difference(expected, printed)


def test_a_command_that_fails_where_the_page_has_it_succeed_is_caught(tmp_path, capsys):
    assert check(tmp_path, console("$ echo one; exit 4", "one")) == 1
    assert "exit code: expected 0, found 4" in capsys.readouterr().out


def test_a_failure_that_does_not_fail_is_caught(tmp_path, capsys):
    assert check(tmp_path, console("$ echo one", "one", info="console failure exit=1")) == 1
    assert "exit code: expected 1, found 0" in capsys.readouterr().out


def test_a_failure_with_another_message_is_caught(tmp_path):
    text = console("$ echo new text; exit 1", "old text", info="console failure exit=1")
    assert check(tmp_path, text) == 1


def test_a_command_that_does_not_end_is_caught(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runbook, "COMMAND_TIMEOUT", 0.2)
    assert check(tmp_path, console("$ sleep 60")) == 1
    assert "did not end within 0.2 s" in capsys.readouterr().out


def test_after_a_wrong_command_the_others_are_tried(tmp_path, capsys):
    assert check(tmp_path, console("$ echo one", "1", "$ echo two", "two")) == 1
    assert "1 ok, 1 WRONG" in capsys.readouterr().out


def test_a_page_that_executes_nothing_is_wrong(tmp_path):
    assert check(tmp_path, console("$ true", info="console not-executed")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (console("one", "$ two"), "page.md:2: expected a command after '$ ', found 'one'"),
        (console("$ true")[:-4], "page.md:1: this block has no end"),
        (console("$ true", info="bash"), "page.md:1: a block of 'bash' is not executed"),
        (console("$ true", info="console fialure"), "page.md:1: expected failure, exit=N"),
        (console("$ true", info="console failure"), "page.md:1: a failure states its exit code"),
        (console("$ true", info="console exit=one"), "page.md:1: exit code 'one' is no number"),
        (console("$ true", "$ false", info="console exit=1"), "page.md:1: a block with an exit"),
        (console("$ cd somewhere"), "page.md:2: cd does not last"),
    ],
)
def test_a_page_that_cannot_be_read_is_an_error_with_its_line(tmp_path, capsys, text, message):
    assert check(tmp_path, text) == 2
    assert message in capsys.readouterr().err


# --- the runbook itself ---------------------------------------------------------------------------

STEPS = re.findall(
    r"^## (\d+)\. (.*?)\n(.*?)(?=^## )", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
)


def test_the_steps_are_numbered():
    assert [int(number) for number, _, _ in STEPS] == list(range(1, 10))


@pytest.mark.parametrize(("title", "text"), [step[1:] for step in STEPS], ids=lambda v: v[:12])
def test_a_step_has_a_command_and_a_failure_with_its_cure(title, text):
    found = runbook.read_page(text)
    assert [c for c in found if c.block.is_executed and not c.block.is_failure]
    assert len([c for c in found if c.block.is_failure and c.block.is_executed]) == 1
    assert text.count("**Failure.**") == text.count("*Cure:*") == 1


def test_what_installs_the_package_is_not_executed_because_the_integration_has_just_done_so():
    commands = [
        c.text for c in runbook.read_page(PAGE.read_text("utf-8")) if not c.block.is_executed
    ]
    assert commands == [
        "python3 -m venv environment",
        "source environment/bin/activate",
        'python -m pip install ".[tensorflow]"',
        "pre-commit install --hook-type pre-commit --hook-type pre-push",
    ]
    integration = (ROOT / ".ci" / "run").read_text("utf-8")
    before = integration.partition("\npython scripts/runbook.py\n")[0]
    assert before != integration
    assert "\npython3 -m venv " in before
    assert "\nsource " in before
    assert '\npython -m pip install ".[test]"\n' in before
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "streamavg[fast,plot,tensorflow]" in project["optional-dependencies"]["test"]
