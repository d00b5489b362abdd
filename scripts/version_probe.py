"""Try streamavg with the oldest and the newest Keras and TensorFlow that it supports.

    python scripts/version_probe.py                    # print the table
    python scripts/version_probe.py --write README.md  # put it into a page
    python scripts/version_probe.py --check README.md  # compare it with the page's; exit code 1

In a virtual environment for either, `pip` installs this checkout with the extra `tensorflow` and
those versions. There

1. fixtures that Keras 3 wrote are averaged with a perturbed copy, loaded by that Keras, and every
   variable is compared with NumPy's mean (see compatibility.py);
2. `streamavg demo` trains, checks, compares, merges and evaluates.

Where the Python that runs this script has the versions already, it is the environment. One that
cannot be had with this Python is left out, and the output says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compatibility import (
    REPOSITORY,
    Environment,
    Result,
    find_samples,
    judge,
    last_line,
    load_all,
    make_case,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LAYOUTS = REPOSITORY / "fixtures" / "layouts"
FEATURES = ("cnn_a.*", "containers.*", "nested.*", "subclassed.*")
"""Of the fixtures that are loaded: one of each kind of file and of model."""
BEGIN, END = "<!-- versions: begin -->", "<!-- versions: end -->"


@dataclass(frozen=True)
class Probe:
    """One end of the range that is supported.

    Attributes:
        name: Which end.
        keras: Version of Keras.
        tensorflow: Version of TensorFlow.
        writer: The fixtures' writer that this Keras reads.
        last_python: The last Python, as (3, minor), that this TensorFlow has builds for.
    """

    name: str
    keras: str
    tensorflow: str
    writer: str
    last_python: tuple[int, int]

    @property
    def environment(self) -> Environment:
        """Return it as compatibility.py describes environments."""
        patterns = tuple(f"{self.writer}-{feature}" for feature in FEATURES)
        return Environment(self.name, patterns, self.requirements)

    @property
    def requirements(self) -> tuple[str, ...]:
        """Return what pip installs."""
        versions = (f"keras=={self.keras}", f"tensorflow-cpu=={self.tensorflow}")
        return (f"{REPOSITORY}[tensorflow]", *versions)


PROBES = (
    Probe("oldest", "3.3.3", "2.16.2", "keras3.0.5-tf", (3, 12)),
    Probe("newest", "3.15.1", "2.21.0", "keras3.15.1-tf", (3, 13)),
)


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        probe: The probe.
        loaded: How many averages were loaded, all variables equal.
        samples: How many there were.
        problem: What went wrong, or "".
    """

    probe: Probe
    loaded: int
    samples: int
    problem: str

    @property
    def row(self) -> str:
        """Return the finding's line in the table."""
        demo = self.problem or "runs as it should"
        files = f"{self.loaded} of {self.samples}"
        return f"| {self.probe.keras} | {self.probe.tensorflow} | {files} | {demo} |"


def python_of(probe: Probe, venvs: Path) -> Path:
    """Return a Python with this checkout and the versions of a probe.

    Args:
        probe: The probe.
        venvs: Where to make a virtual environment if this Python is none.

    Raises:
        subprocess.CalledProcessError: Something does not install.
    """
    if has_versions(probe):
        say(f"{probe.name}: Keras {probe.keras} and TensorFlow {probe.tensorflow} are here already")
        return Path(sys.executable)
    say(f"{probe.name}: installing Keras {probe.keras} and TensorFlow {probe.tensorflow}")
    home = venvs / probe.name
    python = home / "bin" / "python"
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    if not python.exists():
        run([sys.executable, "-m", "venv", home])
    run([python, "-m", "pip", "install", "--disable-pip-version-check", *probe.requirements])
    return python


