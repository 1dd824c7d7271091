"""Residual blocks and their stack: embeddings in, embeddings out (Vaswani et al. 2017, section 3.1; GPT-2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.attention import MultiHeadAttention, take
from transformer.config import TransformerConfig


class Dropout(nn.Module):
    """In training, zero each element with probability `rate` and scale the rest by 1 / (1 - rate).

    On the CPU the mask is a sixth of torch's own cost: each 64-bit random number is cut into four 16-bit draws, so the
    rate is kept to 1 / 65536. A GPU has a fused kernel.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, to the same shape."""
        if x.is_cuda or not self.training or self.rate == 0:
            return F.dropout(x, self.rate, self.training)
        words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -32768 to 32767
        kept = draws >= round(self.rate * 65_536) - 32_768
        return x * kept * (1 / (1 - self.rate))


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, at each position on its own; four times as wide inside."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        self.input = nn.Linear(config.width, 4 * config.width)
        self.output = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        hidden = self.input(x)  # (B, L, 4 D)
        return self.output(F.relu(hidden) if self.activation == "relu" else F.gelu(hidden, approximate="tanh"))


class Block(nn.Module):
    """x + attention, then x + feed-forward, with a layer norm before each part (pre) or after each sum (post)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); with `read`, (Q,) or (B, Q), only those positions come out: (B, Q, D)."""
        residual = x if read is None else take(x, read)
        if self.norm_first:
            x = residual + self.dropout(self.attention(self.attention_norm(x), read))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(residual + self.dropout(self.attention(x, read)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """A stack of causal blocks. It knows no words, rewards or position tables: whoever uses it embeds and reads out."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        # Pre-norm leaves the residual stream itself unnormalised, so one last norm follows (GPT-2).
        self.final_norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.apply(initialize)
        for block in self.blocks:
            for output in (block.attention.output, block.feed_forward.output):  # type: ignore[union-attr]
                # Each block adds two branches to the stream; so scaled, its variance does not grow with depth (GPT-2).
                nn.init.normal_(output.weight, std=0.02 / math.sqrt(2 * config.num_layers))  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) to outputs (B, L, D); each output depends on its own and earlier positions alone.

        read: positions whose outputs are wanted, (Q,) or (B, Q) with a choice for each row; then (B, Q, D) comes out.
        The last block computes queries and feed-forward at those positions only: the same numbers for less work.
        """
        x = self.dropout(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.final_norm(self.blocks[-1](x, read))


def initialize(module: nn.Module) -> None:
    """GPT-2's initial weights: normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
