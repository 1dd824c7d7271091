"""Two processes that are not given the same: each leaves what came of it in FOLDER, by the case and its rank."""

import sys
from dataclasses import replace
from pathlib import Path

from conftest import Payday
from torchrun_program import PAYDAY

from dt.config import Config, EvaluationConfig, ModelConfig
from dt.learning import run as run_module
from dt.learning.training import train
from envs.simulate.spec import EnvironmentSpec
from transformer.config import CharactersConfig, SequenceConfig, TrainingConfig
from transformer.errors import ConfigError
from transformer.runs import distributed
from transformer.text.programs import train_characters

VERSIONS = run_module.versions()
SMALL = {"width": 8, "num_layers": 1, "num_heads": 1, "context_length": 4}


def config(**changes):
    quick = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "device": "cpu", "evaluate_every": 0} | changes
    evaluation = EvaluationConfig(calibration=False)
    return Config(model=ModelConfig(**SMALL), training=TrainingConfig(**quick), evaluation=evaluation)


def numbers(rank, folder):
    observations = {"value": PAYDAY.observations["value"] + 1000 * rank}
    train(replace(PAYDAY, observations=observations), config(), folder)


def rewards(rank, folder):
    train(replace(PAYDAY, rewards=PAYDAY.rewards * (1 + rank)), config(), folder)


def seed(rank, folder):
    train(PAYDAY, config(seed=rank), folder)


def rate(rank, folder):
    train(PAYDAY, config(learning_rate=1e-3 * (1 + rank)), folder)


def environment(rank, folder):
    train(PAYDAY, config(), folder, environment=EnvironmentSpec("Payday-v0", {"limit": 10 - rank}))


def versions(rank, folder):
    run_module.versions = lambda: {**VERSIONS, "numpy": f"2.{rank}.0"}
    try:
        train(PAYDAY, config(), folder)
    finally:
        run_module.versions = lambda: VERSIONS


def text(rank, folder):
    path = folder.with_name(f"text-{rank}")
    path.write_text("abcd\n" * 40 if rank == 0 else "abdc\n" * 40)
    quick = {"steps": 2, "batch_size": 4, "device": "cpu", "evaluate_every": 0}
    train_characters(path, CharactersConfig(model=SequenceConfig(**SMALL), training=TrainingConfig(**quick)), folder)


def command(rank, folder):
    """What `dt train` compares before it reads any data."""
    distributed.check_same({"config": config().to_json(), "resume": rank == 1})
    folder.touch()


def place(rank, folder):
    """Another path of the same data is no difference, nor are other threads."""
    data = replace(PAYDAY, loaded_from=(f"/machine-{rank}/coins.npz",))
    train(data, config(threads=1 + rank), folder)


CASES = (numbers, rewards, seed, rate, environment, versions, text, command, place)


def outcome(case, rank, folder):
    try:
        case(rank, folder)
    except ConfigError as error:
        return str(error)
    return "trained"


if __name__ == "__main__":
    assert Payday  # registered
    where = Path(sys.argv[1])
    with distributed.process_group():
        number = distributed.rank()
        for case in CASES:
            (where / f"{case.__name__}-{number}").write_text(outcome(case, number, where / case.__name__))
