"""What is measured, under which conditions.

Each mode builds its inputs, measures and removes them; what it finds goes to the report. Inputs of
one layout are there at a time, so that the page cache holds them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import contenders, measuring
from benchmarks.accuracy import measure_accuracy
from benchmarks.contenders import MEDIANS, Contender
from benchmarks.inputs import Model, build_random, configuration
from benchmarks.profiling import profile
from benchmarks.rounds import Conditions, Counts, is_cgroup_available, run_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.contenders import Abilities
    from benchmarks.results import Report

MEGABYTE = 1000**2
MIB = 1024**2
CGROUP_BYTES = 96 * MIB
LIMIT = "64MiB"
"""As `--memory-limit` takes it."""
SAMPLED_VARIABLES = 64
"""How many variables of an output are compared where another scenario compares all."""
OPEN_FILES = 128

WEIGHTS = "float32, .weights.h5"
ARCHIVES = "float32, .keras"
LEGACY = "float32, legacy .h5"
HALVES = {"float16": "float16, .weights.h5", "bfloat16": "bfloat16, .weights.h5"}
COUNTS = "number of checkpoints"
VARIABLES = "number of variables"
MANY_FILES = f"many checkpoints, {OPEN_FILES} open files allowed"
ONE_TENSOR = "one large variable"
WIDE = "many variables of many checkpoints"
WIDE_FEW = "many variables of 2 checkpoints"
START_UP = "start-up"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    checkpoints: int = 8
    megabytes: float = 815
    """Of each checkpoint (float32; half of it in two bytes a value)."""
    rounds: int = 5
    peer_rounds: int = 2
    growth_megabytes: float = 1600
    """Of all checkpoints together where they grow in number."""
    counts: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    variables_megabytes: float = 800
    """Of all four checkpoints together where their variables grow in number."""
    variables: tuple[int, ...] = (100, 1000, 5000, 20_000)
    many_files: int = 1000
    many_megabytes: float = 1000
    tensor_megabytes: float = 4296
    """Of the one large variable: 2**30 float32 values."""
    wide: tuple[int, int] = (64, 3000)
    """Checkpoints and variables where both are many."""
    wide_megabytes: float = 400
    growth_rounds: int = 3
    median_checkpoints: int = 32
    median_megabytes: float = 1600
    sampled: int = 1000
    """Elements whose accuracy is measured."""


QUICK = Sizes(
    checkpoints=4,
    megabytes=25,
    rounds=2,
    peer_rounds=1,
    growth_megabytes=64,
    counts=(2, 8, 32),
    variables_megabytes=32,
    variables=(100, 1000),
    many_files=200,
    many_megabytes=10,
    tensor_megabytes=67,
    wide=(16, 300),
    wide_megabytes=16,
    growth_rounds=1,
    median_megabytes=64,
    sampled=100,
)
"""For a look, not for the page."""


@dataclass
class Bench:
    """What all modes share."""

    folder: Path
    sizes: Sizes
    abilities: Abilities
    report: Report
    repeat: int = 1
    profiles: bool = False
    drops_everything: bool = True

    def measure(
        self, conditions: Conditions, taking_part: list[Contender], rounds: int | None = None
    ) -> None:
        """Runs the rounds of one scenario."""
        counts = Counts(rounds or self.sizes.rounds, self.sizes.peer_rounds, self.repeat)
        run_rounds(taking_part, conditions, counts, self.folder, self.report)

    def profile(self, conditions: Conditions, taking_part: list[Contender]) -> None:
        """Profiles a merge of a scenario, with fsync if there is one, if asked for and not done."""
        if self.profiles and self.repeat == 1:
            merges = [contender for contender in taking_part if contender.is_merge]
            with_fsync = [merge for merge in merges if merge.name == contenders.MERGE_FSYNC]
            profile((with_fsync or merges)[0], conditions, self.folder, self.report)

    @contextmanager
    def inputs(self, count: int, model: Model, suffix: str = ".weights.h5") -> Iterator[list[str]]:
        """Checkpoints of a model, removed at the end; the names that they have in the folder."""
        names = [f"input-{number:04}{suffix}" for number in range(count)]
        build_random([self.folder / name for name in names], model)
        try:
            yield names
        finally:
            for name in names:
                (self.folder / name).unlink(missing_ok=True)

    def uniform(self, inputs: list[str], *options: str) -> list[Contender]:
        """Merges with like and like side by side: L, then a merge without fsync; then with."""
        plain, flushed = contenders.limits(inputs)
        with_fsync = contenders.merge(contenders.MERGE_FSYNC, inputs, *options)
        return [plain, *self.without_fsync(contenders.MERGE, inputs, *options), flushed, with_fsync]

    def without_fsync(
        self, name: str, inputs: list[str], *options: str, weights: tuple[float, ...] | None = None
    ) -> list[Contender]:
        """A merge without fsync; none where there is no such option."""
        if not self.abilities.has_option("--no-fsync"):
            self.report.note(
                "Merges without fsync: this streamavg has no --no-fsync. Where the tables have no "
                "such row, merges are measured with fsync, against L with fsync."
            )
            return []
        return [contenders.merge(name, inputs, "--no-fsync", *options, weights=weights)]

    def other_ways_to_read(self, inputs: list[str]) -> list[Contender]:
        """Merges that read as they are told, without fsync where that can be chosen."""
        if not self.abilities.has_option("--io"):
            self.report.note("`--io buffered` and `--io direct`: this streamavg has no --io.")
            return []
        names = {contenders.BUFFERED: "buffered", contenders.DIRECT: "direct"}
        return [
            merge
            for name, way in names.items()
            for merge in self.without_fsync(name, inputs, "--io", way)
        ]


# --- the page cache is warm ----------------------------------------------------------------------


def warm(bench: Bench) -> None:
    """All inputs in the page cache: every layout, every dtype, and the peers."""
    model = Model.sized(bench.sizes.megabytes * MEGABYTE)
    with bench.inputs(bench.sizes.checkpoints, model) as inputs, _peers(bench, model) as peers:
        weights = contenders.increasing_weights(len(inputs))
        options = ["--no-fsync"] if bench.abilities.has_option("--no-fsync") else []
        taking_part = [
            *bench.uniform(inputs),
            contenders.merge(contenders.WEIGHTED, inputs, *options, weights=weights),
            contenders.merge(contenders.LIMITED, inputs, *options, "--memory-limit", LIMIT),
            contenders.whole_models(inputs),
            *(make(inputs) for make in peers),
        ]
        conditions = Conditions("warm", WEIGHTS, model)
        bench.measure(conditions, taking_part)
        bench.profile(conditions, taking_part)
    for name, suffix, dtype in (
        (ARCHIVES, ".keras", "float32"),
        (LEGACY, ".h5", "float32"),
        *((name, ".weights.h5", dtype) for dtype, name in HALVES.items()),
    ):
        model = Model.sized(bench.sizes.megabytes * MEGABYTE, "float32")
        model = Model(model.layers, model.width, dtype)
        with bench.inputs(bench.sizes.checkpoints, model, suffix) as inputs:
            conditions = Conditions("warm", name, model)
            bench.measure(conditions, bench.uniform(inputs))
            bench.profile(conditions, bench.uniform(inputs))


@contextmanager
def _peers(bench: Bench, model: Model) -> Iterator[list[Callable[[list[str]], Contender]]]:
    """What makes the other programs that can be measured here; what they need is removed."""
    made: list[Callable[[list[str]], Contender]] = []
    extra = []
    if why := bench.abilities.why_no_article():
        bench.report.note(f"{contenders.ARTICLE}: {why}.")
    else:
        config = bench.folder / "config.json"
        config.write_text(json.dumps(configuration(model)))
        extra.append(config)
        made.append(lambda inputs: contenders.article(inputs, config.name))
    if why := bench.abilities.why_no_mergekit():
        bench.report.note(f"{contenders.MERGEKIT}: {why}.")
    else:
        bench.report.machine |= bench.abilities.mergekit_versions
        tensors = [
            bench.folder / f"input-{n:04}.safetensors" for n in range(bench.sizes.checkpoints)
        ]
        build_random(tensors, model)
        extra += tensors
        made.append(
            lambda _: contenders.mergekit(
                bench.abilities.mergekit_python, [path.name for path in tensors], bench.folder
            )
        )
    try:
        yield made
    finally:
        for path in extra:
            path.unlink(missing_ok=True)


# --- the page cache is cold ----------------------------------------------------------------------


def cold(bench: Bench) -> None:
    """Nothing in the page cache: the disk sets the pace."""
    _cold(bench, "cold", None)


def cgroup(bench: Bench) -> None:
    """The same in a memory cgroup that is smaller than one checkpoint."""
    if why := is_cgroup_available(CGROUP_BYTES, bench.folder):
        bench.report.note(f"Everything in a memory cgroup: {why}.")
        return
    _cold(bench, "cgroup", CGROUP_BYTES)


def _cold(bench: Bench, mode: str, memory: int | None) -> None:
    model = Model.sized(bench.sizes.megabytes * MEGABYTE)
    with bench.inputs(bench.sizes.checkpoints, model) as inputs:
        conditions = Conditions(
            mode,
            WEIGHTS,
            model,
            is_cold=True,
            drops_everything=bench.drops_everything,
            memory=memory,
            at_most=SAMPLED_VARIABLES,
        )
        taking_part = [*bench.uniform(inputs), *bench.other_ways_to_read(inputs)]
        bench.measure(conditions, taking_part)
        bench.profile(conditions, taking_part)


# --- growth --------------------------------------------------------------------------------------


def growth(bench: Bench) -> None:
    """How time and memory follow the numbers of checkpoints, variables and bytes."""
    sizes = bench.sizes
    for count in sizes.counts:
        model = Model.sized(sizes.growth_megabytes * MEGABYTE / count)
        _grow(bench, f"{COUNTS}: {count:,}", count, model, with_peer=True)
    for variables in sizes.variables:
        model = Model.sized(sizes.variables_megabytes * MEGABYTE / 4, variables=variables)
        _grow(bench, f"{VARIABLES}: {variables:,}", 4, model)
    model = Model.sized(sizes.many_megabytes * MEGABYTE / sizes.many_files, variables=4)
    _grow(bench, MANY_FILES, sizes.many_files, model, open_files=OPEN_FILES)
    model = Model.sized(sizes.tensor_megabytes * MEGABYTE, variables=2)
    _grow(bench, ONE_TENSOR, 2, model)
    count, variables = sizes.wide
    model = Model.sized(sizes.wide_megabytes * MEGABYTE / count, variables=variables)
    _grow(bench, WIDE, count, model)
    _grow(bench, WIDE_FEW, 2, model)
    bench.measure(Conditions("growth", START_UP), [contenders.start_up()], rounds=10)


def _grow(
    bench: Bench,
    scenario: str,
    count: int,
    model: Model,
    *,
    open_files: int = 0,
    with_peer: bool = False,
) -> None:
    with bench.inputs(count, model) as inputs:
        conditions = Conditions(
            "growth", scenario, model, open_files=open_files, at_most=SAMPLED_VARIABLES
        )
        taking_part = bench.uniform(inputs)
        if with_peer:
            taking_part.append(contenders.whole_models(inputs))
        bench.measure(conditions, taking_part, rounds=bench.sizes.growth_rounds)


# --- other methods, and numbers ------------------------------------------------------------------


def median(bench: Bench) -> None:
    """The median of many checkpoints, within a memory limit."""
    if not bench.abilities.has_method("median"):
        bench.report.note("The median: this streamavg has no --method median.")
        return
    sizes = bench.sizes
    model = Model.sized(sizes.median_megabytes * MEGABYTE / sizes.median_checkpoints)
    with bench.inputs(sizes.median_checkpoints, model) as inputs:
        options = ["--method", "median", "--memory-limit", LIMIT]
        if bench.abilities.has_option("--no-fsync"):
            options.append("--no-fsync")
        taking_part = [
            contenders.merge(contenders.MEDIAN, inputs, *options, expected=MEDIANS),
            contenders.numpy_median(inputs),
        ]
        conditions = Conditions("median", f"{len(inputs)} checkpoints", model)
        bench.measure(conditions, taking_part)
        bench.profile(conditions, taking_part)


def accuracy(bench: Bench) -> None:
    """Errors against rational arithmetic: the same every time, so measured once."""
    if bench.repeat == 1:
        measure_accuracy(bench.folder, bench.report, bench.sizes.sampled)


MODES: dict[str, Callable[[Bench], None]] = {
    "warm": warm,
    "cold": cold,
    "cgroup": cgroup,
    "median": median,
    "growth": growth,
    "accuracy": accuracy,
}
REPEATED = {"warm", "cold", "cgroup", "median"}
"""Modes of the table of what is promised; the others are measured once."""


def run_modes(modes: list[str], bench: Bench, repeats: int) -> None:
    """Measures modes, those of the table of promises several times."""
    for bench.repeat in range(1, repeats + 1):
        for mode in modes:
            if mode in REPEATED or bench.repeat == 1:
                MODES[mode](bench)


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder for inputs and outputs, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="streamavg-benchmark-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def can_drop_everything() -> bool:
    """Whether the page cache of the machine can be emptied."""
    return measuring.can_drop_caches()
