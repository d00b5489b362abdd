"""The page says what was measured, and whether that is what is promised."""

import pytest
from benchmarks import contenders, modes, page, plot
from benchmarks.goals import GOALS, outcome
from benchmarks.results import MIB, Accuracy, Measurement, Profile, Report, Scenario

UNIFORM, *_ = GOALS


def report_of(seconds, *, peak=50 * MIB, outcome="done", mode="warm", scenario=modes.WEIGHTS):
    """A report with two rounds, the times by contender."""
    report = Report(scenarios=[Scenario(mode, scenario, 8, 388, 815_000_000, "float32")])
    for number in (0, 1, 2):
        for name, one in seconds.items():
            report.measurements.append(
                Measurement(mode, scenario, name, 1, number, one, one, peak, outcome)
            )
    return report


def row_of(report, condition):
    lines = page.reach_section(report).splitlines()
    return next(line for line in lines if line.startswith(f"| {condition} |"))


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(0.89, "aim met"), (0.9, "aim met"), (0.91, "must met"), (1.1, "must met"), (1.11, "missed")],
)
def test_a_time_is_judged_by_its_ratio_to_the_least(seconds, verdict):
    report = report_of({contenders.L: 1.0, contenders.MERGE: seconds})
    assert outcome(UNIFORM, report).verdict == verdict
    row = row_of(report, UNIFORM.condition)
    assert f"| {seconds:.2f} |" in row
    assert row.endswith(f"| {verdict} |")


@pytest.mark.parametrize(("seconds", "verdict"), [(19.9, "missed"), (20.0, "must met")])
def test_against_a_peer_more_is_better(seconds, verdict):
    times = {contenders.L: 1.0, contenders.MERGE: 1.0, contenders.ARTICLE: seconds}
    [goal] = [goal for goal in GOALS if goal.base == contenders.ARTICLE]
    assert outcome(goal, report_of(times)).verdict == verdict


def test_too_much_memory_is_a_miss_however_fast_it_was():
    report = report_of({contenders.L: 1.0, contenders.MERGE: 0.5}, peak=65 * MIB)
    assert outcome(UNIFORM, report).verdict == "missed: memory"


def test_a_run_that_was_killed_is_a_miss():
    report = report_of({contenders.L: 1.0, contenders.MERGE: 0.5}, outcome="OOM kill")
    assert outcome(UNIFORM, report).verdict == "missed: OOM kill"


def test_what_was_not_measured_is_said_to_be_so():
    assert outcome(UNIFORM, Report()).verdict == "not measured"
    with_fsync = report_of({contenders.L: 1.0, contenders.L_FSYNC: 2.0, contenders.MERGE_FSYNC: 2})
    assert outcome(UNIFORM, with_fsync).verdict == "not measured"
    assert "not measured" in row_of(with_fsync, UNIFORM.condition)


def test_smaller_inputs_than_those_of_the_promises_are_pointed_out():
    report = report_of({contenders.L_FSYNC: 1.0, contenders.MERGE_FSYNC: 1.0})
    assert "These were" not in page.reach_section(report)
    report.scenarios = [Scenario("warm", modes.WEIGHTS, 4, 12, 25_000_000, "float32")]
    assert "**These were 4 of 25 MB**" in page.reach_section(report)


def test_a_missed_promise_brings_the_profile_that_explains_it():
    report = report_of(
        {contenders.L_FSYNC: 1.0, contenders.MERGE_FSYNC: 9.0}, mode="cold", scenario=modes.WEIGHTS
    )
    phases = {"reading": 6.0, "start-up and exit": 2.0}
    report.profiles = [
        Profile("warm", modes.WEIGHTS, 1.0, 2, {"start-up and exit": 1.0}, {}),
        Profile("warm", modes.LEGACY, 1.0, 2, {"start-up and exit": 1.0}, {}),
        Profile("cold", modes.WEIGHTS, 8.0, 2, phases, {"reading": 2.0}),
    ]
    text = page.profile_section(report)
    assert "*cold, float32, .weights.h5* do not wait for one another: reading 80%" in text
    assert "*warm, float32, legacy .h5*" not in text


def test_an_error_above_its_bound_is_a_miss():
    accuracy = [
        Accuracy("case", "float32", 8, False, 9, 0.5, 0.2, 0.5, 3.0),
        Accuracy("case", "float64", 8, False, 9, 0.51, 0.2, 0.5, 3.0),
    ]
    *_, first, second = page.accuracy_section(Report(accuracy=accuracy)).splitlines()
    assert first.endswith("| met |")
    assert second.endswith("| missed |")


@pytest.fixture
def growing():
    report = Report()
    for count in (2, 8, 32):
        times = {contenders.L: 1.0, contenders.MERGE: 1.1, contenders.WHOLE: 9.0}
        name = f"{modes.COUNTS}: {count:,}"
        one = report_of(times, mode="growth", scenario=name)
        report.scenarios += one.scenarios
        report.measurements += one.measurements
    return report


def test_the_page_shows_growth_with_its_picture(growing, tmp_path):
    text = page.render(growing, "benchmarks.png")
    assert "(benchmarks.png)" in text
    assert "| number of checkpoints: 32 | 8 x 388 | 6,520 | 1.10 | 1.00 | 1.10 | 50 |" in text
    assert "From 2 to 32 checkpoints with the same bytes in all" in text
    assert "the time of streamavg changes by the factor 1.00, that of L by 1.00." in text
    plot.draw(growing, tmp_path / "benchmarks.png")
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_the_bytes_that_a_variable_costs_follow_from_two_peaks():
    report = Report()
    for name, count, peak in ((modes.WIDE, 64, 54), (modes.WIDE_FEW, 2, 50)):
        times = {contenders.L: 1.0, contenders.MERGE: 1.1}
        one = report_of(times, mode="growth", scenario=name, peak=peak * MIB)
        report.scenarios.append(Scenario("growth", name, count, 3000, 1000, "float32"))
        report.measurements += one.measurements
    expected = 4 * MIB / (62 * 3000)
    assert f"+4.0 MiB against 2 of them, {expected:.0f} bytes" in page.growth_section(report, None)


def test_a_report_of_nothing_still_makes_a_page():
    assert page.render(Report()).startswith("# Benchmarks")


def test_what_one_run_left_out_and_another_had_is_not_left_out():
    report = report_of({contenders.L: 1.0, contenders.MERGEKIT: 8.0})
    report.notes = [f"{contenders.MERGEKIT}: none was given.", f"{contenders.ARTICLE}: no Keras."]
    assert page.notes_section(report) == f"## Left out\n\n- {contenders.ARTICLE}: no Keras."
