"""The paper's small experiments: graphs and their shortest paths, and that each command does all that it says."""

import json
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from benchmarks import asked_against_achieved, key_to_door, nearest_action, random_graph
from benchmarks.random_graph import GOAL, NEVER, NODES, STEPS, GraphWalk, distances, draw_graph
from envs.datasets.selection import hold_out


def shortest_by_search(edges: np.ndarray, start: int) -> int:
    """Breadth first, node by node."""
    reached, frontier, length = {start}, {start}, 0
    while GOAL not in frontier:
        frontier = {int(to) for node in frontier for to in np.flatnonzero(edges[node])} - reached
        reached |= frontier
        length += 1
    return length


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_a_search_and_the_goal_is_never_out_of_reach(seed):
    edges = draw_graph(seed)
    assert not edges.diagonal().any()
    assert distances(edges).tolist() == [shortest_by_search(edges, node) for node in range(NODES)]


def test_distances_say_where_there_is_no_way():
    edges = np.zeros((NODES, NODES), bool)
    edges[1, GOAL] = edges[GOAL, 2] = True
    assert distances(edges)[:3].tolist() == [0, 1, NODES + 1]


def test_a_walk_follows_edges_and_its_return_is_minus_its_length():
    env = gymnasium.make("RandomGraph-v0", graph=1, show_edges=True)
    edges = env.unwrapped.edges
    node, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["action_mask"], edges[node])
    stay = int(np.flatnonzero(~edges[node])[0])
    assert env.step(stay)[:3] == (node, -1.0, False)
    before_goal = np.flatnonzero(edges[:, GOAL])[0]
    env.unwrapped.node = before_goal
    assert env.step(GOAL)[:3] == (GOAL, -1.0, True)
    assert GraphWalk(graph=1).reset(seed=0)[1] == {}  # a model is told nothing


def run(module, monkeypatch, tmp_path, *options: str) -> dict:
    results = tmp_path / "results.json"
    places = ["--runs", str(tmp_path / "runs"), "--results", str(results), "--picture", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, *places])
    module.main()
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    return json.loads(results.read_text())


def test_key_to_door_fills_what_is_missing_and_no_more(monkeypatch, tmp_path, capsys):
    few = ("--episodes", "90", "--seeds", "0", "--steps", "2", "--played", "3")
    few += ("--width", "24", "--num-heads", "3", "--dropout", "0.2")
    first = run(key_to_door, monkeypatch, tmp_path, *few, "--methods", "none-best")
    (row,) = first["rows"]
    assert (row["method"], row["episodes"], row["seed"], row["steps"]) == ("none-best", 90, 0, 2)
    assert (row["width"], row["num_heads"], row["dropout"]) == (24, 3, 0.2)
    run_json = json.loads((tmp_path / "runs" / "none-best-90-s0" / "run.json").read_text())
    model, trained_on = run_json["config"]["model"], run_json["dataset"]
    assert (model["width"], model["num_heads"], model["dropout"]) == (24, 3, 0.2)
    assert row["successes_in_data"] == trained_on["episodes"] >= 1  # the successes alone
    assert trained_on["maximum"] == 1

    monkeypatch.setattr(key_to_door, "PAPER", {"none-best": {90: 50.0}})
    both = run(key_to_door, monkeypatch, tmp_path, *few, "--methods", "none-best", "token")
    assert both["rows"][0] == row  # not played again: its minutes are the old ones
    assert [r["method"] for r in both["rows"]] == ["none-best", "token"]
    assert "| 90 | 0.0 | 0.0 | 50.0 |" in capsys.readouterr().out


def test_random_graph_counts_every_path(monkeypatch, tmp_path, capsys):
    options = ("--graphs", "1", "--paths", "30", "--steps", "40", "--conditionings", "decoupled")
    (row,) = run(random_graph, monkeypatch, tmp_path, *options)["rows"]
    found = row["generated"]["decoupled"]
    assert sum(row["walks"]) == random_graph.WALKS
    assert sum(found["lengths"]) == sum(row["shortest"]) == 30
    assert row["shortest"][NEVER] == 0
    assert all(len(lengths) == STEPS + 1 for lengths in (row["walks"], row["shortest"], found["lengths"]))
    arrive = sum(found["lengths"]) - found["lengths"][NEVER]
    assert 0 <= found["in_no_walk"] <= arrive
    assert 0 < found["optimal"] <= arrive
    # never shorter than the shortest
    cumulated = [np.cumsum(lengths[1:]) for lengths in (found["lengths"], row["shortest"])]
    assert (cumulated[0] <= cumulated[1]).all()
    assert "generated, decoupled" in capsys.readouterr().out


