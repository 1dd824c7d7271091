"""Reference returns, and the score that sets a random policy at 0 and an expert at 100."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from envs.simulate.spec import EnvironmentSpec


@dataclass(frozen=True)
class Reference:
    """The returns that a normalised score sets at 0 and at 100."""

    minimum: float
    """The return with score 0, a random policy's."""
    maximum: float
    """The return with score 100, an expert's."""
    source: str
    """Where the two come from."""

    def __post_init__(self) -> None:
        if not -sys.float_info.max <= self.minimum < self.maximum <= sys.float_info.max:
            raise ValueError(f"reference returns {self.minimum} and {self.maximum}: not two, the smaller one first")


@dataclass(frozen=True)
class _Published:
    """Reference returns of several environments, by the name before `-v`, and where they hold."""

    returns: Mapping[str, tuple[float, float]]
    source: str
    versions: frozenset[int]
    holds: Callable[[EnvironmentSpec], bool]
    """Whether they hold for the arguments and the step limit of one of these environments."""


def _keeps_rewards(spec: EnvironmentSpec) -> bool:
    """Whether a robot's arguments change only what it observes, and its episodes last 1,000 steps as D4RL's do."""
    observed = {"exclude_current_positions_from_observation", "include_cfrc_ext_in_observation"}
    return spec.kwargs.keys() <= observed and spec.max_episode_steps in (None, 1000)


def _dense_for(limits: Mapping[str, tuple[int | None, ...]]) -> Callable[[EnvironmentSpec], bool]:
    """Adroit's dense rewards and D4RL's step limit; None among the limits of a name is the registered one."""
    return lambda spec: (
        dict(spec.kwargs) in ({}, {"reward_type": "dense"}) and spec.max_episode_steps in limits[_name(spec.id)]
    )


def _four_tasks(spec: EnvironmentSpec) -> bool:
    """A kitchen with four tasks that each count once: its return is the number of tasks done."""
    tasks = spec.kwargs.get("tasks_to_complete")
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
        return False
    return len(set(tasks)) == 4 and spec.kwargs.get("remove_task_when_completed", True) is True


def _ends_at_the_goal(spec: EnvironmentSpec) -> bool:
    """A maze where an episode ends at the goal, with reward 1: its return is 1 or 0. Gymnasium's default goes on."""
    return spec.kwargs.get("continuing_task", True) is False and spec.kwargs.get("reward_type", "sparse") == "sparse"


def _whole_game(spec: EnvironmentSpec) -> bool:
    """An Atari game without arguments, until its end or for 108,000 frames, where the published games are cut."""
    return not spec.kwargs and spec.max_episode_steps in (None, 27_000)


