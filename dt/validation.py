"""How well a model foretells actions in episodes that it did not learn from: the score of data without an environment.

Trajectories are split, never steps: neighbouring steps are so alike that a step held out of the middle of a trajectory
would be all but known. Beside each error stands that of the best constant answer, which knows no state.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dt.config import DataConfig
from dt.data import TrajectoryDataset
from dt.encoders import ContinuousHead
from dt.model import DecisionTransformer
from envs.datasets.dataset import Dataset
from envs.datasets.selection import best_episodes, hold_out, take

HELD_OUT = 0.1
"""Share of the episodes that is held out where there is no environment to play in and nobody says otherwise."""

MOST_STEPS = 4096
"""Steps that are foretold, spread evenly over the held-out ones: enough for three digits, and soon done."""

ROWS = 64
"""Windows in each call of the model."""


@dataclass(frozen=True)
class LeafError:
    """The error of one leaf of the actions: the model's, and that of the best constant answer.

    Squared error of numbers is in the units of the training loss: half the width of their bounds, or the data's
    deviation where there are none. Cross-entropy, summed over the leaf's choices, is in nats.
    """

    leaf: str
    measure: str  # "squared error" or "cross-entropy"
    error: float
    baseline: float  # always the mean action, or the frequencies, of the episodes learned from
    accuracy: float | None = None  # share of choices foretold, where there are choices
    baseline_accuracy: float | None = None  # of always the most frequent value


@dataclass(frozen=True)
class HeldOutError:
    """The error on held-out episodes; `loss` is what training minimises, the sum over the leaves."""

    episodes: int
    steps: int
    loss: float
    leaves: tuple[LeafError, ...]

    def to_json(self) -> dict[str, Any]:
        """As a run's results have it."""
        return asdict(self)


def choose_episodes(dataset: Dataset, config: DataConfig, seed: int) -> tuple[Dataset, Dataset | None]:
    """The episodes that a run learns from, and those that it holds out: a share of the same kind of episodes."""
    if config.top_fraction < 1:
        why = f"the best {config.top_fraction:g} of the steps"
        dataset = take(dataset, best_episodes(dataset, config.top_fraction), why)
    if not config.held_out:
        return dataset, None
    return hold_out(dataset, config.held_out, seed)


class Validation:
    """Held-out episodes, ready to be foretold by a model.

    Each step is foretold from the K steps up to it, as a policy sees them, with the return-to-go that was recorded.
    """

    def __init__(self, model: DecisionTransformer, learned: Dataset, held_out: Dataset):
        self.model, self.episodes = model, held_out.num_episodes
        self.device, config = model.return_scale.device, model.config
        self.data = TrajectoryDataset(
            held_out, config.context_length, self.device, frame_stack=config.frame_stack, units=model.units
        )
        steps = np.linspace(0, held_out.num_steps - 1, min(held_out.num_steps, MOST_STEPS)).round().astype(np.int64)
        begin = held_out.offsets[np.searchsorted(held_out.offsets, steps, side="right") - 1]  # of each one's episode
        self.first = torch.from_numpy(np.maximum(steps - config.context_length + 1, begin))  # (N,), of its window
        self.at = torch.from_numpy(steps) - self.first  # (N,), its place in there
        self.heads = dict(zip(model.action_leaves, model.heads, strict=True))
        self.constants = {name: head.constant(learned.actions[name]) for name, head in self.heads.items()}  # type: ignore[operator]

    @torch.no_grad()
    def measure(self) -> HeldOutError:
        """The error of the model as it stands, which is left in evaluation mode."""
        self.model.eval()
        sums = {name: torch.zeros(4, dtype=torch.float64, device=self.device) for name in self.heads}
        for start in range(0, len(self.at), ROWS):
            batch = self.data.gather(self.first[start : start + ROWS])
            at = self.at[start : start + ROWS, None].to(self.device)  # (B, 1)
            outputs = self.model.predict(batch, at)
            rows = torch.arange(len(at), device=self.device)[:, None]  # (B, 1)
            for name, head in self.heads.items():
                actions = batch.actions[name][rows, at]  # (B, 1, *leaf)
                constant = self.constants[name].expand_as(outputs[name])
                sums[name] += torch.stack(
                    [_sums(head, output, actions) for output in (outputs[name], constant)]
                ).ravel()
        leaves = tuple(_leaf_error(name, self.heads[name], total / len(self.at)) for name, total in sums.items())
        return HeldOutError(self.episodes, len(self.at), sum(leaf.error for leaf in leaves), leaves)


def _sums(head: nn.Module, output: Tensor, actions: Tensor) -> Tensor:
    """Error of a head's output, and share of the choices that its likeliest values hit, summed over the steps: (2,)."""
    error = head.loss(output, actions).double().sum()  # type: ignore[operator]
    if isinstance(head, ContinuousHead):
        return torch.stack([error, torch.zeros_like(error)])
    hits = head.choose(output[:, 0]) == actions[:, 0]  # type: ignore[operator]  # (B, *leaf)
    return torch.stack([error, hits.double().reshape(len(hits), -1).mean(1).sum()])


def _leaf_error(name: str, head: nn.Module, means: Tensor) -> LeafError:
    error, accuracy, baseline, baseline_accuracy = means.tolist()
    if isinstance(head, ContinuousHead):
        return LeafError(name, "squared error", error, baseline)
    return LeafError(name, "cross-entropy", error, baseline, accuracy, baseline_accuracy)


def error_table(result: HeldOutError) -> str:
    """One line for each leaf of the actions; below it what is measured."""
    lines = [f"{'action':>16} {'measure':>14} {'error':>9} {'constant':>9} {'accuracy':>9} {'constant':>9}"]
    for leaf in result.leaves:
        shares = [leaf.accuracy, leaf.baseline_accuracy]
        cells = " ".join(f"{'-' if share is None else f'{share:.1%}':>9}" for share in shares)
        lines.append(f"{leaf.leaf:>16} {leaf.measure:>14} {leaf.error:>9.4f} {leaf.baseline:>9.4f} {cells}")
    counts = f"{result.steps} steps of {result.episodes} held-out episodes"
    lines.append(f"on {counts}; beside each, the best answer that knows no state")
    return "\n".join(lines)
