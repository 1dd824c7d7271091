"""Positions: an index in, an encoding out, of words in a sentence or of anything else that is counted."""

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Fixed waves of many lengths (Vaswani et al. 2017, section 3.5). They work for any index and learn nothing.

    Args:
        width: D, even.
    """

    def __init__(self, width: int):
        super().__init__()
        if width % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {width}")
        self.register_buffer("frequencies", wave_frequencies(width), persistent=False)
        self.frequencies: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        """Encodings (..., D): sines at even dimensions, cosines at odd ones.

        Args:
            positions: integers of any shape (...).
        """
        angles = positions[..., None] * self.frequencies  # (..., D / 2)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (..., D)


class LearnedPositions(nn.Embedding):
    """A table with one learned row for each index: integers (...) in, (..., D) out.

    Args:
        length: rows; indices are below it.
        width: D.
    """

    def __init__(self, length: int, width: int):
        super().__init__(length, width)


class RotaryPositions(nn.Module):
    """Turns pairs of dimensions by an angle that grows with the position (Su et al. 2021, RoFormer, section 3.2.2).

    The dot product of a turned query and a turned key depends only on the distance between them.

    Args:
        head_width: Hd, even.
    """

    def __init__(self, head_width: int):
        super().__init__()
        self.register_buffer("frequencies", wave_frequencies(head_width), persistent=False)
        self.frequencies: Tensor

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x with each vector turned by its position, in x's shape.

        Args:
            x: (B, H, L, Hd).
            positions: (L,), or (B, L) with positions for each row.
        """
        angles = positions[..., None] * self.frequencies  # (L, Hd / 2) or (B, L, Hd / 2)
        if angles.dim() == 3:
            angles = angles[:, None]  # (B, 1, L, Hd / 2): the same for every head
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)  # each (B, H, L, Hd / 2)
        # (even cos - odd sin, odd cos + even sin) of whole vectors: products of every other number take twice as long.
        return x * _pairs(cosine, cosine) + _pairs(odd, even) * _pairs(-sine, sine)  # (B, H, L, Hd)


def _pairs(even: Tensor, odd: Tensor) -> Tensor:
    """Numbers (..., N) at even and at odd dimensions of one tensor: (..., 2 N)."""
    return torch.stack([even, odd], dim=-1).flatten(-2)


def wave_frequencies(width: int) -> Tensor:
    """Angles a position turns by in each pair of dimensions, 1 down to 1 / 10000: (width / 2,)."""
    return 10_000.0 ** (-torch.arange(0, width, 2) / width)
