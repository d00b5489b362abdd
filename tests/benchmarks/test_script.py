"""`scripts/benchmark.py` from end to end, with very small inputs; never how fast anything was."""

import json
import subprocess
import sys

import pytest

from tests.builders import ROOT

ROWS = ["L", "L fsync", "streamavg, fsync (default)", "streamavg, weighted",
        "streamavg, 64 MiB allowed", "whole models (h5py)"]  # fmt: skip
SCENARIOS = ["float32, .weights.h5", "float32, .keras", "float32, legacy .h5",
             "float16, .weights.h5", "bfloat16, .weights.h5"]  # fmt: skip


def benchmark(folder, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *arguments, "--folder", folder],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


TINY = ["--quick", "--checkpoints", "3", "--megabytes", "0.2", "--rounds", "1"]


def test_the_quick_benchmark_measures_every_layout_and_dtype(tmp_path):
    done = benchmark(
        tmp_path, *TINY, "--mode", "warm", "--without", "article", "--json", "report.json"
    )
    report = json.loads((tmp_path / "report.json").read_text())
    names = {(m["scenario"], m["contender"]) for m in report["measurements"] if m["round"] == 1}
    assert {name for scenario, name in names if scenario == SCENARIOS[0]} >= set(ROWS)
    for scenario in SCENARIOS:
        assert {(scenario, "L fsync"), (scenario, "streamavg, fsync (default)")} <= names
        assert f"**{scenario}**: 3 checkpoints of 0." in done.stdout
    for measurement in report["measurements"]:
        assert measurement["seconds"] > 0
        assert measurement["peak_bytes"] > 0
        assert measurement["outcome"] == "done"
    for row in ROWS:
        assert f"\n| {row} | " in done.stdout
    assert "- the article's way (Keras): left out as asked." in done.stdout
    assert "- mergekit, linear: no --mergekit-python was given." in done.stdout
    assert str(tmp_path) not in done.stdout + (tmp_path / "report.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_page_can_be_written_of_earlier_measurements(tmp_path):
    made = benchmark(
        tmp_path, *TINY, "--mode", "cold", "--cold-by", "fadvise", "--json", "report.json"
    )
    page = benchmark(tmp_path, "--from", "report.json", "--page", "page.md")
    assert page.stdout == made.stdout
    assert made.stdout.strip() in (tmp_path / "page.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_measured_becomes_a_page_with_a_picture(tmp_path):
    modes = ["cold", "cgroup", "median", "growth", "accuracy"]
    benchmark(
        tmp_path, *TINY, "--mode", *modes, "--profile", "--cold-by", "fadvise",
        "--json", "report.json", "--page", "page.md",
    )  # fmt: skip
    text = (tmp_path / "page.md").read_text()
    for heading in ("Machine and versions", "What is promised", "Cold page cache", "Growth",
                    "Accuracy", "Where the remaining time goes"):  # fmt: skip
        assert f"\n## {heading}" in text
    assert "(page.png)" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert "missed" not in text.partition("## Accuracy")[2].partition("## ")[0]


def test_a_file_that_holds_no_measurements_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    for name in ("report.json", "no-such-file.json"):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "benchmark.py", "--from", name],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("error: these are not measurements that --json wrote")
