"""The text programs: tokenisers, corpora, training and resuming, writing and translating, and what they refuse."""

import gzip
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from transformer import LanguageConfig, LanguageModel, load_gpt2, save_gpt2
from transformer.errors import LogitsError, TextError
from transformer.generation import Sampling, generate
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.training import Trainer
from transformer.text.cli import main
from transformer.text.corpora import (
    PairCorpus,
    TextCorpus,
    boundaries,
    character_tokenizer,
    encode,
    read_lines,
    subword_tokenizer,
)
from transformer.text.runs import load_text_run
from transformer.text.training import next_token_loss
from transformer.text.translating import _word_chunks, bleu, translate

CPU = torch.device("cpu")
SMALL = ["--width", "32", "--num-layers", "1", "--num-heads", "2", "--dropout", "0.1", "--precision", "float32"]
HUGE = str(10**20)
LARGE = str(2**60)
PAIRS = ["train-translator", "--output", "r"]
PAIRS += [f"--{name}=long.txt" for name in ("source", "target", "validation-source", "validation-target")]
WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "sechs": "six"}


def files_equal(a, b):
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes() and (
        a / "optimizer.safetensors"
    ).read_bytes() == (b / "optimizer.safetensors").read_bytes()


def log_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line.keys() - {"seconds", "steps_per_second"}} for line in lines]


def counting_pairs(n, seed):
    rng = random.Random(seed)
    rows = [[rng.choice(list(WORDS)) for _ in range(rng.randint(2, 4))] for _ in range(n)]
    return [(" ".join(row) + ".", " ".join(WORDS[word] for word in row) + ".") for row in rows]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "abc.txt"
    path.write_text("abcdefgh\n" * 200)
    return path


@pytest.fixture(scope="module")
def writer(text_file):
    """A character model that learned the alphabet's beginning."""
    run = text_file.parent / "run"
    options = ["--steps", "120", "--evaluate-every", "40", "--context-length", "16", "--warmup-steps", "10"]
    assert main(["train-characters", str(text_file), "--output", str(run), *SMALL, *options]) == 0
    return run


