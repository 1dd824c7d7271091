"""Tensors of a safetensors file, checked before they become a model's weights. Nothing is unpickled."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformer.errors import CheckpointError

if TYPE_CHECKING:  # to read a run's description, or to refuse it, no torch is needed
    from torch import Tensor, nn

SMALL, MOST_GROWTH = 64 << 20, 300
"""A model's window may take `SMALL` bytes, or `MOST_GROWTH` times its weights where that is more."""


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Tensors of a safetensors file, on the CPU.

    Raises `CheckpointError` for NaN and infinity, for complex numbers and for floating point of 8 bits or fewer.
    Whether whole numbers and flags belong there, the model says: see `load_weights`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in floats and (tensor.is_floating_point() or tensor.is_complex()):
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected {', '.join(map(str, floats))}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")
    return _with_joined_projections(tensors)


def load_weights(model: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
    """Put weights into a model; `ValueError` where one's kind differs: whole numbers or flags are not weights."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name in own and not (
            tensor.dtype == own[name].dtype or (tensor.is_floating_point() and own[name].is_floating_point())
        ):
            raise ValueError(f"{name} is {tensor.dtype}, expected {own[name].dtype}")
    model.load_state_dict(tensors)


def _with_joined_projections(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Runs of early versions hold an attention's query and key_value apart; here their rows are one tensor's."""
    import torch

    for name in [name for name in tensors if ".query." in name]:
        rest = name.replace(".query.", ".key_value.")
        if rest in tensors:
            query, key_value = tensors.pop(name), tensors.pop(rest)
            both = torch.cat([query, key_value]) if query.dim() else query  # AdamW counts steps without a dimension
            tensors[name.replace(".query.", ".query_key_value.")] = both
    return tensors


def check_size(
    make: "Callable[[], nn.Module]", weights: "Mapping[str, Tensor]", num_layers: int, window_bytes: int
) -> None:
    """Raise `ValueError` if settings ask for more than the weights that came with them, as a small file may.

    make: the model of these settings; it is made of shapes only. window_bytes: what it takes to hold one window.
    """
    import torch

    if num_layers > len(weights):  # to make so many, even of nothing, takes for ever
        raise ValueError(f"num_layers is {num_layers}, here are {len(weights)} arrays of weights")
    there = sum(tensor.numel() for tensor in weights.values())
    with torch.device("meta"):
        needed = sum(tensor.numel() for tensor in make().state_dict().values())
    if needed != there:
        raise ValueError(f"a model of its settings has {needed} weights, here are {there}")
    if window_bytes > max(SMALL, MOST_GROWTH * sum(tensor.nbytes for tensor in weights.values())):
        raise ValueError(f"a window of its settings takes {window_bytes} bytes, with {there} weights")
