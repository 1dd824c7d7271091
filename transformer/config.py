"""What a Transformer is and how any training runs. No torch here, so that help and refusals are quick."""

import sys
from dataclasses import dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from transformer.errors import ConfigError

LARGEST = 2**53
"""No setting but a seed is a larger whole number: arrays of such a size cannot even be counted in 64 bits."""

MOST_LAYERS = 10_000
"""Of a Transformer. The deepest that were ever trained had a tenth; to make more takes minutes, then memory is out."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_fields(config: object) -> None:
    """Refuse what does not fit a field of a dataclass: another type, NaN, infinity, too long a number, another word."""
    hints = get_type_hints(type(config))
    for each in fields(config):  # type: ignore[arg-type]
        name, value = each.name, getattr(config, each.name)
        wrong = type_error(value, hints[name], name)
        require(wrong is None, str(wrong))
        large = isinstance(value, int) and value > LARGEST and name != "seed"
        require(not large, f"{name} must be at most {LARGEST}, not {value}")


def type_error(value: Any, hint: Any, name: str = "") -> str | None:
    """Why a value, such as JSON that anyone may have written, is not of this type: names the field. None if it is."""
    if isinstance(value, dict) and is_typeddict(hint):
        return _entry_error(value, hint, f"{name}." if name else "")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        for i, each in enumerate(value):
            if wrong := type_error(each, arguments[0], f"{name}[{i}]"):
                return wrong
        return None
    if origin is dict and isinstance(value, dict):
        for key, each in value.items():
            if wrong := type_error(each, arguments[1], f"{name}.{key}"):
                return wrong
        return None
    if origin in (Union, UnionType):
        reasons = [type_error(value, kind, name) for kind in arguments]
        if None in reasons:
            return None
        for reason in reasons:
            if reason and not reason.startswith(f"{name} must"):
                return reason  # the right kind, with something wrong in it
    return None if _is_plain(value, hint) else f"{name} must be {_words(hint)}, not {value!r:.80}"


def _entry_error(document: dict[str, Any], hint: Any, prefix: str) -> str | None:
    """Why a dictionary is not of this `TypedDict`: the entry that is missing, or of another type."""
    if missing := sorted(hint.__required_keys__ - document.keys()):
        return f"{prefix}{missing[0]} is missing"
    for key, kind in get_type_hints(hint).items():
        if key in document and (wrong := type_error(document[key], kind, prefix + key)):
            return wrong
    return None


def _is_plain(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that holds no other; whole numbers must fit into 64 bits, all must be finite."""
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return _is_number(value, int | float) and abs(value) <= sys.float_info.max
    if hint is int:
        return _is_number(value, int) and -(2**63) <= value < 2**63
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and kind not in (list, tuple) and not is_typeddict(kind) and isinstance(value, kind)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _words(hint: Any) -> str:
    """A type, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) in (list, tuple):
        return "a list"
    words = {float: "a finite number", int: "a whole number of 64 bits", bool: "true or false", str: "a text"}
    return words.get(hint, "null" if hint is NoneType else "an object")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators cannot take."""
    require(0 <= seed < 2**63, f"seed must be from 0 to {2**63 - 1}, not {seed}")


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
    activation_checkpointing: bool = False
    """Compute each block a second time in the backward pass instead of storing its results: the same gradients, less
    memory, about a third more time (Chen et al. 2016)."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.num_layers <= MOST_LAYERS, f"num_layers must be at most {MOST_LAYERS}, not {self.num_layers}")
        for name in ("width", "num_layers", "num_heads"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(self.width % self.num_heads == 0, f"num_heads {self.num_heads} must divide width {self.width}")
        even_heads = (self.width // self.num_heads) % 2 == 0
        require(not self.rotary or even_heads, f"rotary needs an even width a head, not {self.width // self.num_heads}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(TransformerConfig):
    """A Transformer over tokens, whatever their vocabulary."""

    context_length: int = 64
    """Tokens of the longest text that the model sees."""
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    """What is added to a token's embedding for its position; none goes with rotary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.context_length >= 1, f"context_length must be at least 1, not {self.context_length}")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(SequenceConfig):
    """A language model, or encoder and decoder of this shape each over one vocabulary."""

    vocabulary_size: int = 256
    """Different tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.vocabulary_size >= 1, f"vocabulary_size must be at least 1, not {self.vocabulary_size}")


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
    """After the warm-up: hold the learning rate, or let it fall along a cosine until the last step."""
    learning_rate_floor: float = 0.0
    """Share of the peak learning rate at which a cosine ends."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay, on every parameter as in the paper's code."""
    gradient_clip: float = 0.25
    """Largest norm of the whole gradient; a longer one is scaled down."""
    precision: Literal["float32", "bf16", "auto"] = "auto"
    """Number format of the matrix products in training. bf16 runs them by autocast, and weights stay float32. auto
    takes bf16 if the hardware multiplies it. A run keeps what was taken at its start."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    threads: Literal["auto"] | int = "auto"
    """Processor threads. auto takes 1 for a model of up to a million weights, and else half of the cores; a run keeps
    what was taken at its start, since sums over other numbers of threads round differently."""
    compile: bool = False
    """Compile the model for training with torch.compile, which takes half a minute and needs a C++ compiler such as
    g++. On a CPU the numbers are the same to rounding, in bf16 in an eighth to a sixth less time. On a GPU dropout
    draws different numbers."""
    seed: int = 0
    """Seed of the initial weights, of the batches and of dropout."""
    log_every: int = 50
    """Steps between two lines of the log."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints; the last step always makes one."""
    evaluate_every: int = 2_500
    """Steps between two evaluations during training, which find the best checkpoint; 0 turns them off."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, in addition to the best one."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "evaluate_every"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        floor = self.learning_rate_floor
        require(0 <= floor <= 1, f"learning_rate_floor must be at least 0 and at most 1, not {floor}")
        check_seed(self.seed)
        require(self.threads == "auto" or 1 <= self.threads <= 1024, f"threads must be 1 to 1024, not {self.threads}")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")


EARLY_TRAINING = {"learning_rate_floor": 0.1}
"""What a run that does not say was trained with: it was begun before there was a choice."""

SHORT_TRAINING = TrainingConfig(
    steps=2_000,
    batch_size=12,
    learning_rate_floor=0.1,
    warmup_steps=100,
    weight_decay=0.1,
    gradient_clip=1.0,
    checkpoint_every=500,
    evaluate_every=500,
)
"""How a small language model is trained; shared by the two configurations below."""


@dataclass(frozen=True, kw_only=True)
class CharactersConfig:
    """A character language model; the defaults are nanoGPT's small setting, about two minutes on one core."""

    model: SequenceConfig = field(
        default_factory=lambda: SequenceConfig(num_layers=4, num_heads=4, activation="gelu", dropout=0.0)
    )
    training: TrainingConfig = field(default_factory=lambda: replace(SHORT_TRAINING, precision="float32"))


