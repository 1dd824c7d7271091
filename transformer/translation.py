"""Sequence to sequence: an encoder reads the source, a decoder writes the target (Vaswani et al. 2017, figure 1)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from transformer.blocks import BlockCache, Transformer, initialize
from transformer.config import TransformerConfig, require
from transformer.language import make_positions


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(TransformerConfig):
    """An encoder and a decoder of the same shape, `num_layers` blocks each, over one shared vocabulary."""

    vocabulary_size: int = 256
    """Different tokens, source and target together."""
    context_length: int = 128
    """Tokens of the longest sentence."""
    positions: Literal["learned", "sinusoidal", "none"] = "sinusoidal"
    """What is added to a token's embedding for its position; none goes with rotary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary_size", "context_length"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")


class EncoderDecoder(nn.Module):
    """Source tokens and the target so far to logits of the next target token; embedding and head share weights."""

    def __init__(self, config: TranslationConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = make_positions(config.positions, config.context_length, config.width)
        self.apply(initialize)
        self.encoder = Transformer(config, causal=False)
        self.decoder = Transformer(config, cross=True)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """source: (B, M) tokens; source_mask: (B, M), True where a token is real. Returns the memory, (B, M, D)."""
        return self.encoder(self._embed(source, None), mask=source_mask)

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        *,
        positions: Tensor | None = None,
        read: Tensor | None = None,
        cache: list[BlockCache] | None = None,
    ) -> Tensor:
        """target: (B, L) tokens so far, padded on the right. Returns logits of the token after each: (B, L, V).

        positions, read and cache are as in `LanguageModel`. Every block of the decoder sees the encoder's last output.
        """
        x = self.decoder(
            self._embed(target, positions),
            read,
            positions=positions,
            memory=memory,
            memory_mask=source_mask,
            cache=cache,
        )  # (B, Q, D)
        return x @ self.embedding.weight.T  # (B, Q, V)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """Logits (B, L, V) after each token of a target that is known, as in training."""
        return self.decode(target, self.encode(source, source_mask), source_mask)

    def _embed(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        x = self.embedding(tokens)  # (B, L, D)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=x.device) if positions is None else positions)
        return x
