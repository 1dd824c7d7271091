"""Several processes train as one: each test starts torchrun once, and its processes check many things in one go."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_cli import write_npz
from test_text import counting_pairs
from test_training import assert_equal_runs, everything, log_without_clock, small
from torchrun_program import COMMAND, CUTS, PAYDAY, text_batches, train_cut_at, without_dropout

from dt.config import WAY_SEED
from dt.evaluation import evaluate
from dt.learning.run import load_run
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from transformer.errors import CheckpointError
from transformer.files import read_json
from transformer.runs import distributed
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.record import LAUNCH
from transformer.text.cli import main as text_main

HERE = Path(__file__).parent


@contextlib.contextmanager
def started(*arguments: str, number: int = 2, restarts: int = 0):
    """A torchrun at work, which leaves no process behind."""
    options = [f"--nproc-per-node={number}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    options += ["--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()  # it ends its processes, and those that do not end it kills
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=45)
            running.kill()


def ended(running: subprocess.Popen[str]) -> str:
    """What a torchrun has said on standard error, once it has ended. Five minutes are enough on a busy machine too."""
    try:
        return running.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:
        running.terminate()
        pytest.fail(f"torchrun hung: {running.communicate(timeout=45)[1][-3000:]}")


def torchrun(*arguments: str, **options: int) -> str:
    """What a torchrun said on standard error that went well."""
    with started(*arguments, **options) as running:
        errors = ended(running)
    assert running.returncode == 0, errors[-9000:]
    return errors


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder that two processes have filled: see `torchrun_program.py`. One run in it was begun by one process."""
    folder = tmp_path_factory.mktemp("together")
    write_npz(folder / "coins.npz", PAYDAY)
    train_cut_at(6, without_dropout(small(evaluate_every=4)), folder / "one-then-two")
    torchrun(str(HERE / "torchrun_program.py"), str(folder))
    return folder


