"""What the README shows is what the commands print."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest

from tests.builders import ROOT, environment

BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
EXAMPLES = [
    example.split("\n", 1)
    for block in BLOCKS
    for example in re.split(r"^\$ ", block, flags=re.MULTILINE)
    if example.startswith("streamavg ")
]
COMMAND = re.compile(r"(?:^|(?<=&& ))streamavg ")
NEEDS_KERAS = re.compile(r"streamavg (rebuild|evaluate|soup)")
MEASURED = (r"\d+(\.\d+)? s\b", r"peak memory \d+(\.\d+)? MiB")
"""Other numbers each time."""


def normal(text):
    """Without what is measured, and with every line break a space."""
    for pattern in MEASURED:
        text = re.sub(pattern, "<measured>", text)
    return " ".join(text.split())


def case(line, shown):
    """An example with its marks: those that load Keras take seconds, and need it."""
    marks = []
    if NEEDS_KERAS.search(line):
        is_missing = importlib.util.find_spec("keras") is None
        marks = [pytest.mark.slow, pytest.mark.skipif(is_missing, reason="Keras is not installed")]
    return pytest.param(line, shown, id=line.replace("/", "|"), marks=marks)


@pytest.mark.parametrize(("line", "shown"), [case(*example) for example in EXAMPLES])
def test_an_example_prints_what_is_shown(tmp_path, line, shown):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    program = f"{shlex.quote(sys.executable)} -m streamavg"
    done = subprocess.run(
        COMMAND.sub(f"{program} ", line), shell=True, cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    parts = [re.escape(part) for part in normal(shown).split("...")]
    assert re.fullmatch(".*".join(parts), normal(done.stdout)), done.stdout


def test_there_are_examples():
    assert len(EXAMPLES) > 4


def rows(text):
    """The cells of each row of all Markdown tables, by the first one, in order."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
            found.setdefault(name, []).append(cells)
    return found


def test_when_it_helps_has_the_numbers_that_were_measured():
    shown = rows((ROOT / "README.md").read_text("utf-8").partition("\n## When it helps")[2])
    page = (ROOT / "docs" / "when-to-average.md").read_text("utf-8")
    measured = rows(page.partition("<!-- measured: begin -->")[2])
    names = [name for name in shown if name in measured]
    assert len(names) == 4
    for name in names:
        distances, accuracies = measured[name]
        accuracy = [cell.partition(" ")[0] for cell in accuracies]
        assert shown[name] == [[distances[1], accuracy[1], accuracy[2]]], name


def test_speed_has_the_medians_that_were_measured():
    text = (ROOT / "README.md").read_text("utf-8").partition("- **Speed.**")[2]
    shown = re.findall(r"\d\.\d", text.partition("\n\n")[0])
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    goals = rows(page.partition("\n## What is promised")[2].partition("\n## ")[0])
    medians = {name: float(cells[-3]) for name, (cells,) in goals.items() if "warm" in name}
    halves = {name: medians.pop(name) for name in list(medians) if "float16" in name}

    def ends(found, *, fsync):
        values = [value for name, value in found.items() if ("fsync" in name) == fsync]
        return [f"{min(values):.1f}", f"{max(values):.1f}"]

    assert shown[:4] == ends(medians, fsync=True) + ends(medians, fsync=False)
    assert {shown[4]} == set(ends(halves, fsync=True))
    assert shown[5:] == ends(halves, fsync=False)
