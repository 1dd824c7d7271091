"""Runs with a name: the paper's published rows, one function each, and what we recommend."""

from collections.abc import Callable

from dt.config import CalibrationConfig, Config, DataConfig, EvaluationConfig, ModelConfig
from transformer.config import TrainingConfig


def default() -> Config:
    """What we recommend: one token a step, a cosine schedule, GPT-2's initial weights."""
    return Config()


def demo() -> Config:
    """About four minutes of one slow core: half the width, two layers, half the batch and a short calibration."""
    return Config(
        model=ModelConfig(width=64, num_layers=2),
        training=TrainingConfig(
            steps=6_000, batch_size=32, learning_rate=2e-3, warmup_steps=200, evaluate_every=0, threads=1
        ),
        calibration=CalibrationConfig(calibration_steps=50_000),
    )


def _paper(targets: tuple[float, ...], return_scale: float = 1000.0) -> Config:
    """The paper's Gym recipe (Chen et al. 2021, table 8 and its published code)."""
    return Config(
        model=ModelConfig(
            conditioning="token", positions="timesteps", rotary=False, return_scale=return_scale, observation_noise=0.0
        ),
        data=DataConfig(from_start=0.0),
        training=TrainingConfig(
            steps=100_000,
            precision="float32",
            learning_rate=1e-4,
            schedule="constant",
            warmup_steps=10_000,
            checkpoint_every=10_000,
            evaluate_every=10_000,
        ),
        evaluation=EvaluationConfig(target_return=targets, episodes=100),
    )


def paper_hopper() -> Config:
    """K = 20, targets 3600 and 1800."""
    return _paper((3600.0, 1800.0))


def paper_halfcheetah() -> Config:
    """K = 20, targets 12000 and 6000."""
    return _paper((12_000.0, 6_000.0))


def paper_walker2d() -> Config:
    """K = 20, targets 5000 and 2500."""
    return _paper((5_000.0, 2_500.0))


def paper_breakout() -> Config:
    """Atari Breakout (Chen et al. 2021 and its published code): K = 30, stacks of 4, target 90, drawn actions.

    The paper's Adam betas, its decay of matrices only and its tanh on every embedding are not kept.
    """
    return Config(
        model=ModelConfig(
            conditioning="token",
            positions="timesteps",
            rotary=False,
            width=128,
            num_layers=6,
            num_heads=8,
            activation="gelu",
            context_length=30,
            frame_stack=4,
            return_scale=1.0,
            observation_noise=0.0,
        ),
        data=DataConfig(from_start=0.0),
        training=TrainingConfig(
            precision="float32",
            steps=20_000,  # five times through 500,000 steps of data
            batch_size=128,
            learning_rate=6e-4,
            learning_rate_floor=0.1,
            warmup_steps=3,
            weight_decay=0.1,
            gradient_clip=1.0,
        ),
        evaluation=EvaluationConfig(target_return=(90.0,), temperature=1.0),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "default": default,
    "demo": demo,
    "paper-hopper": paper_hopper,
    "paper-halfcheetah": paper_halfcheetah,
    "paper-walker2d": paper_walker2d,
    "paper-breakout": paper_breakout,
}
"""Every named run, by the name that `dt train --preset` takes."""
