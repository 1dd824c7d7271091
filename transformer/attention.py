"""Attention: the formula, and its multi-head form (Vaswani et al. 2017, sections 3.2.1 and 3.2.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.cache import KeyValueCache
from transformer.config import TransformerConfig
from transformer.positions import RotaryPositions


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, dropout: nn.Module | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(Hd)) v over the visible keys (Vaswani et al. 2017, eq. 1).

    q is (B, H, Lq, Hd), k and v are (B, H, Lk, Hd). `visible` broadcasts to (B, H, Lq, Lk) and is True where a query
    may look at a key; each query needs at least one. `dropout` leaves some of the weights out. Where
    `MultiHeadAttention` uses a fast kernel instead, this is what that kernel is tested against.
    """
    weights = attention_weights(q, k, visible)  # (B, H, Lq, Lk)
    return (weights if dropout is None else dropout(weights)) @ v  # (B, H, Lq, Hd)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(Hd)): how much each query looks at each visible key, (B, H, Lq, Lk); rows sum to one."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, Lq, Lk)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1)


def causal_visibility(query_positions: Tensor, num_keys: int) -> Tensor:
    """True where a key stands at or before the query: (Lq,) -> (Lq, Lk), or (B, Lq) -> (B, 1, Lq, Lk).

    Built from positions and not from the shape, so it stays right when there are fewer queries than keys.
    """
    key_positions = torch.arange(num_keys, device=query_positions.device)
    visible = key_positions <= query_positions[..., None]  # (..., Lq, Lk)
    return visible if visible.dim() == 2 else visible[:, None]  # one mask for all heads


