"""The results as Markdown: tables for the terminal, and the page docs/benchmarks.md."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks import contenders as names
from benchmarks import modes
from benchmarks.goals import GOALS, PEAK, START_UP_MUST, outcome
from benchmarks.profiling import START_UP, WAITING
from benchmarks.results import DONE, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Profile, Report

INTRODUCTION = """# Benchmarks

Written by `scripts/benchmark.py --page docs/benchmarks.md`, of one run with `--mode all \
--repeat 3` or of several that were put together with `--from`; nothing here is typed in by hand.

**L** is the yardstick: the time of `cat INPUTS > /dev/null` and `cp ONE_INPUT OUTPUT`, what the \
machine needs merely to read every input once and to write one model. Like goes against like: a \
merge with `--no-fsync` against L, one with its default fsync against *L fsync*, whose copy is \
flushed to the disk too.

Every command is a process of its own: times are from its start to its end, imports included, and \
peak memory is what the operating system saw of it. Commands take turns, in both directions; \
ratios are those of two times of the same round, and numbers are medians. Machines are noisy and \
differ: compare ratios, not seconds. All outputs were compared: merges with the same weights write \
the same bits, within 0.5 ULP of the mean of the inputs and what float64 sums can be off by.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(report: Report, plot: str | None = None) -> str:
    """The whole page.

    Args:
        report: what was measured.
        plot: name of the picture beside the page; None if there is none.
    """
    return "\n\n".join([INTRODUCTION.rstrip(), *sections(report, plot)]) + "\n"


def sections(report: Report, plot: str | None = None) -> list[str]:
    """The parts of the page that have something to say."""
    parts = [
        machine_section(report),
        reach_section(report),
        *(mode_section(mode, title, report) for mode, title in MODE_TITLES.items()),
        growth_section(report, plot),
        accuracy_section(report),
        profile_section(report),
        notes_section(report),
    ]
    return [part for part in parts if part]


PROMISED = modes.Sizes()
MODE_TITLES = {
    "warm": "Warm page cache",
    "cold": "Cold page cache",
    "cgroup": "In a memory cgroup of 96 MiB, cold page cache",
    "median": "Median",
}


# --- machine and promises ------------------------------------------------------------------------


def machine_section(report: Report) -> str:
    """What was measured on."""
    facts = report.machine | {name: str(value) for name, value in report.settings.items()}
    return "## Machine and versions\n\n" + table(
        ["", ""], ([name, value] for name, value in facts.items() if value)
    ).replace("--:", "---")


def reach_section(report: Report) -> str:
    """Each promise beside what was measured."""
    found = [outcome(goal, report) for goal in GOALS]
    if not any(one.measured for one in found) and not start_up_row(report):
        return ""
    repeats = max((len(one.repeats) for one in found), default=1) or 1
    rows = []
    for one in found:
        goal = one.goal
        cells = [f"{value:.2f}" for value in one.repeats]
        cells += [""] * (repeats - len(cells))
        measured = "" if one.measured is None else f"{one.measured:.2f}"
        limit = f" ({goal.peak // MIB})" if goal.peak else ""
        peak = f"{one.peak / MIB:.0f}{limit}" if one.peak and one.measured else ""
        aim = "" if goal.aim is None else f"{goal.aim:g} {goal.unit}"
        rows.append(
            [goal.condition, f"{goal.must:g} {goal.unit}", aim, *cells, measured, peak, one.verdict]
        )
    rows += start_up_row(report, repeats)
    runs = [f"run {number}" for number in range(1, repeats + 1)]
    header = ["", "must", "aim", *runs, "median", "peak (allowed), MiB", ""]
    parts = ["## What is promised, and what was measured", promised_for(report)]
    return "\n\n".join([*parts, table(header, rows)])


