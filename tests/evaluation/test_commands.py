"""`streamavg rebuild` and `streamavg evaluate` as they are typed: what they print, how they end."""

import json

import pytest

from tests.builders import DIGITS, FIXTURES, MISMATCHED, contents, run, run_python

WEIGHTS, WHOLE = DIGITS / "epoch-19.weights.h5", DIGITS / "epoch-18.keras"
DATA = FIXTURES / "digits-data.npz"
VAL, TEST = f"{DATA}:validation", f"{DATA}:test"
EPOCHS = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
pytestmark = pytest.mark.usefixtures("keras")


@pytest.mark.slow
class TestRebuild:
    def test_says_what_it_did_and_what_comes_next(self, tmp_path):
        done = run("rebuild", WEIGHTS, "--model", WHOLE, "-o", "out.keras", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert "all 10 variables hold the values of" in done.stderr
        assert "Next: streamavg evaluate out.keras" in done.stderr

    def test_prints_the_record_as_json(self, tmp_path):
        done = run("rebuild", WEIGHTS, "--model", WHOLE, "-o", "out.keras", "--json", "--quiet",
                   cwd=tmp_path)  # fmt: skip
        assert json.loads(done.stdout)["variables"] == 10
        assert done.stderr == ""

    def test_refuses_what_does_not_fit_and_writes_nothing(self, tmp_path):
        done = run(
            "rebuild", MISMATCHED / "order-ba.weights.h5",
            "--model", MISMATCHED / "order-ab.keras", "-o", "out.keras", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert contents(tmp_path) == {}


@pytest.mark.slow
class TestEvaluate:
    def test_a_good_average_passes_the_gate(self, tmp_path):
        done = run("evaluate", EPOCHS[0], "--against", *EPOCHS[1:], "--val", VAL, "--test", TEST,
                   "--require", "not-worse", "--no-progress", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("pass: the average ")

    def test_a_bad_average_is_stopped_by_the_gate(self, tmp_path):
        bad = tmp_path / "bad.keras"
        merged = run(
            "merge", EPOCHS[2], MISMATCHED / "other-preprocessing.keras", "-o", bad,
            "--preprocessing", "reference", cwd=tmp_path,
        )  # fmt: skip
        assert merged.returncode == 0, merged.stderr
        done = run("evaluate", bad, "--against", EPOCHS[2], "--val", VAL, "--test", TEST,
                   "--require", "not-worse", "--json", "--no-progress", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 3, done.stderr
        document = json.loads(done.stdout)
        assert document["gate"]["passed"] is False
        assert document["schema_version"] == 1

    def test_a_line_has_a_row_a_point(self, tmp_path):
        done = run("evaluate", "--path", EPOCHS[0], EPOCHS[2], "--val", VAL, "--points", 3,
                   "--quiet", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].startswith("no barrier between epoch-18.keras and")
        assert len(done.stdout.splitlines()) == 8


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--val", VAL], "name the average first"),
            ([WHOLE, "--val", VAL], "--against: name the checkpoints"),
            ([WHOLE, "--against", "--val", VAL], "--against"),
            ([WHOLE, "--against", EPOCHS[1]], "--val"),
            (["--path", WHOLE, EPOCHS[1], "--val", VAL, "--test", TEST], "does not go with --test"),
            (["--path", WHOLE, EPOCHS[1], "--val", VAL, "--against", WHOLE], "--against"),
            ([WHOLE, "--against", EPOCHS[1], "--val", VAL, "--require", "best"], "choose one of"),
        ],
    )
    def test_wrong_usage_is_told(self, tmp_path, arguments, message):
        done = run("evaluate", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr

    @pytest.mark.parametrize("missing", ["keras", "tensorflow"])
    def test_without_keras_or_tensorflow_the_remedy_is_named(self, tmp_path, missing):
        code = (
            f"import sys; sys.modules[{missing!r}] = None; sys.argv[0] = 'streamavg'\n"
            "from streamavg.cli import main; main()"
        )
        done = run_python(code, "rebuild", WEIGHTS, "--model", WHOLE, "-o", tmp_path / "out.keras")
        assert done.returncode == 1
        assert "pip install 'streamavg[tensorflow]'" in done.stderr
