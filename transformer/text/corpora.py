"""Text as tokens, and tokens as batches: files in, tokenisers (of the `tokenizers` library), two kinds of corpus.

Each batch is a pure function of (seed, step), as the training loop asks.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from transformer.errors import TextError
from transformer.runs import distributed
from transformer.text.known_tokenizers import named_panic
from transformer.weights import MOST_GROWTH, SMALL

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
"""Tokens of the translator's vocabulary that are no text; they have the ids 0, 1 and 2."""

TRAINING_SHARE = 0.9
"""Share of one long text that is trained on; the rest is for validation."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, also gzipped (`.gz`), with `\\n` at the end of its lines (see `with_line_feeds`).

    A byte order mark is dropped. A pipe or a device is refused: it may never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        content = _unzipped(path) if path.suffix == ".gz" else path.read_bytes()
        return with_line_feeds(content.decode("utf-8-sig"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TextError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def with_line_feeds(text: str) -> str:
    """The text with `\\n` in place of `\\r\\n`, and of a lone `\\r` where no `\\n` is in the text.

    Otherwise a lone `\\r` stays, as a character of its line: as a line end it would shift the lines of one file against
    those of its translation.
    """
    if "\n" not in text:
        return text.replace("\r", "\n")
    return re.sub("(?<!\r)\r+\n", "\n", text)  # two of them where a file was converted twice


def _unzipped(path: Path) -> bytes:
    """What a gzipped file holds, unless it would fill the memory: text grows some threefold, tables a hundredfold."""
    most = max(SMALL, MOST_GROWTH * path.stat().st_size)
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"more than {most} bytes, which no gzipped text of its size holds")
    return content


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, without their ends."""
    return lines_of(read_text(path))


def lines_of(text: str) -> list[str]:
    """Lines of a text, without their ends. A form feed and other separators are characters of their line."""
    return with_line_feeds(text).removesuffix("\n").split("\n") if text else []


def read_pairs(source: Path, target: Path) -> list[tuple[str, str]]:
    """Line i of one file with line i of the other; refused where one is empty or has more lines."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise TextError(f"{source} has {len(sources)} lines, {target} has {len(targets)}: they are no translations")
    for path, lines in ((source, sources), (target, targets)):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise TextError(f"{path}: line {number} is empty")
    if not sources:
        raise TextError(f"{source}: no line in it")
    return list(zip(sources, targets, strict=True))


def fingerprint(*texts: str) -> str:
    """SHA-256 of texts, to know them again when a run goes on."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def character_tokenizer(text: str) -> "Tokenizer":
    """One token for each different character of the text, in their order."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m:.)"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def subword_tokenizer(
    lines: Sequence[str],
    vocabulary_size: int,
    special: Sequence[str] = (PAD, BEGIN, END),
    add_prefix_space: bool = True,
) -> "Tokenizer":
    """Byte-pair encoding of bytes (Sennrich et al. 2016; GPT-2), learned from lines; no text is unknown to it.

    lines: texts to learn from.
    vocabulary_size: tokens at most; the 256 bytes and the special ones are among them.
    special: tokens that are no text; they have the first ids.
    add_prefix_space: begin each text with a space, so that a first word is like any other.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    # Room is taken for as many as are asked for; each but the first makes the lines shorter by one at least.
    most = 256 + len(special) + sum(len(line.encode()) + 1 for line in lines)
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary_size, most),
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() > vocabulary_size:
        raise TextError(f"vocabulary_size {vocabulary_size} is less than the {tokenizer.get_vocab_size()} of all bytes")
    return tokenizer


def boundaries(tokenizer: "Tokenizer") -> tuple[int, int]:
    """The ids of BEGIN and END in a translator's vocabulary."""
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    if begin is None or end is None:
        raise TextError(f"a tokeniser without {BEGIN} and {END} is no translator's")
    return begin, end


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Tokens of a text; a character that the tokeniser has never seen raises `TextError`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8 come as surrogates
        raise TextError(f"{text[error.start]!r} is no character: the text is not UTF-8") from None
    try:
        with named_panic():
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception as error:  # the library raises nothing narrower
        unknown = next((c for c in text if tokenizer.token_to_id(c) is None), text)
        raise TextError(f"character {unknown!r} is not in the text that the model learned from") from error


