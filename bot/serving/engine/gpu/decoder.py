"""A decode step in few operator calls: what the model's modules compute, said shorter.

On a GPU a small batch's step takes as long as its operators take to be called. The modules need 95 calls a
layer and 35 more for each adapter; this needs about 55 with any number of them. The modules stay the
reference: the decoder is compared with them before it serves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from bot.serving.engine.gpu.adapter_stack import AdapterStack, Masks, StackedPart
from bot.serving.engine.kv_cache import CausalMasks, RowCache, padded_length
from bot.serving.engine.lora import Adapter, LoraLinear
from bot.serving.engine.native_decoder import UnsupportedModelError

ARCHITECTURES = frozenset(("granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"))
# Rotary embeddings whose angles depend on the position alone, so that one table holds them all.
STATIC_ROTARIES = frozenset(("default", "linear", "llama3", "yarn"))
# Layers of a decoder layer that share an input.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoder layer's parts; `linears` are those of GROUPS, without adapters. `kind` chooses its mask."""

    linears: tuple[tuple[Product, ...], ...]
    attention_norm: tuple[torch.Tensor, float]
    mlp_norm: tuple[torch.Tensor, float]
    query_norm: tuple[torch.Tensor, float] | None
    key_norm: tuple[torch.Tensor, float] | None
    rotates: bool
    kind: str


@dataclass(slots=True)
class _Step:
    """What all layers of one step share; B rows are decoded, n cache rows attended.

    `place` is (B,), where a row stands among the n, or None where they are the same; `spread` (n, key heads,
    queries a key head, head dim) then takes the queries to their places.
    """

    cosines: torch.Tensor
    sines: torch.Tensor
    at: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    masks: dict[str, torch.Tensor]
    place: torch.Tensor | None
    spread: torch.Tensor | None
    lora: Masks | None


class GpuDecoder:
    """Decodes one token for each of several rows of a :class:`RowCache`, each with its own adapter.

    Raises:
        UnsupportedModelError: the model has a part that this does not have.
    """

    def __init__(self, model: PreTrainedModel, cache: RowCache, widths: dict[str, tuple[int, int]]) -> None:
        config: Any = model.config
        _check(config)
        self._config, self._cache, self._widths = config, cache, widths
        core: Any = model.base_model
        prefix = next((f"{name}." for name, each in model.named_modules() if each is core and name), "")
        self._embedding, self._norm = core.embed_tokens, _norm_of(core.norm)
        self._head: Any = model.get_output_embeddings()
        self._masks = CausalMasks(config)
        self._layers = [
            _describe(layer, kind) for layer, kind in zip(core.layers, _kinds(config), strict=True)
        ]
        self._groups = [
            [f"{prefix}layers.{index}.{name}" for name in group]
            for index in range(len(self._layers))
            for group in GROUPS
        ]
        attention: Any = core.layers[0].self_attn
        self._head_dim, self._scale = int(attention.head_dim), float(attention.scaling)
        self._cosines, self._sines = _rotary(core, cache)
        self._stack: AdapterStack | None = None

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        adapters: Sequence[Adapter | None],
    ) -> torch.Tensor:
        """Decode ``tokens[i]`` at ``positions[i]`` of cache row ``rows[i]``; return logits (B, V)."""
        config, cache = self._config, self._cache
        stack = self._stack_of(adapters)
        parts: Sequence[StackedPart | None] = stack.parts if stack else [None] * len(self._groups)
        device = self._embedding.weight.device
        # One copy to the device for all that the step is told.
        ids, places, held = torch.tensor([tokens, positions, rows]).to(device, non_blocking=True).unbind()
        # Eight keys at a time, as kernels for masks want them.
        span = min(cache.length, padded_length(max(positions) + 1))
        first, last = min(rows), max(rows) + 1
        step = self._begin(rows, places, held, span, stack.masks(adapters) if stack else None)
        keys = cache.all_keys[:, first:last, :, :span].unbind()
        values = cache.all_values[:, first:last, :, :span].unbind()
        x = self._embedding(ids) * getattr(config, "embedding_multiplier", 1.0)
        residual = getattr(config, "residual_multiplier", 1.0)
        for index, layer in enumerate(self._layers):
            attended, mixed = parts[4 * index : 4 * index + 2], parts[4 * index + 2 : 4 * index + 4]
            y = functional.rms_norm(x, x.shape[1:], *layer.attention_norm)
            y = self._attend(layer, y, step, (keys[index], values[index]), attended, index)
            x = torch.add(x, y, alpha=residual)
            y = functional.rms_norm(x, x.shape[1:], *layer.mlp_norm)
            x = torch.add(x, _mlp(layer, y, step, mixed), alpha=residual)
        logits: torch.Tensor = self._head(functional.rms_norm(x, x.shape[1:], *self._norm))
        scaling = getattr(config, "logits_scaling", 1.0)
        return logits if scaling == 1.0 else logits / scaling

    def _attend(
        self,
        layer: _Layer,
        x: torch.Tensor,
        step: _Step,
        cached: tuple[torch.Tensor, torch.Tensor],
        parts: Sequence[StackedPart | None],
        index: int,
    ) -> torch.Tensor:
        """Return what a layer's attention adds to the rows (B, hidden); store their keys and values."""
        query, key, value = _apply(layer.linears[0], parts[0], x, step.lora)
        # (B, heads * dim) -> (B, heads, dim)
        query, key, value = (each.view(len(x), -1, self._head_dim) for each in (query, key, value))
        if layer.query_norm and layer.key_norm:
            query = functional.rms_norm(query, (self._head_dim,), *layer.query_norm)
            key = functional.rms_norm(key, (self._head_dim,), *layer.key_norm)
        if layer.rotates:
            query, key = (_rotate(each, step, self._head_dim) for each in (query, key))
        self._cache.keys[index].index_put_(step.at, key)
        self._cache.values[index].index_put_(step.at, value)
        # A key's queries stand where a prompt's tokens would: no key is copied for each of its queries.
        query = query.view(len(x), key.shape[1], -1, self._head_dim)
        if step.place is not None and step.spread is not None:
            query = step.spread.index_copy_(0, step.place, query)
        seen = functional.scaled_dot_product_attention(
            query, *cached, attn_mask=step.masks[layer.kind], scale=self._scale
        )
        if step.place is not None:
            seen = seen.index_select(0, step.place)
        (out,) = _apply(layer.linears[1], parts[1], seen.reshape(len(x), -1), step.lora)
        return out

    def _begin(
        self,
        rows: Sequence[int],
        places: torch.Tensor,
        held: torch.Tensor,
        span: int,
        lora: Masks | None,
    ) -> _Step:
        cache = self._cache
        first, count = min(rows), max(rows) + 1 - min(rows)
        heads, dtype = cache.keys[0].shape[1], cache.keys[0].dtype
        ends, place, spread = places, None, None
        if list(rows) != list(range(first, first + count)):
            # Rows between that decode nothing see their first key, and nobody sees what they make of it.
            place = held - first
            ends = places.new_zeros(count).index_copy_(0, place, places)
            queries = self._config.num_attention_heads // heads
            spread = cache.keys[0].new_zeros((count, heads, queries, self._head_dim))
        masks = self._masks.build(ends[:, None], span, dtype)
        each_head = torch.arange(heads, device=places.device)
        return _Step(
            cosines=self._cosines[places, None],
            sines=self._sines[places, None],
            at=(held[:, None], each_head[None], places[:, None]),
            masks=masks if isinstance(masks, dict) else {"full_attention": masks, "sliding_attention": masks},
            place=place,
            spread=spread,
            lora=lora,
        )

    def _stack_of(self, adapters: Sequence[Adapter | None]) -> AdapterStack | None:
        """Return the batch's adapters, stacked anew only where others are in it than a step ago."""
        # Two may have one name: what it meant a moment ago, and what it means now.
        used = {id(each): each for each in adapters if each is not None}
        chosen = [used[key] for key in sorted(used)]
        stack = self._stack
        if not chosen or stack is None or not stack.holds(chosen):
            self._stack = stack = None  # its memory goes before the next one's is taken
            if chosen:
                stack = AdapterStack(chosen, self._groups, self._widths, self._drop)
                self._stack = stack
        return stack

    def _drop(self, unloaded: object) -> None:
        self._stack = None


