"""A picture of a comparison: two heatmaps that share their rows, one row a checkpoint.

    left   distance of each checkpoint from each
    right  distance of each checkpoint from the mean of the rest, layer by layer

Both are in percent of the norm of what is compared. Sizes are in inches. Only this module imports
matplotlib, and only when a picture is asked for. It draws without a window and leaves the settings
of the program that called it alone.
"""

from __future__ import annotations

import importlib.util
import io
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.comparison import shortened
from streamavg.errors import MissingDependencyError, OptionError, OutputError
from streamavg.formats.output import OutputFile, refuse_taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from streamavg.comparison import Comparison

    Doubles = NDArray[np.float64]

SUFFIXES = (".png", ".svg")
_DOTS_PER_INCH = 140
_LARGEST_CELL = 0.62
_SMALLEST_LABELLED_CELL = 0.14
_HEIGHT = (1.3, 4.2, 10.5)
"""Of the heatmaps: least, usual and most, in inches."""
_LAYERS_WIDTH = (1.6, 5.5, 13.0)
_GAP = 0.35
_BAR_WIDTH = 0.13
_TALLEST_BAR = 3.5
_CELL_WITH_VALUE = (0.36, 0.2)
"""Width and height of a cell that a number fits into."""
_MOST_VECTOR_CELLS = 2500
"""More than so many cells are pixels in an SVG too, which would be megabytes otherwise."""
_NAME_LENGTH = 32
_TITLE_LENGTH = 40
_SKEWED = 15
"""From this ratio of the largest to the median distance on, colours are logarithmic."""
_DECADES = 3
_BY_LAYER = "distance from the mean of the rest, by layer"
_COLOURS = "YlGnBu"
_ACCENT = "#c1121f"
_EMPTY = "#eeeeee"


