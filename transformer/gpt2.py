"""GPT-2 in Hugging Face's layout, in and out: a folder with config.json and model.safetensors (Radford et al. 2019).

    tensors = read_weights(WEIGHTS)       one file, or the several that an index names
    check_tensors(tensors, expected, ..)  name by name, shape by shape

What comes before the weights is read in gpt2_config.py. Needs only torch and safetensors. Whatever holds a
GPT-2 stack of theirs is read by these same functions.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transformer.config import LanguageConfig, require
from transformer.errors import CheckpointError
from transformer.files import new_folder, read_json, write_json
from transformer.gpt2_config import (
    ACTIVATIONS,
    DROPOUTS,
    FIXED,
    WEIGHTS,
    check_fixed_settings,
    integer,
    locate,
    make_config,
    read_config,
    transformer_settings,
)
from transformer.language import LanguageModel
from transformer.weights import check_size, read_tensors

M = TypeVar("M", bound=nn.Module)

TIED = {"tie_word_embeddings": True}
"""The same of their language model: its read-out is the embedding."""

BLOCK = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.input",
    "mlp.c_proj": "feed_forward.output",
}
"""The parts of one of their blocks, and ours."""


def load_gpt2(path: str | Path) -> LanguageModel:
    """A GPT-2 language model in float32, ready to use (`.train()` turns its dropout on).

    Args:
        path: a folder with config.json and model.safetensors (or the index of several), or a .safetensors file next to
            its config.json.

    Raises:
        CheckpointError: a file cannot be used.
        ConfigError: a setting is not supported.
    """
    config_path, weights_path = locate(Path(path))
    theirs = read_config(config_path, "gpt2", activation_function="gelu_new")
    check_fixed_settings(theirs, TIED, config_path)
    config = make_config(
        LanguageConfig,
        config_path,
        vocabulary_size=integer(theirs, "vocab_size", config_path),
        context_length=integer(theirs, "n_positions", config_path),
        **transformer_settings(theirs, "n_embd", config_path),
    )
    found = read_weights(weights_path)
    model = of_shapes(lambda: LanguageModel(config), config.num_layers, found, weights_path)
    tensors = _language_tensors(found, _to_gpt2(model), weights_path)
    try:
        window_bytes = 8 * config.context_length * config.width * config.num_layers
        check_size(lambda: model, tensors, config.num_layers, window_bytes)
    except ValueError as error:
        raise CheckpointError(f"{weights_path}: {error}") from None
    state = {
        "embedding.tokens.weight": tensors["wte.weight"],
        "embedding.positions.weight": tensors["wpe.weight"],
        **{f"transformer.{name}": tensor for name, tensor in stack_from_gpt2(tensors, config.num_layers).items()},
    }
    model.to_empty(device="cpu").load_state_dict(state)
    return model.eval()


def save_gpt2(model: LanguageModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors, which `GPT2LMHeadModel.from_pretrained` opens.

    The folder is written atomically. GPT-2's tokens for beginning and end are left open (null).

    Args:
        model: pre-norm, with learned positions and without rotary ones.
        folder: a new or an empty one.

    Raises:
        CheckpointError: the folder holds something.
        ConfigError: GPT-2's layout cannot express the model.
    """
    config = model.config
    require(config.positions == "learned", f"positions {config.positions}: GPT-2 has only learned ones")
    require(not config.rotary, "rotary true: GPT-2 turns no queries and keys")
    require(config.norm == "pre", f"norm {config.norm}: GPT-2 has its norms before each part")
    document = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocabulary_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "activation_function": next(their for their, our in ACTIVATIONS.items() if our == config.activation),
        **dict.fromkeys(DROPOUTS, config.dropout),
        **FIXED,
        **TIED,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }
    tensors = {f"transformer.{name}": tensor.contiguous() for name, tensor in _to_gpt2(model).items()}
    with new_folder(Path(folder)) as files:
        save_file(tensors, files / WEIGHTS, metadata={"format": "pt"})  # without it theirs refuses the file
        write_json(files / "config.json", document)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of the files that an index names; a pipe is not waited for."""
    if path.suffix == ".safetensors":
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: cannot be read (not a regular file)")
        return read_tensors(path)
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise CheckpointError(f"{path}: not an index of files next to it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: names {name!r}, which is no .safetensors file")
        tensors |= read_weights(path.parent / name)
    return tensors


def of_shapes(make: Callable[[], M], num_layers: int, found: Mapping[str, Tensor], path: Path) -> M:
    """The model of a config.json, made of shapes only: nothing is allocated or drawn that the weights do not hold.

    More layers than there are tensors would take for ever to make, even of nothing; they raise `CheckpointError`.
    """
    if num_layers > len(found):
        raise CheckpointError(f"{path}: has {len(found)} tensors, its config.json says {num_layers} layers")
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError as error:  # 64 bits do not hold such a size
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: no file holds what its config.json says ({reason})") from None


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` unless these are the expected tensors, neither fewer nor more, each of its shape."""
    for name, like in expected.items():
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        tensor = found[name]
        if tensor.shape != like.shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {[*tensor.shape]}, expected {[*like.shape]}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype}, expected floating point")
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name} has no place in the model of its config.json")


def is_buffer(name: str) -> bool:
    """Whether a tensor of theirs is a causal mask, which older versions kept with the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _language_tensors(found: dict[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The checked tensors of a GPT-2 under their names without "transformer."; the read-out's weights are tied."""
    prefix = "transformer." if any(name.startswith("transformer.") for name in found) else ""
    tensors = {name: tensor for name, tensor in found.items() if not is_buffer(name)}
    embedding, head = f"{prefix}wte.weight", tensors.pop("lm_head.weight", None)
    if head is not None:  # tied, so a file may hold both, or either
        tensors.setdefault(embedding, head)
    check_tensors(tensors, {prefix + name: tensor for name, tensor in expected.items()}, path)
    if head is not None and not torch.equal(head, tensors[embedding]):
        raise CheckpointError(f"{path}: tensor lm_head.weight differs from {embedding}, here they are always one")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _to_gpt2(model: LanguageModel) -> dict[str, Tensor]:
    """A language model's parameters under GPT-2's names and in its shapes."""
    state = model.state_dict()
    return {
        "wte.weight": state["embedding.tokens.weight"],
        "wpe.weight": state["embedding.positions.weight"],
        **stack_to_gpt2(model.transformer.state_dict(), model.config.num_layers),
    }


def stack_to_gpt2(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Parameters of a pre-norm `Transformer` under GPT-2's names: h.0.ln_1.weight, ..., ln_f.bias."""
    return {their: _flipped(their, state[our]) for their, our in _parameters(num_layers)}


def stack_from_gpt2(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The inverse of `stack_to_gpt2`; other tensors are passed over."""
    return {our: _flipped(their, tensors[their]) for their, our in _parameters(num_layers)}


def _parameters(num_layers: int) -> Iterator[tuple[str, str]]:
    """Each parameter of a stack of theirs, and ours."""
    for kind in ("weight", "bias"):
        yield f"ln_f.{kind}", f"final_norm.{kind}"
        for i in range(num_layers):
            for their, our in BLOCK.items():
                yield f"h.{i}.{their}.{kind}", f"blocks.{i}.{our}.{kind}"


def _flipped(name: str, tensor: Tensor) -> Tensor:
    """Their linear maps, Conv1D, hold their weights transposed: (in, out)."""
    return tensor.t() if ".c_" in name else tensor  # a bias has one axis and stays as it is
