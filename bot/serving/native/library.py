"""Compile ``kernels.c`` for this very processor, load it, and mirror its structures.

Compiling takes about a second and happens once a process, into a private folder that is gone when the library
is loaded: there is no stale build, and nothing that somebody else could have put there. Without a compiler
everything still works, with the weights unfolded and slower.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from _ctypes import _SimpleCData

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 120.0
# From the fastest code to the most portable. Not -ffast-math: it would change how the whole process rounds.
# The kernels name their vectors themselves: gcc 12's own grouping of sums (SLP) costs a third of the speed,
# and its tuning for AMD's processors, which takes fused multiplications apart, another third.
OPTIMISE = ("-O3", "-fno-tree-slp-vectorize")
FLAGS = (
    (*OPTIMISE, "-march=native", "-mtune=generic", "-pthread"),
    (*OPTIMISE, "-mcpu=native", "-pthread"),
    ("-O3", "-pthread"),
)


class Integers(enum.IntEnum):
    """Which 16-bit integer products the kernels were compiled with: none, for a few rows, for any number."""

    NONE = 0
    AVX2 = 1
    AVX512_VNNI = 2


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class Linear(Structure):
    """``Linear`` of kernels.c."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int32),
        ("width_in", c_int32),
        ("width_out", c_int32),
        ("fast", c_int32),
    )


class Lora(Structure):
    """``Lora`` of kernels.c."""

    _fields_ = (("down", c_void_p), ("up", c_void_p), ("rank", c_int32), ("unused", c_int32))


class Layer(Structure):
    """``Layer`` of kernels.c."""

    _fields_ = (
        ("projections", Linear * len(PROJECTIONS)),
        ("attention_in", c_void_p),
        ("attention_out", c_void_p),
        ("mlp_in", c_void_p),
        ("mlp_out", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
        ("unused", c_int32),
    )


class Model(Structure):
    """``Model`` of kernels.c."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("embedding", Linear),
        ("head", Linear),
        ("layer_count", c_int32),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("context", c_int32),
        ("activation", c_int32),
        ("threads", c_int32),
        ("halves", c_int32),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("attention_scale", c_float),
        ("attention_cap", c_float),
        ("residual_scale", c_float),
        ("logit_scale", c_float),
        ("logit_cap", c_float),
    )


WORKSPACE = (
    "x",
    "normed",
    "mixed",
    "q",
    "attended",
    "k",
    "v",
    "gate",
    "up",
    "scores",
    "dealt",
    "low",
    "groups",
)


class Workspace(Structure):
    """``Workspace`` of kernels.c."""

    _fields_ = tuple((name, c_void_p) for name in WORKSPACE)


class Library:
    """The compiled kernels; their C comments say what each does."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self.linear = _function(handle, "strop_linear", "ppippi")
        self.unpack = _function(handle, "strop_unpack", "piipi")
        self.decode = _function(handle, "strop_decode", "pppppiipp")
        self.integers = Integers(handle.strop_integers())


def _function(handle: ctypes.CDLL, name: str, arguments: str) -> ctypes._NamedFuncPointer:
    types: dict[str, type[_SimpleCData[Any]]] = {"p": c_void_p, "i": c_int32}
    function = handle[name]
    function.argtypes = [types[argument] for argument in arguments]
    function.restype = None
    return function


def find_compiler() -> str | None:
    """Return the path of the C compiler that would be used: ``$CC``, cc, gcc or clang."""
    names = (os.environ.get("CC"), *COMPILERS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


@functools.cache
def load_library() -> Library | None:
    """Return the kernels, or None where they cannot be compiled; the log says why, once."""
    compiler = find_compiler()
    if compiler is None:
        log.warning(
            "No C compiler was found (cc, gcc or clang), so the 4-bit weights are unfolded: they take eight "
            "times the memory and replies take about three times as long. Install gcc to change that."
        )
        return None
    reason = ""
    with tempfile.TemporaryDirectory(prefix="strop-") as folder:
        target = Path(folder) / "kernels.so"
        for flags in FLAGS:
            try:
                _compile(compiler, flags, target)
                return Library(ctypes.CDLL(str(target)))
            except (OSError, subprocess.SubprocessError) as error:
                reason = _reason(error)
    log.warning("The CPU kernels cannot be compiled; the 4-bit weights are unfolded.", reason=reason)
    return None


def _compile(compiler: str, flags: Sequence[str], target: Path) -> None:
    command = (compiler, "-std=gnu11", *flags, "-fPIC", "-shared", "-o", str(target), str(SOURCE), "-lm")
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)


def _reason(error: Exception) -> str:
    said = str(getattr(error, "stderr", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__
