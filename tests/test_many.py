"""Runs trained as one program: each is what it would be alone."""

import os
import signal
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import echo_dataset
from gymnasium import spaces
from test_training import assert_equal_runs, everything, log_without_clock, small
from torch.utils._python_dispatch import TorchDispatchMode

from dt.asking.calibrate import calibrate
from dt.asking.calibrated_policy import drop_calibrations
from dt.cli import main
from dt.data import Batches
from dt.learning import train_many as many
from dt.learning.run import load_run
from dt.learning.train_many import StackedTrainers, train_many
from dt.learning.training import prepare, train
from envs.datasets.writer import write_minari
from envs.space_json import space_to_json
from transformer.attention import Dropout
from transformer.errors import CheckpointError, ConfigError, MemoryExhaustedError, NonFiniteError, Stopped
from transformer.files import read_json
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.schedule import learning_rate_at, step_seed


def without_dropout(conditioning="single", **training):
    config = small(conditioning=conditioning, gradient_clip=0.05, **training)
    return replace(config, model=replace(config.model, dropout=0.0, observation_noise=0.0))


@pytest.fixture
def richer(payday):
    """The same coins with other observations and rewards: another normaliser and another return scale."""
    seen = {"value": payday.observations["value"] ** 3 + 1}
    return replace(payday, name="payday/richer-v0", observations=seen, rewards=payday.rewards * 7 + 1)


def begun(datasets, config, folder):
    """Trainers of new runs."""
    trainers = [prepare(data, config, folder / data.name.replace("/", "-")) for data in datasets]
    for trainer in trainers:
        trainer.start()
    return trainers


def assert_close_runs(a, b):
    """The same run but for rounding: weights, moments and the log."""
    (tensors, state, log), (others, other_state, other_log) = everything(a), everything(b)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, others[name], rtol=1e-3, atol=1e-5, msg=lambda words, n=name: f"{n}: {words}"
        )
    assert state["step"] == other_state["step"]
    for line, other in zip(log, other_log, strict=True):
        assert line.pop("kind") == other.pop("kind")
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("conditioning", ["token", "decoupled", "single"])
def test_each_run_is_the_run_alone(payday, richer, tmp_path, conditioning):
    config = without_dropout(conditioning)
    folders, done = train_many([payday, richer], config, [0, 5], tmp_path / "together")
    assert done
    assert [folder.name for folder in folders] == [f"payday-{n}-v0-s{s}" for n in ("coins", "richer") for s in (0, 5)]
    assert len({tuple(line["loss"] for line in log_without_clock(folder)) for folder in folders}) == 4
    for folder, dataset, seed in zip(folders, [payday, payday, richer, richer], [0, 5, 0, 5], strict=True):
        alone = tmp_path / "alone" / folder.name
        train(dataset, replace(config, training=replace(config.training, seed=seed)), alone)
        assert_close_runs(folder, alone)
        norms = [line["gradient_norm"] for line in log_without_clock(folder)]
        assert max(norms) > config.training.gradient_clip  # so the clip has acted
        assert load_run(folder).model.return_scale == load_run(alone).model.return_scale


def test_every_kind_of_space_is_stacked(tmp_path):
    dataset, config = echo_dataset("nested", "nested"), without_dropout(steps=3)
    (first, second), _ = train_many([dataset], config, [0, 1], tmp_path / "together")
    train(dataset, config, tmp_path / "alone")
    assert_close_runs(first, tmp_path / "alone")
    assert not torch.equal(*(everything(f)[0]["model/heads.0.linear.weight"] for f in (first, second)))


def test_dropout_is_drawn_for_each_run_and_at_its_rate():
    dropout = Dropout(0.3)
    kept = torch.func.vmap(dropout, randomness="different")(torch.ones(3, 20_001)) > 0
    assert (kept.double().mean(1) - 0.7).abs().max() < 0.02
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs((kept[i] & kept[j]).double().mean() - 0.49) < 0.02  # independent


@pytest.mark.parametrize("pieces", [1, 3])
def test_runs_in_pieces_are_the_uninterrupted_ones(payday, richer, tmp_path, monkeypatch, pieces):
    config, datasets = small(evaluate_every=4), [payday, richer]
    whole, _ = train_many(datasets, config, [1], tmp_path / "whole")
    for _ in range(pieces):
        cut, done = train_many(datasets, config, [1], tmp_path / "cut", minutes=0)  # at least one step each
        assert not done
    assert {step_of(checkpoints(folder)[-1]) for folder in cut} == {pieces}
    assert train_many(datasets, config, [1], tmp_path / "cut") == (cut, True)
    for a, b in zip(whole, cut, strict=True):
        assert_equal_runs(a, b)
        assert (a / "best.json").read_text() == (b / "best.json").read_text()


