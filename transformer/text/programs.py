"""What the programs do: train a language model or a translator into a run's folder, and use it from there."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.config import (
    CharactersConfig,
    LanguageConfig,
    SequenceConfig,
    SubwordsConfig,
    TrainingConfig,
    TranslatorConfig,
    type_error,
)
from transformer.errors import CheckpointError, ConfigError, TextError
from transformer.files import read_json
from transformer.generation import Sampling, TranslationReader, beam_search, generate, write_on
from transformer.gpt2 import load_gpt2
from transformer.language import LanguageModel
from transformer.runs import distributed
from transformer.runs.callbacks import Callback
from transformer.runs.checkpoint import SCHEMA, best_checkpoint, checkpoints, newest_checkpoint
from transformer.runs.folder import check_run
from transformer.runs.pictures import picture, title_of
from transformer.runs.record import begun_by_this_launch, check_same_recipe, newest_state
from transformer.runs.setup import keep_threads, pick_device, settle_precision, settle_threads
from transformer.runs.training import Trainer
from transformer.text.corpora import (
    PairBatch,
    PairCorpus,
    TextCorpus,
    boundaries,
    character_tokenizer,
    encode,
    fingerprint,
    read_text,
    subword_tokenizer,
)
from transformer.text.gpt2_start import check_covers, check_fits, load_start, load_vocabulary
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

Loss = tuple[Tensor, Tensor]
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
    """The configuration in a text run's run.json, whose fields `LanguageConfig` and `TrainingConfig` look into."""

    model: dict[str, Any]
    training: dict[str, Any]
    vocabulary_size: NotRequired[int]


class TextDocument(TypedDict):
    """A text run's run.json."""

    config: TextConfigDocument
    text: str
    tokenizer: str
    started_from: NotRequired[str | None]


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


