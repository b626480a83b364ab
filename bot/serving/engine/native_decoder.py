"""Describe a transformers model to the kernels, and decode with them.

The model's own modules stay the reference: they read the prompts, and every decoder is compared with them
before it serves. A model with a part that the kernels do not have keeps decoding through its modules, more
slowly.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from bot.serving.engine.kv_cache import RowCache
from bot.serving.engine.lora import Adapter, LoraLinear
from bot.serving.model.processors import usable_cores
from bot.serving.native.library import (
    PROJECTIONS,
    Integers,
    Layer,
    Linear,
    Lora,
    Model,
    Workspace,
    load_library,
)
from bot.serving.native.packed import PackedLinear, describe
from bot.serving.native.thread_choice import ThreadChoice, fastest_threads

ARCHITECTURES = frozenset(
    ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")
)
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
# Rotary embeddings whose angles depend on the position alone, so that one table holds them all.
STATIC_ROTARIES = frozenset(("default", "linear", "llama3", "yarn"))
# As kernels.c has them.
SHARED_INPUT, MOST_RANKS = 3, 256
# Numbers of threads are compared at the start on steps of one row and of some rows, each for so long.
MEASURED_ROWS = 8
MEASURE_S = 0.1
_ATTENTION = ("q", "k", "v", "o")


class UnsupportedModelError(Exception):
    """The kernels lack something that this model needs; the text says what."""


class Decoder:
    """Decodes one token for each of several rows of a :class:`RowCache`, each with its own adapter.

    Raises:
        UnsupportedModelError: the model has a part that the kernels do not have.
    """

    def __init__(self, model: PreTrainedModel, cache: RowCache, threads: int = 1) -> None:
        library = load_library()
        if library is None:
            raise UnsupportedModelError("the kernels could not be compiled")
        self._library = library
        self._config = model.config
        self._slots = len(cache.keys[0])
        self._prefix, self._core = _core(model)
        _check(self._config)
        # What the structures point to lives as long as they do.
        self._kept: list[Any] = [cache]
        self._loras: weakref.WeakKeyDictionary[Adapter, tuple[ctypes.Array[Lora], list[torch.Tensor]]]
        self._loras = weakref.WeakKeyDictionary()
        try:
            self._layers = (Layer * len(self._core.layers))(*self._describe_layers(cache))
            self._model = self._describe_model(model, cache, threads)
        except (AttributeError, ValueError) as error:
            raise UnsupportedModelError(str(error)) from error
        self._choice: ThreadChoice | None = None
        self._rows = self._sharers = 0
        self._workspace = Workspace()
        self._logits = torch.empty(0, 0)

    @property
    def threads(self) -> int:
        """How many threads share a step; while each step's number is chosen, that of the last one."""
        return int(self._model.threads)

    @threads.setter
    def threads(self, count: int) -> None:
        self._choice = None
        self._model.threads = count

    @property
    def chooses_threads(self) -> bool:
        """Whether each step's number of threads is chosen."""
        return self._choice is not None

    def choose_threads(self, cores: int) -> int:
        """Choose each step's number of threads from now on, by measuring; return that of large steps."""
        few, many = (
            fastest_threads(functools.partial(_step_seconds, self, min(rows, self._slots)), cores)
            for rows in (1, MEASURED_ROWS)
        )
        self._choice = ThreadChoice({1: few, MEASURED_ROWS: many}, cores)
        return self._choice.for_most_tokens

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
    ) -> torch.Tensor:
        """Decode ``tokens[i]`` at ``positions[i]`` of cache row ``rows[i]``; return logits (B, V), float32.

        The next step overwrites what this one returned.
        """
        return self.run(tokens, positions, rows, adapters, len(tokens))

    @property
    def reads_prompts(self) -> bool:
        """Whether reading prompts here beats the model's modules over a matrix library."""
        products = self._layers[0].projections
        return self._library.integers is Integers.AVX512_VNNI and all(product.fast for product in products)

    def read(
        self, tokens: Sequence[int], cached: int, row: int, adapter: Adapter | None, keep: int
    ) -> torch.Tensor:
        """Read the next ``tokens`` of a prompt of which ``cached`` are in cache row ``row``; return logits
        (keep, V) of the last positions.

        The next step overwrites what this one returned.
        """
        count = len(tokens)
        return self.run(tokens, range(cached, cached + count), [row] * count, [adapter] * count, keep)

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
        keep: int,
    ) -> torch.Tensor:
        """Run new tokens of several cache rows; return logits (keep, V) of the last ones.

        A row's tokens may be many, in their order. The next call overwrites what this one returned.
        """
        count = len(tokens)
        if self._choice:
            self._model.threads = self._choice.next(count)
        self._reserve(count, keep)
        integers = ctypes.c_int32 * count
        pointers = (ctypes.c_void_p * count)(*(self._lora(adapter) for adapter in adapters))
        started = time.perf_counter()
        self._library.decode(
            ctypes.addressof(self._model),
            integers(*tokens),
            integers(*positions),
            integers(*rows),
            pointers,
            count,
            keep,
            ctypes.addressof(self._workspace),
            self._logits.data_ptr(),
        )
        if self._choice:
            self._choice.took(count, self._model.threads, time.perf_counter() - started)
        return self._logits[:keep]

    def _reserve(self, rows: int, keep: int) -> None:
        model = self._model
        if keep > len(self._logits):
            self._logits = torch.empty(keep, model.head.width_out)
        if rows <= self._rows and model.threads <= self._sharers:
            return
        rows, self._sharers = max(rows, self._rows), max(usable_cores(), model.threads)
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        hidden = dict.fromkeys(("x", "normed", "mixed"), model.hidden)
        widths = {
            **hidden,
            **dict.fromkeys(("q", "attended"), queries),
            **dict.fromkeys(("k", "v"), keys),
            **dict.fromkeys(("gate", "up"), model.intermediate),
            "dealt": max(model.hidden, queries, model.intermediate),
            "low": SHARED_INPUT * MOST_RANKS,
            "groups": 2,
        }
        # One row more than there are: `dealt` needs it (strop_linear).
        buffers = {name: torch.empty((rows + 1) * width) for name, width in widths.items()}
        scores = model.heads // model.kv_heads * model.context
        buffers["scores"] = torch.empty(self._sharers * scores)
        self._buffers = buffers
        self._workspace = Workspace(**{name: buffer.data_ptr() for name, buffer in buffers.items()})
        self._rows = rows

    def _lora(self, adapter: Adapter | None) -> int | None:
        """Return the address of an adapter's table, made at its first use."""
        if adapter is None:
            return None
        if adapter not in self._loras:
            table = (Lora * (len(self._layers) * len(PROJECTIONS)))()
            kept = []
            for place, name in enumerate(self._names()):
                if pair := adapter.weights.get(name):
                    down, up = (tensor.float().contiguous() for tensor in pair)
                    kept += [down, up]
                    table[place] = Lora(down.data_ptr(), up.data_ptr(), down.shape[1], 0)
            self._loras[adapter] = (table, kept)
        return ctypes.addressof(self._loras[adapter][0])

    def _names(self) -> list[str]:
        """Return the module names of all projections in the order of an adapter's table."""
        return [
            f"{self._prefix}layers.{index}.{'self_attn' if name in _ATTENTION else 'mlp'}.{name}_proj"
            for index in range(len(self._layers))
            for name in PROJECTIONS
        ]

    def _describe_layers(self, cache: RowCache) -> list[Layer]:
        tables: dict[Any, tuple[int, int]] = {}
        layers = []
        for index, layer in enumerate(self._core.layers):
            attention, mlp = layer.self_attn, layer.mlp
            sandwich = hasattr(layer, "pre_feedforward_layernorm")
            after = layer.post_attention_layernorm
            rotary = getattr(attention, "layer_type", None) if "gemma3" in self._config.model_type else None
            if rotary not in tables:
                tables[rotary] = self._rotary_table(cache.length, rotary)
            uses_rotary = getattr(attention, "use_rope", True)
            cosines, sines = tables[rotary] if uses_rotary else (None, None)
            projections = [
                _describe_linear(getattr(attention if name in _ATTENTION else mlp, f"{name}_proj"))
                for name in PROJECTIONS
            ]
            layers.append(
                Layer(
                    projections=(Linear * len(PROJECTIONS))(*projections),
                    attention_in=self._norm(layer.input_layernorm),
                    attention_out=self._norm(after) if sandwich else None,
                    mlp_in=self._norm(layer.pre_feedforward_layernorm if sandwich else after),
                    mlp_out=self._norm(layer.post_feedforward_layernorm) if sandwich else None,
                    q_norm=self._norm(getattr(attention, "q_norm", None)),
                    k_norm=self._norm(getattr(attention, "k_norm", None)),
                    cosines=cosines,
                    sines=sines,
                    keys=cache.keys[index].data_ptr(),
                    values=cache.values[index].data_ptr(),
                    window=self._window(attention),
                )
            )
        return layers

    def _describe_model(self, model: PreTrainedModel, cache: RowCache, threads: int) -> Model:
        config, attention = self._config, self._core.layers[0].self_attn
        embedding: Any = self._core.embed_tokens
        scale: Any = getattr(embedding, "scale", None) or getattr(embedding, "scalar_embed_scale", 1.0)
        head = _describe_linear(model.get_output_embeddings())
        return Model(
            layers=self._layers,
            final_norm=self._norm(self._core.norm),
            # Its rows lie like the outputs of a linear layer.
            embedding=describe(embedding.weight, None, None, tuple(embedding.weight.shape)),
            head=head,
            layer_count=len(self._layers),
            hidden=config.hidden_size,
            intermediate=self._layers[0].projections[PROJECTIONS.index("gate")].width_out,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            context=cache.length,
            activation=ACTIVATIONS[_activation(config)],
            threads=threads,
            halves=int(cache.dtype == torch.float16),
            eps=config.rms_norm_eps,
            embedding_scale=float(scale) * float(getattr(config, "embedding_multiplier", 1.0)),
            attention_scale=attention.scaling,
            attention_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
            residual_scale=getattr(config, "residual_multiplier", 1.0),
            logit_scale=1.0 / getattr(config, "logits_scaling", 1.0),
            logit_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
        )

    def _norm(self, norm: Any) -> int | None:
        """Return the address of a norm's factors; Gemma's weights are those minus one."""
        if norm is None:
            return None
        weight = norm.weight.detach().float()
        if self._config.model_type.startswith("gemma"):
            weight = weight + 1.0
        return self._keep(weight.contiguous())

    def _rotary_table(self, length: int, layer_type: str | None) -> tuple[int, int]:
        """Return the addresses of the cosines and sines (length, head_dim) of all positions."""
        like = torch.zeros(1, 1)
        arguments = (layer_type,) if layer_type else ()
        cosines, sines = self._core.rotary_emb(like, torch.arange(length)[None], *arguments)
        return self._keep(cosines[0].contiguous()), self._keep(sines[0].contiguous())

    def _window(self, attention: Any) -> int:
        if self._config.model_type == "mistral":
            return self._config.sliding_window or 0
        return getattr(attention, "sliding_window", None) or 0

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _step_seconds(decoder: Decoder, rows: int, threads: int) -> float:
    """Return the shortest of a few steps; a large model, whose steps are long, gets fewer."""
    decoder.threads = threads
    shortest, deadline = math.inf, time.perf_counter() + MEASURE_S
    while True:
        started = time.perf_counter()
        decoder.step([0] * rows, [0] * rows, range(rows), [None] * rows)
        shortest = min(shortest, time.perf_counter() - started)
        if time.perf_counter() >= deadline:
            return shortest