@dataclass(frozen=True, kw_only=True)
class SubwordsConfig:
    """A language model over subwords; the defaults suit a text of a few megabytes."""

    vocabulary_size: int = 4_000
    """Subwords of the vocabulary, learned from the training text; with --from, the folder's own."""
    model: SequenceConfig = field(
        default_factory=lambda: SequenceConfig(num_layers=4, num_heads=4, activation="gelu", context_length=128)
    )
    training: TrainingConfig = SHORT_TRAINING


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig:
    """A translator; the defaults suit some ten thousand short sentences."""

    vocabulary_size: int = 4_000
    """Subwords of the vocabulary that both languages share, learned from the training pairs."""
    label_smoothing: float = 0.1
    """Share of a target's probability spread over the whole vocabulary (Szegedy et al. 2016)."""
    model: SequenceConfig = field(
        default_factory=lambda: SequenceConfig(width=160, num_layers=4, num_heads=4, dropout=0.25, context_length=128)
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=8_000,
            batch_size=128,
            learning_rate_floor=0.1,
            warmup_steps=1_000,
            gradient_clip=1.0,
            precision="auto",
            checkpoint_every=500,
            evaluate_every=1_000,
        )
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.vocabulary_size >= 1, f"vocabulary_size must be at least 1, not {self.vocabulary_size}")
        require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
