"""Train a language model on characters or subwords, or a translator, into a run's folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transformer.config import (
    CharactersConfig,
    SubwordsConfig,
    TrainingConfig,
    TranslatorConfig,
)
from transformer.errors import CheckpointError, ConfigError, TextError
from transformer.files import read_json
from transformer.generation import Sampling, generate
from transformer.language import LanguageModel
from transformer.runs import distributed
from transformer.runs.callbacks import Callback
from transformer.runs.checkpoint import checkpoints
from transformer.runs.record import begun_by_this_launch
from transformer.runs.setup import pick_device
from transformer.runs.training import Trainer
from transformer.text.corpora import (
    TRAINING_SHARE,
    PairBatch,
    TextCorpus,
    character_tokenizer,
    fingerprint,
    read_text,
    subword_tokenizer,
)
from transformer.text.gpt2_start import check_covers, check_fits, load_start, load_vocabulary
from transformer.text.known_tokenizers import known_tokenizer
from transformer.text.runs import TextDocument, TextRun, check_vocabulary
from transformer.text.training import (
    Loss,
    describe,
    keep_sample,
    mean_loss,
    new_model,
    next_token_loss,
    settle_device_settings,
    settle_new_threads,
    train_run,
)
from transformer.text.translating import bleu, pair_corpus, translate
from transformer.translation import EncoderDecoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VALIDATION_ROWS = 64
"""Windows or pairs of the validation text that are evaluated at once, if nothing else is said."""


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
    config = settle_device_settings(config, device, folder, resume)
    if not text:
        raise TextError(f"{file}: no text in it")
    tokenizer = character_tokenizer(text)
    corpus = TextCorpus(text, tokenizer, config.model.context_length, device, "characters")
    model = new_model(LanguageModel, config, tokenizer.get_vocab_size(), device)
    config = settle_new_threads(config, model, resume)
    document = describe("characters", config, tokenizer, fingerprint(text))
    return train_run(
        _language_trainer(model, corpus, tokenizer, config.training, folder, document, VALIDATION_ROWS, callbacks),
        resume,
    )


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
    config = settle_device_settings(config, device, folder, resume)
    if not text:
        raise TextError(f"{file}: no text in it")
    if resume:
        previous_document = _previous_document(folder, config, start)
        started_from = previous_document.get("started_from")
        tokenizer = known_tokenizer(previous_document["tokenizer"], f"{folder}/run.json")
    elif start is not None:
        started_from = str(start)
        tokenizer = load_vocabulary(start)
        check_covers(tokenizer, text, start)
    else:
        started_from = None
        learned_text = text[: int(TRAINING_SHARE * len(text))]
        tokenizer = subword_tokenizer([learned_text], config.vocabulary_size, (), add_prefix_space=False)
        config = replace(config, vocabulary_size=tokenizer.get_vocab_size())
    check_vocabulary(tokenizer, config.vocabulary_size, start or folder)
    corpus = TextCorpus(text, tokenizer, config.model.context_length, device)
    if start is not None and not (resume and checkpoints(folder)):
        model = load_start(start, config).to(device)
    else:
        model = new_model(LanguageModel, config, config.vocabulary_size, device)
    config = settle_new_threads(config, model, resume)
    document = describe("subwords", config, tokenizer, fingerprint(text))
    document["started_from"] = started_from
    rows = config.training.batch_size
    trainer = _language_trainer(model, corpus, tokenizer, config.training, folder, document, rows, callbacks)
    if start is not None and not resume:
        loss = distributed.on_first_rank(lambda: mean_loss(trainer.loss, corpus.validation_windows(rows)))
        distributed.tell_once(f"before        loss {loss:.4f} on the validation text")
    return train_run(trainer, resume)


def _previous_document(folder: Path, config: SubwordsConfig, start: Path | None) -> dict[str, Any]:
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
        keep_sample(folder, step, tokenizer.decode(sample))
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

    device = pick_device(config.training.device)
    resume = begun_by_this_launch(folder) or resume
    config = settle_device_settings(config, device, folder, resume)
    _check_last_batch(len(pairs), config.training.batch_size)
    sentences = [sentence for pair in pairs for sentence in pair]
    tokenizer = subword_tokenizer(sentences, config.vocabulary_size)
    model = new_model(EncoderDecoder, config, tokenizer.get_vocab_size(), device)
    config = settle_new_threads(config, model, resume)
    training = config.training
    corpus = pair_corpus(pairs, tokenizer, model, "training pair")
    held_out = pair_corpus(validation, tokenizer, model, "validation pair")

    def loss(batch: PairBatch, smoothing: float = config.label_smoothing) -> Loss:
        logits = model(batch.source, batch.target, batch.source_mask)
        return next_token_loss(logits, batch.next_target, batch.target_mask, smoothing)

    def evaluate(step: int) -> dict[str, float]:
        translations = translate(model, tokenizer, [source for source, _ in validation])
        shown = [f"{s}\n  {t}\n  ({r})" for (s, r), t in zip(validation[:20], translations, strict=False)]
        keep_sample(folder, step, "\n".join(shown))
        score, _ = bleu(translations, [target for _, target in validation])
        starts = range(0, len(validation), VALIDATION_ROWS)
        batches = [held_out.gather(held_out.pairs[i : i + VALIDATION_ROWS]) for i in starts]
        return {"score": score, "validation_loss": mean_loss(lambda batch: loss(batch, 0.0), batches)}

    trainer = Trainer(
        model,
        lambda step: corpus.batch(training.seed, step, training.batch_size),
        training,
        folder,
        describe("translator", config, tokenizer, fingerprint(*sentences)),
        loss=loss,
        evaluate=lambda step: distributed.on_first_rank(lambda: evaluate(step)),
        callbacks=callbacks,
    )
    return train_run(trainer, resume)


def _check_last_batch(pairs: int, batch_size: int) -> None:
    """Refuse what leaves an epoch's last batch with fewer pairs than there are processes."""
    last = pairs % batch_size or batch_size
    if last < distributed.world_size():
        raise ConfigError(
            f"batch_size {batch_size}: an epoch's last batch has {last} of the {pairs} pairs, "
            f"for {distributed.world_size()} processes; take another"
        )
