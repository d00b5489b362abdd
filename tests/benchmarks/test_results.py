"""What follows from the measurements."""

import pytest
from benchmarks.results import Accuracy, Measurement, Profile, Report, Scenario


def measured(contender, number, seconds, **others):
    facts = {"mode": "warm", "scenario": "s", "repeat": 1, "processor_seconds": seconds / 2}
    facts |= {"peak_bytes": 1000, **others}
    return Measurement(contender=contender, round=number, seconds=seconds, **facts)


@pytest.fixture
def report():
    report = Report()
    for number, (least, merge) in enumerate([(1, 50), (1, 2), (10, 10), (2, 6)]):
        report.measurements += [measured("L", number, least), measured("streamavg", number, merge)]
    return report


def test_ratios_are_taken_pair_by_pair_and_round_zero_does_not_count(report):
    assert report.ratios("warm", "s", "streamavg", "L") == [2, 1, 3]
    assert report.median_ratio("warm", "s", "streamavg", "L") == 2
    assert report.median_seconds("warm", "s", "streamavg") == 6


def test_a_contender_that_takes_part_in_fewer_rounds_is_paired_with_those(report):
    report.measurements.append(measured("slow", 2, 50))
    assert report.ratios("warm", "s", "slow", "L") == [5]
    assert report.ratios("warm", "s", "L", "slow") == [0.2]


def test_a_run_that_did_not_end_well_is_no_time(report):
    report.measurements.append(measured("killed", 1, 0.1, outcome="OOM kill"))
    assert report.median_ratio("warm", "s", "killed", "L") is None
    assert report.failures("warm", "s", "killed") == ["OOM kill"]


def test_repeats_of_the_table_are_kept_apart(report):
    report.measurements += [measured("L", 1, 1, repeat=2), measured("streamavg", 1, 9, repeat=2)]
    assert report.repeats("warm", "s") == [1, 2]
    assert report.median_ratio("warm", "s", "streamavg", "L", repeat=2) == 9


def test_json_keeps_everything(report, tmp_path):
    report.machine, report.settings = {"cores": "2"}, {"rounds": "5"}
    report.scenarios.append(Scenario("warm", "s", 8, 12, 1000, "float32"))
    report.accuracy.append(Accuracy("case", "float16", 8, True, 100, 0.5, 0.25, 0.5, 7.0))
    report.profiles.append(Profile("warm", "s", 1.5, 2, {"reading": 1.0}, {"writing": 0.5}))
    report.note("this was left out")
    report.save(tmp_path / "report.json")
    assert Report.load([tmp_path / "report.json"]) == report


def test_several_reports_are_read_as_one(report, tmp_path):
    report.note("this was left out")
    other = Report(measurements=[measured("L", 1, 1, mode="cold")], notes=["this was left out"])
    for name, one in {"a.json": report, "b.json": other}.items():
        one.save(tmp_path / name)
    both = Report.load([tmp_path / "a.json", tmp_path / "b.json"])
    assert both.measurements == report.measurements + other.measurements
    assert both.notes == ["this was left out"]


def test_what_is_measured_again_counts_as_further_repeats(report, tmp_path):
    report.save(tmp_path / "a.json")
    both = Report.load([tmp_path / "a.json", tmp_path / "a.json"])
    assert both.repeats("warm", "s") == [1, 2]
    ratio = report.median_ratio("warm", "s", "streamavg", "L")
    assert both.median_ratio("warm", "s", "streamavg", "L", repeat=2) == ratio


def test_facts_that_differ_between_reports_stand_side_by_side(tmp_path):
    for name, commit in {"a.json": "1a2b", "b.json": "3c4d", "c.json": "1a2b"}.items():
        Report(machine={"cores": "2", "commit": commit}).save(tmp_path / name)
    both = Report.load(sorted(tmp_path.glob("*.json")))
    assert both.machine == {"cores": "2", "commit": "1a2b / 3c4d"}
