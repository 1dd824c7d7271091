"""Writing on: greedy, sampled, or by beam search, one token at a time, for many prompts of different lengths at once.

A model sees `context_length` tokens. When a row is about to grow past that, its window is anchored again: it keeps half
of it, read again from position 0. Where a window begins is a function of only the row's length (`window_start`), so a
row's tokens depend neither on the other rows nor on whether keys and values are cached.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.blocks import BlockCache, fast_view
from transformer.errors import LogitsError
from transformer.language import LanguageModel
from transformer.translation import EncoderDecoder

TINY = 1e-30
"""Temperatures and probabilities much smaller are 0 in float32, and logits over them infinite."""

MAX_BEAMS = 1000
"""More take time and memory without an end, and a search so wide finds worse texts (Koehn and Knowles 2017)."""

MAX_LENGTH_PENALTY = 10
"""Lengths to a much higher power are past what a float holds, and far past what anyone has found useful."""


def window_start(length: int, context_length: int) -> int:
    """First token that the model sees of a text of `length` tokens: it moves on by half a window at a time."""
    if length <= context_length:
        return 0
    stride = max(1, context_length // 2)
    return stride * math.ceil((length - context_length) / stride)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from its logits. Temperature 0 is greedy: it takes the most likely token."""

    temperature: float = 1.0
    """Logits are divided by this; 0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens."""
    top_p: float | None = None
    """Only the fewest most likely tokens with probabilities that add up to p (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, not {self.temperature}")
        if 0 < self.temperature < TINY:
            raise ValueError(f"temperature must be 0, or at least {TINY}, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not TINY <= self.top_p <= 1:
            raise ValueError(f"top_p must be from {TINY} to 1, not {self.top_p}")

    def pick(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token for each row of logits (B, V): (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What `pick` draws from, at a temperature above 0: (B, V)."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            lowest_kept = logits.topk(self.top_k).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(-1) - ordered  # probability of the tokens more likely than this one
            kept = torch.zeros_like(probabilities).scatter(1, order, ordered.where(before < self.top_p, 0.0))
            probabilities = kept / kept.sum(-1, keepdim=True)
        return probabilities


class Reader(Protocol):
    """Logits of the next token of several texts that grow between calls."""

    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """One row for each text: (B, V)."""

    def keep(self, rows: Sequence[int]) -> None:
        """The next call's texts continue these rows of the last call's; a row may be kept more than once."""


class LanguageReader:
    """Reads texts with a language model; keys and values are kept between calls while no window is anchored again."""

    def __init__(self, model: LanguageModel, use_cache: bool = True):
        self.model, self.use_cache = fast_view(model), use_cache
        self.starts: list[int] = []  # where the cached windows begin
        self.cache: list[BlockCache] | None = None
        self.real: Tensor | None = None  # (B, columns of the cache), False where they hold padding; None: nowhere

    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """One row for each text: (B, V)."""
        device, limit = self.model.embedding.tokens.weight.device, self.model.config.context_length
        starts = [window_start(len(text), limit) for text in texts]
        last = [len(text) - start - 1 for text, start in zip(texts, starts, strict=True)]
        one_length = len(set(last)) == 1
        if self.cache is not None and self.cache[0].own.length < limit and starts == self.starts:
            newest = torch.tensor([[text[-1]] for text in texts], device=device)  # (B, 1)
            positions = torch.tensor(last[:1] if one_length else [[each] for each in last], device=device)
            self.real = None if self.real is None else F.pad(self.real, (0, 1), value=True)
            return self.model(newest, positions=positions, mask=self.real, cache=self.cache)[:, 0]
        windows = [text[start:] for text, start in zip(texts, starts, strict=True)]
        tokens = pad(windows, device)  # (B, L)
        read = torch.tensor([[each] for each in last], device=device)  # (B, 1)
        self.starts = starts
        self.cache = self.model.transformer.make_cache(len(texts), limit) if self.use_cache else None
        self.real = None if one_length else torch.arange(tokens.shape[1], device=device) <= read
        return self.model(tokens, read=read, cache=self.cache)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """The next call's texts continue these rows of the last call's."""
        if self.cache is None or list(rows) == list(range(len(self.starts))):
            return
        self.starts = [self.starts[row] for row in rows]
        self.cache = [layer.rows(rows) for layer in self.cache]
        self.real = None if self.real is None else self.real[torch.tensor(rows, device=self.real.device)]


class TranslationReader:
    """Reads targets of sources that were encoded once; each row belongs to one source."""

    def __init__(self, model: EncoderDecoder, sources: Sequence[Sequence[int]], use_cache: bool = True):
        device = model.embedding.tokens.weight.device
        lengths = torch.tensor([len(source) for source in sources], device=device)
        padded = pad(sources, device)  # (B, M)
        self.model, self.use_cache = fast_view(model), use_cache
        self.source_mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]  # (B, M)
        self.memory = model.encode(padded, self.source_mask)  # (B, M, D)
        self.cache: list[BlockCache] | None = None

    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """One row for each target so far: (B, V). Targets of one call have one length."""
        device, limit = self.memory.device, self.model.config.context_length
        length = len(texts[0])
        if any(len(text) != length for text in texts) or length > limit:
            raise ValueError(f"targets of {sorted({len(t) for t in texts})} tokens; expected one length up to {limit}")
        tokens, last = pad(texts, device), torch.tensor([length - 1], device=device)
        if self.cache is not None:
            newest = tokens[:, -1:]  # (B, 1); the others are in the cache
            return self.model.decode(newest, self.memory, self.source_mask, positions=last, cache=self.cache)[:, 0]
        if self.use_cache:
            self.cache = self.model.decoder.make_cache(len(texts), limit, self.memory.shape[1])
        return self.model.decode(tokens, self.memory, self.source_mask, read=last, cache=self.cache)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """The next call's targets continue these rows of the last call's."""
        if list(rows) == list(range(len(self.memory))):
            return
        index = torch.tensor(rows, device=self.memory.device)
        self.memory, self.source_mask = self.memory[index], self.source_mask[index]
        self.cache = [layer.rows(rows) for layer in self.cache] if self.cache else None


def _finite(logits: Tensor) -> Tensor:
    """Logits as they are; `LogitsError` for NaN and infinity: no token could be drawn from them."""
    if not logits.isfinite().all():
        raise LogitsError("the model's logits are NaN or infinite: its weights are too large to compute with")
    return logits


def pad(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Texts of different lengths as one tensor, zeros on the right: (B, L)."""
    longest = max(len(text) for text in texts)
    padded = [[*text, *[0] * (longest - len(text))] for text in texts]
    return torch.tensor(padded, device=device)


