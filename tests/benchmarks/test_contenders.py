"""Every contender does what its name says."""

from dataclasses import replace

import pytest
from benchmarks import contenders, measuring
from benchmarks.checks import check_outputs
from benchmarks.contenders import Abilities
from benchmarks.inputs import Model, build_random
from benchmarks.rounds import remove_output

INPUTS = [f"{number}.weights.h5" for number in range(4)]
MODEL = Model(3, 20)


@pytest.fixture
def folder(tmp_path):
    build_random([tmp_path / name for name in INPUTS], MODEL)
    return tmp_path


def run(contender, folder):
    done = measuring.run(contender.command, folder)
    assert done.outcome == "done", done.message
    return folder / contender.output


def test_the_least_reads_all_inputs_and_copies_one(folder):
    for contender in contenders.limits(INPUTS):
        assert run(contender, folder).read_bytes() == (folder / INPUTS[0]).read_bytes()
        (folder / INPUTS[2]).rename(folder / "hidden")
        assert measuring.run(contender.command, folder).outcome == "exit code 1"
        (folder / "hidden").rename(folder / INPUTS[2])


def test_merges_and_whole_models_write_the_same_mean(folder):
    weights = contenders.increasing_weights(len(INPUTS))
    found = [
        contenders.merge("streamavg", INPUTS),
        contenders.merge("64 MiB", INPUTS, "--memory-limit", "64MiB"),
        contenders.merge("weighted", INPUTS, weights=weights),
        contenders.whole_models(INPUTS),
    ]
    outputs = [run(contender, folder) for contender in found]
    assert len(set(outputs)) == len(found)
    check_outputs(found, MODEL, folder)
    remove_output(found[0], folder)
    assert not outputs[0].exists()


def test_numpy_writes_the_median(folder):
    contender = contenders.numpy_median(INPUTS)
    run(contender, folder)
    check_outputs([contender], MODEL, folder)


def test_the_start_up_prints_the_help(tmp_path):
    contender = replace(contenders.start_up(), output="nothing")
    run(contender, tmp_path)
    assert not list(tmp_path.iterdir())


def test_mergekit_is_told_to_weigh_all_inputs_the_same(tmp_path):
    contender = contenders.mergekit("python", ["a.safetensors", "b.safetensors"], tmp_path)
    lines = (tmp_path / "mergekit.yml").read_text().splitlines()
    assert lines[0] == "merge_method: linear"
    assert [line for line in lines if "model:" in line] == [
        "  - model: a.safetensors", "  - model: b.safetensors",
    ]  # fmt: skip
    assert sum("weight: 1.0" in line for line in lines) == 2
    (tmp_path / "mergekit").mkdir()
    (tmp_path / contender.output).write_text("")
    remove_output(contender, tmp_path)
    assert not (tmp_path / "mergekit").exists()


def test_options_and_methods_are_looked_up_in_the_help(monkeypatch):
    abilities = Abilities(None, [])
    text = "  --no-such  x\n  --fsync / --no-fsync  Flush.\n  --method [mean|ema]  How to combine."
    monkeypatch.setitem(vars(abilities), "_help", text)
    assert abilities.has_option("--no-fsync")
    assert not abilities.has_option("--no")
    assert abilities.has_method("ema")
    assert not abilities.has_method("median")
    assert Abilities(None, []).has_option("--memory-limit")
    assert not Abilities(None, []).has_option("--no-such-option")


def test_an_interpreter_without_mergekit_is_told_apart(tmp_path):
    assert Abilities(None, []).why_no_mergekit() == "no --mergekit-python was given"
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert Abilities(str(broken), []).why_no_mergekit() == "mergekit cannot be imported there"
    working = tmp_path / "working"
    working.write_text("#!/bin/sh\necho 0.1.5 2.13.0\n")
    working.chmod(0o755)
    abilities = Abilities(str(working), [])
    assert abilities.why_no_mergekit() == ""
    assert abilities.mergekit_versions == {"mergekit": "0.1.5", "torch": "2.13.0"}
