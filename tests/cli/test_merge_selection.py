"""`streamavg merge`: which checkpoints, in which order, with which coefficients.

All on checkpoints of real runs. `digits-logged` holds the last five of twelve epochs as Keras'
ModelCheckpoint named them, `ckpt-{epoch}-{val_loss:.4f}.weights.h5`, and CSVLogger's history.
"""

import json
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.builders import DIGITS, LOGGED, contents, run, stored

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
SORTING = ("median", "trimmed-mean")
FIVE = sorted(LOGGED.glob("*.weights.h5"))
"""As a shell sorts them: 10, 11, 12, 8, 9."""
HISTORY = LOGGED / "history.csv"
KERNEL = "layers/conv2d/vars/0"


def epoch_of(path):
    return int(re.search(r"-(\d+)", Path(path).name)[1])


def planned(*arguments, cwd):
    done = run("merge", *arguments, "--dry-run", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def epochs(*arguments, cwd):
    return [epoch_of(entry["path"]) for entry in planned(*arguments, cwd=cwd)["inputs"]]


def coefficients(*arguments, cwd):
    return [entry["coefficient"] for entry in planned(*arguments, cwd=cwd)["inputs"]]


def refusal(*arguments, cwd, code=2):
    done = run("merge", *arguments, cwd=cwd)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert contents(cwd) == {}
    assert done.stderr.count("error: ") == 1
    return done.stderr


def mean_of(paths, weights):
    kernels = [stored(path)[KERNEL].astype("f8") for path in paths]
    return sum(weight * kernel for weight, kernel in zip(weights, kernels, strict=True))


class TestLast:
    def test_averages_the_last_epochs_whatever_the_shell_did(self, tmp_path):
        done = run("merge", *FIVE, "--last", "4", "-o", "x.weights.h5", cwd=tmp_path)
        assert done.returncode == 0
        assert "Averaged the last 4 of 5 checkpoints into x.weights.h5" in done.stderr
        last = [path for path in FIVE if epoch_of(path) != 8]
        expected = mean_of(last, [0.25] * 4)
        np.testing.assert_allclose(stored(tmp_path / "x.weights.h5")[KERNEL], expected, rtol=1e-6)

    def test_takes_the_last_given_in_that_order(self, tmp_path):
        assert epochs(*FIVE, "--last", "2", cwd=tmp_path) == [11, 12]
        assert epochs(*FIVE, "--last", "2", "--order", "given", cwd=tmp_path) == [8, 9]

    def test_takes_the_newest_by_time(self, tmp_path):
        for seconds, epoch in enumerate((20, 18, 19)):
            copy = shutil.copy(DIGITS / f"epoch-{epoch}.keras", tmp_path)
            os.utime(copy, (seconds, seconds))
        names = sorted(path.name for path in tmp_path.iterdir())
        assert epochs(*names, "--last", "2", "--order", "mtime", cwd=tmp_path) == [18, 19]

    def test_is_refused_for_more_than_there_are(self, tmp_path):
        error = refusal(*FIVE, "--last", "6", cwd=tmp_path)
        assert "--last 6: only 5 checkpoints given" in error

    def test_misses_what_does_not_exist_though_it_would_be_left_out(self, tmp_path):
        missing = LOGGED / "ckpt-1-0.9.weights.h5"
        error = refusal(*FIVE, missing, "--last", "2", cwd=tmp_path, code=1)
        assert "ckpt-1-0.9.weights.h5: cannot be opened: No such file" in error


class TestBest:
    def test_by_the_history_of_keras_averages_the_lowest_val_loss(self, tmp_path):
        done = run("merge", *FIVE, "--best", "3", "--scores", HISTORY, "-o", "x.weights.h5",
                   cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        best = [path for path in FIVE if epoch_of(path) in {10, 11, 12}]
        expected = mean_of(best, [1 / 3] * 3)
        np.testing.assert_allclose(stored(tmp_path / "x.weights.h5")[KERNEL], expected, rtol=1e-6)

    def test_finds_the_row_of_each_epoch_though_keras_counts_it_from_0(self, tmp_path):
        """The same run wrote val_loss into the names, so that both must say the same."""
        record = planned(*FIVE, "--best", "5", "--scores", HISTORY, cwd=tmp_path)
        for entry in record["inputs"]:
            in_name = entry["path"].split("-")[-1].removesuffix(".weights.h5")
            assert f"{entry['score']:.4f}" == in_name

    def test_by_names_takes_the_same_as_by_the_history(self, tmp_path):
        by_name = epochs(*FIVE, "--best", "3", "--scores", "filename", "--metric", "val_loss",
                         cwd=tmp_path)  # fmt: skip
        assert by_name == epochs(*FIVE, "--best", "3", "--scores", HISTORY, cwd=tmp_path)

    def test_by_another_metric_goes_the_other_way(self, tmp_path):
        chosen = epochs(*FIVE, "--best", "2", "--scores", HISTORY, "--metric", "val_accuracy",
                        cwd=tmp_path)  # fmt: skip
        assert chosen == [9, 12]

    def test_is_told_the_direction_where_names_do_not_say(self, tmp_path):
        asked = (*FIVE, "--best", "2", "--scores", "filename")
        assert "--maximize or --minimize" in refusal(*asked, cwd=tmp_path)
        assert epochs(*asked, "--minimize", cwd=tmp_path) == [10, 12]
        assert epochs(*asked, "--maximize", cwd=tmp_path) == [8, 9]

    def test_takes_scores_from_json(self, tmp_path):
        scores = {"epoch-18.keras": 0.3, "epoch-19.keras": 0.1, "epoch-20.keras": 0.2}
        (tmp_path / "scores.json").write_text(json.dumps(scores))
        chosen = epochs(*THREE, "--best", "2", "--scores", "scores.json", "--metric", "loss",
                        cwd=tmp_path)  # fmt: skip
        assert chosen == [19, 20]

    def test_needs_an_epoch_that_the_history_has(self, tmp_path):
        error = refusal(*THREE, "--best", "2", "--scores", HISTORY, cwd=tmp_path)
        assert "epoch-18.keras: is of epoch 18" in error
        assert "has the epochs 1 to 12" in error

    def test_needs_scores_in_the_names(self, tmp_path):
        error = refusal(*THREE, "--best", "2", "--scores", "filename", cwd=tmp_path)
        assert "epoch-18.keras: its name has no score: found 'epoch 18'" in error


class TestCoefficients:
    def test_come_from_sample_counts_in_a_file(self, tmp_path):
        counts = {str(path): count for path, count in zip(THREE, (100, 300, 600), strict=True)}
        (tmp_path / "counts.json").write_text(json.dumps(counts))
        done = run("merge", *THREE[::-1], "--weights", "counts.json", "--normalize", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        expected = mean_of(THREE, [0.1, 0.3, 0.6])
        np.testing.assert_allclose(stored(tmp_path / "averaged.keras")[KERNEL], expected, rtol=1e-6)

    def test_from_a_file_and_from_a_list_give_the_same_bits(self, tmp_path):
        lines = "".join(f"{path},{count}\n" for path, count in zip(THREE, (1, 3, 6), strict=True))
        (tmp_path / "counts.csv").write_text(f"path,samples\n{lines}")
        for name, weights in (("file.keras", "counts.csv"), ("list.keras", "1,3,6")):
            done = run("merge", *THREE, "--weights", weights, "--normalize", "-o", name,
                       cwd=tmp_path)  # fmt: skip
            assert done.returncode == 0, done.stderr
        found = [stored(tmp_path / name) for name in ("file.keras", "list.keras")]
        assert all(np.array_equal(found[0][path], found[1][path]) for path in found[0])

    def test_follow_the_scores(self, tmp_path):
        asked = (*FIVE, "--best", "3", "--scores", HISTORY, "--softmax", "0.01")
        scores = np.array([0.29433873295783997, 0.30350905656814575, 0.272366464138031])
        powers = np.exp(-scores / 0.01)
        assert coefficients(*asked, cwd=tmp_path) == pytest.approx(powers / powers.sum())

    def test_of_a_moving_average_are_the_recurrence(self, tmp_path):
        done = run("merge", *FIVE, "--method", "ema", "--decay", "0.8", "-o", "x.weights.h5",
                   "--json", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["method"] == "ema"
        assert [epoch_of(entry["path"]) for entry in record["inputs"]] == [8, 9, 10, 11, 12]
        kernels = [stored(entry["path"])[KERNEL].astype("f8") for entry in record["inputs"]]
        average = kernels[0]
        for kernel in kernels[1:]:
            average = 0.8 * average + 0.2 * kernel
        np.testing.assert_allclose(stored(tmp_path / "x.weights.h5")[KERNEL], average, rtol=1e-6)

    def test_must_be_a_list_or_a_file(self, tmp_path):
        error = refusal(*THREE, "--weights", "counts.json", cwd=tmp_path)
        assert "'counts.json' is neither a list of numbers like 0.5,0.3,0.2 nor a file" in error

    def test_in_a_list_do_not_go_with_a_pick(self, tmp_path):
        error = refusal(*THREE, "--weights", "0.5,0.5", "--last", "2", cwd=tmp_path)
        assert "a list of --weights and --last exclude each other" in error


class TestPlan:
    def test_lists_the_checkpoints_in_order_with_coefficient_and_score(self, tmp_path):
        done = run("merge", *FIVE, "--best", "3", "--scores", HISTORY, "--dry-run", cwd=tmp_path)
        assert done.stdout.splitlines()[:8] == [
            "Would average the best 3 of 5 checkpoints into averaged.weights.h5 (keras-weights):",
            f"  0.333333  val_loss 0.294339  {LOGGED}/ckpt-10-0.2943.weights.h5  35.5 KiB"
            "  (reference)",
            f"  0.333333  val_loss 0.303509  {LOGGED}/ckpt-11-0.3035.weights.h5  35.5 KiB",
            f"  0.333333  val_loss 0.272366  {LOGGED}/ckpt-12-0.2724.weights.h5  35.5 KiB",
            "selected the best 3 of 5 given, in natural order; coefficients: uniform",
            f"scores   val_loss, from {HISTORY}; less is better",
            "not taken: 2 checkpoints",
            f"  val_loss 0.381499  {LOGGED}/ckpt-8-0.3815.weights.h5",
        ]

    def test_says_that_all_were_taken(self, tmp_path):
        done = run("merge", *THREE, "--dry-run", cwd=tmp_path)
        assert "selected all 3 given, in the order given; coefficients: uniform" in done.stdout

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (["--weights", "0.5,0.3,0.2"], "in the order given; coefficients: from --weights"),
            (["--order", "natural"], "in natural order; coefficients: uniform"),
            (["--method", "ema", "--decay", "0.9"], "coefficients: moving average, decay 0.9"),
        ],
    )
    def test_says_which_rule_gave_the_coefficients(self, tmp_path, options, text):
        assert text in run("merge", *THREE, *options, "--dry-run", cwd=tmp_path).stdout

    def test_lists_every_checkpoint_that_was_picked(self, tmp_path):
        for epoch in range(30):
            (tmp_path / f"ckpt-{epoch}.keras").write_bytes(THREE[0].read_bytes())
        names = sorted(path.name for path in tmp_path.iterdir())
        lines = run("merge", *names, "--last", "15", "--dry-run", cwd=tmp_path).stdout.splitlines()
        assert [line.split()[1] for line in lines[1:16]] == [
            f"ckpt-{epoch}.keras" for epoch in range(15, 30)
        ]
        start = lines.index("not taken: 15 checkpoints")
        assert lines[start + 12 : start + 14] == ["  ckpt-11.keras", "  ... and 3 more"]

    def test_notes_what_a_file_of_weights_has_besides(self, tmp_path):
        counts = {str(path): 1 for path in THREE}
        (tmp_path / "counts.json").write_text(json.dumps(counts))
        done = run("merge", *THREE[:2], "--weights", "counts.json", "--normalize", cwd=tmp_path)
        assert done.returncode == 0
        note = f"note: counts.json: {THREE[2]}: not among the checkpoints given, not used."
        assert note in done.stderr.splitlines()


class TestPython:
    """The library takes what the command line takes, and mappings for files."""

    def test_takes_the_same_options(self, tmp_path):
        import streamavg

        scores = {path: float(path.name.split("-")[2].removesuffix(".weights.h5")) for path in FIVE}
        output = tmp_path / "x.weights.h5"
        record = streamavg.plan(FIVE, output, best=3, scores=scores, metric="val_loss")
        assert [epoch_of(entry.path) for entry in record.inputs] == [10, 11, 12]
        record = streamavg.plan(FIVE, output, best=3, scores=HISTORY)
        assert [epoch_of(entry.path) for entry in record.inputs] == [10, 11, 12]
        record = streamavg.plan(THREE, tmp_path / "x.keras", normalize=True,
                                weights={path: 1 + i for i, path in enumerate(THREE)})  # fmt: skip
        assert [entry.coefficient for entry in record.inputs] == [1 / 6, 2 / 6, 3 / 6]


class TestRobustMethods:
    def test_the_median_is_that_of_the_inputs(self, tmp_path):
        done = run("merge", *FIVE, "--method", "median", "-o", "x.weights.h5", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "takes the middle one of 5 values" in done.stderr
        for name, found in stored(tmp_path / "x.weights.h5").items():
            stack = np.stack([stored(path)[name] for path in FIVE])
            assert np.array_equal(found, np.median(stack, axis=0)), name

    def test_the_trimmed_mean_drops_both_ends(self, tmp_path):
        done = run("merge", *FIVE, "--method", "trimmed-mean", "--trim", "0.2", "--json", "-o",
                   "x.weights.h5", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["method"] == "trimmed-mean"
        assert record["method_summary"] == "drops the lowest and the highest of 5 values"
        assert record["selection"]["coefficients"] == "none"
        for name, found in stored(tmp_path / "x.weights.h5").items():
            stack = np.sort([stored(path)[name].astype("f8") for path in FIVE], axis=0)
            assert np.array_equal(found, stack[1:4].mean(axis=0).astype("f4")), name

    @pytest.mark.parametrize("method", SORTING)
    def test_neither_order_nor_threads_nor_memory_change_a_bit(self, tmp_path, method):
        ways = [THREE, THREE[::-1], [*THREE, "--threads", "1"],
                [*THREE, "--threads", "3", "--memory-limit", "64MiB"]]  # fmt: skip
        found = []
        for number, way in enumerate(ways):
            done = run("merge", *way, "--method", method, "-o", f"{number}.keras", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            values = stored(tmp_path / f"{number}.keras")
            found.append({name: array.tobytes() for name, array in values.items()})
        assert all(other == found[0] for other in found)

    @pytest.mark.parametrize("method", SORTING)
    def test_copies_of_one_checkpoint_give_that_checkpoint(self, tmp_path, method):
        copies = [tmp_path / f"{i}.keras" for i in range(4)]
        for copy in copies:
            shutil.copyfile(THREE[0], copy)
        done = run("merge", *copies, "--method", method, "-o", "x.keras", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        first = stored(THREE[0])
        for name, found in stored(tmp_path / "x.keras").items():
            assert found.tobytes() == first[name].tobytes(), name

    def test_the_plan_says_what_is_dropped(self, tmp_path):
        done = run("merge", *FIVE, "--method", "trimmed-mean", "--trim", "0.4", "--dry-run",
                   cwd=tmp_path)  # fmt: skip
        assert "method   trimmed-mean: drops the 2 lowest and the 2 highest of 5 values" in (
            done.stdout
        )
        assert "coefficients: none" in done.stdout

    def test_a_share_that_is_less_than_one_value_is_told(self, tmp_path):
        done = run("merge", *FIVE, "--method", "trimmed-mean", "-o", "x.weights.h5", cwd=tmp_path)
        assert "drops none of 5 values: --trim 0.1 of them is less than one" in done.stderr

    @pytest.mark.parametrize("trim", ["0.5", "-0.1", "nan"])
    def test_a_share_that_leaves_nothing_is_refused(self, tmp_path, trim):
        done = run("merge", *FIVE, "--method", "trimmed-mean", "--trim", trim, cwd=tmp_path)
        assert done.returncode == 2
        assert "--trim" in done.stderr
        assert not contents(tmp_path)

    @pytest.mark.parametrize("method", SORTING)
    @pytest.mark.parametrize(
        "option", [("--weights", "0.2,0.2,0.2,0.2,0.2"), ("--softmax", "1"), ("--decay", "0.9")]
    )
    def test_coefficients_are_refused_by_name(self, tmp_path, method, option):
        done = run("merge", *FIVE, "--method", method, *option, cwd=tmp_path)
        assert done.returncode == 2
        assert option[0] in done.stderr
        assert f"--method {method}" in done.stderr

    @pytest.mark.parametrize("method", SORTING)
    def test_nan_is_refused_unless_it_is_allowed(self, tmp_path, method):
        paths = [tmp_path / f"{i}.weights.h5" for i in range(5)]
        for path, source in zip(paths, FIVE, strict=True):
            shutil.copyfile(source, path)
        with h5py.File(paths[3], "r+") as file:
            file[KERNEL][0, 0, 0, 1] = np.nan
        arguments = ("merge", *paths, "--method", method, "-o", "x.weights.h5")
        refused = run(*arguments, cwd=tmp_path)
        assert refused.returncode == 1
        assert "3.weights.h5" in refused.stderr
        assert "[0, 0, 0, 1]" in refused.stderr or "(0, 0, 0, 1)" in refused.stderr
        assert run(*arguments, "--allow-non-finite", cwd=tmp_path).returncode == 0
        found = stored(tmp_path / "x.weights.h5")[KERNEL]
        assert np.argwhere(np.isnan(found)).tolist() == [[0, 0, 0, 1]]