def promised_for(report: Report) -> str:
    """The inputs that the promises are for, and whether these are smaller."""
    text = f"Promised for {PROMISED.checkpoints} checkpoints of {PROMISED.megabytes:g} MB."
    known = report.scenario("warm", modes.WEIGHTS)
    if known and known.bytes_each < 0.9 * PROMISED.megabytes * modes.MEGABYTE:
        text += (
            f" **These were {known.checkpoints} of {known.bytes_each / modes.MEGABYTE:.3g} MB**, "
            "so that start-up weighs more."
        )
    return text


def start_up_row(report: Report, repeats: int = 1) -> list[list[str]]:
    """The row of `streamavg --help`; none if it was not measured."""
    seconds = report.median_seconds("growth", modes.START_UP, names.HELP)
    if seconds is None:
        return []
    peak = report.peak_bytes("growth", modes.START_UP, names.HELP) or 0
    verdict = "must met" if seconds <= START_UP_MUST else "missed"
    cells = [f"{seconds:.2f}", *[""] * (repeats - 1), f"{seconds:.2f}"]
    must = f"{START_UP_MUST:g} s"
    return [["`streamavg --help`", must, "", *cells, f"{peak / MIB:.0f}", verdict]]


# --- all that was measured -----------------------------------------------------------------------


def mode_section(mode: str, title: str, report: Report) -> str:
    """A table for each scenario of a mode."""
    parts = []
    for scenario in report.scenario_names(mode):
        known = report.scenario(mode, scenario)
        size = ""
        if known:
            size = (
                f": {known.checkpoints} checkpoints of {known.bytes_each / 1e6:,.4g} MB and "
                f"{known.variables:,} variables"
            )
        rows = [
            contender_row(mode, scenario, contender, report)
            for contender in report.contenders(mode, scenario)
        ]
        header = ["", "seconds, median (min to max)", "processor, s", "ratio, median", "peak, MiB"]
        parts.append(f"**{scenario}**{size}\n\n{table(header, rows)}")
    return "\n\n".join([f"## {title}", *parts]) if parts else ""


BASES = {
    names.MERGE_FSYNC: names.L_FSYNC,
    names.L_FSYNC: names.L_FSYNC,
    names.MEDIAN: names.NUMPY_MEDIAN,
    names.NUMPY_MEDIAN: names.NUMPY_MEDIAN,
}
"""What the time of a contender is divided by, where that is not L."""


def contender_row(mode: str, scenario: str, contender: str, report: Report) -> list[str]:
    """Time, ratio and memory of one contender."""
    runs = [m for m in report.of(mode, scenario, contender) if m.outcome == DONE]
    failures = report.failures(mode, scenario, contender)
    if not runs:
        return [contender, failures[0] if failures else "", "", "", ""]
    base = base_of(mode, scenario, contender, report)
    ratio = report.median_ratio(mode, scenario, contender, base)
    times = [m.seconds for m in runs]
    processor = statistics.median(m.processor_seconds for m in runs)
    return [
        contender,
        spread(times) + (f", {len(failures)} x {failures[0]}" if failures else ""),
        f"{processor:.2f}",
        "" if ratio is None else f"{ratio:.2f} {base}",
        f"{max(m.peak_bytes for m in runs) / MIB:.0f}",
    ]


def base_of(mode: str, scenario: str, contender: str, report: Report) -> str:
    """What the time of a contender is divided by: the limit that does the same about fsync."""
    if contender in BASES:
        return BASES[contender]
    has_no_fsync = names.MERGE in report.contenders(mode, scenario)
    is_merge = contender.startswith("streamavg")
    return names.L_FSYNC if is_merge and not has_no_fsync else names.L


