"""Is the average better than the best single checkpoint? Asked of data, one model at a time.

    average --score on validation (and test)-->  scores
    checkpoints --score on validation-> the best one --score on test-->  scores
    both --paired bootstrap-> differences with intervals -> verdict, gate

The test set is looked at for the average and the best checkpoint only, after both were chosen.
"""

from __future__ import annotations

import gc
import math
import random
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from streamavg.errors import OptionError
from streamavg.evaluation import verdict
from streamavg.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Interval, paired_intervals
from streamavg.evaluation.datasets import Data, open_data
from streamavg.evaluation.drawing import draw_evaluation
from streamavg.evaluation.keras_backend import load_keras
from streamavg.evaluation.models import (
    BuiltModel,
    Recipe,
    compile_for_scoring,
    compile_for_use,
    load_model,
)
from streamavg.evaluation.rebuilding import (
    ModelOptions,
    check_output,
    name_of,
    names_of,
    placed,
    recipe_of,
    save,
)
from streamavg.evaluation.recalibrating import recalibrate
from streamavg.evaluation.scoring import LOSS, Scores, score
from streamavg.plotting import check_picture
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    StrPath = str | os.PathLike[str]

VALIDATION, TEST = "validation", "test"
RECALIBRATED = "recalibrated"
NARROW = 8
"""Numbers that the state of a mean or another simple metric has at most."""
_WIDE_RESAMPLES = 1000
"""For metrics with larger states (AUC: 800 numbers an example), of which a resample costs more."""


class EvaluateOptions(ModelOptions, total=False):
    """Options of `evaluate`; all may be left out."""

    test: str | None
    """Data that decide, if given: those that the best checkpoint was not chosen on."""
    batch_size: int | None
    """Of arrays; 32 by default."""
    model: StrPath | None
    """The model of checkpoints that hold weights alone, as in `rebuild`."""
    metric: str | None
    """By which the best checkpoint is chosen and the verdict is given; the loss by default."""
    maximize: bool
    """More of the metric is better. By default its name tells."""
    minimize: bool
    """Less of the metric is better. By default its name tells."""
    require: str | None
    """"better" or "not-worse": what the average must be."""
    margin: float | None
    """Of `require`, in the unit of the metric."""
    recalibrate_batchnorm: str | None
    """Data to estimate the moving statistics of the average from, usually the training set."""
    output: StrPath | None
    """Where the better one of the average with and without recalibration is saved, if asked for."""
    plot: StrPath | None
    """A `.png` or `.svg` picture of the differences."""
    force: bool
    """Replace an existing output or picture."""
    seed: int
    """Of the bootstrap, and of dropout while statistics are recalibrated; 0 by default."""
    resamples: int
    """Of the bootstrap; 10,000 by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`EvaluateOptions` with all defaults filled in."""

    recipe: Recipe
    test: str | None = None
    batch_size: int | None = None
    metric: str = LOSS
    maximize: bool = False
    minimize: bool = False
    require: str | None = None
    margin: float | None = None
    recalibrate_batchnorm: str | None = None
    output: Path | None = None
    plot: Path | None = None
    force: bool = False
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass
class Steps:
    """Tells a caller how far an evaluation is, and what it is at."""

    on_plan: Callable[[int | None], None] | None = None
    on_model: Callable[[str], None] | None = None
    on_progress: Callable[[int], None] | None = None

    def begin(self, counts: Iterable[tuple[int, Data | None]]) -> None:
        """Says how many batches there will be: passes through each of the data."""
        total: int | None = 0
        for passes, data in counts:
            if data is not None and total is not None:
                count = data.batch_count
                total = None if count is None else total + passes * count
        if self.on_plan is not None:
            self.on_plan(total)

    def name(self, what: str) -> None:
        """Says which model is at work."""
        if self.on_model is not None:
            self.on_model(what)


@dataclass(eq=False)
class Contender:
    """A model that was scored."""

    path: str
    kind: str
    scores: dict[str, Scores] = field(default_factory=dict)
    """By the name of the set."""

    def forget_examples(self) -> None:
        """Keeps the values alone."""
        self.scores = {where: scores.values_alone() for where, scores in self.scores.items()}

    def report(self) -> verdict.ModelReport:
        """Its values alone."""
        test = self.scores.get(TEST)
        return verdict.ModelReport(
            path=self.path,
            kind=self.kind,
            validation=self.scores[VALIDATION].values,
            test=None if test is None else test.values,
        )


