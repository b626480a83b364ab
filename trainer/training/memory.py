"""What a training will need beside the base that is loaded, estimated before anything is allocated.

The sizes come from the loaded model's own layers and from the very examples that are to be learned. The
factors are fitted to measured peaks of anonymous memory (`EXPERIMENTS.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from bot.serving.model.memory import in_gb
from storage.config_sections import TrainerConfig
from trainer.data.encoding import Example
from trainer.errors import MemoryShortError

FLOAT = 4
# An adapter's weights, their gradients, and AdamW's two moments, all in float32.
ADAPTER_COPIES = 4
# Numbers kept for the backward pass: for each input of a linear layer, for each output, and for each place of
# the adapter's inner width; then copies of a predicted token's distribution in the output head and the loss.
INPUT_COPIES = 1.0
OUTPUT_COPIES = 2.25
INNER_COPIES = 2.0
HEAD_COPIES = 4.0
# Libraries warm up, fragments stay.
BASE_BYTES = 150_000_000
# Smaller than this, settings are not proposed: nothing useful would be learned.
LEAST_TOKENS = 128
LEAST_RANK = 4


@dataclass(frozen=True)
class Shape:
    """What decides a training's memory: the model's layers, and how much of it is seen at a time.

    `tokens` in the largest forward, `predicted` of them by the output head; `replayed` tokens whose
    distributions are kept as bfloat16.
    """

    inputs: int
    outputs: int
    layers: int
    vocabulary: int
    rank: int
    tokens: int
    predicted: int
    replayed: int

    @property
    def adapter_bytes(self) -> int:
        """Return the size of the adapter with its gradients and moments."""
        return FLOAT * ADAPTER_COPIES * self.rank * (self.inputs + self.outputs)

    @property
    def forward_bytes(self) -> int:
        """Return what the largest forward keeps for its backward pass."""
        numbers = INPUT_COPIES * self.inputs + OUTPUT_COPIES * self.outputs
        numbers += INNER_COPIES * self.rank * self.layers
        return int(FLOAT * (self.tokens * numbers + HEAD_COPIES * self.predicted * self.vocabulary))

    @property
    def needed_bytes(self) -> int:
        """Return the estimated peak, beside the base itself."""
        return BASE_BYTES + self.adapter_bytes + self.forward_bytes + 2 * self.replayed * self.vocabulary


def shape_of(
    model: nn.Module,
    rank: int,
    batch_tokens: int,
    examples: Sequence[Example],
    replay: Sequence[Example] = (),
) -> Shape:
    """Measure a loaded base (without an adapter) and the examples that one forward may hold.

    The two sides of a preference pair, which go through together, count as one example.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]
    everything = [*examples, *replay]
    longest = max((len(each.ids) for each in everything), default=0)
    tokens = min(max(batch_tokens, longest), sum(len(each.ids) for each in everything))
    return Shape(
        inputs=sum(each.in_features for each in linears),
        outputs=sum(each.out_features for each in linears),
        layers=len(linears),
        vocabulary=int(head.weight.shape[0]),
        rank=rank,
        tokens=tokens,
        predicted=_most_predicted(everything, tokens),
        replayed=sum(each.completion_length for each in replay),
    )


def require(shape: Shape, available_bytes: int, settings: TrainerConfig) -> None:
    """Check that a training fits.

    Raises:
        MemoryShortError: with both figures, and the settings that would fit.
    """
    if shape.needed_bytes <= available_bytes:
        return
    found = fitting(shape, available_bytes, settings)
    advice = (
        f"set {' and '.join(f'trainer.{key} = {value}' for key, value in found.items())}, or free memory"
        if found
        else "choose a smaller [model] base or free memory"
    )
    raise MemoryShortError(
        f"Training needs about {in_gb(shape.needed_bytes)} of memory beside the base and "
        f"{in_gb(available_bytes)} is available; {advice}."
    )


def fitting(shape: Shape, available_bytes: int, settings: TrainerConfig) -> dict[str, int]:
    """Return settings that would fit, the mildest first: smaller forwards, shorter rows, a smaller adapter.

    Empty where nothing reasonable would.
    """
    found: dict[str, int] = {}
    tokens, rank = shape.tokens, shape.rank
    while tokens > LEAST_TOKENS and replace(shape, **_at(shape, tokens, rank)).needed_bytes > available_bytes:
        tokens = max(tokens // 2, LEAST_TOKENS)
        found["batch_tokens"] = tokens
        # One row never goes through in pieces.
        if tokens < settings.max_length:
            found["max_length"] = tokens
    while rank > LEAST_RANK and replace(shape, **_at(shape, tokens, rank)).needed_bytes > available_bytes:
        rank = max(rank // 2, LEAST_RANK)
        found["rank"] = rank
    fits = replace(shape, **_at(shape, tokens, rank)).needed_bytes <= available_bytes
    return found if fits else {}


def _at(shape: Shape, tokens: int, rank: int) -> dict[str, int]:
    return {"tokens": tokens, "predicted": min(shape.predicted, tokens), "rank": rank}


def _most_predicted(examples: Sequence[Example], tokens: int) -> int:
    """Return how many completion tokens one forward may hold at most: the longest completions together."""
    predicted = room = 0
    for example in sorted(examples, key=lambda each: -each.completion_length / len(each.ids)):
        if room + len(example.ids) > tokens:
            break
        room += len(example.ids)
        predicted += example.completion_length
    return min(tokens, max(predicted, max((each.completion_length for each in examples), default=0)))
