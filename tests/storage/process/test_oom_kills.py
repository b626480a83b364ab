"""Whether memory ran out is asked of the control group that a process is in, else of the whole system."""

from pathlib import Path

import pytest

from storage.process.memory import oom_kills


def system(tmp_path: Path, group: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(group)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("group", "files", "count"),
    [
        ("0::/user/strop\n", {"cgroup/user/strop/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        ("0::/host/path\n", {"cgroup/memory.events": "oom_kill 4\noom_group_kill 0\n"}, 4),
        ("4:memory:/a\n0::/b\n", {"cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 7\n"}, 7),
        ("0::/gone\n", {"proc/vmstat": "nr_free_pages 1\noom_kill 9\n"}, 9),
        ("0::/gone\n", {}, None),
        ("nonsense", {"proc/vmstat": "oom_kill 1\n"}, 1),
    ],
)
def test_the_count_is_read_where_the_system_tells(
    tmp_path: Path, group: str, files: dict[str, str], count: int | None
) -> None:
    proc, cgroups = system(tmp_path, group, files)
    assert oom_kills(proc, cgroups) == count


def test_this_machine_either_tells_or_does_not() -> None:
    found = oom_kills()
    assert found is None or found >= 0