def evaluate(
    average: StrPath,
    against: Iterable[StrPath],
    val: str,
    *,
    on_plan: Callable[[int | None], None] | None = None,
    on_model: Callable[[str], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Unpack[EvaluateOptions],
) -> verdict.Evaluation:
    """Compares an average with the best of some checkpoints.

    Args:
        average: a checkpoint, whole or weights alone.
        against: the checkpoints that compete with it, usually those it was made of.
        val: validation data: "FILE.npz", "FILE.npz:SPLIT" or "module:function".
        on_plan: called with the number of batches in all, None if it is not known.
        on_model: called with the name of each model when its turn comes.
        on_progress: called with the number of batches done since the last call.
        **options: see `EvaluateOptions`.

    Raises:
        OptionError: the options do not fit each other, the model or the data.
        ModelMismatchError: a checkpoint does not fit its model.
        FormatError: a file cannot be read; UnsafeFileError: it holds code.
        OutputError: the output or the picture cannot be written.
        MissingDependencyError: Keras is not installed.

    Memory: that of one model, the data where they are arrays, and see `scoring.score`.
    """
    settings = _settings(options)
    steps = Steps(on_plan, on_model, on_progress)
    paths, notes = _contenders(average, against)
    _check(settings, [Path(average), *paths])
    with ExitStack() as stack:
        return _evaluate(Path(average), paths, val, settings, steps, notes, stack)


def _settings(options: EvaluateOptions) -> Settings:
    own = {key: value for key, value in options.items() if key in Settings.__dataclass_fields__}
    for key in ("output", "plot"):
        own[key] = None if own.get(key) is None else Path(str(own[key]))
    metric = options.get("metric")
    own["metric"] = LOSS if metric is None else metric.removeprefix("val_")
    own = {key: value for key, value in own.items() if value is not None}
    return Settings(recipe=recipe_of(options.get("model"), options), **own)  # type: ignore[arg-type]


def _contenders(average: StrPath, against: Iterable[StrPath]) -> tuple[list[Path], list[str]]:
    """The checkpoints to compare with, without the average itself."""
    given = [Path(path) for path in against]
    missing = [str(path) for path in (Path(average), *given) if not path.exists()]
    if missing:
        raise OptionError(f"there is no file {', '.join(missing)}.")
    paths = [path for path in given if not path.samefile(average)]
    if not paths:
        raise OptionError("--against: name the checkpoints that the average is compared with.")
    notes = []
    if len(paths) < len(given):
        notes.append(f"{average} is among the checkpoints too, and is not compared with itself.")
    return paths, notes


def _check(settings: Settings, inputs: Sequence[Path]) -> None:
    """Refuses what can be refused before anything is loaded."""
    verdict.check_requirement(settings.require, settings.margin)
    if settings.resamples < 100:
        raise OptionError(f"{settings.resamples} resamples are too few; take 1,000 or more.")
    if settings.output is not None:
        if settings.recalibrate_batchnorm is None:
            raise OptionError(
                "--output saves the better one of the average with and without recalibrated "
                "statistics. Give --recalibrate-batchnorm too, or use the average as it is."
            )
        check_output(settings.output, inputs, force=settings.force)
    if settings.plot is not None:
        check_picture(settings.plot, inputs, force=settings.force)


@dataclass(eq=False)
class Bench:
    """Where models are scored, one after the other, all with the same loss and metrics."""

    recipe: Recipe
    data: dict[str, Data]
    """By the name of the set."""
    steps: Steps
    seed: int = 0
    compile_config: Any = None
    """Of the first model, from which all take loss and metrics."""
    notes: list[str] = field(default_factory=list)

    def load(self, path: Path) -> BuiltModel:
        """The model of a checkpoint, compiled; all models before are forgotten."""
        self.steps.name(path.name)
        load_keras().utils.clear_session()
        gc.collect()
        state = random.getstate()
        random.seed(self.seed)  # Keras seeds dropout with it
        try:
            built = load_model(path, self.recipe)
        finally:
            random.setstate(state)
        if self.compile_config is None:
            self.compile_config = built.compile_config or {}
        elif not _same_scoring(built.compile_config, self.compile_config):
            self.notes.append(
                f"{path} was compiled with another loss or other metrics than the average; all "
                "models are scored with those of the average."
            )
        compile_for_scoring(built.model, self.compile_config, self.recipe)
        return built

    def score(self, model: Any, where: str) -> Scores:
        """The model's scores on one set."""
        return score(model, self.data[where], on_batch=self.steps.on_progress)

    def require_same_data(self, scores: Scores, other: Scores, where: str) -> None:
        """Raises OptionError if two models were not scored on the same examples."""
        if scores.checksum != other.checksum:
            raise OptionError(
                f"{self.data[where].name}: yields other examples, or another order, each time, so "
                "models cannot be compared on it. Leave out shuffling and random augmentation."
            )


def _same_scoring(config: Any, other: Any) -> bool:
    return not config or not other or all(
        config.get(part) == other.get(part) for part in ("loss", "metrics", "weighted_metrics")
    )  # fmt: skip


def _evaluate(
    average: Path,
    paths: Sequence[Path],
    val: str,
    settings: Settings,
    steps: Steps,
    notes: list[str],
    stack: ExitStack,
) -> verdict.Evaluation:
    load_keras()
    opened = {
        name: open_data(text, option=option, batch_size=settings.batch_size)
        for name, text, option in (
            (VALIDATION, val, "--val"),
            (TEST, settings.test, "--test"),
            ("train", settings.recalibrate_batchnorm, "--recalibrate-batchnorm"),
        )
        if text is not None
    }
    train = opened.pop("train", None)
    ours = 1 if train is None else 2
    steps.begin([(ours + len(paths), opened[VALIDATION]), (ours + 1, opened.get(TEST)), (1, train)])
    bench = Bench(settings.recipe, opened, steps, settings.seed, notes=notes)

    averages, more = _score_average(bench, average, train, settings, stack)
    first = _best([one.scores[VALIDATION].values[settings.metric] for one in averages], more=more)
    chosen = averages[first]
    singles, best = _score_singles(bench, paths, settings.metric, chosen, more=more)
    differences = _differences(chosen, best, settings, more)
    evaluation = verdict.Evaluation(
        schema_version=verdict.SCHEMA_VERSION,
        streamavg_version=__version__,
        average=str(average),
        best=best.path,
        metric=settings.metric,
        more_is_better=more,
        uses_recalibrated=chosen.kind == RECALIBRATED,
        validation=_record(bench, chosen, VALIDATION),
        test=_record(bench, chosen, TEST) if TEST in opened else None,
        loss=name_of({**bench.compile_config, **settings.recipe.given}.get("loss")),
        metrics=tuple(names_of({**bench.compile_config, **settings.recipe.given}.get("metrics"))),
        seed=settings.seed,
        confidence=CONFIDENCE,
        models=tuple(one.report() for one in (*averages, *singles)),
        differences=differences,
        recalibration=(
            _differences(averages[1], averages[0], settings, more) if len(averages) > 1 else ()
        ),
        gate=None,
        output=None if settings.output is None else str(settings.output),
        notes=(),
    )
    evaluation = replace(evaluation, notes=(*notes, *_remarks(evaluation)))
    if settings.require is not None:
        gate = verdict.decide(settings.require, settings.margin, evaluation.decisive)
        evaluation = replace(evaluation, gate=gate)
    if settings.plot is not None:
        draw_evaluation(evaluation, settings.plot, force=settings.force)
    return evaluation


def _score_average(
    bench: Bench, path: Path, train: Data | None, settings: Settings, stack: ExitStack
) -> tuple[list[Contender], bool]:
    """The average, with and without recalibration if that is asked for; and the direction."""
    built = bench.load(path)
    plain = Contender(str(path), "average", _all_scores(bench, built.model))
    more = _direction(settings, plain.scores[VALIDATION])
    if train is None:
        return [plain], more
    bench.steps.name(f"recalibrating {path.name}")
    change = recalibrate(built.model, train, on_batch=bench.steps.on_progress)
    if change.frozen:
        bench.notes.append(
            f"{len(change.frozen)} frozen BatchNormalization layers keep their statistics: "
            f"{', '.join(change.frozen[:3])}."
        )
    bench.steps.name(f"{path.name}, recalibrated")
    other = Contender(str(path), RECALIBRATED, _all_scores(bench, built.model))
    both = [plain, other]
    if settings.output is not None:
        if not _best([one.scores[VALIDATION].values[settings.metric] for one in both], more=more):
            change.undo()
        compile_for_use(built.model, built.compile_config, bench.recipe)
        save(
            built.model,
            stack.enter_context(placed(settings.output, force=settings.force)),
            bench.recipe,
        )
    return both, more


def _all_scores(bench: Bench, model: Any) -> dict[str, Scores]:
    return {where: bench.score(model, where) for where in bench.data}


def _score_singles(
    bench: Bench, paths: Sequence[Path], metric: str, average: Contender, *, more: bool
) -> tuple[list[Contender], Contender]:
    """All checkpoints on validation, and the best of them on the test set too.

    What each example adds is kept for the best one alone.
    """
    singles: list[Contender] = []
    best: Contender | None = None
    for path in paths:
        scores = bench.score(bench.load(path).model, VALIDATION)
        bench.require_same_data(scores, average.scores[VALIDATION], VALIDATION)
        one = Contender(str(path), "checkpoint", {VALIDATION: scores})
        singles.append(one)
        if best is None or _best(
            [each.scores[VALIDATION].values[metric] for each in (best, one)], more=more
        ):
            if best is not None:
                best.forget_examples()
            best = one
        else:
            one.forget_examples()
    assert best is not None, "there is at least one checkpoint"
    value = best.scores[VALIDATION].values[metric]
    equals = [one.path for one in singles if one.scores[VALIDATION].values[metric] == value]
    if len(equals) > 1:
        bench.notes.append(
            f"{len(equals)} checkpoints are equally good on validation; the first is compared."
        )
    if TEST in bench.data:
        scores = bench.score(bench.load(Path(best.path)).model, TEST)
        bench.require_same_data(scores, average.scores[TEST], TEST)
        best.scores[TEST] = scores
    return singles, best


def _best(values: Sequence[float], *, more: bool) -> int:
    """Position of the best value, the first of equals; NaN is the worst."""
    keys = [-math.inf if math.isnan(value) else value if more else -value for value in values]
    return keys.index(max(keys))


def _direction(settings: Settings, scores: Scores) -> bool:
    """Whether more is better of the metric that decides. Raises: OptionError."""
    if settings.metric not in scores.values:
        raise OptionError(
            f"--metric {settings.metric}: the models are not compiled with it; they have "
            f"{', '.join(scores.values)}."
        )
    return verdict.clear_direction(
        settings.metric, maximize=settings.maximize, minimize=settings.minimize
    )


def _differences(
    first: Contender, second: Contender, settings: Settings, more: bool
) -> tuple[verdict.Difference, ...]:
    """Both models in each metric on each set, with intervals where there can be."""
    return tuple(
        difference
        for where in first.scores
        for difference in _differences_on(
            where, first.scores[where], second.scores[where], settings, more
        )
    )


def _differences_on(
    where: str, first: Scores, second: Scores, settings: Settings, more: bool
) -> list[verdict.Difference]:
    pairs = [(one, second[one.name]) for one in first.scores]
    intervals: dict[str, Interval | None] = {}
    for is_narrow, resamples in (
        (True, settings.resamples),
        (False, min(settings.resamples, _WIDE_RESAMPLES)),
    ):
        statistics = {
            one.name: (one.statistic, other.statistic)
            for one, other in pairs
            if one.statistic is not None
            and other.statistic is not None
            and (one.statistic.width <= NARROW) == is_narrow
        }
        found = paired_intervals(list(statistics.values()), seed=settings.seed, resamples=resamples)
        intervals |= dict(zip(statistics, found, strict=True))
    return [
        verdict.compare(
            where,
            one.name,
            (one.value, other.value),
            intervals.get(one.name),
            more
            if one.name == settings.metric
            else verdict.direction(one.name, maximize=False, minimize=False),
            one.why_not or other.why_not,
        )
        for one, other in pairs
    ]


def _record(bench: Bench, one: Contender, where: str) -> verdict.DataRecord:
    return verdict.DataRecord(name=bench.data[where].name, examples=one.scores[where].examples)


def _remarks(evaluation: verdict.Evaluation) -> list[str]:
    """What a reader of the numbers should know."""
    remarks = []
    if evaluation.test is None:
        remarks.append(
            "the best checkpoint was chosen on the data that it is compared on, which favours it; "
            "--test gives others."
        )
    without = {d.metric: d.why_not for d in evaluation.differences if d.low is None}
    remarks += [f"{metric} has no interval: {why}." for metric, why in without.items()]
    few = {d.metric: d.resamples for d in evaluation.differences if d.resamples is not None}
    most = max(few.values(), default=0)
    remarks += [
        f"the interval of {metric} comes from {count:,} resamples instead of {most:,}, because its "
        "state is large."
        for metric, count in few.items()
        if count < most
    ]
    return remarks
