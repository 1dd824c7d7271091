"""What two processes do together in `test_torchrun.py`, which looks at what they leave in a folder."""

import contextlib
import copy
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import conftest
import torch
from test_training import Cut, small

from dt.config import WAY_SEED
from dt.data import TrajectoryDataset
from dt.evaluation import evaluate
from dt.policy import ReturnConditionedPolicy
from dt.training import build_model, load_run, train
from transformer import processes
from transformer.checkpoint import write_json
from transformer.training import NonFiniteError, Stopped, Trainer

torch.set_num_threads(1)
PAYDAY = conftest.payday.__wrapped__()
ONE_STEP, GRADIENT = Trainer._one_step, Trainer._gradient


def without_dropout(config):
    return replace(config, model=replace(config.model, dropout=0.0))


def at_step(step, act):
    """From now on `act(trainer)` is called just before a step."""

    def acting(self):
        if self.step == step:
            act(self)
        return ONE_STEP(self)

    Trainer._one_step = acting


def cut(trainer):
    raise Cut


def train_cut_at(step, config, folder):
    at_step(step, cut)
    with contextlib.suppress(Cut):
        train(PAYDAY, config, folder)
    Trainer._one_step = ONE_STEP


def gradient_difference(dtype):
    """The largest difference from one process's gradient, relative to its largest number; windows are cut unevenly."""
    config, seed = without_dropout(small()), 3
    torch.manual_seed(0)
    model = build_model(PAYDAY, config, None).to(dtype)
    alone = copy.deepcopy(model)
    data = TrajectoryDataset(PAYDAY, config.model.context_length)
    data.states = {name: tensor.to(dtype) for name, tensor in data.states.items()}
    indices = data.indices(seed, 0, 7)
    batch, part = data.gather(indices), data.gather(processes.share(indices))
    assert len({int(row.sum()) for row in batch.mask}) > 1
    shared = Trainer(model, lambda step: part, config.training, Path("never"), {})
    shared.config = replace(config.training, gradient_clip=1e9)
    loss, _ = GRADIENT(shared)
    loss_sum, count = alone(batch)
    (loss_sum / count).backward()
    gradients = [(a.grad, b.grad) for a, b in zip(alone.parameters(), model.parameters(), strict=True)]
    scale = max(float(a.abs().max()) for a, _ in gradients)
    assert abs(loss - (loss_sum / count).item()) < 1e-6
    return max(float((a - b).abs().max()) for a, b in gradients) / scale


def main(folder: Path):
    found = {"float32": gradient_difference(torch.float32), "float64": gradient_difference(torch.float64)}
    indices = TrajectoryDataset(PAYDAY, 5).indices(0, 4, 7)
    found["shares"] = [processes.exchange(processes.share(indices).tolist()), indices.tolist()]
    found["whole"] = processes.whole(processes.share(list(range(7))))
    torch.manual_seed(0)

    config = small(evaluate_every=4)
    run = train(PAYDAY, config, folder / "whole")
    for step in (2, 5, 8, 11):
        train_cut_at(step, config, folder / f"cut-{step}")
        train(PAYDAY, config, folder / f"cut-{step}", resume=True)

    results = evaluate(ReturnConditionedPolicy(run.model), run.environment, [2.0, 8.0, 5.0], episodes=3, seed=WAY_SEED)
    found["evaluation"] = [result.to_json() for result in results]
    train_cut_at(6, without_dropout(config), folder / "to-be-resumed-by-one")

    at_step(5, lambda _: None if processes.first() else os.kill(os.getpid(), signal.SIGTERM))
    try:
        train(PAYDAY, small(), folder / "stopped")
    except Stopped as stopped:
        found["stopped"] = processes.exchange([stopped.code, str(stopped)])
    Trainer._one_step = ONE_STEP
    train(PAYDAY, small(), folder / "stopped", resume=True)

    def poison(trainer):
        if not processes.first():
            next(trainer.model.parameters()).data.fill_(float("nan"))

    at_step(5, poison)
    try:
        train(PAYDAY, small(), folder / "poisoned")
    except NonFiniteError as error:
        found["poisoned"] = processes.exchange(str(error))
    Trainer._one_step = ONE_STEP

    first_run = load_run(folder / "whole")
    assert all(torch.equal(a, b) for a, b in zip(first_run.model.parameters(), run.model.parameters(), strict=True))
    if processes.first():
        write_json(folder / "found.json", found)


if __name__ == "__main__":
    with processes.joined():
        main(Path(sys.argv[1]))
