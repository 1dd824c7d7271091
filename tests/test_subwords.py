"""Language models over subwords: a vocabulary of their own, or on from a GPT-2's weights with transformers' loss."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from test_gpt2 import set_config, shaken
from test_text import log_of
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from transformer import save_gpt2
from transformer.config import CharactersConfig
from transformer.files import read_json
from transformer.runs.checkpoint import checkpoints
from transformer.text.cli import main
from transformer.text.corpora import TextCorpus, encode, subword_tokenizer
from transformer.text.gpt2_start import LEARNING_RATE, load_vocabulary, settings_of
from transformer.text.runs import load_text_run

CPU = torch.device("cpu")
TEXT = "".join(f"{n} grüne Flaschen hängen an der Wand,\n{n} grüne Flaschen.\n" for n in range(99, 0, -1))
POSITIONS, VOCABULARY = 24, 293  # more rows than the vocabulary has tokens, as in some published models
QUICK = ["--precision", "float32", "--batch-size", "5", "--warmup-steps", "3", "--evaluate-every", "10"]
SMALL = ["--width", "16", "--num-layers", "1", "--num-heads", "2", "--context-length", "16"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny random GPT-2 and its vocabulary, as Hugging Face's libraries write them."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 12, "n_layer": 2, "n_head": 3}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shaken(GPT2LMHeadModel(GPT2Config(**shape, **rates, bos_token_id=0, eos_token_id=0))).save_pretrained(folder)
    vocabulary = ByteLevelBPETokenizer()
    vocabulary.train_from_iterator([TEXT], vocab_size=281, show_progress=False)
    vocabulary.save_model(str(folder))
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "gpt2")


def train(file, run, *options) -> int:
    return main(["train-subwords", str(file), "--output", str(run), *QUICK, *map(str, options)])


def last_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().splitlines()[-1]


def test_a_vocabulary_of_its_own_is_learned_and_writes_every_text(text_file, tmp_path, capsys):
    assert train(text_file, tmp_path / "run", *SMALL, "--vocabulary-size", 300, "--steps", 20) == 0
    run = load_text_run(tmp_path / "run")
    assert run.tokenizer.get_vocab_size() == run.model.config.vocabulary_size == 300
    for text in (TEXT, "日本 \n\n  two\tspaces\r\n", " x"):
        assert run.tokenizer.decode(encode(run.tokenizer, text)) == text
    assert len(encode(run.tokenizer, TEXT)) < 0.5 * len(TEXT)
    scores = [line["validation_loss"] for line in log_of(tmp_path / "run") if "validation_loss" in line]
    assert scores[-1] < scores[0]
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run"), "--new-tokens", "9", "--prompt", "99 grüne"]) == 0
    assert capsys.readouterr().out.startswith("99 grüne")


def test_the_vocabulary_does_not_know_the_validation_text(tmp_path):
    words = " ".join(["alpha beta gamma"] * 300) + " zzzz" * 90
    (tmp_path / "a.txt").write_text(words)
    assert train(tmp_path / "a.txt", tmp_path / "run", *SMALL, "--vocabulary-size", 280, "--steps", 1) == 0
    tokens = load_text_run(tmp_path / "run").tokenizer.get_vocab()
    assert "Ġalpha" in tokens
    assert not [token for token in tokens if "zz" in token]


def test_a_stopped_run_goes_on_as_the_whole_one(text_file, published, tmp_path):
    for name, start in (("own", SMALL), ("gpt2", ["--from", published])):
        whole, halves = tmp_path / f"{name}-whole", tmp_path / f"{name}-halves"
        options = ["--dropout", "0.1", "--schedule", "constant", "--checkpoint-every", "5"]
        assert train(text_file, whole, *start, *options, "--steps", 10) == 0
        assert train(text_file, halves, *start, *options, "--steps", 5) == 0
        resumed = ["train-subwords", str(text_file), "--output", str(halves), "--resume", "--steps", "10"]
        assert main(resumed) == 0
        ends = [load_file(checkpoints(run)[-1] / "model.safetensors") for run in (whole, halves)]
        assert all(value.equal(ends[1][key]) for key, value in ends[0].items())


def test_the_loss_is_transformers_loss_on_the_same_text_and_batch(text_file, published, tmp_path):
    """The first line of the log is the loss before the first update; theirs shifts the labels by itself."""
    length = POSITIONS - 1
    options = ["--context-length", length, "--steps", 1, "--log-every", 1, "--seed", 7]
    assert train(text_file, tmp_path / "run", "--from", published, *options) == 0
    tokenizer = load_vocabulary(published)
    corpus = TextCorpus(TEXT, tokenizer, length, CPU)
    theirs = GPT2LMHeadModel.from_pretrained(published).eval()
    batch = corpus.batch(7, 0, 5)  # (5, POSITIONS)
    with torch.no_grad():
        expected = theirs(input_ids=batch, labels=batch).loss.item()
    first = next(line for line in log_of(tmp_path / "run") if line["kind"] == "train")
    assert first["loss"] == pytest.approx(expected, abs=1e-5)
    assert load_text_run(tmp_path / "run").model.config.vocabulary_size == VOCABULARY


def test_what_was_trained_goes_back_to_transformers(text_file, published, tmp_path, capsys):
    assert train(text_file, tmp_path / "run", "--from", published, "--steps", 30, "--learning-rate", 3e-3) == 0
    before = float(capsys.readouterr().err.split("before        loss ")[1].split()[0])
    run = load_text_run(tmp_path / "run")
    scores = [line["validation_loss"] for line in log_of(tmp_path / "run") if "validation_loss" in line]
    assert scores[-1] < scores[0] < before
    save_gpt2(run.model, tmp_path / "again")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "again").eval()
    tokens = torch.tensor([encode(run.tokenizer, TEXT)[:POSITIONS]])
    with torch.no_grad():
        assert torch.allclose(run.model(tokens), theirs(tokens).logits, atol=1e-5)


def test_a_shorter_context_takes_the_first_positions(text_file, published, tmp_path):
    assert train(text_file, tmp_path / "run", "--from", published, "--context-length", 9, "--steps", 1) == 0
    assert load_text_run(tmp_path / "run").model.config.context_length == 9
    settings = settings_of(published)
    assert settings.training.learning_rate == LEARNING_RATE
    assert (settings.vocabulary_size, settings.model.width, settings.model.num_heads) == (VOCABULARY, 12, 3)


def test_both_layouts_of_a_vocabulary_give_transformers_tokens(published, folder):
    theirs = GPT2TokenizerFast.from_pretrained(published)
    theirs.save_pretrained(folder / "again")
    assert (folder / "again" / "tokenizer.json").is_file()
    for text in (TEXT, "  grün's\n\n\tx 12345", "日本"):
        expected = theirs(text)["input_ids"]
        assert encode(load_vocabulary(published), text) == expected
        assert encode(load_vocabulary(folder / "again"), text) == expected


REFUSALS = {
    "a longer context": (["--context-length", "25"], "context_length 25: {folder} knows 24 positions; give at most"),
    "another vocabulary": (["--vocabulary-size", "300"], "vocabulary_size 300: {folder} has 293 tokens"),
    "another width": (["--width", "24"], "width 24: {folder} has 12; leave --width out"),
    "other positions": (["--positions", "none"], "positions none: {folder} has learned; leave --positions out"),
    "to go on too": (["--resume"], "--from and --resume: each gives a configuration to start from. Take one."),
}


@pytest.mark.parametrize(("options", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused_in_a_line(text_file, folder, tmp_path, capsys, options, words):
    assert train(text_file, tmp_path / "run", "--from", folder, *options) == 2
    assert last_line(capsys).startswith("dt-text: " + words.format(folder=folder))
    assert not (tmp_path / "run").exists()


def lacks_a_byte(folder):
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["??"] = vocabulary.pop("w")  # "Wand" has none, "w" is in no other token
    path.write_text(json.dumps(vocabulary))


def has_more_tokens(folder):
    path = folder / "vocab.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": VOCABULARY}))


BROKEN = {
    "no vocabulary": (lambda folder: (folder / "merges.txt").unlink(), "no vocabulary in it (expected tokenizer.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors in it"),
    "more tokens than the model has": (has_more_tokens, "its tokenizer has a token 293, its model knows 293"),
    "a character without tokens": (lacks_a_byte, "its vocabulary cannot write the character 'w' of the text"),
    "merges of something else": (lambda folder: (folder / "merges.txt").write_text("a\n"), "tokenizer cannot be read"),
    "weights of another size": (lambda folder: set_config(folder, vocab_size=400), "has shape [293, 12], expected"),
    "another model": (lambda folder: set_config(folder, model_type="bert"), 'model_type is "bert", expected "gpt2"'),
}


@pytest.mark.parametrize(("break_it", "words"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_cannot_be_started_from_is_named(folder, tmp_path, capsys, break_it, words):
    (tmp_path / "text").write_text(TEXT + "wow\n" * 9, encoding="utf-8")
    break_it(folder)
    assert train(tmp_path / "text", tmp_path / "run", "--from", folder, "--steps", "1") == 2
    line = last_line(capsys)
    assert words in line
    assert str(folder) in line
    assert not (tmp_path / "run").exists()


def test_other_refusals_are_lines_too(text_file, published, tmp_path, capsys):
    assert train(text_file, tmp_path / "run", *SMALL, "--vocabulary-size", 200, "--steps", 1) == 2
    assert last_line(capsys) == "dt-text: vocabulary_size 200 is less than the 256 of all bytes"
    (tmp_path / "short").write_text("a b c")
    assert train(tmp_path / "short", tmp_path / "run", *SMALL, "--steps", 1) == 2
    assert "tokens is too short for context_length 16" in last_line(capsys)
    assert train(text_file, tmp_path / "run", "--from", published, "--steps", 1) == 0
    capsys.readouterr()
    resume = ["train-subwords", str(text_file), "--output", str(tmp_path / "run"), "--resume", "--steps", "2"]
    assert main([*resume, "--vocabulary-size", "294"]) == 2
    assert "vocabulary_size was 293, now 294; it cannot change" in last_line(capsys)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(resume) == 2
    assert "stopped before its first checkpoint; begin it again with --from" in last_line(capsys)


def test_special_tokens_and_the_prefix_space_are_the_translators():
    assert "<pad>" in subword_tokenizer([TEXT], 300).get_vocab()
    own = subword_tokenizer([TEXT], 300, (), add_prefix_space=False)
    assert own.encode("Wand").tokens[0][0] == "W"


def test_a_configuration_starts_another_run(text_file, tmp_path, capsys):
    def run(*words) -> tuple[int, str, str]:
        status = main([*map(str, words)])
        return (status, *capsys.readouterr())

    train = ("train-characters", text_file, "--output", tmp_path / "run")
    status, printed, _ = run(*train, *QUICK, *SMALL, "--steps", 2, "--print-config")
    assert (status, (tmp_path / "run").exists()) == (0, False)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(printed)
    assert run(*train, "--config", recipe, "--seed", 3)[0] == 0
    kept, asked = read_json(tmp_path / "run" / "run.json")["config"], json.loads(printed)
    assert kept["model"] == asked["model"] != asdict(CharactersConfig().model)
    assert kept["training"] == asked["training"] | {"seed": 3, "threads": kept["training"]["threads"]}
    again = ("train-characters", text_file, "--output", tmp_path / "again", "--config", tmp_path / "run")
    assert json.loads(run(*again, "--width", 16, "--print-config")[1])["model"] == kept["model"] | {"width": 16}
    sentences = [f"--{name}={text_file}" for name in ("source", "target", "validation-source", "validation-target")]
    translator = ("train-translator", *sentences, "--output", tmp_path / "x")
    refusals = {
        (*again, "--resume"): "--config and --resume: each gives a configuration to start from. Take one.",
        (*train[:3], tmp_path / "x", "--config", tmp_path): "run.json: no such file",
        (*translator, "--config", tmp_path / "run"): f"{tmp_path}/run/run.json: not a TranslatorConfig of this version",
    }
    for text, wrong in (("[]", "not a CharactersConfig"), ('{"model": 3}', "not a"), ("{", "cannot be read")):
        (tmp_path / f"{len(text)}.json").write_text(text)
        refusals[(*train[:3], tmp_path / "x", "--config", tmp_path / f"{len(text)}.json")] = wrong
    for words, reason in refusals.items():
        status, _, err = run(*words)
        assert (status, err.count("\n"), (tmp_path / "x").exists()) == (2, 1, False)
        assert reason in err
