"""Hugging Face's Decision Transformer next to ours: the same windows, targets and environment seeds, different code.

`transformers.DecisionTransformerModel` is used as its authors' guide does (Beeching & Simonini 2022,
huggingface.co/blog/train-decision-transformers): normalised states, windows padded on the left, an attention mask,
the squared error of the real steps' actions. Episodes are read and played by our own `envs`, so the table that comes
out stands beside the one of `dt train`.

    pip install "decision-transformer[benchmark,mujoco]"
    python -m benchmarks.huggingface_baseline DATASET --recipe paper --output runs/huggingface
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gymnasium import spaces
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from dt.asking.alignment import rank_correlation
from dt.asking.targets import default_targets
from dt.config import FINAL_SEED, Config, ModelConfig
from dt.data import Batch, TrajectoryDataset, returns_to_go
from dt.encoders import Normalizer
from dt.evaluation import evaluate
from dt.learning.build import table_rows
from dt.learning.run import versions
from dt.presets import paper_hopper
from dt.sharing.report import results_document, score_table
from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from envs.errors import DataError
from envs.spaces import ROOT
from transformer.config import TrainingConfig
from transformer.files import write_json
from transformer.runs.schedule import learning_rate_at, step_seed
from transformer.runs.setup import pick_device

RECIPES = {"paper": paper_hopper, "ours": Config}
"""Where training and return scale come from: the paper, the same for its three robots, or our defaults."""

PADDED_ACTION = -10.0
"""What the guide puts where no action is; the attention mask hides it."""


class Baseline(nn.Module):
    """Their model, with the inputs' normaliser and return scale beside it, so that one file holds all of it."""

    def __init__(self, config: ModelConfig, dataset: Dataset):
        super().__init__()
        bounds = np.stack([dataset.action_space.low, dataset.action_space.high])
        states = dataset.observations[ROOT].reshape(dataset.num_steps, -1)
        self.normalizer = Normalizer(states.shape[1:])
        self.normalizer.fit(states)
        scale = config.return_scale or float(returns_to_go(dataset.rewards, dataset.offsets).std())
        self.register_buffer("return_scale", torch.tensor(scale))
        their_config = transformers.DecisionTransformerConfig(
            state_dim=states.shape[1],
            act_dim=bounds[0].size,
            hidden_size=config.width,
            max_ep_len=table_rows(config, dataset, dataset.environment),
            action_tanh=bool((np.abs(bounds) <= 1).all()),  # a tanh reaches no further
            n_layer=config.num_layers,
            n_head=config.num_heads,
            activation_function="relu" if config.activation == "relu" else "gelu_new",
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
            **dict.fromkeys(("bos_token_id", "eos_token_id")),  # no words here
        )
        self.model = transformers.DecisionTransformerModel(their_config)

    def forward(self, states: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        """Left-padded windows in raw units, (B, T, S), (B, T, A) and (B, T), to the actions of all steps, (B, T, A)."""
        output = self.model(
            states=self.normalizer(states),
            actions=actions,
            returns_to_go=(returns / self.return_scale)[..., None],
            timesteps=timesteps,
            attention_mask=mask.long(),
        )
        return output.action_preds.float()


def left_padded(batch: Batch) -> dict[str, Tensor]:
    """A batch of ours as the arguments of `Baseline`: real steps moved to the window's end, padding before them."""
    B, T = batch.mask.shape
    turn = batch.mask.sum(1, keepdim=True)  # (B, 1): the first padded step comes first
    steps = (torch.arange(T, device=batch.mask.device) + turn) % T  # (B, T)
    row, mask = torch.arange(B, device=batch.mask.device)[:, None], batch.mask.gather(1, steps)

    def vectors(x: Tensor, padding: float) -> Tensor:
        return torch.where(mask[..., None], x[row, steps].float().reshape(B, T, -1), padding)

    return {
        "states": vectors(batch.states[ROOT], 0.0),
        "actions": vectors(batch.actions[ROOT], PADDED_ACTION),
        "returns": torch.where(mask, batch.returns_to_go[row, steps], 0.0),
        "timesteps": torch.where(mask, batch.timesteps[row, steps], 0),
        "mask": mask,
    }


def make_optimizer(model: Baseline, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, as their guide uses it."""
    return torch.optim.AdamW(model.parameters(), weight_decay=training.weight_decay)


def train(
    model: Baseline,
    data: TrajectoryDataset,
    training: TrainingConfig,
    device: torch.device,
    steps: range | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """The steps of `transformer.runs.training.Trainer`, without its log, checkpoints and signals.

    steps: these only, with the optimiser that did those before them; None is all, with a new one.
    """
    optimizer = make_optimizer(model, training) if optimizer is None else optimizer
    model.train()
    steps = range(training.steps) if steps is None else steps
    for step in (bar := tqdm(steps, unit="step", desc="train", smoothing=0.05)):
        torch.manual_seed(step_seed(training.seed, step))  # for dropout
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, training)
        window = left_padded(data.gather(data.indices(training.seed, step, training.batch_size)))
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            predicted = model(**window)
        loss = nn.functional.mse_loss(predicted[window["mask"]], window["actions"][window["mask"]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip, error_if_nonfinite=True)
        optimizer.step()
        if step % training.log_every == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


class HuggingFacePolicy:
    """A `Policy` of `envs.simulate.rollout`: the guide's `get_action` for many environments, `rows` windows a call."""

    def __init__(self, model: Baseline, action_space: spaces.Box, context_length: int, rows: int = 16):
        self.model, self.action_space, self.K, self.rows = model.eval(), action_space, context_length, rows
        self.windows: dict[int, dict[str, np.ndarray]] = {}
        self.wanted: dict[int, float] = {}

    def begin(self, env: int, condition: float, seed: int) -> None:
        self.windows[env], self.wanted[env] = self._empty_window(), condition

    def receive(self, env: int, reward: float) -> None:
        self.wanted[env] -= reward

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        for env, observation in observations.items():
            self._observe(env, observation)
        environments, actions = list(observations), {}
        for start in range(0, len(environments), self.rows):
            chunk = environments[start : start + self.rows]
            for env, action in zip(chunk, self._ask([self.windows[env] for env in chunk]), strict=True):
                self.windows[env]["actions"][-1] = action
                actions[env] = action.reshape(self.action_space.shape).astype(self.action_space.dtype)
        return actions

    def _empty_window(self) -> dict[str, np.ndarray]:
        """Padding alone, the arguments of `Baseline` for one row; steps come in at the end."""
        config, K = self.model.model.config, self.K
        vectors = {"states": np.zeros((K, config.state_dim), "f4"), "actions": np.zeros((K, config.act_dim), "f4")}
        return {**vectors, "returns": np.zeros(K, "f4"), "timesteps": np.zeros(K, "i8"), "mask": np.zeros(K, "?")}

    def _observe(self, env: int, observation: Any) -> None:
        window = self.windows[env]
        now = window["timesteps"][-1] + window["mask"][-1]  # the step before plus one, or 0 where none was
        step = {"states": np.ravel(observation), "actions": 0, "timesteps": now, "mask": True}
        for name, value in (step | {"returns": self.wanted[env]}).items():
            window[name][:-1] = window[name][1:]
            window[name][-1] = value

    @torch.no_grad()
    def _ask(self, windows: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """Actions (N, A) for N windows. Each call has `rows` rows, so returns do not depend on num_envs."""
        filled = [*windows, *[self._empty_window()] * (self.rows - len(windows))]
        arrays = {name: np.stack([window[name] for window in filled]) for name in filled[0]}
        device = self.model.return_scale.device
        actions = self.model(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
        return actions[: len(windows), -1].cpu().numpy()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a Minari id, a Minari dataset's folder, or an .npz file")
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="training and return scale")
    parser.add_argument("--steps", type=int, help="gradient steps; the recipe's own number if not given")
    parser.add_argument("--learning-rate", type=float, help="its peak; the recipe's own if not given")
    parser.add_argument("--context-length", type=int, help="steps that it sees, K; the recipe's own if not given")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, batches and dropout; environments have their own"
    )
    parser.add_argument("--episodes", type=int, default=10, help="for each target")
    parser.add_argument("--target-return", type=float, nargs="+", metavar="G", help="quantiles if not given")
    parser.add_argument("--output", type=Path, required=True, help="a new folder, for model.safetensors, results.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--num-envs", type=int, default=16, help="environments stepped together")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    dataset, config, device = load(options.dataset), RECIPES[options.recipe](), pick_device("auto")
    if dataset.environment is None:
        raise DataError(f"{options.dataset}: names no environment to evaluate in")
    for space in (dataset.observation_space, dataset.action_space):
        if not isinstance(space, spaces.Box):
            raise DataError(f"{options.dataset}: {space}, but their model takes a Box alone")
    steps = config.training.steps if options.steps is None else options.steps
    rate = config.training.learning_rate if options.learning_rate is None else options.learning_rate
    seen = config.model.context_length if options.context_length is None else options.context_length
    config = replace(config, model=replace(config.model, context_length=seen))
    training = replace(config.training, steps=steps, learning_rate=rate, seed=options.seed, precision=options.precision)
    targets = options.target_return or default_targets(dataset.returns)
    options.output.mkdir(parents=True)  # refuses a folder that is there, before the hours of work
    torch.manual_seed(options.seed)
    model = Baseline(config.model, dataset).to(device)
    started = time.perf_counter()
    train(model, TrajectoryDataset(dataset, config.model.context_length, device), training, device)
    run = {"recipe": options.recipe, "steps": steps, "training_seed": options.seed, "precision": options.precision}
    run |= {"learning_rate": rate, "context_length": seen}
    run["seconds"] = round(time.perf_counter() - started, 3)
    save_file(model.state_dict(), options.output / "model.safetensors")
    policy = HuggingFacePolicy(model, dataset.action_space, config.model.context_length)
    with tqdm(total=len(targets) * options.episodes, unit="episode", desc="evaluate") as bar:
        results = evaluate(
            policy,
            dataset.environment,
            targets,
            episodes=options.episodes,
            seed=FINAL_SEED,
            num_envs=options.num_envs,
            reference=dataset.reference,
            on_episode=lambda _: bar.update(),
        )
    document = results_document(
        results,
        dataset=dataset.name,
        environment=dataset.environment,
        versions={**versions(), "transformers": transformers.__version__},
        reference=dataset.reference,
        checkpoint=f"step-{steps:08d}",
        seed=FINAL_SEED,
        played={"temperature": 0.0, "guidance": 1.0},
        found={},
    )
    write_json(options.output / "results.json", {**document, **run})
    print(f"{dataset.name} in {dataset.environment.id}, Hugging Face's model, recipe {options.recipe}, {steps} steps")
    print(score_table(results, dataset.reference))
    print(f"rank correlation of asked and achieved: {rank_correlation(results):.2f}")


if __name__ == "__main__":
    main()
