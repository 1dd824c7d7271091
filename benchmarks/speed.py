"""How fast we are compared with our peers: the same work by both, turn by turn in one process, one thread, medians.

Peers get the same threads, dropout, optimiser with its flags and gradient clip, and their fast attention; a batch is at
hand before the clock starts. The ratio is of the medians on the wall. The one of processor time comes with it, since it
suffers less where other programs run. A floor is what held on the slowest of three processors. To add a row, write a
function that returns the two pieces of work and put `@row` on it.

    pip install "decision-transformer[benchmark,mujoco]"
    python -m benchmarks.speed [--quick] [--only training evaluation] [--json speed.json]

and with d3rlpy in an environment of its own, since it pins an old Gymnasium:

    pip install d3rlpy "decision-transformer[benchmark,mujoco]"
    python -m benchmarks.speed --only d3rlpy
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import minari
import numpy as np
import torch
import transformers
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.gym import hardware
from benchmarks.huggingface_baseline import Baseline, HuggingFacePolicy, left_padded, train
from dt.config import Config, DataConfig, ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.learning.build import build_model, table_rows
from dt.learning.train_many import StackedTrainers
from dt.learning.training import prepare
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from envs.datasets.cache import FRESH
from envs.datasets.dataset import Dataset, Episode
from envs.datasets.loading import load
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, Policy, rollout
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import ROOT
from transformer.config import LanguageConfig, TrainingConfig
from transformer.errors import CompilerError
from transformer.files import write_json
from transformer.generation import Sampling, generate
from transformer.gpt2 import save_gpt2
from transformer.language import LanguageModel
from transformer.runs.setup import multiplies_bf16
from transformer.runs.training import Trainer
from transformer.text.training import next_token_loss

Work = Callable[[], int]
"""Does one piece of work and says how many units it was: steps, tokens, ..."""

Make = Callable[[], tuple[Work, Work]]
"""Makes our work and the peer's. What cannot be done on this machine raises `Unavailable`."""

CPU = torch.device("cpu")


class Unavailable(Exception):  # noqa: N818 (it is no error)
    """A row that this machine cannot measure, and why."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, beside whom, and how many times as fast we want to be."""

    group: str
    measure: str
    unit: str  # what is counted in a second
    peer_name: str
    goal: float
    floor: float | None  # what must hold in every run
    make: Make


ROWS: list[Row] = []


def row(
    group: str, measure: str, *, unit: str, peer: str, goal: float, floor: float | None = None
) -> Callable[[Make], Make]:
    """Put a function that returns (our work, the peer's) into the table."""

    def add(make: Make) -> Make:
        ROWS.append(Row(group, measure, unit, peer, goal, floor, make))
        return make

    return add


# Language: nanoGPT's small setting, equal weights.

LANGUAGE = LanguageConfig(num_layers=4, num_heads=4, activation="gelu", dropout=0.0, vocabulary_size=65)
"""Width 128, context 64; the 65 characters of Tiny Shakespeare."""


def language_models() -> tuple[LanguageModel, Any]:
    """Our language model, and Hugging Face's GPT-2 with the same weights."""
    torch.manual_seed(0)
    ours = LanguageModel(LANGUAGE)
    with tempfile.TemporaryDirectory() as folder:
        save_gpt2(ours, Path(folder) / "gpt2")
        theirs = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "gpt2", attn_implementation="sdpa")
    return ours, theirs


def training_step(
    model: nn.Module, loss: Callable[[Any], tuple[Tensor, Tensor]], batch: Any, slices: Any = None, **settings: Any
) -> Work:
    """One step of our training loop, whoever's model it is."""
    config = TrainingConfig(device="cpu", **settings)
    trainer = Trainer(model, lambda step: batch, config, Path("runs/none"), {}, loss=loss, slices=slices)

    def step() -> int:
        trainer._one_step()
        trainer.step += 1
        return 1

    return step


