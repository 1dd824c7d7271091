"""A language model: tokens in, for each position the logits of the next token out (GPT-2's layout, decoder only)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from transformer.blocks import BlockCache, Transformer, initialize
from transformer.config import TransformerConfig, require
from transformer.positions import LearnedPositions, SinusoidalPositions


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(TransformerConfig):
    """A causal Transformer over tokens."""

    vocabulary_size: int = 256
    """Different tokens."""
    context_length: int = 64
    """Tokens the model sees."""
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    """What is added to a token's embedding for its position; none goes with rotary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary_size", "context_length"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")


class LanguageModel(nn.Module):
    """Embeds tokens and positions, runs the causal stack, and reads out with the embedding's own weights (tied)."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = make_positions(config.positions, config.context_length, config.width)
        self.apply(initialize)
        self.transformer = Transformer(config)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        read: Tensor | None = None,
        cache: list[BlockCache] | None = None,
    ) -> Tensor:
        """tokens: (B, L) integers, padded on the right where rows differ in length. Returns logits (B, L, V).

        positions: (L,) or (B, L), for tokens that follow those in the cache; 0, 1, ... when None. read: indices (Q,) or
        (B, Q) whose logits are wanted, then (B, Q, V).
        """
        x = self.embedding(tokens)  # (B, L, D)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=x.device) if positions is None else positions)
        x = self.transformer(x, read, positions=positions, cache=cache)  # (B, Q, D)
        return x @ self.embedding.weight.T  # (B, Q, V)


def make_positions(kind: str, length: int, width: int) -> nn.Module | None:
    """What turns a position into an embedding: "learned" (a table of `length` rows), "sinusoidal" or "none"."""
    if kind == "learned":
        return LearnedPositions(length, width)
    return SinusoidalPositions(width) if kind == "sinusoidal" else None
