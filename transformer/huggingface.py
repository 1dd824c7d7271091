"""GPT-2 in Hugging Face's layout, in and out: a folder with config.json and model.safetensors (Radford et al. 2019).

    CONFIG, WEIGHTS = locate(FOLDER)      which files
    config = read_config(CONFIG, "gpt2")  settings; one that changes the numbers and that we lack is refused by name
    tensors = read_weights(WEIGHTS)       one file, or the several that an index names
    check_tensors(tensors, expected, ..)  name by name, shape by shape

Needs torch and safetensors alone. Whatever holds a GPT-2 stack of theirs is read by these same functions.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transformer.checkpoint import CheckpointError, check_size, new_folder, read_json, read_tensors, write_json
from transformer.config import LARGEST, ConfigError, LanguageConfig, TransformerConfig, require
from transformer.language import LanguageModel

C = TypeVar("C", bound=TransformerConfig)
M = TypeVar("M", bound=nn.Module)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,  # torch's default, and so ours
}
"""Settings of their stack that we have at one value alone."""

TIED = {"tie_word_embeddings": True}
"""The same of their language model: its read-out is the embedding."""

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
"""Their names of what we have, and ours; their "gelu" is the exact one, which is another function."""

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

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

    path: a folder with config.json and model.safetensors (or the index of several), or a .safetensors file with
    config.json beside it. Raises `CheckpointError` for a file and `ConfigError` for a setting that cannot be used.
    """
    config_path, weights_path = locate(Path(path))
    theirs = read_config(config_path, "gpt2", activation_function="gelu_new")
    refuse_others(theirs, TIED, config_path)
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

    The folder appears complete or not at all; one that holds anything raises `CheckpointError`. A model that GPT-2's
    layout cannot express raises `ConfigError`. Their tokens for beginning and end are left open (null).
    """
    config = model.config
    require(config.positions == "learned", f"positions {config.positions}: GPT-2 has learned ones alone")
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


def locate(path: Path) -> tuple[Path, Path]:
    """config.json and weights of a model's folder, or of a weights' file; the weights are one file or an index."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file or folder (a model of the hub comes first: hf download NAME --local-dir FOLDER)"
        )
    folder, weights = path.parent, [path]
    if path.is_dir():
        folder = path
        weights = [path / name for name in (WEIGHTS, INDEX) if (path / name).is_file()]
        weights = weights or sorted(path.glob("pytorch_model*.bin"))
    if not weights:
        raise CheckpointError(f"{path}: no {WEIGHTS} in it")
    if not weights[0].name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{weights[0]}: only .safetensors is opened here, and a pickle can run code of its maker's; "
            f"if you trust it, this line makes a {WEIGHTS} of it: python -c {shlex.quote(_conversion(folder, weights))}"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{weights[0]}: no config.json beside it, and only that knows the number of heads")
    return config, weights[0]


def _conversion(folder: Path, pickles: list[Path]) -> str:
    """A line of Python that turns these pickles into one safetensors file; for the user to run, never run here."""
    files, target = (json.dumps(x, ensure_ascii=False) for x in ([str(p) for p in pickles], str(folder / WEIGHTS)))
    tensors = f'{{k: v.contiguous().clone() for f in {files} for k, v in load(f, "cpu", weights_only=True).items()}}'
    return f"from safetensors.torch import save_file; from torch import load; save_file({tensors}, {target})"


def read_config(path: Path, model_type: str, **defaults: Any) -> dict[str, Any]:
    """A config.json of this kind of model, with `defaults` for what it leaves out."""
    config = read_json(path)
    found = config.get("model_type") if isinstance(config, dict) else None
    require(found == model_type, f"{path}: model_type is {json.dumps(found)}, expected {json.dumps(model_type)}")
    return {**defaults, **config}


def integer(config: Mapping[str, Any], name: str, path: Path) -> int:
    """A whole number of a config.json."""
    value = config.get(name)
    if type(value) is not int or value > LARGEST:  # true is an int to Python, and no number
        raise ConfigError(f"{path}: {name} is {json.dumps(value)}, expected a whole number up to {LARGEST}")
    return value


def refuse_others(config: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    """Raise `ConfigError` where a config.json sets one of these to another value than ours."""
    for name, ours in fixed.items():
        value = config.get(name, ours)
        require(value == ours, f"{path}: {name} is {json.dumps(value)}, here it is always {json.dumps(ours)}")


def transformer_settings(config: Mapping[str, Any], width: str, path: Path) -> dict[str, Any]:
    """What `TransformerConfig` takes of a config.json with a GPT-2 stack; `width` is the width's name in it.

    A setting that changes the numbers and that we lack raises `ConfigError` with its name and value.
    """
    refuse_others(config, FIXED, path)
    size, inner = integer(config, width, path), config.get("n_inner")
    require(
        inner in (None, 4 * size), f"{path}: n_inner is {json.dumps(inner)}, here it is always 4 {width}, {4 * size}"
    )
    activation = config.get("activation_function")
    known = list(ACTIVATIONS)
    require(
        activation in known,
        f"{path}: activation_function is {json.dumps(activation)}, here there are {', '.join(known)}",
    )
    rates = [config.get(name, 0.1) for name in DROPOUTS]
    # They act in training alone, but which of them a training should use is not ours to choose.
    require(
        all(type(rate) in (int, float) and abs(rate) <= 1 and rate == rates[0] for rate in rates),
        f"{path}: {', '.join(f'{name} {rate}' for name, rate in zip(DROPOUTS, rates, strict=True))}: "
        "here one dropout serves all three; write one number from 0 to 1 for them into that file",
    )
    return {
        "width": size,
        "num_layers": integer(config, "n_layer", path),
        "num_heads": integer(config, "n_head", path),
        "activation": ACTIVATIONS[str(activation)],
        "dropout": float(rates[0]),
    }


def make_config(kind: type[C], path: Path, **settings: Any) -> C:
    """`kind(**settings)`; what it refuses is refused with the name of the file that the settings come from."""
    try:
        return kind(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of the files that an index names; a pipe is not waited for."""
    if path.suffix == ".safetensors":
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: cannot be read (not a regular file)")
        return read_tensors(path)
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise CheckpointError(f"{path}: not an index of files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: names {name!r}, which is no .safetensors file")
        tensors |= read_weights(path.parent / name)
    return tensors


def of_shapes(make: Callable[[], M], num_layers: int, found: Mapping[str, Tensor], path: Path) -> M:
    """The model of a config.json, made of shapes alone: nothing is allocated or drawn that the weights do not hold.

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
    """Whether a tensor of theirs is a causal mask, which older versions kept beside the weights."""
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
