"""The versions that the README names are those that were tried."""

import tomllib

import pytest
import version_probe

from tests.builders import ROOT

README = ROOT / "README.md"
OLDEST, NEWEST = version_probe.PROBES


def test_the_oldest_versions_are_the_least_that_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["tensorflow"]
    bounds = dict(line.split(" ")[0].split(">=") for line in extra)
    assert OLDEST.keras.startswith(f"{bounds['keras']}.")
    assert OLDEST.tensorflow.startswith(f"{bounds['tensorflow']}.")
    assert OLDEST.tensorflow.startswith(f"{bounds['tensorflow-cpu']}.")


def test_the_readme_names_the_versions_that_are_tried():
    rows = version_probe.table_in(README.read_text("utf-8")).splitlines()[2:]
    named = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    assert named == [(probe.keras, probe.tensorflow) for probe in version_probe.PROBES]


RIGHT = version_probe.Finding(OLDEST, 6, 6, "")


@pytest.mark.parametrize(
    "finding",
    [
        version_probe.Finding(OLDEST, 5, 6, ""),
        version_probe.Finding(OLDEST, 0, 0, ""),
        version_probe.Finding(OLDEST, 6, 6, "exit code 1"),
    ],
)
def test_what_does_not_work_is_a_complaint(finding):
    assert list(version_probe.complaints([RIGHT], None)) == []
    (complaint,) = version_probe.complaints([RIGHT, finding], None)
    assert complaint == f"oldest: does not work: {finding.row}"


def test_that_nothing_was_tried_is_a_complaint():
    assert list(version_probe.complaints([], None)) == ["nothing was tried"]


def test_a_page_with_another_table_is_a_complaint():
    page = f"before\n{version_probe.BEGIN}\n{version_probe.END}\nafter\n"
    assert list(version_probe.complaints([RIGHT], page)) == [
        f"oldest: the page has no line {RIGHT.row}"
    ]
    page = version_probe.with_table(page, [RIGHT.row])
    assert list(version_probe.complaints([RIGHT], page)) == []
    assert page.startswith("before\n")
    assert page.endswith("after\n")


def test_tensorflow_2_16_is_not_built_for_python_3_13():
    assert version_probe.is_built_for(OLDEST, (3, 12))
    assert not version_probe.is_built_for(OLDEST, (3, 13))
    assert version_probe.is_built_for(NEWEST, (3, 13))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two TensorFlows are installed
def test_the_oldest_and_the_newest_versions_do_what_the_readme_says():
    assert version_probe.main(["--check", str(README)]) == 0
