"""`streamavg merge`: the contract of the command, mostly in processes of its own."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
import time

import h5py
import numpy as np
import pytest

from tests.builders import (
    DIGITS,
    LEGACY,
    MISMATCHED,
    command,
    contents,
    environment,
    run,
    run_python,
    sha256,
    stored,
    write_weights,
)

PAIR = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]
THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
KERNEL = "layers/conv2d/vars/0"


def kernels(paths):
    return [stored(path)[KERNEL].astype("f8") for path in paths]


class TestOutput:
    @pytest.mark.parametrize(
        ("paths", "name"),
        [
            (PAIR, "averaged.keras"),
            ([path.with_suffix(".weights.h5") for path in PAIR], "averaged.weights.h5"),
            ([LEGACY / f"keras3-epoch-{n}.h5" for n in (19, 20)], "averaged.h5"),
        ],
        ids=["keras", "weights", "legacy"],
    )
    def test_is_called_averaged_in_the_current_folder(self, tmp_path, paths, name):
        done = run("merge", *paths, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("option", ["-o", "--output"])
    def test_is_where_it_should_be(self, tmp_path, option):
        (tmp_path / "folder").mkdir()
        done = run("merge", *PAIR, option, "folder/mean.keras", cwd=tmp_path)
        assert done.returncode == 0
        assert stored(tmp_path / "folder" / "mean.keras")

    def test_of_archives_may_be_weights_alone(self, tmp_path):
        assert run("merge", *PAIR, "-o", "x.weights.h5", cwd=tmp_path).returncode == 0
        with h5py.File(tmp_path / "x.weights.h5") as file:
            assert "layers" in file

    def test_names_the_suffixes_that_would_do(self, tmp_path):
        done = run("merge", *PAIR, "-o", "x.npz", cwd=tmp_path)
        assert done.returncode == 2
        assert "Use *.keras or *.weights.h5" in done.stderr

    def test_that_exists_is_refused_without_force(self, tmp_path):
        assert run("merge", *PAIR, cwd=tmp_path).returncode == 0
        before = sha256(tmp_path / "averaged.keras")
        done = run("merge", *THREE, cwd=tmp_path)
        assert done.returncode == 1
        assert "averaged.keras: exists already. Replace it with --force" in done.stderr
        assert sha256(tmp_path / "averaged.keras") == before
        assert run("merge", *THREE, "--force", cwd=tmp_path).returncode == 0
        assert sha256(tmp_path / "averaged.keras") != before

    def test_that_is_an_input_is_refused_even_with_force(self, tmp_path):
        paths = [shutil.copy(path, tmp_path) for path in PAIR]
        before = contents(tmp_path)
        done = run("merge", *paths, "-o", paths[0], "--force", cwd=tmp_path)
        assert done.returncode == 1
        assert contents(tmp_path) == before


class TestWeights:
    def test_are_a_list_with_commas(self, tmp_path):
        assert run("merge", *THREE, "--weights", "0.5,0.3,0.2", cwd=tmp_path).returncode == 0
        expected = sum(w * k for w, k in zip((0.5, 0.3, 0.2), kernels(THREE), strict=True))
        np.testing.assert_allclose(stored(tmp_path / "averaged.keras")[KERNEL], expected, rtol=1e-6)

    @pytest.mark.parametrize("text", ["0.5, 0.3, 0.2", "5e-1,3e-1,2e-1", ".5,.3,.2"])
    def test_are_numbers_however_they_are_written(self, tmp_path, text):
        assert run("merge", *THREE, "--weights", text, cwd=tmp_path).returncode == 0

    def test_that_do_not_sum_to_one_are_refused_by_naming_normalize(self, tmp_path):
        done = run("merge", *THREE, "--weights", "100,300,600", cwd=tmp_path)
        assert done.returncode == 2
        assert "sum to 1000, not 1. Add --normalize" in done.stderr

    def test_are_divided_by_their_sum_with_normalize(self, tmp_path):
        done = run("merge", *THREE, "--weights", "100,300,600", "--normalize", "--json",
                   cwd=tmp_path)  # fmt: skip
        coefficients = [entry["coefficient"] for entry in json.loads(done.stdout)["inputs"]]
        assert coefficients == [0.1, 0.3, 0.6]

    def test_that_are_thirds_of_six_digits_are_taken(self, tmp_path):
        text = "0.333333,0.333333,0.333333"
        assert run("merge", *THREE, "--weights", text, cwd=tmp_path).returncode == 0


class TestReport:
    def test_says_what_was_done_and_what_next(self, tmp_path):
        done = run("merge", *PAIR, cwd=tmp_path)
        assert done.stdout == ""
        assert "Averaged 2 checkpoints into averaged.keras: 7 variables averaged" in done.stderr
        assert re.search(r"peak memory \d+(\.\d+)? MiB of 256 MiB allowed", done.stderr)
        assert "12 optimizer variables" in done.stderr
        assert "Next: python -c" in done.stderr

    def test_names_a_next_command_that_works_for_weights(self, tmp_path):
        done = run("merge", *PAIR, "-o", "x.weights.h5", cwd=tmp_path)
        assert "Next: model.load_weights('x.weights.h5')" in done.stderr

    def test_shows_notes(self, tmp_path):
        done = run("merge", PAIR[1], MISMATCHED / "other-preprocessing.keras",
                   "--preprocessing", "reference", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0
        assert done.stderr.count("note: ") == 2

    def test_is_silent_with_quiet(self, tmp_path):
        done = run("merge", *PAIR, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / "averaged.keras").exists()

    def test_is_not_silent_about_errors_with_quiet(self, tmp_path):
        done = run("merge", PAIR[0], "missing.keras", "--quiet", cwd=tmp_path)
        assert done.stderr.startswith("error: missing.keras: ")

    def test_is_json_on_stdout_with_json(self, tmp_path):
        done = run("merge", *PAIR, "--json", cwd=tmp_path)
        record = json.loads(done.stdout)
        assert record["output"] == "averaged.keras"
        assert record["memory"]["measured"] > 0
        assert json.loads(run("merge", *PAIR, "--json", "--quiet", "--force",
                              cwd=tmp_path).stdout)  # fmt: skip

    def test_has_every_difference_on_stdout_with_json(self, tmp_path):
        layers = {f"layers/dense_{i}": [np.zeros(2, "f4")] for i in range(30)}
        wider = {path: [np.zeros(3, "f4")] for path in layers}
        paths = [
            write_weights(tmp_path / "a.weights.h5", layers),
            write_weights(tmp_path / "b.weights.h5", wider),
        ]
        done = run("merge", *paths, "--json", cwd=tmp_path)
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert document["error"] == "IncompatibleCheckpointsError"
        assert len(document["differences"]) == 30
        assert "... and 20 more" in done.stderr
        assert len(done.stderr.splitlines()) == 12


class TestRecordFile:
    def test_is_the_record(self, tmp_path):
        done = run("merge", *PAIR, "--json", "--record", "record.json", cwd=tmp_path)
        assert json.loads((tmp_path / "record.json").read_text()) == json.loads(done.stdout)

    @pytest.mark.parametrize("index", [0, 1])
    def test_never_replaces_an_input(self, tmp_path, index):
        paths = [shutil.copy(path, tmp_path) for path in PAIR]
        before = contents(tmp_path)
        done = run("merge", *paths, "-o", "out.keras", "--record", paths[index], cwd=tmp_path)
        after = contents(tmp_path)
        assert {name: after[name] for name in before} == before
        assert done.returncode != 0

    def test_never_replaces_the_output(self, tmp_path):
        done = run("merge", *PAIR, "-o", "out.keras", "--record", "out.keras", cwd=tmp_path)
        assert done.returncode != 0
        assert not (tmp_path / "out.keras").exists() or stored(tmp_path / "out.keras")

    def test_that_cannot_be_written_is_refused_before_the_merge(self, tmp_path):
        done = run("merge", *PAIR, "--record", "no/record.json", cwd=tmp_path)
        assert done.returncode in {1, 2}
        assert "no/record.json" in done.stderr
        assert not (tmp_path / "averaged.keras").exists()


class TestDryRun:
    def test_writes_nothing(self, tmp_path):
        done = run("merge", *PAIR, "--dry-run", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize(
        "text",
        [
            "Would average 2 checkpoints into averaged.keras (keras-archive):",
            "(reference)",
            "0.500000  ",
            "projected of 256 MiB allowed (default)",
            "3.75 KiB to read, 1.88 KiB to write",
            "free on the disk",
            "left out 12 variables",
            "average  layers/conv2d/vars/0  5 x 5 x 1 x 12  float32  (float values)",
            "carry    layers/normalization/vars/2  scalar  int64  (preprocessing state)",
            "drop     optimizer/vars/0  scalar  int64  (optimizer state)",
        ],
    )
    def test_shows(self, tmp_path, text):
        assert text in run("merge", *PAIR, "--dry-run", cwd=tmp_path).stdout

    def test_shows_other_dtypes(self, tmp_path):
        done = run("merge", *PAIR, "--dry-run", "--dtype", "bfloat16", cwd=tmp_path)
        assert "float32 -> bfloat16" in done.stdout

    def test_shortens_a_long_list_of_inputs(self, tmp_path):
        layers = {"layers/x": [np.zeros(2, "f4")]}
        paths = [write_weights(tmp_path / f"{i}.weights.h5", layers) for i in range(20)]
        assert "... and 8 more" in run("merge", *paths, "--dry-run", cwd=tmp_path).stdout

    def test_is_json_with_json(self, tmp_path):
        done = run("merge", *PAIR, "--dry-run", "--json", cwd=tmp_path)
        record = json.loads(done.stdout)
        assert record["seconds"] is None
        assert contents(tmp_path) == {}

    def test_refuses_what_the_merge_would_refuse(self, tmp_path):
        done = run("merge", PAIR[0], MISMATCHED / "wider.keras", "--dry-run", cwd=tmp_path)
        assert done.returncode == 1
        (tmp_path / "averaged.keras").touch()
        assert run("merge", *PAIR, "--dry-run", cwd=tmp_path).returncode == 1


class TestProgress:
    EAGER = """
