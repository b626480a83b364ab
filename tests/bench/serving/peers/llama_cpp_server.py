"""llama.cpp on one thread, by its batch interface: n sequences decode in one batch a step.

Runs in its own environment (``llama-cpp-python`` and numpy), as ``python -m`` with Strop's root on the path.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np

from tests.bench.serving.peers.lines import claim_standard_output, clocks, serve, timing

# LLAMA_FTYPE_MOSTLY_Q4_0 of llama.h.
FTYPE_Q4_0 = 2
THREADS = 1
READ_AT_ONCE = 512


class LlamaCpp:
    """One model with one adapter; a context for each number of sequences, made when first used."""

    def __init__(self) -> None:
        self._model: Any = None
        self._adapter: Any = None
        self._vocabulary = 0
        self._contexts: dict[tuple[int, int], Any] = {}

    def load(self, *, source: str, quantized: str, lora: str) -> dict[str, Any]:
        """Quantize ``source`` to Q4_0 at ``quantized`` unless it is there, then load it with the adapter."""
        ll.llama_backend_init()
        if not Path(quantized).exists():
            _quantize(source, quantized)
        self._model = ll.llama_model_load_from_file(quantized.encode(), ll.llama_model_default_params())
        self._adapter = ll.llama_adapter_lora_init(self._model, lora.encode())
        if not self._model or not self._adapter:
            raise RuntimeError("llama.cpp cannot load the model or the adapter; see its log")
        self._vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))
        system = ll.llama_print_system_info().decode().strip()
        return {"versions": {"llama-cpp-python": metadata.version("llama-cpp-python"), "built for": system}}

    def run(self, *, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Write ``tokens`` tokens after every prompt, greedily; return the timing and the tokens."""
        length = max(len(prompt) for prompt in prompts) + tokens
        context = self._context(len(prompts), length)
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        batch = ll.llama_batch_init(max(READ_AT_ONCE, len(prompts)), 0, 1)
        try:
            start = clocks()
            written = [[self._read(context, batch, prompt, row)] for row, prompt in enumerate(prompts)]
            first = clocks()
            for _ in range(tokens - 1):
                self._decode(context, batch, prompts, written)
            end = clocks()
        finally:
            ll.llama_batch_free(batch)
        decoded = len(prompts) * (tokens - 1)
        took = timing(len(prompts), tokens, start=start, first=first, last=end, end=end, decoded=decoded)
        return {"timing": took, "tokens": written}

    def logits(self, *, prompt: list[int]) -> dict[str, Any]:
        """Return the logits after one prompt, to compare with other servers'."""
        context = self._context(1, len(prompt))
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        batch = ll.llama_batch_init(READ_AT_ONCE, 0, 1)
        try:
            self._read(context, batch, prompt, 0)
            return {"logits": self._logits(context, batch.n_tokens - 1).tolist()}
        finally:
            ll.llama_batch_free(batch)

    def _context(self, sequences: int, length: int) -> Any:
        if (context := self._contexts.get((sequences, length))) is not None:
            return context
        params = ll.llama_context_default_params()
        params.n_ctx = sequences * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = READ_AT_ONCE
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.no_perf = True
        context = ll.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context; see its log")
        adapters = (ll.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        if ll.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            raise RuntimeError("llama.cpp refuses the adapter")
        self._contexts[sequences, length] = context
        return context

    def _read(self, context: Any, batch: Any, prompt: list[int], row: int) -> int:
        """Read one prompt in pieces; return the first token that follows."""
        for at in range(0, len(prompt), READ_AT_ONCE):
            piece = prompt[at : at + READ_AT_ONCE]
            batch.n_tokens = len(piece)
            for place, token in enumerate(piece):
                _put(batch, place, token, at + place, row)
            batch.logits[len(piece) - 1] = 1
            _check(ll.llama_decode(context, batch))
        return int(self._logits(context, batch.n_tokens - 1).argmax())

    def _decode(self, context: Any, batch: Any, prompts: list[list[int]], written: list[list[int]]) -> None:
        """Write one token for every sequence."""
        batch.n_tokens = len(prompts)
        for row, (prompt, reply) in enumerate(zip(prompts, written, strict=True)):
            _put(batch, row, reply[-1], len(prompt) + len(reply) - 1, row)
            batch.logits[row] = 1
        _check(ll.llama_decode(context, batch))
        for row, reply in enumerate(written):
            reply.append(int(self._logits(context, row).argmax()))

    def _logits(self, context: Any, place: int) -> np.ndarray[Any, Any]:
        pointer = ll.llama_get_logits_ith(context, place)
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))


def _put(batch: Any, place: int, token: int, position: int, row: int) -> None:
    batch.token[place] = token
    batch.pos[place] = position
    batch.n_seq_id[place] = 1
    batch.seq_id[place][0] = row
    batch.logits[place] = 0


def _check(code: int) -> None:
    if code != 0:
        raise RuntimeError(f"llama_decode answered {code}")


def _quantize(source: str, quantized: str) -> None:
    params = ll.llama_model_quantize_default_params()
    params.ftype = FTYPE_Q4_0
    # The packaged file is Q4_1 already; its weights are unfolded and quantized anew.
    params.allow_requantize = True
    params.nthread = os.cpu_count() or 1
    work = f"{quantized}.new"
    if ll.llama_model_quantize(source.encode(), work.encode(), ctypes.byref(params)) != 0:
        raise RuntimeError("llama.cpp cannot quantize the model; see its log")
    Path(work).rename(quantized)


def main() -> None:
    """Answer the benchmark's requests until it closes the pipe."""
    answers = claim_standard_output()
    peer = LlamaCpp()
    serve(sys.stdin, answers, {"load": peer.load, "run": peer.run, "logits": peer.logits})


if __name__ == "__main__":
    main()
