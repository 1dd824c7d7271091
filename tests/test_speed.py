"""The table of speeds: what a row says of two works whose times are known."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from benchmarks import speed


def test_a_row_holds_rates_their_ratio_and_whether_it_is_the_goal(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(speed.time, "process_time", lambda: clock["now"] / 2)
    order = []

    def work(name, seconds, units):
        def do():
            order.append(name)
            clock["now"] += next(seconds)
            return units

        return do

    def make():
        ours = iter([90.0, 2.0, 50.0, 2.0])  # the first is not counted, and a median shrugs at the second
        return work("ours", ours, 10), work("peer", iter([1.0, 3.0, 3.0, 3.0]), 5)

    row = speed.Row("group", "measure", "steps", "peer's name", 2.9, None, make)
    line = speed.measure(row, rounds=3)
    assert order == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert (line["ours"], line["peer"]) == (pytest.approx(5), pytest.approx(5 / 3))
    assert (line["ratio"], line["cpu_ratio"], line["met"]) == (pytest.approx(3), pytest.approx(3), True)
    assert {"measure", "ours", "peer", "peer_name", "ratio", "goal", "met"} <= json.loads(json.dumps(line)).keys()
    assert "| group | measure | 5 steps/s | 1.667 steps/s | peer's name | 3.00 | 3.00 | 2.9 |  |" in speed.table([line])


def test_a_row_that_the_machine_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(speed, "multiplies_bf16", lambda device: False)
    [row] = [row for row in speed.ROWS if row.make is speed.token_bf16]
    line = speed.measure(row, rounds=1)
    assert line["ratio"] is None
    assert line["met"] is None
    assert "not measured: this processor has no bf16 products" in speed.table([line])


def test_floors_that_do_not_hold_are_listed():
    def line(measure, ratio, floor):
        return {"group": "training", "measure": measure, "ratio": ratio, "floor": floor}

    held, under = line("token", 2.0, 2.0), line("single", 3.987, 4.0)
    assert speed.floors([held, line("no floor", 1.0, None), line("not measured", None, 2.0)]) == "1 of 1 floors hold"
    assert speed.floors([held, under]) == "1 of 2 floors hold; under theirs:\n  training, single: 3.99, floor 4"


def test_a_peer_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    [row] = [row for row in speed.ROWS if row.peer_name == "d3rlpy"]
    assert "not measured: d3rlpy is not installed" in speed.table([speed.measure(row, rounds=1)])


def test_the_rows_of_a_gpu_do_their_work_on_another_device_too(monkeypatch):
    steps = []
    monkeypatch.setattr(speed.StackedTrainers, "_update", lambda stack: steps.append(stack.starts.clone()))
    monkeypatch.setattr(speed, "train", lambda *rest: steps.append(rest[2].steps))
    ours, theirs = speed.stacked(2, torch.device("cpu"), steps=3)
    assert (ours(), theirs()) == (6, 3)
    assert len(steps) == 4
    assert steps[-1] == 3
    assert all(starts.shape == (2, 64) for starts in steps[:3])
    assert len({tuple(row.tolist()) for starts in steps[:3] for row in starts}) == 6


def processor_seconds(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


FIRST_STEP = """
import sys, time
from pathlib import Path
from envs.datasets.loading import load
dataset = load("hopper/replay-v0")
from dt.presets import paper_hopper
from dt.learning.training import prepare
started = time.process_time()
trainer = prepare(dataset, paper_hopper(), Path("none"))
trainer._one_step()
print(time.process_time() - started)
"""


def test_help_is_there_within_two_seconds_and_the_first_step_within_five():
    """In processor time, which other programs lengthen least; the dataset is loaded and torch is not yet used."""
    assert processor_seconds(["-m", "dt", "--help"]) < 2
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 5
