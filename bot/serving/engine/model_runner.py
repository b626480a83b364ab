"""The forward passes of a loaded base over rows of its cache: reading prompts and decoding.

The model's own modules read the prompts, unless the kernels read them faster. They also decode where no
faster decoder is there that gives the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import structlog
import torch

from bot.serving.engine.gpu.decoder import GpuDecoder
from bot.serving.engine.kv_cache import CACHE_SHARE, CausalMasks, RowCache, row_bytes
from bot.serving.engine.lora import Adapter, RowPlan, wrap_linears
from bot.serving.engine.native_decoder import Decoder, UnsupportedModelError
from bot.serving.model.loading import LoadedBase, available_bytes
from bot.serving.model.processors import usable_cores

log = structlog.get_logger(__name__)

# A decoder is compared with the model's modules on so many tokens, relative to the largest logit.
CHECKED_TOKENS = 8
# Keys and values are kept in 16 bits where those of the checked tokens leave so much room for larger ones.
CACHE_ROOM = 8
# So many tokens of a prompt are cheaper in a decode step than apart, also where a matrix library reads long
# prompts faster (EXPERIMENTS.md).
JOINED_TOKENS = 16
CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}

Reading: TypeAlias = tuple[Sequence[int], int, int, Adapter | None, int]
"""A prompt's next tokens, how many are cached before them, its row, its adapter, and of how many of the last
positions logits are needed.
"""
Decoding: TypeAlias = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[Adapter | None]]
"""Each row's token, its position, its cache row, its adapter."""