def _core(model: PreTrainedModel) -> tuple[str, Any]:
    """Return the decoder inside the model and the prefix of its modules' names."""
    core = model.base_model
    for name, module in model.named_modules():
        if module is core:
            return f"{name}." if name else "", core
    raise UnsupportedModelError("the model has no decoder of its own")


def _check(config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModelError(f"a {config.model_type} model")
    if _activation(config) not in ACTIVATIONS:
        raise UnsupportedModelError(f"the activation {_activation(config)}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 8 or config.hidden_size % 8:
        raise UnsupportedModelError(f"heads of width {head_dim}")
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = all(isinstance(value, dict) for value in parameters.values())
    for kind in parameters.values() if per_layer_type else [parameters]:
        if kind.get("rope_type", "default") not in STATIC_ROTARIES:
            raise UnsupportedModelError(f"{kind['rope_type']} rotary embeddings")
        if float(kind.get("partial_rotary_factor", 1.0)) != 1.0:
            raise UnsupportedModelError("partly rotated heads")


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _describe_linear(layer: Any) -> Linear:
    base: Any = layer.base if isinstance(layer, LoraLinear) else layer
    shape = (base.out_features, base.in_features)
    fast = isinstance(base, PackedLinear) and bool(base.described.fast)
    return describe(base.weight, getattr(base, "scales", None), base.bias, shape, fast=fast)
