"""The text programs: train a language model or a translator, and use them. Results on standard output."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, subcommand

from transformer.config import CharactersConfig, SubwordsConfig, TranslatorConfig, check_fields, check_seed, require
from transformer.errors import ConfigError
from transformer.runs import distributed
from transformer.runs.command_line import exit_status, option, parse
from transformer.runs.console import tell, write
from transformer.runs.outputs import check_folder


@dataclass(frozen=True, kw_only=True)
class TrainCharacters:
    """Train a character language model on a text file; its last tenth is kept for validation."""

    file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A UTF-8 text, also gzipped."""
    output: Path
    """The run's folder."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="RUN|FILE")] = None
    """A run's folder or a JSON file of its configuration to start from; the other options change it."""
    print_config: bool = False
    """Print the configuration as JSON, which --config takes, and train nothing."""
    config: CharactersConfig = field(default_factory=CharactersConfig)


@dataclass(frozen=True, kw_only=True)
class TrainSubwords:
    """Train a language model over subwords on a text file, from the beginning or from GPT-2's weights; its last tenth
    is kept for validation."""

    file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A UTF-8 text, also gzipped."""
    output: Path
    """The run's folder."""
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="FOLDER")] = None
    """Go on from the weights of a GPT-2: a folder as Hugging Face writes it, with config.json, model.safetensors and
    tokenizer.json, or vocab.json and merges.txt. The model's settings are the folder's."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="RUN|FILE")] = None
    """A run's folder or a JSON file of its configuration to start from; the other options change it."""
    print_config: bool = False
    """Print the configuration as JSON, which --config takes, and train nothing."""
    config: SubwordsConfig = field(default_factory=SubwordsConfig)


