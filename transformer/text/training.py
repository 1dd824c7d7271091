"""What every training of a text model shares: the loss, the settled configuration, the run and its samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.config import (
    LanguageConfig,
    type_error,
)
from transformer.errors import CheckpointError
from transformer.files import read_json
from transformer.runs.checkpoint import SCHEMA
from transformer.runs.record import check_same_recipe, newest_state
from transformer.runs.setup import keep_threads, settle_precision, settle_threads
from transformer.runs.training import Trainer
from transformer.text.runs import C, TextConfig, TextDocument, TextRun, load_text_run, read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Loss = tuple[Tensor, Tensor]


def next_token_loss(logits: Tensor, following: Tensor, mask: Tensor | None = None, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of logits (B, L, V) against the tokens that follow (B, L), where mask is True: (sum, count).

    smoothing: share of the target's probability that is spread over the whole vocabulary (Szegedy et al. 2016).
    """
    ignored = -100
    if mask is not None:
        following = following.masked_fill(~mask, ignored)
    loss = F.cross_entropy(
        logits.flatten(0, 1), following.flatten(), reduction="sum", ignore_index=ignored, label_smoothing=smoothing
    )
    return loss, (following != ignored).sum()


@torch.no_grad()
def mean_loss(loss: Callable[[Any], Loss], batches: Sequence[Any]) -> float:
    """Mean loss of a token over all batches, in nats."""
    sums, counts = zip(*(loss(batch) for batch in batches), strict=True)
    return math.fsum(s.item() for s in sums) / sum(int(c) for c in counts)


def settle_device_settings(config: C, device: torch.device, folder: Path, resume: bool) -> C:
    """The configuration with its precision settled, and, of a run to resume, its number of threads."""
    before = read_config(folder, type(config)).training if resume else None
    training = settle_precision(config.training, device, before)
    return replace(config, training=keep_threads(training, before) if before else training)


def settle_new_threads(config: C, model: Any, resume: bool) -> C:
    """The configuration with its number of threads settled, unless `settle_device_settings` kept a resumed run's."""
    return config if resume else replace(config, training=settle_threads(config.training, model))


def new_model(kind: Any, config: TextConfig, vocabulary_size: int, device: Any) -> Any:
    """A model with the initial weights of the run's seed, on a device."""
    torch.manual_seed(config.training.seed)
    return kind(LanguageConfig(**asdict(config.model), vocabulary_size=vocabulary_size)).to(device)


def describe(kind: str, config: TextConfig, tokenizer: "Tokenizer", text: str) -> dict[str, Any]:
    """What a run is, as JSON: enough to make its model and its tokeniser again."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "config": asdict(config),
        "text": text,
        "tokenizer": tokenizer.to_str(),
        "versions": {"torch": torch.__version__},
    }


def train_run(trainer: Trainer, resume: bool) -> TextRun:
    """Start or resume a run, train it to its end, and open it at its best checkpoint."""
    folder, new = trainer.record.folder, trainer.record.document
    if resume:
        checkpoint = newest_state(folder)
        old = read_json((checkpoint or folder) / "run.json")
        if not isinstance(old, dict) or (old.get("kind"), old.get("schema")) != (new["kind"], SCHEMA):
            raise CheckpointError(f"{folder}/run.json: no {new['kind']} run of this version")
        if wrong := type_error(old, TextDocument):
            raise CheckpointError(f"{checkpoint or folder}/run.json: {wrong}")
        if (old["text"], old["tokenizer"]) != (new["text"], new["tokenizer"]):
            raise CheckpointError(f"{folder}: was trained on another text")
        check_same_recipe(old["config"], new["config"], folder)
        trainer.resume(checkpoint)
    else:
        trainer.start()
    trainer.train()
    return load_text_run(folder, device=trainer.device)


def keep_sample(folder: Path, step: int, text: str) -> None:
    """Leave a text that the model wrote at this step in the run's folder."""
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / f"step-{step:08d}.txt").write_text(text + "\n", encoding="utf-8")
