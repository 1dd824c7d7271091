"""Translate sentences with a trained model, score translations, and draw where the model looked."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from transformer.errors import TextError
from transformer.generation import Sampling, TranslationReader, beam_search, write_on
from transformer.runs import distributed
from transformer.runs.pictures import picture, title_of
from transformer.text.corpora import (
    PairCorpus,
    boundaries,
    encode,
)
from transformer.translation import EncoderDecoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


WORD_START = "\u0120"
"""Byte-level tokenizers write the space before a word as this character."""


@torch.no_grad()
def translate(
    model: EncoderDecoder,
    tokenizer: "Tokenizer",
    sentences: Sequence[str],
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Translations of sentences, one line each: greedy with one beam, otherwise the best of `beams` (`beam_search`).

    A blank sentence stays blank. One that is longer than the model reads is translated in chunks, which is printed.
    """
    model.eval()
    limit = model.config.context_length
    chunks, owners = list[list[int]](), list[int]()
    for number, sentence in enumerate(sentences):
        tokens = encode(tokenizer, sentence) if sentence.strip() else []
        parts = _word_chunks(tokenizer, tokens, limit)
        if len(parts) > 1:
            count = f"{len(tokens)} tokens, the model reads {limit}"
            distributed.tell_once(f"sentence {number + 1}: {count}; translated in {len(parts)} parts")
        chunks += parts
        owners += [number] * len(parts)
    lines: list[list[str]] = [[] for _ in sentences]
    for owner, text in zip(owners, _translate_chunks(model, tokenizer, chunks, beams, length_penalty), strict=True):
        lines[owner].append(text)
    return [" ".join(line) for line in lines]


def _word_chunks(tokenizer: "Tokenizer", tokens: list[int], limit: int) -> list[list[int]]:
    """The tokens in lists of at most `limit`, cut before the last word that does not fit, or inside a longer word."""
    chunks = []
    while len(tokens) > limit:
        starts_word = (
            i for i in range(limit, 0, -1) if (tokenizer.id_to_token(tokens[i]) or "").startswith(WORD_START)
        )
        end = next(starts_word, limit)
        chunks.append(tokens[:end])
        tokens = tokens[end:]
    return [*chunks, tokens] if tokens else chunks


def _translate_chunks(
    model: EncoderDecoder, tokenizer: "Tokenizer", sources: list[list[int]], beams: int, length_penalty: float
) -> list[str]:
    """The translation of each list of tokens, without line ends."""
    (begin, end), limit = boundaries(tokenizer), model.config.context_length
    written: dict[int, list[int]] = {}
    by_length = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for rows in (by_length[i : i + 64] for i in range(0, len(by_length), 64)):
        reader = TranslationReader(model, [sources[row] for row in rows])
        starts, new_tokens = [[begin]] * len(rows), min(limit - 1, 2 * len(sources[rows[-1]]) + 10)
        if beams == 1:
            texts = write_on(reader, starts, new_tokens, Sampling(temperature=0), stop={end})
        else:
            found = beam_search(reader, starts, new_tokens, width=beams, stop={end}, length_penalty=length_penalty)
            texts = [text for text, _ in found]
        written |= dict(zip(rows, texts, strict=True))
    decoded = [tokenizer.decode(written[row]).strip() for row in range(len(sources))]
    return [re.sub(r"[\r\n]+", " ", text) for text in decoded]


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU of the whole corpus by sacreBLEU, 0 to 100, and the signature that says how it was counted."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    return metric.corpus_score(list(translations), [list(references)]).score, str(metric.get_signature())


def draw_alignment(model: EncoderDecoder, tokenizer: "Tokenizer", sentence: str, translation: str, path: Path) -> None:
    """Draw where the decoder's last block looked in a sentence before it wrote each word of the translation."""
    corpus = pair_corpus([(sentence, translation)], tokenizer, model, "sentence")
    batch = corpus.gather(corpus.pairs)
    weights = model.eval().alignments(batch.source, batch.target, batch.source_mask)[-1, 0].mean(0)  # (L, M)
    read, written = (
        [title_of(tokenizer.decode([token])) for token in row] for row in (batch.source[0], batch.next_target[0])
    )
    with picture(path, 1.5 + 0.45 * len(read), 1 + 0.32 * len(written), dpi=120) as figure:
        axes = figure.subplots()
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(read)), read, rotation=60, ha="left", parse_math=False)
        axes.set_yticks(range(len(written)), [word or "(end)" for word in written], parse_math=False)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)


def pair_corpus(
    pairs: Sequence[tuple[str, str]], tokenizer: "Tokenizer", model: EncoderDecoder, what: str
) -> PairCorpus:
    """Tokenised pairs; a sentence that is longer than the model sees is refused."""
    limit, device = model.config.context_length, model.embedding.tokens.weight.device
    tokenised = [(encode(tokenizer, source), encode(tokenizer, target)) for source, target in pairs]
    for number, (source, target) in enumerate(tokenised, 1):
        longest = max(len(source), len(target) + 1)
        if longest > limit:
            raise TextError(f"{what} {number}: {longest} tokens, context_length is {limit}")
    return PairCorpus(tokenised, *boundaries(tokenizer), device)
