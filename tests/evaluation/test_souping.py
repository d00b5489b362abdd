"""Soups of real checkpoints, by the library and by the command line."""

import json
import math
import re
import shutil
import sys

import numpy as np
import pytest

import streamavg
from streamavg.errors import (
    IncompatibleCheckpointsError,
    MemoryLimitError,
    MissingDependencyError,
    NonFiniteValuesError,
    OptionError,
    OutputError,
)
from streamavg.evaluation.soup_record import SCHEMA_VERSION
from streamavg.evaluation.souping import soup
from tests.builders import (
    DIGITS,
    FIXTURES,
    LEGACY,
    LOGGED,
    MISMATCHED,
    contents,
    edited_weights,
    run,
)
from tests.oracle import naive_mean, read_arrays

DATA = FIXTURES / "digits-data.npz"
VAL, TEST = f"{DATA}:validation", f"{DATA}:test"
THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
FIVE = sorted(LOGGED.glob("*.weights.h5"))
MODEL = str(THREE[0])
RECORDING_DATA = '''
"""Data that tells when it was opened, and whether the soup was there by then."""
from pathlib import Path
import numpy as np

def read(split):
    with np.load({data!r}) as stored:
        return stored["x_" + split], stored["y_" + split]

def val():
    return read("validation")

def test():
    trials = len(Path("trials").read_text().splitlines())
    soup = Path("soup.keras").exists()
    with Path("opened").open("a") as file:
        file.write(f"after {{trials}} trials, soup written: {{soup}}\\n")
    return read("test")
'''


@pytest.fixture
def score(keras):
    """Keras' own accuracy and loss of a checkpoint."""

    def score(path, split="validation"):
        model = keras.saving.load_model(MODEL, compile=False)
        model.load_weights(path)
        model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        with np.load(DATA) as stored:
            x, y = stored[f"x_{split}"], stored[f"y_{split}"]
        return model.evaluate(x.astype("float32"), y, verbose=0, return_dict=True)

    return score


@pytest.fixture
def output(tmp_path):
    return tmp_path / "soup.weights.h5"


def soup_of_five(output, **options):
    return soup(FIVE, VAL, output, model=MODEL, **options)


def assert_holds_mean(output, record):
    """The written file is the mean of the members with the coefficients of the record."""
    expected = naive_mean(
        [member.path for member in record.members],
        [member.coefficient for member in record.members],
    )
    found = read_arrays(output)
    for name, values in expected.items():
        if name.startswith("layers/normalization") or name.startswith("optimizer"):
            continue
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-12, err_msg=name)


class TestStrategies:
    def test_uniform_takes_all(self, output, score):
        record = soup_of_five(output, strategy="uniform")
        assert [one.coefficient for one in record.candidates] == [0.2] * 5
        assert len(record.trials) == 6
        assert record.running_sum is None
        assert_holds_mean(output, record)
        assert record.validation.soup["accuracy"] == pytest.approx(score(output)["accuracy"])

    @pytest.mark.parametrize("strategy", ["greedy", "greedy-swap"])
    def test_greedy_soups_are_no_worse_than_the_best_single_one(self, output, score, strategy):
        record = soup_of_five(output, strategy=strategy)
        assert (record.metric, record.maximize) == ("accuracy", True)
        scores = record.validation
        assert scores.soup["accuracy"] >= scores.best_single["accuracy"]
        assert scores.soup["loss"] == pytest.approx(score(output)["loss"], rel=1e-4)
        assert len(record.members) > 1
        assert record.running_sum == "memory"
        assert_holds_mean(output, record)

    def test_a_greedy_trial_scores_as_a_merge_of_its_members(self, tmp_path, output, score):
        record = soup_of_five(output)
        averages = [trial for trial in record.trials if len(trial.members) > 1]
        assert len(averages) == 4
        for trial in averages:
            merged = tmp_path / "merged.weights.h5"
            streamavg.merge(trial.members, merged, force=True)
            assert trial.score == pytest.approx(score(merged)["accuracy"], abs=1e-6)

    def test_the_output_is_the_very_merge_of_its_members(self, tmp_path, output):
        record = soup_of_five(output)
        merged = tmp_path / "merged.weights.h5"
        streamavg.merge([member.path for member in record.members], merged)
        assert output.read_bytes() == merged.read_bytes()
        assert record.merge.output == str(output)
        assert [one.path for one in record.merge.inputs] == [one.path for one in record.members]

    def test_learned_coefficients_are_on_the_simplex(self, output, score):
        record = soup_of_five(output, strategy="learned", metric="loss", most_trials=20)
        coefficients = [one.coefficient for one in record.candidates]
        assert min(coefficients) >= 0
        assert sum(coefficients) == pytest.approx(1)
        best = min(trial.score for trial in record.trials)
        assert record.validation.soup["loss"] == pytest.approx(best, rel=1e-5)
        assert record.ended_early
        assert any("--most-trials" in note for note in record.notes)
        assert_holds_mean(output, record)

    def test_one_checkpoint_alone_is_written_as_it_is(self, tmp_path):
        """Epoch 18 alone has the best accuracy, and averages with it have not."""
        output = tmp_path / "soup.keras"
        record = soup(THREE, VAL, output)
        assert [member.path for member in record.members] == [str(THREE[0])]
        assert record.merge is None
        found, expected = read_arrays(output), read_arrays(THREE[0])
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name])
        assert set(expected) - set(found) == {n for n in expected if n.startswith("optimizer")}
        assert "no average that was tried beats its val accuracy of 0.9425" in record.answer

    def test_legacy_files_make_soups_too(self, tmp_path):
        paths = [LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20)]
        record = soup(paths, VAL, tmp_path / "soup.h5", strategy="uniform")
        assert len(record.members) == 2

    def test_the_sum_goes_to_the_disk_where_the_limit_has_no_room_for_it(
        self, tmp_path, output, monkeypatch
    ):
        in_memory = soup_of_five(output)
        monkeypatch.setattr(
            "streamavg.evaluation.souping.RunningSum.bytes_needed", lambda plan: 2**40
        )
        monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**42))
        on_disk = soup_of_five(tmp_path / "other.weights.h5")
        assert (in_memory.running_sum, on_disk.running_sum) == ("memory", "disk")
        assert in_memory.trials == on_disk.trials


