"""The grid of the lever: its cells, the plain clone, and the tables."""

import numpy as np
import pytest
import torch
from conftest import Payday
from gymnasium import spaces

from benchmarks import lever, lever_report, mlp_clone
from benchmarks.gym import Cell, fill_cells
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, rollout
from transformer.files import read_json


def test_each_cell_is_once_in_the_grid_and_each_method_has_cells():
    cells = lever.grid()
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.method for cell in cells} == set(lever.METHODS)
    assert {cell.dataset for cell in cells} == set(lever.DATASETS)
    default = [cell for cell in cells if cell.method == "default"]
    assert {(cell.dataset, cell.seed) for cell in default} == {(d, s) for d in lever.DATASETS for s in range(3)}
    assert not any(cell.method == "huggingface" and cell.dataset in lever.CHOICES for cell in cells)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=5)])
def test_a_clone_learns_the_action_of_an_observation(payday, monkeypatch, space):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(payday.num_steps, 3))
    actions = np.tanh(seen[:, :2]) if isinstance(space, spaces.Box) else 5 + seen.argmax(1)

    class Recording:
        observations, action_space = {"value": seen}, space

    Recording.actions = {"value": actions}
    policy = mlp_clone.MlpPolicy(mlp_clone.train(Recording, seed=0, steps=1_000), space)
    chosen = policy.choose(dict(enumerate(seen[:100])), {})
    assert all(space.contains(action) for action in chosen.values())
    expected = actions[:100]
    error = np.abs(np.stack([np.asarray(chosen[i]) for i in range(100)]) - expected)
    assert error.mean() < 0.1


def test_a_clones_returns_do_not_depend_on_the_number_of_environments(payday):
    policy = mlp_clone.MlpPolicy(mlp_clone.train(payday, seed=0, steps=20), Payday.action_space)
    returns = []
    for count in (1, 3):
        with Environments(payday.environment.make, count) as environments:
            games = rollout(environments, policy, [EpisodeRequest(seed) for seed in range(3)])
        returns.append([game.rewards for game in games])
    assert returns[0] == returns[1]


def test_cells_become_rows_and_rows_a_table(tmp_path, payday, monkeypatch):
    recipe = lever.recipe

    def short(cell):
        config = recipe(cell)
        few = {"steps": 4, "checkpoint_every": 2, "batch_size": 4, "warmup_steps": 0}
        return lever.replace(
            config,
            model=lever.replace(config.model, width=8, num_layers=1),
            training=lever.replace(config.training, **few),
            calibration=lever.replace(config.calibration, calibration_steps=300),
        )

    monkeypatch.setattr(lever, "recipe", short)
    monkeypatch.setattr(lever, "load", lambda name: payday)
    monkeypatch.setattr(lever.mlp_clone, "STEPS", 4)
    cells = [Cell("hopper/mixed-v0", method, 0) for method in ("default", "delayed", "bc-10", "mlp-10")]
    results = tmp_path / "lever.json"
    with torch.random.fork_rng():
        fill_cells(cells, results, tmp_path / "runs", lever.play, lever.grid())
    rows = {row["method"]: row for row in read_json(results)["rows"]}
    assert list(rows) == [cell.method for cell in sorted(cells, key=lever.grid().index)]
    assert {"calibrated", "plain", "auto", "curves"} <= set(rows["default"])
    curve = rows["default"]["curves"][0]
    assert curve["guidance"] == 1
    assert len(curve["requests"]) == len(curve["means"]) > 1
    errors = lever_report.errors_table(list(rows.values()))
    for method in ("default", "delayed"):
        error = rows[method]["calibrated"]["measures"]["alignment_error"]
        assert f"| hopper/mixed-v0 | {method} | 1 | {error:.3f} ({error:.3f}) |" in errors
    assert "bc-10" not in errors
    tops = lever_report.tops_table(list(rows.values()))
    best = rows["default"]["auto"]["results"][0]["mean_return"]
    clone = rows["mlp-10"]["calibrated"]["results"][-1]["mean_return"]
    assert lever_report.top_of(rows["default"])[0] == best
    assert f"| {best:.0f} ± " in tops
    assert tops.splitlines()[-1].split("|")[-2].startswith(f" {clone:.0f} ± ")
    lever_report.draw(list(rows.values()), tmp_path / "lever.png")
    assert (tmp_path / "lever.png").stat().st_size > 10_000


def test_seeds_are_averaged_and_the_worst_is_named():
    def row(seed, error):
        found = dict.fromkeys(lever_report.MEASURES, error)
        results = [{"target_return": 1.0, "mean_return": 10 * error, "std_return": 0.0, "episodes": 20}]
        return {
            **{"dataset": "hopper/mixed-v0", "method": "default", "seed": seed, "maximum": 9.0},
            **{kind: {"measures": found, "results": results} for kind in ("calibrated", "plain", "auto")},
        }

    rows = [row(0, 0.1), row(1, 0.3)]
    assert "| 2 | 0.200 (0.300) | 0.200 |" in lever_report.errors_table(rows)
    assert "| 2 ± 1 (2 seeds) |" in lever_report.tops_table(rows)
