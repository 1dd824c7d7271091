"""From a leaf of a space to the model's width and back: chosen by the space, never by a flag.

observation   uint8 pictures      Nature's convolutions over a stack of frames, a linear map, tanh
              any other Box       values normalised by the data, a linear map
              Discrete            a learned row for each value
              MultiDiscrete       the same for each of its numbers, and their sum
              MultiBinary         a linear map of the bits
action        the same to enter the model, but a Box goes in as it is
              Box                 out of it: squared error, the mean over its numbers
              the others          out of it: cross-entropy, the sum over the choices
"""

import math

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dt.fitted_units import action_units, observation_units
from dt.units import Units
from envs.datasets.statistics import statistics
from envs.spaces import choices, padding_value

SMALLEST_SIDE = 36
"""Pixels of the smallest picture that the convolutions leave anything of."""

FARTHEST = 1e15
"""Standard deviations from the mean beyond which an observation counts as that far."""


def is_image(space: Space[object]) -> bool:
    """Whether a leaf holds pictures: a uint8 Box (..., H, W), channels before or behind, large enough to convolve."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) < 2:
        return False
    return min(_sides(space.shape)) >= SMALLEST_SIDE


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of pictures of this shape."""
    return shape[-3:-1] if _channels_last(shape) else shape[-2:]  # type: ignore[return-value]


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether the last axis is that of the channels: it is shorter than the one that else would be."""
    return len(shape) > 2 and shape[-1] < shape[-3]


class Normalizer(nn.Module):
    """(x - mean) / std for each dimension, over a whole leaf; a dimension that never varies is only centred.

    Where float32 does not hold the recorded numbers, they come in `units`, in which mean and std are 0 and 1.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))  # std; the name that saved runs have for it
        self.mean: Tensor
        self.deviation: Tensor
        self.units: Units | None = None

    @property
    def std(self) -> Tensor:
        """Standard deviation of each dimension, *shape; 1 where a dimension is only centred."""
        return self.deviation

    def fit(self, data: NDArray[np.generic]) -> None:
        """Take mean, std and units of data (N, *shape), computed in float64."""
        found = statistics(data)
        self.units = observation_units(data, found)
        plain = True if self.units is None else self.units.plain
        mean = np.where(plain, found.mean, 0.0)
        std = np.where(plain, found.spread, 1.0)
        self.mean.copy_(torch.from_numpy(np.asarray(mean)))
        self.std.copy_(torch.from_numpy(np.asarray(std)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) to the same shape, float32; the squares of numbers far outside the data stay finite."""
        return ((x.to(self.mean.dtype) - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)


class LinearEncoder(nn.Module):
    """A linear map of the flattened values; states are normalised first, actions enter as they are (the paper).

    Args:
        space: of the leaf.
        width: D.
        normalize: whether values are normalised by the data.
        noise: standard deviation of the Gaussian noise that training adds to normalised values. A policy leaves the
            recorded way a little at each step; with noise it has learned what to do there (S4RL, Sinha et al. 2021,
            arXiv 2103.06326, adds it to the states of value-based methods).
    """

    def __init__(self, space: spaces.Box | spaces.MultiBinary, width: int, normalize: bool, noise: float = 0.0):
        super().__init__()
        self.padding = 0  # a value that may be where there is no step
        self.noise = noise
        self.normalizer = Normalizer(space.shape) if normalize else None
        self.num_axes = len(space.shape)
        self.linear = nn.Linear(math.prod(space.shape), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, *leaf) -> (B, T, D)."""
        x = x.to(self.linear.weight.dtype) if self.normalizer is None else self.normalizer(x)
        if self.training and self.noise and self.normalizer is not None:
            x = x + self.noise * torch.randn_like(x)
        return self.linear(x.flatten(x.dim() - self.num_axes) if self.num_axes else x[..., None])  # (B, T, D)


class DiscreteEncoder(nn.Module):
    """One learned row for each value of each choice; the rows of a step are summed."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete, width: int):
        super().__init__()
        counts, start = choices(space)
        self.register_buffer("padding", torch.from_numpy(padding_value(space)), persistent=False)
        self.register_buffer("first", torch.from_numpy(counts.cumsum() - counts - start), persistent=False)  # (N,)
        self.first: Tensor
        self.table = nn.Embedding(int(counts.sum()), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, *leaf) integers -> (B, T, D)."""
        rows = x.reshape(*x.shape[:2], -1).long() + self.first  # (B, T, N)
        return self.table(rows).sum(2)  # (B, T, D)


class ImageEncoder(nn.Module):
    """The convolutions of Mnih et al. 2015, a linear map and tanh, as in the paper's Atari code; 0..255 is 0..1.

    All axes before height and width are channels of the one picture that is convolved: frames, frames of frames, and
    colours, which may also stand last.
    """

    def __init__(self, space: spaces.Box, width: int, frame_stack: int):
        super().__init__()
        self.padding = 0
        height, breadth = _sides(space.shape)
        self.channels_last = _channels_last(space.shape)
        self.num_channels = frame_stack * math.prod(space.shape) // (height * breadth)
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.num_channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            features = self.convolutions(torch.zeros(1, self.num_channels, height, breadth)).shape[1]
        self.linear = nn.Linear(features, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F, *leaf) uint8 -> (B, T, D)."""
        if self.channels_last:
            x = x.movedim(-1, -3)  # (B, T, F, ..., C, H, W)
        pictures = x.reshape(-1, self.num_channels, *x.shape[-2:])  # (B T, F ... C, H, W)
        features = self.convolutions(pictures.to(self.linear.weight.dtype) / 255)  # (B T, features)
        return self.linear(features).tanh().unflatten(0, x.shape[:2])  # (B, T, D)


def make_state_encoder(space: Space[object], width: int, frame_stack: int, noise: float = 0.0) -> nn.Module:
    """The encoder of an observation's leaf; a kind of space without one raises `TypeError`.

    noise: as in `LinearEncoder`; only numbers that are normalised get any.
    """
    if is_image(space):
        return ImageEncoder(space, width, frame_stack)  # type: ignore[arg-type]
    return _make_encoder(space, width, normalize=True, noise=noise)


def make_action_encoder(space: Space[object], width: int) -> nn.Module:
    """The encoder of an action's leaf; a kind of space without one raises `TypeError`."""
    return _make_encoder(space, width, normalize=False)


def _make_encoder(space: Space[object], width: int, *, normalize: bool, noise: float = 0.0) -> nn.Module:
    if isinstance(space, spaces.Box):
        return LinearEncoder(space, width, normalize, noise)
    if isinstance(space, spaces.MultiBinary):
        return LinearEncoder(space, width, normalize=False)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return DiscreteEncoder(space, width)
    raise TypeError(f"no encoder for {space}")


class ContinuousHead(nn.Module):
    """Actions of a Box, by mean squared error.

    Bounded dimensions are a tanh stretched to the space's own bounds, as in the paper for [-1, 1]; the others are
    linear, in units of the data's deviation. So are those with bounds far wider than the data, which say nothing of it.
    The error is measured in those units, so it does not depend on the bounds.
    Where float32 does not hold the recorded actions, they come in `units`.
    """

    def __init__(self, space: spaces.Box, width: int):
        super().__init__()
        self.shape, self.padding, self.space = space.shape, 0, space
        self.linear = nn.Linear(width, math.prod(space.shape))
        bounded = torch.from_numpy(_bounded(space)).flatten()  # (A,)
        low, high = (torch.from_numpy(np.asarray(x, np.float64)).flatten() for x in (space.low, space.high))
        self.register_buffer("bounded", bounded)
        self.register_buffer("center", torch.where(bounded, low / 2 + high / 2, 0.0).float())
        self.register_buffer("scale", torch.where(bounded, high / 2 - low / 2, 1.0).float())
        self.bounded: Tensor
        self.center: Tensor
        self.scale: Tensor
        self.units: Units | None = None

    def fit(self, data: NDArray[np.generic]) -> None:
        """Take the unit of the unbounded dimensions from data (N, *leaf), and which bounds count."""
        low, high = (np.asarray(x, np.float64) for x in (self.space.low, self.space.high))
        bounded, center, unit, self.units = action_units(data, low, high, _bounded(self.space))
        plain = True if self.units is None else self.units.plain
        center, unit = np.where(plain, center, 0.0), np.where(plain, unit, 1.0)
        for buffer, values in ((self.bounded, bounded), (self.center, center), (self.scale, unit)):
            buffer.copy_(torch.from_numpy(np.asarray(values)).flatten())

    def constant(self, data: NDArray[np.generic]) -> Tensor:
        """The output for the mean of data (N, *leaf), the best one where no state is known: (A,)."""
        mean = np.asarray(data.mean(axis=0, dtype=np.float64))
        mean = mean if self.units is None else self.units.encode(mean)
        return (torch.from_numpy(mean).flatten().to(self.scale) - self.center) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., A), in units: bounded dimensions in [-1, 1]."""
        raw = _unhalved(self.linear(x))
        return torch.where(self.bounded, raw.tanh(), raw)

    def loss(self, output: Tensor, actions: Tensor) -> Tensor:
        """Squared error of each step, as the mean over action dimensions: (B, T, A), (B, T, *leaf) -> (B, T)."""
        target = (actions.flatten(2) if self.shape else actions[..., None]).to(output.dtype)
        return (output - (target - self.center) / self.scale).square().mean(-1)  # (B, T)

    def choose(self, output: Tensor, allowed: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """(B, A) -> actions (B, *leaf) in the space's own units, or in `units`; there is nothing to mask or to draw."""
        return (output * self.scale + self.center).reshape(-1, *self.shape)


