"""The GRU translator on the Transformer's own pairs: same vocabulary, batches, loss, schedule and scoring.

    python -m benchmarks.gru_baseline DATA --source de --target en --output runs/gru-de-en

DATA is a folder with train, val and test_2016_flickr files, each with .de.gz and .en.gz (Multi30k's task 1, raw).
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional

from benchmarks.gru_translator import GRUReader, GRUTranslator
from transformer.config import TranslatorConfig
from transformer.generation import beam_search
from transformer.runs.checkpoint import best_checkpoint
from transformer.runs.training import Trainer
from transformer.text.corpora import PairBatch, PairCorpus, boundaries, encode, read_pairs, subword_tokenizer
from transformer.text.training import mean_loss, next_token_loss
from transformer.text.translating import bleu
from transformer.weights import read_tensors


@dataclass(frozen=True, kw_only=True)
class Options:
    """A GRU with attention, trained as the Transformer is."""

    data: Positional[Path]
    """Folder of the pairs."""
    source: str = "de"
    """Language to translate from."""
    target: str = "en"
    """Language to translate into."""
    output: Path
    """The run's folder."""
    gru_width: int = 320
    """Width of embedding and states; 320 has about as many parameters as the Transformer of the default."""
    config: TranslatorConfig = field(default_factory=TranslatorConfig)


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,))
    config, training = options.config, options.config.training
    train, validation, test = (
        read_pairs(options.data / f"{name}.{options.source}.gz", options.data / f"{name}.{options.target}.gz")
        for name in ("train", "val", "test_2016_flickr")
    )
    tokenizer = subword_tokenizer([sentence for pair in train for sentence in pair], config.vocabulary_size)
    begin, end = boundaries(tokenizer)
    torch.manual_seed(training.seed)
    model = GRUTranslator(vocabulary_size=config.vocabulary_size, width=options.gru_width, dropout=config.model.dropout)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

    def corpus_of(pairs: list[tuple[str, str]]) -> PairCorpus:
        tokens = [(encode(tokenizer, source), encode(tokenizer, target)) for source, target in pairs]
        return PairCorpus(tokens, begin, end, torch.device("cpu"))

    def loss(batch: PairBatch, smoothing: float = config.label_smoothing) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(batch.source, batch.target, batch.source_mask)
        return next_token_loss(logits, batch.next_target, batch.target_mask, smoothing)

    @torch.no_grad()
    def translate(pairs: list[tuple[str, str]], beams: int) -> list[str]:
        model.eval()
        sources, texts = [encode(tokenizer, source) for source, _ in pairs], []
        for first in range(0, len(sources), 64):
            rows = sources[first : first + 64]
            longest = 2 * max(map(len, rows)) + 10
            found = beam_search(GRUReader(model, rows), [[begin]] * len(rows), longest, width=beams, stop={end})
            texts += [tokenizer.decode(tokens).strip() for tokens, _ in found]
        return texts

    def evaluate(step: int) -> dict[str, float]:
        score, _ = bleu(translate(validation, 1), [target for _, target in validation])
        held_out = corpus_of(validation)
        batches = [held_out.gather(held_out.pairs[i : i + 64]) for i in range(0, len(validation), 64)]
        return {"score": score, "validation_loss": mean_loss(lambda batch: loss(batch, 0.0), batches)}

    corpus = corpus_of(train)
    trainer = Trainer(
        model,
        lambda step: corpus.batch(training.seed, step, training.batch_size),
        training,
        options.output,
        {"kind": "gru-baseline", "config": asdict(config), "width": options.gru_width},
        loss=loss,
        evaluate=evaluate,
    )
    trainer.start()
    trainer.train()
    model.load_state_dict(read_tensors(best_checkpoint(options.output) / "model.safetensors"))
    score, signature = bleu(translate(test, 5), [target for _, target in test])
    print(f"test BLEU {score:.2f}  {signature}")


if __name__ == "__main__":
    main()