def next_token_training(precision: str) -> tuple[Work, Work]:
    """A step of training on one batch, both in this precision."""
    if precision == "bf16" and not multiplies_bf16(CPU):
        raise Unavailable("this processor has no bf16 products")
    ours, theirs = language_models()
    window = torch.randint(LANGUAGE.vocabulary_size, (12, LANGUAGE.context_length + 1))
    theirs.config.use_cache = False  # on by default, and of no use here
    tokens, following = window[:, :-1], window[:, 1:]
    return (
        training_step(ours, lambda x: next_token_loss(ours(x), following), tokens, precision=precision),
        training_step(theirs, lambda x: next_token_loss(theirs(x).logits, following), tokens, precision=precision),
    )


@row("language", "training step, float32, batch 12", unit="steps", peer="Hugging Face GPT2LMHeadModel", goal=1.3)
def language_float32() -> tuple[Work, Work]:
    return next_token_training("float32")


@row("language", "training step, bf16, batch 12", unit="steps", peer="the same, bf16 too", goal=1.3)
def language_bf16() -> tuple[Work, Work]:
    return next_token_training("bf16")


def generation(num_sequences: int) -> tuple[Work, Work]:
    """Prompts of 4 tokens written on, greedily, until the context is full."""
    ours, theirs = language_models()
    prompts = torch.randint(LANGUAGE.vocabulary_size, (num_sequences, 4))
    new_tokens = LANGUAGE.context_length - prompts.shape[1]

    def we() -> list[list[int]]:
        return generate(ours, prompts.tolist(), new_tokens, Sampling(temperature=0))

    def they() -> list[list[int]]:
        written = theirs.generate(
            prompts, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(prompts)
        )
        return written.tolist()

    assert we() == they(), "not the same tokens, so not the same work"
    return (lambda: len(we()) * new_tokens), (lambda: len(they()) * new_tokens)


@row("language", "cached generation, one sequence", unit="tokens", peer="Hugging Face generate", goal=2.5)
def generate_one() -> tuple[Work, Work]:
    return generation(1)


@row("language", "cached generation, sixteen sequences", unit="tokens", peer="Hugging Face generate", goal=1.8)
def generate_sixteen() -> tuple[Work, Work]:
    return generation(16)


# The Decision Transformer: Hopper, K = 20, width 128, 3 layers, 1 head, dropout 0.1. Theirs is the token model.


def decision_models(conditioning: str) -> tuple[Dataset, DecisionTransformer, Baseline]:
    """Our model and Hugging Face's of the same size, for the dataset that ships."""
    dataset = load("hopper/replay-v0")
    config = Config(model=ModelConfig(conditioning=conditioning))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return dataset, build_model(dataset, config, None), Baseline(config.model, dataset)


def decision_training(
    conditioning: str, precision: str, batch_size: int, ours_compiled: bool = False, theirs_compiled: bool = False
) -> tuple[Work, Work]:
    """A step of training on one batch, theirs in float32."""
    if precision == "bf16" and not multiplies_bf16(CPU):
        raise Unavailable("this processor has no bf16 products")
    dataset, ours, theirs = decision_models(conditioning)
    data = TrajectoryDataset(dataset, ours.config.context_length)
    batch = data.gather(data.indices(0, 0, batch_size))
    window = left_padded(batch)

    try:
        return (
            training_step(ours, ours, batch, Batch.slices, precision=precision, compile=ours_compiled),
            training_step(theirs, partial(their_loss, theirs), window, compile=theirs_compiled),
        )
    except CompilerError as error:
        raise Unavailable(str(error)) from None


