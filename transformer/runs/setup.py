"""What a run is trained with: device, precision, threads and compiler."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from transformer.config import TrainingConfig
from transformer.errors import (
    CompilerError,
    ConfigError,
    MemoryExhaustedError,
    TrainingError,
)
from transformer.runs import distributed
from transformer.runs.console import tell


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a CUDA GPU if there is one. One that is not there raises `ConfigError`.

    "mps", an Apple GPU, is taken only where it is named: nothing here has been run on one. Of several processes on a
    machine each has a CUDA GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: no usable GPU; use --device cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: no usable Apple GPU; use --device cpu or auto")
    num_processes = distributed.local_world_size()
    if name == "mps" and num_processes > 1:
        raise ConfigError("device mps: one process only; use --device cpu or start it without torchrun")
    if name == "cuda" and num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"device cuda: {torch.cuda.device_count()} GPUs for {num_processes} processes on this machine; "
            "lower --nproc-per-node or use --device cpu"
        )
    return torch.device(name)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products. For processors torch knows it from 2.11 on; before, the answer is no."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False  # not known
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last on ARM


SMALL_MODEL = 1_000_000
"""Weights up to which a model is trained with one thread."""


def settle_precision(config: TrainingConfig, device: torch.device, before: TrainingConfig | None) -> TrainingConfig:
    """The configuration with "auto" decided: as in the run to resume, or by the hardware. Warns of a slow choice."""
    precision = config.precision
    if precision == "auto" and before is not None:
        precision = before.precision
    elif precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "float32"
    elif precision == "bf16" and hasattr(torch.cpu, "get_capabilities") and not multiplies_bf16(device):
        tell("precision bf16: this hardware has no such products, so float32 is many times faster")
    return replace(config, precision=precision)


def settle_threads(config: TrainingConfig, model: nn.Module) -> TrainingConfig:
    """The configuration with the number of threads decided, which torch uses from here on.

    config: with "auto" or a number.
    model: what is trained; a small one is slower with several threads, above all next to other programs.
    """
    threads = config.threads
    if threads == "auto":
        small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL_MODEL
        threads = 1 if small else max(1, (os.cpu_count() or 1) // 2)
    torch.set_num_threads(int(threads))
    return replace(config, threads=threads)


def keep_threads(config: TrainingConfig, before: TrainingConfig) -> TrainingConfig:
    """The configuration of a resumed run with the number of threads that it was begun with, which torch uses from here.

    A run that does not say, of an earlier version, goes on with what torch uses.
    """
    threads = before.threads if config.threads == "auto" else config.threads
    torch.set_num_threads(torch.get_num_threads() if threads == "auto" else threads)
    return replace(config, threads=threads)


def compiled(loss: Callable[[Any], Any], device: torch.device) -> Callable[[Any], Any]:
    """The loss as torch's compiler makes it: many operations in one pass over memory, the same numbers to rounding.

    It is made at the first batch, its gradient too; that nothing can be compiled here raises `CompilerError` at once.
    """
    # On a processor dropout must draw what it draws uncompiled; a GPU has generators of its own in either case.
    options: dict[str, Any] = {"fallback_random": device.type == "cpu"}
    torch._dynamo.config.optimize_ddp = False  # the loss lies inside of what several processes share, as one graph

    def run(batch: Any) -> Any:
        return loss(batch)

    run.__code__ = run.__code__.replace()  # its own: torch compiles one code for so many losses, and no more
    with explain_compiler_error():
        torch.compile(lambda x: x + 1, options=options)(torch.zeros(8, device=device))
    return torch.compile(run, options=options)


@contextmanager
def explain_compiler_error() -> Iterator[None]:
    """Make an error of torch's compiler a `CompilerError` of one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = next((line for line in lines if "raised:" not in line), type(error).__name__)
        raise CompilerError(
            f"compile: torch cannot compile here ({why.strip()}); --no-compile trains without"
        ) from error


@contextmanager
def explain_out_of_memory(where: str, advice: str) -> Iterator[None]:
    """Raise what torch says when memory is used up as a `MemoryExhaustedError` that says where, and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # on a CPU torch says it only in words
        said = re.search("out of memory|allocate memory|size calculation overflowed", str(error))
        if isinstance(error, TrainingError) or not (said or isinstance(error, MemoryError)):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MemoryExhaustedError(f"{where}: out of memory; {advice} ({reason})") from None
