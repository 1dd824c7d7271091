"""The paper's small experiments: graphs and their shortest paths, and that each command does all that it says."""

import json
import sys

import gymnasium
import numpy as np
import pytest

from benchmarks import key_to_door, random_graph
from benchmarks.random_graph import GOAL, NEVER, NODES, STEPS, GraphWalk, distances, draw_graph


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
    world = gymnasium.make("RandomGraph-v0", graph=1, show_edges=True)
    edges = world.unwrapped.edges
    node, info = world.reset(seed=0)
    np.testing.assert_array_equal(info["action_mask"], edges[node])
    stay = int(np.flatnonzero(~edges[node])[0])
    assert world.step(stay)[:3] == (node, -1.0, False)
    before_goal = np.flatnonzero(edges[:, GOAL])[0]
    world.unwrapped.node = before_goal
    assert world.step(GOAL)[:3] == (GOAL, -1.0, True)
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
    first = run(key_to_door, monkeypatch, tmp_path, *few, "--methods", "none-best")
    (row,) = first["rows"]
    assert (row["method"], row["episodes"], row["seed"], row["steps"]) == ("none-best", 90, 0, 2)
    trained_on = json.loads((tmp_path / "runs" / "none-best-90-s0" / "run.json").read_text())["dataset"]
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
