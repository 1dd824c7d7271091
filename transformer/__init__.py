"""A Transformer written from scratch, with a training loop and checkpoints.

The models and generation need only torch; checkpoints also safetensors, training tqdm and tensorboard.

Names are loaded when they are used, so `import transformer` costs nothing.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

__path__ = extend_path(__path__, __name__)  # a project's own transformer/ without __init__.py stays importable

if TYPE_CHECKING:
    from transformer.attention import MultiHeadAttention
    from transformer.blocks import Block, FeedForward, Transformer
    from transformer.config import LanguageConfig, TrainingConfig, TransformerConfig
    from transformer.errors import ConfigError
    from transformer.generation import Sampling, beam_search, generate
    from transformer.gpt2 import load_gpt2, save_gpt2
    from transformer.language import LanguageModel
    from transformer.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
    from transformer.translation import EncoderDecoder

_HOMES = {
    "ConfigError": "errors",
    "TrainingConfig": "config",
    "TransformerConfig": "config",
    "MultiHeadAttention": "attention",
    "Block": "blocks",
    "FeedForward": "blocks",
    "Transformer": "blocks",
    "Sampling": "generation",
    "beam_search": "generation",
    "generate": "generation",
    "load_gpt2": "gpt2",
    "save_gpt2": "gpt2",
    "LanguageModel": "language",
    "LanguageConfig": "config",
    "EncoderDecoder": "translation",
    "LearnedPositions": "positions",
    "RotaryPositions": "positions",
    "SinusoidalPositions": "positions",
}

__all__ = [
    "Block",
    "ConfigError",
    "EncoderDecoder",
    "FeedForward",
    "LanguageConfig",
    "LanguageModel",
    "LearnedPositions",
    "MultiHeadAttention",
    "RotaryPositions",
    "Sampling",
    "SinusoidalPositions",
    "TrainingConfig",
    "Transformer",
    "TransformerConfig",
    "beam_search",
    "generate",
    "load_gpt2",
    "save_gpt2",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transformer' has no attribute {name!r}")
    return getattr(import_module(f"transformer.{_HOMES[name]}"), name)