@dataclass(frozen=True, kw_only=True)
class TrainTranslator:
    """Train a translator on two text files; line i of one translates line i of the other."""

    source: Path
    """Sentences of the language to translate from, one a line; also gzipped."""
    target: Path
    """Their translations."""
    validation_source: Path
    """Sentences that choose the best checkpoint."""
    validation_target: Path
    """Their translations."""
    output: Path
    """The run's folder."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="RUN|FILE")] = None
    """A run's folder or a JSON file of its configuration to start from; the other options change it."""
    print_config: bool = False
    """Print the configuration as JSON, which --config takes, and train nothing."""
    config: TranslatorConfig = field(default_factory=TranslatorConfig)


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Let a language model write on."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run's folder, or Hugging Face's folder of a GPT-2 with its tokenizer.json."""
    prompt: str = "\n"
    """What the text begins with."""
    new_tokens: int = 500
    """Tokens to write; for a character model, characters."""
    num_samples: int = 1
    """Texts to write."""
    temperature: float = 0.8
    """Below 1 the likely tokens become likelier; 0 always takes the likeliest."""
    top_k: int | None = None
    """Choose among the k likeliest only."""
    top_p: float | None = None
    """Choose among the fewest likeliest with probabilities that add up to p."""
    seed: int = 0
    """Seed of the choices."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Translate:
    """Translate sentences, given here, in a file, or on standard input, one a line."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run's folder."""
    sentences: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="SENTENCE")] = ()
    """What to translate."""
    input: Path | None = None
    """A file with one sentence a line; also gzipped."""
    reference: Path | None = None
    """The right translations of the input, one a line; their BLEU and its signature go to standard error."""
    num_beams: int = 5
    """Translations kept side by side in the search; 1 is greedy."""
    length_penalty: float = 1.0
    """A translation's log-probability is divided by its length to this power; above 1 favours longer ones."""
    plot: Path | None = None
    """Also draw where the decoder looked while it wrote the first translation, into this PNG."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program; returns the exit status: 0 done, 2 bad input, 3 training broke down, 130 and 143 signals."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status("dt-text", lambda: _main(words))


def _main(arguments: list[str]) -> int:
    command = _parse(arguments)
    check_fields(command)
    if isinstance(command, TrainCharacters | TrainSubwords | TrainTranslator):
        if command.print_config:
            write(json.dumps(asdict(command.config), indent=2))
            return 0
        with distributed.process_group():
            distributed.check_same({"config": asdict(command.config), "resume": command.resume})
            if not command.resume:
                check_folder(command.output)
            return _run(command, arguments[0])
    distributed.check_single_process(f"dt-text {arguments[0]}")
    return _run(command, arguments[0])


def _run(command: Any, name: str) -> int:
    from transformer.runs.setup import explain_out_of_memory

    programs: Any = {
        TrainCharacters: (_train_characters, "lower width, num_layers, context_length or batch_size"),
        TrainSubwords: (_train_subwords, "lower width, num_layers, context_length or batch_size"),
        TrainTranslator: (_train_translator, "lower width, num_layers, context_length or batch_size"),
        Generate: (_generate, "lower num_samples or new_tokens"),
        Translate: (_translate, "lower num_beams, or give fewer sentences at a time"),
    }
    program, advice = programs[type(command)]
    try:
        with explain_out_of_memory(name, advice):
            return program(command)
    except ModuleNotFoundError as error:
        if error.name not in ("tokenizers", "sacrebleu"):
            raise
        raise ConfigError(f"{error.name} is not installed: pip install 'decision-transformer[language]'") from None


def _parse(arguments: list[str]) -> Any:
    """Options in two passes: the configuration to start from first gives every other option its default."""
    characters, subwords, translator = (
        _starting_config(arguments, program, kind)
        for program, kind in (
            ("train-characters", CharactersConfig),
            ("train-subwords", SubwordsConfig),
            ("train-translator", TranslatorConfig),
        )
    )
    missing: dict[str, Any] = {"output": tyro.MISSING}
    files = dict.fromkeys(("source", "target", "validation_source", "validation_target"), tyro.MISSING)
    commands = (
        Annotated[
            TrainCharacters,
            subcommand("train-characters", default=TrainCharacters(file=tyro.MISSING, config=characters, **missing)),
        ]
        | Annotated[
            TrainSubwords,
            subcommand("train-subwords", default=TrainSubwords(file=tyro.MISSING, config=subwords, **missing)),
        ]
        | Annotated[
            TrainTranslator,
            subcommand("train-translator", default=TrainTranslator(config=translator, **files, **missing)),
        ]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Translate, subcommand("translate")]
    )
    description = "The Transformer for text: language models and a translator."
    return parse(commands, "dt-text", arguments, description)


def _starting_config(arguments: list[str], program: str, kind: type[Any]) -> Any:
    """What a program's options start from: a run to resume, --config, a GPT-2's folder, or nothing."""
    if arguments[:1] != [program]:
        return kind()
    recipe, run = option(arguments, "config"), option(arguments, "output") if "--resume" in arguments else None
    gpt2 = option(arguments, "from") if kind is SubwordsConfig else None
    given = [name for name, value in (("--config", recipe), ("--from", gpt2), ("--resume", run)) if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]}: each gives a configuration to start from. Take one.")
    if gpt2 is not None:
        from transformer.text.gpt2_start import settings_of

        return settings_of(Path(gpt2))
    if recipe is not None or run is not None:
        from transformer.text.runs import read_config

        return read_config(Path(recipe or run or ""), kind)
    return kind()


def _train_characters(options: TrainCharacters) -> int:
    from transformer.text.programs import train_characters

    run = train_characters(options.file, options.config, options.output, resume=options.resume)
    _report(options.output, run.checkpoint, "--prompt TEXT", "generate")
    return 0


def _train_subwords(options: TrainSubwords) -> int:
    from transformer.text.programs import train_subwords

    run = train_subwords(options.file, options.config, options.output, start=options.start, resume=options.resume)
    _report(options.output, run.checkpoint, "--prompt TEXT", "generate")
    return 0


def _train_translator(options: TrainTranslator) -> int:
    from transformer.text.corpora import read_pairs
    from transformer.text.programs import train_translator

    pairs = read_pairs(options.source, options.target)
    validation = read_pairs(options.validation_source, options.validation_target)
    run = train_translator(pairs, validation, options.config, options.output, resume=options.resume)
    _report(options.output, run.checkpoint, "SENTENCE", "translate")
    return 0


def _report(folder: Path, checkpoint: Path, argument: str, program: str) -> None:
    """What came out, and how to use it."""
    from transformer.files import read_json

    sample = folder / "samples" / f"{checkpoint.name}.txt"
    if sample.exists():
        write(sample.read_text(encoding="utf-8").removesuffix("\n"))
    if (folder / "best.json").exists():
        best = read_json(folder / "best.json")
        score = f"loss {-best['score']:.4f}" if program == "generate" else f"BLEU {best['score']:.2f} (greedy)"
        tell(f"\nbest on validation: {score} at step {best['step']}")
    tell(
        f"run folder    {folder}"
        f"\nsamples       {folder / 'samples'}"
        f"\ncurves        tensorboard --logdir {folder / 'tensorboard'}"
        f"\nuse it        dt-text {program} {folder} {argument}"
    )


def _generate(options: Generate) -> int:
    import torch

    from transformer.generation import Sampling, generate
    from transformer.language import LanguageModel
    from transformer.text.corpora import encode
    from transformer.text.runs import load_text_run

    require(options.new_tokens >= 1, f"new_tokens must be at least 1, not {options.new_tokens}")
    require(options.num_samples >= 1, f"num_samples must be at least 1, not {options.num_samples}")
    check_seed(options.seed)
    try:
        sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    run = load_text_run(options.run, options.checkpoint)
    require(isinstance(run.model, LanguageModel), f"{options.run}: a translator; dt-text translate")
    prompt = encode(run.tokenizer, options.prompt)
    require(bool(prompt), "prompt is empty")
    generator = torch.Generator().manual_seed(options.seed)
    assert isinstance(run.model, LanguageModel)
    texts = generate(run.model, [prompt] * options.num_samples, options.new_tokens, sampling, generator=generator)
    write("\n---\n".join(run.tokenizer.decode(text) for text in texts))
    return 0


def _translate(options: Translate) -> int:
    from transformer.generation import MAX_BEAMS, MAX_LENGTH_PENALTY
    from transformer.runs.outputs import check_place
    from transformer.text.corpora import read_lines
    from transformer.text.runs import load_text_run
    from transformer.text.translating import bleu, draw_alignment, translate
    from transformer.translation import EncoderDecoder

    require(1 <= options.num_beams <= MAX_BEAMS, f"num_beams must be from 1 to {MAX_BEAMS}, not {options.num_beams}")
    penalty = options.length_penalty
    require(0 <= penalty <= MAX_LENGTH_PENALTY, f"length_penalty must be from 0 to {MAX_LENGTH_PENALTY}, not {penalty}")
    if options.plot:
        check_place(options.plot)
    require(not (options.sentences and options.input), "sentences are given and --input too; one of them")
    require(options.reference is None or options.input is not None, "--reference needs --input")
    run = load_text_run(options.run, options.checkpoint)
    require(isinstance(run.model, EncoderDecoder), f"{options.run}: a language model; dt-text generate")
    assert isinstance(run.model, EncoderDecoder)
    sentences = list(options.sentences) or (read_lines(options.input) if options.input else _standard_input())
    references = read_lines(options.reference) if options.reference else None
    if references is not None and len(references) != len(sentences):
        raise ConfigError(f"{options.reference} has {len(references)} lines, {options.input} has {len(sentences)}")
    translations = translate(
        run.model,
        run.tokenizer,
        sentences,
        beams=options.num_beams,
        length_penalty=options.length_penalty,
    )
    drawn = [pair for pair in zip(sentences, translations, strict=True) if pair[0].strip()]
    for translation in translations:
        write(translation)
    if references is not None:
        score, signature = bleu(translations, references)
        tell(f"BLEU {score:.2f}  {signature}")
    if options.plot and drawn:
        draw_alignment(run.model, run.tokenizer, *drawn[0], options.plot)
    return 0


def _standard_input() -> list[str]:
    from transformer.errors import TextError
    from transformer.text.corpora import lines_of

    if sys.stdin.isatty():
        tell("sentences to translate, one a line, then Ctrl-D:")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline="\n")  # a lone \r is for `lines_of` to judge
    try:
        return lines_of(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise TextError(f"standard input: cannot be read as UTF-8 text ({error})") from None
