"""N environments stepped together, in this process or in others: each an instance of its own with its own seed."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import gymnasium
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.simulate.local_env import EnvInfo, LocalEnv, Step


class Environments:
    """N environments, each a `LocalEnv` or one in a process of its own.

    A failure names environment, seed and step, and does not stop the others.

    Args:
        make: makes one environment.
        count: N, at least 1.
        timeout: None runs them in this process. A number of seconds runs each in a process of its own. One that takes
            longer for a step or a reset, or dies, has failed, and its process is ended.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int, timeout: float | None = None):
        self._environments: list[Any] = []
        self._seeds, self._elapsed = [0] * count, [0] * count
        try:
            for _ in range(count):
                self._environments.append(LocalEnv(make) if timeout is None else _in_a_process(make, timeout))
            for env in self._environments:
                env.send("info")
            infos: list[EnvInfo] = [env.recv() for env in self._environments]
        except BaseException:
            self.close()  # those that were made
            raise
        self.info = infos[0]  # they are all made alike

    def __len__(self) -> int:
        return len(self._environments)

    def resets(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, Mapping[str, Any]] | EnvError]:
        """Start an episode in each of these environments; returns observation and info, or the failure."""
        for env, seed in seeds.items():
            self._seeds[env], self._elapsed[env] = seed, 0
            self._environments[env].send("reset", seed)
        return {env: self._answer(env, f"reset with seed {seed}") for env, seed in seeds.items()}

    def steps(self, actions: Mapping[int, Any]) -> dict[int, Step | EnvError]:
        """Take one action in each of these environments: what it answers, or its failure.

        What an environment raises is one, and an action or a reward that is not finite, and an observation that is
        not finite or not of the space.
        """
        for env, action in actions.items():
            self._elapsed[env] += 1
            self._environments[env].send("step", action)
        return {env: self._answer(env, f"seed {self._seeds[env]}, step {self._elapsed[env]}") for env in actions}

    def reset(self, env: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """`resets` of one environment; its failure is raised."""
        answer = self.resets({env: seed})[env]
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def step(self, env: int, action: Any) -> Step:
        """`steps` of one environment; its failure is raised."""
        answer = self.steps({env: action})[env]
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def render(self, env: int) -> NDArray[Any]:
        """The picture of one environment that was made with render_mode "rgb_array": (height, width, 3)."""
        self._environments[env].send("render")
        answer = self._answer(env, "no picture")
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def close(self) -> None:
        """Close every environment, and end every process."""
        for env in self._environments:
            env.close()
        for env in self._environments:
            env.join()

    def _answer(self, env: int, where: str) -> Any:
        try:
            return self._environments[env].recv()
        except EnvError as error:
            named = EnvError(f"environment {env}, {where}: {error}")
            named.__cause__ = error
            return named

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_a_process(make: Callable[[], gymnasium.Env[Any, Any]], timeout: float) -> Any:
    from envs.simulate.process_env import ProcessEnv  # what it needs takes a while to import, and few need it

    return ProcessEnv(make, timeout)