_D4RL = "D4RL's constants (Fu et al. 2020, d4rl/infos.py)"
_ROBOTS = _Published(
    returns={
        "Hopper": (-20.272305, 3234.3),
        "HalfCheetah": (-280.178953, 12135.0),
        "Walker2d": (1.629008, 4592.3),
        "Ant": (-325.6, 3879.7),
    },
    source=f"{_D4RL} for the same robot; not comparable with D4RL's tables",
    versions=frozenset({2, 3, 4, 5}),
    holds=_keeps_rewards,
)
_ADROIT = _Published(
    returns={
        "AdroitHandPen": (96.262799, 3076.8331017826877),
        "AdroitHandHammer": (-274.856578, 12794.134825156867),
        "AdroitHandRelocate": (-6.425911, 4233.877797728884),
        "AdroitHandDoor": (-56.512833, 2880.5693087298737),
    },
    source=f"{_D4RL} for the same task, in an older simulator; not comparable with D4RL's tables",
    versions=frozenset({1}),
    holds=_dense_for(
        {
            "AdroitHandPen": (100,),  # registered with 200 steps, and D4RL's has 100
            "AdroitHandHammer": (None, 200),
            "AdroitHandRelocate": (None, 200),
            "AdroitHandDoor": (None, 200),
        }
    ),
)
_KITCHEN = _Published(
    returns={"FrankaKitchen": (0.0, 4.0)},
    source=f"{_D4RL}: none and all of four tasks",
    versions=frozenset({1}),
    holds=_four_tasks,
)
_MAZES = ("UMaze", "Medium", "Medium_Diverse_G", "Medium_Diverse_GR", "Large", "Large_Diverse_G", "Large_Diverse_GR")
_ANTMAZE = _Published(
    returns={f"AntMaze_{maze}": (0.0, 1.0) for maze in _MAZES},
    source=f"{_D4RL}: the goal never or always reached",
    versions=frozenset({3, 4, 5}),
    holds=_ends_at_the_goal,
)
_ATARI = _Published(
    returns={
        "Atari/Alien": (227.8, 7127.7),
        "Atari/Amidar": (5.8, 1719.5),
        "Atari/Assault": (222.4, 742.0),
        "Atari/Asterix": (210.0, 8503.3),
        "Atari/Asteroids": (719.1, 47388.7),
        "Atari/Atlantis": (12850.0, 29028.1),
        "Atari/BankHeist": (14.2, 753.1),
        "Atari/BattleZone": (2360.0, 37187.5),
        "Atari/BeamRider": (363.9, 16926.5),
        "Atari/Berzerk": (123.7, 2630.4),
        "Atari/Bowling": (23.1, 160.7),
        "Atari/Boxing": (0.1, 12.1),
        "Atari/Breakout": (1.7, 30.5),
        "Atari/Centipede": (2090.9, 12017.0),
        "Atari/ChopperCommand": (811.0, 7387.8),
        "Atari/CrazyClimber": (10780.5, 35829.4),
        "Atari/Defender": (2874.5, 18688.9),
        "Atari/DemonAttack": (152.1, 1971.0),
        "Atari/DoubleDunk": (-18.6, -16.4),
        "Atari/Enduro": (0.0, 860.5),
        "Atari/FishingDerby": (-91.7, -38.7),
        "Atari/Freeway": (0.0, 29.6),
        "Atari/Frostbite": (65.2, 4334.7),
        "Atari/Gopher": (257.6, 2412.5),
        "Atari/Gravitar": (173.0, 3351.4),
        "Atari/Hero": (1027.0, 30826.4),
        "Atari/IceHockey": (-11.2, 0.9),
        "Atari/Jamesbond": (29.0, 302.8),
        "Atari/Kangaroo": (52.0, 3035.0),
        "Atari/Krull": (1598.0, 2665.5),
        "Atari/KungFuMaster": (258.5, 22736.3),
        "Atari/MontezumaRevenge": (0.0, 4753.3),
        "Atari/MsPacman": (307.3, 6951.6),
        "Atari/NameThisGame": (2292.3, 8049.0),
        "Atari/Phoenix": (761.4, 7242.6),
        "Atari/Pitfall": (-229.4, 6463.7),
        "Atari/Pong": (-20.7, 14.6),
        "Atari/PrivateEye": (24.9, 69571.3),
        "Atari/Qbert": (163.9, 13455.0),
        "Atari/Riverraid": (1338.5, 17118.0),
        "Atari/RoadRunner": (11.5, 7845.0),
        "Atari/Robotank": (2.2, 11.9),
        "Atari/Seaquest": (68.4, 42054.7),
        "Atari/Skiing": (-17098.1, -4336.9),
        "Atari/Solaris": (1236.3, 12326.7),
        "Atari/SpaceInvaders": (148.0, 1668.7),
        "Atari/StarGunner": (664.0, 10250.0),
        "Atari/Surround": (-10.0, 6.5),
        "Atari/Tennis": (-23.8, -8.3),
        "Atari/TimePilot": (3568.0, 5229.2),
        "Atari/Tutankham": (11.4, 167.6),
        "Atari/UpNDown": (533.4, 11693.2),
        "Atari/Venture": (0.0, 1187.5),
        "Atari/VideoPinball": (16256.9, 17667.9),
        "Atari/WizardOfWor": (563.5, 4756.5),
        "Atari/YarsRevenge": (3092.9, 54576.9),
        "Atari/Zaxxon": (32.5, 9173.3),
    },
    source="random play and a human games tester, from idle starts (DQN Zoo, dqn_zoo/atari_data.py)",
    versions=frozenset({5}),
    holds=_whole_game,
)
_PUBLISHED = {name: each for each in (_ROBOTS, _ADROIT, _KITCHEN, _ANTMAZE, _ATARI) for name in each.returns}


def _name(environment: str) -> str:
    """An environment's id without its version."""
    return environment.rpartition("-v")[0]


def reference_for(environment: EnvironmentSpec | str | None) -> Reference | None:
    """Published reference returns of an environment; None where none are known, or where they do not hold.

    They are bound to versions, arguments and step limits. Those that change returns have none.

    Args:
        environment: a specification, or a registered id such as "Hopper-v5" without further arguments.
    """
    spec = EnvironmentSpec(environment or "") if not isinstance(environment, EnvironmentSpec) else environment
    name, _, version = spec.id.rpartition("-v")
    published = _PUBLISHED.get(name)
    if published is None or version not in map(str, published.versions) or not published.holds(spec):
        return None
    minimum, maximum = published.returns[name]
    return Reference(minimum, maximum, published.source)


def reference_in(
    env: EnvironmentSpec | None, recorded_in: EnvironmentSpec | None, reference: Reference | None
) -> Reference | None:
    """The reference that holds in `env` for data recorded in `recorded_in`; `reference` is the data's own.

    In any other environment than the data's own it does not hold. Data that names no environment is played in one of
    the user's choosing: without a reference of its own it takes what is published for that environment.
    """
    if env is None or (recorded_in is not None and env.same_environment(recorded_in)):
        return reference
    if recorded_in is not None:
        return None
    return reference or reference_for(env)


def scored_as_d4rl(dataset: str, reference: Reference) -> bool:
    """Whether a dataset that is not D4RL's, by its name, has D4RL's measured constants for reference returns."""
    measured = [*_ROBOTS.returns.values(), *_ADROIT.returns.values()]
    return (reference.minimum, reference.maximum) in measured and not dataset.startswith("D4RL/")


def normalized_score(mean_return: float, reference: Reference | None) -> float | None:
    """100 (return - minimum) / (maximum - minimum), as D4RL defines it; None without a reference.

    Args:
        mean_return: the return to score.
        reference: returns with score 0 and 100.
    """
    if reference is None:
        return None
    return 100 * (mean_return - reference.minimum) / (reference.maximum - reference.minimum)
