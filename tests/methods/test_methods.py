"""What all methods have in common."""

from types import MappingProxyType

import pytest

from streamavg.methods import METHODS, method_named
from streamavg.options import CHOICES
from tests.contracts.combining import MethodContract


class TestMean(MethodContract):
    options = MappingProxyType({"method": "mean"})


class TestEma(MethodContract):
    options = MappingProxyType({"method": "ema", "decay": 0.7})


class TestMedian(MethodContract):
    options = MappingProxyType({"method": "median"})


class TestTrimmedMean(MethodContract):
    options = MappingProxyType({"method": "trimmed-mean", "trim": 0.2})


class TestGeometricMedian(MethodContract):
    options = MappingProxyType({"method": "geometric-median"})


class TestSlerp(MethodContract):
    options = MappingProxyType({"method": "slerp"})
    count = 2


def test_every_method_is_in_the_contract():
    tested = {case.options["method"] for case in MethodContract.__subclasses__()}
    assert tested == set(METHODS) == set(CHOICES["method"])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_by_its_name(name):
    assert method_named(name).name == name
