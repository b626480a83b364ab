"""The bases that people would choose on a GPU, by their published widths (Qwen3), and a tiny one."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Qwen3Config


@dataclass(frozen=True)
class Size:
    """A base without its weights."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    tied: bool
    key_heads: int = 8
    head_width: int = 128
    vocabulary: int = 151_936

    def config(self, layers: int | None = None) -> Qwen3Config:
        """Return its configuration, with fewer layers where asked."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_width,
            max_position_embeddings=4096,
            tie_word_embeddings=self.tied,
        )


SIZES = (
    Size("1.7B", 2048, 6144, 28, 16, tied=True),
    Size("4B", 2560, 9728, 36, 32, tied=True),
    Size("8B", 4096, 12288, 36, 32, tied=False),
)
TINY = Size("tiny", 64, 128, 2, 4, tied=True, key_heads=2, head_width=16, vocabulary=512)