def _bounded(space: spaces.Box) -> NDArray[np.bool_]:
    """Which dimensions the space bounds at both ends: *leaf. The ends of an integer type are no bounds."""
    low, high = (np.asarray(x) for x in (space.low, space.high))
    if low.dtype.kind == "i":
        ends = np.iinfo(str(low.dtype))
        return np.asarray((low > ends.min) & (high < ends.max))
    return np.asarray(np.isfinite(low) & np.isfinite(high))


class DiscreteHead(nn.Module):
    """Actions that are N choices side by side, by cross-entropy: Discrete, MultiDiscrete and, of two each, MultiBinary.

    Each choice has logits of its own, so given the past one does not depend on another. Two logits a bit are a
    Bernoulli variable; its logit is their difference.
    """

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, width: int):
        super().__init__()
        counts, start = (torch.from_numpy(x) for x in choices(space))  # each (N,)
        self.shape = space.shape or ()
        self.num_choices, self.most_values = len(counts), int(counts.max())
        self.linear = nn.Linear(width, int(counts.sum()))
        exists = torch.arange(self.most_values, device=counts.device) < counts[:, None]  # (N, M)
        self.register_buffer("cells", exists.flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("padding", torch.from_numpy(padding_value(space)), persistent=False)
        self.cells: Tensor
        self.start: Tensor

    def fit(self, data: NDArray[np.generic]) -> None:
        """Nothing to take from data."""

    def constant(self, data: NDArray[np.generic]) -> Tensor:
        """Logits of how frequent the values are in data (N, *leaf), the best where no state is known: (N, M).

        Each value is counted once more than it occurs: one that never does is not impossible.
        """
        choice, value = np.divmod(self.cells.cpu().numpy(), self.most_values)
        columns = data.reshape(len(data), -1) - self.start.cpu().numpy()  # (steps, N)
        counts = np.stack([np.bincount(column, minlength=self.most_values) for column in columns.T.astype(np.int64)])
        grid = np.full((self.num_choices, self.most_values), -np.inf, np.float32)
        grid[choice, value] = np.log(counts[choice, value] + 1)
        return torch.from_numpy(grid).to(self.start.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> logits (..., N, M), M the most values of any choice; where one has fewer, -inf."""
        logits = _unhalved(self.linear(x))
        grid = logits.new_full((*logits.shape[:-1], self.num_choices * self.most_values), -torch.inf)
        grid = grid.index_copy(-1, self.cells, logits)  # (..., N M)
        return grid.reshape(*logits.shape[:-1], self.num_choices, self.most_values)

    def loss(self, output: Tensor, actions: Tensor) -> Tensor:
        """Cross-entropy of each step, summed over the choices: (B, T, N, M), (B, T, *leaf) -> (B, T)."""
        target = actions.reshape(output.shape[:-1]).long() - self.start  # (B, T, N)
        return F.cross_entropy(output.flatten(0, 2), target.flatten(), reduction="none").view_as(target).sum(-1)

    def choose(self, output: Tensor, allowed: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """The likeliest values: (B, N, M) -> actions (B, *leaf).

        allowed: (B, N, M) bool, True where a value may be chosen; every choice needs one.
        noise: (B, N, M), `temperature` times draws of the standard Gumbel distribution; the maximum of logits and
        noise is then a draw from softmax(logits / temperature) (Gumbel 1954).
        """
        scores = output if noise is None else output + noise
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return (scores.argmax(-1) + self.start).reshape(-1, *self.shape)


def _unhalved(x: Tensor) -> Tensor:
    """bf16 as float32, anything else as it is: losses are not summed in half precision."""
    return x.float() if x.dtype == torch.bfloat16 else x


def make_head(space: Space[object], width: int) -> ContinuousHead | DiscreteHead:
    """The head of an action leaf; a kind of space without one raises `TypeError`."""
    if isinstance(space, spaces.Box):
        return ContinuousHead(space, width)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return DiscreteHead(space, width)
    raise TypeError(f"no action head for {space}")
