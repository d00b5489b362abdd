"""The loss along the straight line between two checkpoints: do they share a basin?

Position t is the checkpoint (1 - t) * first + t * second, which the engine of `merge` writes to a
temporary file, so that no point is built otherwise than an average is. Where the loss rises above
the line that joins the losses of the ends, there is a barrier between the two, and their average
is on it.

Source: J. Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020; the
height of the barrier above the line between the ends as in R. Entezari et al., The Role of
Permutation Invariance in Linear Mode Connectivity of Neural Networks, 2022, definition 1.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from streamavg.errors import OptionError
from streamavg.evaluation import verdict
from streamavg.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    mean_of,
    paired_intervals,
    ratio,
)
from streamavg.evaluation.datasets import open_data
from streamavg.evaluation.drawing import draw_lines
from streamavg.evaluation.evaluating import VALIDATION, Bench, Steps
from streamavg.evaluation.keras_backend import load_keras
from streamavg.evaluation.rebuilding import ModelOptions, name_of, names_of, recipe_of
from streamavg.evaluation.scoring import LOSS, Scores
from streamavg.merging import merge
from streamavg.plotting import check_picture
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from streamavg.options import PreprocessingPolicy

    StrPath = str | os.PathLike[str]

SCHEMA_VERSION = 1
POINTS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place on the line."""

    position: float
    """Share of the second checkpoint."""
    values: dict[str, float]
    """Value of each metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """How far the loss rises above the straight line between the losses of the ends."""

    position: float
    """Where it is highest; 0 where it never rises."""
    height: float
    """In the unit of the loss, 0 or more."""
    low: float | None
    """Interval of the height at that place; None where there is none."""
    high: float | None
    resamples: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathEvaluation:
    """Scores along a line between two checkpoints."""

    schema_version: int
    streamavg_version: str
    first: str
    second: str
    validation: verdict.DataRecord
    loss: str | None
    metrics: tuple[str, ...]
    points: tuple[Point, ...]
    barrier: Barrier
    seed: int
    confidence: float
    notes: tuple[str, ...]

    def answer(self, first: str, second: str) -> str:
        """The verdict in a line, in which the checkpoints have these names."""
        barrier = self.barrier
        if barrier.height == 0:
            return (
                f"no barrier between {first} and {second}: the loss stays at or below the line "
                "between their losses"
            )
        where = (
            f"at {barrier.position:.2g} the loss is {verdict.number(barrier.height)} above the "
            "line between their losses"
        )
        if barrier.low is None or barrier.high is None:
            return f"between {first} and {second}, {where} (no interval)"
        interval = f"95% interval {verdict.signed(barrier.low)} to {verdict.signed(barrier.high)}"
        if barrier.low <= 0:
            return f"no barrier shown between {first} and {second}: {where} ({interval})"
        return f"there is a barrier between {first} and {second}: {where} ({interval})"

    def to_json(self) -> str:
        """All of it as JSON, indented."""
        return json.dumps(asdict(self), indent=2)


def evaluate_path(
    first: StrPath,
    second: StrPath,
    val: str,
    *,
    points: int = POINTS,
    model: StrPath | None = None,
    batch_size: int | None = None,
    preprocessing: PreprocessingPolicy = "equal",
    plot: StrPath | None = None,
    force: bool = False,
    seed: int = 0,
    on_plan: Callable[[int | None], None] | None = None,
    on_model: Callable[[str], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[ModelOptions],
) -> PathEvaluation:
    """Scores models along the straight line between two checkpoints.

    Args:
        first: a checkpoint, at position 0.
        second: another one of the same model, at position 1.
        val: data, as in `evaluate`.
        points: how many, both ends among them.
        model: the model of checkpoints that hold weights alone.
        batch_size: of arrays; 32 by default.
        preprocessing: whether Normalization state and vocabularies must be equal, as in `merge`, or
            are those of the first.
        plot: a `.png` or `.svg` picture.
        force: replace an existing picture.
        seed: of the bootstrap.
        on_plan: called with the number of batches in all, None if it is not known.
        on_model: called with the name of each point.
        on_progress: called with the number of batches done since the last call.
        **options: see `ModelOptions`.

    Raises:
        StreamAvgError: as `evaluate`, and as `merge` for checkpoints that do not belong together.

    Memory: that of one model. Disk: one checkpoint, in the folder for temporary files.
    """
    if points < 3:
        raise OptionError(f"--points {points}: a line takes 3 or more, both ends among them.")
    ends = Path(first), Path(second)
    picture = None if plot is None else Path(plot)
    if picture is not None:
        check_picture(picture, ends, force=force)
    load_keras()
    data = open_data(val, option="--val", batch_size=batch_size)
    steps = Steps(on_plan, on_model, on_progress)
    steps.begin([(points, data)])
    bench = Bench(recipe_of(model, options), {VALIDATION: data}, steps, seed)
    positions = [index / (points - 1) for index in range(points)]
    scored: list[Scores] = []
    for path in _checkpoints(ends, positions, preprocessing):
        scored.append(bench.score(bench.load(path).model, VALIDATION))
        bench.require_same_data(scored[-1], scored[0], VALIDATION)
    config = {**bench.compile_config, **bench.recipe.given}
    barrier, why_not = _barrier(positions, scored, seed)
    found = PathEvaluation(
        schema_version=SCHEMA_VERSION,
        streamavg_version=__version__,
        first=str(ends[0]),
        second=str(ends[1]),
        validation=verdict.DataRecord(name=data.name, examples=scored[0].examples),
        loss=name_of(config.get("loss")),
        metrics=tuple(names_of(config.get("metrics"))),
        points=tuple(
            Point(position=position, values=scores.values)
            for position, scores in zip(positions, scored, strict=True)
        ),
        barrier=barrier,
        seed=seed,
        confidence=CONFIDENCE,
        notes=(*bench.notes, *why_not),
    )
    if picture is not None:
        lines = [(name, [p.values[name] for p in found.points]) for name in scored[0].values]
        names = ends[0].name, ends[1].name
        draw_lines(found.answer(*names), positions, lines, names, picture, force=force)
    return found


def _checkpoints(
    ends: tuple[Path, Path], positions: list[float], preprocessing: PreprocessingPolicy
) -> Iterator[Path]:
    """The checkpoint at each position; those between the ends are there until the next one is."""
    suffix = ".weights.h5" if ends[0].name.endswith(".weights.h5") else ends[0].suffix
    yield ends[0]
    with tempfile.TemporaryDirectory(prefix="streamavg-") as folder:
        for position in positions[1:-1]:
            path = Path(folder) / f"at-{position:.4g}{suffix}"
            weights = [1 - position, position]
            merge(ends, path, weights=weights, preprocessing=preprocessing, fsync=False)
            yield path
            path.unlink()
    yield ends[1]


def _barrier(positions: list[float], scored: list[Scores], seed: int) -> tuple[Barrier, list[str]]:
    """The highest rise above the line between the ends, and why it has no interval if it has none.

    The interval is that of the place that was found, which was picked for being the highest, so
    it is a little too high.
    """
    losses = [scores.values[LOSS] for scores in scored]
    heights = [
        loss - ((1 - t) * losses[0] + t * losses[-1])
        for t, loss in zip(positions, losses, strict=True)
    ]
    top = int(np.argmax(heights[1:-1])) + 1
    if not heights[top] > 0:
        return Barrier(position=0.0, height=0.0, low=None, high=None, resamples=None), []
    statistics = [scored[place][LOSS].statistic for place in (0, top, -1)]
    each = [s.states[:, 0] for s in statistics if s is not None and s.result is ratio]
    interval: Interval | None = None
    if len(each) == len(statistics):
        t = positions[top]
        between = (1 - t) * each[0] + t * each[2]
        pair = mean_of(each[1]), mean_of(between)
        (interval,) = paired_intervals([pair], seed=seed, resamples=RESAMPLES)
    why_not = scored[top][LOSS].why_not
    return Barrier(
        position=positions[top],
        height=heights[top],
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        resamples=None if interval is None else interval.resamples,
    ), ([] if interval is not None or why_not is None else [f"no interval: {why_not}."])
