"""Where a data folder can't be, and how that is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import HomeError
from storage.process import home
from storage.process.locks import ProcessLock

MOUNTED = [
    "/dev/sda1 / ext4 rw 0 0",
    "proc /proc proc rw 0 0",
    "nas:/export /mnt/nas nfs4 rw 0 0",
    "//nas/share /mnt/my\\040share cifs rw 0 0",
    "ann@host:/ /mnt/ssh fuse.sshfs rw 0 0",
    "tmpfs /mnt/nas/local tmpfs rw 0 0",
    "C:\\134 /mnt/c 9p rw 0 0",
    "portal /run/user/1/doc fuse.portal rw 0 0",
]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/mnt/nas/strop", "nfs4"),
        ("/mnt/nas", "nfs4"),
        ("/mnt/nasty", None),
        ("/mnt/nas/local/strop", None),
        ("/mnt/my share/strop", "cifs"),
        ("/mnt/ssh/strop", "fuse.sshfs"),
        ("/mnt/c/Users/ann/strop", "9p"),
        ("/run/user/1/doc/x", None),
        ("/srv/strop", None),
    ],
)
def test_a_network_file_system_is_told_by_the_mount_that_holds_the_folder(
    folder: str, kind: str | None
) -> None:
    assert home.network_type(Path(folder), MOUNTED) == kind


def test_a_folder_that_is_there_or_can_be_made_is_usable_and_stays_as_it_was(tmp_path: Path) -> None:
    assert home.unusable(tmp_path) is None and home.unusable(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    assert home.network_type(tmp_path, home.mounts()) is None


def test_a_file_in_the_way_is_named_and_so_is_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for folder in (tmp_path / "data", tmp_path / "data" / "run"):
        assert home.unusable(folder) == f"{tmp_path / 'data'} is a file, not a folder"
    assert "/proc" in str(home.unusable(Path("/proc/strop")))


def test_the_first_thing_that_a_process_writes_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(HomeError, match=r"data is a file, not a folder\).*STROP_HOME"):
        ProcessLock(tmp_path / "data" / "run" / "bot.lock").acquire("{pid}")
