"""The command line as a whole: help, exit codes, errors, broken pipes, what it imports."""

import subprocess
import sys

import click
import pytest

import streamavg
from streamavg.cli import COMMANDS
from streamavg.cli import streamavg as group
from tests.builders import DIGITS, LAYOUTS, MISMATCHED, command, environment, run, run_python

PAIR = [DIGITS / "epoch-19.keras", DIGITS / "epoch-20.keras"]
LOADED = """
import sys
from streamavg.cli import main
sys.argv = ["streamavg", *sys.argv[1:]]
try:
    main()
except SystemExit as exit_:
    assert not exit_.code, exit_.code
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"numpy", "h5py", "tensorflow", "keras", "ml_dtypes", "tqdm"}),
      file=sys.stderr)
"""


def subcommands():
    context = click.Context(group)
    return [group.get_command(context, name) for name in group.list_commands(context)]


class TestHelp:
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_lists_the_commands(self, tmp_path, flag):
        done = run(flag, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(name in done.stdout for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_a_command_shows_its_options(self, tmp_path, name):
        done = run(name, "--help", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--debug" in done.stdout

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_a_command_is_there_without_files(self, tmp_path, name):
        assert run(name, "missing.keras", "--help", cwd=tmp_path).returncode == 0

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            (subcommand.name or COMMANDS[i], parameter)
            for i, subcommand in enumerate(subcommands())
            for parameter in subcommand.params
            if isinstance(parameter, click.Option)
        ],
        ids=lambda value: value if isinstance(value, str) else value.name,
    )
    def test_says_something_about_every_option(self, name, option):
        assert option.help, f"{name} {option.opts}"
        assert option.help.rstrip("]").endswith((".", "suffix", "MiB", "first")), option.help

    @pytest.mark.parametrize("subcommand", subcommands(), ids=COMMANDS)
    def test_says_something_about_every_command(self, subcommand):
        assert subcommand.help

    def test_names_the_version(self, tmp_path):
        done = run("--version", cwd=tmp_path)
        assert done.returncode == 0
        assert streamavg.__version__ in done.stdout

    def test_is_shown_for_a_call_without_arguments(self, tmp_path):
        """As an answer, not as an error message."""
        done = run(cwd=tmp_path)
        assert done.returncode in {0, 2}
        assert "Commands:" in done.stdout + done.stderr
        assert not done.stderr.startswith("error: Usage:")
        assert "Try '" not in done.stderr


class TestExitCodes:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["merge"],
            ["merge", "--nonsense", *PAIR],
            ["merge", PAIR[0]],
            ["merge", *PAIR, "--dtype", "int8"],
            ["merge", *PAIR, "--weights", "1,2,3"],
            ["merge", *PAIR, "--weights", "0.5"],
            ["merge", *PAIR, "--weights", "a,b"],
            ["merge", *PAIR, "--weights", ""],
            ["merge", *PAIR, "--weights", "0.5,,0.5"],
            ["merge", *PAIR, "--weights", "nan,1"],
            ["merge", *PAIR, "--weights", "-1,2"],
            ["merge", *PAIR, "--memory-limit", "much"],
            ["merge", *PAIR, "--memory-limit", "9" * 400],
            ["merge", *PAIR, "-o", "out.npz"],
            ["merge", *PAIR, "-o", "out.h5"],
            ["merge", *PAIR, "--reference", "other.keras"],
            ["merge", *PAIR, "--match", "luck"],
            ["merge", PAIR[0], PAIR[0]],
            ["inspect"],
            ["inspect", "--nonsense"],
        ],
        ids=lambda arguments: " ".join(str(a)[-12:] for a in arguments),
    )
    def test_2_is_wrong_usage(self, tmp_path, arguments):
        done = run(*arguments, cwd=tmp_path)
        self.require_refusal(done, 2, tmp_path)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["merge", PAIR[0], "missing.keras"],
            ["merge", PAIR[0], MISMATCHED / "wider.keras"],
            ["merge", PAIR[0], "."],
            ["merge", *PAIR, "-o", "no/out.keras"],
            ["merge", *PAIR, "-o", PAIR[0]],
            ["merge", *PAIR, "--memory-limit", "1MiB"],
            ["merge", LAYOUTS / "handmade" / "evil_softlink.weights.h5", PAIR[0]],
            ["inspect", "missing.keras"],
            ["inspect", LAYOUTS / "handmade" / "evil_truncated.weights.h5"],
            ["inspect", LAYOUTS / "handmade" / "evil_zipbomb.keras"],
        ],
        ids=lambda arguments: " ".join(str(a)[-12:] for a in arguments),
    )
    def test_1_is_a_refusal_of_the_data_or_the_machine(self, tmp_path, arguments):
        done = run(*arguments, cwd=tmp_path)
        self.require_refusal(done, 1, tmp_path)

    @staticmethod
    def require_refusal(done, code, folder):
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr
        assert list(folder.iterdir()) == []

    def test_0_is_done(self, tmp_path):
        assert run("merge", *PAIR, cwd=tmp_path).returncode == 0