def spread(values: Sequence[float]) -> str:
    """The median, and between what values it lies."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- growth --------------------------------------------------------------------------------------


def growth_section(report: Report, plot: str | None) -> str:
    """How time and memory follow the numbers of checkpoints, variables and bytes."""
    scenarios = [s for s in report.scenario_names("growth") if s != modes.START_UP]
    if not scenarios:
        return ""
    rows = []
    for scenario in scenarios:
        known = report.scenario("growth", scenario)
        merge, base = merge_and_base(report, scenario)
        seconds = report.median_seconds("growth", scenario, merge)
        least = report.median_seconds("growth", scenario, base)
        ratio = report.median_ratio("growth", scenario, merge, base)
        peak = report.peak_bytes("growth", scenario, merge)
        if not (known and seconds and least and ratio and peak):
            continue
        rows.append(
            [
                scenario,
                f"{known.checkpoints:,} x {known.variables:,}",
                f"{known.checkpoints * known.bytes_each / 1e6:,.0f}",
                f"{seconds:.2f}",
                f"{least:.2f}",
                f"{ratio:.2f}",
                f"{peak / MIB:.0f}",
            ]
        )
    header = [
        "", "checkpoints x variables", "MB in all", "streamavg, s", "L, s", "ratio", "peak, MiB",
    ]  # fmt: skip
    parts = ["## Growth", table(header, rows), *growth_text(report, scenarios)]
    if plot:
        parts.insert(1, f"![Time and memory against the number of checkpoints]({plot})")
    return "\n\n".join(parts)


def growth_text(report: Report, scenarios: list[str]) -> list[str]:
    """What follows from the table."""
    text = [sentence for kind in GROWING if (sentence := factor_text(report, scenarios, kind))]
    peaks = [p for s in scenarios if (p := merge_peak(report, s)) is not None]
    if peaks:
        text.append(
            f"The largest peak of all is {max(peaks) / MIB:.0f} MiB, the smallest "
            f"{min(peaks) / MIB:.0f} MiB"
            + ("." if max(peaks) <= PEAK else f"; {PEAK // MIB} MiB are promised.")
        )
    many, few = merge_peak(report, modes.WIDE), merge_peak(report, modes.WIDE_FEW)
    if many is not None and few is not None:
        wide, narrow = (report.scenario("growth", n) for n in (modes.WIDE, modes.WIDE_FEW))
        if wide and narrow:
            grown, more = (wide.checkpoints - narrow.checkpoints) * wide.variables, many - few
            text.append(
                f"What grows with the number of checkpoints is the index: {wide.checkpoints} "
                f"checkpoints of {wide.variables:,} variables take {more / MIB:+.1f} MiB against "
                f"{narrow.checkpoints} of them, {more / grown:.0f} bytes a variable and checkpoint."
            )
    return ["\n".join(text)] if text else []


GROWING = {modes.COUNTS: "checkpoints", modes.VARIABLES: "variables"}
"""What grows while the bytes stay the same, as the names of scenarios begin, and in words."""


def factor_text(report: Report, scenarios: list[str], kind: str) -> str:
    """How time changes from the first to the last scenario of a kind; "" if there is one only."""
    found = [scenario for scenario in scenarios if scenario.startswith(kind)]
    if len(found) < 2:
        return ""
    first, last = found[0], found[-1]
    merge, base = merge_and_base(report, first)
    changes = []
    for name in (merge, base):
        before, after = (report.median_seconds("growth", s, name) for s in (first, last))
        if not (before and after):
            return ""
        changes.append(after / before)
    numbers = " to ".join(s.rpartition(" ")[2] for s in (first, last))
    return (
        f"From {numbers} {GROWING[kind]} with the same bytes in all, the time of streamavg changes "
        f"by the factor {changes[0]:.2f}, that of L by {changes[1]:.2f}."
    )


def merge_and_base(report: Report, scenario: str) -> tuple[str, str]:
    """The merge that a growth scenario is told by, and the L beside it: without fsync if it can."""
    has_no_fsync = names.MERGE in report.contenders("growth", scenario)
    merge = names.MERGE if has_no_fsync else names.MERGE_FSYNC
    return merge, base_of("growth", scenario, merge, report)


def merge_peak(report: Report, scenario: str) -> int | None:
    """The largest peak of the merges of a scenario."""
    peaks = [
        report.peak_bytes("growth", scenario, name) for name in (names.MERGE, names.MERGE_FSYNC)
    ]
    return max((peak for peak in peaks if peak is not None), default=None)


# --- accuracy, profile, notes --------------------------------------------------------------------


def accuracy_section(report: Report) -> str:
    """Errors in ULP."""
    if not report.accuracy:
        return ""
    rows = [
        [
            one.case,
            one.dtype,
            f"{one.checkpoints:,}",
            "weighted" if one.weighted else "uniform",
            plain(one.largest),
            f"{one.mean:.3f}",
            plain(one.bound),
            f"{one.largest_naive:,.3g}",
            "met" if one.largest <= one.bound else "missed",
        ]
        for one in report.accuracy
    ]
    header = [
        "", "dtype", "checkpoints", "", "largest error, ULP", "mean error, ULP", "promised, ULP",
        "largest error of sums in the dtype itself, ULP", "",
    ]  # fmt: skip
    values = report.accuracy[0].values
    return (
        "## Accuracy\n\n"
        f"Errors against exact rational arithmetic, of {values:,} values of each case, merged "
        "through the command line. 0.5 ULP is what rounding once costs; what is promised adds what "
        "the sum before it may be off by.\n\n" + table(header, rows)
    )


def plain(number: float) -> str:
    """With nine digits after the point, or as many as it has."""
    return f"{number:.9f}".rstrip("0").rstrip(".")


def profile_section(report: Report) -> str:
    """Where the time goes."""
    if not report.profiles:
        return ""
    phases = list(dict.fromkeys(p for one in report.profiles for p in (one.main | one.others)))
    totals = {
        phase: sum(together(one).get(phase, 0) for one in report.profiles) for phase in phases
    }
    shown = sorted(phases, key=totals.__getitem__, reverse=True)
    rows = [
        [
            f"{one.mode}, {one.scenario}",
            f"{one.seconds:.2f}",
            str(one.threads),
            *(f"{together(one).get(phase, 0):.2f}" for phase in shown),
        ]
        for one in report.profiles
    ]
    return "\n\n".join(
        [
            "## Where the remaining time goes",
            "Measured in runs of their own, by timers that see every call and return in each "
            "thread. Seconds of all threads together; waiting for the interpreter's lock counts "
            "for the phase that waits.",
            table(["", "whole process, s", "threads", *shown], rows),
            *(profile_text(one, report) for one in explained(report)),
        ]
    )


def explained(report: Report) -> list[Profile]:
    """The first profile, and those of all goals that were missed."""
    missed = {
        (one.goal.mode, one.goal.scenario)
        for one in (outcome(goal, report) for goal in GOALS)
        if one.verdict.startswith("missed")
    }
    first, *others = report.profiles
    return [first, *(one for one in others if (one.mode, one.scenario) in missed)]


def together(profile: Profile) -> dict[str, float]:
    """Seconds of all threads by phase."""
    return {
        phase: profile.main.get(phase, 0) + profile.others.get(phase, 0)
        for phase in profile.main | profile.others
    }


def profile_text(profile: Profile, report: Report) -> str:
    """The first profile in words."""
    busy = {phase: s for phase, s in together(profile).items() if phase != WAITING}
    total = sum(busy.values())
    ordered = sorted(busy.items(), key=lambda entry: entry[1], reverse=True)
    shares = ", ".join(f"{phase} {s / total:.0%}" for phase, s in ordered if s / total >= 0.005)
    name = f"{profile.mode}, {profile.scenario}"
    text = f"Of the time that the threads of *{name}* do not wait for one another: {shares}. "
    text += f"The process took {profile.seconds:.2f} s; {profile.main.get(START_UP, 0):.2f} s of "
    text += "that are start-up and exit, which do not grow with the inputs."
    for merge in (names.MERGE_FSYNC, names.MEDIAN):  # whichever was profiled
        ordinary = report.median_seconds(profile.mode, profile.scenario, merge)
        if ordinary:
            text += f" Without timers the median was {ordinary:.2f} s."
    return text


def notes_section(report: Report) -> str:
    """What was left out, and why; not what another run had."""
    measured = {f"{one.contender}: " for one in report.measurements}
    notes = [note for note in report.notes if not note.startswith(tuple(measured))]
    return "## Left out\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
