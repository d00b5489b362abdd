"""Measures `streamavg merge` against what the machine needs merely to move the bytes.

    python scripts/benchmark.py --quick
    python scripts/benchmark.py --checkpoints 8 --megabytes 815 --runs 5 --json results.json

Builds checkpoints in the layout that Keras writes, with normal random values, in a temporary
folder. Then, in turn and several times over, it measures as whole processes, imports included:

    L          `cat INPUTS > /dev/null`, then copy one input and flush the copy to the disk: what
               the machine needs to read every input once and to write one model
    streamavg  `streamavg merge` with its defaults, and with a memory limit of 64 MiB
    whole      whole-model accumulators over h5py: one array a variable, as most scripts do it

Times are medians, and ratios of times that were taken side by side; peak memory is the largest
resident size that the operating system saw of the process. Each output is compared with the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import h5py
import numpy as np

MEGABYTE = 1000**2
LAYER_WIDTH = 1024
WHOLE = """
import sys, h5py, numpy as np
*inputs, output = sys.argv[1:]
sums = {}
for path in inputs:
    with h5py.File(path) as opened:
        def add(name, item):
            if isinstance(item, h5py.Dataset):
                values = item[()].astype(np.float64)
                sums[name] = sums[name] + values if name in sums else values
        opened.visititems(add)
with h5py.File(output, "w") as opened:
    for name, total in sums.items():
        opened[name] = (total / len(inputs)).astype(np.float32)
"""

LAUNCHER = """
import os, resource, sys, time
started = time.perf_counter()
status = os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:])
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""A small process between: on Linux a program starts with the peak of the one that started it."""

PAGE = """# Benchmarks

Written by `python scripts/benchmark.py --page docs/benchmarks.md`; the first lines of the script
say what each row is. Machines are noisy: compare the ratios, which were taken side by side.

{conditions}

{table}
"""


@dataclass(frozen=True)
class Contender:
    """A command that averages the inputs, or stands for the least that this takes."""

    name: str
    command: list[str]
    output: Path


@dataclass
class Result:
    """What was measured of one contender, one entry a run."""

    name: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of its time to that of L in the same round."""
    peak_bytes: list[int] = field(default_factory=list)


def write_checkpoint(path: Path, megabytes: float, seed: int) -> None:
    """Writes Dense layers of `LAYER_WIDTH` inputs as Keras 3 does, of about this size in all."""
    generator = np.random.default_rng(seed)
    layers = max(1, round(megabytes * MEGABYTE / (4 * LAYER_WIDTH * LAYER_WIDTH)))
    with h5py.File(path, "w") as opened:
        opened.create_group("vars")
        for index in range(layers):
            name = f"dense_{index}" if index else "dense"
            group = opened.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            shape = (LAYER_WIDTH, LAYER_WIDTH)
            group["0"] = generator.standard_normal(shape, dtype=np.float32)
            group["1"] = generator.standard_normal(LAYER_WIDTH, dtype=np.float32)


def contenders(inputs: list[Path], folder: Path) -> list[Contender]:
    """The commands to compare, L first."""
    names = [str(path) for path in inputs]
    outputs = {name: folder / f"{name}.weights.h5" for name in ("L", "streamavg", "64MiB", "whole")}
    quoted = " ".join(f"'{name}'" for name in names)
    copy = f"dd if='{names[0]}' of='{outputs['L']}' bs=1M conv=fsync status=none"
    merge = [sys.executable, "-m", "streamavg", "merge", *names, "--force", "--quiet", "-o"]
    return [
        Contender("L", ["/bin/sh", "-c", f"cat {quoted} > /dev/null; {copy}"], outputs["L"]),
        Contender("streamavg", [*merge, str(outputs["streamavg"])], outputs["streamavg"]),
        Contender(
            "streamavg, 64 MiB",
            [*merge, str(outputs["64MiB"]), "--memory-limit", "64MiB"],
            outputs["64MiB"],
        ),
        Contender(
            "whole models",
            [sys.executable, "-c", WHOLE, *names, str(outputs["whole"])],
            outputs["whole"],
        ),
    ]


def measure(contender: Contender) -> tuple[float, int]:
    """Runs a command once.

    Returns:
        Wall-clock seconds, and the peak resident memory of its largest process in bytes.
    """
    contender.output.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *contender.command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{contender.name} failed")
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), int(kilobytes) * 1024


def dataset_names(path: Path) -> list[str]:
    """Paths of all arrays in an HDF5 file."""
    names: list[str] = []
    with h5py.File(path) as opened:
        opened.visit(lambda n: names.append(n) if isinstance(opened[n], h5py.Dataset) else None)
    return names


def check_outputs(found: list[Contender]) -> None:
    """Ends the program if two ways of averaging did not write the same values."""
    first, *others = [contender.output for contender in found if contender.name != "L"]
    for other in others:
        with h5py.File(first) as one, h5py.File(other) as two:
            for name in dataset_names(first):
                if not np.array_equal(one[name][()], two[name][()]):
                    sys.exit(f"{first.name} and {other.name} differ in {name}")


def run(inputs: list[Path], folder: Path, runs: int) -> list[Result]:
    """Measures all contenders in turn, `runs` times over, after one round that does not count."""
    found = contenders(inputs, folder)
    results = [Result(contender.name) for contender in found]
    for round_number in range(runs + 1):
        measured = [measure(contender) for contender in found]
        if round_number == 0:
            check_outputs(found)
            continue
        for result, (seconds, peak_bytes) in zip(results, measured, strict=True):
            result.seconds.append(seconds)
            result.ratios.append(seconds / measured[0][0])
            result.peak_bytes.append(peak_bytes)
    return results


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| | seconds, median (min to max) | times L, median | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for result in results:
        seconds = result.seconds
        lines.append(
            f"| {result.name} | {statistics.median(seconds):.2f} "
            f"({min(seconds):.2f} to {max(seconds):.2f}) | "
            f"{statistics.median(result.ratios):.2f} | {max(result.peak_bytes) / 1024**2:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Builds the inputs, measures, prints a table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=815, help="of each checkpoint")
    parser.add_argument("--runs", type=int, default=5, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="4 checkpoints of 50 MB, 3 rounds")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    parser.add_argument("--page", type=Path, help="also write the page docs/benchmarks.md here")
    options = parser.parse_args()
    if options.quick:
        options.checkpoints, options.megabytes, options.runs = 4, 50, 3
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        inputs = [folder / f"input-{n:02}.weights.h5" for n in range(options.checkpoints)]
        for number, path in enumerate(inputs):
            write_checkpoint(path, options.megabytes, number)
        results = run(inputs, folder, options.runs)
    conditions = (
        f"{options.checkpoints} checkpoints of {options.megabytes:g} MB (float32, `.weights.h5`), "
        f"{options.runs} rounds, {os.cpu_count()} processors, {platform.system()}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}, h5py {h5py.__version__}, "
        f"{date.today().isoformat()}"
    )
    print(f"{conditions}\n\n{table(results)}")
    if options.page:
        options.page.write_text(PAGE.format(conditions=conditions, table=table(results)))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
