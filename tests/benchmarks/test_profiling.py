"""The phases of a merge account for its time."""

import pytest
from benchmarks import contenders
from benchmarks.inputs import Model, build_random
from benchmarks.page import together
from benchmarks.profiling import START_UP, profile
from benchmarks.results import Report
from benchmarks.rounds import Conditions

INPUTS = ["0.weights.h5", "1.weights.h5", "2.weights.h5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The profile of one merge."""
    folder, report = tmp_path_factory.mktemp("profile"), Report()
    model = Model.sized(8e6)
    build_random([folder / name for name in INPUTS], model)
    conditions = Conditions("warm", "scenario", model)
    profile(contenders.merge("streamavg", INPUTS), conditions, folder, report)
    [made] = report.profiles
    assert sorted(path.name for path in folder.iterdir()) == INPUTS
    return made


def test_the_phases_of_the_main_thread_add_up_to_the_whole(made):
    assert sum(made.main.values()) == pytest.approx(made.seconds)
    assert min(made.main.values()) >= 0


def test_what_every_merge_does_takes_time(made):
    phases = together(made)
    for name in ("reading", "arithmetic", "writing", "fsync", START_UP):
        assert phases[name] > 0, phases
    assert phases["headers, comparing, planning"] > 0
