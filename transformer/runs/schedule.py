"""What depends on the step of a training: its learning rate, and the seed of its dropout."""

import math

from transformer.config import TrainingConfig


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of step 0, 1, ...: a linear warm-up, then constant, or a cosine down to its floor at the last."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant" or step < config.warmup_steps:
        return config.learning_rate * warmup
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor, fall = config.learning_rate_floor, 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))  # fall: from 1 to 0
    return config.learning_rate * (floor + (1 - floor) * fall)


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """A seed for torch that is far from its neighbours' for every (seed, step, process)."""
    mixed = (seed * 0x9E3779B97F4A7C15) ^ ((step + 1) * 0xD1B54A32D192ED03) ^ (process * 0xA0761D6478BD642F)
    return mixed & 0x7FFF_FFFF_FFFF_FFFF
