"""The pipelines in docs/ci: their very commands pass on a good set and stop on a bad one."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests.builders import DEMO, MISMATCHED, ROOT, environment

WORKFLOW = ROOT / "docs" / "ci" / "github-actions.yml"
HOOKS = ROOT / "docs" / "ci" / "pre-commit-config.yaml"


def commands(path, key):
    """The commands of a pipeline file: the one-line values of a key, in their order."""
    return re.findall(rf"^\s+(?:- )?{key}: (\S.*)$", path.read_text("utf-8"), re.MULTILINE)


WORKFLOW_COMMANDS = commands(WORKFLOW, "run")
HOOK_COMMANDS = commands(HOOKS, "entry")
INSTALL = 'python -m pip install "streamavg[tensorflow]"'


def repository(folder, checkpoints, *others):
    """A user's repository: checkpoints a minute old, and data to judge them by."""
    shutil.copytree(checkpoints, folder / "checkpoints")
    for other in others:
        shutil.copy(other, folder / "checkpoints")
    then = time.time() - 60  # `check` warns of files that are seconds old
    for path in (folder / "checkpoints").iterdir():
        os.utime(path, (then, then))
    (folder / "data").mkdir()
    for name in ("val.npz", "test.npz"):
        shutil.copy(DEMO / name, folder / "data")
    return folder


def run_shell(command, folder):
    """The exit code of a command that is typed in a folder."""
    program = f'streamavg() {{ {shlex.quote(sys.executable)} -m streamavg "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", f"{program}export -f streamavg\n{command}"], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout)  # shown if the test fails
    return done.returncode


def run_until_one_fails(lines, folder):
    """What a pipeline does: the exit codes up to the first that is not 0."""
    codes = []
    for line in lines:
        codes.append(run_shell(line, folder))
        if codes[-1]:
            break
    return codes


def test_the_workflow_installs_checks_merges_and_evaluates():
    assert [line.split(" ")[:2] for line in WORKFLOW_COMMANDS] == [
        ["python", "-m"],
        ["streamavg", "check"],
        ["streamavg", "merge"],
        ["streamavg", "evaluate"],
    ]
    assert WORKFLOW_COMMANDS[0] == INSTALL
    assert len(re.findall(r"\brun:", WORKFLOW.read_text("utf-8"))) == len(WORKFLOW_COMMANDS)


def test_the_hooks_check_and_evaluate():
    assert [re.findall(r"streamavg (\w+)", line) for line in HOOK_COMMANDS] == [
        ["check"],
        ["evaluate"],
    ]


@pytest.mark.parametrize("path", [WORKFLOW, HOOKS], ids=lambda path: path.name)
def test_the_gates_are_strict(path):
    text = path.read_text("utf-8")
    assert "streamavg check --strict" in text
    assert "--require not-worse" in text


@pytest.mark.slow
def test_the_workflow_passes_on_a_good_set(tmp_path):
    folder = repository(tmp_path, DEMO / "good")
    assert run_until_one_fails(WORKFLOW_COMMANDS[1:], folder) == [0, 0, 0]
    assert (folder / "average.keras").exists()
    assert (folder / "average.json").exists()


def test_the_workflow_stops_at_once_on_checkpoints_of_different_runs(tmp_path):
    folder = repository(tmp_path, DEMO / "bad")
    assert run_until_one_fails(WORKFLOW_COMMANDS[1:], folder) == [3]


@pytest.mark.slow
def test_the_evaluation_alone_stops_a_bad_average(tmp_path):
    """Should somebody leave out the check."""
    folder = repository(tmp_path, DEMO / "bad")
    assert run_until_one_fails(WORKFLOW_COMMANDS[2:], folder) == [0, 3]


@pytest.mark.parametrize("lines", [WORKFLOW_COMMANDS[1:], HOOK_COMMANDS], ids=["workflow", "hooks"])
def test_a_checkpoint_of_another_model_stops_either(tmp_path, lines):
    folder = repository(tmp_path, DEMO / "good", MISMATCHED / "wider.keras")
    assert run_until_one_fails(lines, folder) == [1]


@pytest.mark.slow
def test_the_hooks_pass_on_a_good_set_and_its_average(tmp_path):
    folder = repository(tmp_path, DEMO / "good")
    assert run_shell(WORKFLOW_COMMANDS[2], folder) == 0
    assert run_until_one_fails(HOOK_COMMANDS, folder) == [0, 0]


@pytest.mark.slow
def test_the_hooks_stop_on_a_bad_average_of_a_good_set(tmp_path):
    folder = repository(tmp_path / "repository", DEMO / "good")
    bad = repository(tmp_path / "bad", DEMO / "bad")
    assert run_shell(WORKFLOW_COMMANDS[2], bad) == 0
    shutil.copy(bad / "average.keras", folder)
    assert run_until_one_fails(HOOK_COMMANDS, folder) == [0, 3]
