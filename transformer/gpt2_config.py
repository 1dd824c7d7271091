"""What a folder of Hugging Face's says of a model with a GPT-2 stack, read and checked before torch comes in.

CONFIG, WEIGHTS = locate(FOLDER)      which files
config = read_config(CONFIG, "gpt2")  settings; one that changes the numbers and that we lack is refused by name
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformer.config import LARGEST, TransformerConfig, require
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json

C = TypeVar("C", bound=TransformerConfig)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,  # torch's default, and so ours
}
"""Settings of their stack that exist here at one value only."""

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
"""Their names of what we have, and ours; their "gelu" is the exact one, which is another function."""

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


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
        raise CheckpointError(f"{weights[0]}: no config.json next to it, and only that knows the number of heads")
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


def check_fixed_settings(config: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    """Raise `ConfigError` where a config.json sets one of these to another value than ours."""
    for name, ours in fixed.items():
        value = config.get(name, ours)
        require(value == ours, f"{path}: {name} is {json.dumps(value)}, here it is always {json.dumps(ours)}")


def transformer_settings(config: Mapping[str, Any], width: str, path: Path) -> dict[str, Any]:
    """What `TransformerConfig` takes of a config.json with a GPT-2 stack; `width` is the width's name in it.

    A setting that changes the numbers and that we lack raises `ConfigError` with its name and value.
    """
    check_fixed_settings(config, FIXED, path)
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
    # They act only in training, but which of them a training should use is not ours to choose.
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