class TestErrors:
    def test_have_a_traceback_with_debug_alone(self, tmp_path):
        arguments = ["merge", PAIR[0], MISMATCHED / "wider.keras"]
        done = run(*arguments, "--debug", cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stderr.count("\nerror: ") == 1

    def test_of_usage_point_to_the_help(self, tmp_path):
        done = run("merge", "--nonsense", cwd=tmp_path)
        assert "--help'" in done.stderr
        assert "merge" in done.stderr

    def test_of_a_mistyped_option_suggest_the_right_one(self, tmp_path):
        assert "--weights" in run("merge", *PAIR, "--weight", "1,1", cwd=tmp_path).stderr


class TestStreams:
    def test_that_are_closed_early_are_no_crash(self, tmp_path):
        process = subprocess.Popen(
            command("inspect", LAYOUTS / "keras3.15.1-tf-chunked_layer_names.h5"),
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.stderr.close()
        assert process.wait(60) in {0, 1}
        assert errors == ""

    def test_without_stdout_a_merge_still_works(self, tmp_path):
        done = self.shell(tmp_path, ">&-", "merge", *PAIR)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "averaged.keras").exists()

    def test_without_stderr_a_merge_still_works(self, tmp_path):
        assert self.shell(tmp_path, "2>&-", "merge", *PAIR).returncode == 0
        assert (tmp_path / "averaged.keras").exists()

    def test_that_are_full_are_an_error(self, tmp_path):
        done = self.shell(tmp_path, "> /dev/full", "inspect", PAIR[0])
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr

    @staticmethod
    def shell(folder, redirection, *arguments):
        words = " ".join(f"'{word}'" for word in command(*arguments))
        return subprocess.run(
            ["/bin/sh", "-c", f"{words} {redirection}"], cwd=folder, env=environment(),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


class TestImports:
    def test_help_needs_neither_numpy_nor_h5py_nor_tensorflow(self, tmp_path):
        for arguments in (["--help"], ["merge", "--help"], ["inspect", "--help"], ["--version"]):
            done = run_python(LOADED, *arguments, cwd=tmp_path)
            assert done.stderr.strip() == "[]", arguments

    def test_a_merge_of_plain_files_needs_neither_h5py_nor_tensorflow_nor_keras(self, tmp_path):
        done = run_python(LOADED, "merge", *PAIR, "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "['numpy']"

    def test_a_merge_of_floats_does_not_need_ml_dtypes(self, tmp_path):
        done = run_python(LOADED, "merge", *PAIR, "--quiet", cwd=tmp_path)
        assert "ml_dtypes" not in done.stderr

    def test_importing_the_package_needs_neither_numpy_nor_h5py(self):
        done = run_python("import sys, streamavg; print('numpy' in sys.modules)")
        assert done.stdout.strip() == "False"

    def test_the_module_and_the_script_are_the_same(self, tmp_path):
        script = subprocess.run(
            [sys.executable, "-c", "from importlib.metadata import entry_points as e; "
             "print(*[s.value for s in e(group='console_scripts') if s.name == 'streamavg'])"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert script.stdout.strip() in {"streamavg.cli:main", ""}