def test_runs_that_a_crash_left_at_different_steps_go_on_from_the_last_that_all_have(
    payday, richer, tmp_path, monkeypatch
):
    config, datasets = small(), [payday, richer]
    whole, _ = train_many(datasets, config, [0], tmp_path / "whole")
    save, saved = many.Trainer.save, []

    def dying(self):
        saved.append(self.step)
        if saved == [4, 4, 8, 8]:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(many.Trainer, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            train_many(datasets, config, [0], tmp_path / "cut")
    cut = [tmp_path / "cut" / folder.name for folder in whole]
    assert [step_of(checkpoints(folder)[-1]) for folder in cut] == [8, 4]
    train_many(datasets, config, [0], tmp_path / "cut")
    for a, b in zip(whole, cut, strict=True):
        assert_equal_runs(a, b)


def test_a_damaged_checkpoint_is_passed_over_in_all_runs(payday, richer, tmp_path, capsys):
    config, datasets = small(), [payday, richer]
    whole, _ = train_many(datasets, config, [0], tmp_path / "whole")
    cut, _ = train_many(datasets, config, [0], tmp_path / "cut")
    damaged = checkpoints(cut[1])[-1]
    (damaged / "model.safetensors").write_bytes(b"")
    train_many(datasets, config, [0], tmp_path / "cut")
    assert f"{damaged}" in capsys.readouterr().err
    for a, b in zip(whole, cut, strict=True):
        assert_equal_runs(a, b)


def test_a_signal_leaves_a_checkpoint_of_each_run(payday, tmp_path):
    config = small(log_every=100, checkpoint_every=100)
    stack = StackedTrainers(begun([payday, replace(payday, name="payday/again-v0")], config, tmp_path))

    class Interrupted(Batches):
        def starts(self, step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().starts(step)

    stack.batches[0] = Interrupted(**vars(stack.batches[0]))
    with pytest.raises(Stopped) as stopped:
        stack.train(None)
    assert stopped.value.exit_code == 143
    assert [[step_of(path) for path in checkpoints(trainer.record.folder)] for trainer in stack.trainers] == [[5], [5]]


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a number from the device, for which a GPU's queue would have to run dry."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number is read from the device"
        return function(*arguments, **(named or {}))


def test_no_step_waits_for_the_device(payday, richer, tmp_path):
    stack = StackedTrainers(begun([payday, richer], small(), tmp_path))
    with NoWaiting():
        stack._one_step()
    with NoWaiting(), pytest.raises(AssertionError, match="a number is read"):
        stack.losses[0].item()


def test_an_update_knows_only_what_the_device_holds(payday, richer, tmp_path, monkeypatch):
    """What a recorded graph would replay: given the windows' starts, the rate and the seed, it is the same step."""
    datasets, config = [payday, richer], small(warmup_steps=4, schedule="cosine")
    plain, directed = (StackedTrainers(begun(datasets, config, tmp_path / name)) for name in ("plain", "directed"))
    for stack in (plain, directed):
        stack._one_step()
        stack.step += 1
    starts, rate = [batches.starts(1) for batches in directed.batches], learning_rate_at(1, config.training)
    plain._one_step()

    def asked(*_):
        raise AssertionError("not known on the device")

    for name in ("learning_rate_at", "step_seed"):
        monkeypatch.setattr(many, name, asked)
    monkeypatch.setattr(Batches, "starts", asked)
    monkeypatch.setattr(Batches, "__call__", asked)
    directed.step = None
    directed.starts.copy_(torch.stack(starts))
    directed.rate.fill_(rate)
    torch.manual_seed(step_seed(config.training.seed, 1))
    directed._update()
    for name, weights in plain.parameters.items():
        assert torch.equal(weights, directed.parameters[name]), name
    assert torch.equal(plain.losses, directed.losses)


def test_recording_an_update_changes_nothing(payday, richer, tmp_path, monkeypatch):
    """All but the graph itself, on the CPU: what stands in for CUDA lets the updates run that are to be recorded."""
    stack = StackedTrainers(begun([payday, richer], small(), tmp_path))
    stack._one_step()
    stack.step += 1
    stack._tell_trainers(log=False, score=False, save=False)  # which reads and clears the losses, as at a new start

    def held():
        moments = [x for state in stack.optimizer.state.values() for x in state.values()]
        tensors = [*stack.parameters.values(), *moments, stack.losses, stack.broken, stack.steps_done]
        return [x.detach().clone() for x in tensors]

    updates, update = [], stack._update

    def counted():
        updates.append(None)
        update()

    before, graph = held(), MagicMock()
    for name in ("Stream", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(stack, "_update", counted)
    assert stack._record() is graph.replay
    torch.cuda.graph.assert_called_once_with(graph)
    assert len(updates) == 4
    assert all(torch.equal(p, q) for p, q in zip(before, held(), strict=True))
    update()
    assert not torch.equal(before[0], held()[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("conditioning", ["token", "decoupled", "single"])
def test_the_graph_is_the_step(payday, richer, tmp_path, conditioning):
    config = without_dropout(conditioning, device="cuda", evaluate_every=0)
    graph, plain = (StackedTrainers(begun([payday, richer], config, tmp_path / name)) for name in ("graph", "plain"))
    plain._run = plain._update
    for stack in (graph, plain):
        for _ in range(5):
            stack._one_step()
            stack.step += 1
    assert torch.equal(graph.steps_done, plain.steps_done)
    torch.testing.assert_close(graph.losses, plain.losses)
    for name, weights in plain.parameters.items():
        torch.testing.assert_close(graph.parameters[name], weights, rtol=1e-4, atol=1e-6)


def test_too_little_memory_says_what_to_lower(payday, tmp_path, monkeypatch):
    stack = StackedTrainers(begun([payday], small(), tmp_path))
    monkeypatch.setattr(stack.batches[0].data, "gather", lambda starts: torch.empty(2**60))
    with pytest.raises(MemoryExhaustedError, match="step 0: out of memory; train fewer runs at once than 1, or lower"):
        stack.train(None)


def test_one_run_that_is_not_finite_stops_all_before_the_update(payday, richer, tmp_path, monkeypatch):
    config = small(log_every=4, checkpoint_every=100)
    stack, after = StackedTrainers(begun([payday, richer], config, tmp_path)), []
    trainers, data = stack.trainers, stack.batches[1].data
    gather = data.gather

    def poisoned(starts):
        after.append([p.detach().clone() for p in stack.parameters.values()])
        batch = gather(starts)
        return replace(batch, returns_to_go=batch.returns_to_go * float("nan")) if len(after) == 2 else batch

    monkeypatch.setattr(data, "gather", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 1: \S*richer-v0: loss or gradient is not finite \(episodes \[\d+"):
        stack.train(None)
    assert len(after) == 4  # it is read when the log is written
    assert not torch.equal(after[0][0], after[1][0])
    assert all(torch.equal(p, q) for p, q in zip(after[1], after[3], strict=True))
    assert all(torch.equal(p, q) for p, q in zip(after[1], stack.parameters.values(), strict=True))
    assert all(not checkpoints(trainer.record.folder) for trainer in trainers)


def test_runs_that_do_not_fit_together_are_refused(payday, richer, tmp_path):
    wide = replace(richer, offsets=np.array([0, 12, *range(20, 601, 10)]), environment=None)
    with pytest.raises(
        ConfigError, match=r"richer-v0-s0: timestep_encoder.weight is \(12, 16\), in .*coins-v0-s0 \(20, 16\)"
    ):
        train_many([payday, wide], small(), [0], tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="two runs of one dataset and seed"):
        train_many([payday], small(), [0, 0], tmp_path / "b")
    with pytest.raises(ConfigError, match="no dataset or no seed"):
        train_many([payday], small(), [], tmp_path / "b")
    assert not (tmp_path / "b").exists()
    train_many([payday], small(steps=1), [0], tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"coins-v0-s0 is trained and .*coins-v0-s1 is not there"):
        train_many([payday], small(steps=1), [0, 1], tmp_path / "c")
    for steps, data in ((4, payday), (12, richer)):
        train_many([data], small(steps=steps), [0], tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"richer-v0-s0: is at step 12, the others have 0 in common with it"):
        train_many([payday, richer], small(), [0], tmp_path / "d")


def assert_joint_table(lines, folders):
    """The printed table of two seeds holds the means of their files of results."""
    files = [read_json(folder / "results" / "last.json") for folder in folders]
    assert lines[0] == "payday/coins-v0 in Payday-v0, 2 seeds"
    assert lines[1].split() == ["target", "achieved", "std", "error", "IQM", "95", "%", "interval", "seeds"]
    targets = [result["target_return"] for result in files[0]["results"]]
    assert len(targets) == 5
    for line, *results in zip(lines[2:-1], *(file["results"] for file in files), strict=True):
        target, achieved, error, *_ = map(float, line.split()[:3])
        means = [result["mean_return"] for result in results]
        assert target == pytest.approx(results[0]["target_return"], rel=1e-4)
        assert achieved == pytest.approx(np.mean(means), rel=1e-4)
        assert error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-3)  # of two values
    errors = [file["measures"]["alignment_error"] for file in files]
    assert lines[-1] == f"alignment error: mean {np.mean(errors):.3f}, worst {max(errors):.3f}, of 2 seeds"


def test_finished_runs_are_calibrated_as_one_run_is(payday, tmp_path):
    config = small(steps=2)
    config = replace(config, evaluation=replace(config.evaluation, calibration=True))
    config = replace(config, calibration=replace(config.calibration, calibration_steps=600))
    folders, done = train_many([payday], config, [0, 1], tmp_path / "runs", minutes=0)
    assert not done
    assert not any(folder.joinpath("calibration-last.json").exists() for folder in folders)
    train_many([payday], config, [0, 1], tmp_path / "runs")
    found = [read_json(folder / "calibration-last.json") for folder in folders]
    assert found[0]["binding"]["checkpoint"] != found[1]["binding"]["checkpoint"]
    for folder, there in zip(folders, found, strict=True):
        run = load_run(folder)
        drop_calibrations(folder)
        calibrate(run, run.config.evaluation, 600)
        assert read_json(folder / "calibration-last.json") == there
    longer = replace(config, training=replace(config.training, steps=3))
    longer = replace(longer, evaluation=replace(config.evaluation, calibration=False))
    train_many([payday], longer, [0, 1], tmp_path / "runs")
    assert not any(folder.joinpath("calibration-last.json").exists() for folder in folders)


def test_the_command_leaves_runs_that_evaluate_and_train_open(payday, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_minari(payday, "payday/coins-v0")
    options = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--steps", "4", "--evaluate-every", "0"]
    options += ["--no-calibration"]
    command = ["train-many", "payday/coins-v0", "--seeds", "0", "3", "--output", str(tmp_path / "runs"), *options]
    assert main([*command, "--minutes", "0"]) == 0
    assert "the time is up" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[-2:] == [f"dt evaluate {tmp_path}/runs/payday-coins-v0-s{seed}" for seed in (0, 3)]
    assert_joint_table(lines[:-2], [tmp_path / "runs" / f"payday-coins-v0-s{seed}" for seed in (0, 3)])
    assert "these runs are not calibrated" in printed.err
    folder = lines[-1].split()[-1]
    assert main(["evaluate", folder, "--episodes", "2", "--target-return", "4"]) == 0
    assert main(["train", "payday/coins-v0", "--output", folder, "--resume", "--steps", "6", "--episodes", "1"]) == 0
    assert step_of(load_run(folder).checkpoint) == 6
    assert main([*command, "--seed", "4"]) == 2
    assert "dt: seed 4: train-many has --seeds" in capsys.readouterr().err


def test_many_runs_read_their_data_as_one_run_does(tmp_path, capsys, monkeypatch):
    """One option each: names of columns, spaces, a bad episode; and what a run alone makes of it is the same data."""
    rng, path = np.random.default_rng(0), tmp_path / "odd.csv"
    rows = [f"{i // 3},{rng.normal():.3f},{i % 2}.0,{rng.normal():.3f}" for i in range(30)]
    rows[7] = "2,,1.0,0.5"
    path.write_text("\n".join(["ep_id,x,act,rew", *rows]))
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--batch-size", "4", "--steps", "2"]
    small += ["--no-calibration"]
    reading = ["--columns", "episode=ep_id", "observations=x", "actions=act", "rewards=rew", "--skip-bad-episodes"]
    reading += ["--spaces", '{"action_space": {"type": "Discrete", "n": 3}}']
    command = ["train-many", str(path), *reading, *small, "--seeds", "0", "1", "--output", str(tmp_path / "runs")]
    assert main(command) == 0
    assert main(["train", str(path), *reading, *small, "--output", str(tmp_path / "one")]) == 0
    many, one = (read_json(tmp_path / name / "run.json") for name in ("runs/odd-s0", "one"))
    assert many["dataset"] == one["dataset"]
    assert many["action_space"] == one["action_space"] == space_to_json(spaces.Discrete(3))
    assert many["dataset"]["episodes"] == 8  # of ten, one is bad and one is held out
    resume = ["--output", str(tmp_path / "runs" / "odd-s1"), "--resume", "--skip-bad-episodes", "--steps", "3"]
    assert main(["train", str(path), *resume]) == 0
    capsys.readouterr()
    asked = []
    monkeypatch.setattr("minari.download_dataset", asked.append)
    assert main(["train-many", "no/such-v0"]) == 2
    assert "(--download fetches it)" in capsys.readouterr().err
    assert main(["train-many", "no/such-v0", "--download", "--output", str(tmp_path / "runs")]) == 2
    assert len(asked) == 1
    capsys.readouterr()
    assert main(["train-many"]) == 2
    assert "no dataset named" in capsys.readouterr().err
