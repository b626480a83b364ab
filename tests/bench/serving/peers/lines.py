"""The protocol between the benchmark and a peer: one JSON object a line, each request with one answer.

``{"do": NAME, ...arguments}`` is answered by the handler's object, or by ``{"error": sentence}``. Only the
standard library is imported here, since the peer's environment has nothing else in common with ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Handler = Callable[..., dict[str, Any]]


def claim_standard_output() -> TextIO:
    """Return standard output for answers, and send what libraries print there to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # What is still buffered at the end would otherwise follow the last word of an error.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return answers


def serve(requests: TextIO, answers: TextIO, handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the input ends or says ``quit``."""
    for line in requests:
        request = json.loads(line)
        name = request.pop("do")
        if name == "quit":
            return
        answers.write(json.dumps(_answer(handlers, name, request)) + "\n")
        answers.flush()


def _answer(handlers: Mapping[str, Handler], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name not in handlers:
        return {"error": f"unknown request {name!r}"}
    try:
        return handlers[name](**arguments)
    except Exception as error:  # the process' boundary: the asker decides what a failure means
        print(f"{name}: {error!r}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}


def clocks() -> tuple[float, float]:
    """Return (clock on the wall, processor time of this process and its ended children), in seconds."""
    spent = os.times()
    return time.perf_counter(), time.process_time() + spent.children_user + spent.children_system


def timing(
    streams: int,
    tokens: int,
    *,
    start: tuple[float, float],
    first: tuple[float, float],
    last: tuple[float, float],
    end: tuple[float, float],
    decoded: int,
) -> dict[str, Any]:
    """Return a ``Timing`` as JSON from clocks, as :func:`clocks` reads them.

    Between ``first`` and ``last`` every stream wrote in every step, ``decoded`` tokens in all.
    """
    return {
        "streams": streams,
        "whole_tokens": streams * tokens,
        "whole_wall_s": end[0] - start[0],
        "whole_cpu_s": end[1] - start[1],
        "decode_tokens": decoded,
        "decode_wall_s": last[0] - first[0],
        "decode_cpu_s": last[1] - first[1],
    }
