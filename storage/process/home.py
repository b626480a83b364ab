"""Whether a data folder can be used: it has to take writes, and to be on a disk of this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# File systems of other machines: SQLite's write-ahead log needs shared memory, which these can't give, and
# their locks are not to be trusted. https://sqlite.org/wal.html, https://sqlite.org/faq.html#q5
NETWORK_TYPES = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "davfs",
    }
)
NETWORK_FUSE = (
    "sshfs",
    "rclone",
    "s3fs",
    "glusterfs",
    "ceph",
    "davfs2",
    "gcsfuse",
    "blobfuse",
    "juicefs",
    "goofys",
)
MOUNTS = Path("/proc/self/mounts")


def unusable(folder: Path) -> str | None:
    """Say why nothing can be written to a folder, or to where it would be made; None if it can."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        if not existing.is_dir():
            return f"{existing} is a file, not a folder"
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror or error}"


def fault(folder: Path) -> str:
    """Return the sentence for a folder that can't be written."""
    return (
        f"Nothing can be written to {folder} ({unusable(folder) or 'just now'}): make it a folder that this "
        "user can write to, or set STROP_HOME to another one."
    )


def network_warning(folder: Path) -> str | None:
    """Return a sentence if a folder is on a network file system, else None."""
    kind = network_type(folder, mounts())
    if kind is None:
        return None
    return (
        f"{folder} is on a network file system ({kind}), where SQLite's write-ahead log can damage the "
        "database: set STROP_HOME to a folder on a disk of this machine."
    )


def network_type(folder: Path, mounted: list[str]) -> str | None:
    """Return the kind of network file system that a folder is on, by the lines of /proc/self/mounts."""
    found: tuple[int, str] = (-1, "")
    for line in mounted:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Spaces in paths are written as octal escapes.
        place = Path(fields[1].replace("\\040", " ").replace("\\011", "\t"))
        if folder.is_relative_to(place) and len(place.parts) >= found[0]:
            found = (len(place.parts), fields[2])
    kind = found[1]
    fuse = kind.removeprefix("fuse.")
    return kind if kind in NETWORK_TYPES or (fuse != kind and fuse in NETWORK_FUSE) else None


def mounts() -> list[str]:
    """Return what is mounted, a line each; nothing where the system doesn't say it."""
    try:
        return MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []  # no Linux
