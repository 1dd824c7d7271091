"""The error on held-out episodes: the score of a run that has no environment to be played in."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import echo_dataset, small_model

from dt.cli import main
from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from dt.data import TrajectoryDataset
from dt.encoders import DiscreteHead
from dt.learning.build import build_model
from dt.learning.training import train
from dt.validation import Validation, choose_episodes, error_table
from envs.datasets.dataset import Dataset
from envs.datasets.selection import take
from envs.errors import DataError
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json

SMALL = Config(
    model=ModelConfig(width=8, num_layers=1, context_length=3),
    training=TrainingConfig(
        precision="float32", steps=4, batch_size=4, log_every=2, warmup_steps=1, evaluate_every=2, keep_checkpoints=9
    ),
    evaluation=EvaluationConfig(calibration=False),
)


def keys(dataset: Dataset) -> set[bytes]:
    """Something that tells each episode from every other."""
    return {dataset.episode(i).observations["value"].tobytes() for i in range(dataset.num_episodes)}


def test_trajectories_are_split_and_none_is_on_both_sides(payday):
    learned, held_out = choose_episodes(payday, DataConfig(held_out=0.25), seed=1)
    assert (learned.num_episodes, held_out.num_episodes) == (45, 15)
    assert keys(learned) | keys(held_out) == keys(payday)
    assert not keys(learned) & keys(held_out)
    assert keys(choose_episodes(payday, DataConfig(held_out=0.25), seed=1)[1]) == keys(held_out)
    assert keys(choose_episodes(payday, DataConfig(held_out=0.25), seed=2)[1]) != keys(held_out)
    assert choose_episodes(payday, DataConfig(), seed=1) == (payday, None)


def test_of_the_best_some_are_held_out(payday):
    learned, held_out = choose_episodes(payday, DataConfig(top_fraction=0.5, held_out=0.2), seed=0)
    assert (learned.num_episodes, held_out.num_episodes) == (24, 6)
    assert min(held_out.returns.min(), learned.returns.min()) >= np.median(payday.returns)


def test_nothing_to_learn_from_is_refused(payday):
    with pytest.raises(DataError, match=r"nothing is left to learn from when 0.5 of 1 episode go out"):
        choose_episodes(take(payday, [3], "one"), DataConfig(held_out=0.5), seed=0)


@pytest.mark.parametrize("action", ["box", "unbounded box", "discrete", "multi-discrete", "multi-binary", "nested"])
def test_each_step_is_foretold_from_the_window_that_ends_there(action):
    """Against one step at a time, by the act that a policy plays."""
    dataset = echo_dataset("nested", action)
    learned, held_out = choose_episodes(dataset, DataConfig(held_out=0.1), seed=0)
    model = small_model("decoupled", dataset)
    result = Validation(model, learned, held_out).measure()
    data, K = TrajectoryDataset(held_out, model.config.context_length), model.config.context_length
    losses, hits = [], {name: [] for name in model.action_leaves}
    for episode in range(held_out.num_episodes):
        start, end = held_out.offsets[episode : episode + 2]
        for step in range(start, end):
            first = max(start, step - K + 1)
            batch = data.gather(torch.tensor([first]))
            batch = replace(batch, mask=torch.arange(K)[None] <= step - first)  # what comes after is not there
            at = torch.tensor([[step - first]])
            outputs, chosen = model.predict(batch, at), model.act(batch)
            for head, name in zip(model.heads, model.action_leaves, strict=True):
                taken = torch.as_tensor(held_out.actions[name][step])
                losses.append(head.loss(outputs[name], taken[None, None]).item())
                hits[name].append((chosen[name][0] == taken).double().mean().item())
    assert (result.episodes, result.steps) == (4, 20)
    assert result.loss == pytest.approx(sum(losses) / 20, rel=1e-5)
    for leaf, head in zip(result.leaves, model.heads, strict=True):
        choices = isinstance(head, DiscreteHead)
        assert leaf.measure == ("cross-entropy" if choices else "squared error")
        assert leaf.accuracy == (pytest.approx(np.mean(hits[leaf.leaf])) if choices else None)


def test_the_constant_answer_is_the_best_that_knows_no_state(payday, dataset):
    learned, held_out = take(payday, range(40), "first"), take(payday, range(40, 60), "last")
    (leaf,) = Validation(small_model("none", payday), learned, held_out).measure().leaves
    ones = (learned.actions["value"].sum() + 1) / (learned.num_steps + 2)
    share = held_out.actions["value"].mean()
    assert leaf.baseline == pytest.approx(-share * np.log(ones) - (1 - share) * np.log(1 - ones), rel=1e-5)
    assert leaf.baseline_accuracy == pytest.approx(share if ones > 0.5 else 1 - share)
    (leaf,) = Validation(small_model("none", dataset), take(dataset, [1], ""), take(dataset, [3], "")).measure().leaves
    mean = dataset.actions["value"][3:14].mean(0)
    assert leaf.baseline == pytest.approx(((dataset.actions["value"][15:] - mean) ** 2).mean(), rel=1e-5)


def test_many_steps_are_foretold_at_some_of_them_evenly_spread(payday, monkeypatch):
    monkeypatch.setattr("dt.validation.MOST_STEPS", 7)
    validation = Validation(small_model("none", payday), payday, payday)
    assert validation.measure().steps == 7
    assert (validation.first + validation.at).tolist() == [0, 100, 200, 300, 399, 499, 599]


# Runs.


def without_environment(payday: Dataset) -> Dataset:
    return replace(payday, environment=None)


def test_a_run_without_an_environment_is_scored_on_what_it_held_out(payday, tmp_path):
    run = train(without_environment(payday), SMALL, tmp_path / "run")
    assert run.config.data.held_out == 0.1
    assert run.dataset["episodes"] == 54
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["step"] for line in scored] == [2, 4]
    assert all(line["score"] == -line["held_out_loss"] for line in scored)
    learned, held_out = choose_episodes(payday, run.config.data, seed=0)
    result = Validation(run.model, learned, held_out).measure()
    assert scored[-1]["held_out_loss"] == pytest.approx(result.loss, rel=1e-6)
    assert scored[-1]["held_out_accuracy/value"] == result.leaves[0].accuracy
    best = read_json(tmp_path / "run" / "best.json")
    assert best["score"] == max(line["score"] for line in scored)


def test_what_is_held_out_teaches_nothing(payday, tmp_path):
    _, held_out = choose_episodes(payday, DataConfig(held_out=0.1), seed=0)
    rows = np.isin(payday.observations["value"][:, 1], held_out.observations["value"][:, 1])
    assert rows.sum() == held_out.num_steps
    changed = payday.actions["value"].copy()
    changed[rows] = 1 - changed[rows]
    config = replace(SMALL, training=replace(SMALL.training, evaluate_every=0))
    other = replace(without_environment(payday), actions={"value": changed})
    a, b = train(without_environment(payday), config, tmp_path / "a"), train(other, config, tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_with_an_environment_nothing_is_held_out_unless_asked_for(payday, tmp_path):
    config = replace(SMALL, evaluation=replace(SMALL.evaluation, target_return=(5.0,), episodes=1))
    run = train(payday, config, tmp_path / "all")
    assert (run.config.data.held_out, run.dataset["episodes"]) == (0.0, 60)
    train(payday, replace(config, data=DataConfig(held_out=0.5)), tmp_path / "half")
    lines = [json.loads(line) for line in (tmp_path / "half" / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["kind"] == "evaluation"]
    assert all(line["score"] == line["return_at_5"] and line["held_out_loss"] > 0 for line in scored)


def test_a_run_that_held_out_goes_on_as_it_was_begun(payday, tmp_path):
    data, training = without_environment(payday), replace(SMALL.training, schedule="constant")
    config, short = replace(SMALL, training=training), replace(SMALL, training=replace(training, steps=2))
    whole = train(data, config, tmp_path / "whole")
    train(data, short, tmp_path / "cut")
    resumed = train(data, config, tmp_path / "cut", resume=True)
    assert resumed.config.data.held_out == 0.1
    assert all(torch.equal(x, y) for x, y in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"held_out was 0.1, now 0.3"):
        train(data, replace(config, data=DataConfig(held_out=0.3)), tmp_path / "cut", resume=True)


def test_a_score_of_another_kind_is_not_compared(payday, tmp_path, capsys, monkeypatch):
    """A run whose environment is not here has errors for scores; where the environment is here later, returns are."""
    evaluation = replace(SMALL.evaluation, target_return=(5.0,), episodes=1)
    longer = replace(SMALL, training=replace(SMALL.training, steps=6), evaluation=evaluation)
    with monkeypatch.context() as without:
        without.delitem(gymnasium.registry, "Payday-v0")
        train(payday, replace(SMALL, evaluation=evaluation), tmp_path / "run")
        assert read_json(tmp_path / "run" / "best.json")["score"] < 0
    train(payday, longer, tmp_path / "run", resume=True)
    assert "was best at another evaluation" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "best.json")["score"] >= 0


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="held_out must be"):
        DataConfig(held_out=share)


@pytest.fixture
def recorded(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(30, 2)), "rewards": rng.normal(size=30), "lengths": np.full(10, 3)}
    np.savez(tmp_path / "door.npz", actions=rng.uniform(-1, 1, (30, 2)), **arrays)
    return tmp_path / "door.npz"


def test_the_commands_report_the_error_where_there_is_no_environment(recorded, tmp_path, capsys):
    folder = tmp_path / "run"
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--steps", "2", "--batch-size", "4"]
    assert main(["train", str(recorded), "--output", str(folder), "--evaluate-every", "1", *small]) == 0
    told = capsys.readouterr().out
    assert "on 3 steps of 1 held-out episodes" in told
    assert "best on the way, on the same episodes, which chose it" in told
    assert main(["evaluate", str(folder), "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.strip() in told
    last, again = read_json(folder / "results" / "held-out.json"), read_json(tmp_path / "out.json")
    assert last == again
    assert main(["inspect", str(folder)]) == 0
    assert f"held-out error {last['held_out']['loss']:.4f}" in capsys.readouterr().out
    files = (["--plot", str(tmp_path / "a.png")], ["--video", str(tmp_path / "a")])
    for option in (["--target-return", "3"], ["--episodes", "3"], ["--seed", "1"], ["--precision", "bf16"], *files):
        assert main(["evaluate", str(folder), *option]) == 2
        assert f"{option[0]} needs an environment to play in" in capsys.readouterr().err
    with np.load(recorded) as file:
        arrays = dict(file)
    np.savez(recorded, **{**arrays, "rewards": arrays["rewards"] + 1})
    assert main(["evaluate", str(folder)]) == 2
    assert "dataset door is not what it was when the run learned from it" in capsys.readouterr().err


def test_a_run_of_arrays_says_where_to_measure(payday, tmp_path, capsys):
    train(without_environment(payday), SMALL, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert (
        "dataset payday/coins-v0 came from Python: measure it there (dt.validation), or --dataset names"
        in capsys.readouterr().err
    )


# Data that has moved.


@pytest.fixture
def moved(tmp_path, capsys):
    """A run of two files, one with columns of its own names, which then have other names and places; their order."""
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    for name, episodes in (("a", 20), ("b", 10)):
        rows = [f"{i // 3},{rng.normal():.3f},{rng.normal():.3f},{i % 2},1.0" for i in range(3 * episodes)]
        rows[4] = "1,,0.1,1,1.0" if name == "b" else rows[4]
        (folder / f"{name}.csv").write_text("\n".join(["ep,x,y,act,rew", *rows]))
    names = ["--columns", "episode=ep", "observations=x,y", "actions=act", "rewards=rew", "--skip-bad-episodes"]
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--steps", "2", "--batch-size", "4"]
    run = str(tmp_path / "run")
    sources = [str(folder / "a.csv"), str(folder / "b.csv")]
    assert main(["train", *sources, "--fraction", "0.5", "1", *names, "--output", run, *small]) == 0
    told = capsys.readouterr().out.strip()
    places = [str(tmp_path / "first.csv"), str(tmp_path / "second.csv")]
    for source, place in zip(sources, places, strict=True):
        Path(source).rename(place)
    return run, places, told


def test_data_that_has_moved_is_named(moved, capsys, tmp_path, monkeypatch):
    run, places, told = moved
    assert main(["evaluate", run]) == 2
    err = capsys.readouterr().err
    assert "data/a.csv: no such file or folder; --dataset says where a lies now" in err
    assert main(["evaluate", run, "--dataset", *places]) == 0
    assert capsys.readouterr().out.strip() in told
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    names = ["--columns", "episode=ep", "observations=x,y", "actions=act", "rewards=rew"]
    assert main(["import", places[0], "mine/first-v0", *names]) == 0  # where fields have names of their own
    capsys.readouterr()
    assert main(["evaluate", run, "--dataset", "mine/first-v0", places[1]]) == 0
    assert capsys.readouterr().out.strip() in told


def test_other_data_than_a_run_learned_from_is_refused(moved, capsys):
    run, places, _ = moved

    def refused(sources, *words):
        assert main(["evaluate", run, "--dataset", *sources]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert out == ""
        for word in words:
            assert word in line, line

    refused(places[:1], "--dataset names 1, the run learned from 2: a b")
    refused([places[0], "nowhere.csv"], "nowhere.csv: no such file or folder")
    prints = [part["fingerprint"][:12] for part in read_json(Path(run) / "run.json")["dataset"]["parts"]]
    swapped = f"{places[1]} has the fingerprint {prints[1]}, it had {prints[0]}; this is b, and the run's order is a b"
    refused(places[::-1], f"dt: {run}: dataset a is not what it was when the run learned from it: {swapped}")
    text = Path(places[1]).read_text()
    Path(places[1]).write_text(text.replace("1.0\n", "2.0\n", 1))
    refused(places, f"dataset b is not what it was when the run learned from it: {places[1]} has", f"had {prints[1]}")
    Path(places[1]).write_text(text.replace("x,y", "x,z"))
    refused(places, f"{places[1]}: no column 'y'")


def test_data_is_named_for_a_run_of_arrays_and_for_none_that_is_played(payday, tmp_path, capsys):
    played = replace(SMALL, evaluation=replace(SMALL.evaluation, target_return=(5.0,), episodes=1))
    train(payday, played, tmp_path / "played")
    assert main(["evaluate", str(tmp_path / "played"), "--dataset", "coins.npz"]) == 2
    assert "is played in Payday-v0, --dataset is for runs without an environment" in capsys.readouterr().err
    train(without_environment(payday), SMALL, tmp_path / "run")
    arrays = {"observations": payday.observations["value"], "actions": payday.actions["value"]}
    np.savez(tmp_path / "coins.npz", **arrays, rewards=payday.rewards, lengths=payday.lengths)
    assert main(["evaluate", str(tmp_path / "run"), "--dataset", str(tmp_path / "coins.npz")]) == 0
    assert "of 6 held-out episodes" in capsys.readouterr().out


def measured(payday, conditioning="single", weights=0.0):
    """The error of a new model whose modulation has such weights."""
    config = replace(SMALL, model=replace(SMALL.model, conditioning=conditioning))
    learned, held_out = choose_episodes(payday, DataConfig(held_out=0.25), seed=1)
    torch.manual_seed(0)
    model = build_model(learned, config, None)
    if conditioning == "single":
        torch.nn.init.normal_(model.modulation.output.weight, std=weights)
    return Validation(model, learned, held_out).measure()


def test_how_much_the_action_changes_with_the_target_is_measured(payday):
    assert measured(payday).leaves[0].change == 0  # a new model ignores the return
    assert 0 < measured(payday, weights=5.0).leaves[0].change <= 1
    assert measured(payday, "none").leaves[0].change is None
    table = error_table(measured(payday))
    assert "0 means that the return is ignored" in table
    assert "ignored" not in error_table(measured(payday, "none"))


def test_errors_are_shown_by_the_returns_of_the_episodes(payday):
    result = measured(payday, weights=1.0)
    assert len(result.by_return) == 4
    assert sum(each.episodes for each in result.by_return) == result.episodes
    assert all(a.high <= b.low for a, b in pairwise(result.by_return))
    weights = [each.episodes for each in result.by_return]  # of ten steps each
    assert np.average([each.loss for each in result.by_return], weights=weights) == pytest.approx(result.loss)
