"""What a base's `config.json` says before its weights are there: supported or not, how large (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bot.serving.errors import BaseRefusedError
from bot.serving.model.memory import NF4_BYTES_PER_WEIGHT, ParameterCounts
from bot.serving.model.training_memory import Widths

# Decoders whose attention is plain (grouped-query, optionally sliding): what the engine's cache supports.
MODEL_TYPES = frozenset(
    (
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "ministral3",
        "mistral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    )
)
# Layers that keep a state instead of keys and values, as their configurations name them.
_LINEAR_LAYERS = frozenset(("linear_attention", "mamba", "mamba2", "recurrent", "conv", "lightning"))
_LINEAR_KEYS = ("linear_num_value_heads", "mamba_d_state", "mamba_d_conv", "ssm_cfg", "linear_attn_config")
# Queries and keys have norms of their own.
_HEAD_NORMS = frozenset(("gemma3_text", "olmo2", "olmo3", "qwen3"))
# Norms around attention and feed-forward on both sides; elsewhere on one.
_FOUR_NORMS = frozenset(("gemma2", "gemma3_text"))
_TIED = frozenset(("gemma", "gemma2", "gemma3_text", "smollm3"))
_FUSED = frozenset(("phi3",))


def refuse_unsupported(base: str, config: Mapping[str, Any]) -> None:
    """Refuse an architecture that Strop's engine can't serve.

    Raises:
        BaseRefusedError: in a sentence that names it.
    """
    kind = str(config.get("model_type", "")) or "unnamed"
    supported = f"supported are {', '.join(sorted(MODEL_TYPES))}"
    if has_linear_attention(config):
        raise BaseRefusedError(
            f"The base {base} is a {kind} model, a hybrid with linear attention, which neither Strop's "
            "engine nor its training can run: serve it with a vLLM of your own and name that as "
            f"server.base_url, or choose another [model] base; {supported}."
        )
    if kind not in MODEL_TYPES:
        raise BaseRefusedError(f"The base {base} is a {kind} model; {supported}.")
    if config.get("quantization_config"):
        raise BaseRefusedError(f"The base {base} is quantized already; name its unquantized original.")


def has_linear_attention(config: Mapping[str, Any]) -> bool:
    """Whether some layers keep a state instead of keys and values (Qwen3.5, Granite 4, Falcon-H1, ...)."""
    inner = {**config, **(config.get("text_config") or {})}
    kinds = {str(each) for each in inner.get("layer_types") or ()}
    kinds |= {str(each) for each in inner.get("layers_block_type") or ()}
    return bool(kinds & _LINEAR_LAYERS) or any(inner.get(key) for key in _LINEAR_KEYS)


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of a decoder."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    inner: int
    vocabulary: int
    tied: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read a supported base's `config.json`.

        Raises:
            KeyError: a width is missing.
        """
        heads = int(config["num_attention_heads"])
        return cls(
            model_type=str(config["model_type"]),
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            inner=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            # transformers leaves it out of the file where it is the architecture's default.
            tied=bool(config.get("tie_word_embeddings", config["model_type"] in _TIED)),
        )

    @property
    def counts(self) -> ParameterCounts:
        """How many weights are quantized and how many stay; norms and biases are too few to count."""
        inputs, outputs = self._queries + 2 * self._keys, self._queries
        linear = self.layers * (self.hidden * (inputs + outputs) + 3 * self.hidden * self.inner)
        return ParameterCounts(linear, self.vocabulary * self.hidden * (1 if self.tied else 2))

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.counts.linear + self.counts.other

    @property
    def token_bytes(self) -> int:
        """What one stream reads for each token that it decodes: 4-bit weights and the bfloat16 head."""
        return int(NF4_BYTES_PER_WEIGHT * self.counts.linear) + 2 * self.vocabulary * self.hidden

    def cache_bytes(self, tokens: int, number_bytes: int) -> int:
        """Return the keys and values of so many tokens."""
        return 2 * self.layers * self._keys * tokens * number_bytes

    def widths(self, number_bytes: int) -> Widths:
        """Return what of it decides what a training takes."""
        fused = self.model_type in _FUSED
        pairs = [(self._queries, self.hidden)]
        if fused:
            pairs += [(self.hidden, self._queries + 2 * self._keys), (self.hidden, 2 * self.inner)]
        else:
            pairs += [(self.hidden, self._queries), (self.hidden, self._keys), (self.hidden, self._keys)]
            pairs += [(self.hidden, self.inner), (self.hidden, self.inner)]
        pairs.append((self.inner, self.hidden))
        return Widths(
            layers=self.layers,
            hidden=self.hidden,
            queries=self._queries,
            keys=self._keys,
            inner=self.inner,
            norms=4 if self.model_type in _FOUR_NORMS else 2,
            head_norms=self.model_type in _HEAD_NORMS,
            linears=len(pairs),
            adapted=self.layers * sum(width_in + width_out for width_in, width_out in pairs),
            largest=max(width_in * width_out for width_in, width_out in pairs),
            vocabulary=self.vocabulary,
            scores=self.heads if self.model_type == "gemma2" else 0,
            number_bytes=number_bytes,
        )

    @property
    def _queries(self) -> int:
        return self.heads * self.head_width

    @property
    def _keys(self) -> int:
        return self.key_value_heads * self.head_width
