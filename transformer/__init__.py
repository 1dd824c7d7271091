"""A causal Transformer written from scratch, with its training loop and checkpoints; needs torch alone.

Names are loaded when they are used, so `import transformer` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer.attention import MultiHeadAttention
    from transformer.blocks import Block, FeedForward, Transformer
    from transformer.config import ConfigError, TrainingConfig, TransformerConfig
    from transformer.positions import LearnedPositions, RotaryPositions, SinusoidalPositions

_HOMES = {
    "ConfigError": "config",
    "TrainingConfig": "config",
    "TransformerConfig": "config",
    "MultiHeadAttention": "attention",
    "Block": "blocks",
    "FeedForward": "blocks",
    "Transformer": "blocks",
    "LearnedPositions": "positions",
    "RotaryPositions": "positions",
    "SinusoidalPositions": "positions",
}

__all__ = [
    "Block",
    "ConfigError",
    "FeedForward",
    "LearnedPositions",
    "MultiHeadAttention",
    "RotaryPositions",
    "SinusoidalPositions",
    "TrainingConfig",
    "Transformer",
    "TransformerConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transformer' has no attribute {name!r}")
    return getattr(import_module(f"transformer.{_HOMES[name]}"), name)
