"""A C compiler that remembers: each process of the tests loads the kernels, and one of them compiles.

The product compiles at each start, on purpose (bot/serving/native/library.py); fifty starts a session took
forty seconds of processor time. What was compiled is kept for one session, by the command and the source.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
# `cc ... -o TARGET SOURCE -lm`; the target's path is another each time. All else is the compiler's own.
SCRIPT = """#!/bin/sh
previous= target= source= key=
for argument; do
    [ "$previous" = -o ] && target=$argument || key="$key $argument"
    case $argument in *.c) source=$argument ;; esac
    previous=$argument
done
[ -n "$target" ] && [ -n "$source" ] || exec "{compiler}" "$@"
kept="{folder}/$( (echo "$key"; cat "$source") | sha256sum | cut -c 1-32).so"
if [ ! -f "$kept" ]; then
    "{compiler}" "$@" || exit
    cp "$target" "$kept.$$" && mv "$kept.$$" "$kept"
fi
exec cp "$kept" "$target"
"""


def share_compiled_kernels() -> Callable[[], None]:
    """Put the remembering compiler into the environment; return what takes it out again."""
    before = os.environ.get("CC")
    found = next((path for name in (before, *COMPILERS) if name and (path := shutil.which(name))), None)
    if found is None:
        return lambda: None
    folder = Path(tempfile.mkdtemp(prefix="strop-tests-"))
    compiler = folder / "cc"
    compiler.write_text(SCRIPT.format(folder=folder, compiler=found))
    compiler.chmod(0o755)
    os.environ["CC"] = str(compiler)

    def stop() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["CC"]
        else:
            os.environ["CC"] = before

    return stop