import sys
from streamavg.cli import main, progress
progress.SECONDS_BETWEEN_LINES = 0
sys.argv = ["streamavg", *sys.argv[1:]]
main()
"""

    def test_is_plain_lines_where_stderr_is_no_terminal(self, tmp_path):
        done = run_python(self.EAGER, "merge", *PAIR, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if " read (" in line]
        assert re.fullmatch(
            r"[\d.]+ \w+ of 3\.75 KiB read \(\d+%\), [\d.]+ \w+/s, \d+ s left", lines[0]
        )
        assert "(100%)" in lines[-1]
        assert "\r" not in done.stderr

    def test_is_nothing_for_a_short_merge(self, tmp_path):
        assert " read (" not in run("merge", *PAIR, cwd=tmp_path).stderr

    @pytest.mark.parametrize("option", ["--quiet", "--no-progress"])
    def test_is_nothing_where_it_is_not_wanted(self, tmp_path, option):
        done = run_python(self.EAGER, "merge", *PAIR, option, cwd=tmp_path)
        assert done.returncode == 0
        assert " read (" not in done.stderr

    def test_is_a_bar_on_a_terminal(self, tmp_path):
        code, text = on_a_terminal(tmp_path, "merge", *PAIR)
        assert code == 0
        assert "averaging:" in text
        assert "\r" in text
        assert "Averaged 2 checkpoints" in text

    @pytest.mark.parametrize("option", ["--quiet", "--no-progress"])
    def test_is_no_bar_where_it_is_not_wanted(self, tmp_path, option):
        code, text = on_a_terminal(tmp_path, "merge", *PAIR, option)
        assert code == 0
        assert "averaging:" not in text

    def test_of_a_refused_merge_leaves_the_error_alone_on_a_terminal(self, tmp_path):
        code, text = on_a_terminal(tmp_path, "merge", PAIR[0], MISMATCHED / "wider.keras")
        assert code == 1
        assert text.startswith("error: ")


def on_a_terminal(folder, *arguments):
    """Exit code and stderr of a command whose stderr is a terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        text += piece
    os.close(master)
    return process.wait(60), text.decode()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Four checkpoints of 50 MB, zeros that take no room on the disk."""
    folder = tmp_path_factory.mktemp("large")
    shape = (12_500, 1_000)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    paths = [folder / f"{i}.weights.h5" for i in range(4)]
    for path in paths:
        with h5py.File(path, "w") as file:
            group = file.create_group("layers/dense/vars")
            h5py.h5d.create(group.id, b"0", h5py.h5t.NATIVE_FLOAT,
                            h5py.h5s.create_simple(shape), dcpl=creation)  # fmt: skip
    yield paths
    shutil.rmtree(folder)


def on_disk(path):
    """Bytes of a file that have been written; it has its full length from the start."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return -1


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "code", "word"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    )
    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("written", [0, 2**22], ids=["at once", "in the middle"])
    def test_leave_nothing_behind(self, tmp_path, large, number, code, word, force, written):
        if force:
            (tmp_path / "averaged.weights.h5").write_text("precious")
        before = contents(tmp_path)
        process = subprocess.Popen(
            command("merge", *large, "--dtype", "float64", "--threads", "1", *["--force"] * force),
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not [p for p in tmp_path.glob(".*.partial") if on_disk(p) >= written]:
            assert time.monotonic() < deadline, "the merge did not start"
            assert process.poll() is None, "the merge was over too soon"
            time.sleep(0.001)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == code
        assert output == ""
        assert errors.strip() == f"error: {word}; nothing was written."
        assert contents(tmp_path) == before

    def test_that_kill_leave_no_output(self, tmp_path, large):
        process = subprocess.Popen(
            command("merge", *large, "--dtype", "float64"), cwd=tmp_path, env=environment(),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not list(tmp_path.glob(".*.partial")):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait(30)
        assert not (tmp_path / "averaged.weights.h5").exists()
        for path in tmp_path.iterdir():
            assert path.name.endswith(".partial")
            path.unlink()


@pytest.mark.parametrize("option", [["--io", "direct"], ["--io", "buffered"], ["--no-fsync"]])
def test_how_the_disk_is_used_does_not_change_the_output(tmp_path, option):
    inputs = sorted(DIGITS.glob("*.keras"))
    for name, options in (("one", []), ("two", option)):
        done = run("merge", *inputs, "-o", tmp_path / f"{name}.keras", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()


def test_the_plan_says_how_inputs_are_read(tmp_path):
    done = run(
        "merge", *sorted(DIGITS.glob("*.keras")), "--io", "direct", "--dry-run", cwd=tmp_path
    )
    assert ", direct reads" in done.stdout
    done = run("merge", *sorted(DIGITS.glob("*.keras")), "--io", "mmap", cwd=tmp_path)
    assert done.returncode == 2
    assert "auto" in done.stderr