def has_versions(probe: Probe) -> bool:
    """Tell whether this Python has the versions of a probe.

    Args:
        probe: The probe.
    """
    found = {}
    for package in ("keras", "tensorflow", "tensorflow-cpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    is_tensorflow = probe.tensorflow in (found["tensorflow"], found["tensorflow-cpu"])
    return found["keras"] == probe.keras and is_tensorflow


def probe_files(probe: Probe, python: Path, folder: Path) -> Iterator[str]:
    """Average fixtures and load them; yield for each what is wrong, or "".

    Args:
        probe: The probe.
        python: Its Python.
        folder: For temporary files.
    """
    environment = probe.environment
    cases = [
        make_case(sample, folder / "cases", merging=True)
        for sample in find_samples(LAYOUTS, f"{probe.writer}-*")
        if any(fnmatch.fnmatchcase(sample.name, pattern) for pattern in environment.reads)
    ]
    for case, loaded in zip(cases, load_all(environment, python, cases, folder), strict=True):
        row = judge(case, environment, loaded)
        yield "" if row.result is Result.EQUAL else f"{row.sample}: {row.result}: {row.detail}"


def probe_demo(python: Path, folder: Path) -> str:
    """Run the demonstration; return what is wrong, or "".

    Args:
        python: The Python to run it with.
        folder: Where it may write.
    """
    settings = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [python, "-P", "-m", "streamavg", "demo", "demo"],
        cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"exit code {done.returncode}: {last_line(done.stderr)}"
    for line in ("\npass: the average is better", "\nno pass: the average is worse"):
        if line not in done.stdout:
            return f"did not print {line.strip()!r}"
    return ""


def find(probe: Probe, venvs: Path, folder: Path) -> Finding:
    """Try one end of the range.

    Args:
        probe: The end.
        venvs: Where virtual environments are made.
        folder: For temporary files.
    """
    try:
        python = python_of(probe, venvs)
    except subprocess.CalledProcessError as error:
        return Finding(probe, 0, 0, f"does not install: {last_line(error.stderr)}")
    say(f"{probe.name}: loading averages")
    problems = list(probe_files(probe, python, folder))
    for problem in filter(None, problems):
        say(f"{probe.name}: {problem}")
    say(f"{probe.name}: streamavg demo")
    problem = probe_demo(python, folder)
    return Finding(probe, problems.count(""), len(problems), problem)


def table(rows: Sequence[str]) -> str:
    """Return a Markdown table.

    Args:
        rows: Its lines.
    """
    head = "| Keras | TensorFlow | averages loaded, all variables equal | `streamavg demo` |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def table_in(page: str) -> str:
    """Return the table that a page has, or "".

    Args:
        page: Its text.
    """
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def with_table(page: str, rows: Sequence[str]) -> str:
    """Return a page with another table.

    Args:
        page: Its text, with the marks between which the table stands.
        rows: The table's lines.
    """
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def complaints(findings: Sequence[Finding], page: str | None) -> Iterator[str]:
    """Yield what is wrong with findings, and where a page says otherwise.

    Args:
        findings: The findings.
        page: Its text, None if it does not matter.
    """
    if not findings:
        yield "nothing was tried"
    for finding in findings:
        if finding.problem or not finding.loaded == finding.samples > 0:
            yield f"{finding.probe.name}: does not work: {finding.row}"
        if page is not None and finding.row not in table_in(page).splitlines():
            yield f"{finding.probe.name}: the page has no line {finding.row}"


def is_built_for(probe: Probe, python: tuple[int, int]) -> bool:
    """Tell whether the TensorFlow of a probe can be had for a Python.

    Args:
        probe: The probe.
        python: Its version, as (3, minor).
    """
    return python <= probe.last_python


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venvs", type=Path, help="where to make environments, and keep them")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into a page")
    parser.add_argument("--check", type=Path, metavar="PAGE", help="compare it with a page's")
    options = parser.parse_args(arguments)
    findings = []
    with tempfile.TemporaryDirectory() as scratch:
        for probe in PROBES:
            if not is_built_for(probe, sys.version_info[:2]):
                say(f"{probe.name}: left out: TensorFlow {probe.tensorflow} is not built for this "
                    "Python")  # fmt: skip
                continue
            folder = Path(scratch, f"files-{probe.name}")
            folder.mkdir()
            findings.append(find(probe, (options.venvs or Path(scratch)).resolve(), folder))
    rows = [finding.row for finding in findings]
    print(table(rows))
    if options.write:
        text = options.write.read_text("utf-8")
        options.write.write_text(with_table(text, rows), "utf-8")
    page = options.check.read_text("utf-8") if options.check else None
    wrong = list(complaints(findings, page))
    for complaint in wrong:
        say(f"error: {complaint}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
