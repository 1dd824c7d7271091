"""Where the time of an evaluation goes, and what stepping environments in other ways brings.

Sixteen environments of Hopper-v5 with the default model (`single`, K = 20, width 128, 3 layers), untrained, exact
windows, one thread for torch. First, the shares of processor time of simulator, model and Python. Then the same random
actions in four environments, stepped in turn in each round by: this package in one process, this package with a
process for each (`--env-timeout`), Gymnasium's SyncVectorEnv and its AsyncVectorEnv.

    pip install "decision-transformer[mujoco]"
    python -m benchmarks.playing
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch

from dt.config import Config
from dt.learning.build import build_model
from dt.policy import ReturnConditionedPolicy
from envs.datasets.loading import load
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, rollout
from transformer.runs.setup import multiplies_bf16

ENV_ID, COUNT = "Hopper-v5", 16

FEW = 4
"""Environments that are stepped in other ways; each has a process of its own in two of them."""


class Timed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds the processor time of each step to `spent`."""

    spent = 0.0

    def step(self, action: Any) -> Any:
        before = time.process_time()
        answer = super().step(action)
        Timed.spent += time.process_time() - before
        return answer


def make(steps: int) -> gymnasium.Env[Any, Any]:
    """Hopper for so many steps, which no fall ends."""
    return gymnasium.make(ENV_ID, terminate_when_unhealthy=False, max_episode_steps=steps)


def shares(precision: Any, steps: int) -> dict[str, float]:
    """Milliseconds of the processor for one step of all environments: simulator, model and the rest."""
    dataset = load("hopper/replay-v0")
    policy = ReturnConditionedPolicy(build_model(dataset, Config(), None), precision=precision)
    act, of_model = policy.model.act, [0.0]

    def timed(*given: Any, **named: Any) -> Any:
        before = time.process_time()
        outputs = act(*given, **named)
        of_model[0] += time.process_time() - before
        return outputs

    policy.model.act = timed  # type: ignore[method-assign]
    requests = [EpisodeRequest(seed, 1_000.0) for seed in range(COUNT)]
    with Environments(lambda: Timed(make(steps)), COUNT) as environments:
        rollout(environments, policy, requests)  # the first time is never the time
        Timed.spent, of_model[0], before = 0.0, 0.0, time.process_time()
        rollout(environments, policy, requests)
        total = time.process_time() - before
    spent = {"simulator": Timed.spent, "model": of_model[0], "Python": total - Timed.spent - of_model[0]}
    return {name: 1e3 * seconds / steps for name, seconds in spent.items()}


Step = Callable[[list[Any]], object]
"""Takes one action in each environment."""


@contextmanager
def ours(timeout: float | None) -> Iterator[Step]:
    """This package's environments."""
    with Environments(partial(make, 10**6), FEW, timeout) as environments:
        environments.resets({env: env for env in range(FEW)})
        yield lambda actions: environments.steps(dict(enumerate(actions)))


@contextmanager
def theirs(kind: Callable[[list[Any]], gymnasium.vector.VectorEnv[Any, Any, Any]]) -> Iterator[Step]:
    """Gymnasium's."""
    environments = kind([partial(make, 10**6)] * FEW)
    environments.reset(seed=list(range(FEW)))
    yield lambda actions: environments.step(np.stack(actions))
    environments.close()


WAYS = {
    "in one process": lambda: ours(None),
    "a process each (--env-timeout)": lambda: ours(600.0),
    "Gymnasium's SyncVectorEnv": lambda: theirs(gymnasium.vector.SyncVectorEnv),
    "Gymnasium's AsyncVectorEnv": lambda: theirs(gymnasium.vector.AsyncVectorEnv),
}
"""Ways to step several environments."""


def compare(rounds: int, steps: int) -> dict[str, float]:
    """Milliseconds on the wall for one step of all environments, by the way: medians of rounds in turns."""
    rng, taken = np.random.default_rng(0), dict[str, list[float]]()
    with ExitStack() as stack:
        ways = {name: stack.enter_context(way()) for name, way in WAYS.items()}
        for number in range(rounds + 1):
            actions = rng.uniform(-1, 1, (steps, FEW, 3)).astype(np.float32)
            for name, step in ways.items():
                before = time.perf_counter()
                for each in actions:
                    step(list(each))
                if number:  # the first time is never the time
                    taken.setdefault(name, []).append(1e3 * (time.perf_counter() - before) / steps)
    return {name: median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of each environment")
    parser.add_argument("--rounds", type=int, default=7, help="of the ways to step environments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for precision in ("float32", "bf16"):
        if precision == "float32" or multiplies_bf16(torch.device("cpu")):
            found = shares(precision, options.steps)
            total = sum(found.values())
            parts = ", ".join(f"{name} {part:.2f} ms ({part / total:.0%})" for name, part in found.items())
            print(f"{precision}: {total:.2f} ms of the processor for a step of {COUNT} environments: {parts}")
    found = compare(options.rounds, options.steps)
    fastest = found["in one process"]
    print(f"\n{os.cpu_count()} cores; a step of {FEW} environments, without a model:")
    for name, milliseconds in found.items():
        print(f"{name}: {milliseconds:.2f} ms, {fastest / milliseconds:.2f} times as fast as in one process")


if __name__ == "__main__":
    main()
