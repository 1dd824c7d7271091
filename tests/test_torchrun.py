"""Several processes train as one: each test starts torchrun once, and its processes check many things in one go."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import write_npz
from test_training import assert_equal_runs, everything, log_without_clock, small

from dt.config import WAY_SEED
from dt.evaluation import evaluate
from dt.policy import ReturnConditionedPolicy
from dt.training import load_run, train
from transformer.checkpoint import checkpoints, read_json, read_tensors, step_of

HERE = Path(__file__).parent
OPTIONS = "--width 16 --num-layers 1 --context-length 5 --batch-size 7 --steps 12 --checkpoint-every 4 --log-every 2"
OPTIONS = [
    *OPTIONS.split(),
    *[
        "--evaluate-every",
        "0",
        "--episodes",
        "2",
        "--target-return",
        "2",
        "8",
        "--device",
        "cpu",
        "--import",
        "conftest",
    ],
]


def torchrun(*arguments: str, number: int = 2, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """What a torchrun said and ended with. It is given a minute and a half, and leaves no process behind."""
    options = [f"--nproc-per-node={number}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    options += ["--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.1"]
    started = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    try:
        output, errors = started.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        started.terminate()  # it ends its processes, and those that do not end it kills
        try:
            output, errors = started.communicate(timeout=45)
        finally:
            started.kill()
        pytest.fail(f"torchrun hung: {errors[-3000:]}")
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder that two processes have filled: see `torchrun_program.py`."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(str(HERE / "torchrun_program.py"), str(folder))
    assert done.returncode == 0, done.stderr[-9000:]
    return folder


@pytest.fixture(scope="module")
def found(together):
    return read_json(together / "found.json")


def test_two_processes_have_the_gradient_of_one(found):
    assert found["float32"] < 1e-6
    assert found["float64"] < 1e-12


def test_two_processes_share_the_batch_of_one(found):
    (first, second), whole = found["shares"]
    assert (len(first), len(second)) == (4, 3)
    assert sorted(first + second) == sorted(whole)
    assert found["whole"] == list(range(7))


@pytest.mark.parametrize("step", [2, 5, 8, 11])
def test_a_run_of_two_processes_resumes_bit_for_bit(together, step):
    assert_equal_runs(together / "whole", together / f"cut-{step}")
    assert read_json(together / "whole" / "best.json") == read_json(together / f"cut-{step}" / "best.json")


def test_two_processes_evaluate_as_one_does(together, found):
    run = load_run(together / "whole")
    results = evaluate(ReturnConditionedPolicy(run.model), run.environment, [2.0, 8.0, 5.0], episodes=3, seed=WAY_SEED)
    assert found["evaluation"] == [result.to_json() for result in results]


def test_a_run_of_two_processes_goes_on_in_one(together, payday, tmp_path):
    config = small(evaluate_every=4)
    config = replace(config, model=replace(config.model, dropout=0.0))
    folder = together / "to-be-resumed-by-one"
    assert step_of(checkpoints(folder)[-1]) == 4
    train(payday, config, folder, resume=True)
    train(payday, config, tmp_path / "one")
    weights, others = (read_tensors(checkpoints(run)[-1] / "model.safetensors") for run in (folder, tmp_path / "one"))
    assert all(torch.allclose(tensor, others[name], atol=1e-5) for name, tensor in weights.items())
    losses = [[line["loss"] for line in log_without_clock(run) if "loss" in line] for run in (folder, tmp_path / "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_signal_to_one_process_stops_both_after_the_same_step(together, found):
    message = "stopped by SIGTERM after step 6; --resume goes on from there"
    assert found["stopped"] == [[143, message]] * 2
    tensors, others = (everything(together / name)[0] for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_numbers_that_are_not_finite_in_one_process_stop_both(together, found):
    assert [message[:17] for message in found["poisoned"]] == ["step 5: loss nan,"] * 2
    assert step_of(checkpoints(together / "poisoned")[-1]) == 4


def test_a_killed_process_is_restarted_by_torchrun_and_a_run_that_exists_is_refused_once(payday, tmp_path):
    source = write_npz(tmp_path / "coins.npz", payday)
    train_it = [str(HERE / "torchrun_cli.py"), "train", str(source), *OPTIONS, "--output"]
    done = torchrun(*train_it, str(tmp_path / "run"), restarts=1)
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stderr.count("run folder") == 1
    assert step_of(checkpoints(tmp_path / "run")[-1]) == 12
    refused = torchrun(*train_it, str(tmp_path / "run"))
    assert refused.returncode == 1
    assert refused.stderr.count("exists already; --resume continues it") == 1
