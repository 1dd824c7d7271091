"""Time to a working lever: what is trained, when it is looked at, and what counts as time."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from conftest import Payday
from gymnasium import spaces

from benchmarks import lever
from benchmarks import time_to_lever as timed
from benchmarks.gym import Cell, fill_cells, read_rows, status_of
from dt.cli.scores import Scores
from dt.errors import InterruptedEvaluation
from dt.evaluation import TargetResult
from dt.learning.training import train
from envs.simulate.spec import EnvironmentSpec
from transformer.runs.checkpoint import checkpoints, folder_of
from transformer.weights import read_tensors


class Amounts(Payday):
    """Payday with a number as its action, since Hugging Face's model takes no choices."""

    action_space = spaces.Box(0, 1, (1,), np.float32)

    def step(self, action):
        return super().step(action.item())


gymnasium.register("PaydayAmounts-v0", Amounts, max_episode_steps=20)

BUDGET = 16


@pytest.fixture
def tiny(payday, monkeypatch):
    """The recipes of the lever made tiny, on sixty episodes of a toy."""
    amounts = replace(
        payday,
        action_space=Amounts.action_space,
        actions={"value": payday.actions["value"][:, None].astype(np.float32)},
        environment=EnvironmentSpec("PaydayAmounts-v0", max_episode_steps=20),
    )
    recipe = lever.recipe

    def short(cell):
        config = recipe(cell)
        few = {"steps": BUDGET, "batch_size": 4, "warmup_steps": 0}
        return replace(
            config,
            model=replace(config.model, width=8, num_layers=1),
            training=replace(config.training, **few),
            calibration=replace(config.calibration, calibration_steps=300),
        )

    monkeypatch.setattr(lever, "recipe", short)
    monkeypatch.setattr(timed, "load", lambda name: amounts)
    monkeypatch.setattr(lever.gym, "EPISODES", 2)
    with torch.random.fork_rng():
        yield amounts


def look(step, error=0.05, auto=100.0):
    return {"step": step, "seconds": 2.0 * step, "processor_seconds": step, "alignment_error": error, "auto": auto}


class Scripted:
    """A run whose looks are known; keeps what is asked of it."""

    def __init__(self, **looks):
        self.looks, self.asked = {int(step[1:]): look(int(step[1:]), *given) for step, given in looks.items()}, []

    def train_to(self, step):
        self.asked.append(("train", step))

    def look(self, step):
        self.asked.append(("look", step))
        return self.looks[step]


def test_the_lever_works_at_the_first_look_with_both_a_small_error_and_a_high_return():
    looks = [look(1, 0.2), look(2, 0.1, 89.9), look(3, 0.1, 90.0), look(16, 0.3, 100.0)]
    assert timed.reached(looks, 16)["step"] == 3
    assert timed.reached(looks, 16, before=3) is None
    assert timed.reached([look(1, 0.11), look(16, 0.3)], 16) is None


def test_a_run_is_looked_at_after_its_budget_then_from_the_start_until_its_lever_works(tmp_path):
    run = Scripted(s16=(), s1=(0.5,), s2=(0.09, 95.0))
    looks = timed.take_looks(run, 16, (24, 32), tmp_path / "looks.json")
    assert [step for kind, step in run.asked if kind == "look"] == [16, 1, 2]
    assert [each["step"] for each in looks] == [1, 2, 16]
    again = Scripted()
    assert timed.take_looks(again, 16, (24, 32), tmp_path / "looks.json") == looks
    assert again.asked == [("train", 16)]


def test_only_a_run_whose_lever_never_works_is_trained_past_its_budget(tmp_path):
    bad = {f"s{step}": (0.5,) for step in timed.LOOKS}
    run = Scripted(**bad, s24=(0.5,), s32=())
    looks = timed.take_looks(run, 16, (24, 32, 48), tmp_path / "looks.json")
    assert ("look", 48) not in run.asked
    assert timed.reached(looks, 16)["step"] == 32
    within = Scripted(**bad)
    assert timed.reached(timed.take_looks(within, 16, (), tmp_path / "others.json"), 16) is None


