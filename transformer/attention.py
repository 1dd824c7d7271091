"""Attention: the formula, and its multi-head form (Vaswani et al. 2017, sections 3.2.1 and 3.2.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.config import TransformerConfig
from transformer.positions import RotaryPositions


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(Hd)) v over the visible keys (Vaswani et al. 2017, eq. 1).

    q is (B, H, Lq, Hd), k and v are (B, H, Lk, Hd). `visible` broadcasts to (B, H, Lq, Lk) and is True where a query
    may look at a key; each query needs at least one. `MultiHeadAttention` uses a fast kernel instead; this is what
    that kernel is tested against.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, Lq, Lk)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v  # (B, H, Lq, Hd)


def causal_visibility(query_positions: Tensor, num_keys: int) -> Tensor:
    """True where a key stands at or before the query: (Lq,) -> (Lq, Lk), or (B, Lq) -> (B, 1, Lq, Lk).

    Built from positions and not from the shape, so it stays right when there are fewer queries than keys.
    """
    key_positions = torch.arange(num_keys, device=query_positions.device)
    visible = key_positions <= query_positions[..., None]  # (..., Lq, Lk)
    return visible if visible.dim() == 2 else visible[:, None]  # one mask for all heads


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each in its own Hd = D / H dimensions; their results are joined and projected."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.rotary = RotaryPositions(config.width // config.num_heads) if config.rotary else None

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """Causal self-attention: each position looks at itself and at what came before.

        x: (B, L, D). read: positions whose outputs are wanted, (Q,) or (B, Q); all of them when None. Keys and values
        come from every position either way. Returns (B, L, D), or (B, Q, D) with `read`.
        """
        queries = x if read is None else take(x, read)
        q = self._split_heads(self.query(queries))  # (B, H, Lq, Hd)
        k, v = (self._split_heads(part) for part in self.key_value(x).chunk(2, dim=-1))  # each (B, H, L, Hd)
        if self.rotary is not None:
            everywhere = torch.arange(x.shape[1], device=x.device)
            q, k = self.rotary(q, everywhere if read is None else read), self.rotary(k, everywhere)
        visible = None if read is None else causal_visibility(read, x.shape[1])
        heads = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            is_causal=visible is None,  # the kernel's own causal mask is right only for as many queries as keys
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, Lq, Hd)
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, Lq, D)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, H, L, Hd)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of x (B, L, D) at positions (Q,), or (B, Q) with a choice for each row: (B, Q, D)."""
    if positions.dim() == 1:
        return x[:, positions]  # (B, Q, D)
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))  # (B, Q, D)
