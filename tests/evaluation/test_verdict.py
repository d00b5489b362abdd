"""What an interval says, and what a gate lets through."""

import math

import pytest

from streamavg.errors import OptionError
from streamavg.evaluation.bootstrap import Interval
from streamavg.evaluation.verdict import check_requirement, compare, decide, direction


def difference(low, high, *, metric="loss", more=False):
    middle = (low + high) / 2
    return compare("test", metric, (1 + middle, 1.0), Interval(low, high, 10_000), more, None)


@pytest.mark.parametrize(
    ("low", "high", "more", "verdict"),
    [
        (-0.2, -0.1, False, "better"),
        (-0.2, -0.1, True, "worse"),
        (0.1, 0.2, False, "worse"),
        (0.1, 0.2, True, "better"),
        (-0.1, 0.2, True, "no difference shown"),
        (0.0, 0.2, True, "no difference shown"),
        (0.0, 0.0, False, "equal"),
        (0.0, 0.0, None, "equal"),
        (0.1, 0.2, None, None),
    ],
)
def test_the_interval_and_the_direction_give_the_verdict(low, high, more, verdict):
    assert difference(low, high, more=more).verdict == verdict


@pytest.mark.parametrize(
    ("require", "margin", "low", "high", "passes"),
    [
        ("better", None, -0.2, -0.1, True),
        ("better", None, -0.2, 0.1, False),
        ("better", 0.05, -0.2, -0.1, True),
        ("better", 0.1, -0.2, -0.1, False),
        ("better", None, 0.0, 0.0, False),
        ("not-worse", None, -0.2, 0.1, True),
        ("not-worse", None, 0.1, 0.2, False),
        ("not-worse", None, 0.0, 0.0, True),
        ("not-worse", 0.15, -0.2, 0.1, True),
        ("not-worse", 0.05, -0.2, 0.1, False),
        ("not-worse", 0.0, 0.0, 0.0, False),
    ],
)
def test_a_gate_on_a_loss(require, margin, low, high, passes):
    gate = decide(require, margin, difference(low, high))
    assert gate.passed is passes
    assert (gate.require, gate.margin, gate.set, gate.metric) == (require, margin, "test", "loss")


def test_more_of_an_accuracy_is_better():
    assert decide("better", None, difference(0.1, 0.2, metric="accuracy", more=True)).passed
    assert not decide("better", None, difference(-0.2, -0.1, metric="accuracy", more=True)).passed


def test_nothing_passes_without_an_interval():
    without = compare("test", "auc", (0.9, 0.8), None, True, "it is no sum")
    gate = decide("not-worse", None, without)
    assert not gate.passed
    assert gate.reason == "there is no interval: it is no sum"


def test_nothing_passes_where_the_direction_is_not_known():
    assert "--maximize" in decide("better", None, difference(0.1, 0.2, more=None)).reason


@pytest.mark.parametrize(
    ("require", "margin", "message"),
    [
        ("best", None, "choose one of better, not-worse"),
        (None, 0.1, "--margin belongs to --require"),
        ("better", -0.1, "zero or more"),
        ("better", math.nan, "zero or more"),
    ],
)
def test_requirements_that_make_no_sense_are_refused(require, margin, message):
    with pytest.raises(OptionError, match=message):
        check_requirement(require, margin)


@pytest.mark.parametrize(
    ("metric", "more"), [("loss", False), ("accuracy", True), ("auc_1", True), ("output", None)]
)
def test_the_name_of_a_metric_tells_its_direction(metric, more):
    assert direction(metric, maximize=False, minimize=False) is more


def test_the_user_may_say_the_direction_but_not_both():
    assert direction("output", maximize=True, minimize=False) is True
    assert direction("accuracy", maximize=False, minimize=True) is False
    with pytest.raises(OptionError, match="exclude each other"):
        direction("output", maximize=True, minimize=True)
