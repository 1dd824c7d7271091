"""Trajectories as windows of K steps (Chen et al. 2021, section 3 and algorithm 1).

Everything lies in one flat tensor a field, and returns-to-go are computed once. A batch is two things: `indices`, a
pure function of (seed, step), and `gather`, which takes those windows out.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dt.config import Config
from dt.encoders import is_image
from dt.units import ModelUnits, Units
from envs.datasets.array_files import allocate_like, chunks
from envs.datasets.dataset import Dataset
from envs.datasets.statistics import statistics
from envs.errors import DataError
from envs.spaces import Leaves, leaf_spaces
from transformer.runs import distributed

TensorLeaves = dict[str, Tensor]
"""One tensor for each leaf of a space, by the leaf's name."""

WINDOWS_PER_SLICE = 256
"""Windows that a CPU processes at once in training; the slices of a batch fit its cache."""


MAX_FLOAT32_RETURN, MIN_FLOAT32_SCALE = 1e37, 1e-37
"""Bounds of returns and of their standard deviation; float32 also holds what is computed from such numbers."""


@dataclass(frozen=True)
class Batch:
    """B windows of T steps, padded on the right. Values are raw; the model normalises them.

    A leaf for which the model has `Units` is float32 in those units.
    """

    states: TensorLeaves
    """By leaf: each (B, T, *leaf), as recorded; of pictures a stack of F at each step, (B, T, F, *leaf)."""
    actions: TensorLeaves
    """By leaf: each (B, T, *leaf), as recorded."""
    returns_to_go: Tensor
    """(B, T) float32, in the reward's unit."""
    timesteps: Tensor
    """(B, T) int64, position in the episode."""
    mask: Tensor
    """(B, T) bool, True where the step is real."""

    def slices(self) -> list["Batch"]:
        """The windows in parts that fit a CPU's cache; on a GPU, all in one part.

        Of 1,024 windows (K = 20, width 128, bf16), 256 at a time took the least time of 64, 128, 256, 512 and all.
        """
        size = len(self.mask)
        if self.mask.device.type != "cpu" or size <= WINDOWS_PER_SLICE:
            return [self]
        return [self._windows(start, start + WINDOWS_PER_SLICE) for start in range(0, size, WINDOWS_PER_SLICE)]

    def _windows(self, start: int, end: int) -> "Batch":
        """The windows from `start` to before `end`."""
        return Batch(
            states={name: leaf[start:end] for name, leaf in self.states.items()},
            actions={name: leaf[start:end] for name, leaf in self.actions.items()},
            returns_to_go=self.returns_to_go[start:end],
            timesteps=self.timesteps[start:end],
            mask=self.mask[start:end],
        )