@pytest.fixture(scope="module")
def of_two(together):
    return read_json(together / "found.json")


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    torchrun(str(HERE / "torchrun_program.py"), str(folder), number=4)
    return read_json(folder / "found.json")


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """A run of one process without dropout, which several processes' runs should resemble."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(PAYDAY, without_dropout(small(evaluate_every=4)), folder)
    return folder


@pytest.fixture(params=["of_two", "of_four"])
def found(request):
    return request.getfixturevalue(request.param)


def test_several_processes_have_the_gradient_and_the_clip_of_one(found):
    assert found["float32"] < 1e-6
    assert found["float64"] < 1e-12


def test_several_processes_share_the_batches_of_one(found):
    number = len(found["shares"])
    for step, whole in enumerate(found["batches"]):
        shares = [rows[step] for rows in found["shares"]]
        assert [len(rows) for rows in shares] == {2: [4, 3], 4: [2, 2, 2, 1]}[number]
        assert in_turn(shares) == whole
    for step, whole in enumerate(text_batches()):
        shares = [rows[step] for rows in found["text"]]
        assert all(len(rows) < len(whole) for rows in shares)
        assert in_turn(shares) == whole
    assert found["whole"] == list(range(7))


def in_turn(shares: list[list[int]]) -> list[int]:
    return [row for rows in itertools.zip_longest(*shares) for row in rows if row is not None]


def test_each_process_drops_out_what_it_draws_itself(found):
    assert len({loss for (loss,) in found["losses"]}) == len(found["shares"])


@pytest.mark.parametrize("step", CUTS)
def test_a_run_of_two_processes_resumes_bit_for_bit(together, step):
    assert_equal_runs(together / "whole", together / f"cut-{step}")
    assert read_json(together / "whole" / "best.json") == read_json(together / f"cut-{step}" / "best.json")


def test_the_first_process_alone_calls_callbacks(together):
    first, second = (read_json(together / f"reported-{rank}.json") for rank in (0, 1))
    assert [step for kind, step in first if kind == "log"] == [2, 4, 6, 8, 10, 12]
    assert [step for kind, step in first if kind == "checkpoint"] == [4, 8, 12]
    assert second == []


def test_two_processes_evaluate_as_one_does(together, of_two):
    run = load_run(together / "whole")
    policy = ReturnConditionedPolicy(run.model)
    results = evaluate(policy, run.environment, [2.0, 8.0, 5.0], episodes=3, seed=WAY_SEED)
    results += evaluate(policy, run.environment, [8.0], episodes=1, seed=WAY_SEED)
    assert of_two["evaluation"] == [result.to_json() for result in results]


def assert_alike(a: Path, b: Path):
    """Weights, moments and losses are equal but for rounding, and so is what was evaluated."""
    (tensors, _, log), (others, _, other_log) = everything(a), everything(b)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], atol=1e-5, rtol=1e-4, msg=name)
    assert [(line.pop("kind"), line["step"]) for line in log] == [
        (line.pop("kind"), line["step"]) for line in other_log
    ]
    for line, other in zip(log, other_log, strict=True):
        assert line == pytest.approx(other, abs=1e-5, rel=1e-4)


def test_a_run_of_two_processes_goes_on_in_one(together, of_one):
    folder = together / "two-then-one"
    assert step_of(checkpoints(folder)[-1]) == 4
    train(PAYDAY, without_dropout(small(evaluate_every=4)), folder, resume=True)
    assert_alike(folder, of_one)


def test_a_run_of_one_process_goes_on_in_two(together, of_one):
    assert_alike(together / "one-then-two", of_one)


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_to_one_process_stops_both_after_the_same_step(together, of_two, number, code):
    assert of_two[number] == [[code, f"stopped by {number} after step 6; --resume goes on from there", 6]] * 2
    tensors, state, _ = everything(together / "whole")
    others, other_state, _ = everything(together / number)
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert state == other_state


def test_what_goes_wrong_in_one_process_stops_both(together, of_two):
    assert [kind for kind, _ in of_two["poisoned"]] == ["NonFiniteError"] * 2
    assert [message[:17] for _, message in of_two["poisoned"]] == ["step 5: loss nan,"] * 2
    assert step_of(checkpoints(together / "poisoned")[-1]) == 4
    assert [kind for kind, _ in of_two["refused"]] == ["CheckpointError", "FailedElsewhereError"]
    assert "exists already; --resume continues it" in of_two["refused"][0][1]
    assert of_two["together"] == [["KeyError", "\"'lost'\""]] * 2
    assert of_two["too few"] == [["ConfigError", "batch_size 1 leaves some of 2 processes without any"]] * 2
    assert not (together / "too-few").exists()


def test_a_killed_process_is_restarted_by_torchrun_and_nothing_is_lost(together, tmp_path):
    """The run is the one that nothing happened to, bit for bit; what was refused was said once by each attempt."""
    errors = torchrun(
        str(HERE / "torchrun_cli.py"), "train", str(together / "coins.npz"), *COMMAND,
        "--output", str(tmp_path / "run"), restarts=1,
    )  # fmt: skip
    assert_equal_runs(together / "by-command", tmp_path / "run")
    result, other = (read_json(run / "results" / "last.json") for run in (together / "by-command", tmp_path / "run"))
    assert result == other
    assert errors.count("run folder") == 1
    assert errors.count("dt evaluate works in one process; start it without torchrun") == 2


def test_a_restart_goes_on_with_its_own_run_alone(tmp_path, monkeypatch):
    """As torchrun restarts after any failure, a refusal too: what another launch has trained stays refused."""

    def launched_as(name, attempt):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/logs/{name}/attempt_{attempt}/0/error.json")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))

    launched_as("ours", 0)
    train_cut_at(6, small(), tmp_path / "run")
    assert distributed.launch_id() == (tmp_path / "run" / LAUNCH).read_text()
    with pytest.raises(CheckpointError, match="exists already"):
        train(PAYDAY, small(), tmp_path / "run")
    launched_as("theirs", 1)
    with pytest.raises(CheckpointError, match="exists already"):
        train(PAYDAY, small(), tmp_path / "run")
    launched_as("ours", 1)
    assert step_of(train(PAYDAY, small(), tmp_path / "run").checkpoint) == 12


# The programs for text, each as it is typed.

TEXT = "--width 16 --num-layers 1 --num-heads 2 --dropout 0 --precision float32 --device cpu --batch-size 7"
TEXT += " --context-length 24 --schedule constant --warmup-steps 3 --log-every 2"
TEXT = TEXT.split()


def test_the_character_program_trains_in_two_processes_as_in_one(tmp_path):
    (tmp_path / "text").write_text("abcdefgh\n" * 40)
    command = ["train-characters", str(tmp_path / "text"), *TEXT, "--steps", "8", "--evaluate-every", "4", "--output"]
    errors = torchrun("-m", "transformer", *command, str(tmp_path / "two"))
    assert errors.count("best on validation") == 1
    assert text_main([*command, str(tmp_path / "one")]) == 0
    assert_alike(tmp_path / "two", tmp_path / "one")


def stop_at_work(tmp_path: Path, number: signal.Signals) -> tuple[int, str, list[str]]:
    """Let the translator train in two processes until torchrun gets a signal: step, standard error and command."""
    for name, seed in (("train", 0), ("validation", 1)):
        for language, lines in zip(("source", "target"), zip(*counting_pairs(40, seed), strict=True), strict=True):
            (tmp_path / f"{name}-{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"source": "train-source", "target": "train-target"}
    options |= {name: name for name in ("validation-source", "validation-target")}
    files = [text for option, name in options.items() for text in (f"--{option}", str(tmp_path / name))]
    command = ["train-translator", *files, *TEXT, "--vocabulary-size", "280", "--evaluate-every", "0"]
    log = tmp_path / "two" / "log.jsonl"
    with started("-m", "transformer", *command, "--steps", "100000", "--output", str(tmp_path / "two")) as running:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") >= 6):
            assert running.poll() is None, ended(running)[-9000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(number)
        errors = ended(running)
    assert running.returncode == 1  # torchrun's own word for it
    (checkpoint,) = checkpoints(tmp_path / "two")
    return step_of(checkpoint), errors, command


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.torture)], ids=lambda number: number.name
)
def test_a_signal_to_torchrun_stops_the_translator_with_a_checkpoint(tmp_path, number):
    step, errors, command = stop_at_work(tmp_path, number)
    assert errors.count(f"stopped by {number.name} after step {step}; --resume goes on from there") == 1
    assert text_main([*command, "--steps", "10", "--output", str(tmp_path / "one")]) == 0
    assert_first_losses_alike(tmp_path, 10)
    more = ["--resume", "--steps", str(step + 4), "--output", str(tmp_path / "two")]
    assert text_main([*command, *more]) == 0
    assert log_without_clock(tmp_path / "two")[-1]["step"] == step + 4


def assert_first_losses_alike(folder: Path, steps: int):
    first = [[line["loss"] for line in log_without_clock(folder / name)[: steps // 2]] for name in ("one", "two")]
    assert len(first[0]) == steps // 2
    assert first[0] == pytest.approx(first[1], abs=1e-5)


DIFFERENCES = {
    "numbers": r"process 1: dataset\.fingerprint is '[0-9a-f]{64}', expected '[0-9a-f]{64}' as in process 0",
    "rewards": r"process 1: dataset\.fingerprint is ",
    "seed": r"process 1: config\.training\.seed is 1, expected 0 as in process 0",
    "rate": r"process 1: config\.training\.learning_rate is 0\.002, expected 0\.001 as in process 0",
    "environment": r"process 1: environment\.kwargs\.limit is 9, expected 10 as in process 0",
    "versions": r"process 1: versions\.numpy is '2\.1\.0', expected '2\.0\.0' as in process 0",
    "text": r"process 1: text is '[0-9a-f]{64}', expected '[0-9a-f]{64}' as in process 0",
    "command": r"process 1: resume is True, expected False as in process 0\. Start all processes with the same data",
    "place": "trained",
}


def test_processes_that_are_not_given_the_same_are_refused_by_name_in_each(tmp_path):
    torchrun(str(HERE / "torchrun_differences.py"), str(tmp_path))
    for case, expected in DIFFERENCES.items():
        for process in (0, 1):
            assert re.match(expected, (tmp_path / f"{case}-{process}").read_text()), (case, process)
        assert (tmp_path / case).exists() == (case == "place")


def test_one_process_has_nothing_to_compare():
    distributed.check_same({"config": {"seed": 0}})
