"""Commands are measured as the operating system sees them."""

import sys

import pytest
from benchmarks import measuring
from benchmarks.cgroups import CgroupUnavailableError

MIB = 1024**2


def python(code, *arguments):
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def test_the_peak_is_that_of_the_command(tmp_path):
    small = measuring.run(python("pass"), tmp_path)
    large = measuring.run(python(f"b'x' * {200 * MIB}"), tmp_path)
    assert small.peak_bytes < 40 * MIB
    assert 200 * MIB <= large.peak_bytes < 240 * MIB


def test_the_peak_is_that_of_the_largest_process_of_a_command(tmp_path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'b\"x\" * {200 * MIB}'])"
    assert 200 * MIB <= measuring.run(python(code), tmp_path).peak_bytes < 240 * MIB


def test_the_time_is_that_of_the_whole_process(tmp_path):
    done = measuring.run(python("import time; time.sleep(0.3)"), tmp_path)
    assert done.seconds > 0.3 > done.processor_seconds > 0


def test_a_command_that_fails_says_how_and_why(tmp_path):
    failed = measuring.run(python("import sys; sys.exit('no such thing')"), tmp_path)
    assert (failed.outcome, failed.message) == ("exit code 1", "no such thing")
    killed = measuring.run(python("import os; os.kill(os.getpid(), 9)"), tmp_path)
    assert killed.outcome == "signal 9"
    missing = measuring.run(["./no-such-program"], tmp_path)
    assert missing.outcome == "exit code 127"
    assert "no-such-program" in missing.message


def test_a_command_runs_in_its_folder_with_its_output_out_of_the_way(tmp_path):
    done = measuring.run(python("print(1); open('made', 'w')"), tmp_path)
    assert done.outcome == "done"
    assert (tmp_path / "made").exists()


def test_open_files_are_limited(tmp_path):
    code = "files = [open('/dev/null') for _ in range(60)]"
    assert measuring.run(python(code), tmp_path, open_files=128).outcome == "done"
    limited = measuring.run(python(code), tmp_path, open_files=50)
    assert "Too many open files" in limited.message


def test_the_page_cache_is_asked_to_forget_files_that_stay_as_they_are(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    measuring.fill_cache([path])
    measuring.drop_cache([path], everything=False)
    assert path.read_bytes() == b"x" * MIB


@pytest.fixture
def _cgroups(tmp_path):
    try:
        measuring.run(python("pass"), tmp_path, memory=64 * MIB)
    except CgroupUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_cgroups")
def test_a_command_that_outgrows_its_cgroup_is_known_to_have_been_killed(tmp_path):
    code = f"b'x' * {100 * MIB}"
    assert measuring.run(python(code), tmp_path, memory=64 * MIB).outcome == "OOM kill"
    assert measuring.run(python(code), tmp_path, memory=200 * MIB).outcome == "done"
