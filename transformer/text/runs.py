"""A text run's folder, opened: a language model or a translator, with its tokeniser."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

import torch

from transformer.config import (
    EARLY_TRAINING,
    CharactersConfig,
    LanguageConfig,
    SequenceConfig,
    SubwordsConfig,
    TrainingConfig,
    TranslatorConfig,
    type_error,
)
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json
from transformer.gpt2 import load_gpt2
from transformer.language import LanguageModel
from transformer.runs.checkpoint import SCHEMA, best_checkpoint, newest_checkpoint
from transformer.runs.folder import check_run
from transformer.text.known_tokenizers import known_tokenizer
from transformer.translation import EncoderDecoder
from transformer.weights import check_size, load_weights, read_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer


MODELS: dict[str, type[LanguageModel | EncoderDecoder]] = {
    "characters": LanguageModel,
    "subwords": LanguageModel,
    "translator": EncoderDecoder,
}
"""What a run of each kind holds."""


TextConfig = CharactersConfig | SubwordsConfig | TranslatorConfig


C = TypeVar("C", CharactersConfig, SubwordsConfig, TranslatorConfig)


@dataclass(frozen=True)
class TextRun:
    """A run's folder, opened: its model at one checkpoint, and the tokeniser that it was trained with."""

    folder: Path
    checkpoint: Path
    model: LanguageModel | EncoderDecoder
    tokenizer: "Tokenizer"

    def __post_init__(self) -> None:
        check_vocabulary(self.tokenizer, self.model.config.vocabulary_size, self.checkpoint)


def check_vocabulary(tokenizer: "Tokenizer", vocabulary_size: int, where: Path) -> None:
    """Raise `CheckpointError` where a tokenizer has tokens that a model of so many lacks. where: what it names."""
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= vocabulary_size:
        raise CheckpointError(f"{where}: its tokenizer has a token {last}, its model knows {vocabulary_size}")


class TextConfigDocument(TypedDict):
    """The configuration in a text run's run.json; `LanguageConfig` and `TrainingConfig` check its fields."""

    model: dict[str, Any]
    training: dict[str, Any]
    vocabulary_size: NotRequired[int]


class TextDocument(TypedDict):
    """A text run's run.json."""

    config: TextConfigDocument
    text: str
    tokenizer: str
    started_from: NotRequired[str | None]


def load_text_run(folder: str | Path, which: str = "best", device: str | torch.device = "cpu") -> TextRun:
    """Open a run at its "best" or its "last" checkpoint, or Hugging Face's folder of a GPT-2 with its tokenizer.json.

    What cannot be used raises `CheckpointError`.
    """
    folder, theirs = Path(folder), Path(folder, "tokenizer.json")
    if (folder / "config.json").exists() and not (folder / "run.json").exists():
        gpt2 = load_gpt2(folder).to(device).eval()
        return TextRun(folder, folder, gpt2, known_tokenizer(json.dumps(read_json(theirs)), str(theirs)))
    check_run(folder)
    checkpoint = best_checkpoint(folder) if which == "best" else newest_checkpoint(folder)
    document = read_json(checkpoint / "run.json")
    if not isinstance(document, dict) or document.get("kind") not in list(MODELS):
        raise CheckpointError(f"{checkpoint}/run.json: no run of a language model or a translator")
    if document.get("schema") != SCHEMA:
        raise CheckpointError(f"{checkpoint}/run.json: schema {document.get('schema')}, this version reads {SCHEMA}")
    if wrong := type_error(document, TextDocument):
        raise CheckpointError(f"{checkpoint}/run.json: {wrong}")
    tokenizer = known_tokenizer(document["tokenizer"], f"{checkpoint}/run.json")
    kind, weights = MODELS[document["kind"]], read_tensors(checkpoint / "model.safetensors")
    known = tokenizer.get_vocab_size()
    if document["kind"] == "subwords":  # GPT-2's embedding may have more rows than its vocabulary has tokens
        known = document["config"].get("vocabulary_size", known)
    try:
        shape = LanguageConfig(**document["config"]["model"], vocabulary_size=known)
        check_size(
            lambda: kind(shape), weights, shape.num_layers, 8 * shape.context_length * shape.width * shape.num_layers
        )
        model = kind(shape)
        load_weights(model, weights)
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this version ({reason})") from None
    return TextRun(folder, checkpoint, model.to(device).eval(), tokenizer)


def read_config(path: Path, kind: type[C]) -> C:
    """The configuration of a run, or of a JSON file; it may come from anywhere.

    path: a run's folder, its run.json, or a file of what `dt-text train-... --print-config` prints.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: it is not a configuration of this kind and version.
    """
    path = path / "run.json" if path.is_dir() else path
    document = read_json(path)
    try:
        document = document.get("config", document)
        names = [field.name for field in fields(kind)]
        if sorted(document) != sorted(names):
            raise ConfigError(f"it has {', '.join(document) or 'nothing'}, expected {', '.join(names)}")
        training = TrainingConfig(**EARLY_TRAINING | document["training"])
        parts = {"model": SequenceConfig(**document["model"]), "training": training}
        return kind(**{**document, **parts})
    except (AttributeError, KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{path}: not a {kind.__name__} of this version ({error})") from None
