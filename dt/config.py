"""Everything that decides a Decision Transformer run; each field is an option of the command line. No torch here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from dt.asking.limits import check_strength, check_target
from transformer.config import EARLY_TRAINING, TrainingConfig, TransformerConfig, check_fields, require
from transformer.errors import ConfigError

WAY_SEED, BEST_SEED, FINAL_SEED = 1_000_000, 2_000_000, 0
"""Environment seeds: scoring on the way, scoring the best again (the way's seeds chose it), and everything else."""

RECORDING_SEED = 10_000_000
"""Environment seeds of recordings: no model is scored on the starts that it learned from."""

CALIBRATION_SEED, CALIBRATION_SEEDS = 4_000_000, 1_000_000
"""Environment seeds of calibrations: episode i has the first of these + i; how many of them are kept for this."""

SWEEP_OFFSET = 3_000_000
"""A target is chosen on the environment seeds that lie so far past those that it is scored on."""


MOST_STEPS = 1_000_000
"""Steps of a window: attention over more fits no machine."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """A causal Transformer over the last steps of a trajectory (Chen et al. 2021)."""

    conditioning: Literal["single", "token", "decoupled", "none"] = "single"
    """Which tokens a step has, and how the return-to-go enters. single: one token, the state and the action before it
    together; the return modulates the output by adaptive layer norm. token, the paper: three tokens, return-to-go,
    state and action. decoupled (Wang et al. 2026, arXiv 2601.15953): two tokens, state and action; the return enters
    as in single. none: state and action without a return, which is behaviour cloning."""
    context_length: int = 20
    """Steps the model sees, K in the paper."""
    frame_stack: int = 1
    """Pictures that make one state: the step's own and those just before it. The first is repeated at an episode's
    start. The data and the environment give single pictures."""
    return_scale: float | None = None
    """Returns are divided by this before the model sees them. None takes the standard deviation of the data's
    returns-to-go."""
    positions: Literal["none", "timesteps"] = "none"
    """What is added to a step's tokens for its position in the episode. none: nothing; --rotary gives the
    order of the window. timesteps, the paper: a learned row for each step; only for data in which the
    right action depends on the time, since steps that few episodes reach teach their rows little."""
    rotary: bool = True
    """Turn queries and keys by their position (RoFormer), so that attention knows how far apart two steps are."""
    observation_noise: float = 0.05
    """Gaussian noise that training adds to normalised observations, in standard deviations of the data, so that a
    policy also knows what to do a little off the recorded way. 0 is the paper's code."""
    max_timesteps: int | None = None
    """Rows of the timestep table. None takes the longest of the data's episodes and the environment's limit."""

    @property
    def uses_returns(self) -> bool:
        """Whether the model is conditioned on a target return."""
        return self.conditioning != "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context_length", "frame_stack"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        steps = self.context_length
        require(steps <= MOST_STEPS, f"context_length must be at most {MOST_STEPS}, not {steps}")
        noise = self.observation_noise
        require(0 <= noise <= 10, f"observation_noise must be at least 0 and at most 10, not {noise}")
        scale, rows = self.return_scale, self.max_timesteps
        require(scale is None or scale > 0, f"return_scale must be above 0, not {scale}")
        require(rows is None or rows >= 1, f"max_timesteps must be at least 1, not {rows}")
        require(
            rows is None or self.positions == "timesteps",
            f"max_timesteps {rows}: rows of a timestep table, which only --positions timesteps has",
        )


NO_SHARES = {"balanced": 0.0, "from_start": 0.0}
"""What the data of a run has if the run does not say: it was begun before these could be chosen."""

EARLY_MODEL = {"positions": "timesteps", "observation_noise": 0.0}
"""What a model has if its run does not say: the run was begun before these could be chosen."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which episodes of the data a model learns from."""

    top_fraction: float = 1.0
    """Learn only from the best episodes by return, as many as hold at most this share of the steps. The best one is
    always taken."""
    held_out: float | None = None
    """Share of those episodes that is drawn by the seed and held out, to measure the error of the model's actions on
    it. None takes 0.1 if there is no environment to play in, and otherwise 0."""
    balanced: float | None = None
    """Share of each batch that is drawn evenly over the range of the episodes' returns, so that episodes with rare
    returns are sampled more often. None takes 0.5 if the model is conditioned on returns, and otherwise 0."""
    from_start: float = 0.06
    """Share of each batch in which windows begin at the first step of their episode. A policy plays these steps in
    every episode, and other windows seldom show them. 0 is the paper's code."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.top_fraction <= 1, f"top_fraction must be above 0 and at most 1, not {self.top_fraction}")
        share = self.held_out
        require(share is None or 0 <= share < 1, f"held_out must be at least 0 and below 1, not {share}")
        share = self.balanced
        require(share is None or 0 <= share <= 1, f"balanced must be at least 0 and at most 1, not {share}")
        require(0 <= self.from_start <= 1, f"from_start must be at least 0 and at most 1, not {self.from_start}")


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """How a trained policy plays."""

    num_envs: int = 16
    """Environments stepped together. The returns do not depend on it, except in an environment that carries state from
    episode to episode, which is named."""
    env_timeout: float | None = None
    """Seconds that an environment may take for a step or a reset. Given, each plays in a process of its own: one that
    hangs or crashes is ended and named, and the others play on. The returns do not depend on it."""
    temperature: float | None = None
    """How discrete actions are chosen: 0 takes the likeliest, above it they are drawn from softmax(logits /
    temperature), 1 being the model's own distribution. Numbers of a Box are not drawn. None takes what the run was
    trained to be played with, at first 0."""
    eval_context_length: int | None = None
    """Steps of history that the model sees when it plays, at most --context-length. None takes what the run was trained
    to be played with, at first all of them."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.num_envs >= 1, f"num_envs must be at least 1, not {self.num_envs}")
        heat, timeout, history = self.temperature, self.env_timeout, self.eval_context_length
        require(heat is None or heat >= 0, f"temperature must not be negative, not {heat}")
        require(timeout is None or 0 < timeout <= 1e6, f"env_timeout must be above 0 and at most 1e6, not {timeout}")
        require(history is None or history >= 1, f"eval_context_length must be at least 1, not {history}")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What a run's calibration may cost."""

    calibration_steps: int = 200_000
    """Environment steps that a calibration may take."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.calibration_steps >= 1, f"calibration_steps must be at least 1, not {self.calibration_steps}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(PlayConfig):
    """Which returns a trained policy is asked for in its environment."""

    target_return: Literal["auto"] | tuple[float | str, ...] = ()
    """Target returns: numbers, percentiles of the data's returns (p90), their maximum (max), or shares of their range
    (1.2x is minimum + 1.2 (maximum - minimum)). Without any: the data's 5, 25, 50, 75, 95 % and its maximum. auto looks
    for the target that earns most, in episodes of its own, and scores it next to the maximum."""
    episodes: int = 20
    """Episodes for each target, each with its own seed."""
    guidance: Literal["auto"] | float = "auto"
    """How strongly the model follows its target return: 1 is the model as trained, more is stronger. auto takes what
    the run's calibration found, and 1 where it has none."""
    calibration: bool = True
    """Use the calibration of the run, which says what to request for a target return; dt train measures it."""

    @property
    def named_targets(self) -> tuple[float | str, ...]:
        """The targets that the user gives; none where they come from the data."""
        return () if self.target_return == "auto" else self.target_return

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.episodes >= 1, f"episodes must be at least 1, not {self.episodes}")
        if self.guidance != "auto":
            check_strength(self.guidance)
        for target in self.named_targets:
            check_target(target)


