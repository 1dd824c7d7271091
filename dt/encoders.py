"""From a leaf of a space to the model's width and back: chosen by the space, never by a flag."""

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


class Normalizer(nn.Module):
    """(x - mean) / deviation for each dimension, over a whole leaf; a dimension that never varies is only centred."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self.mean: Tensor
        self.deviation: Tensor

    def fit(self, data: NDArray[np.generic]) -> None:
        """Take mean and deviation of data (N, *shape), computed in float64."""
        deviation = data.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(np.asarray(data.mean(axis=0, dtype=np.float64))))
        self.deviation.copy_(torch.from_numpy(np.asarray(np.where(deviation < 1e-6, 1.0, deviation))))

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) to the same shape, float32."""
        return (x.to(self.mean.dtype) - self.mean) / self.deviation


class BoxEncoder(nn.Module):
    """A linear map of the flattened values; states are normalised first, actions enter as they are (the paper)."""

    def __init__(self, space: spaces.Box, width: int, normalize: bool):
        super().__init__()
        self.padding = 0  # a value that may stand where no step is
        self.normalizer = Normalizer(space.shape) if normalize else None
        self.num_axes = len(space.shape)
        self.linear = nn.Linear(int(np.prod(space.shape, dtype=int)), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, *leaf) -> (B, T, D)."""
        x = x.to(self.linear.weight.dtype) if self.normalizer is None else self.normalizer(x)
        return self.linear(x.flatten(x.dim() - self.num_axes) if self.num_axes else x[..., None])  # (B, T, D)


class DiscreteEncoder(nn.Module):
    """One learned row for each value."""

    def __init__(self, space: spaces.Discrete, width: int):
        super().__init__()
        self.start = self.padding = int(space.start)
        self.table = nn.Embedding(int(space.n), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) integers -> (B, T, D)."""
        return self.table(x.long() - self.start)


def make_encoder(space: Space[object], width: int, *, normalize: bool) -> nn.Module:
    """The encoder of a leaf; a kind of space without one raises `TypeError`."""
    if isinstance(space, spaces.Box):
        return BoxEncoder(space, width, normalize)
    if isinstance(space, spaces.Discrete):
        return DiscreteEncoder(space, width)
    raise TypeError(f"no encoder for {space}")


class ContinuousHead(nn.Module):
    """Actions of a Box, by mean squared error.

    Bounded dimensions are a tanh stretched to the space's own bounds, as in the paper for [-1, 1]; the others are
    linear, in units of the data's deviation. The error is measured in those units, so it does not depend on the bounds.
    """

    def __init__(self, space: spaces.Box, width: int):
        super().__init__()
        self.shape, self.padding = space.shape, 0
        self.linear = nn.Linear(width, int(np.prod(space.shape, dtype=int)))
        bounded = torch.from_numpy(np.isfinite(space.low) & np.isfinite(space.high)).flatten()  # (A,)
        low, high = (torch.from_numpy(np.asarray(x, np.float64)).flatten() for x in (space.low, space.high))
        self.register_buffer("bounded", bounded)
        self.register_buffer("center", torch.where(bounded, (low + high) / 2, 0.0).float())
        self.register_buffer("scale", torch.where(bounded, (high - low) / 2, 1.0).float())
        self.bounded: Tensor
        self.center: Tensor
        self.scale: Tensor

    def fit(self, data: NDArray[np.generic]) -> None:
        """Take the unit of the unbounded dimensions from data (N, *leaf)."""
        flat = Normalizer((self.bounded.numel(),))
        flat.fit(data.reshape(len(data), -1))
        self.center.copy_(torch.where(self.bounded, self.center, flat.mean))
        self.scale.copy_(torch.where(self.bounded, self.scale, flat.deviation))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., A), in units: bounded dimensions in [-1, 1]."""
        raw = _unhalved(self.linear(x))
        return torch.where(self.bounded, raw.tanh(), raw)

    def loss(self, output: Tensor, actions: Tensor) -> Tensor:
        """Squared error of each step, as the mean over action dimensions: (B, T, A), (B, T, *leaf) -> (B, T)."""
        target = (actions.flatten(2) if self.shape else actions[..., None]).to(output.dtype)
        return (output - (target - self.center) / self.scale).square().mean(-1)  # (B, T)

    def choose(self, output: Tensor) -> Tensor:
        """(B, A) -> actions (B, *leaf) in the space's own units."""
        return (output * self.scale + self.center).reshape(-1, *self.shape)


class DiscreteHead(nn.Module):
    """Actions of a Discrete space, by cross-entropy; the most likely one is taken."""

    def __init__(self, space: spaces.Discrete, width: int):
        super().__init__()
        self.start = self.padding = int(space.start)
        self.linear = nn.Linear(width, int(space.n))

    def fit(self, data: NDArray[np.generic]) -> None:
        """Nothing to take from data."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> logits (..., n)."""
        return _unhalved(self.linear(x))

    def loss(self, output: Tensor, actions: Tensor) -> Tensor:
        """Cross-entropy of each step: (B, T, n), (B, T) -> (B, T)."""
        return F.cross_entropy(output.mT, actions.long() - self.start, reduction="none")  # (B, T)

    def choose(self, output: Tensor) -> Tensor:
        """(B, n) -> actions (B,)."""
        return output.argmax(-1) + self.start


def _unhalved(x: Tensor) -> Tensor:
    """bf16 as float32, anything else as it is: losses are not summed in half precision."""
    return x.float() if x.dtype == torch.bfloat16 else x


def make_head(space: Space[object], width: int) -> ContinuousHead | DiscreteHead:
    """The head of an action leaf; a kind of space without one raises `TypeError`."""
    if isinstance(space, spaces.Box):
        return ContinuousHead(space, width)
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(space, width)
    raise TypeError(f"no action head for {space}")