def write_run(folder, dataset: str, seed: int, achieved: list[float]):
    """A run's folder as far as it is read: asked for 1, 2, ... it earned these means, the data's best being 9."""
    (folder / "results").mkdir(parents=True)
    config = {"model": {"conditioning": "token"}, "training": {"seed": seed, "steps": 7}}
    (folder / "run.json").write_text(json.dumps({"config": config, "dataset": {"name": dataset, "maximum": 9.0}}))
    results = [
        {"target_return": 1.0 + i, "mean_return": mean, "std_return": 0.0, "returns": [mean] * 4}
        for i, mean in enumerate(achieved)
    ]
    said = {"environment": "X-v0", "checkpoint": "step-7", "results": results, "versions": {}}
    (folder / "results" / "last.json").write_text(json.dumps(said))
    return folder


def test_asked_against_achieved_keeps_a_row_a_run_and_draws_means_and_ranges_over_seeds(monkeypatch, tmp_path, capsys):
    results, gym = tmp_path / "results" / "rows.json", tmp_path / "gym.json"
    heard = {"dataset": "c/d-v0", "method": "decoupled", "seed": 0, "maximum": 2.0}
    gym_rows = [{**heard, "last": {"results": [{"target_return": 2.0, "mean_return": 1.5}]}}]
    gym.write_text(json.dumps({"rows": [*gym_rows, {**gym_rows[0], "method": "bc"}]}))

    def command(*runs):
        places = ["--results", str(results), "--gym", str(gym), "--picture", str(tmp_path / "picture.png")]
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, runs), *places])
        asked_against_achieved.main()
        return json.loads(results.read_text())["rows"]

    first = [write_run(tmp_path / f"s{seed}", "a/b-v0", seed, [seed, 2.0 * seed]) for seed in (1, 0)]
    rows = command(*first)
    assert [(row["dataset"], row["method"], row["seed"], row["maximum"]) for row in rows] == [
        ("a/b-v0", "token", 0, 9.0),
        ("a/b-v0", "token", 1, 9.0),
    ]
    assert asked_against_achieved.curve(rows) == [(1.0, 0.5, 0.0, 1.0), (2.0, 1.0, 0.0, 2.0)]
    again = command(
        write_run(tmp_path / "again", "a/b-v0", 0, [3.0, 4.0]), write_run(tmp_path / "other", "e-v0", 0, [1.0])
    )
    assert [row["results"][0]["mean_return"] for row in again[:2]] == [3.0, 1.0]
    assert again[0]["results"][0]["episodes"] == 4

    drawn = []
    monkeypatch.setattr(asked_against_achieved, "_panel", lambda _, dataset, here: drawn.append((dataset, len(here))))
    assert command() == again  # without runs it draws alone
    assert drawn == [("c/d-v0", 1), ("a/b-v0", 2), ("e-v0", 1)]  # cloning hears no request
    monkeypatch.undo()
    command(*first)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "4 rows of 3 datasets" in capsys.readouterr().out
    before = results.read_text()
    (first[0] / "results" / "last.json").unlink()
    with pytest.raises(SystemExit, match=r"s1/results/last.json: no such file; `dt evaluate RUN --json"):
        command(*first)
    assert results.read_text() == before


def test_a_panel_marks_the_diagonal_and_the_best_of_the_data():
    from matplotlib import pyplot

    rows = [{"dataset": "a", "method": "token", "seed": s, "maximum": 9.0, "results": []} for s in (0, 1)]
    for row in rows:
        row["results"] = [{"target_return": t, "mean_return": t + row["seed"]} for t in (1.0, 5.0)]
    figure, axes = pyplot.subplots()
    asked_against_achieved._panel(axes, "a", rows)
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    pyplot.close(figure)
    assert lines["token: mean and range over seeds"] == [[1.0, 1.5], [5.0, 5.5]]
    assert lines["achieved = asked"] == [[0, 0], [9, 9]]
    assert lines["best return in the data"] == [[9, 0], [9, 1]]


def test_the_nearest_recorded_action_as_a_plain_loop(dataset, monkeypatch, capsys):
    wide = {"value": dataset.observations["value"] * np.array([1, 1, 1, 1, 50], np.float32)}
    dataset = replace(dataset, observations=wide)
    learned, unseen = hold_out(dataset, 0.5, seed=3)
    known, actions = (np.asarray(x["value"], float) for x in (learned.observations, learned.actions))
    scale, found, mean = known.std(0), [], []
    for state, action in zip(unseen.observations["value"], unseen.actions["value"], strict=True):
        nearest = min(range(len(known)), key=lambda i: np.linalg.norm((known[i] - state) / scale))
        found.append(np.square(actions[nearest] - action).mean())  # the bounds are [-1, 1]: units are actions
        mean.append(np.square(actions.mean(0) - action).mean())
    assert nearest_action.nearest_error(dataset, 0.5, 3) == pytest.approx((np.mean(found), np.mean(mean)), rel=1e-5)
    monkeypatch.setattr(nearest_action, "load", {"here": dataset}.get)
    monkeypatch.setattr(sys, "argv", ["benchmark", "here", "--held-out", "0.5", "--seeds", "3", "3"])
    nearest_action.main()
    line = f"nearest {np.mean(found):.4f}, mean action {np.mean(mean):.4f}"
    assert capsys.readouterr().out.splitlines() == [f"seed 3: {line}", f"seed 3: {line}", f"all: {line}"]
