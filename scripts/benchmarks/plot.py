"""Time and memory against the number of checkpoints, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import contenders as names
from benchmarks.goals import PEAK
from benchmarks.modes import COUNTS
from benchmarks.results import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Report

LINES = {
    names.WHOLE: ("tab:gray", "s", "--"),
    names.L_FSYNC: ("tab:cyan", "v", ":"),
    names.L: ("tab:blue", "v", ":"),
    names.MERGE_FSYNC: ("tab:red", "o", "-"),
    names.MERGE: ("tab:orange", "o", "-"),
}
"""Colour, marker and line of each contender, the most important one last: it is on top."""


def points(report: Report) -> list[tuple[int, str]]:
    """Numbers of checkpoints that were measured, and their scenarios."""
    found = [name for name in report.scenario_names("growth") if name.startswith(COUNTS)]
    return [(int(name.rpartition(" ")[2].replace(",", "")), name) for name in found]


def draw(report: Report, path: Path) -> None:
    """Writes a PNG.

    Args:
        report: with the measurements of the mode `growth`.
        path: where to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    scenarios = points(report)
    for name, (color, marker, line) in LINES.items():
        series = [
            (count, median, report.peak_bytes("growth", scenario, name) or 0)
            for count, scenario in scenarios
            if (median := report.median_seconds("growth", scenario, name)) is not None
        ]
        style = {"color": color, "marker": marker, "linestyle": line}
        counts = [count for count, _, _ in series]
        time.plot(counts, [median for _, median, _ in series], label=name, **style)
        if name not in {names.L, names.L_FSYNC}:
            memory.plot(counts, [peak / MIB for _, _, peak in series], **style)
    memory.axhline(PEAK / MIB, color="black", linewidth=0.8, linestyle=":")
    memory.annotate("promised", (scenarios[0][0], PEAK / MIB), (0, 3), textcoords="offset points")
    known = report.scenario("growth", scenarios[0][1])
    total = known.checkpoints * known.bytes_each / 1e6 if known else 0
    figure.suptitle(f"{total:,.0f} MB of float32 checkpoints in all, warm page cache")
    time.set_ylabel("median time of the whole process, s")
    time.set_ylim(bottom=0)
    memory.set_ylabel("peak resident memory, MiB")
    memory.set_yscale("log", base=2)
    low, high = memory.get_ylim()
    memory.set_ylim(min(low, 30), max(high, 140))
    memory.yaxis.set_major_formatter(ScalarFormatter())
    for axes in (time, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks([count for count, _ in scenarios], [f"{n:,}" for n, _ in scenarios])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("number of checkpoints")
        axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(LINES))
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
