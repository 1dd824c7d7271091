"""How well a model predicts actions in episodes that it did not learn from: the score of data without an environment.

Trajectories are split, never steps: neighbouring steps are so alike that a step held out of the middle of a trajectory
would be all but known. Next to each error is that of the best constant answer, which knows no state.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dt.config import DataConfig
from dt.data import Batch, TrajectoryDataset
from dt.encoders import ContinuousHead
from dt.model import DecisionTransformer
from envs.datasets.dataset import Dataset
from envs.datasets.selection import best_episodes, hold_out, take
from transformer.runs.distributed import in_float64

HELD_OUT = 0.1
"""Share of the episodes that is held out where there is no environment to play in and nothing else is set."""

MOST_STEPS = 4096
"""Steps that are predicted, spread evenly over the held-out ones: enough for three digits, and soon done."""

QUARTERS = 4
"""Parts of the held-out episodes, by their returns; each part's error is shown."""

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
    accuracy: float | None = None  # share of choices predicted, where there are choices
    baseline_accuracy: float | None = None  # of always the most frequent value
    change: float | None = None
    """How much the answer changes from a low target return to a high one, the 5 and 95 % quantiles of the returns that
    were learned from: root mean square of the change, in the units of the error; of choices the share that differ. 0
    means that the return is ignored. None where the model is not conditioned on it."""


@dataclass(frozen=True)
class ReturnBin:
    """The error on the held-out episodes with returns from `low` to `high`."""

    low: float
    high: float
    episodes: int
    loss: float


@dataclass(frozen=True)
class HeldOutError:
    """The error on held-out episodes; `loss` is what training minimises, the sum over the leaves."""

    episodes: int
    steps: int
    loss: float
    leaves: tuple[LeafError, ...]
    by_return: tuple[ReturnBin, ...] = ()

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
    """Held-out episodes, ready to be predicted by a model.

    Each step is predicted from the K steps up to it, as a policy sees them, with the return-to-go that was recorded.
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
        self.episode_of = np.searchsorted(held_out.offsets, steps, side="right") - 1  # (N,)
        self.returns = held_out.returns  # (E,)
        self.low_and_high = np.quantile(learned.returns, (0.05, 0.95)) if config.uses_returns else None
        self.constants = {name: head.constant(learned.actions[name]) for name, head in self.heads.items()}  # type: ignore[operator]

    @torch.no_grad()
    def measure(self) -> HeldOutError:
        """The error of the model as it stands, which is left in evaluation mode."""
        self.model.eval()
        sums = {name: in_float64(torch.zeros(4, device=self.device)) for name in self.heads}
        changes = {name: in_float64(torch.zeros((), device=self.device)) for name in self.heads}
        losses = []  # of each step
        for start in range(0, len(self.at), ROWS):
            batch = self.data.gather(self.first[start : start + ROWS])
            at = self.at[start : start + ROWS, None].to(self.device)  # (B, 1)
            outputs = self.model.predict(batch, at)
            rows = torch.arange(len(at), device=self.device)[:, None]  # (B, 1)
            loss = in_float64(torch.zeros(len(at), device=self.device))
            for name, head in self.heads.items():
                actions = batch.actions[name][rows, at]  # (B, 1, *leaf)
                constant = self.constants[name].expand_as(outputs[name])
                sums[name] += torch.stack(
                    [_sums(head, output, actions) for output in (outputs[name], constant)]
                ).ravel()
                loss += in_float64(head.loss(outputs[name], actions))[:, 0]  # type: ignore[operator]
            losses.append(loss.cpu())
            for name, change in self._changes(batch, at, slice(start, start + ROWS)).items():
                changes[name] += change
        leaves = tuple(
            _leaf_error(name, self.heads[name], total / len(self.at), self._change(name, changes[name]))
            for name, total in sums.items()
        )
        by_return = self._by_return(torch.cat(losses).numpy())
        return HeldOutError(self.episodes, len(self.at), sum(leaf.error for leaf in leaves), leaves, by_return)

    def _changes(self, batch: Batch, at: Tensor, part: slice) -> dict[str, Tensor]:
        """Changes of the answers from the low target return to the high one, summed over the steps of a batch.

        Numbers: squared change. Choices: 1 where the likeliest differ. Nothing where the model is not conditioned.
        """
        if self.low_and_high is None:
            return {}
        own = torch.from_numpy(self.returns[self.episode_of[part]]).to(batch.returns_to_go)[:, None]  # (B, 1)
        low, high = (
            self.model.predict(replace(batch, returns_to_go=batch.returns_to_go + (target - own)), at)
            for target in self.low_and_high.tolist()
        )
        return {name: _change(head, low[name], high[name]) for name, head in self.heads.items()}

    def _change(self, name: str, total: Tensor) -> float | None:
        """A leaf's change from its sum over all steps."""
        if self.low_and_high is None:
            return None
        mean = float(total) / len(self.at)
        return math.sqrt(mean) if isinstance(self.heads[name], ContinuousHead) else mean

    def _by_return(self, losses: NDArray[np.float64]) -> tuple[ReturnBin, ...]:
        """The mean loss of each quarter of the held-out episodes, by their returns.

        losses: (N,), of each step that was measured.
        """
        edges = np.unique(np.quantile(self.returns, np.linspace(0, 1, QUARTERS + 1)))
        bin_of = np.clip(np.searchsorted(edges, self.returns, side="right") - 1, 0, max(0, len(edges) - 2))  # (E,)
        bins = []
        for number in np.unique(bin_of):
            returns, steps = self.returns[bin_of == number], bin_of[self.episode_of] == number
            if steps.any():
                mean = float(losses[steps].mean())
                bins.append(ReturnBin(float(returns.min()), float(returns.max()), len(returns), mean))
        return tuple(bins)


