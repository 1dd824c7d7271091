"""The table of speeds: what a row says of two works whose times are known."""

import json

import pytest

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