class TestTestData:
    def test_is_opened_once_and_after_everything_is_chosen_and_written(self, tmp_path, monkeypatch):
        (tmp_path / "recording.py").write_text(RECORDING_DATA.format(data=str(DATA)))
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        trials = []

        def note(trial):
            trials.append(trial)
            (tmp_path / "trials").write_text("one\n" * len(trials))

        record = soup(THREE, "recording:val", "soup.keras", test="recording:test", on_trial=note)
        assert (tmp_path / "opened").read_text() == "after 5 trials, soup written: True\n"
        assert len(trials) == len(record.trials) == 5

    def test_scores_soup_and_best_single_one(self, output, score):
        record = soup_of_five(output, test=TEST)
        best = record.best_single
        assert record.test.soup["accuracy"] == pytest.approx(score(output, "test")["accuracy"])
        assert record.test.best_single["loss"] == pytest.approx(
            score(best, "test")["loss"], rel=1e-4
        )
        assert record.test.data == TEST

    def test_the_choice_does_not_depend_on_it(self, tmp_path, output):
        with_test = soup_of_five(output, test=TEST)
        without = soup_of_five(tmp_path / "other.weights.h5")
        assert with_test.trials == without.trials
        assert without.test is None

    @pytest.mark.parametrize("name", ["missing.npz", "missing.npz:test", "missing:test"])
    def test_that_is_not_there_is_refused_before_any_trial(self, output, name):
        trials = []
        with pytest.raises(OptionError, match="--test missing"):
            soup_of_five(output, test=name, on_trial=trials.append)
        assert not trials


class TestRefusals:
    """All of them before the first trial; nothing is left behind."""

    @pytest.fixture(autouse=True)
    def _leaves_nothing(self, tmp_path):
        yield
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    @staticmethod
    def refused(error, paths, output, match, val=VAL, **options):
        trials = []
        with pytest.raises(error, match=match):
            soup(paths, val, output, on_trial=trials.append, **options)
        assert not trials

    def test_an_existing_output(self, output):
        output.write_text("mine")
        self.refused(OutputError, FIVE, output, "--force", model=MODEL)
        assert output.read_text() == "mine"

    def test_an_existing_output_is_replaced_with_force(self, output):
        output.write_text("mine")
        soup_of_five(output, strategy="uniform", force=True)
        assert output.read_bytes().startswith(b"\x89HDF")

    def test_an_output_that_is_an_input(self, tmp_path):
        copies = [shutil.copy(path, tmp_path) for path in THREE]
        self.refused(OutputError, copies, copies[1], "is one of the inputs", force=True)

    def test_a_suffix_that_does_not_fit(self, tmp_path):
        self.refused(OptionError, FIVE, tmp_path / "soup.keras", "suffix", model=MODEL)

    def test_checkpoints_of_other_models(self, output):
        wider = [*THREE[:2], MISMATCHED / "wider.keras"]
        self.refused(IncompatibleCheckpointsError, wider, output, "wider")

    def test_values_that_are_nan(self, tmp_path, output):
        def spoil(file):
            file["layers/dense/vars/1"][3] = np.nan

        bad = edited_weights(FIVE[2], tmp_path / "bad.weights.h5", spoil)
        self.refused(
            NonFiniteValuesError, [*FIVE[:2], bad], output, "Leave this checkpoint", model=MODEL
        )

    def test_a_metric_that_the_model_has_not(self, output):
        self.refused(OptionError, FIVE, output, "accuracy", model=MODEL, metric="auc")

    def test_a_metric_of_no_known_direction(self, tmp_path, output):
        with np.load(DATA) as stored:
            x, y = stored["x_validation"], np.eye(10)[stored["y_validation"]]
        np.savez(tmp_path / "one-hot.npz", x=x, y=y)
        val = str(tmp_path / "one-hot.npz")
        options = {"model": MODEL, "loss": "mse", "metrics": ["cosine_similarity"]}
        match = "--maximize or --minimize"
        self.refused(OptionError, FIVE, output, match, val=val, **options)
        record = soup(FIVE, val, output, strategy="uniform", maximize=True, **options)
        assert (record.metric, record.maximize) == ("cosine_similarity", True)

    def test_weights_without_a_model(self, output):
        self.refused(OptionError, FIVE, output, "--model")

    def test_a_limit_that_the_model_alone_exceeds(self, output):
        self.refused(MemoryLimitError, FIVE, output, "reserved", model=MODEL, memory_limit="200MiB")

    @pytest.mark.parametrize("strategy", ["uniform", "greedy"])
    def test_a_number_of_trials_where_it_says_nothing(self, output, strategy):
        self.refused(OptionError, FIVE, output, "--most-trials", strategy=strategy, most_trials=9)

    def test_no_trials(self, output):
        self.refused(OptionError, FIVE, output, "1 or more", strategy="learned", most_trials=0)

    def test_contradictions(self, output):
        self.refused(OptionError, FIVE, output, "exclude", maximize=True, minimize=True)

    def test_a_strategy_that_is_none(self, output):
        self.refused(OptionError, FIVE, output, "greedy-swap", strategy="gready")

    def test_a_learned_soup_without_scipy(self, output, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)
        self.refused(MissingDependencyError, FIVE, output, "SciPy", strategy="learned")

    def test_a_full_disk(self, output, monkeypatch):
        size = streamavg.plan(FIVE, output).bytes_written
        usage = shutil._ntuple_diskusage(0, 0, size + 1)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        self.refused(OutputError, FIVE, output, "with a trial", model=MODEL)