@pytest.fixture(scope="module")
def pair_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, pairs in (("train", counting_pairs(400, 0)), ("val", counting_pairs(30, 1))):
        for i, language in enumerate(("de", "en")):
            text = "".join(pair[i] + "\n" for pair in pairs)
            (folder / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def translator_command(folder, run):
    files = {"source": "train.de", "target": "train.en", "validation-source": "val.de", "validation-target": "val.en"}
    command = ["train-translator", "--output", str(run), "--vocabulary-size", "320", "--batch-size", "32"]
    command += ["--width", "64", "--num-layers", "1", "--num-heads", "2", "--dropout", "0", "--precision", "float32"]
    for option, name in files.items():
        command += [f"--{option}", str(folder / f"{name}.gz")]
    recipe = ["--schedule", "constant", "--warmup-steps", "30", "--learning-rate", "3e-3"]
    return [*command, *recipe, "--steps", "300", "--evaluate-every", "150"]


@pytest.fixture(scope="module")
def interpreter(pair_files):
    """A translator that learned to count."""
    run = pair_files / "run"
    assert main(translator_command(pair_files, run)) == 0
    return run


def test_every_text_comes_back_from_its_tokens():
    text = "Grüße,\r\n two  spaces\n\n"
    characters = character_tokenizer(text)
    assert characters.get_vocab_size() == len(set(text))
    assert len(encode(characters, text)) == len(text)
    assert characters.decode(encode(characters, text)) == text
    subwords = subword_tokenizer(["ein Mädchen läuft"] * 5, 300)
    for sentence in ("ein Mädchen läuft", "unseen: Ω, 漢字!"):
        assert subwords.decode(encode(subwords, sentence)).strip() == sentence
    assert len(encode(subwords, "ein Mädchen läuft")) < len("ein Mädchen läuft")
    assert (subwords.token_to_id("<pad>"), *boundaries(subwords)) == (0, 1, 2)


def test_a_character_never_seen_is_named():
    with pytest.raises(TextError, match="'ß'"):
        encode(character_tokenizer("abc"), "aßb")


def test_validation_windows_ask_for_each_token_once():
    tokenizer = character_tokenizer("".join(map(chr, range(97, 117))))
    corpus = TextCorpus("".join(chr(97 + i % 20) for i in range(500)), tokenizer, 7, CPU)
    windows = corpus.validation_windows(3)
    assert torch.cat([window[:, 1:].flatten() for window in windows]).tolist() == corpus.validation[1:].tolist()
    assert all(window.shape[0] <= 3 and window.shape[1] <= 8 for window in windows)
    assert len(corpus.train) == 450
    assert torch.equal(corpus.batch(0, 5, 4), corpus.batch(0, 5, 4))
    assert not torch.equal(corpus.batch(0, 5, 4), corpus.batch(0, 6, 4))
    assert not torch.equal(corpus.batch(0, 5, 4), corpus.batch(1, 5, 4))
    starts = {int(row[0]) for step in range(200) for row in corpus.batch(0, step, 8)}
    assert starts == set(range(20))  # windows start anywhere
    for row in corpus.batch(0, 0, 4).tolist():
        assert all((b - a) % 20 == 1 for a, b in itertools.pairwise(row))


def test_an_epoch_of_pairs_holds_each_once_and_little_padding():
    rng = random.Random(0)
    pairs = [([3 + i] * rng.randint(1, 30), [3 + i] * rng.randint(1, 30)) for i in range(101)]
    corpus = PairCorpus(pairs, begin=1, end=2, device=CPU)
    batches = [corpus.batch(0, step, 10) for step in range(11)]
    seen = [int(row[0]) - 3 for batch in batches for row in batch.source]
    assert sorted(seen) == list(range(101))
    following = [int(row[0]) - 3 for step in range(11, 22) for row in corpus.batch(0, step, 10).source]
    assert sorted(following) == sorted(seen)
    assert following != seen
    fresh = PairCorpus(pairs, begin=1, end=2, device=CPU).batch(0, 15, 10)
    assert torch.equal(fresh.source, corpus.batch(0, 15, 10).source)
    real = sum(int(batch.source_mask.sum() + batch.target_mask.sum()) for batch in batches)
    assert real / sum(batch.source_mask.numel() + batch.target_mask.numel() for batch in batches) > 0.6


def test_the_target_is_shifted_by_one():
    batch = PairCorpus([([5, 6], [7, 8, 9]), ([5], [7])], begin=1, end=2, device=CPU).gather(
        [([5, 6], [7, 8]), ([4], [9])]
    )
    assert batch.target.tolist() == [[1, 7, 8], [1, 9, 0]]
    assert batch.next_target.tolist() == [[7, 8, 2], [9, 2, 0]]
    assert batch.target_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.source_mask.tolist() == [[True, True], [True, False]]


def test_the_loss_is_the_formula_and_skips_padding():
    torch.manual_seed(0)
    logits, following = torch.randn(2, 3, 5), torch.tensor([[1, 2, 3], [4, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logs = logits.log_softmax(-1)
    smoothed = [
        0.9 * logs[b, t, following[b, t]] + 0.1 * logs[b, t].mean() for b, t in ((0, 0), (0, 1), (0, 2), (1, 0))
    ]
    loss, count = next_token_loss(logits, following, mask, smoothing=0.1)
    assert count == 4
    torch.testing.assert_close(loss, -sum(smoothed))
    loss, count = next_token_loss(logits, following)
    assert count == 6
    torch.testing.assert_close(loss, -logs.gather(2, following[..., None]).sum())


def test_a_character_model_learns_and_writes_on(writer, capsys):
    run = load_text_run(writer)
    assert run.tokenizer.decode(generate(run.model, [encode(run.tokenizer, "ab")], 16, Sampling(temperature=0))[0]) == (
        "abcdefgh\nabcdefgh\n"
    )
    assert (
        main(["generate", str(writer), "--prompt", "cd", "--new-tokens", "9", "--num-samples", "2", "--top-k", "1"])
        == 0
    )
    assert capsys.readouterr().out == "cdefgh\nabcd\n---\ncdefgh\nabcd\n"
    evaluations = [line for line in log_of(writer) if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [40, 80, 120]
    best = min(evaluations, key=lambda line: line["validation_loss"])
    assert json.loads((writer / "best.json").read_text())["step"] == best["step"]
    assert run.checkpoint.name == f"step-{best['step']:08d}"
    assert len((writer / "samples" / "step-00000040.txt").read_text()) == 502  # a first character, 500, a line's end


def test_seeds_and_temperature_decide_what_is_written(writer, capsys):
    texts = []
    for options in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--temperature", "0"]):
        temperature = [] if "--temperature" in options else ["--temperature", "3"]
        assert main(["generate", str(writer), "--new-tokens", "60", *options, *temperature]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[3].startswith("\nabcdefgh\nabcdefgh\n")


def test_a_text_run_that_was_cut_goes_on_bit_for_bit(text_file, tmp_path):
    common = [*SMALL, "--context-length", "16", "--evaluate-every", "20", "--log-every", "5", "--schedule", "constant"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train-characters", str(text_file), "--output", str(whole), *common, "--steps", "30"]) == 0
    assert main(["train-characters", str(text_file), "--output", str(cut), *common, "--steps", "17"]) == 0
    assert main(["train-characters", str(text_file), "--output", str(cut), "--resume", "--steps", "30"]) == 0
    assert files_equal(whole / "checkpoints" / "step-00000030", cut / "checkpoints" / "step-00000030")
    ours = {15, 30}  # the shorter run's last step has a line of its own, so the mean at step 20 is of fewer steps
    told, evaluated = ([line for line in log_of(whole) if line["step"] in steps] for steps in (ours, {20}))
    assert told == [line for line in log_of(cut) if line["step"] in ours]
    assert evaluated[-1]["kind"] == "evaluation"
    assert evaluated[-1] in log_of(cut)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(text_file, tmp_path, monkeypatch, capsys, number, code):
    one_step = Trainer._one_step

    def stepping(self):
        if self.step == 3:
            os.kill(os.getpid(), number)
        return one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", stepping)
    run = tmp_path / "run"
    assert main(["train-characters", str(text_file), "--output", str(run), *SMALL, "--steps", "9"]) == code
    assert f"stopped by {number.name} after step 4; --resume goes on from there" in capsys.readouterr().err
    assert [step_of(path) for path in checkpoints(run)] == [4]


def test_a_translator_learns_and_translates(interpreter, pair_files, capsys, tmp_path):
    sentences = ["zwei drei.", "fünf eins sechs vier."]
    expected = ["two three.", "five one six four."]
    run = load_text_run(interpreter)
    assert translate(run.model, run.tokenizer, sentences) == expected
    assert translate(run.model, run.tokenizer, sentences, beams=3) == expected
    assert main(["translate", str(interpreter), *sentences, "--plot", str(tmp_path / "look.png")]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    files = ["--input", str(pair_files / "val.de.gz"), "--reference", str(pair_files / "val.en.gz")]
    assert main(["translate", str(interpreter), *files, "--num-beams", "1"]) == 0
    out, err = capsys.readouterr()
    score, signature = bleu(out.splitlines(), read_lines(pair_files / "val.en.gz"))
    assert f"BLEU {score:.2f}  {signature}" in err
    assert score > 90
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    best = json.loads((interpreter / "best.json").read_text())
    assert best["score"] == max(line["score"] for line in log_of(interpreter) if line["kind"] == "evaluation")


def test_sentences_come_by_standard_input(interpreter, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("vier drei.\neins zwei.\n"))
    assert main(["translate", str(interpreter)]) == 0
    assert capsys.readouterr().out.splitlines() == ["four three.", "one two."]


def test_a_translator_resumes_with_its_own_vocabulary(pair_files, interpreter, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train.de", "train.en", "val.de", "val.en"):
        lines = read_lines(pair_files / f"{name}.gz")
        (other / f"{name}.gz").write_bytes(gzip.compress("\n".join(lines[1:]).encode()))
    assert main([*translator_command(other, interpreter), "--resume"]) == 2
    assert "trained on another text" in capsys.readouterr().err


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translator_whose_logits_are_no_numbers_is_refused(interpreter, beams):
    run = load_text_run(interpreter)
    with torch.no_grad():
        run.model.embedding.tokens.weight.fill_(3e38)
    with pytest.raises(LogitsError, match="too large to compute with"):
        translate(run.model, run.tokenizer, ["eins zwei", "drei"], beams=beams)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-characters", "missing.txt", "--output", "r"], "missing.txt: cannot be read"),
        (["train-characters", "empty.txt", "--output", "r"], "empty.txt: no text in it"),
        (["train-characters", "short.txt", "--output", "r"], "7 characters is too short for context_length 64"),
        (["train-characters", "latin.txt", "--output", "r"], "latin.txt: cannot be read as UTF-8"),
        (["train-characters", "broken.gz", "--output", "r"], "broken.gz: cannot be read"),
        (["train-characters", "flipped.gz", "--output", "r"], "flipped.gz: cannot be read"),
        (["train-characters", "bomb.gz", "--output", "r"], "bomb.gz: cannot be read as UTF-8 text (more than 67108864"),
        (["train-characters", "pipe", "--output", "r"], "pipe: cannot be read as UTF-8 text (not a regular file)"),
        (["train-characters", "/dev/zero", "--output", "r"], "/dev/zero: cannot be read as UTF-8 text (not a regular"),
        (["train-characters", "long.txt", "--output", "r", "--num-heads", "3"], "num_heads 3 must divide width"),
        (["train-characters", "long.txt", "--output", "r", "--seed", HUGE], "seed must be a whole number of 64"),
        (["train-characters", "long.txt", "--output", "r", "--seed", "-1"], f"seed must be from 0 to {2**63 - 1}, not"),
        (
            ["train-characters", "long.txt", "--output", "r", "--width", LARGE],
            f"width must be at most {2**53}, not {LARGE}",
        ),
        (["train-characters", "long.txt", "--output", "r", "--batch-size", LARGE], "batch_size must be at most"),
        ([*PAIRS, "--vocabulary-size", LARGE], "vocabulary_size must be at most"),
        ([*PAIRS, "--label-smoothing", "nan"], "label_smoothing must be a finite number"),
        (["train-characters", "long.txt", "--output", "long.txt"], "long.txt: is a file, a folder is meant"),
        (["train-characters", "missing.txt", "--output", "INSIDE"], "/x: a part of the run "),
        (["train-translator", *PAIRS[3:], "--output", "INSIDE"], "/x: a part of the run "),
        (["generate", "nowhere"], "nowhere: no such run"),
        (["generate", "WRITER", "--prompt", "xyz"], "character 'x' is not in the text"),
        (["generate", "WRITER", "--prompt", ""], "prompt is empty"),
        (["generate", "WRITER", "--temperature", "-1"], "temperature must be finite and not negative"),
        (["generate", "WRITER", "--new-tokens", "0"], "new_tokens must be at least 1"),
        (["generate", "WRITER", "--seed", HUGE], f"seed must be a whole number of 64 bits, not {HUGE}"),
        (["generate", "WRITER", "--seed", "-1"], f"seed must be from 0 to {2**63 - 1}, not -1"),
        (["generate", "WRITER", "--num-samples", LARGE], f"num_samples must be at most {2**53}, not {LARGE}"),
        (["generate", "WRITER", "--temperature", "1e-320"], "temperature must be 0, or at least 1e-30, not 1e-320"),
        (["generate", "WRITER", "--top-p", "1e-320"], "top_p must be from 1e-30 to 1, not 1e-320"),
        (["generate", "WRITER", "--prompt", "a\udcff"], r"'\udcff' is no character: the text is not UTF-8"),
        (["generate", "TRANSLATOR"], "a translator"),
        (["translate", "WRITER", "hi"], "a language model"),
        (["translate", "TRANSLATOR", "hi", "--num-beams", "0"], "num_beams must be from 1 to 1000, not 0"),
        (
            ["translate", "TRANSLATOR", "hi", "--num-beams", str(2**40)],
            f"num_beams must be from 1 to 1000, not {2**40}",
        ),
        ([*PAIRS, "--num-layers", "1000000000"], "num_layers must be at most 10000, not 1000000000"),
        (["translate", "TRANSLATOR", "hi", "--input", "long.txt"], "one of them"),
        (["translate", "TRANSLATOR", "hi", "--reference", "long.txt"], "--reference needs --input"),
        (["translate", "TRANSLATOR", "eins", "\udcff"], r"'\udcff' is no character: the text is not UTF-8"),
        (
            ["translate", "TRANSLATOR", "eins", "--length-penalty", "1e308"],
            "length_penalty must be from 0 to 10, not 1",
        ),
        (
            ["translate", "TRANSLATOR", "eins", "--length-penalty", "nan"],
            "length_penalty must be a finite number, not nan",
        ),
        (["translate", "TRANSLATOR", "eins", "--plot", "x.xyz"], "x.xyz: no kind of picture"),
        (["translate", "TRANSLATOR", "eins", "--plot", "no/x.png"], "no/x.png: its folder does not exist"),
        (
            ["translate", "TRANSLATOR", "--input", "long.txt", "--reference", "short.txt"],
            "short.txt has 1 lines, long.txt",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    arguments, message, writer, interpreter, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("abcdefg")
    (tmp_path / "long.txt").write_text("abc\n" * 100)
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"abc" * 100)[:-9])
    (tmp_path / "flipped.gz").write_bytes(gzip.compress(b"abc" * 100)[:10] + b"\xff" * 30)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(65 << 20)))
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    inside = writer / "checkpoints" / "x"
    names = {"WRITER": str(writer), "TRANSLATOR": str(interpreter), "INSIDE": str(inside)}
    assert main([names.get(argument, argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("dt-text: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before
    assert not inside.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train-characters", "TEXT", "--output", "r", "--width", "4000000"],
            "train-characters: out of memory; lower wi",
        ),
        (
            ["train-characters", "TEXT", "--output", "r", "--width", str(2**53)],
            "train-characters: out of memory; lower w",
        ),
        (
            ["generate", "WRITER", "--num-samples", str(2**50)],
            "generate: out of memory; lower num_samples or new_tokens",
        ),
    ],
)
def test_memory_that_is_not_there_is_one_line_and_exit_status_3(
    arguments, message, text_file, writer, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {"WRITER": str(writer), "TEXT": str(text_file)}
    assert main([names.get(argument, argument) for argument in arguments]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "r").exists()


def test_no_room_is_taken_for_a_vocabulary_that_a_text_cannot_fill():
    script = (
        "from transformer.text.corpora import subword_tokenizer as make; print(make(['ab ab'], 2**50).get_vocab_size())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)  # without it Rust aborts
    assert done.stdout == "261\n"


def test_bytes_on_standard_input_that_are_no_text_are_refused(interpreter, monkeypatch, capsys):
    for errors, message in (
        ("strict", "standard input: cannot be read as UTF-8"),
        ("surrogateescape", r"'\udcff' is no"),
    ):
        given = io.TextIOWrapper(io.BytesIO(b"eins\n\xff\n"), encoding="utf-8", errors=errors)
        monkeypatch.setattr("sys.stdin", given)
        assert main(["translate", str(interpreter)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_form_feed_parts_no_sentences(interpreter, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("vier\x0cdrei.\neins zwei.\n"))
    assert main(["translate", str(interpreter)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("beams", ["1", "3"])
def test_blank_and_too_long_lines_of_a_document_keep_their_place(interpreter, tmp_path, capsys, beams):
    run = load_text_run(interpreter)
    limit = run.model.config.context_length
    long = "zwei drei. " * (2 * limit)
    (tmp_path / "document").write_text(f"vier drei.\n\n \t\n{long}\n{'x' * (3 * limit)}\neins zwei.\n\n")
    assert main(["translate", str(interpreter), "--input", str(tmp_path / "document"), "--num-beams", beams]) == 0
    out, err = capsys.readouterr()
    lines = out.removesuffix("\n").split("\n")
    assert (lines[0], lines[1], lines[2], lines[5], lines[6]) == ("four three.", "", "", "one two.", "")
    assert len(lines) == 7
    tokens = encode(run.tokenizer, long)
    first, *rest = err.splitlines()
    count = re.fullmatch(
        rf"sentence 4: {len(tokens)} tokens, the model reads {limit}; translated in (\d+) parts", first
    )
    assert 2 <= int(count[1]) <= len(tokens) // (limit // 2)
    assert lines[3].count("two") >= int(count[1])
    assert rest[0].startswith("sentence 5: ")


def test_a_long_sentence_is_cut_between_words_and_nothing_of_it_is_lost(interpreter):
    tokenizer = load_text_run(interpreter).tokenizer
    for text in ("zwei drei. vier eins fünf.", "x" * 40, "zwei " + "q" * 40 + " drei.", ""):
        tokens = encode(tokenizer, text) if text else []
        for limit in (1, 3, 7, 1000):
            chunks = _word_chunks(tokenizer, tokens, limit)
            assert list(itertools.chain(*chunks)) == tokens
            assert all(1 <= len(chunk) <= limit for chunk in chunks)
    words = "sieben acht neun zehn sieben acht neun zehn"  # of several tokens each
    chunks = _word_chunks(tokenizer, encode(tokenizer, words), 9)
    assert len(chunks) > 2
    assert " ".join(tokenizer.decode(chunk).strip() for chunk in chunks) == words


def with_line_ends(folder, pair_files, name, end):
    path = folder / name
    path.write_bytes("".join(line + end for line in read_lines(pair_files / f"{name}.gz")).encode())
    return path


@pytest.mark.parametrize("end", ["\r\n", "\r\r\n", "\r"])
def test_line_ends_of_windows_change_no_translation(interpreter, pair_files, tmp_path, capsys, end):
    """Neither the input's nor the reference's, which cost 16 to 30 BLEU where they counted as text."""
    source, reference = (with_line_ends(tmp_path, pair_files, name, end) for name in ("val.de", "val.en"))
    command = ["translate", str(interpreter), "--num-beams", "1", "--input"]
    plain = [str(pair_files / "val.de.gz"), "--reference", str(pair_files / "val.en.gz")]
    assert main([*command, *plain]) == 0
    expected = capsys.readouterr()
    assert main([*command, str(source), "--reference", str(reference)]) == 0
    assert capsys.readouterr() == expected


def test_a_translator_learns_the_same_from_line_ends_of_windows(pair_files, tmp_path):
    fingerprints = []
    for name, end in (("lf", "\n"), ("crlf", "\r\n")):
        folder = tmp_path / name
        folder.mkdir()
        files = [with_line_ends(folder, pair_files, each, end) for each in ("train.de", "train.en", "val.de", "val.en")]
        options = zip(("--source", "--target", "--validation-source", "--validation-target"), files, strict=True)
        words = [str(word) for option in options for word in option]
        run = tmp_path / f"run-{name}"
        shape = [*SMALL, "--vocabulary-size", "300", "--steps", "1", "--output", str(run)]
        assert main(["train-translator", *words, *shape]) == 0
        document = json.loads((run / "run.json").read_text())
        assert "\\r" not in json.loads(document["tokenizer"])["model"]["vocab"]
        fingerprints.append((document["text"], document["tokenizer"]))
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\rb\r", ["a", "b"]),
        ("a\rb\nc\n", ["a\rb", "c"]),  # a \r that ended a line would shift the lines after it
        ("a\r\r\n\r\nb\n", ["a", "", "b"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("\r\n", [""]),
        ("\r", [""]),
        ("\n\n", ["", ""]),
        ("a\x0cb\x85c\u2028d\n", ["a\x0cb\x85c\u2028d"]),
        ("", []),
        ("\ufeff", []),
    ],
)
def test_lines_end_where_they_end_in_files_of_any_system(tmp_path, text, lines):
    (tmp_path / "text").write_bytes(text.encode())
    assert read_lines(tmp_path / "text") == lines


def test_ten_million_returns_without_a_line_feed_take_no_time(tmp_path):
    (tmp_path / "text").write_bytes(b"\r" * 10_000_000 + b"a\n")
    started = time.perf_counter()
    assert len(read_lines(tmp_path / "text")) == 1
    assert time.perf_counter() - started < 30


def test_standard_input_keeps_a_lone_carriage_return_in_its_line(interpreter, monkeypatch, capsys):
    given = io.TextIOWrapper(io.BytesIO(b"vier\rdrei.\r\neins zwei.\r\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", given)
    assert main(["translate", str(interpreter)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[1]) == (2, "one two.")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_text_sends_a_terminal_no_commands(tmp_path, monkeypatch, capsys):
    """Elsewhere, into a file or a pipe, it stays what the model wrote."""
    (tmp_path / "text").write_text("\x1b\x9b\n\té\xa0" * 100)
    quick = ["--width", "8", "--num-layers", "1", "--num-heads", "1", "--context-length", "8", "--steps", "1"]
    assert main(["train-characters", str(tmp_path / "text"), "--output", str(tmp_path / "run"), *quick]) == 0
    shown, command = Terminal(), ["generate", str(tmp_path / "run"), "--temperature", "3"]
    capsys.readouterr()
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert set("\x1b\x9b\té\xa0") < set(plain)
    monkeypatch.setattr("sys.stdout", shown)
    assert main(command) == 0
    assert shown.getvalue() == plain.replace("\x1b", r"\x1b").replace("\x9b", r"\x9b")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("eins\nzwei\n", "one\n", "a has 2 lines, b has 1"),
        ("eins\n\n", "one\ntwo\n", "a: line 2 is empty"),
        ("eins\nzwei\n", "one\n \n", "b: line 2 is empty"),
        ("", "", "a: no line in it"),
        ("eins " * 200, "one", "training pair 1: "),
    ],
)
def test_pairs_that_are_none_are_refused(source, target, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text(source)
    (tmp_path / "b").write_text(target)
    files = ["--source", "a", "--target", "b", "--validation-source", "a", "--validation-target", "b"]
    assert main(["train-translator", *files, "--output", "run", "--vocabulary-size", "260"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_with_its_extra(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert main(["train-characters", str(text_file), "--output", str(tmp_path / "run")]) == 2
    assert "pip install 'decision-transformer[language]'" in capsys.readouterr().err


def test_a_gpt2_of_hugging_faces_library_writes_with_its_own_tokens(tmp_path, capsys):
    tokenizer = subword_tokenizer(["low lower lowest"] * 3, 270)
    shape = LanguageConfig(vocabulary_size=tokenizer.get_vocab_size(), width=8, num_heads=2, activation="gelu")
    save_gpt2(LanguageModel(shape), tmp_path / "gpt2")
    command = ["generate", str(tmp_path / "gpt2"), "--prompt", "lower", "--new-tokens", "7", "--temperature", "0"]
    assert main(command) == 2
    assert "tokenizer.json: no such file" in capsys.readouterr().err
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    assert main(command) == 0
    model = load_gpt2(tmp_path / "gpt2")
    expected = generate(model, [encode(tokenizer, "lower")], 7, Sampling(temperature=0))[0]
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"


def gpt2_folder(folder, changes=None, vocabulary=270):
    """A GPT-2 in their layout whose config.json says something else, with a tokeniser of so many tokens."""
    tokenizer = subword_tokenizer(["low lower lowest"] * 3, vocabulary)
    save_gpt2(LanguageModel(LanguageConfig(vocabulary_size=265, width=8, num_heads=2, activation="gelu")), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **(changes or {})}))
    return ["generate", str(folder), "--prompt", "lowest", "--new-tokens", "3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 10_000}, "model.safetensors: has 40 tensors, its config.json says 10000 layers"),
        ({"n_embd": 2**50}, "model.safetensors: no file holds what its config.json says"),
        ({"n_embd": 10**30}, "config.json: n_embd is 1000000000000000000000000000000, expected a whole number up to"),
        ({"n_positions": 10**12}, "tensor transformer.wpe.weight has shape [64, 8], expected [1000000000000, 8]"),
        ({"vocab_size": 10**12}, "tensor transformer.wte.weight has shape [265, 8], expected [1000000000000, 8]"),
    ],
)
def test_a_gpt2_that_says_that_it_is_huge_is_refused(changes, message, tmp_path, capsys):
    assert main(gpt2_folder(tmp_path / "gpt2", changes)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_tokeniser_with_tokens_that_its_model_lacks_is_refused(tmp_path, capsys):
    assert main(gpt2_folder(tmp_path / "gpt2", vocabulary=265)) == 0
    capsys.readouterr()
    assert main(gpt2_folder(tmp_path / "more")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"more: its tokenizer has a token \d+, its model knows 265", line)


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": 1, "kind": "decision-transformer"}', "not json"])
def test_a_foreign_run_is_refused(writer, content, tmp_path, capsys):
    (tmp_path / "run.json").write_text(content)
    assert main(["generate", str(tmp_path)]) == 2
    assert main(["train-characters", "x.txt", "--output", str(tmp_path), "--resume"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
