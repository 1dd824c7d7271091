"""Atari games as the paper plays them: the Arcade Learning Environment through Gymnasium's own preprocessing.

`Atari/Breakout-v5` is `ALE/Breakout-v5` at one picture for four frames, the brighter of the last two, 84 x 84 and grey
(Mnih et al. 2015). Actions are the game's own few and never stick; up to 30 times nothing is done at the start; an
episode is the whole game, all lives of it, and rewards are the raw score. One picture is one observation: the model
stacks them, so that data need not. Needs `pip install ale-py opencv-python-headless`.

Importing this module registers every game, and `EnvironmentSpec` imports it where an id is one of these.
"""

from typing import Any

import ale_py
import gymnasium
from gymnasium.wrappers import AtariPreprocessing

NAMESPACE = "Atari"
MOST_STEPS = 27_000
"""Half an hour of play, 108,000 frames, where published games are cut."""


def make(game: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One game, such as "Breakout-v5"; kwargs are the Arcade Learning Environment's own."""
    ale_py.ALEInterface.setLoggerMode(
        ale_py.LoggerMode.Error
    )  # else each of many environments says its name and version
    settings = {"frameskip": 1, "repeat_action_probability": 0.0, **kwargs}
    return AtariPreprocessing(gymnasium.make(f"ALE/{game}", disable_env_checker=True, **settings))


for spec in [spec for spec in gymnasium.registry.values() if spec.namespace == "ALE" and spec.version == 5]:
    gymnasium.register(
        f"{NAMESPACE}/{spec.name}-v5",
        "envs.atari:make",
        max_episode_steps=MOST_STEPS,
        disable_env_checker=True,
        kwargs={"game": f"{spec.name}-v5"},
    )