def _apply(
    linears: Sequence[Product], part: StackedPart | None, x: torch.Tensor, masks: Masks | None
) -> list[torch.Tensor]:
    outs = [linear(x) for linear in linears]
    if part is not None:
        part.add(x, outs, masks)
    return outs


def _mlp(layer: _Layer, x: torch.Tensor, step: _Step, parts: Sequence[StackedPart | None]) -> torch.Tensor:
    gate, up = _apply(layer.linears[2], parts[0], x, step.lora)
    (out,) = _apply(layer.linears[3], parts[1], functional.silu(gate).mul_(up), step.lora)
    return out


def _rotate(x: torch.Tensor, step: _Step, head_dim: int) -> torch.Tensor:
    """Rotate pairs of halves: the second half's sign is in the table of sines."""
    return torch.addcmul(x * step.cosines, x.roll(head_dim // 2, -1), step.sines)


def _rotary(core: Any, cache: RowCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and signed sines (length, head dim) of all positions."""
    like = cache.keys[0]
    places = torch.arange(cache.length, device=like.device)[None]
    cosines, sines = (each[0] for each in core.rotary_emb(like, places))
    half = sines.shape[-1] // 2
    return cosines, torch.cat((-sines[:, :half], sines[:, half:]), dim=-1)


def _describe(layer: Any, kind: str) -> _Layer:
    attention = layer.self_attn
    linears = tuple(tuple(_product(layer.get_submodule(name)) for name in group) for group in GROUPS)
    return _Layer(
        linears=linears,
        attention_norm=_norm_of(layer.input_layernorm),
        mlp_norm=_norm_of(layer.post_attention_layernorm),
        query_norm=_norm_of(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        rotates=bool(getattr(attention, "use_rope", True)),
        kind=kind,
    )


def _kinds(config: Any) -> list[str]:
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


def _product(layer: Any) -> Product:
    """Return a layer's own product; that of a 4-bit layer without casts that its module calls for nothing."""
    if isinstance(layer, LoraLinear):
        layer = layer.base
    if getattr(layer.weight, "quant_state", None) is None or layer.weight.device.type == "cpu":
        return layer  # type: ignore[no-any-return]
    import bitsandbytes as bnb

    bias = None if layer.bias is None else layer.bias.to(layer.compute_dtype)
    return functools.partial(bnb.matmul_4bit, B=layer.weight, quant_state=layer.weight.quant_state, bias=bias)


def _norm_of(norm: Any) -> tuple[torch.Tensor, float]:
    return norm.weight, float(norm.variance_epsilon)


def _check(config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModelError(f"a {config.model_type} model")
    if config.hidden_act != "silu":
        raise UnsupportedModelError(f"the activation {config.hidden_act}")
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") not in STATIC_ROTARIES:
        raise UnsupportedModelError(f"{parameters['rope_type']} rotary embeddings")