def _change(head: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """How far two outputs (B, 1, *outputs) are apart, summed over B."""
    if isinstance(head, ContinuousHead):
        return in_float64(high - low).square().flatten(1).mean(1).sum()
    differ = head.choose(high[:, 0]) != head.choose(low[:, 0])  # type: ignore[operator]  # (B, *leaf)
    return in_float64(differ).reshape(len(differ), -1).mean(1).sum()


def _sums(head: nn.Module, output: Tensor, actions: Tensor) -> Tensor:
    """Error of a head's output, and share of the choices that its likeliest values hit, summed over the steps: (2,)."""
    error = in_float64(head.loss(output, actions)).sum()  # type: ignore[operator]
    if isinstance(head, ContinuousHead):
        return torch.stack([error, torch.zeros_like(error)])
    hits = head.choose(output[:, 0]) == actions[:, 0]  # type: ignore[operator]  # (B, *leaf)
    return torch.stack([error, in_float64(hits).reshape(len(hits), -1).mean(1).sum()])


def _leaf_error(name: str, head: nn.Module, means: Tensor, change: float | None) -> LeafError:
    error, accuracy, baseline, baseline_accuracy = means.tolist()
    if isinstance(head, ContinuousHead):
        return LeafError(name, "squared error", error, baseline, change=change)
    return LeafError(name, "cross-entropy", error, baseline, accuracy, baseline_accuracy, change)


def error_table(result: HeldOutError) -> str:
    """One line for each leaf of the actions; below it what is measured."""
    lines = [
        f"{'action':>16} {'measure':>14} {'error':>9} {'constant':>9} {'accuracy':>9} {'constant':>9} {'change':>9}"
    ]
    for leaf in result.leaves:
        shares = [leaf.accuracy, leaf.baseline_accuracy]
        cells = " ".join(f"{'-' if share is None else f'{share:.1%}':>9}" for share in shares)
        change = "-" if leaf.change is None else f"{leaf.change:.3f}"
        lines.append(f"{leaf.leaf:>16} {leaf.measure:>14} {leaf.error:>9.4f} {leaf.baseline:>9.4f} {cells} {change:>9}")
    counts = f"{result.steps} steps of {result.episodes} held-out episodes"
    lines.append(f"on {counts}; constant: the best answer that knows no state")
    if any(leaf.change is not None for leaf in result.leaves):
        lines.append("change: of the action, from a low to a high target return; 0 means that the return is ignored")
    if len(result.by_return) > 1:
        lines.append(f"{'returns from':>16} {'to':>14} {'episodes':>9} {'error':>9}")
        lines += [f"{b.low:>16.5g} {b.high:>14.5g} {b.episodes:>9} {b.loss:>9.4f}" for b in result.by_return]
    return "\n".join(lines)