def visibility(
    num_tokens: int,
    num_keys: int,
    *,
    causal: bool,
    read: Tensor | None,
    start: int | Tensor,
    mask: Tensor | None,
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """Which keys each query sees, as (visible, is_causal).

    visible: broadcasts to (B, H, Lq, Lk), True where a query sees a key. None: no mask is needed.
    is_causal: the plain triangle, with as many queries as keys and no padding. torch's kernel has it built in.

    Args:
        num_tokens: L, those that the queries come from.
        num_keys: Lk, with those in the cache.
        causal: a query sees keys at its own position and before.
        read: indices of the queries among the tokens, (Q,) or (B, Q). None: all tokens are queries.
        start: column of the first token among the keys, or one for each row, (B, 1).
        mask: (B, Lk), True where a key is real.
        device: the tokens'.
    """
    real = None if mask is None else mask[:, None, None]  # (B, 1, 1, Lk)
    if not causal:
        return real, False
    if read is None and not isinstance(start, Tensor):  # all tokens are queries, at the same columns in all rows
        if start == 0 and mask is None and num_tokens == num_keys:
            return None, True
        if num_tokens == 1:  # one token after all others sees each of them
            return real, False
    columns = start + (torch.arange(num_tokens, device=device) if read is None else read)
    earlier = causal_visibility(columns, num_keys)
    return earlier if real is None else real & earlier, False


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
        if not self.training or self.rate == 0:
            return x
        if x.is_cuda:
            return F.dropout(x, self.rate)
        if torch.compiler.is_compiling():
            return self._compiled(x)
        words = x.new_empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
        try:
            parts = words.view(torch.int16)
        except RuntimeError:  # under vmap (dt train-many): torch 2.10 cannot view such a tensor as another dtype
            return F.dropout(x, self.rate)
        draws = parts[: x.numel()].view(x.shape)  # uniform from -32768 to 32767
        kept = draws >= self._lowest_kept
        return x * kept * (1 / (1 - self.rate))

    def _compiled(self, x: Tensor) -> Tensor:
        """The same draws in operations that torch.compile handles well (no boolean masks saved for backward)."""
        count = math.ceil(x.numel() / 4)
        words = torch.randint(-(2**63), 2**63 - 1, (count,), device=x.device)
        words = words ^ -(2**63)  # those of `random_`
        draws = words.view(torch.int16)[: x.numel()].view(x.shape).int()
        kept = (draws - self._lowest_kept + 1).clamp(0, 1)
        return x * kept.to(x.dtype) * (1 / (1 - self.rate))

    @property
    def _lowest_kept(self) -> int:
        """The least of the 16-bit draws, from -32768 to 32767, that keeps its element."""
        return round(self.rate * 65_536) - 32_768


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each in Hd = D / H dimensions; their results are joined and projected.

    Args:
        config: width, heads, dropout and rotary positions.
        causal: a position sees itself and earlier ones. Otherwise it sees all, as in an encoder and in cross-attention.
    """

    def __init__(self, config: TransformerConfig, causal: bool = True):
        super().__init__()
        self.num_heads, self.causal = config.num_heads, causal
        self.dropout = Dropout(config.dropout)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)  # rows: those of q, then k, then v
        self.output = nn.Linear(config.width, config.width)
        self.rotary = RotaryPositions(config.width // config.num_heads) if config.rotary else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        read: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Outputs (B, L, D), or (B, Q, D) with `read`.

        Args:
            x: (B, L, D), where the queries come from.
            context: (B, Lk, D), where keys and values come from. None takes x: self-attention.
            read: indices into x at which outputs are wanted, (Q,) or (B, Q). None takes all.
            mask: (B, Lk), True where a key is real, including those in the cache.
            positions: of x's tokens, (L,) or (B, L), for rotary positions. None takes 0, 1, ...
            cache: keys and values of earlier calls, which x's tokens follow; this call's are added.
        """
        start = 0 if cache is None else cache.start  # before this call's keys are added
        q, k, v = self._project(x, context, read, positions, cache)
        visible, is_causal = visibility(
            x.shape[1], k.shape[2], causal=self.causal, read=read, start=start, mask=mask, device=x.device
        )
        heads = self._attend(q, k, v, visible, is_causal)  # (B, H, Lq, Hd)
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, Lq, D)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, is_causal: bool) -> Tensor:
        """`attention`, by torch's kernel where that is faster; visible and is_causal are those of `visibility`."""
        rate = self.dropout.rate if self.training else 0.0
        # On a CPU the kernel's dropout costs six times ours, and its backward in bf16 two to four times the formula's.
        if q.device.type == "cpu" and (rate or (q.dtype == torch.bfloat16 and q.requires_grad)):
            return attention(q, k, v, _triangle(q) if is_causal else visible, self.dropout)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=is_causal, dropout_p=rate)

    def weights(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """How much each query looks at each key: (B, H, L, Lk); each row sums to one.

        Args:
            x: (B, L, D), where the queries come from.
            context: (B, Lk, D), where the keys come from. None takes x.
            mask: (B, Lk), True where a key is real.
        """
        q, k, _ = self._project(x, context)
        visible, is_causal = visibility(
            x.shape[1], k.shape[2], causal=self.causal, read=None, start=0, mask=mask, device=x.device
        )
        return attention_weights(q, k, _triangle(q) if is_causal else visible)

    def _project(
        self,
        x: Tensor,
        context: Tensor | None = None,
        read: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, Lq, Hd), keys and values (B, H, Lk, Hd), with those of the cache."""
        if context is None and read is None:
            q, k, v = self._queries_keys_values(x)
        else:
            q = self._queries(x if read is None else take(x, read))
            if context is not None and cache is not None and cache.length:  # the context is the same at every call
                return q, cache.keys, cache.values
            k, v = self._keys_values(x if context is None else context)
        if self.rotary is not None and context is None:  # distances between two different sequences mean nothing
            positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions
            q = self.rotary(q, positions if read is None else _positions_of(read, positions))
            k = self.rotary(k, positions)
        if cache is not None:
            k, v = cache.write(k, v)
        return q, k, v

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D) -> three times (B, H, L, Hd)."""
        return self._heads(x, self.query_key_value.weight, self.query_key_value.bias)

    def _queries(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, Hd)."""
        width = x.shape[-1]
        return self._heads(x, self.query_key_value.weight[:width], self.query_key_value.bias[:width])[0]

    def _keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D) -> two times (B, H, L, Hd)."""
        width = x.shape[-1]
        return self._heads(x, self.query_key_value.weight[width:], self.query_key_value.bias[width:])

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """x (B, L, D) through rows of `query_key_value`, (n D, D) and (n D,): n times (B, H, L, Hd)."""
        parts = F.linear(x, weight, bias).view(*x.shape[:2], -1, self.num_heads, x.shape[-1] // self.num_heads)
        return parts.permute(2, 0, 3, 1, 4).unbind()  # from (B, L, n, H, Hd)


def _triangle(q: Tensor) -> Tensor:
    """The causal mask of as many queries (B, H, L, Hd) as keys: (L, L)."""
    return causal_visibility(torch.arange(q.shape[2], device=q.device), q.shape[2])


def _positions_of(read: Tensor, positions: Tensor) -> Tensor:
    """Positions of the tokens at indices `read`, (Q,) or (B, Q); positions are (L,) or (B, L)."""
    if positions.dim() == 1:
        return positions[read]  # (Q,) or (B, Q)
    return positions[:, read] if read.dim() == 1 else positions.gather(1, read)  # (B, Q)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x (B, L, D) at indices (Q,), or (B, Q) with a choice for each row: (B, Q, D)."""
    if indices.dim() == 1:
        return x[:, indices]  # (B, Q, D)
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))  # (B, Q, D)
