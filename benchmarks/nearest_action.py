"""The naive answer where there is no environment: the action that was recorded in the state most like the present one.

    python -m benchmarks.nearest_action door-human.npz --held-out 0.2 --seeds 0 1 2

The episodes are held out as `dt train` does it with that share and seed, and the error is measured as there, so the
figures stand beside those of its runs. Distance is Euclid's between states normalised by the episodes learned from.
"""

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional

from dt.config import DataConfig
from dt.encoders import ContinuousHead, Normalizer
from dt.validation import choose_episodes
from envs import Dataset, load


@dataclass(frozen=True, kw_only=True)
class Options:
    """Held-out error of the nearest recorded state's action."""

    dataset: Positional[str]
    """What `dt train` takes; states and actions are a Box each."""
    held_out: float = 0.1
    """Share of the episodes that is held out."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the split."""


def nearest_error(dataset: Dataset, held_out: float, seed: int) -> tuple[float, float]:
    """Squared error on the held-out steps, in the units of the training loss: of the nearest action, of the mean."""
    learned, unseen = choose_episodes(dataset, DataConfig(held_out=held_out), seed)
    assert unseen is not None
    states = Normalizer(learned.observations["value"].shape[1:])
    states.fit(learned.observations["value"])
    known, asked = (states(torch.from_numpy(each.observations["value"])).flatten(1) for each in (learned, unseen))
    nearest = torch.cat([torch.cdist(part, known).argmin(1) for part in asked.split(1_000)])  # (N,)
    head = ContinuousHead(dataset.action_space, 1)  # type: ignore[arg-type]
    head.fit(learned.actions["value"])
    actions = torch.from_numpy(learned.actions["value"])[nearest].flatten(1)  # (N, A)
    answers = (((actions - head.center) / head.scale).float(), head.constant(learned.actions["value"]))
    true = torch.from_numpy(unseen.actions["value"])[None]  # (1, N, *leaf)
    found, mean = (head.loss(answer.expand(1, true.shape[1], -1), true).mean().item() for answer in answers)
    return found, mean


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), description=__doc__)
    dataset = load(options.dataset)
    errors = [nearest_error(dataset, options.held_out, seed) for seed in options.seeds]
    for seed, (found, mean) in zip(options.seeds, errors, strict=True):
        print(f"seed {seed}: nearest {found:.4f}, mean action {mean:.4f}")
    print("all: nearest {:.4f}, mean action {:.4f}".format(*np.mean(errors, axis=0)))


if __name__ == "__main__":
    main()
