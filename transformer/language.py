"""A language model: tokens in, for each position the logits of the next token out (GPT-2's layout, decoder only)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.blocks import BlockCache, Transformer, initialize
from transformer.config import LanguageConfig
from transformer.positions import LearnedPositions, SinusoidalPositions


class TokenEmbedding(nn.Module):
    """Tokens and their positions to embeddings, and outputs to logits by the same weights (tied: Press & Wolf 2017)."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.positions: nn.Module | None = None
        self.scale = 1.0
        if config.positions == "learned":
            self.positions = LearnedPositions(config.context_length, config.width)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.width)
            self.scale = math.sqrt(config.width)  # the waves have amplitude 1 (Vaswani et al. 2017, section 3.4)
        self.apply(initialize)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens: (B, L) integers. positions: (L,) or (B, L); 0, 1, ... when None. Returns (B, L, D)."""
        x = self.tokens(tokens)  # (B, L, D)
        if self.scale != 1:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=x.device) if positions is None else positions)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, V)."""
        return F.linear(x, self.tokens.weight)


class LanguageModel(nn.Module):
    """Embeds tokens, runs the causal stack, and reads out with the embedding's weights (tied).

    Args:
        config: shape, vocabulary and context length.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.transformer = Transformer(config)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        read: Tensor | None = None,
        mask: Tensor | None = None,
        cache: list[BlockCache] | None = None,
    ) -> Tensor:
        """Logits of each next token: (B, L, V), or (B, Q, V) with `read`.

        Args:
            tokens: (B, L) integers, padded on the right if rows differ in length.
            positions: (L,) or (B, L), for tokens that follow those in the cache. None takes 0, 1, ...
            read: indices at which logits are wanted, (Q,) or (B, Q).
            mask: (B, Lk), True where a token is real, including those in the cache. None if there is no padding.
            cache: from `transformer.make_cache`.
        """
        x = self.embedding(tokens, positions)  # (B, L, D)
        x = self.transformer(x, read, mask=mask, positions=positions, cache=cache)  # (B, Q, D)
        return self.embedding.logits(x)  # (B, Q, V)
