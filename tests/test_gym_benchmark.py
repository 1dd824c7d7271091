"""The Gym table: what is done to the data, a grid that several workers fill, and the report's arithmetic."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from conftest import Payday
from filelock import FileLock
from test_training import Cut, cut_at  # noqa: F401 (a fixture)

from benchmarks import gym, gym_report
from benchmarks.delayed_reward import delayed
from benchmarks.gym import METHODS, Cell, add_row, fill, grid, read_rows, status_of, time_limit
from dt.data import returns_to_go
from envs.errors import DataError
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, RandomPolicy, rollout
from transformer.files import read_json


def test_a_delayed_reward_is_paid_at_the_end_in_data_and_environment(payday):
    late = delayed(payday)
    np.testing.assert_array_equal(late.returns, payday.returns)
    assert late.rewards.reshape(60, 10)[:, :9].max() == 0
    np.testing.assert_array_equal(returns_to_go(late.rewards, late.offsets), np.repeat(payday.returns, 10))
    requests, games = [EpisodeRequest(seed, seed) for seed in range(3)], []
    for env in (payday.environment, late.environment):
        with Environments(env.make, 2) as environments:
            games.append(rollout(environments, RandomPolicy(Payday.action_space), requests))
    assert late.environment.step_limit == payday.environment.step_limit == 20
    for now, then in zip(*games, strict=True):
        assert then.rewards == [0.0] * 9 + [now.total_return]
        assert now.total_return > 0


def test_the_grid_goes_from_dataset_to_dataset_and_seed_to_seed():
    cells = grid()
    assert len({cell.name for cell in cells}) == len(cells) == 5 * (7 * 3 + 2) + 2 + (5 + 2) * 3
    assert {cell.method for cell in cells} == set(METHODS) == set(gym_report.NAMES)
    order = [(gym.DATASETS.index(cell.dataset), cell.seed) for cell in cells]
    assert order == sorted(order)


FEW = [Cell("hopper/mixed-v0", "token", 0), Cell("hopper/mixed-v0", "bc", 0), Cell("hopper/replay-v0", "bc", 2)]


def named(cell):
    return {"dataset": cell.dataset, "method": cell.method, "seed": cell.seed}


def test_cells_are_made_once_in_order_and_those_of_another_worker_are_left_to_it(tmp_path, monkeypatch, capsys):
    results, made = tmp_path / "results" / "gym.json", []

    def play(cell, folder):
        made.append(cell)
        if cell == FEW[2]:
            raise DataError("no such dataset")
        return named(cell)

    monkeypatch.setattr(gym, "play", play)
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / f"{FEW[0].name}.lock"):
        fill(FEW, results, tmp_path / "work")
    assert made == FEW[1:]
    said = capsys.readouterr().err
    assert f"{FEW[0].name}: another worker has it" in said
    assert f"{FEW[2].name}: left out, no such dataset" in said
    assert "1 of 3 done" in status_of(FEW, results, tmp_path / "work")
    fill(FEW[:2], results, tmp_path / "work")
    assert made == [*FEW[1:], FEW[0]]
    assert list(read_rows(results)) == FEW[:2]  # in the grid's order, whoever came first


def test_rows_that_others_add_at_the_same_time_are_not_lost(tmp_path):
    cells = grid()[:12]
    workers = [threading.Thread(target=add_row, args=(tmp_path / "gym.json", cell, named(cell))) for cell in cells]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert list(read_rows(tmp_path / "gym.json")) == cells
    add_row(tmp_path / "gym.json", cells[0], {**named(cells[0]), "again": True})
    assert "again" not in read_json(tmp_path / "gym.json")["rows"][0]


@pytest.fixture
def quick(payday):
    """The grid's cells, of Payday's coins and a few steps."""
    recipe = gym.recipe

    def few_steps(cell, maximum):
        config = recipe(cell, maximum)
        return replace(
            config,
            model=replace(config.model, width=8, num_layers=1),
            training=replace(config.training, steps=6, batch_size=5, evaluate_every=2, checkpoint_every=2, log_every=1),
        )

    with pytest.MonkeyPatch.context() as patch:  # of its own: `cut_at` takes its patches back
        patch.setattr(gym, "recipe", few_steps)
        patch.setattr(gym, "load", lambda name: payday)
        patch.setattr(gym, "EPISODES", 4)
        yield


def test_a_cell_that_was_cut_becomes_the_row_of_an_uninterrupted_one(quick, tmp_path, cut_at):  # noqa: F811
    def made(folder):
        fill(FEW[:1], tmp_path / folder / "gym.json", tmp_path / folder)
        (row,) = read_json(tmp_path / folder / "gym.json")["rows"]
        row.pop("seconds")
        return row

    whole = made("whole")
    undo = cut_at(5)
    with pytest.raises(Cut):
        made("cut")
    undo()
    assert not (tmp_path / "cut" / "gym.json").exists()
    assert "begun, step 4" in status_of(FEW[:1], tmp_path / "cut" / "gym.json", tmp_path / "cut")
    assert made("cut") == whole
    assert whole["command"] == "python -m benchmarks.gym --dataset hopper/mixed-v0 --method token --seed 0"
    assert len(whole["last"]["results"]) > 3
    assert whole["best"]["chosen_target"] in [result["target_return"] for result in whole["best"]["results"]]
    assert {result["episodes"] for result in whole["last"]["results"]} == {4}
    assert {"python", "torch", "gymnasium"} <= whole["versions"].keys()


@pytest.mark.parametrize("method", ["bc-10", "decoupled-delayed"])
def test_other_methods_make_rows_too(quick, tmp_path, method, payday):
    row = gym.play(Cell("hopper/mixed-v0", method, 0), tmp_path / "run")
    assert row["maximum"] == 10
    if method == "bc-10":
        assert read_json(tmp_path / "run" / "run.json")["dataset"]["steps"] == 60
        assert [result["target_return"] for result in row["last"]["results"]] == [10]
    else:
        assert read_json(tmp_path / "run" / "run.json")["environment"]["id"] == "Delayed/Payday-v0"
        assert len(row["last"]["results"]) > 3


def test_the_time_limit_stops_what_runs_and_is_no_error(capsys):
    with time_limit(0.005):
        threading.Event().wait(60)
        pytest.fail("it went on")
    assert "the time is up" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), time_limit(60):
        raise KeyboardInterrupt  # the user's own


def result(target, mean, score=None):
    return {"target_return": target, "mean_return": mean, "normalized_score": mean / 10 if score is None else score}


def row(method, seed, last, best, chosen):
    return {
        "dataset": "hopper/mixed-v0",
        "method": method,
        "seed": seed,
        "maximum": 900.0,
        "last": {"results": [result(1.0, last / 2), result(900.0, last)]},
        "best": {"results": [result(1.0, chosen), result(900.0, best)], "chosen_target": 1.0},
    }


def test_the_report_is_means_deviations_and_interquartile_means(tmp_path):
    rows = [
        row("token", seed, last, 600, chosen) for seed, last, chosen in ((0, 500, 700), (1, 700, 740), (2, 600, 600))
    ]
    rows += [row(method, seed, 300, 300, 300) for method in ("decoupled", "bc", "bc-10") for seed in range(3)]
    theirs = row("huggingface", 0, 450, 0, 0)
    theirs.pop("best")
    text = gym_report.report([*rows, theirs])
    assert "| hopper/mixed-v0, the data's best 900 | seeds | as asked, last |" in text
    assert "| token | 3 | 600 ± 100 | 600 ± 0 | 680 ± 72 | 68.0 ± 7.2 | 1.00 |" in text
    assert "| Hugging Face | 1 | 450 | - | - | 45.0 | 1.00 |" in text
    assert "3 pairs of dataset and seed" in text
    overall = text.split("**All datasets**")[1]
    assert "| token | 60.0 (50.0 to 70.0) | 60.0 (60.0 to 60.0) | 68.0 (60.0 to 74.0) |" in overall
    gym_report.plot([*rows, theirs], tmp_path / "gym.png")
    assert (tmp_path / "gym.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
