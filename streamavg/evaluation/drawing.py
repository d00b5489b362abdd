"""Pictures of evaluations: differences with their intervals, and scores along a line.

Only when one is asked for is matplotlib imported. Sizes are in inches.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamavg.evaluation.verdict import BETTER, EQUAL, WORSE, number, signed
from streamavg.plotting import save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from streamavg.evaluation.verdict import Difference, Evaluation

_PANEL = (3.2, 2.6)
_LETTERS_PER_INCH = 13
"""Of a title."""
_COLOURS = {BETTER: "#2a7f4f", WORSE: "#c1121f", EQUAL: "#888888"}
_UNCLEAR = "#888888"
_LINE = "#1d6996"
_MOST_PANELS = 6


def draw_evaluation(evaluation: Evaluation, path: Path, *, force: bool = False) -> None:
    """Draws the differences between average and best checkpoint, a panel a metric.

    Raises: as `plotting.draw`.
    """
    save_figure(lambda: figure_of_evaluation(evaluation), path, force=force)


def figure_of_evaluation(evaluation: Evaluation) -> Figure:
    """The picture as a matplotlib figure."""
    metrics = list(dict.fromkeys(d.metric for d in evaluation.differences))
    metrics.sort(key=lambda metric: metric != evaluation.metric)
    best = Path(evaluation.best).name
    figure, panels = _panels(min(len(metrics), _MOST_PANELS), evaluation.answer(best))
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_bars(axes, [d for d in evaluation.differences if d.metric == metric])
    panels[0].set_ylabel("average minus best checkpoint", fontsize=8)
    return figure


def _draw_bars(axes: Axes, differences: Sequence[Difference]) -> None:
    for place, difference in enumerate(differences):
        error: Any = None
        if difference.low is not None and difference.high is not None:
            middle = difference.difference
            error = [[max(middle - difference.low, 0)], [max(difference.high - middle, 0)]]
        colour = _COLOURS.get(difference.verdict or "", _UNCLEAR)
        axes.bar(place, difference.difference, 0.5, yerr=error, color=colour, capsize=4,
                 ecolor="#222222")  # fmt: skip
    labels = [f"{d.set}\n{signed(d.difference)}\n{d.verdict or ''}" for d in differences]
    axes.set_xticks(range(len(differences)), labels, fontsize=7)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.set_xlim(-0.6, len(differences) - 0.4)
    more = differences[0].more_is_better
    hint = "" if more is None else " (more is better)" if more else " (less is better)"
    axes.set_title(f"{differences[0].metric}{hint}", fontsize=9)
    _tidy(axes)


def draw_lines(
    title: str,
    positions: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float]]],
    ends: tuple[str, str],
    path: Path,
    *,
    force: bool = False,
) -> None:
    """Draws metrics along a line between two checkpoints, a panel a metric.

    Args:
        title: what the picture says.
        positions: from 0 to 1.
        lines: name and values of each metric.
        ends: names of the checkpoints at 0 and 1.
        path: where the picture goes.
        force: whether it may replace another one.

    Raises: as `plotting.draw`.
    """
    save_figure(lambda: figure_of_lines(title, positions, lines, ends), path, force=force)


def figure_of_lines(
    title: str,
    positions: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float]]],
    ends: tuple[str, str],
) -> Figure:
    """The picture as a matplotlib figure."""
    figure, panels = _panels(min(len(lines), _MOST_PANELS), title)
    for axes, (metric, values) in zip(panels, lines, strict=False):
        axes.plot(positions, values, color=_LINE, marker="o", markersize=3)
        axes.plot((0, 1), (values[0], values[-1]), color="#888888", linestyle="--", linewidth=0.9)
        axes.set_xticks((0, 0.5, 1), (f"0\n{ends[0]}", "0.5", f"1\n{ends[1]}"), fontsize=7)
        axes.set_title(f"{metric}: {number(values[0])} to {number(values[-1])}", fontsize=9)
        _tidy(axes)
    return figure


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only pictures pay for it

    width = count * (_PANEL[0] + 0.5)
    figure = Figure(figsize=(width, _PANEL[1]))
    axes = figure.subplots(1, count, squeeze=False)[0]
    figure.subplots_adjust(wspace=0.35)
    lines = textwrap.fill(title, max(40, int(width * _LETTERS_PER_INCH)))
    figure.text(0.02, 1.04, lines, fontsize=9, fontweight="bold", va="bottom")
    return figure, list(axes)


def _tidy(axes: Axes) -> None:
    axes.tick_params(length=2, labelsize=7, color="#888888")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
