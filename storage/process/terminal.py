"""Output on terminals and pipes in whatever encoding they have."""

from __future__ import annotations

import io
import sys


def tolerate_encoding() -> None:
    """Let what standard output can't show come out as "?", instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def can_show(text: str) -> bool:
    """Whether standard output can show a text as it is."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