def returns_to_go(rewards: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Reward of the present step and all later ones of its episode, in float64: (N,), episodes as in `offsets`.

    Computed as the episode's return minus what was earned before, in the order the rewards came: so a policy that
    starts from the return and subtracts each reward sees these very numbers.
    """
    result = allocate_like((len(rewards),), np.float64, rewards)
    for start, end in pairwise(offsets):
        earned = np.cumsum(rewards[start:end], dtype=np.float64)
        result[start] = earned[-1]
        result[start + 1 : end] = earned[-1] - earned[:-1]
    return result


def return_scale(dataset: Dataset) -> float:
    """What returns are divided by if it is not set: their standard deviation; 1 where they never vary.

    Raises `DataError` where they do not fit into float32.
    """
    found = statistics(returns_to_go(dataset.rewards, dataset.offsets))
    scale = 1.0 if found.constant else float(found.std)
    if float(found.reach) > MAX_FLOAT32_RETURN or scale < MIN_FLOAT32_SCALE:
        raise DataError(
            f"{dataset.name}: returns-to-go reach {float(found.reach):.3g} and their standard deviation is {scale:.3g} "
            f"(expected at most {MAX_FLOAT32_RETURN:g}, and at least {MIN_FLOAT32_SCALE:g}). Scale the rewards."
        )
    return scale


class ReturnBins:
    """Draws steps evenly over the range of returns, so that episodes with rare returns are sampled more often.

    The range is cut into bins of equal width. Each bin that holds an episode is drawn with equal chance, and in it each
    step of its episodes.
    """

    def __init__(self, returns: NDArray[np.float64], offsets: NDArray[np.int64], num_bins: int = 20):
        """Sort episodes into bins.

        returns: (E,), of each episode.
        offsets: (E + 1,), flat index of each episode's first step.
        """
        edges = np.linspace(returns.min(), returns.max(), num_bins + 1)[1:-1]
        bins = np.searchsorted(edges, returns, side="right")  # (E,), 0 to num_bins - 1
        order = np.argsort(bins, kind="stable")
        self._begin = offsets[:-1][order]  # (E,), flat index of the first step of each episode, by bin
        self._ends = np.cumsum(np.diff(offsets)[order])  # (E,), steps up to the end of each episode, by bin
        last = np.flatnonzero(np.append(np.diff(bins[order]) > 0, True))  # the last episode of each bin
        self._bin_ends = self._ends[last]  # (bins,), steps up to the end of each bin

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Flat indices of steps: (count,)."""
        chosen = generator.integers(0, len(self._bin_ends), count)
        low = np.where(chosen > 0, self._bin_ends[chosen - 1], 0)
        place = generator.integers(low, self._bin_ends[chosen])  # among the steps of all episodes, by bin
        episode = np.searchsorted(self._ends, place, side="right")
        before = np.where(episode > 0, self._ends[episode - 1], 0)
        return self._begin[episode] + place - before


class TrajectoryDataset:
    """A dataset ready to be sampled: flat tensors, and windows cut from them.

    Pictures are stored once, as recorded; a window's stacks of `frame_stack` pictures are made when it is cut.

    Args:
        dataset: what to sample from.
        context_length: steps of a window, K.
        device: where the tensors are.
        frame_stack: pictures in a stack.
        units: those of the model that reads the windows, `DecisionTransformer.units`.
        balanced: share of each batch that is drawn evenly over the range of the episodes' returns; see `ReturnBins`.
        from_start: share of each batch in which windows begin at the first step of their episode.
    """

    def __init__(
        self,
        dataset: Dataset,
        context_length: int,
        device: torch.device | str = "cpu",
        *,
        frame_stack: int = 1,
        balanced: float = 0.0,
        from_start: float = 0.0,
        units: ModelUnits | None = None,
    ):
        self.context_length = context_length
        self.balanced, self.from_start = balanced, from_start
        self._bins = ReturnBins(dataset.returns, dataset.offsets) if balanced else None
        self.num_steps, self._episode_starts = dataset.num_steps, dataset.offsets[:-1]
        units = units or ModelUnits()
        states = _in_model_units(dataset.observations, units.observations)
        actions = _in_model_units(dataset.actions, units.actions)
        self.states = {name: tensor_on(array, device) for name, array in states.items()}
        self.actions = {name: tensor_on(array, device) for name, array in actions.items()}
        self.returns_to_go = tensor_on(returns_to_go(dataset.rewards, dataset.offsets), device)  # float64
        self.offsets = tensor_on(dataset.offsets, device)
        self._window = torch.arange(context_length, device=device)
        self._frames = torch.arange(1 - frame_stack, 1, device=device)  # oldest first, the step's own last
        self._images = {name for name, leaf in leaf_spaces(dataset.observation_space).items() if is_image(leaf)}

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """First steps of a batch's windows: (B,), each step of each episode with equal chance, as in the paper's code.

        The share `balanced` of them is drawn over the range of returns instead. Of all these, the share `from_start` is
        moved back to the first step of its episode. The result depends only on the arguments.

        Args:
            seed: of the run.
            step: of training.
            batch_size: B.
        """
        digest = hashlib.blake2b(f"batch {seed} {step}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        first = generator.integers(0, self.num_steps, batch_size)
        if self._bins is not None:
            count = round(self.balanced * batch_size)
            first[:count] = self._bins.draw(generator, count)
        if moved := round(self.from_start * batch_size):
            some = np.linspace(0, batch_size, moved, endpoint=False).astype(np.int64)  # balanced windows and others
            episode = np.searchsorted(self._episode_starts, first[some], side="right") - 1
            first[some] = self._episode_starts[episode]
        return torch.from_numpy(first)

    def gather(self, first: Tensor) -> Batch:
        """A batch of windows of K steps, each cut at its episode's end.

        Args:
            first: the windows' first steps, as flat indices: (B,).
        """
        first = first.to(self.offsets.device)
        episode = torch.searchsorted(self.offsets, first, right=True) - 1  # (B,)
        begin, end = self.offsets[episode, None], self.offsets[episode + 1, None]  # each (B, 1)
        rows = first[:, None] + self._window  # (B, K)
        mask = rows < end
        rows = torch.minimum(rows, end - 1)  # padding repeats the last real step; the mask says that it is none
        frames = rows[..., None] + self._frames  # (B, K, F)
        stacks = torch.maximum(frames, begin[..., None])  # none from the episode before
        states = {}
        for name, tensor in self.states.items():
            states[name] = tensor[stacks] if name in self._images else tensor[rows]
        return Batch(
            states=states,
            actions={name: tensor[rows] for name, tensor in self.actions.items()},
            returns_to_go=self.returns_to_go[rows].float(),
            timesteps=rows - begin,
            mask=mask,
        )

    def episodes_of(self, first: Tensor) -> list[int]:
        """Numbers of the episodes that these windows come from, sorted."""
        episodes = torch.searchsorted(self.offsets.cpu(), first, right=True) - 1  # (B,)
        return sorted(set(episodes.tolist()))


@dataclass(frozen=True)
class Batches:
    """A run's batches by their step, 0, 1, ...: where their windows begin, and from that the windows."""

    data: TrajectoryDataset
    seed: int
    batch_size: int

    @staticmethod
    def of(dataset: Dataset, config: Config, units: ModelUnits, device: torch.device) -> "Batches":
        """The batches of a run that learns from a dataset. units: of its model. device: where the windows are."""
        data = TrajectoryDataset(
            dataset,
            config.model.context_length,
            device,
            frame_stack=config.model.frame_stack,
            balanced=config.data.balanced or 0.0,
            from_start=config.data.from_start,
            units=units,
        )
        return Batches(data, config.training.seed, config.training.batch_size)

    def starts(self, step: int) -> Tensor:
        """First steps of this process's share of the windows, on the CPU: (B,)."""
        return distributed.shard(self.data.indices(self.seed, step, self.batch_size)).contiguous()

    def __call__(self, step: int) -> Batch:
        """The windows themselves, on the data's device."""
        return self.data.gather(self.starts(step))

    def describe(self, step: int) -> str:
        """The episodes that the windows of all processes come from, in words."""
        episodes = self.data.episodes_of(self.data.indices(self.seed, step, self.batch_size))
        return f"episodes {episodes[:8]}{' and others' if len(episodes) > 8 else ''}"


def _in_model_units(leaves: Leaves, units: Mapping[str, Units]) -> Leaves:
    """The leaves, with those that have units converted to them.

    They are converted in chunks, because a file may back the array.
    """
    changed = dict(leaves)
    for name, unit in units.items():
        array = allocate_like(leaves[name].shape, np.float32, leaves[name])
        at = 0
        for rows in chunks(leaves[name]):
            array[at : at + len(rows)] = unit.encode(rows)
            at += len(rows)
        changed[name] = array
    return changed


def tensor_on(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """The array as a tensor, on the CPU without a copy: a file may back it that is larger than memory.

    Apple's GPUs have no float64, so what is of that type is in float32 there.
    """
    if torch.device(device).type == "mps" and array.dtype == np.float64:
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is not written to
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
