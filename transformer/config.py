"""What a Transformer is and how any training runs. No torch here, so that help and refusals are quick."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints


class ConfigError(Exception):
    """A setting that cannot work; the message names the setting and its value."""

    # No ValueError: the command line's parser would take that for its own and print a page about it.


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_known_values(config: object) -> None:
    """Refuse NaN and infinity in any float field of a configuration, and words that a field does not know."""
    hints = get_type_hints(type(config))
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        require(not isinstance(value, float) or math.isfinite(value), f"{field.name} must be finite, not {value}")
        if get_origin(hints[field.name]) is Literal:
            known = get_args(hints[field.name])
            require(value in known, f"{field.name} must be one of {', '.join(known)}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the residual stack (Vaswani et al. 2017; GPT-2's layout when `norm` is "pre")."""

    width: int = 128
    """Width of the residual stream."""
    num_layers: int = 3
    """Residual blocks, one after the other."""
    num_heads: int = 1
    """Attention heads in each block; divides the width."""
    activation: Literal["relu", "gelu"] = "relu"
    """Non-linearity of the feed-forward part; gelu is GPT-2's tanh approximation."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each part of a block (GPT-2), or after each sum (the original Transformer)."""
    rotary: bool = False
    """Turn queries and keys by their position (RoFormer) in every attention."""
    dropout: float = 0.1
    """Share of activations dropped in training: embeddings, attention weights and residual branches."""

    def __post_init__(self) -> None:
        require_known_values(self)
        for name in ("width", "num_layers", "num_heads"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(self.width % self.num_heads == 0, f"num_heads {self.num_heads} must divide width {self.width}")
        even_heads = (self.width // self.num_heads) % 2 == 0
        require(not self.rotary or even_heads, f"rotary needs an even width a head, not {self.width // self.num_heads}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How any model of this package is trained: AdamW with warm-up, a schedule and a gradient clip."""

    steps: int = 10_000
    """Gradient steps."""
    batch_size: int = 64
    """Windows in each gradient step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: hold the learning rate, or let it fall to a tenth along a cosine until the last step."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay, on every parameter as in the paper's code."""
    gradient_clip: float = 0.25
    """Largest norm of the whole gradient; a longer one is scaled down."""
    precision: Literal["float32", "bf16"] = "float32"
    """Number format of the matrix products in training; bf16 runs them by autocast, weights stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    seed: int = 0
    """Seed of the initial weights, of the batches and of dropout."""
    log_every: int = 50
    """Steps between two lines of the log."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints; the last step always makes one."""
    evaluate_every: int = 2_500
    """Steps between two evaluations on the way, which find the best checkpoint; 0 leaves them out."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; the best is always kept beside them."""

    def __post_init__(self) -> None:
        require_known_values(self)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "evaluate_every", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
