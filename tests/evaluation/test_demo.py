"""The demonstration: its data, its files, its commands, and what it refuses."""

import os
import shlex

import numpy as np
import pytest

from streamavg.checking import RECENT_SECONDS
from streamavg.cli import demo as cli
from streamavg.errors import OutputError, StreamAvgError
from streamavg.evaluation import demo
from tests.builders import DEMO, ROOT, contents, run, run_python


@pytest.fixture(autouse=True)
def _this_checkout(monkeypatch):
    """For the commands that the demo starts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_images_are_those_of_scikit_learn_each_once():
    from sklearn import datasets

    splits = demo.load_digits()
    images = np.concatenate([split.x for split in splits])
    assert [len(split.x) for split in splits] == [797, 500, 500]
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    expected = datasets.load_digits().data / 16
    assert sorted(map(tuple, images)) == sorted(map(tuple, expected.astype(np.float32)))


def test_every_digit_is_in_every_split_as_often_as_in_all():
    for split in demo.load_digits():
        shares = np.bincount(split.y, minlength=10) / len(split.y)
        assert np.abs(shares - 0.1).max() < 0.01


def test_the_split_is_the_same_each_time():
    first, second = demo.load_digits(), demo.load_digits()
    assert all(np.array_equal(a.y, b.y) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["val", "test"])
def test_the_fixture_s_data_are_the_demo_s(name):
    split = demo.load_digits()[1 if name == "val" else 2]
    with np.load(DEMO / f"{name}.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x"], split.x)
        np.testing.assert_array_equal(stored["y"], split.y)


def test_the_fixture_has_the_files_of_the_demo():
    names = {path.relative_to(DEMO).as_posix() for path in DEMO.rglob("*") if path.is_file()}
    last = range(demo.EPOCHS - demo.KEPT + 1, demo.EPOCHS + 1)
    assert names == {
        demo.VALIDATION,
        demo.TEST,
        *(f"good/epoch-{epoch}.keras" for epoch in last),
        *(f"bad/run-{number}.keras" for number in range(1, demo.RUNS + 1)),
    }


# --- its commands ---------------------------------------------------------------------------------


def test_either_set_goes_through_check_compare_merge_and_evaluate():
    typed = [step.typed.split()[:2] for step in demo.steps(DEMO)]
    assert typed == 2 * [["streamavg", name] for name in ("check", "compare", "merge", "evaluate")]


@pytest.mark.parametrize("folder", ["plain", "with space", "it's; $HOME *"])
def test_a_command_reads_as_typed_whatever_the_folder_is_called(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    for name in ("b", "a"):
        (tmp_path / folder / f"{name}.keras").write_text(name)
    outcome = demo.run(demo.Step(f"streamavg inspect {shlex.quote(folder)}/*.keras", {}))
    assert outcome.exit_code == 2
    assert f"unexpected extra argument ({folder}/b.keras)" in outcome.output


def test_a_command_s_output_and_exit_code_are_those_of_the_program():
    shown = demo.run(demo.Step(f"streamavg compare {shlex.quote(str(DEMO))}/bad/*.keras", {}))
    assert shown.exit_code == 0
    assert shown.output.startswith("no checkpoint stands out: any two are 139% to 143% apart\n")
    assert "Compared 3 checkpoints" in shown.output  # what goes to stderr


# --- what it refuses ------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused_before_the_training(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match=r"is not empty\. Name a folder"):
        demo.write_demo(tmp_path, on_run=lambda _: pytest.fail("it trained"))
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "demo"
    path.write_text("precious")
    with pytest.raises(OutputError, match="is a file"):
        demo.write_demo(path, on_run=lambda _: pytest.fail("it trained"))


def test_after_an_interrupt_nothing_is_left(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.write_demo(tmp_path / "demo", on_run=interrupt)
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line_a_full_folder_is_one_error(tmp_path):
    (tmp_path / "mine").write_text("precious")
    done = run("demo", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: .: is not empty. Name a folder that is empty or not there.\n"


def test_without_scikit_learn_the_error_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "sys.argv = ['streamavg', 'demo']; import streamavg.cli; streamavg.cli.main()"
    )
    done = run_python(code, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: the demo's images come with scikit-learn" in done.stderr
    assert "python -m pip install 'streamavg[tensorflow]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_the_same_again_with_the_same_seed(monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    train = demo.load_digits()[0]
    runs = [[model.get_weights() for _, model in demo.epochs(train, s)][-1] for s in (3, 3, 4)]
    same = [np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True)]
    other = [np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True)]
    assert all(same)
    assert not any(other)


def test_files_are_settled_when_check_does_not_warn_of_them_any_more(tmp_path):
    path = tmp_path / "good" / "epoch-1.keras"
    path.parent.mkdir()
    path.touch()
    assert RECENT_SECONDS < demo.seconds_until_settled(tmp_path) < RECENT_SECONDS + 1
    os.utime(path, (0, 0))
    assert demo.seconds_until_settled(tmp_path) == 0


# --- on the command line --------------------------------------------------------------------------


def test_a_command_that_fails_otherwise_than_expected_ends_the_demonstration(capsys):
    step = demo.Step("streamavg merge", {0: "It merged."})
    with pytest.raises(StreamAvgError, match="ended with exit code 2, which"):
        cli._show(step, demo.Outcome(2, "error: Missing argument.\n"))
    assert capsys.readouterr().out == "error: Missing argument.\n"


def test_what_a_command_showed_is_said_with_its_exit_code(capsys):
    step = demo.Step("streamavg check --strict", {3: "A warning."})
    cli._show(step, demo.Outcome(3, "distant\n"))
    assert capsys.readouterr().out == "distant\n=> A warning. (exit code 3)\n"