class ModelRunner:
    """Runs a base over ``slots`` cache rows of ``context_tokens``; one thread uses it.

    ``widths`` are the (in, out) widths of what adapters change, by module name. ``threads`` 0 asks for
    what measurements find fastest, step by step; ``for_gpu`` for a decoder of few operator calls.
    """

    def __init__(
        self,
        base: LoadedBase,
        slots: int,
        context_tokens: int,
        threads: int = 0,
        *,
        for_gpu: bool = False,
    ) -> None:
        self._model = base.model
        self._device = torch.device(base.device)
        self._dtype = base.dtype
        self._vocabulary = len(base.tokenizer)
        self._plan = RowPlan()
        self.widths = wrap_linears(base.model, self._plan)
        self._masks = CausalMasks(base.model.config)
        self.threads = threads or usable_cores()
        self.decoder: Decoder | GpuDecoder | None = None
        self.cache = self._reserve(slots, context_tokens, base.dtype if for_gpu else base.cache_dtype)
        self.decoder = self._checked(self._gpu_decoder if for_gpu else self._native_decoder)
        if self.decoder is None and self.cache.dtype != self._dtype:
            # The modules would convert all that they see at every step.
            self.cache = self._reserve_instead(slots, context_tokens)
        if isinstance(self.decoder, Decoder):
            if threads:
                self.decoder.threads = threads
            else:
                self.threads = self.decoder.choose_threads(usable_cores())

    @property
    def torch_threads(self) -> int:
        """How many threads torch should have outside of the model's modules.

        One beside the kernels: torch's threads would wait for cores on which the kernels' look for work.
        """
        return 1 if isinstance(self.decoder, Decoder) else self.threads

    @property
    def slots(self) -> int:
        """How many cache rows there are: fewer than asked for, where these were meant to be of 16 bits."""
        return len(self.cache.keys[0])

    def _reserve_instead(self, slots: int, context_tokens: int) -> RowCache:
        """Return a cache in what the model computes in, of as many rows as memory has room for."""
        row = row_bytes(self._model.config, context_tokens, self._dtype)
        fitting = int(CACHE_SHARE * available_bytes(str(self._device)) // row)
        return self._reserve(max(1, min(slots, fitting)), context_tokens, self._dtype)

    def _reserve(self, slots: int, context_tokens: int, dtype: torch.dtype) -> RowCache:
        """Return a cache in ``dtype``, or in what the model computes in where that may not hold its keys."""
        config = self._model.config
        self.cache = RowCache(config, slots, context_tokens, dtype, self._device, self._dtype)
        if dtype != self._dtype:
            with torch.inference_mode():
                self._run_modules([self._checked_tokens()], [0], [0], [None], 1)
            if self.cache.largest(CHECKED_TOKENS) * CACHE_ROOM > torch.finfo(dtype).max:
                log.warning("Keys and values of this model are too large for 16 bits; they are kept in 32.")
                return self._reserve_instead(slots, context_tokens)
        return self.cache

    def _checked_tokens(self) -> list[int]:
        return [token % self._vocabulary for token in range(11, 11 + CHECKED_TOKENS)]

    def read(
        self, tokens: Sequence[int], cached: int, row: int, adapter: Adapter | None, keep: int
    ) -> torch.Tensor:
        """Read the next ``tokens`` of a prompt of which ``cached`` are in the row; return logits (keep, V) of
        the last positions.
        """
        if isinstance(self.decoder, Decoder) and self.decoder.reads_prompts:
            return self.decoder.read(tokens, cached, row, adapter, keep)
        # To the modules 0 means all.
        return self._run_modules([tokens], [cached], [row], [adapter], max(keep, 1))[0]

    def joins(self, count: int) -> bool:
        """Whether so many tokens of a prompt are cheaper to read in a decode step than by themselves."""
        if not isinstance(self.decoder, Decoder):
            return False
        return self.decoder.reads_prompts or count <= JOINED_TOKENS

    def read_and_decode(self, readings: Sequence[Reading], decoding: Decoding) -> torch.Tensor:
        """Do in one pass what :meth:`read` for each reading and :meth:`decode` do; return logits (keeps + B,
        V), those of the prompts first.

        Only where :meth:`joins` says so of all tokens. The next call may overwrite what this one returned.
        """
        if not isinstance(self.decoder, Decoder):
            raise RuntimeError("joins() comes before")
        read, kept = [], []
        for tokens, cached, row, adapter, keep in readings:
            piece = [(token, cached + at, row, adapter) for at, token in enumerate(tokens)]
            read += piece[: len(piece) - keep]
            kept += piece[len(piece) - keep :]
        # Tokens may come in any order: all keys are written before any is read.
        columns = zip(*read, *kept, *zip(*decoding, strict=True), strict=True)
        new, positions, rows, adapters = map(list, columns)
        return self.decoder.run(new, positions, rows, adapters, len(new) - len(read))

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
    ) -> torch.Tensor:
        """Decode ``tokens[i]`` at ``positions[i]`` of cache row ``rows[i]``; return logits (B, V).

        The next call may overwrite what this one returned.
        """
        if self.decoder is not None:
            return self.decoder.step(tokens, positions, rows, adapters)
        return self._run_modules([[token] for token in tokens], positions, rows, adapters, 1)[:, -1]

    def _run_modules(
        self,
        tokens: Sequence[Sequence[int]],
        cached: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
        keep: int,
    ) -> torch.Tensor:
        """Run the model's modules on each row's next tokens; return logits (B, keep, V)."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self._forward(tokens, cached, rows, adapters, keep)
        finally:
            torch.set_num_threads(before)

    def _forward(
        self,
        tokens: Sequence[Sequence[int]],
        cached: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
        keep: int,
    ) -> torch.Tensor:
        ids = torch.tensor(tokens, device=self._device)
        starts = torch.tensor(cached, device=self._device)
        positions = starts[:, None] + torch.arange(ids.shape[1], device=self._device)
        span = max(cached) + ids.shape[1]
        self.cache.select(rows, positions, span)
        self._plan.assign(adapters, self._device)
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks.build(positions, span, self._dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _native_decoder(self) -> Decoder | None:
        if self._device.type != "cpu" or self._dtype != torch.float32:
            return None
        return Decoder(self._model, self.cache)

    def _gpu_decoder(self) -> GpuDecoder:
        return GpuDecoder(self._model, self.cache, self.widths)

    def _checked(self, build: Callable[[], Decoder | GpuDecoder | None]) -> Decoder | GpuDecoder | None:
        """Return a faster decoder if it gives the logits of the model's own modules, else None."""
        try:
            decoder = build()
        except UnsupportedModelError as error:
            log.warning("This model decodes without Strop's own decoder, more slowly.", reason=str(error))
            return None
        if decoder is None:
            return None
        prompt = self._checked_tokens()
        with torch.inference_mode():
            self._run_modules([prompt[:-1]], [0], [0], [None], 1)
            expected = self._run_modules([prompt[-1:]], [CHECKED_TOKENS - 1], [0], [None], 1)[0, -1]
            seen = [decoder.step(prompt[-1:], [CHECKED_TOKENS - 1], [0], [None])[0].clone()]
            if isinstance(decoder, Decoder) and decoder.reads_prompts:
                seen.append(decoder.read(prompt, 0, 0, None, 1)[0])
        tolerance = CHECK_TOLERANCE[self._dtype] * float(expected.abs().max())
        if not all(torch.allclose(logits, expected, rtol=0.0, atol=tolerance) for logits in seen):
            log.error(
                "Strop's decoder disagrees with the model's modules, which decode instead, more slowly."
            )
            return None
        return decoder
