"""The limit of a control group, as Linux shows it in its two versions."""

import pytest

from streamavg import memory

NO_LIMIT_1 = 9223372036854771712


def group_limit(folder, memberships, limits):
    (folder / "memberships").write_text(memberships)
    for path, text in limits.items():
        (folder / "groups" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / path).write_text(f"{text}\n")
    return memory.group_limit_bytes(folder / "memberships", folder / "groups")


@pytest.mark.parametrize(
    ("memberships", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": 100, "a/memory.max": 200}, 100),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 200}, 200),
        ("0::/a\n", {"a/memory.max": "max"}, None),
        ("0::/not/visible\n", {"memory.max": 300}, 300),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": 100}, 100),
        ("4:cpu,memory:/job\n", {"memory/memory.limit_in_bytes": 70}, 70),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": NO_LIMIT_1}, None),
        ("4:cpu:/job\n", {"memory/job/memory.limit_in_bytes": 100}, None),
        ("4:memory:/\n0::/\n", {"unified/memory.max": 50}, 50),
        ("0::/../../etc\n", {"memory.max": 60}, 60),
        ("", {}, None),
    ],
)
def test_the_lowest_on_the_way_to_the_root_counts(tmp_path, memberships, limits, expected):
    assert group_limit(tmp_path, memberships, limits) == expected


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert memory.group_limit_bytes(tmp_path / "none", tmp_path) is None
