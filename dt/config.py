"""Everything that decides a Decision Transformer run; each field is an option of the command line. No torch here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from transformer.config import TrainingConfig, TransformerConfig, check_fields, require
from transformer.errors import ConfigError

WAY_SEED, BEST_SEED, FINAL_SEED = 1_000_000, 2_000_000, 0
"""LocalEnv seeds: scoring on the way, scoring the best anew (it was chosen on the way's seeds), and everything else."""

RECORDING_SEED = 10_000_000
"""LocalEnv seeds of recordings: no model is scored on the starts that it learned from."""

SWEEP_OFFSET = 3_000_000
"""A target is chosen on the environment seeds that lie so far past those that it is scored on."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """A causal Transformer over the last steps of a trajectory (Chen et al. 2021)."""

    conditioning: Literal["single", "token", "decoupled", "none"] = "single"
    """What the tokens of a step are and how the return-to-go enters: one token, the state and the action before it
    together, whose output the return modulates by adaptive layer norm (single); three, the return-to-go first (token,
    the paper); state and action, the return as in single (decoupled, Wang et al. 2026, arXiv 2601.15953); state and
    action, no return at all (none), which is behaviour cloning."""
    context_length: int = 20
    """Steps the model sees, K in the paper."""
    frame_stack: int = 1
    """Pictures that make one state where observations are images: the step's own and those just before it, the first
    repeated at an episode's start. The data and the environment give single ones."""
    return_scale: float | None = None
    """Returns are divided by this before the model sees them; None takes the deviation of the data's returns-to-go."""
    max_timesteps: int | None = None
    """Rows of the timestep table; None takes the longer of the data's episodes and the environment's own limit."""

    @property
    def hears_returns(self) -> bool:
        """Whether it matters what return the model is asked for."""
        return self.conditioning != "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context_length", "frame_stack"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        scale, rows = self.return_scale, self.max_timesteps
        require(scale is None or scale > 0, f"return_scale must be above 0, not {scale}")
        require(rows is None or rows >= 1, f"max_timesteps must be at least 1, not {rows}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which episodes of the data a model learns from."""

    top_fraction: float = 1.0
    """Learn from the best episodes alone: by return, from the best on downwards, as long as they hold at most this
    share of the steps; the best one always."""
    held_out: float | None = None
    """Share of those episodes that is drawn by the seed and not learned from: the error of the model's actions is
    measured on it. None takes 0.1 where there is no environment to play in, and else 0."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.top_fraction <= 1, f"top_fraction must be above 0 and at most 1, not {self.top_fraction}")
        share = self.held_out
        require(share is None or 0 <= share < 1, f"held_out must be at least 0 and below 1, not {share}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a trained policy is asked for returns in its environment."""

    target_return: tuple[float, ...] | Literal["auto"] = ()
    """Returns to ask for; none given means quantiles (10, 30, 50, 70, 90 %) and maximum of the data's returns. auto
    plays those on environments of their own, and scores the one that earned most, beside the maximum, on the others."""
    episodes: int = 10
    """Episodes for each target, each with its own seed."""
    num_envs: int = 16
    """Environments stepped together; the returns do not depend on it."""
    env_timeout: float | None = None
    """Seconds that an environment may take for a step or a reset. Given, each plays in a process of its own: one that
    hangs or crashes is ended and named, and the others play on. The returns do not depend on it."""
    temperature: float = 0.0
    """How discrete actions are chosen: 0 takes the likeliest, above it they are drawn from softmax(logits /
    temperature), 1 being the model's own distribution. Numbers of a Box are not drawn."""

    @property
    def named_targets(self) -> tuple[float, ...]:
        """The targets that the user names; none where they come from the data."""
        return () if self.target_return == "auto" else self.target_return

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("episodes", "num_envs"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        timeout = self.env_timeout
        require(timeout is None or 0 < timeout <= 1e6, f"env_timeout must be above 0 and at most 1e6, not {timeout}")
        for target in self.named_targets:
            require(abs(target) <= 1e38, f"target_return must be finite and at most 1e38, not {target}")


RENAMED = {"num_worlds": "num_envs", "world_timeout": "env_timeout"}
"""Fields of `EvaluationConfig` by the names that they have in the run.json of older runs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: its data, its model, its training and its evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check_rewards(self, dataset: str, rewards_from: str) -> None:
        """Raise `ConfigError` where returns are needed and the dataset has no rewards.

        rewards_from: as `envs.datasets.dataset.Dataset` has it.
        """
        rules = "--reward success or --reward last makes rewards"
        require(
            rewards_from != "none" or not self.model.hears_returns,
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
            return Config(
                data=DataConfig(**document.get("data", {})),  # absent in a run of before there was a choice
                model=ModelConfig(**document["model"]),
                training=TrainingConfig(**document["training"]),
                evaluation=EvaluationConfig(**evaluation),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ConfigError(f"not a configuration of this version: {error}") from None