class TextCorpus:
    """One long text; its last tenth is kept for validation (nanoGPT's split)."""

    def __init__(
        self, text: str, tokenizer: "Tokenizer", context_length: int, device: torch.device, unit: str = "tokens"
    ):
        tokens = torch.tensor(encode(tokenizer, text), device=device)
        cut = int(TRAINING_SHARE * len(tokens))
        self.train, self.validation, self.context_length = tokens[:cut], tokens[cut:], context_length
        if len(self.train) <= context_length or len(self.validation) < 2:
            raise TextError(f"a text of {len(tokens)} {unit} is too short for context_length {context_length}")

    def batch(self, seed: int, step: int, batch_size: int) -> Tensor:
        """Windows that start anywhere in the training text, this process's share: (B, context_length + 1) tokens."""
        rng = np.random.default_rng((seed, step))
        starts = torch.from_numpy(rng.integers(len(self.train) - self.context_length, size=(batch_size, 1)))
        rows = distributed.shard(starts) + torch.arange(self.context_length + 1)
        return self.train[rows.to(self.train.device)]

    def validation_windows(self, batch_size: int) -> list[Tensor]:
        """The whole validation text in windows of (B, up to context_length + 1), in which each token is next once."""
        length, tokens = self.context_length, self.validation
        whole = (len(tokens) - 1) // length
        windows = tokens[: whole * length + 1].unfold(0, length + 1, length)  # (whole, length + 1)
        rest = tokens[whole * length :][None]  # (1, up to length)
        return [*torch.split(windows, batch_size), *([rest] if rest.shape[1] > 1 else [])]


@dataclass(frozen=True)
class PairBatch:
    """Sentences and their translations, padded on the right."""

    source: Tensor  # (B, M) int64
    source_mask: Tensor  # (B, M) bool, True where a token is real
    target: Tensor  # (B, L) int64, from BEGIN on
    next_target: Tensor  # (B, L) int64, the target shifted by one, to END
    target_mask: Tensor  # (B, L) bool


class PairCorpus:
    """Pairs of token lists, drawn in batches of sentences of about one length."""

    def __init__(self, pairs: Sequence[tuple[list[int], list[int]]], begin: int, end: int, device: torch.device):
        self.pairs, self.begin, self.end, self.device = pairs, begin, end, device
        self._epoch: tuple[tuple[int, int, int], list[np.ndarray]] | None = None

    def batch(self, seed: int, step: int, batch_size: int) -> PairBatch:
        """This process's share of the batch of a step; every pair comes once in an epoch."""
        epoch, place = divmod(step, -(-len(self.pairs) // batch_size))
        if self._epoch is None or self._epoch[0] != (seed, epoch, batch_size):
            self._epoch = (seed, epoch, batch_size), self._shuffle(seed, epoch, batch_size)
        return self.gather(distributed.shard([self.pairs[i] for i in self._epoch[1][place]]))

    def _shuffle(self, seed: int, epoch: int, batch_size: int) -> list[np.ndarray]:
        """An epoch's batches: pairs in random order, sorted by length within pools of 32 batches, little padding."""
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.pairs))
        lengths = np.array([len(source) + len(target) for source, target in self.pairs])
        pools = np.split(order, range(32 * batch_size, len(order), 32 * batch_size))
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = np.split(order, range(batch_size, len(order), batch_size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def gather(self, pairs: Sequence[tuple[list[int], list[int]]]) -> PairBatch:
        """Pairs as one padded batch."""
        source, source_mask = self._pad([source for source, _ in pairs])
        target, target_mask = self._pad([[self.begin, *target] for _, target in pairs])
        next_target, _ = self._pad([[*target, self.end] for _, target in pairs])
        return PairBatch(source, source_mask, target, next_target, target_mask)

    def _pad(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]  # (B, L)
        tokens = np.zeros(mask.shape, np.int64)
        tokens[mask] = np.concatenate([np.array(row) for row in rows])
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device)