class TestInterrupts:
    def test_leave_neither_output_nor_trials(self, tmp_path, output):
        def interrupt(trial):
            if len(trial.members) > 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            soup_of_five(output, on_trial=interrupt)
        assert list(tmp_path.iterdir()) == []

    def test_inputs_are_as_they_were(self, output):
        before = contents(LOGGED)
        soup_of_five(output)
        assert contents(LOGGED) == before


class TestCommand:
    @pytest.mark.slow
    def test_the_first_line_answers(self, tmp_path):
        done = run(
            "soup", *FIVE, "--model", MODEL, "--val", VAL, "--test", TEST, "-o", "soup.weights.h5",
            "--record", "record.json", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()[:2]
        record = json.loads((tmp_path / "record.json").read_text())
        members = [one for one in record["candidates"] if one["coefficient"]]
        soup, best = (record["validation"][who]["accuracy"] for who in ("soup", "best_single"))
        assert first == (
            f"The greedy soup of {len(members)} of 5 checkpoints reaches val accuracy {soup:.4g}, "
            f"the best single one {best:.4g}."
        )
        assert re.match(
            r"On test data, looked at once: accuracy 0\.\d+, the best single one", second
        )
        assert done.stdout.count("  val accuracy ") == 5
        assert "wrote soup.weights.h5" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "record.json", "soup.weights.h5",
        ]  # fmt: skip

    @pytest.mark.slow
    def test_the_record_lists_every_trial(self, tmp_path):
        done = run(
            "soup", *THREE, "--val", VAL, "-o", "soup.keras", "--json", "--quiet", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        record = json.loads(done.stdout)
        assert record["schema_version"] == SCHEMA_VERSION
        assert [trial["members"] for trial in record["trials"]][:3] == [[str(p)] for p in THREE]
        assert [len(trial["members"]) for trial in record["trials"]] == [1, 1, 1, 2, 2]
        for trial in record["trials"]:
            assert math.fsum(trial["coefficients"]) == pytest.approx(1)
        assert [trial["taken"] for trial in record["trials"]] == [True, *[False] * 4]
        assert record["test"] is None

    @pytest.mark.slow
    def test_without_test_data_it_says_that_the_score_is_too_good(self, tmp_path):
        done = run("soup", *THREE, "--val", VAL, "-o", "soup.keras", cwd=tmp_path)
        assert "too good" in done.stdout.splitlines()[1]

    def test_an_existing_output_is_refused_at_once(self, tmp_path):
        (tmp_path / "soup.keras").write_text("mine")
        done = run("soup", *THREE, "--val", VAL, "-o", "soup.keras", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            "error: soup.keras: exists already. Replace it with --force, or choose another name.\n"
        )

    def test_a_record_that_would_replace_the_output_is_refused(self, tmp_path):
        done = run(
            "soup", *THREE, "--val", VAL, "-o", "soup.keras", "--record", "soup.keras",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 1
        assert "which the record must not replace" in done.stderr
        assert list(tmp_path.iterdir()) == []