def test_a_stopped_training_counts_as_if_it_had_not_been(tmp_path, monkeypatch):
    clock_now = [0.0]
    monkeypatch.setattr(timed, "now", lambda: (clock_now[0], clock_now[0] / 2))
    clock = timed.Clock(tmp_path / "clock.json", 0)
    clock_now[0] = 10.0  # one second a step
    clock.on_log(10, {})
    clock_now[0] = 1000.0  # cut at step 15, which is not timed, and resumed
    clock = timed.Clock(tmp_path / "clock.json", 15)
    clock_now[0] = 1005.0
    clock.on_log(20, {})
    assert clock.seconds(10) == (10.0, 5.0)
    assert clock.seconds(20) == (20.0, 10.0)


def test_a_stopped_evaluation_makes_no_row(monkeypatch, payday):
    some = TargetResult(5.0, [5.0], [10], None, [])
    monkeypatch.setattr(lever, "policy_of", lambda run, config: None)
    monkeypatch.setattr(lever, "score", lambda *given: Scores([some], stopped=15))
    with pytest.raises(InterruptedEvaluation):
        lever.scored(None, None)


def test_rows_of_both_become_a_table_and_a_picture_and_nothing_changes_what_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(timed, "LOOKS", (3, 16))
    monkeypatch.setattr(timed, "LATER", (24,))
    cells = [Cell("hopper/replay-v0", method, 0) for method in timed.NAMES]
    results, work = tmp_path / "rows.json", tmp_path / "runs"
    fill_cells(cells, results, work, timed.play, timed.grid())
    rows = read_rows(results)
    ours, theirs = (rows[cell] for cell in cells)
    assert ours["budget"] == theirs["budget"] == BUDGET
    for row, later in ((ours, ()), (theirs, timed.LATER)):
        steps = [each["step"] for each in row["looks"]]
        assert BUDGET in steps
        assert set(steps) <= {*timed.LOOKS, *later}
        seconds = [each["seconds"] for each in row["looks"]]
        assert all(second >= 0 for second in seconds)
    text = timed.table(rows.values())
    assert text.count("| hopper/replay-v0 |") == 2
    timed.draw(list(rows.values()), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert status_of(cells, results, work).endswith("2 of 2 done")

    plain = train(tiny, lever.recipe(cells[0]), tmp_path / "plain")
    (last,) = checkpoints(plain.folder)
    assert_same_tensors(last / "model.safetensors", folder_of(work / cells[0].name, BUDGET) / "model.safetensors")
    from benchmarks import huggingface_baseline as theirs_alone

    config = lever.recipe(cells[1])
    training = replace(config.training, precision="float32")
    torch.manual_seed(0)
    model = theirs_alone.Baseline(config.model, tiny)
    data = theirs_alone.TrajectoryDataset(tiny, config.model.context_length, torch.device("cpu"))
    theirs_alone.train(model, data, training, torch.device("cpu"))
    kept = torch.load(folder_of(work / cells[1].name, BUDGET) / "state.pt", weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(kept[name], tensor), name


def assert_same_tensors(one, other):
    """Two files of weights hold the same bits."""
    a, b = read_tensors(one), read_tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_medians_of_seeds_say_how_many_times_sooner():
    def row(method, seed, *looks):
        return {"dataset": "hopper/replay-v0", "method": method, "seed": seed, "budget": 16, "looks": list(looks)}

    fast = [row("default", seed, look(4), look(16)) for seed in range(3)]
    slow = [row("huggingface", seed, look(4, 0.5), look(12), look(16)) for seed in range(3)]
    never = [row("huggingface", seed, look(16, 0.5), look(48, 0.5)) for seed in range(3)]
    assert timed.ratios(fast + slow) == "hopper/replay-v0: 3.0 times sooner"
    assert timed.ratios(fast + never) == "hopper/replay-v0: at least 12.0 times sooner"
    assert "| not within 2 minutes |" in timed.table(never)
