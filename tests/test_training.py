"""The training loop: the schedule, stopping and resuming bit for bit, and refusing what cannot go on."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Payday

from dt.config import BEST_SEED, FINAL_SEED, WAY_SEED, Config, EvaluationConfig, ModelConfig
from dt.data import TrajectoryDataset
from dt.evaluation import TargetResult
from dt.learning.build import build_model
from dt.learning.run import load_run
from dt.learning.training import prepare, train
from envs.errors import EnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.config import TrainingConfig
from transformer.errors import CheckpointError, ConfigError, NonFiniteError
from transformer.files import read_json
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.log import CLOCK_FIELDS
from transformer.runs.schedule import learning_rate_at, step_seed
from transformer.runs.setup import multiplies_bf16, settle_precision
from transformer.runs.training import Trainer
from transformer.weights import read_tensors


def small(steps=12, conditioning="single", **training) -> Config:
    return Config(
        model=ModelConfig(
            conditioning=conditioning,
            positions="timesteps",
            rotary=False,
            width=16,
            num_layers=2,
            context_length=5,
            dropout=0.3,
        ),
        training=TrainingConfig(
            **{
                "steps": steps,
                "precision": "float32",
                "batch_size": 7,
                "log_every": 2,
                "warmup_steps": 3,
                "checkpoint_every": 4,
                "evaluate_every": 0,
                **training,
            }
        ),
        evaluation=EvaluationConfig(target_return=(2.0, 8.0), episodes=3, calibration=False),
    )


def log_without_clock(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK_FIELDS} for line in lines]


def everything(folder: Path):
    """Every tensor of the newest checkpoint, its state and the log."""
    newest = checkpoints(folder)[-1]
    tensors = {
        f"{f}/{k}": t for f in ("model", "optimizer") for k, t in read_tensors(newest / f"{f}.safetensors").items()
    }
    return tensors, read_json(newest / "state.json"), log_without_clock(folder)


def assert_equal_runs(a: Path, b: Path):
    (tensors, state, log), (others, other_state, other_log) = everything(a), everything(b)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert state == other_state
    assert log == other_log


class Cut(Exception):  # noqa: N818
    pass


@pytest.fixture
def cut_at(monkeypatch):
    """Make training die just before a step, as if its process had been killed."""

    def arm(step):
        original = Trainer._one_step

        def dying(self):
            if self.step == step:
                raise Cut
            return original(self)

        monkeypatch.setattr(Trainer, "_one_step", dying)
        return monkeypatch.undo

    return arm


@pytest.mark.parametrize("conditioning", ["token", "decoupled", "none", "single"])
def test_a_resumed_run_is_the_uninterrupted_run(payday, tmp_path, cut_at, conditioning):
    config = small(conditioning=conditioning, evaluate_every=4)
    train(payday, config, tmp_path / "whole")
    for step in (0, 2, 5, 8, 9, 11):  # at once, before the first checkpoint, between two, on one, after it, at the end
        folder = tmp_path / f"cut-{step}"
        undo = cut_at(step)
        with pytest.raises(Cut):
            train(payday, config, folder)
        undo()
        train(payday, config, folder, resume=True)
        assert_equal_runs(tmp_path / "whole", folder)
        assert read_json(tmp_path / "whole" / "best.json") == read_json(folder / "best.json")


def test_another_seed_is_another_run(payday, tmp_path):
    train(payday, small(seed=0), tmp_path / "a")
    train(payday, small(seed=1), tmp_path / "b")
    assert everything(tmp_path / "a")[2] != everything(tmp_path / "b")[2]


def test_dropout_differs_between_steps_and_repeats_with_the_seed():
    seeds = {step_seed(seed, step) for seed in range(50) for step in range(1000)}
    assert len(seeds) == 50_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_learning_rate_rises_then_falls_to_its_floor():
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    assert [learning_rate_at(step, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [learning_rate_at(step, config) for step in (55, 100)] == pytest.approx([0.5, 0.0])
    tenth = replace(config, learning_rate_floor=0.1)
    assert [learning_rate_at(step, tenth) for step in (55, 100)] == pytest.approx([0.55, 0.1])
    constant = replace(config, schedule="constant")
    assert learning_rate_at(99, constant) == 1.0


def test_a_loss_that_is_not_finite_stops_before_the_update(payday, tmp_path, monkeypatch):
    from dt.model import DecisionTransformer

    original = DecisionTransformer.forward
    calls = []

    def poisoned(self, batch):
        calls.append(1)
        loss, count = original(self, batch)
        return (loss * float("nan") if len(calls) == 6 else loss), count

    monkeypatch.setattr(DecisionTransformer, "forward", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 5: loss nan.*episodes \[\d+.*nothing was updated"):
        train(payday, small(), tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    assert step_of(newest) == 4
    assert all(tensor.isfinite().all() for tensor in read_tensors(newest / "model.safetensors").values())


def test_an_existing_folder_is_refused_and_untouched(payday, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already; --resume"):
        train(payday, small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_in_the_parts_of_another_is_refused_and_in_its_results_is_not(payday, tmp_path, monkeypatch):
    train(payday, small(steps=1), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    for inside in (tmp_path / "run" / "checkpoints" / "new", Path("new"), Path("../log.jsonl/new")):
        with pytest.raises(ConfigError, match=r"new: a part of the run .*/run itself; .*results is the place for more"):
            train(payday, small(steps=1), inside)
    assert sorted(tmp_path.rglob("*")) == before
    train(payday, small(steps=1), tmp_path / "run" / "results" / "new")


def test_what_a_resumed_run_may_not_change_is_named(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(), folder)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.001, now 0.1; a resumed run cannot"):
        train(payday, small(learning_rate=0.1), folder, resume=True)
    rewards = payday.rewards.copy()
    rewards[0] += 1
    with pytest.raises(CheckpointError, match="payday/coins-v0, its fingerprint differs"):
        train(replace(payday, rewards=rewards), small(), folder, resume=True)
    longer = train(payday, small(steps=16), folder, resume=True)
    assert step_of(longer.checkpoint) == 16


def test_the_best_checkpoint_is_the_one_that_scored_most_and_outlives_pruning(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(steps=30, evaluate_every=3, checkpoint_every=3, keep_checkpoints=1), folder)
    scores = {line["step"]: line["score"] for line in log_without_clock(folder) if line["kind"] == "evaluation"}
    best = read_json(folder / "best.json")
    assert best == {"step": max(scores, key=lambda step: (scores[step], -step)), "score": max(scores.values())}
    assert [step_of(path) for path in checkpoints(folder)] == sorted({best["step"], 30})
    assert step_of(load_run(folder, "best").checkpoint) == best["step"]
    assert step_of(load_run(folder).checkpoint) == 30


def test_bf16_trains_close_to_float32(payday, tmp_path):
    train(payday, small(steps=40, learning_rate=3e-3), tmp_path / "full")
    train(payday, small(steps=40, learning_rate=3e-3, precision="bf16"), tmp_path / "half")
    full, half = (everything(tmp_path / name)[2][-1]["loss"] for name in ("full", "half"))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)


def pretend(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_auto_is_bf16_where_the_hardware_has_such_products(monkeypatch, capabilities, expected):
    pretend(monkeypatch, **capabilities)
    cpu = torch.device("cpu")
    assert multiplies_bf16(cpu) == expected
    settled = settle_precision(TrainingConfig(precision="auto"), cpu, None)
    assert settled.precision == ("bf16" if expected else "float32")


def test_the_precision_that_auto_took_stays_with_the_run(payday, tmp_path, monkeypatch):
    pretend(monkeypatch, amx_bf16=True)
    train(payday, small(precision="auto"), tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["config"]["training"]["precision"] == "bf16"
    pretend(monkeypatch, amx_bf16=False)
    longer = small(steps=16, precision="auto", schedule="constant")
    train(payday, small(precision="auto", schedule="constant"), tmp_path / "other")
    pretend(monkeypatch, amx_bf16=True)
    run = train(payday, longer, tmp_path / "other", resume=True)
    assert run.config.training.precision == "float32"


def test_bf16_on_a_processor_without_such_products_is_warned_of(monkeypatch, capsys):
    config, cpu = TrainingConfig(precision="bf16"), torch.device("cpu")
    pretend(monkeypatch, amx_bf16=True)
    assert settle_precision(config, cpu, None) == config
    assert capsys.readouterr().err == ""
    pretend(monkeypatch, amx_bf16=False)
    assert settle_precision(config, cpu, None) == config
    assert "no such products" in capsys.readouterr().err


def test_tensorboard_holds_the_log(payday, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(payday, small(evaluate_every=6), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [(line["step"], line["loss"]) for line in log_without_clock(tmp_path / "run") if line["kind"] == "train"]
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in shown] == [step for step, _ in logged]
    assert [value for _, value in shown] == pytest.approx([loss for _, loss in logged])
    assert "evaluation/score" in events.Tags()["scalars"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_of_the_present_step_and_its_exit_code(tmp_path, number, code):
    program = (
        "import os, signal, sys; from transformer.runs.training import Trainer; from dt.cli import main\n"
        "original = Trainer._one_step\n"
        "def stepping(self):\n"
        f"    if self.step == 3: os.kill(os.getpid(), {int(number)})\n"
        "    return original(self)\n"
        "Trainer._one_step = stepping\n"
        f"sys.exit(main(['train', 'hopper/replay-v0', '--output', {str(tmp_path / 'run')!r}, '--steps', '9',"
        " '--width', '8', '--batch-size', '4', '--device', 'cpu']))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert f"stopped by {number.name} after step 4; --resume goes on from there" in done.stderr
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [4]


@pytest.mark.gpu
def test_an_unknown_device_is_refused(payday, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ConfigError, match="device cuda: no usable GPU"):
        train(payday, small(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_an_environment_trains(dataset, tmp_path):
    run = train(dataset, small(), tmp_path / "run")
    assert run.environment is None
    assert step_of(run.checkpoint) == 12


def test_an_extended_run_that_is_cut_goes_on_to_its_new_end(payday, tmp_path, cut_at):
    folder = tmp_path / "run"
    train(payday, small(steps=8), folder)
    undo = cut_at(13)
    with pytest.raises(Cut):
        train(payday, small(steps=16), folder, resume=True)
    undo()
    assert read_json(folder / "run.json")["config"]["training"]["steps"] == 16
    with pytest.raises(CheckpointError, match="is at step 12 already, steps 9 is less"):
        train(payday, small(steps=9), folder, resume=True)
    assert step_of(train(payday, small(steps=16), folder, resume=True).checkpoint) == 16


def test_an_evaluation_that_fails_does_not_stop_training(payday, tmp_path, monkeypatch, capsys):
    import dt.learning.scoring

    def failing(*_, **__):
        raise EnvError("environment 3, step 7: reward nan")

    monkeypatch.setattr(dt.learning.scoring, "evaluate", failing)
    run = train(payday, small(evaluate_every=4), tmp_path / "run")
    assert step_of(run.checkpoint) == 12
    assert "no score at step 4: environment 3, step 7: reward nan" in capsys.readouterr().err


def test_a_run_without_a_complete_checkpoint_is_not_begun_anew(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(), folder)
    for checkpoint in checkpoints(folder):
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not complete, it has no manifest"):
        train(payday, small(), folder, resume=True)


def test_a_copied_checkpoint_folder_is_left_alone(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(), folder)
    copied = shutil.copytree(checkpoints(folder)[-1], folder / "checkpoints" / "step-00000012.bak")
    train(payday, small(steps=24), folder, resume=True)
    assert copied.is_dir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ModelConfig(conditioning="Token"),
            "conditioning must be one of single, token, decoupled, none, not 'Token'",
        ),
        (lambda: TrainingConfig(schedule="linear"), "schedule must be one of constant, cosine, not 'linear'"),
    ],
)
def test_a_word_that_a_setting_does_not_know_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_training_is_a_plain_loop_of_adamw(payday, tmp_path, schedule):
    """Weights and moments: so clip, weight decay and the learning rate of each step are what the settings say."""
    config = small(
        steps=7, schedule=schedule, warmup_steps=3, learning_rate=0.01, weight_decay=0.5, gradient_clip=0.02, seed=3
    )
    train(payday, config, tmp_path / "run")
    training = config.training
    torch.manual_seed(3)
    model = build_model(payday, config, payday.environment)
    data = TrajectoryDataset(payday, config.model.context_length, balanced=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    clipped = 0
    for step in range(7):
        torch.manual_seed(step_seed(3, step))
        loss, count = model(data.gather(data.indices(3, step, training.batch_size)))
        optimizer.zero_grad()
        (loss / count).backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        clipped += norm > 0.02
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.02 / norm.item())
        rises = (step + 1) / 3
        falls = 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * (step - 3) / 4))
        optimizer.param_groups[0]["lr"] = 0.01 * (rises if step < 3 else falls)
        optimizer.step()
    assert clipped == 7
    ours = everything(tmp_path / "run")[0]
    for (name, weight), moments in zip(model.named_parameters(), optimizer.state.values(), strict=True):
        torch.testing.assert_close(ours[f"model/{name}"], weight.detach(), rtol=0, atol=2e-6)
        torch.testing.assert_close(ours[f"optimizer/{name}/exp_avg"], moments["exp_avg"], rtol=1e-3, atol=1e-7)


def test_an_evaluation_draws_none_of_the_trainings_random_numbers(payday, tmp_path, monkeypatch):
    import dt.learning.scoring

    def drawing(_, __, targets, **___):
        torch.rand(5)
        return [TargetResult(target, (1.0,), (1,), None) for target in targets]

    monkeypatch.setattr(dt.learning.scoring, "evaluate", drawing)
    train(payday, small(evaluate_every=3), tmp_path / "scored")
    train(payday, small(), tmp_path / "plain")
    tensors, others = (everything(tmp_path / name)[0] for name in ("scored", "plain"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_the_earliest_of_equal_scores_is_the_best(payday, tmp_path, monkeypatch):
    import dt.learning.scoring

    scores = iter([1.0, 5.0, 5.0, 2.0])
    monkeypatch.setattr(
        dt.learning.scoring, "evaluate", lambda *_, **__: [TargetResult(2.0, (next(scores),), (1,), None)] * 2
    )
    train(payday, small(evaluate_every=3), tmp_path / "run")
    assert read_json(tmp_path / "run" / "best.json") == {"step": 6, "score": 5.0}


def test_near_equal_targets_are_told_apart_in_the_log(payday, tmp_path, monkeypatch):
    import dt.learning.scoring

    results = [TargetResult(target, (target,), (1,), None) for target in (5.0, 5.0000001)]
    monkeypatch.setattr(dt.learning.scoring, "evaluate", lambda *_, **__: results)
    config = replace(
        small(steps=2, evaluate_every=2), evaluation=EvaluationConfig(target_return=(5.0, 5.0000001), calibration=False)
    )
    train(payday, config, tmp_path / "run")
    line = next(line for line in log_without_clock(tmp_path / "run") if line["kind"] == "evaluation")
    assert (line["return_at_5"], line["return_at_5.0000001"]) == (5.0, 5.0000001)


def test_seeds_on_the_way_are_not_those_of_the_final_scores(payday, tmp_path, monkeypatch):
    seeds = []
    original = Payday.reset

    def noting(self, *, seed=None, options=None):
        seeds.append(seed)
        return original(self, seed=seed, options=options)

    monkeypatch.setattr(Payday, "reset", noting)
    train(payday, small(evaluate_every=6), tmp_path / "run")
    assert set(seeds) == {WAY_SEED, WAY_SEED + 1, WAY_SEED + 2}
    episodes = 100_000  # more than anybody plays
    for final in (FINAL_SEED, BEST_SEED):
        assert not set(range(final, final + episodes)) & set(range(WAY_SEED, WAY_SEED + episodes))
    assert abs(FINAL_SEED - BEST_SEED) > episodes


def test_tensorboard_forgets_what_a_cut_run_logged_after_its_checkpoint(payday, tmp_path, cut_at):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    undo = cut_at(7)
    with pytest.raises(Cut):
        train(payday, small(), folder)
    undo()
    train(payday, small(), folder, resume=True)  # from step 4; step 6 is logged again
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 0.1}, "dropout was 0.3, now 0.1"),  # the weights would fit
        ({"return_scale": 7.0}, "return_scale was None, now 7.0"),
        ({"width": 8}, "width was 16, now 8"),
    ],
)
def test_a_resumed_run_cannot_change_its_model(payday, tmp_path, changes, words):
    folder, config = tmp_path / "run", small(steps=2)
    train(payday, config, folder)
    with pytest.raises(CheckpointError, match=f"{words}; a resumed run cannot change it"):
        train(payday, replace(config, model=replace(config.model, **changes)), folder, resume=True)


def test_another_length_under_a_cosine_is_said_to_change_the_learning_rate(payday, tmp_path, capsys):
    for schedule, said in (("cosine", True), ("constant", False)):
        folder = tmp_path / schedule
        train(payday, small(steps=4, schedule=schedule), folder)
        train(payday, small(steps=4, schedule=schedule), folder, resume=True)
        assert "learning rate" not in capsys.readouterr().err
        train(payday, small(steps=8, schedule=schedule), folder, resume=True)
        err = capsys.readouterr().err
        assert (
            "steps was 4, now 8, and the cosine falls until the last: the learning rate at step 4 is" in err
        ) == said
        assert ("is 0.000905, was 0" in err) == said


@pytest.fixture
def scored(payday, tmp_path, monkeypatch) -> Path:
    """A run of 12 steps whose best is step 3, of several that scored."""
    import dt.learning.scoring

    scores = iter([9.0, 1.0, 2.0, 3.0, *[4.0] * 9])
    with monkeypatch.context() as patch:
        patch.setattr(
            dt.learning.scoring, "evaluate", lambda *_, **__: [TargetResult(2.0, (next(scores),), (1,), None)] * 2
        )
        train(payday, small(evaluate_every=3), tmp_path / "run")
    assert read_json(tmp_path / "run" / "best.json")["step"] == 3
    return tmp_path / "run"


@pytest.mark.parametrize("content", ["{}", "{", '{"step": 99, "score": 1000.0}'])
def test_a_broken_best_json_is_written_anew_on_resume_and_the_best_is_kept(payday, scored, content):
    (scored / "best.json").write_text(content)
    train(payday, small(steps=16), scored, resume=True)
    assert read_json(scored / "best.json") == {"step": 3, "score": 9.0}
    assert 3 in [step_of(path) for path in checkpoints(scored)]


def test_a_best_whose_checkpoint_is_gone_is_sought_anew(payday, scored, capsys):
    shutil.rmtree(scored / "checkpoints" / "step-00000003")
    train(payday, small(steps=15, evaluate_every=3), scored, resume=True)
    assert "step-00000003: scored best and is gone, so the search for the best starts again" in capsys.readouterr().err
    assert step_of(load_run(scored, "best").checkpoint) == 15


def test_a_best_of_another_evaluation_is_sought_anew_and_that_is_said(payday, scored, capsys):
    config = replace(
        small(steps=15, evaluate_every=3),
        evaluation=EvaluationConfig(target_return=(5.0,), episodes=1, calibration=False),
    )
    train(payday, config, scored, resume=True)
    assert "step 3 was best at another evaluation: the search for the best starts again here" in capsys.readouterr().err
    assert read_json(scored / "best.json")["step"] == 15


def test_a_best_that_is_damaged_stops_a_resume_before_anything_is_written(payday, scored):
    path = scored / "checkpoints" / "step-00000003" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in scored.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged .*; it scored best: move it"):
        train(payday, small(steps=16), scored, resume=True)
    assert {path: path.read_bytes() for path in scored.rglob("*") if path.is_file()} == before


def test_a_run_whose_environment_is_not_here_goes_on_without_it(payday, tmp_path, capsys):
    far = replace(payday, environment=EnvironmentSpec("FarAway-v3", max_episode_steps=20))
    train(far, small(evaluate_every=4), tmp_path / "run")
    assert step_of(train(far, small(steps=16, evaluate_every=4), tmp_path / "run", resume=True).checkpoint) == 16
    err = capsys.readouterr().err
    assert err.count("no evaluation here: environment FarAway-v3: not registered") == 2
    assert err.count("target_return: there is no environment to ask for it in, --environment ID names one") == 2
    assert "no score at step" not in err  # it is not tried again and again


def test_what_is_no_run_or_only_a_part_of_one_is_refused(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(steps=2), folder)
    with pytest.raises(ConfigError, match="which must be one of last, best, not 'bset'"):
        load_run(folder, "bset")
    for inside in (checkpoints(folder)[0], folder / "checkpoints", folder / "log.jsonl"):
        with pytest.raises(CheckpointError, match=f"{inside.name}: a part of the run {folder}; name that folder"):
            load_run(inside)
    with pytest.raises(CheckpointError, match=r"no run.json in it, so it is not a run"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="missing: no such run"):
        load_run(tmp_path / "missing")


@pytest.mark.parametrize("conditioning", ["single", "token"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(payday, tmp_path, monkeypatch, conditioning):
    """In float64, with windows that are partly padding, and a last part smaller than the others."""
    config = small(conditioning=conditioning, batch_size=50)
    config = replace(config, model=replace(config.model, dropout=0.0, observation_noise=0.0))
    found = {}
    for windows in (50, 16):
        monkeypatch.setattr("dt.data.WINDOWS_PER_SLICE", windows)
        trainer = prepare(payday, config, tmp_path / "run")
        trainer.model.double()
        parts = trainer.slices(trainer.batch_at(0))
        assert [len(part.mask) for part in parts] == ([50] if windows == 50 else [16, 16, 16, 2])
        assert len({float(part.mask.float().mean()) for part in parts}) == len(parts)  # so a mean of means is another
        mean, norm = trainer._gradient()
        found[windows] = [torch.tensor([mean, norm]), *(each.grad for each in trainer.model.parameters())]
    assert sum(bool(each.any()) for each in found[50]) > len(found[50]) / 2
    for whole, summed in zip(found[50], found[16], strict=True):
        assert torch.allclose(whole, summed, rtol=1e-5 if whole.dtype == torch.float32 else 1e-9, atol=1e-12)
