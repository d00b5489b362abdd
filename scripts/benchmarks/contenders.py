"""The commands that are compared, each a process of its own.

L is what the machine needs merely to read every input once and to write one model: `cat` of all
inputs, and a copy of one. There are two of it, because like goes against like: a merge without
`fsync` against a plain copy, a merge with it against a copy that is flushed to the disk too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.measuring import PROGRAMS, REPOSITORY, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

L = "L"
L_FSYNC = "L fsync"
MERGE = "streamavg"
"""Without fsync, as L."""
MERGE_FSYNC = "streamavg, fsync (default)"
WEIGHTED = "streamavg, weighted"
LIMITED = "streamavg, 64 MiB allowed"
BUFFERED = "streamavg, --io buffered"
DIRECT = "streamavg, --io direct"
WHOLE = "whole models (h5py)"
ARTICLE = "the article's way (Keras)"
MERGEKIT = "mergekit, linear"
MEDIAN = "streamavg, median"
NUMPY_MEDIAN = "numpy.median of a stack"
HELP = "streamavg --help"

EXACT = "exact"
FLOAT32_SUMS = "float32 sums"
MEDIANS = "medians"
NOTHING = "nothing"
"""What is expected of an output: see `checks`."""

MERGEKIT_PROGRAM = "from mergekit.scripts.merge_raw_pytorch import main; main()"


@dataclass(frozen=True, slots=True)
class Contender:
    """A command that averages the inputs, or stands for the least that this takes.

    Names of files are relative to the folder in which it runs.
    """

    name: str
    command: list[str]
    inputs: list[str]
    output: str | None
    expected: str = EXACT
    weights: tuple[float, ...] | None = None
    is_peer: bool = False
    """Another program: slow, so that it takes part in fewer rounds."""

    @property
    def is_merge(self) -> bool:
        """Whether it is a merge by streamavg."""
        return self.command[1:4] == ["-m", "streamavg", "merge"]


class Abilities:
    """What can be measured here."""

    def __init__(self, mergekit_python: str | None, without: Sequence[str]) -> None:
        self._mergekit_python = mergekit_python
        self._without = without

    @cached_property
    def _help(self) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "streamavg", "merge", "--help"],
            cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def has_option(self, option: str) -> bool:
        """Whether `streamavg merge` knows an option."""
        return option in self._help.replace(",", " ").split()

    def has_method(self, method: str) -> bool:
        """Whether `streamavg merge` knows a `--method`."""
        choices = re.search(r"--method\s*\[([^\]]*)\]", self._help)
        return choices is not None and method in re.split(r"[|\s]+", choices[1])

    def why_no_article(self) -> str:
        """Why the article's way cannot be measured; "" if it can."""
        if "article" in self._without:
            return "left out as asked"
        missing = [name for name in ("keras", "tensorflow") if find_spec(name) is None]
        return f"{' and '.join(missing)} not installed" if missing else ""

    @cached_property
    def mergekit_versions(self) -> dict[str, str]:
        """Versions of mergekit and torch; none if it cannot be imported."""
        if self._mergekit_python is None or "mergekit" in self._without:
            return {}
        code = (
            "import mergekit.scripts.merge_raw_pytorch, importlib.metadata as m;"
            "print(m.version('mergekit'), m.version('torch'))"
        )
        done = subprocess.run(
            [self._mergekit_python, "-c", code], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return {}
        return dict(zip(("mergekit", "torch"), done.stdout.split()[-2:], strict=True))

    def why_no_mergekit(self) -> str:
        """Why mergekit cannot be measured; "" if it can."""
        if self._mergekit_python is None:
            return "no --mergekit-python was given"
        return "" if self.mergekit_versions else "mergekit cannot be imported there"

    @property
    def mergekit_python(self) -> str:
        """The interpreter that has mergekit."""
        assert self._mergekit_python is not None
        return self._mergekit_python


# --- the commands --------------------------------------------------------------------------------


def limits(inputs: list[str]) -> list[Contender]:
    """L, and L with the copy flushed to the disk."""
    read = 'cat "$@" > /dev/null && cp "$1" "$0"'
    scripts = {L: read, L_FSYNC: f'{read} && sync "$0"'}
    return [
        Contender(
            name,
            ["/bin/sh", "-c", script, output_name(name, inputs), *inputs],
            inputs,
            output_name(name, inputs),
            NOTHING,
        )
        for name, script in scripts.items()
    ]


def merge(
    name: str,
    inputs: list[str],
    *options: str,
    weights: tuple[float, ...] | None = None,
    expected: str = EXACT,
) -> Contender:
    """A merge by streamavg."""
    output = output_name(name, inputs)
    command = [sys.executable, "-m", "streamavg", "merge", *inputs, "-o", output, "--quiet"]
    if weights is not None:
        options = ("--weights", ",".join(map(repr, weights)), *options)
    return Contender(name, [*command, *options], inputs, output, expected, weights)


def increasing_weights(count: int) -> tuple[float, ...]:
    """Weights 1, 2, ..., count, divided by their sum."""
    total = count * (count + 1) / 2
    return tuple(number / total for number in range(1, count + 1))


def whole_models(inputs: list[str]) -> Contender:
    """Whole-model accumulators over h5py."""
    return _program(WHOLE, "whole_models.py", inputs)


def article(inputs: list[str], config: str) -> Contender:
    """The article's way with real Keras."""
    output = output_name(ARTICLE, inputs)
    command = [sys.executable, str(PROGRAMS / "article.py"), output, config, *inputs]
    return Contender(ARTICLE, command, inputs, output, FLOAT32_SUMS, is_peer=True)


def mergekit(python: str, inputs: list[str], folder: Path) -> Contender:
    """The linear method of mergekit for files of any model; writes its configuration."""
    models = "".join(f"  - model: {path}\n    parameters: {{weight: 1.0}}\n" for path in inputs)
    (folder / "mergekit.yml").write_text(f"merge_method: linear\nmodels:\n{models}dtype: float32\n")
    command = [python, "-c", MERGEKIT_PROGRAM, "mergekit.yml", "mergekit"]
    output = "mergekit/model.safetensors"
    return Contender(MERGEKIT, command, inputs, output, FLOAT32_SUMS, is_peer=True)


def numpy_median(inputs: list[str]) -> Contender:
    """`numpy.median` of each variable of all inputs stacked."""
    return _program(NUMPY_MEDIAN, "median.py", inputs, MEDIANS)


def start_up() -> Contender:
    """What every command pays before it does anything."""
    return Contender(HELP, [sys.executable, "-m", "streamavg", "--help"], [], None, NOTHING)


def _program(name: str, program: str, inputs: list[str], expected: str = EXACT) -> Contender:
    output = output_name(name, inputs)
    command = [sys.executable, str(PROGRAMS / program), output, *inputs]
    return Contender(name, command, inputs, output, expected, is_peer=True)


def output_name(name: str, inputs: list[str]) -> str:
    """A file for each contender, with the suffix of the inputs."""
    suffix = inputs[0][inputs[0].index(".") :]
    return f"output-{re.sub('[^a-z0-9]+', '-', name.lower())}{suffix}"
