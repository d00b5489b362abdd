"""Soups: the average of those checkpoints, with those coefficients, that is best on held-out data.

    paths -> plan (all refusals) -> model, validation data -> trials -> merge -> test data, once

Each trial is a checkpoint file beside the output, loaded into the one model there is and scored.
A greedy search keeps the sum of the members at hand (`running_sum`), so that a trial reads one
checkpoint; a weighted or uniform average is merged. The soup itself is written by `merge` of its
members, so it has the bits that anybody gets who merges them, and what is told of it was measured
on that file.

A score on the data that a soup was chosen by is too good. The test data is neither opened nor
scored before everything is chosen and written, and then once.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from streamavg.errors import OptionError, OutputError
from streamavg.evaluation.datasets import Data, open_data
from streamavg.evaluation.keras_backend import named_function
from streamavg.evaluation.models import compile_for_scoring, load_model, load_weights
from streamavg.evaluation.rebuilding import ModelOptions, recipe_of
from streamavg.evaluation.scoring import LOSS, score
from streamavg.evaluation.soup_record import (
    SCHEMA_VERSION,
    CandidateRecord,
    ScoresRecord,
    SoupRecord,
    TrialRecord,
    number,
    shown,
)
from streamavg.evaluation.strategies import (
    MOST_LEARNED,
    MOST_TRIALS,
    STRATEGIES,
    Search,
    Soup,
    StrategyName,
    load_optimizer,
    run_strategy,
)
from streamavg.evaluation.verdict import clear_direction, refuse_both
from streamavg.formats import open_checkpoint
from streamavg.merging import merge, plan, planned
from streamavg.options import MatchBy, MergeOptions, PreprocessingPolicy, Settings
from streamavg.running_sum import RunningSum
from streamavg.scanning import require_finite
from streamavg.selection import select_paths
from streamavg.units import format_size
from streamavg.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streamavg.evaluation.models import Recipe
    from streamavg.planning import MergePlan
    from streamavg.record import MergeRecord

    StrPath = str | os.PathLike[str]

_SEARCHING: tuple[StrategyName, ...] = ("greedy-swap", "learned")
"""Strategies that could go on for long."""
_GREEDY: tuple[StrategyName, ...] = ("greedy", "greedy-swap")
"""Strategies whose trials differ by one checkpoint."""


class SoupOptions(ModelOptions, total=False):
    """Options of `soup`; all may be left out."""

    metric: str | None
    """What checkpoints and soups are compared by; by default the first compiled metric, or the
    loss if there is none."""
    maximize: bool
    """More of the metric is better. By default its name tells."""
    minimize: bool
    """Less of the metric is better. By default its name tells."""
    most_trials: int | None
    """Averages that "greedy-swap" and "learned" try at most; 200 by default."""
    model: str | None
    """The model, for checkpoints that hold weights alone: a whole model, a configuration as JSON,
    or `module:function`."""
    batch_size: int | None
    """Of arrays; 32 by default."""
    preprocessing: PreprocessingPolicy
    """As of a merge."""
    match: MatchBy
    """As of a merge."""
    memory_limit: int | str | None
    """Peak resident memory of this process, as for a merge; the model and its data are in it. The
    running sum is held in memory where the limit has room for 8 bytes a value, else on disk."""
    force: bool
    """Replace an existing output."""


def soup(
    paths: Iterable[StrPath],
    val: str,
    output: StrPath,
    *,
    test: str | None = None,
    strategy: StrategyName = "greedy",
    on_plan: Callable[[MergeRecord], None] | None = None,
    on_search: Callable[[str, int], None] | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
    **options: Unpack[SoupOptions],
) -> SoupRecord:
    """Finds the average that is best on validation data, and writes it.

    Args:
        paths: two or more checkpoint files of one model.
        val: the data to choose by: a `.npz` file of x and y, or `module:function`; see
            `streamavg.evaluation.datasets`.
        output: where to write; its suffix picks the format.
        test: the data to report on, of the same kind. Opened after everything is chosen.
        strategy: "uniform", all of them; "greedy", best first, each that does not make it worse;
            "greedy-swap", which then also removes and exchanges members; "learned", coefficients
            of the best ten.
        on_plan: called with what a merge of all would be, before anything is loaded.
        on_search: called with the name of the metric and the most trials there can be.
        on_trial: called after each trial; its `taken` is False, as it is not decided.
        **options: see `SoupOptions`.

    Returns:
        All trials, what was taken, and the scores of the soup and of the best single checkpoint.

    Raises:
        StreamAvgError: as `merge`, all of it before the first trial; MissingDependencyError if
            Keras, or for a learned soup SciPy, is not installed; OptionError for data or a metric
            that is not there.

        After an error there is no output, unless it was the test data that could not be scored.

    Memory: one model, the data, and what a merge takes; see `memory_limit`. Disk beside the
    output: one checkpoint for the trial at hand, and for the greedy strategies 8 bytes a value
    where the running sum is not in memory.
    """
    started = time.monotonic()
    settings = _Settings(strategy, options)
    given, output = select_paths(paths), Path(output)
    foreseen = plan(given, output, **settings.merging)
    settings.refuse_missing(test)
    if on_plan is not None:
        on_plan(foreseen)
    judge = _Judge(given[0], settings.recipe, open_data(val, **settings.data("--val")))
    first = judge.score(given[0])
    metric = _Metric(first, options)
    with _kitchen(given, output, settings, judge, metric.name) as kitchen:
        kitchen.singles[0] = first
        search = Search(
            _Told(kitchen, given, on_trial), len(given), maximize=metric.maximize,
            most_trials=settings.most_trials,
        )  # fmt: skip
        if on_search is not None:
            on_search(metric.name, _most_trials(strategy, len(given), settings.most_trials))
        found = run_strategy(strategy, search)
        best = search.singles()[0]
        merged = kitchen.write(found, output)
        where = kitchen.running_sum
    validation = _scores(judge.data, judge.score(output), kitchen.singles[best])
    tested = None
    if test is not None:
        judge.data = open_data(test, **settings.data("--test"))
        tested = _scores(judge.data, judge.score(output), judge.score(given[best]))
    coefficients = dict(zip(found.members, found.coefficients, strict=True))
    return SoupRecord(
        schema_version=SCHEMA_VERSION,
        streamavg_version=__version__,
        strategy=strategy,
        metric=metric.name,
        maximize=metric.maximize,
        output=str(output),
        candidates=tuple(
            CandidateRecord(
                str(path), number(search.score(Soup((index,)))), coefficients.get(index, 0.0)
            )
            for index, path in enumerate(given)
        ),
        best_single=str(given[best]),
        trials=tuple(
            _trial_record(trial.soup, trial.score, given, taken=trial.taken)
            for trial in search.trials
        ),
        most_trials=settings.most_trials,
        ended_early=search.ended_early,
        validation=validation,
        test=tested,
        running_sum=where,
        merge=merged,
        seconds=time.monotonic() - started,
        notes=(
            *foreseen.notes,
            *_notes(strategy, search, search.score(found), validation.soup[metric.name]),
        ),
    )


class _Settings:
    """The options, checked and sorted by whom they concern."""

    def __init__(self, strategy: StrategyName, options: SoupOptions) -> None:
        if strategy not in STRATEGIES:
            raise OptionError(f"strategy={strategy!r}: choose one of {', '.join(STRATEGIES)}.")
        refuse_both(
            maximize=options.get("maximize", False), minimize=options.get("minimize", False)
        )
        self.strategy = strategy
        self.most_trials = options.get("most_trials")
        if self.most_trials is not None and strategy not in _SEARCHING:
            raise OptionError(
                f"--most-trials goes with --strategy {' or '.join(_SEARCHING)}; {strategy} makes "
                "as many trials as it has checkpoints to try."
            )
        if self.most_trials is not None and self.most_trials < 1:
            raise OptionError(f"--most-trials {self.most_trials}: expected 1 or more.")
        if self.most_trials is None and strategy in _SEARCHING:
            self.most_trials = MOST_TRIALS
        self.recipe = recipe_of(options.get("model"), options)
        self.merging: MergeOptions = {
            "preprocessing": options.get("preprocessing", "equal"),
            "match": options.get("match", "name"),
            "memory_limit": options.get("memory_limit"),
            "force": options.get("force", False),
        }
        self._batch_size = options.get("batch_size")

    def data(self, option: str) -> dict[str, Any]:
        """Arguments for `open_data`."""
        return {"option": option, "batch_size": self._batch_size}

    def refuse_missing(self, test: str | None) -> None:
        """Refuses now what would be missing after all trials."""
        if self.strategy == "learned":
            load_optimizer()
        if test is not None:
            _refuse_missing_data(test)


def _refuse_missing_data(test: str) -> None:
    """Raises OptionError if there is nothing of that name; looks neither inside nor calls it."""
    is_split = ".npz:" in test
    file = test.rpartition(":")[0] if is_split else test
    if file.endswith(".npz"):
        if not Path(file).is_file():
            raise OptionError(f"--test {file}: there is no such file.")
    else:
        named_function(test, "--test")


class _Judge:
    """The one model in memory, and the data at hand.

    Args:
        path: the checkpoint that the model is built from, and verified with.
        recipe: how.
        data: what to score on.
    """

    def __init__(self, path: Path, recipe: Recipe, data: Data) -> None:
        built = load_model(path, recipe)
        self._model = built.model
        self._recipe = recipe
        self.data = data
        compile_for_scoring(self._model, built.compile_config, recipe)

    def score(self, path: Path) -> dict[str, float]:
        """The loss and all metrics of a checkpoint, by name."""
        with open_checkpoint(path) as checkpoint, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            load_weights(self._model, checkpoint, self._recipe)
        values: dict[str, float] = score(self._model, self.data, keep_examples=False).values
        return values


class _Metric:
    """What is compared, and in which direction."""

    def __init__(self, values: Mapping[str, float], options: SoupOptions) -> None:
        named = options.get("metric")
        self.name = named or next((name for name in values if name != LOSS), LOSS)
        if self.name not in values:
            raise OptionError(
                f"--metric {named}: the model has no such metric; it has {', '.join(values)}."
            )
        self.maximize = clear_direction(
            self.name,
            maximize=options.get("maximize", False),
            minimize=options.get("minimize", False),
        )


class _Kitchen:
    """Makes soups as files, and has them scored. See `strategies.Scorer`.

    Args:
        plan: of all candidates, open.
        held: the running sum, for strategies whose trials differ by one checkpoint.
        trial: where the soup at hand is written.
        judge: scores it.
        metric: the name of the score.
        merging: options of merges.
    """

    def __init__(
        self, plan: MergePlan, held: RunningSum, trial: Path, judge: _Judge, metric: str,
        settings: _Settings,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._paths = [source.path for source in plan.matched.sources]
        self._held = held
        self._trial = trial
        self._judge = judge
        self._metric = metric
        self._settings = settings
        self.singles: dict[int, dict[str, float]] = {}
        """All scores of each candidate alone, once it was tried."""

    @property
    def running_sum(self) -> str | None:
        """Where the running sum is held; None if none is needed."""
        return self._held.place if self._settings.strategy in _GREEDY else None

    def score(self, soup: Soup) -> float:
        """See `Scorer`. A single checkpoint is scored from its own file."""
        if len(soup.members) == 1:
            return self._score_alone(soup.members[0])
        path = self._trial
        if self._settings.strategy in _GREEDY:
            added, removed = self._difference(soup)
            self._held.write_mean(path, added=added, removed=removed)
        else:
            self._merge(soup, path, force=True, fsync=False)
        return self._judge.score(path)[self._metric]

    def _score_alone(self, member: int) -> float:
        if member not in self.singles:
            self.singles[member] = self._judge.score(self._paths[member])
        return self.singles[member][self._metric]

    def take(self, soup: Soup) -> None:
        """See `Scorer`."""
        if self._settings.strategy in _GREEDY:
            added, removed = self._difference(soup)
            if added is not None:
                self._held.add(added)
            if removed is not None:
                self._held.remove(removed)

    def write(self, soup: Soup, output: Path) -> MergeRecord | None:
        """Writes a soup for good; a single checkpoint, which no merge takes, without one."""
        force = self._settings.merging["force"]
        if len(soup.members) == 1:
            with RunningSum(self._plan, self._trial.parent) as empty:
                empty.write_mean(output, added=soup.members[0], force=force, fsync=True)
            return None
        return self._merge(soup, output, force=force, fsync=True)

    def _difference(self, soup: Soup) -> tuple[int | None, int | None]:
        """The checkpoint that a soup has more than the sum, and the one that it has less."""
        held, wanted = set(self._held.members), set(soup.members)
        added, removed = sorted(wanted - held), sorted(held - wanted)
        assert len(added) <= 1, "a greedy trial adds one checkpoint"
        assert len(removed) <= 1, "a greedy trial removes one checkpoint"
        return next(iter(added), None), next(iter(removed), None)

    def _merge(self, soup: Soup, output: Path, *, force: bool, fsync: bool) -> MergeRecord:
        options = self._settings.merging | {"force": force, "fsync": fsync}
        if soup.numerators is not None:
            options |= {"weights": list(soup.coefficients), "normalize": True}
        return merge([self._paths[member] for member in soup.members], output, **options)


@contextmanager
def _kitchen(
    paths: Sequence[Path], output: Path, settings: _Settings, judge: _Judge, metric: str
) -> Iterator[_Kitchen]:
    """Opens all candidates, and a folder beside the output for trials, which vanishes after."""
    with ExitStack() as stack:
        plan = stack.enter_context(planned(paths, output, Settings(**settings.merging))).plan
        require_finite(plan)
        folder = Path(stack.enter_context(_scratch_folder(output)))
        in_memory = plan.memory.projected + RunningSum.bytes_needed(plan) <= plan.memory.limit
        on_disk = 2 * plan.bytes_written
        if settings.strategy in _GREEDY and not in_memory:
            on_disk += RunningSum.bytes_needed(plan)
        if on_disk > plan.free_disk_bytes:
            raise OutputError(
                output,
                f"needs {format_size(on_disk)} with a trial and the running sum, but its disk has "
                f"only {format_size(plan.free_disk_bytes)} free. Write elsewhere with --output.",
            )
        held = stack.enter_context(RunningSum(plan, None if in_memory else folder))
        yield _Kitchen(plan, held, folder / output.name, judge, metric, settings)


def _scratch_folder(output: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(
            prefix=f".{output.name}.", suffix=".trials", dir=output.parent
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(output, f"cannot be written: {reason}.") from error


@dataclass(frozen=True, slots=True)
class _Told:
    """A kitchen that tells of every trial."""

    kitchen: _Kitchen
    paths: Sequence[Path]
    on_trial: Callable[[TrialRecord], None] | None

    def score(self, soup: Soup) -> float:
        """See `Scorer`."""
        value = self.kitchen.score(soup)
        if self.on_trial is not None:
            self.on_trial(_trial_record(soup, value, self.paths, taken=False))
        return value

    def take(self, soup: Soup) -> None:
        """See `Scorer`."""
        self.kitchen.take(soup)


def _trial_record(soup: Soup, score: float, paths: Sequence[Path], *, taken: bool) -> TrialRecord:
    members = tuple(str(paths[member]) for member in soup.members)
    return TrialRecord(members, soup.coefficients, number(score), taken)


def _most_trials(strategy: StrategyName, count: int, most: int | None) -> int:
    """How many trials there can be, single checkpoints included."""
    if strategy == "uniform":
        return count + 1
    return count + (count - 1 if most is None else most)


def _scores(
    data: Data, soup: Mapping[str, float], best_single: Mapping[str, float]
) -> ScoresRecord:
    rounds = ({name: number(value) for name, value in one.items()} for one in (soup, best_single))
    return ScoresRecord(data.name, *rounds)


def _notes(
    strategy: StrategyName, search: Search, tried: float, written: float | None
) -> Iterator[str]:
    if search.ended_early:
        yield (
            f"the search ended after {search.most_trials} averages, when there was more to try; "
            "--most-trials lets it go on."
        )
    if strategy == "learned" and search.count > MOST_LEARNED:
        yield (
            f"coefficients were learned for the best {MOST_LEARNED} of {search.count} checkpoints; "
            "the others were tried alone."
        )
    if number(tried) != written:
        yield (
            f"the soup as it was written scores {shown(written)}, its trial "
            f"{shown(number(tried))}: their values may differ in the last bit."
        )