def train_characters(
    file: Path,
    config: CharactersConfig,
    folder: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TextRun:
    """Train a character language model on a text file and return it at its best checkpoint.

    The last tenth of the text is for validation; the best checkpoint has the lowest loss over all of it.

    Args:
        file: a UTF-8 text, also gzipped.
        config: model and training settings.
        folder: the run's folder. One that holds a run is refused unless `resume`.
        resume: continue from the newest checkpoint.
        callbacks: what the run reports to while it trains; the weights are the same without.
    """
    text, device = read_text(file), pick_device(config.training.device)
    resume = begun_by_this_launch(folder) or resume
    config = _settle(config, device, folder, resume)
    if not text:
        raise TextError(f"{file}: no text in it")
    tokenizer = character_tokenizer(text)
    corpus = TextCorpus(text, tokenizer, config.model.context_length, device, "characters")
    model = _new_model(LanguageModel, config, tokenizer.get_vocab_size(), device)
    config = _settle_threads(config, model, resume)
    document = _describe("characters", config, tokenizer, fingerprint(text))
    return _train(_language_trainer(model, corpus, tokenizer, config.training, folder, document, 64, callbacks), resume)


def train_subwords(
    file: Path,
    config: SubwordsConfig,
    folder: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TextRun:
    """Train a language model over subwords on a text file and return it at its best checkpoint.

    The vocabulary is byte-pair encoding, learned from the first nine tenths of the text. The last tenth is for
    validation; the best checkpoint has the lowest loss over all of it.

    Args:
        file: a UTF-8 text, also gzipped.
        config: model, training and vocabulary settings; with `start` as `gpt2_start.settings_of` gives them.
        folder: the run's folder. One that holds a run is refused unless `resume`.
        start: a GPT-2's folder as Hugging Face writes it; training goes on from its weights, with its vocabulary.
        resume: continue from the newest checkpoint.
        callbacks: what the run reports to while it trains; the weights are the same without.
    """
    text, device = read_text(file), pick_device(config.training.device)
    resume = begun_by_this_launch(folder) or resume
    if start is not None:
        check_fits(config, start)
    config = _settle(config, device, folder, resume)
    if not text:
        raise TextError(f"{file}: no text in it")
    before = _subwords_before(folder, config, start) if resume else None
    tokenizer = (
        known_tokenizer(before["tokenizer"], f"{folder}/run.json") if before else _vocabulary(text, config, start)
    )
    if start is None and before is None:
        config = replace(config, vocabulary_size=tokenizer.get_vocab_size())
    check_vocabulary(tokenizer, config.vocabulary_size, start or folder)
    corpus = TextCorpus(text, tokenizer, config.model.context_length, device)
    if start is not None and not (resume and checkpoints(folder)):
        model = load_start(start, config).to(device)
    else:
        model = _new_model(LanguageModel, config, config.vocabulary_size, device)
    config = _settle_threads(config, model, resume)
    document = _describe("subwords", config, tokenizer, fingerprint(text))
    document["started_from"] = before.get("started_from") if before else start and str(start)
    rows = config.training.batch_size
    trainer = _language_trainer(model, corpus, tokenizer, config.training, folder, document, rows, callbacks)
    if start is not None and not resume:
        loss = distributed.on_first_rank(lambda: mean_loss(trainer.loss, corpus.validation_windows(rows)))
        distributed.tell(f"before        loss {loss:.4f} on the validation text")
    return _train(trainer, resume)


def _vocabulary(text: str, config: SubwordsConfig, start: Path | None) -> "Tokenizer":
    """The tokenizer of a new run: that of the folder it starts from, or one that is learned from the training text."""
    if start is None:
        return subword_tokenizer([text[: int(0.9 * len(text))]], config.vocabulary_size, (), add_prefix_space=False)
    tokenizer = load_vocabulary(start)
    check_covers(tokenizer, text, start)
    return tokenizer


def _subwords_before(folder: Path, config: SubwordsConfig, start: Path | None) -> dict[str, Any]:
    """The run.json of a run to resume; refused where it would begin with other weights or another vocabulary."""
    document: dict[str, Any] = read_json(folder / "run.json", TextDocument)
    size = document["config"].get("vocabulary_size")
    if config.vocabulary_size != size:
        raise ConfigError(f"{folder}: vocabulary_size was {size}, now {config.vocabulary_size}; it cannot change")
    if document.get("started_from") is not None and start is None and not checkpoints(folder):
        raise CheckpointError(f"{folder}: stopped before its first checkpoint; begin it again with --from")
    return document


def _language_trainer(
    model: LanguageModel,
    corpus: TextCorpus,
    tokenizer: "Tokenizer",
    training: TrainingConfig,
    folder: Path,
    document: dict[str, Any],
    rows: int,
    callbacks: Sequence[Callback],
) -> Trainer:
    """What trains a language model on one text. rows: windows of the validation text that are evaluated at once."""

    def loss(window: Tensor) -> Loss:
        return next_token_loss(model(window[:, :-1]), window[:, 1:])

    def evaluate(step: int) -> dict[str, float]:
        generator = torch.Generator(corpus.train.device).manual_seed(step)
        prompt = corpus.train[:1].tolist()
        sample = generate(model, [prompt], 500, Sampling(temperature=0.8), generator=generator)[0]
        _keep_sample(folder, step, tokenizer.decode(sample))
        validation = mean_loss(loss, corpus.validation_windows(rows))
        return {"score": -validation, "validation_loss": validation}

    return Trainer(
        model,
        lambda step: corpus.batch(training.seed, step, training.batch_size),
        training,
        folder,
        document,
        loss=loss,
        evaluate=lambda step: distributed.on_first_rank(lambda: evaluate(step)),
        callbacks=callbacks,
    )


def train_translator(
    pairs: Sequence[tuple[str, str]],
    validation: Sequence[tuple[str, str]],
    config: TranslatorConfig,
    folder: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TextRun:
    """Train a translator on pairs of sentences and return it at its best checkpoint.

    One byte-pair vocabulary, learned from the training pairs, serves both languages. The best checkpoint has the
    highest BLEU of its greedy translations of the validation pairs.

    Args:
        pairs: sentences and their translations.
        validation: pairs that choose the best checkpoint.
        config: model, training and vocabulary settings.
        folder: the run's folder. One that holds a run is refused unless `resume`.
        resume: continue from the newest checkpoint.
        callbacks: what the run reports to while it trains; the weights are the same without.
    """
    import sacrebleu  # noqa: F401 (missing now is better than missing at the first score)

    device, resume = pick_device(config.training.device), begun_by_this_launch(folder) or resume
    config = _settle(config, device, folder, resume)
    _check_last_batch(len(pairs), config.training.batch_size)
    sentences = [sentence for pair in pairs for sentence in pair]
    tokenizer = subword_tokenizer(sentences, config.vocabulary_size)
    model = _new_model(EncoderDecoder, config, tokenizer.get_vocab_size(), device)
    config = _settle_threads(config, model, resume)
    training = config.training
    corpus = _pair_corpus(pairs, tokenizer, model, "training pair")
    held_out = _pair_corpus(validation, tokenizer, model, "validation pair")

    def loss(batch: PairBatch, smoothing: float = config.label_smoothing) -> Loss:
        logits = model(batch.source, batch.target, batch.source_mask)
        return next_token_loss(logits, batch.next_target, batch.target_mask, smoothing)

    def evaluate(step: int) -> dict[str, float]:
        translations = translate(model, tokenizer, [source for source, _ in validation])
        shown = [f"{s}\n  {t}\n  ({r})" for (s, r), t in zip(validation[:20], translations, strict=False)]
        _keep_sample(folder, step, "\n".join(shown))
        score, _ = bleu(translations, [target for _, target in validation])
        batches = [held_out.gather(held_out.pairs[i : i + 64]) for i in range(0, len(validation), 64)]
        return {"score": score, "validation_loss": mean_loss(lambda batch: loss(batch, 0.0), batches)}

    trainer = Trainer(
        model,
        lambda step: corpus.batch(training.seed, step, training.batch_size),
        training,
        folder,
        _describe("translator", config, tokenizer, fingerprint(*sentences)),
        loss=loss,
        evaluate=lambda step: distributed.on_first_rank(lambda: evaluate(step)),
        callbacks=callbacks,
    )
    return _train(trainer, resume)


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


def read_config(folder: Path, kind: type[C]) -> C:
    """The configuration of the run in a folder. Raises `ConfigError` where it is another version's."""
    try:
        document = read_json(folder / "run.json")["config"]
        parts = {"model": SequenceConfig(**document["model"]), "training": TrainingConfig(**document["training"])}
        return kind(**{**document, **parts})
    except (KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{folder}/run.json: not a {kind.__name__} of this version ({error})") from None


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
            distributed.tell(f"sentence {number + 1}: {count}; translated in {len(parts)} parts")
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


def draw_alignment(model: EncoderDecoder, tokenizer: "Tokenizer", sentence: str, translation: str, path: Path) -> None:
    """Draw where the decoder's last block looked in a sentence before it wrote each word of the translation."""
    corpus = _pair_corpus([(sentence, translation)], tokenizer, model, "sentence")
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


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU of the whole corpus by sacreBLEU, 0 to 100, and the signature that says how it was counted."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    return metric.corpus_score(list(translations), [list(references)]).score, str(metric.get_signature())


@torch.no_grad()
def mean_loss(loss: Callable[[Any], Loss], batches: Sequence[Any]) -> float:
    """Mean loss of a token over all batches, in nats."""
    sums, counts = zip(*(loss(batch) for batch in batches), strict=True)
    return math.fsum(s.item() for s in sums) / sum(int(c) for c in counts)


def _settle(config: C, device: torch.device, folder: Path, resume: bool) -> C:
    """The configuration with its precision settled, and its threads as the run to resume has them."""
    before = read_config(folder, type(config)).training if resume else None
    training = settle_precision(config.training, device, before)
    return replace(config, training=keep_threads(training, before) if before else training)


def _settle_threads(config: C, model: Any, resume: bool) -> C:
    """The configuration of a new run with its number of threads settled."""
    return config if resume else replace(config, training=settle_threads(config.training, model))


def _new_model(kind: Any, config: TextConfig, vocabulary_size: int, device: Any) -> Any:
    torch.manual_seed(config.training.seed)
    return kind(LanguageConfig(**asdict(config.model), vocabulary_size=vocabulary_size)).to(device)


def _describe(kind: str, config: TextConfig, tokenizer: "Tokenizer", text: str) -> dict[str, Any]:
    """What a run is, as JSON: enough to make its model and its tokeniser again."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "config": asdict(config),
        "text": text,
        "tokenizer": tokenizer.to_str(),
        "versions": {"torch": torch.__version__},
    }


def _train(trainer: Trainer, resume: bool) -> TextRun:
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


def _pair_corpus(
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


def _check_last_batch(pairs: int, batch_size: int) -> None:
    """Refuse what leaves an epoch's last batch with fewer pairs than there are processes."""
    last = pairs % batch_size or batch_size
    if last < distributed.world_size():
        raise ConfigError(
            f"batch_size {batch_size}: an epoch's last batch has {last} of the {pairs} pairs, "
            f"for {distributed.world_size()} processes; take another"
        )


def _keep_sample(folder: Path, step: int, text: str) -> None:
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / f"step-{step:08d}.txt").write_text(text + "\n", encoding="utf-8")