@torch.inference_mode()
def write_on(
    reader: Reader,
    texts: Sequence[Sequence[int]],
    new_tokens: int,
    sampling: Sampling,
    *,
    stop: Set[int] = frozenset(),
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Each text with at most `new_tokens` after it, ending with a `stop` token if one comes. Raises `LogitsError`."""
    written = [list(text) for text in texts]
    writing = list(range(len(written)))
    for _ in range(new_tokens):
        logits = _finite(reader.next_logits([written[row] for row in writing]))
        chosen = sampling.pick(logits, generator).tolist()
        for row, token in zip(writing, chosen, strict=True):
            written[row].append(token)
        going_on = [i for i, token in enumerate(chosen) if token not in stop]
        if not going_on:
            break
        if len(going_on) < len(writing):
            reader.keep(going_on)
            writing = [writing[i] for i in going_on]
    return written


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    sampling: Sampling,
    *,
    stop: Set[int] = frozenset(),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Each prompt followed by what the model writes, as lists of tokens.

    The tokens are the same with and without the cache, apart from rounding.

    Args:
        model: the language model.
        prompts: at least one token each; they may differ in length.
        new_tokens: the most tokens to write after each prompt.
        sampling: how tokens are drawn.
        stop: tokens that end a text when they are written.
        generator: draws the tokens; None takes torch's own.
        use_cache: reuse keys and values between tokens.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    reader = LanguageReader(model.eval(), use_cache)
    return write_on(reader, prompts, new_tokens, sampling, stop=stop, generator=generator)


@torch.inference_mode()
def beam_search(
    reader: Reader,
    texts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    width: int,
    stop: Set[int],
    length_penalty: float = 1.0,
) -> list[tuple[list[int], float]]:
    """The most likely continuation of each text, and its score.

    A score is the sum of the new tokens' log-probabilities divided by their number to the power `length_penalty` (Wu et
    al. 2016 without the constants). A text that ends with a `stop` token is finished. A search ends when `width` texts
    have finished, or `new_tokens` are written.

    Args:
        reader: gives the logits of next tokens.
        texts: the beginnings.
        new_tokens: the most tokens to write.
        width: texts that are kept side by side for each beginning.
        stop: tokens that finish a text.
        length_penalty: 0 favours short texts, 1 takes the mean.

    Raises:
        ValueError: the length penalty is below 0 or above `MAX_LENGTH_PENALTY`.
    """
    if not 0 <= length_penalty <= MAX_LENGTH_PENALTY:
        raise ValueError(f"length_penalty must be from 0 to {MAX_LENGTH_PENALTY}, not {length_penalty}")
    searches = [Search(list(text), width, stop, length_penalty) for text in texts]
    going_on = searches
    for count in range(1, new_tokens + 1):
        beams = [beam for search in going_on for beam in search.beams]
        log_probabilities = _finite(reader.next_logits(beams)).float().log_softmax(-1).cpu()  # (beams of all texts, V)
        parts = torch.split(log_probabilities, [len(search.beams) for search in going_on])
        kept: list[int] = []
        first = 0
        for search, part in zip(going_on, parts, strict=True):
            kept += [first + row for row in search.advance(part, last=count == new_tokens)]
            first += len(part)
        going_on = [search for search in going_on if search.beams]
        if not going_on:
            break
        reader.keep(kept)
    return [max(search.finished)[::-1] for search in searches]


class Search:
    """The beams of one text: those that go on, with their log-probabilities, and the finished, with their scores."""

    def __init__(self, text: list[int], width: int, stop: Set[int], length_penalty: float):
        self.width, self.stop, self.length_penalty = width, stop, length_penalty
        self.beams, self.totals, self.count = [text], torch.zeros(1), 0
        self.finished: list[tuple[float, list[int]]] = []

    def advance(self, log_probabilities: Tensor, last: bool) -> list[int]:
        """Write a token by its log-probabilities (beams, V); which of the old beams each new one continues.

        The search is over, and no beam goes on, after the `last` token or once as many as the width have finished.
        """
        self.count += 1
        totals = self.totals[:, None] + log_probabilities  # (beams, V)
        # Every beam could offer a stop token, so twice the width leaves enough that go on.
        best = totals.flatten().topk(min(2 * self.width, totals.numel()))
        going_on: list[tuple[float, int, list[int]]] = []
        for total, flat in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(flat, totals.shape[1])
            text = [*self.beams[row], token]
            if token in self.stop:
                self.finished.append((self._score(total), text))
            elif len(going_on) < self.width:
                going_on.append((total, row, text))
        if last or len(self.finished) >= self.width:
            self.finished += [(self._score(total), text) for total, _, text in going_on]
            going_on = []
        self.beams = [text for _, _, text in going_on]
        self.totals = torch.tensor([total for total, _, _ in going_on])
        return [row for _, row, _ in going_on]

    def _score(self, total: float) -> float:
        return total / self.count**self.length_penalty
