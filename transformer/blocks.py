"""Residual blocks and their stack: embeddings in, embeddings out (Vaswani et al. 2017, section 3.1; GPT-2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transformer.attention import Dropout, MultiHeadAttention, take
from transformer.cache import KeyValueCache
from transformer.config import TransformerConfig

M = TypeVar("M", bound=nn.Module)


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them, at each position separately; four times as wide inside.

    Args:
        config: width and activation.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        self.input = nn.Linear(config.width, 4 * config.width)
        self.output = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        hidden = self.input(x)  # (B, L, 4 D)
        return self.output(relu(hidden) if self.activation == "relu" else F.gelu(hidden, approximate="tanh"))


def relu(x: Tensor) -> Tensor:
    """ReLU. Under torch.compile it is (x + abs(x)) / 2, because boolean masks saved for backward are slow there.

    The gradient at exactly 0 is then 1/2, not 0.
    """
    return (x + x.abs()) / 2 if torch.compiler.is_compiling() else F.relu(x)


class Block(nn.Module):
    """x + attention [+ cross-attention] + feed-forward, each a residual branch.

    A layer norm is before each branch (pre-norm) or after each sum (post-norm). `causal` and `cross` make the three
    kinds of block: decoder only (causal), encoder (neither), decoder of a translation (both).

    Args:
        config: shape of the block.
        causal: a position sees itself and earlier ones only.
        cross: the block also attends to a memory.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool = True, cross: bool = False):
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = MultiHeadAttention(config, causal)
        self.cross_norm = nn.LayerNorm(config.width) if cross else None
        self.cross_attention = MultiHeadAttention(config, causal=False) if cross else None
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        read: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: "BlockCache | None" = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, Q, D) at the indices `read`; the other arguments as in `Transformer`."""

        own, of_memory = (None, None) if cache is None else (cache.own, cache.memory)
        branch = self.attention_norm(x) if self.norm_first else x
        branch = self.attention(branch, read=read, mask=mask, positions=positions, cache=own)
        x = self._add(x if read is None else take(x, read), branch, self.attention_norm)
        if self.cross_attention is not None and self.cross_norm is not None:
            branch = self.cross_norm(x) if self.norm_first else x
            branch = self.cross_attention(branch, memory, mask=memory_mask, cache=of_memory)
            x = self._add(x, branch, self.cross_norm)
        branch = self.feed_forward_norm(x) if self.norm_first else x
        return self._add(x, self.feed_forward(branch), self.feed_forward_norm)

    def _add(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        """The residual sum, and after it the norm where that does not come first."""
        x = x + (self.dropout(branch) if self.training else branch)
        return x if self.norm_first else norm(x)


@dataclass
class BlockCache:
    """What one block remembers in generation: its own keys and values, and those of the memory where it crosses."""

    own: KeyValueCache
    memory: KeyValueCache | None

    def rows(self, rows: Sequence[int]) -> "BlockCache":
        """What these rows of the batch remember, in this order."""
        return BlockCache(self.own.rows(rows), self.memory and self.memory.rows(rows))


class Transformer(nn.Module):
    """A stack of blocks: embeddings in, embeddings out. It has no vocabulary and no table of positions.

    Args:
        config: shape of the stack.
        causal: a decoder; each output depends only on its own and earlier positions. Otherwise an encoder.
        cross: each block also attends to a memory, an encoder's output.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool = True, cross: bool = False):
        super().__init__()
        self.config, self.cross = config, cross
        self.blocks = nn.ModuleList(Block(config, causal=causal, cross=cross) for _ in range(config.num_layers))
        # Pre-norm leaves the residual stream itself unnormalised, so one last norm follows (GPT-2).
        self.final_norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.apply(initialize)
        # The last map of each residual branch is called `output`, and nothing else is.
        outputs = [weight for name, weight in self.named_parameters() if name.endswith("output.weight")]
        for weight in outputs:
            # Scaled like this, the variance of the residual stream does not grow with depth (GPT-2).
            nn.init.normal_(weight, std=0.02 / math.sqrt(len(outputs)))

    def forward(
        self,
        x: Tensor,
        read: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: list[BlockCache] | None = None,
    ) -> Tensor:
        """Outputs (B, L, D), or (B, Q, D) with `read`.

        Args:
            x: embeddings, (B, L, D).
            read: indices at which outputs are wanted, (Q,), or (B, Q) with a choice for each row. The last block
                computes queries and feed-forward only there: the same numbers for less work.
            mask: (B, L), True where a token is real, or (B, Lk) with those in the cache. A causal stack with padding on
                the right needs one only for cached tokens.
            positions: of the tokens, (L,) or (B, L), for rotary positions. None takes 0, 1, ...
            memory: (B, M, D), for a stack with cross-attention.
            memory_mask: (B, M), True where the memory is real.
            cache: from `make_cache`; this call's keys and values are added.
        """
        x = self.dropout(x)
        last = len(self.blocks) - 1
        recompute = self.config.activation_checkpointing and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            # A recomputed block draws the same dropout: `checkpoint` restores the state of torch's generators.
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x = run(
                x,
                read if i == last else None,
                mask=mask,
                positions=positions,
                memory=memory,
                memory_mask=memory_mask,
                cache=cache[i] if cache else None,
            )
        return self.final_norm(x)

    def make_cache(self, batch_size: int, length: int, memory_length: int = 0) -> list[BlockCache]:
        """An empty cache for every block, which `forward` fills.

        Args:
            batch_size: rows.
            length: positions that it can hold.
            memory_length: positions of the memory, with cross-attention.
        """
        like, heads = next(self.parameters()), self.config.num_heads
        width = self.config.width // heads
        return [
            BlockCache(
                KeyValueCache(batch_size, heads, length, width, like.detach()),
                KeyValueCache(batch_size, heads, memory_length, width, like.detach()) if self.cross else None,
            )
            for _ in self.blocks
        ]


def fast_view(module: M) -> M:
    """A shallow copy that shares parameters and skips nn.Module's attribute lookup, a fifth of a token's time.

    Use it for inference only: `train()` or `to()` on the copy does not reach the module.
    """
    copy = object.__new__(type(module))
    parts = {name: part if part is None else fast_view(part) for name, part in module._modules.items()}
    copy.__dict__ = {**module.__dict__, **module._parameters, **module._buffers, **parts, "_modules": parts}
    return copy


def initialize(module: nn.Module) -> None:
    """GPT-2's initial weights: normal with std 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