def check_picture(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Makes sure that a picture can be drawn, before anything is read.

    Raises:
        OptionError: the suffix is neither `.png` nor `.svg`.
        OutputError: the file exists and `force` is not given, is an input, or has no folder.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--plot: {path} is neither a *.png nor a *.svg. Name one of these.")
    if not _has_matplotlib():
        raise MissingDependencyError(
            "--plot needs matplotlib, which is not installed. "
            'Install it with: python -m pip install "streamavg[plot]"'
        )
    if not path.parent.is_dir():
        raise OutputError(path, f"the folder {path.parent} does not exist. Create it first.")
    if path.is_dir():
        raise OutputError(path, "is a folder. Name a file with --plot.")
    if path.exists() and any(path.samefile(other) for other in inputs if other.exists()):
        raise OutputError(path, "is one of the inputs, which are never written. Name another.")
    refuse_taken(path, force=force)


def _has_matplotlib() -> bool:
    """Whether it is installed; importing it takes time that a refusal should not."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # the program has blocked it
        return False


def draw(comparison: Comparison, path: Path, *, force: bool = False) -> None:
    """Draws a comparison into a file that appears whole or not at all.

    Args:
        comparison: of two or more checkpoints.
        path: a `.png` or `.svg` file.
        force: whether an existing file may be replaced.

    Raises: as `check_picture`; OutputError also if the file system refuses.

    Memory: about 100 MiB, most of it for matplotlib itself.
    """
    save_figure(lambda: figure_of(comparison), path, force=force)


def save_figure(make: Callable[[], Figure], path: Path, *, force: bool = False) -> None:
    """Draws a figure into a file that appears whole or not at all, with settings of our own.

    Args:
        make: makes the figure.
        path: a `.png` or `.svg` file.
        force: whether an existing file may be replaced.

    Raises: as `draw`.
    """
    check_picture(path, (), force=force)
    import matplotlib as mpl  # noqa: PLC0415 - only pictures pay for it

    picture = io.BytesIO()
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the table has it too.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update({"text.parse_math": False, "svg.hashsalt": "streamavg", "font.size": 8})
        kind = path.suffix.lower()[1:]
        make().savefig(
            picture, format=kind, dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.15,
            metadata={"Date": None} if kind == "svg" else None,
        )  # fmt: skip
    with OutputFile(path, force=force) as file:
        file.write_at(0, picture.getbuffer())
        file.commit()


def figure_of(comparison: Comparison) -> Figure:
    """The picture as a matplotlib figure. It may be larger than the figure's own size says."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    count = len(comparison.paths)
    names = shortened(comparison.names, _NAME_LENGTH)
    layers = shortened(
        _without_shared_start([layer.label for layer in comparison.layers]), _NAME_LENGTH
    )
    stands_out = None
    if comparison.outlier is not None:
        stands_out = comparison.paths.index(comparison.outlier.checkpoint)
    height = _extent(count, _HEIGHT)
    width = _extent(len(layers), _LAYERS_WIDTH)
    figure = Figure(figsize=(height + width + 2, height))
    between = 100 * comparison.relative_distances
    np.fill_diagonal(between, np.nan)
    left = _Heatmap(between, names, names, stands_out, "distance between checkpoints")
    left.draw(figure, 0, (height, height), labels_rows=True)
    by_layer = 100 * np.stack([layer.distances_from_rest for layer in comparison.layers], axis=1)
    right = _Heatmap(by_layer, names, layers, stands_out, _BY_LAYER)
    start = height + _GAP + _BAR_WIDTH + 0.75
    axes = right.draw(figure, start, (width, height), labels_rows=False)
    _frame_outliers(axes, comparison)
    _write_title(figure, comparison, height)
    return figure


def _without_shared_start(labels: Sequence[str]) -> list[str]:
    """Paths without the leading parts that all of them have in common."""
    parents = [label.split("/")[:-1] for label in labels]
    depth = 0
    while all(len(parent) > depth for parent in parents) and (
        len({parent[depth] for parent in parents}) == 1
    ):
        depth += 1
    return ["/".join(label.split("/")[depth:]) for label in labels]


def _extent(cells: int, bounds: tuple[float, float, float]) -> float:
    """Length of an axis: cells as large as is useful, labelled ones as long as there is room."""
    least, usual, most = bounds
    wanted = min(usual, cells * _LARGEST_CELL)
    return max(least, min(most, max(wanted, cells * _SMALLEST_LABELLED_CELL)))


@dataclass(frozen=True, slots=True)
class _Heatmap:
    values: Doubles
    """In percent, one row a checkpoint; NaN where there is nothing to show."""
    rows: Sequence[str]
    columns: Sequence[str]
    accented: int | None
    """The checkpoint that stands out."""
    title: str

    def draw(
        self, figure: Figure, left: float, size: tuple[float, float], *, labels_rows: bool
    ) -> Axes:
        """Draws it and its colour bar at `left` inches from the left."""
        from matplotlib import colormaps  # noqa: PLC0415

        width, height = size
        axes = _axes_at(figure, left, 0, width, height)
        norm, scale = self._norm()
        # Unlike an image, a mesh is never copied at the size of the picture.
        mesh = axes.pcolormesh(
            np.arange(len(self.columns) + 1) - 0.5, np.arange(len(self.rows) + 1) - 0.5,
            np.ma.masked_invalid(self.values), norm=norm,
            cmap=colormaps[_COLOURS].with_extremes(bad=_EMPTY),
            rasterized=self.values.size > _MOST_VECTOR_CELLS,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_title(self.title, loc="left", fontsize=9, pad=6)
        self._label(axes, size, labels_rows=labels_rows)
        cell = width / len(self.columns), height / len(self.rows)
        if cell[0] >= _CELL_WITH_VALUE[0] and cell[1] >= _CELL_WITH_VALUE[1]:
            self._write_values(axes, mesh)
        tall = min(height, _TALLEST_BAR)
        bar_axes = _axes_at(figure, left + width + 0.1, height - tall, _BAR_WIDTH, tall)
        bar = figure.colorbar(mesh, cax=bar_axes)
        bar.set_label(f"% of the norm{scale}", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.formatter = _percent_ticks()
        bar.update_ticks()
        return axes

    def _norm(self) -> tuple[Any, str]:
        """How values become colours, and how to say so."""
        from matplotlib.colors import LogNorm, Normalize  # noqa: PLC0415

        shown = self.values[self.values > 0]
        largest = float(shown.max()) if shown.size else 1.0
        if shown.size and largest > _SKEWED * float(np.median(shown)):
            least = max(float(shown.min()), largest / 10**_DECADES)
            return LogNorm(least, largest, clip=True), ", logarithmic"
        return Normalize(0, largest), ""

    def _label(self, axes: Axes, size: tuple[float, float], *, labels_rows: bool) -> None:
        axes.tick_params(length=2, labelsize=7, color="#888888")
        shown = _labelled(len(self.columns), size[0])
        axes.set_xticks(shown, [self.columns[index] for index in shown], rotation=90)
        shown = _labelled(len(self.rows), size[1], self.accented)
        axes.set_yticks(shown, [self.rows[index] if labels_rows else "" for index in shown])
        for spine in axes.spines.values():
            spine.set_color("#888888")
            spine.set_linewidth(0.6)
        if self.accented is not None and labels_rows:
            label = axes.get_yticklabels()[shown.index(self.accented)]
            label.set_color(_ACCENT)
            label.set_fontweight("bold")

    def _write_values(self, axes: Axes, mesh: Any) -> None:
        for (row, column), value in np.ndenumerate(self.values):
            if not math.isnan(value):
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                axes.text(
                    column, row, _short_number(value), ha="center", va="center", fontsize=6.5,
                    color="white" if is_dark else "black",
                )  # fmt: skip


def _axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _labelled(count: int, extent: float, always: int | None = None) -> list[int]:
    """Which of `count` cells have a label, so that labels do not overlap."""
    step = math.ceil(count * _SMALLEST_LABELLED_CELL * 0.98 / extent)
    shown = range(0, count, step)
    if always is None or always in shown:
        return list(shown)
    return sorted([always, *(index for index in shown if abs(index - always) >= step)])


def _frame_outliers(axes: Axes, comparison: Comparison) -> None:
    """A frame around checkpoints that stand out in one layer, though not in the whole model."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    for column, layer in enumerate(comparison.layers):
        if layer.outlier is None or comparison.is_outlier(layer.outlier.checkpoint):
            continue
        corner = column - 0.5, comparison.paths.index(layer.outlier.checkpoint) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, color=_ACCENT, linewidth=1))
        axes.set_title(f"{_BY_LAYER} (framed: stands out)", loc="left", fontsize=9, pad=6)


def _write_title(figure: Figure, comparison: Comparison, height: float) -> None:
    up = figure.get_size_inches()[1]
    answer = comparison.answer(shortened(comparison.names, _TITLE_LENGTH))
    figure.text(0, (height + 0.62) / up, answer, fontsize=11, fontweight="bold", va="bottom")
    facts = (
        f"{len(comparison.paths)} checkpoints, {comparison.whole.elements:,} values in "
        f"{len(comparison.layers)} layers"
    )
    figure.text(0, (height + 0.4) / up, facts, fontsize=8, color="#555555", va="bottom")


def _short_number(value: float) -> str:
    """A percentage in at most five characters."""
    if value >= 9.95 or value == 0:
        return f"{value:.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.00995 else f"{value:.0e}"


def _percent_ticks() -> Any:
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415

    return FuncFormatter(lambda value, _: f"{value:g}")
