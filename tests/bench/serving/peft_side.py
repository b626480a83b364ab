"""transformers' ``generate`` with PEFT on the same 4-bit base and adapter, and PEFT's way to change it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from bot.serving.model.loading import load_base
from tests.bench.serving.timing import Timing

ADAPTER = "default"


class PeftSide:
    """``generate`` on a base that is held as transformers loads it, or unfolded once to float32.

    Where bitsandbytes has no fast 4-bit CPU kernel the unfolded weights are several times as fast; the
    comparison is with whichever of the two is faster.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Path,
        *,
        device: str = "cpu",
        weights: Literal["as loaded", "unfolded"] = "unfolded",
    ) -> None:
        self.name = f"transformers + PEFT, NF4 {weights}"
        self._device = device
        model: Any = _unfolded(folder, device) if weights == "unfolded" else _as_loaded(folder, device)
        self.model = PeftModel.from_pretrained(model, adapter, adapter_name=ADAPTER).eval()

    def run(self, prompts: list[list[int]], tokens: int) -> Timing:
        """Write ``tokens`` tokens after every prompt in one batch."""
        ids = torch.tensor(prompts, device=self._device)
        clock = _TokenClock()
        settings = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        return clock.timing(len(prompts))

    def score(self, prompts: list[list[int]]) -> list[tuple[float, ...]]:
        """Return the log-probability of every token but the first: one forward pass for each prompt."""
        scores = []
        with torch.inference_mode():
            for prompt in prompts:
                ids = torch.tensor([prompt], device=self._device)
                logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                scores.append(tuple(chosen.tolist()))
        return scores

    def swap(self, adapter: Path) -> float:
        """Change the adapter with ``hotswap_adapter``; return seconds on the clock."""
        started = time.perf_counter()
        hotswap_adapter(self.model, str(adapter), ADAPTER, torch_device=self._device)
        return time.perf_counter() - started

    def close(self) -> None:
        """Free the model."""
        del self.model


class _TokenClock(StoppingCriteria):  # type: ignore[misc]
    """Never stops; notes the clocks at its creation and after every token."""

    def __init__(self) -> None:
        self._at = [(time.perf_counter(), time.process_time())]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Note the time; go on with every row of ``input_ids`` (B, T)."""
        self._at.append((time.perf_counter(), time.process_time()))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def timing(self, streams: int) -> Timing:
        """Return what the turn took; the first token comes with the reading of the prompts."""
        (start_wall, start_cpu), (first_wall, first_cpu), *_, (end_wall, end_cpu) = self._at
        written = len(self._at) - 1
        return Timing(
            streams=streams,
            whole_tokens=written * streams,
            whole_cpu_s=end_cpu - start_cpu,
            whole_wall_s=end_wall - start_wall,
            decode_tokens=(written - 1) * streams,
            decode_cpu_s=end_cpu - first_cpu,
            decode_wall_s=end_wall - first_wall,
        )


def _unfolded(folder: Path, device: str) -> Any:
    return load_base(folder, device, "train", execution="dense").model.eval()


def _as_loaded(folder: Path, device: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device}, local_files_only=True
    ).eval()