def their_loss(model: nn.Module, window: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A peer's squared error, summed over the real steps of left-padded windows, and their number."""
    error = model(**window)[window["mask"]] - window["actions"][window["mask"]]  # (steps, A)
    return error.square().mean(-1).sum(), window["mask"].sum()


@row("training", "token, float32, batch 64", unit="steps", peer="Hugging Face", goal=1.5, floor=1.25)
def token_float32() -> tuple[Work, Work]:
    return decision_training("token", "float32", 64)


@row("training", "decoupled, float32, batch 64", unit="steps", peer="Hugging Face", goal=2.0)
def decoupled_float32() -> tuple[Work, Work]:
    return decision_training("decoupled", "float32", 64)


@row("training", "single, float32, batch 64", unit="steps", peer="Hugging Face", goal=3.0)
def single_float32() -> tuple[Work, Work]:
    return decision_training("single", "float32", 64)


@row("training", "token, bf16, batch 64", unit="steps", peer="Hugging Face, float32", goal=2.5, floor=2.0)
def token_bf16() -> tuple[Work, Work]:
    return decision_training("token", "bf16", 64)


@row("training", "token, bf16, batch 1,024", unit="steps", peer="Hugging Face, float32", goal=3.5, floor=2.6)
def token_bf16_large() -> tuple[Work, Work]:
    return decision_training("token", "bf16", 1024)


@row("training", "decoupled, bf16, batch 64", unit="steps", peer="Hugging Face, float32", goal=3.8, floor=2.6)
def decoupled_bf16() -> tuple[Work, Work]:
    return decision_training("decoupled", "bf16", 64)


@row("training", "single, bf16, batch 64", unit="steps", peer="Hugging Face, float32", goal=6.0, floor=4.0)
def single_bf16() -> tuple[Work, Work]:
    return decision_training("single", "bf16", 64)


@row("training", "token, float32, batch 64, compiled", unit="steps", peer="Hugging Face, compiled", goal=1.5)
def token_float32_compiled() -> tuple[Work, Work]:
    return decision_training("token", "float32", 64, ours_compiled=True, theirs_compiled=True)


@row("training", "token, bf16, batch 64, compiled", unit="steps", peer="Hugging Face, float32", goal=2.5, floor=2.0)
def token_bf16_compiled() -> tuple[Work, Work]:
    return decision_training("token", "bf16", 64, ours_compiled=True)


@row("training", "token, bf16, batch 1,024, compiled", unit="steps", peer="Hugging Face, float32", goal=3.5, floor=2.6)
def token_bf16_large_compiled() -> tuple[Work, Work]:
    return decision_training("token", "bf16", 1024, ours_compiled=True)


@row("training", "decoupled, bf16, batch 64, compiled", unit="steps", peer="Hugging Face, float32", goal=3.8, floor=2.6)
def decoupled_bf16_compiled() -> tuple[Work, Work]:
    return decision_training("decoupled", "bf16", 64, ours_compiled=True)


@row("training", "single, bf16, batch 64, compiled", unit="steps", peer="Hugging Face, float32", goal=6.0, floor=4.0)
def single_bf16_compiled() -> tuple[Work, Work]:
    return decision_training("single", "bf16", 64, ours_compiled=True)


# d3rlpy 2.8 pins Gymnasium 1.0, so its row is measured in an environment of its own.


class D3rlpy(nn.Module):
    """d3rlpy's Decision Transformer of the same size, with the arguments of `Baseline`; it normalises nothing."""

    def __init__(self, config: ModelConfig, dataset: Dataset):
        super().__init__()
        try:
            from d3rlpy import PositionEncodingType
            from d3rlpy.models import VectorEncoderFactory
            from d3rlpy.models.builders import create_continuous_decision_transformer
        except ImportError:
            raise Unavailable("d3rlpy is not installed") from None
        self.model = create_continuous_decision_transformer(
            dataset.observations[ROOT].shape[1:],
            dataset.actions[ROOT].shape[1],
            VectorEncoderFactory([config.width], exclude_last_activation=True),  # one linear map; theirs is 256 wide
            num_heads=config.num_heads,
            max_timestep=table_rows(config, dataset, dataset.environment),
            num_layers=config.num_layers,
            context_size=config.context_length,
            **dict.fromkeys(("attn_dropout", "resid_dropout", "embed_dropout"), config.dropout),
            activation_type=config.activation,
            position_encoding_type=PositionEncodingType.SIMPLE,
            device="cpu",
            enable_ddp=False,
        )

    def forward(self, states: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        """(B, T, S), (B, T, A) and (B, T), to the actions of all steps, (B, T, A)."""
        predicted: Tensor = self.model(states, actions, returns[..., None], timesteps, 1 - mask.float())
        return predicted


@row("d3rlpy", "token, float32, batch 64", unit="steps", peer="d3rlpy", goal=1.5)
def token_beside_d3rlpy() -> tuple[Work, Work]:
    dataset, ours, _ = decision_models("token")
    theirs = D3rlpy(ours.config, dataset)
    data = TrajectoryDataset(dataset, ours.config.context_length)
    batch = data.gather(data.indices(0, 0, 64))
    return training_step(ours, ours, batch), training_step(theirs, partial(their_loss, theirs), left_padded(batch))


# Many runs as one program, beside the same runs one after the other.


def runs_to_train(
    conditioning: str, num_runs: int, batch_size: int, device: str = "cpu", **shape: int
) -> list[Trainer]:
    """New runs on the dataset that ships, one for each seed, in the precision that the device is best at."""
    dataset = replace(load("hopper/replay-v0"), environment=None)
    model = ModelConfig(conditioning=conditioning, **shape)  # type: ignore[arg-type]
    precision: Literal["bf16", "float32"] = "bf16" if device == "cuda" else "float32"
    settings = TrainingConfig(batch_size=batch_size, device=device, precision=precision)
    configs = [
        Config(model=model, training=replace(settings, seed=seed), data=DataConfig(held_out=0.0))
        for seed in range(num_runs)
    ]
    return [prepare(dataset, config, Path("runs/none")) for config in configs]


def many_runs(conditioning: str, num_runs: int, batch_size: int, **shape: int) -> tuple[Work, Work]:
    """A step of every run: stacked, and one by one."""
    alone = runs_to_train(conditioning, num_runs, batch_size, **shape)
    stack = StackedTrainers(runs_to_train(conditioning, num_runs, batch_size, **shape))

    def together() -> int:
        stack._one_step()
        stack.step += 1
        return num_runs

    def one_by_one() -> int:
        for trainer in alone:
            trainer._one_step()
            trainer.step += 1
        return num_runs

    return together, one_by_one


@row("many", "8 small runs, decoupled", unit="steps", peer="the same, one by one", goal=1.5)
def many_small() -> tuple[Work, Work]:
    return many_runs("decoupled", 8, 16, width=32, num_layers=2, context_length=10)


@row("many", "4 runs, decoupled, batch 64", unit="steps", peer="the same, one by one", goal=1.0)
def many_decoupled() -> tuple[Work, Work]:
    return many_runs("decoupled", 4, 64)


@row("many", "4 runs, token, batch 64", unit="steps", peer="the same, one by one", goal=1.0)
def many_token() -> tuple[Work, Work]:
    return many_runs("token", 4, 64)


# On a GPU: the step as a graph, the data and the windows on the device, beside Hugging Face's whole training loop.


def stacked(num_runs: int, device: torch.device, steps: int = 50) -> tuple[Work, Work]:
    """So many steps of runs of the paper's size at once, and as many of theirs, both in the device's best precision."""
    stack = StackedTrainers(runs_to_train("token", num_runs, 64, device.type))
    dataset, _, theirs = decision_models("token")
    data, config = TrajectoryDataset(dataset, 20, device), replace(stack.config, steps=steps)
    theirs.to(device)

    def we() -> int:
        for _ in range(steps):
            stack._one_step()
            stack.step += 1
        stack.losses.tolist()  # which waits for the device
        return num_runs * steps

    def they() -> int:
        train(theirs, data, config, device)
        next(theirs.parameters()).sum().item()
        return steps

    return we, they


def on_gpu(num_runs: int) -> tuple[Work, Work]:
    """`stacked` where there is a GPU."""
    if not torch.cuda.is_available():
        raise Unavailable("this machine has no GPU")
    return stacked(num_runs, torch.device("cuda"))


@row("gpu", "one run, token, bf16, batch 64", unit="steps", peer="Hugging Face's loop, bf16", goal=10.0)
def gpu_one() -> tuple[Work, Work]:
    return on_gpu(1)


@row("gpu", "27 runs at once, token, bf16, batch 64", unit="steps", peer="Hugging Face's loop, bf16", goal=10.0)
def gpu_many() -> tuple[Work, Work]:
    return on_gpu(27)


# Evaluation in Hopper-v5. Networks that have learned nothing fall soon, so the environment goes on after a fall: then
# all episodes have one length.


def play(policy: Policy, num_envs: int) -> Work:
    """One episode in each of so many environments, which are made before the clock starts."""
    spec = EnvironmentSpec("Hopper-v5", {"terminate_when_unhealthy": False}, max_episode_steps=60)
    environments = Environments(spec.make, num_envs)
    requests = [EpisodeRequest(seed, 1000.0) for seed in range(num_envs)]
    return lambda: sum(episode.length for episode in rollout(environments, policy, requests))


def acting(**how: Any) -> tuple[Work, Work]:
    """Sixteen environments of ours, and one of theirs that recomputes its window at each step, as their guide does."""
    if how.get("precision") == "bf16" and not multiplies_bf16(CPU):
        raise Unavailable("this processor has no bf16 products")
    dataset, ours, theirs = decision_models("token")
    alone = HuggingFacePolicy(theirs, dataset.action_space, ours.config.context_length, rows=1)
    return play(ReturnConditionedPolicy(ours, **how), 16), play(alone, 1)


@row(
    "evaluation",
    "exact window, 16 environments",
    unit="steps",
    peer="Hugging Face, one environment",
    goal=5.0,
    floor=3.5,
)
def exact_window() -> tuple[Work, Work]:
    return acting()


@row(
    "evaluation", "exact window, bf16", unit="steps", peer="Hugging Face, one environment, float32", goal=7.0, floor=5.0
)
def exact_window_bf16() -> tuple[Work, Work]:
    return acting(precision="bf16")


@row("evaluation", "cached, 16 environments", unit="steps", peer="Hugging Face, one environment", goal=12.0, floor=8.0)
def cached_window() -> tuple[Work, Work]:
    return acting(cached=True)


# Loading: the dataset that ships, written by Minari itself, against Minari's own way of reading it.


def reading(layout: str, cache: Literal["use", "off"]) -> tuple[Work, Work]:
    """Every number of a Minari dataset, ours checked and put into flat arrays."""
    shipped = load("hopper/replay-v0")
    root = tempfile.TemporaryDirectory()
    source = Path(root.name) / "replay"
    os.environ["DECISION_TRANSFORMER_CACHE"] = f"{root.name}/cache"
    (source / "data").mkdir(parents=True)
    written = MinariStorage.new(source / "data", shipped.observation_space, shipped.action_space, data_format=layout)
    written.update_episodes(as_buffer(shipped, shipped.episode(i)) for i in range(shipped.num_episodes))
    written.update_metadata({"dataset_id": "replay/speed-v0", "minari_version": minari.__version__})

    def we() -> int:
        return load(source, cache=cache).num_steps + 0 * len(root.name)  # the folder stays as long as this function

    def they() -> int:
        return sum(len(episode.rewards) for episode in MinariDataset(source / "data").iterate_episodes())

    if cache == "use":
        time.sleep(FRESH / 1e9)  # what changed just now is not kept
        we()
    assert we() == they() == shipped.num_steps
    return we, they


def as_buffer(dataset: Dataset, episode: Episode) -> EpisodeBuffer:
    """An episode as Minari's writers take it, in the types of its spaces; they want a final observation."""
    ends = {name: np.zeros(len(episode), bool) for name in ("terminations", "truncations")}
    ends["terminations"][-1], ends["truncations"][-1] = episode.terminated, episode.truncated
    seen = episode.observations[ROOT].astype(dataset.observation_space.dtype)
    seen = seen if len(seen) > len(episode) else np.concatenate([seen, seen[-1:]])
    actions = episode.actions[ROOT].astype(dataset.action_space.dtype)
    return EpisodeBuffer(observations=seen, actions=actions, rewards=episode.rewards, **ends)


@row("loading", "HDF5", unit="steps", peer="Minari's iterate_episodes", goal=1.0, floor=1.0)
def hdf5() -> tuple[Work, Work]:
    return reading("hdf5", "off")


@row("loading", "Arrow", unit="steps", peer="Minari's iterate_episodes", goal=3.5, floor=2.1)
def arrow() -> tuple[Work, Work]:
    return reading("arrow", "off")


@row("loading", "second start, from the cache", unit="steps", peer="Minari's iterate_episodes", goal=40.0, floor=30.0)
def second_start() -> tuple[Work, Work]:
    return reading("hdf5", "use")


def seconds_a_unit(work: Work) -> tuple[float, float]:
    """Seconds on the wall, and of the processor, for one unit of a piece of work."""
    wall, processor = time.perf_counter(), time.process_time()
    units = work()
    return (time.perf_counter() - wall) / units, (time.process_time() - processor) / units


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """A line of the JSON: units in a second of ours and the peer's, their ratio, and whether it is the goal."""
    line = {
        "group": row.group,
        "measure": row.measure,
        "unit": f"{row.unit}/s",
        "peer_name": row.peer_name,
        "goal": row.goal,
        "floor": row.floor,
        **dict.fromkeys(("ours", "peer", "ratio", "cpu_ratio", "met", "note")),
    }
    try:
        works = row.make()
    except Unavailable as reason:
        return {**line, "note": str(reason)}
    for work in works:
        work()  # the first time is never the time
    times: tuple[list[tuple[float, float]], ...] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append(seconds_a_unit(works[which]))
    (ours, our_cpu), (peer, peer_cpu) = (map(median, zip(*taken, strict=True)) for taken in times)
    ratio = peer / ours
    found = {"ours": 1 / ours, "peer": 1 / peer, "ratio": ratio, "cpu_ratio": peer_cpu / our_cpu}
    return {**line, **found, "met": ratio >= row.goal}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table in Markdown."""
    rows = [
        "| | | ours | peer | | times as fast | in processor time | goal | floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        if line["ratio"] is None:
            figures = f"not measured: {line['note']} | | {line['peer_name']} | |"
        else:
            ours, peer = (f"{line[who]:,.4g} {line['unit']}" for who in ("ours", "peer"))
            figures = f"{ours} | {peer} | {line['peer_name']} | {line['ratio']:.2f} | {line['cpu_ratio']:.2f}"
        wanted = f"{line['goal']:g} | {'' if line['floor'] is None else format(line['floor'], 'g')}"
        rows.append(f"| {line['group']} | {line['measure']} | {figures} | {wanted} |")
    return "\n".join(rows)


def floors(lines: Sequence[dict[str, Any]]) -> str:
    """Which floors hold, in words."""
    measured = [line for line in lines if line["floor"] is not None and line["ratio"] is not None]
    under = [line for line in measured if line["ratio"] < line["floor"]]
    held = f"{len(measured) - len(under)} of {len(measured)} floors hold"
    each = [f"  {line['group']}, {line['measure']}: {line['ratio']:.2f}, floor {line['floor']:g}" for line in under]
    return "\n".join([held + ("; under theirs:" if under else ""), *each])


def parse() -> argparse.Namespace:
    groups = list(dict.fromkeys(row.group for row in ROWS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds for each row, not 31")
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="groups of rows")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows, rounds = [row for row in ROWS if row.group in options.only], 5 if options.quick else 31
    lines = []
    with tqdm(rows, unit="row") as bar:
        for row in bar:
            bar.set_description(f"{row.group}: {row.measure}")
            lines.append(measure(row, rounds))
    machine = hardware(Config(training=TrainingConfig(device="cpu")))
    print(f"{machine}; torch {torch.__version__}, transformers {transformers.__version__}\n")
    print(table(lines))
    print(floors(lines))
    if options.json:
        write_json(options.json, lines)


if __name__ == "__main__":
    main()
