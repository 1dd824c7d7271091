"""Where a language model goes on from: a folder of a GPT-2 as Hugging Face writes it, with its vocabulary.

settings_of(FOLDER)               what its config.json says, as a training's settings; no torch
load_start(FOLDER, config)        its weights in a model of these settings
load_vocabulary(FOLDER)           its tokenizer: tokenizer.json, or vocab.json and merges.txt
"""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer.config import LanguageConfig, SequenceConfig, SubwordsConfig
from transformer.errors import CheckpointError, ConfigError
from transformer.files import MOST_JSON, read_json
from transformer.gpt2_config import (
    check_fixed_settings,
    integer,
    locate,
    make_config,
    read_config,
    transformer_settings,
)
from transformer.text.known_tokenizers import known_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from transformer.language import LanguageModel

LEARNING_RATE = 5e-5
"""Peak learning rate where a training goes on from such weights, if none is given: a twentieth of the usual one."""

FREE = ("context_length", "dropout", "activation_checkpointing")
"""Settings of the model that may differ from the folder's."""


def settings_of(folder: Path) -> SubwordsConfig:
    """The settings that a folder's weights ask for; those of the training are the usual ones with `LEARNING_RATE`.

    Raises:
        CheckpointError: there is no such folder, or no weights or no config.json in it.
        ConfigError: a setting is not supported.
    """
    path, _ = locate(folder)
    theirs = read_config(path, "gpt2", activation_function="gelu_new")
    check_fixed_settings(theirs, {"tie_word_embeddings": True}, path)
    model = make_config(
        SequenceConfig,
        path,
        context_length=integer(theirs, "n_positions", path),
        **transformer_settings(theirs, "n_embd", path),
    )
    usual = SubwordsConfig()
    training = replace(usual.training, learning_rate=LEARNING_RATE)
    return SubwordsConfig(vocabulary_size=integer(theirs, "vocab_size", path), model=model, training=training)


def check_fits(config: SubwordsConfig, folder: Path) -> None:
    """Raise `ConfigError` where settings ask for another model than the folder's, or for more positions."""
    theirs = settings_of(folder)
    if config.vocabulary_size != theirs.vocabulary_size:
        raise ConfigError(
            f"vocabulary_size {config.vocabulary_size}: {folder} has {theirs.vocabulary_size} tokens, "
            "and its vocabulary comes with it; leave --vocabulary-size out"
        )
    if config.model.context_length > theirs.model.context_length:
        raise ConfigError(
            f"context_length {config.model.context_length}: {folder} knows {theirs.model.context_length} positions; "
            "give at most as many"
        )
    for name in (each.name for each in fields(SequenceConfig) if each.name not in FREE):
        ours, there = getattr(config.model, name), getattr(theirs.model, name)
        if ours != there:
            raise ConfigError(f"{name} {ours}: {folder} has {there}; leave --{name.replace('_', '-')} out")


def load_start(folder: Path, config: SubwordsConfig) -> "LanguageModel":
    """A folder's weights in a model of these settings, on the CPU; of a longer context the first positions are kept."""
    import torch

    from transformer.gpt2 import load_gpt2
    from transformer.language import LanguageModel

    check_fits(config, folder)
    state = load_gpt2(folder).state_dict()
    state["embedding.positions.weight"] = state["embedding.positions.weight"][: config.model.context_length]
    torch.manual_seed(config.training.seed)
    model = LanguageModel(LanguageConfig(**asdict(config.model), vocabulary_size=config.vocabulary_size))
    model.load_state_dict(state)
    return model


def load_vocabulary(folder: Path) -> "Tokenizer":
    """A folder's tokenizer. One that is missing, or is not GPT-2's kind, raises `CheckpointError`."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return known_tokenizer(json.dumps(read_json(path)), str(path))
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise CheckpointError(f"{folder}: no vocabulary in it (expected tokenizer.json, or vocab.json and merges.txt)")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": read_json(vocabulary), "merges": _merges(merges)}
    document: dict[str, Any] = {"model": model, "pre_tokenizer": byte_level, "decoder": byte_level}
    return known_tokenizer(json.dumps(document), str(vocabulary))


def _merges(path: Path) -> list[str]:
    """Lines of a merges.txt, which may begin with its version."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {MOST_JSON}")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return [line for line in lines if line and not line.startswith("#version")]


def check_covers(tokenizer: "Tokenizer", text: str, folder: Path) -> None:
    """Raise `CheckpointError` where a character of the text has no tokens: it would be left out in silence."""
    from tokenizers import pre_tokenizers

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in sorted(set(text)):
        written = "".join(piece for piece, _ in bytes_of.pre_tokenize_str(character))
        if any(tokenizer.token_to_id(byte) is None for byte in written):
            raise CheckpointError(f"{folder}: its vocabulary cannot write the character {character!r} of the text")
