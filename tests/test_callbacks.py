"""Callbacks: what they are called with, that they change no weight, and that their errors are their own."""

import json
import random

import numpy as np
import pytest
import torch
from test_training import assert_equal_runs, small

import dt
from dt.learning.training import train
from transformer.config import CharactersConfig, SequenceConfig, TrainingConfig
from transformer.errors import ConfigError, Stopped
from transformer.runs import distributed
from transformer.runs.callbacks import Callback, Callbacks
from transformer.runs.checkpoint import check_checkpoint, checkpoints, step_of

METHODS = ["on_log", "on_evaluate", "on_checkpoint", "on_end"]


class Meddler(Callback):
    """Keeps what it is called with, draws from every generator there is, and empties what it gets."""

    def __init__(self):
        self.logs, self.evaluations, self.checkpoints, self.ends = [], [], [], []

    def meddle(self, numbers):
        torch.rand(3), np.random.rand(3), random.random()
        kept = dict(numbers)
        numbers.clear()
        return kept

    def on_log(self, step, numbers):
        self.logs.append({"kind": "train", "step": step, **self.meddle(numbers)})

    def on_evaluate(self, step, numbers):
        self.evaluations.append({"kind": "evaluation", "step": step, **self.meddle(numbers)})

    def on_checkpoint(self, step, folder):
        check_checkpoint(folder)
        self.checkpoints.append((step, folder.name))

    def on_end(self, error):
        self.ends.append(error)


class Failing(Callback):
    """Raises in one method."""

    def __init__(self, method, error):
        self.calls = 0

        def fail(*_):
            self.calls += 1
            raise error

        setattr(self, method, fail)


class Stopping(Callback):
    """Asks to stop at a step of the log, or at an evaluation's."""

    def __init__(self, step, method):
        self.end = "not called"
        setattr(self, method, lambda now, _: now == step)

    def on_end(self, error):
        self.end = error


@pytest.fixture
def whole(payday, tmp_path):
    """A run without callbacks."""
    train(payday, small(evaluate_every=4), tmp_path / "whole")
    return tmp_path / "whole"


def test_callbacks_get_what_is_logged_and_weights_are_the_same_without(payday, tmp_path, whole):
    meddler, folder = Meddler(), tmp_path / "watched"
    train(payday, small(evaluate_every=4), folder, callbacks=[meddler])
    assert_equal_runs(whole, folder)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert meddler.logs == [line for line in lines if line["kind"] == "train"] != []
    assert meddler.evaluations == [line for line in lines if line["kind"] == "evaluation"] != []
    assert meddler.checkpoints == [(step, f"step-{step:08d}") for step in (4, 8, 12)]
    assert meddler.ends == [None]


@pytest.mark.parametrize(
    ("method", "error"), [*((method, ValueError("no\nroom")) for method in METHODS), ("on_log", SystemExit(3))]
)
def test_a_callback_that_raises_is_named_and_stops_only_itself(payday, tmp_path, whole, capsys, method, error):
    failing, meddler = Failing(method, error), Meddler()
    train(payday, small(evaluate_every=4), tmp_path / "run", callbacks=[failing, meddler])
    assert_equal_runs(whole, tmp_path / "run")
    named = f"callback Failing: {method} raised {type(error).__name__}: {' '.join(str(error).split())}. It is not"
    assert capsys.readouterr().err.count(named) == 1
    assert failing.calls == 1
    assert (len(meddler.logs), len(meddler.evaluations), meddler.ends) == (6, 3, [None])


@pytest.mark.parametrize(("step", "method"), [(6, "on_log"), (8, "on_evaluate")])
def test_a_callback_stops_training_with_a_checkpoint_and_the_run_goes_on_from_there(
    payday, tmp_path, whole, step, method
):
    stopping, folder = Stopping(step, method), tmp_path / "run"
    with pytest.raises(Stopped, match=f"stopped by a callback after step {step}") as stopped:
        train(payday, small(evaluate_every=4), folder, callbacks=[stopping])
    assert stopped.value.exit_code == 0
    assert stopping.end is stopped.value
    assert step_of(checkpoints(folder)[-1]) == step
    train(payday, small(evaluate_every=4), folder, resume=True)
    assert_equal_runs(whole, folder)


def test_at_the_last_step_there_is_nothing_to_stop(payday, tmp_path):
    stopping = Stopping(12, "on_log")
    train(payday, small(), tmp_path / "run", callbacks=[stopping])
    assert stopping.end is None


def test_an_interrupt_in_a_callback_is_the_users(payday, tmp_path):
    meddler = Meddler()
    with pytest.raises(KeyboardInterrupt):
        train(payday, small(), tmp_path / "run", callbacks=[meddler, Failing("on_log", KeyboardInterrupt())])
    assert [type(error) for error in meddler.ends] == [KeyboardInterrupt]


def test_other_processes_than_the_first_call_nothing(monkeypatch):
    monkeypatch.setattr(distributed, "is_first_rank", lambda: False)
    meddler = Meddler()
    Callbacks([meddler]).log(1, {"loss": 1.0})
    assert meddler.logs == []


@pytest.mark.parametrize(("wrong", "name"), [(print, "builtin_function_or_method"), (Meddler, "Meddler")])
def test_what_is_no_callback_is_refused_before_anything_is_written(payday, tmp_path, wrong, name):
    with pytest.raises(ConfigError, match=f"callbacks: {name} is not an instance of dt.Callback"):
        train(payday, small(), tmp_path / "run", callbacks=[wrong])
    assert not (tmp_path / "run").exists()
    assert dt.Callback is Callback


def test_text_programs_take_callbacks(tmp_path):
    from transformer.text.programs import train_characters

    (tmp_path / "text").write_text("abcdefgh\n" * 40)
    config = CharactersConfig(
        model=SequenceConfig(width=8, num_layers=1, num_heads=2, context_length=8),
        training=TrainingConfig(steps=4, batch_size=4, log_every=2, evaluate_every=2, precision="float32"),
    )
    meddler = Meddler()
    train_characters(tmp_path / "text", config, tmp_path / "watched", callbacks=[meddler])
    train_characters(tmp_path / "text", config, tmp_path / "alone")
    assert_equal_runs(tmp_path / "watched", tmp_path / "alone")
    assert [line["step"] for line in meddler.evaluations] == [2, 4]
    assert all("validation_loss" in line for line in meddler.evaluations)