RENAMED = {"num_worlds": "num_envs", "world_timeout": "env_timeout"}
"""Fields of `EvaluationConfig` by the names that they have in the run.json of older runs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: its data, its model, its training and its evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def check_rewards(self, dataset: str, rewards_from: str) -> None:
        """Raise `ConfigError` where returns are needed and the dataset has no rewards.

        rewards_from: as `envs.datasets.dataset.Dataset` has it.
        """
        rules = "--reward success or --reward last makes rewards"
        require(
            rewards_from != "none" or not self.model.uses_returns,
            f"{dataset}: no rewards are recorded, so there is no return to condition on: --conditioning none clones "
            f"the behaviour; {rules}",
        )
        require(
            rewards_from != "none" or self.data.top_fraction == 1,
            f"{dataset}: no rewards are recorded, so --top-fraction has no best episodes; {rules}",
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for a run's folder."""
        document = dataclasses.asdict(self)
        if self.evaluation.target_return != "auto":
            document["evaluation"]["target_return"] = list(self.evaluation.target_return)  # as it comes back
        return document

    @staticmethod
    def from_json(document: Any) -> "Config":
        """From `to_json`'s form; a missing, unknown or wrong field raises `ConfigError`."""
        try:
            evaluation = {RENAMED.get(name, name): value for name, value in document["evaluation"].items()}
            if isinstance(evaluation["target_return"], list):
                evaluation["target_return"] = tuple(evaluation["target_return"])
            model, data = EARLY_MODEL | document["model"], NO_SHARES | document.get("data", {})
            return Config(
                data=DataConfig(**data),
                model=ModelConfig(**model),
                training=TrainingConfig(**EARLY_TRAINING | document["training"]),
                evaluation=EvaluationConfig(**evaluation),
                calibration=CalibrationConfig(**document.get("calibration", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ConfigError(f"not a configuration of this version: {error}") from None
