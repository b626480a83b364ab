"""What a training will need beside the base that is loaded, estimated before anything is allocated.

Torch-free, so that the catalogue of bases says before a download what the trainer will say of it.
What a layer keeps for its backward pass follows from its widths; that the sums are right is tested by
counting every live tensor of a step on fake tensors (`tests/trainer/training/test_memory.py`). What the
allocators take beside it was measured on a CPU and is a guess on a GPU (`trainer/EXPERIMENTS.md`, 20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT = 4
# An adapter's weights, their gradients, and AdamW's two moments, all in float32.
ADAPTER_COPIES = 4
# Copies of a predicted token's distribution in float32: its log-probabilities, their gradient, and that of
# the logits. Where the divergence from the base is the loss, its terms too.
HEAD_COPIES = 3
DIVERGENCE_COPIES = 7
# Widths of the layer's inner part that gradients take while its backward pass runs.
GRADIENT_COPIES = 1
# Libraries warm up; beside what tensors take, allocators keep fragments. On a CPU by what a forward without
# checkpointing keeps, for the C library's heap does not give back what has become free between two tensors.
BASE_BYTES_CPU, BASE_BYTES_CUDA = 150_000_000, 100_000_000
FRAGMENTS_CPU, FRAGMENTS_CUDA = 0.8, 0.06


@dataclass(frozen=True)
class Widths:
    """What of a model decides what a token keeps: the widths of a decoder layer, and how many there are.

    `norms` and `linears` are counted in one layer, `head_norms` are those of queries and keys; `adapted` is
    the sum of inputs and outputs of all linear layers, `largest` the weights of the largest one. `scores` is
    the number of heads whose attention scores are kept: all, where they are bent, else none. `number_bytes`
    is the size of a number that is multiplied: 2 on CUDA (bfloat16), 4 on a CPU.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    inner: int
    norms: int
    head_norms: bool
    linears: int
    adapted: int
    largest: int
    vocabulary: int
    scores: int
    number_bytes: int

    def layer_bytes(self, rank: int, longest: int) -> int:
        """Return what one token keeps in one layer: inputs of norms in float32, else what is computed."""
        size = self.number_bytes
        kept = self.norms * (FLOAT + size) * self.hidden
        kept += FLOAT * (self.queries + self.keys) if self.head_norms else 0
        # Queries, keys and values as they are multiplied, and the result, by itself and in its row.
        kept += size * (3 * self.queries + 2 * self.keys)
        # Gate and its activation, the other half, and their product.
        kept += size * 4 * self.inner
        kept += size * rank * self.linears
        return kept + self.scores * longest * 4 * FLOAT

    def adapter_bytes(self, rank: int) -> int:
        """Return the size of the adapter with its gradients and moments, and as it is multiplied."""
        copy = 0 if self.number_bytes == FLOAT else self.number_bytes
        return (FLOAT * ADAPTER_COPIES + copy) * rank * self.adapted


@dataclass(frozen=True)
class Load:
    """What is to be learned: tokens and predicted tokens of each row, and of each reply to replay.

    `step_tokens` is the most that any step puts through the model before it is taken.
    """

    rows: tuple[tuple[int, int], ...]
    replay: tuple[tuple[int, int], ...]
    step_tokens: int

    @property
    def longest(self) -> int:
        """Return the tokens of the longest row, which never goes through in pieces."""
        return max((tokens for tokens, _ in (*self.rows, *self.replay)), default=0)

    @property
    def tokens(self) -> int:
        """Return the tokens of everything."""
        return sum(tokens for tokens, _ in (*self.rows, *self.replay))

    def limit_length(self, longest: int) -> Load:
        """Return the load with no row longer than so many tokens."""
        cut = [
            tuple((min(tokens, longest), min(predicted, longest - 1)) for tokens, predicted in rows)
            for rows in (self.rows, self.replay)
        ]
        return Load(cut[0], cut[1], self.step_tokens)


# The default settings at their fullest: rows and both sides of pairs are as long as they may be.
FULLEST = Load(((512, 128),) * 64 + ((1024, 256),) * 16, ((256, 120),) * 64, 4 * 1024)


@dataclass(frozen=True)
class Form:
    """How a training goes through the memory that is there: at most so many tokens in one forward pass.

    With `recompute` only each layer's input is kept for the backward pass.
    """

    batch_tokens: int
    recompute: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a training needs in one form, in bytes, beside the base itself."""

    widths: Widths
    load: Load
    rank: int
    form: Form
    device: str

    @property
    def live_bytes(self) -> int:
        """Return what tensors take at the worst moment of a step, the adapter's own included."""
        widths, tokens = self.widths, self._tokens
        layer = widths.layer_bytes(self.rank, self.load.longest)
        width = widths.number_bytes * widths.hidden
        kept = tokens * (2 * FLOAT * widths.hidden + width)
        kept += tokens * widths.layers * (width if self.form.recompute else layer)
        running = widths.number_bytes * (tokens * GRADIENT_COPIES * widths.inner + widths.largest)
        running += tokens * layer if self.form.recompute else 0
        return widths.adapter_bytes(self.rank) + kept + max(running, self._head_bytes)

    @property
    def needed_bytes(self) -> int:
        """Return the estimated peak, with what libraries and allocators take."""
        if self.device.startswith("cuda"):
            return BASE_BYTES_CUDA + int((1 + FRAGMENTS_CUDA) * self.live_bytes)
        layer = self.widths.layer_bytes(self.rank, self.load.longest)
        fragments = int(FRAGMENTS_CPU * self._tokens * self.widths.layers * layer)
        anchors = 2 * self.widths.vocabulary * sum(predicted for _, predicted in self.load.replay)
        return BASE_BYTES_CPU + self.live_bytes + fragments + anchors

    @property
    def _tokens(self) -> int:
        return min(max(self.form.batch_tokens, self.load.longest), self.load.tokens)

    @property
    def _head_bytes(self) -> int:
        learned = most_predicted(self.load.rows, self._tokens) * HEAD_COPIES
        replayed = most_predicted(self.load.replay, self._tokens) * DIVERGENCE_COPIES
        return FLOAT * self.widths.vocabulary * max(learned, replayed)


def most_predicted(rows: Sequence[tuple[int, int]], tokens: int) -> int:
    """Return how many completion tokens one forward may hold at most: the longest completions together."""
    predicted = room = 0
    for length, completion in sorted(rows, key=lambda row: -row[1] / row[0]):
        if room + length > tokens:
            break
        room += length
        predicted += completion
    return min(tokens, max(predicted, max((completion for _, completion in rows), default=0)))
