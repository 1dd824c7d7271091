"""Behaviour cloning by a plain network: the action of a step from its observation alone.

It is the peer of filtered cloning (arXiv 2507.10174): no sequence, no return, the best episodes only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from envs.datasets.dataset import Dataset
from envs.spaces import ROOT

STEPS, BATCH_SIZE, LEARNING_RATE, WIDTH = 100_000, 256, 3e-4, 256


class MlpClone(nn.Module):
    """Two hidden layers between normalised observations (B, S) and actions (B, A), or a score for each choice.

    observations: (N, S), for the mean and the scale of each number.
    action_space: a Box, or a Discrete.
    """

    def __init__(self, observations: Tensor, action_space: spaces.Space[Any]):
        super().__init__()
        self.register_buffer("mean", observations.mean(0))
        self.register_buffer("scale", observations.std(0).clamp(min=1e-6))
        self.discrete = isinstance(action_space, spaces.Discrete)
        outputs = int(action_space.n) if isinstance(action_space, spaces.Discrete) else int(np.prod(action_space.shape))
        sizes = (observations.shape[1], WIDTH, WIDTH)
        hidden = [layer for i in range(2) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))

    def forward(self, observations: Tensor) -> Tensor:
        output: Tensor = self.layers((observations - self.mean) / self.scale)
        return output


def train(dataset: Dataset, seed: int, steps: int = STEPS) -> MlpClone:
    """A clone of all episodes of a dataset, with flat observations and with a Box or a Discrete of actions."""
    torch.manual_seed(seed)
    observations = torch.from_numpy(_flat(dataset.observations[ROOT]))
    model = MlpClone(observations, dataset.action_space)
    actions = torch.from_numpy(np.asarray(dataset.actions[ROOT]))
    actions = actions.long() - int(dataset.action_space.start) if model.discrete else actions.float().flatten(1)
    loss_of = nn.functional.cross_entropy if model.discrete else nn.functional.mse_loss
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    draws = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), unit="step", desc="train"):
        rows_of_batch = torch.randint(len(observations), (BATCH_SIZE,), generator=draws)
        loss = loss_of(model(observations[rows_of_batch]), actions[rows_of_batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval()


def _flat(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows, np.float32).reshape(len(rows), -1)


class MlpPolicy:
    """A `Policy` of `envs.simulate.rollout`. It computes one observation at a time, so that returns do not depend on
    the number of environments."""

    def __init__(self, model: MlpClone, action_space: spaces.Space[Any]):
        self.model, self.action_space = model, action_space

    def begin(self, env: int, condition: Any, seed: int) -> None:
        """Nothing is kept from step to step."""

    def receive(self, env: int, reward: float) -> None:
        """Rewards are not used."""

    @torch.no_grad()
    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        return {env: self._action(observation) for env, observation in observations.items()}

    def _action(self, observation: Any) -> Any:
        output = self.model(torch.from_numpy(_flat(np.asarray(observation)[None])))[0]
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return space.start + int(output.argmax())
        assert isinstance(space, spaces.Box)
        return np.clip(output.numpy().reshape(space.shape), space.low, space.high).astype(space.dtype)
