"""The options of a merge are the same in the library, in its settings and on the command line."""

import dataclasses
import typing

import pytest

from streamavg import MergeOptions, OptionError, options
from streamavg.cli.merge import command
from streamavg.options import CHOICES, Settings

NAMES = sorted(MergeOptions.__annotations__)
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
ON_THE_COMMAND_LINE = {parameter.name: parameter for parameter in command.params}


def test_options_and_settings_have_the_same_fields():
    assert set(NAMES) == set(FIELDS)


def test_options_and_settings_have_the_same_types():
    assert {name: FIELDS[name].type for name in NAMES} == {
        name: annotation.__forward_arg__
        for name, annotation in MergeOptions.__annotations__.items()
    }


def test_every_option_may_be_left_out():
    assert not MergeOptions.__required_keys__


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_has_an_option_for_each(name):
    assert f"--{name.replace('_', '-')}" in ON_THE_COMMAND_LINE[name].opts


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_has_the_same_default(name):
    parsed = command.make_context("merge", ["a.keras", "b.keras"]).params
    assert parsed[name] == FIELDS[name].default


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_the_command_line_offers_the_same_choices(name):
    assert tuple(ON_THE_COMMAND_LINE[name].type.choices) == CHOICES[name]


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_the_default_is_one_of_the_choices(name):
    assert FIELDS[name].default in CHOICES[name]


@pytest.mark.parametrize(
    ("name", "choice"), [(name, choice) for name, choices in CHOICES.items() for choice in choices]
)
def test_each_choice_is_taken(name, choice):
    assert getattr(Settings(**{name: choice}), name) == choice


@pytest.mark.parametrize("name", sorted(CHOICES))
@pytest.mark.parametrize("value", ["", "nonsense", None, 3])
def test_anything_else_is_refused_with_the_choices(name, value):
    with pytest.raises(OptionError, match=f"^{name}=") as caught:
        Settings(**{name: value})
    assert all(choice in str(caught.value) for choice in CHOICES[name])


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unknown"):
        Settings(unknown=1)


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().dtype = "float32"


def test_choices_are_the_literals_of_the_types():
    literals = {
        typing.get_args(value)
        for value in vars(options).values()
        if typing.get_origin(value) is typing.Literal
    }
    assert literals == set(CHOICES.values())
