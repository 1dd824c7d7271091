"""Progress: a bar on a terminal, and elsewhere a line a minute and one at the end."""

import io
import sys

import pytest
from test_training import small

from dt.learning.training import train
from transformer.runs import distributed
from transformer.runs import progress as module
from transformer.runs.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves on, and standard error as a file."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(clock, seconds, units=60, done=0, breaks=False):
    """Units that take some seconds each, or break off at the first."""
    with progress("train", units, "step", done) as shown:
        for _ in range(units - done):
            clock[0] += seconds
            shown.note("loss 0.5")
            shown.update(1 // (not breaks))


def test_a_file_gets_a_line_a_minute_with_loss_speed_and_time_left(clock, capsys):
    work(clock, 2.0)
    assert capsys.readouterr().err.splitlines() == [
        "train: step 30 of 60, loss 0.5, 0.5 steps/s, 0:01:00 left",
        "train: step 60 of 60, loss 0.5, 0.5 steps/s, took 0:02:00",
    ]


def test_a_thousand_steps_a_second_are_no_more_lines(clock, capsys):
    work(clock, 0.001, units=100_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1] == "train: step 100000 of 100000, loss 0.5, 1e+03 steps/s, took 0:01:40"


def test_a_continued_run_counts_its_own_speed_only(clock, capsys):
    work(clock, 10.0, units=60, done=54)
    assert capsys.readouterr().err == "train: step 60 of 60, loss 0.5, 0.1 steps/s, took 0:01:00\n"


def test_work_that_is_done_already_or_breaks_off_prints_no_end(clock, capsys):
    work(clock, 1.0, units=5, done=5)
    with pytest.raises(ZeroDivisionError):
        work(clock, 1.0, breaks=True)
    assert capsys.readouterr().err == ""


def test_other_processes_than_the_first_print_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "is_first_rank", lambda: False)
    work(clock, 2.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(clock, 2.0)
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("evaluate", 3, "episode") as shown:
        shown.update(2)
        shown.note("loss 0.5")
        shown.update()
    assert "evaluate: 100%" in sys.stderr.getvalue()
    assert "3/3" in sys.stderr.getvalue()
    assert "loss 0.5" in sys.stderr.getvalue()


def test_a_run_into_a_file_leaves_few_lines(payday, tmp_path, capsys):
    train(payday, small(), tmp_path / "run")
    err = capsys.readouterr().err
    assert err.count("train: step 12 of 12, loss ") == 1
    assert err.count("train: ") == 1
    assert "\r" not in err
