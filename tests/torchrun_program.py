"""What the processes do that `test_torchrun.py` lets torchrun start; it looks at what they leave in a folder."""

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

from dt.cli.program import _parse
from dt.config import WAY_SEED
from dt.data import TrajectoryDataset
from dt.evaluation import evaluate
from dt.learning.build import build_model
from dt.learning.run import load_run
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from transformer.errors import Stopped
from transformer.files import write_json
from transformer.runs import distributed
from transformer.runs.callbacks import Callback
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.training import Trainer
from transformer.text.corpora import PairCorpus, TextCorpus, character_tokenizer

torch.set_num_threads(1)
PAYDAY = conftest.payday.__wrapped__()
ONE_STEP, GRADIENT = Trainer._one_step, Trainer._gradient
CUTS = (0, 2, 5, 8, 9, 11)  # at once, before the first checkpoint, between two, on one, after it, at the end
COMMAND = "--width 16 --num-layers 1 --context-length 5 --batch-size 7 --steps 12 --checkpoint-every 4 --log-every 2"
COMMAND += " --evaluate-every 0 --episodes 2 --target-return 2 8 --device cpu --import conftest"
COMMAND = COMMAND.split()


def without_dropout(config):
    return replace(config, model=replace(config.model, dropout=0.0, observation_noise=0.0))


@contextlib.contextmanager
def at_step(step, act):
    """Inside, `act(trainer)` is called just before a step."""

    def acting(self):
        if self.step == step:
            act(self)
        return ONE_STEP(self)

    Trainer._one_step = acting
    try:
        yield
    finally:
        Trainer._one_step = ONE_STEP


def cut(trainer):
    raise Cut


class Reporter(Callback):
    """Keeps what it is called with, and draws from torch's generator."""

    def __init__(self):
        self.reported = []

    def on_log(self, step, numbers):
        torch.rand(step)
        self.reported.append(["log", step])

    def on_checkpoint(self, step, folder):
        self.reported.append(["checkpoint", step])


def train_cut_at(step, config, folder):
    with at_step(step, cut), contextlib.suppress(Cut):
        train(PAYDAY, config, folder)


def gradient_difference(dtype):
    """The largest difference from one process's gradient, relative to its largest number; windows are cut unevenly."""
    config, seed = without_dropout(small()), 3
    torch.manual_seed(0)
    model = build_model(PAYDAY, config, None).to(dtype)
    alone = copy.deepcopy(model)
    data = TrajectoryDataset(PAYDAY, config.model.context_length)
    data.states = {name: tensor.to(dtype) for name, tensor in data.states.items()}
    indices = data.indices(seed, 0, 7)
    batch, part = data.gather(indices), data.gather(distributed.shard(indices))
    assert len({int(row.sum()) for row in batch.mask}) > 1
    shared = Trainer(model, lambda step: part, config.training, Path("never"), {})
    loss_sum, count = alone(batch)
    (loss_sum / count).backward()
    alone_norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), shared.config.gradient_clip)
    assert alone_norm > shared.config.gradient_clip  # so it is the whole gradient that is clipped
    loss, norm = GRADIENT(shared)
    gradients = [(a.grad, b.grad) for a, b in zip(alone.parameters(), model.parameters(), strict=True)]
    scale = max(float(a.abs().max()) for a, _ in gradients)
    assert abs(loss - (loss_sum / count).item()) < 1e-6
    assert abs(norm / alone_norm.item() - 1) < 1e-6
    return max(float((a - b).abs().max()) for a, b in gradients) / scale


def dropped_out():
    """The loss of one and the same batch in each process, dropout on: it says what each one drops."""
    torch.manual_seed(0)
    model, data, losses = build_model(PAYDAY, small(), None), TrajectoryDataset(PAYDAY, 5), []

    def loss(batch):
        loss_sum, count = model(batch)
        losses.append(loss_sum.item())
        return loss_sum, count

    whole = data.gather(data.indices(0, 0, 7))
    Trainer(model, lambda step: whole, small().training, Path("never"), {}, loss=loss)._one_step()
    return distributed.all_gather(losses)


def text_batches():
    """Rows of the text programs' batches of the first steps, as this process gets them, without padding."""
    characters = TextCorpus("abcdefgh\n" * 40, character_tokenizer("abcdefgh\n"), 5, torch.device("cpu"))
    pairs = PairCorpus([([3 + i] * (1 + i % 4), [9]) for i in range(40)], 1, 2, torch.device("cpu"))
    windows = [characters.batch(0, step, 7).tolist() for step in range(3)]
    sources = [pairs.batch(0, step, 8) for step in range(3)]
    return windows + [[row[mask].tolist() for row, mask in zip(b.source, b.source_mask, strict=True)] for b in sources]


def batches_and_gradients():
    batches = [TrajectoryDataset(PAYDAY, 5).indices(0, step, 7) for step in range(12)]
    return {
        "float32": gradient_difference(torch.float32),
        "float64": gradient_difference(torch.float64),
        "batches": [rows.tolist() for rows in batches],
        "shares": distributed.all_gather([distributed.shard(rows).tolist() for rows in batches]),
        "text": distributed.all_gather(text_batches()),
        "whole": distributed.gather(distributed.shard(list(range(7)))),
        "losses": dropped_out(),
    }


def cut_and_resume(folder):
    """A run with dropout that is cut and goes on in as many processes; two that go on in more or in fewer."""
    config = small(evaluate_every=4)
    reporter = Reporter()
    run = train(PAYDAY, config, folder / "whole", callbacks=[reporter])
    write_json(folder / f"reported-{distributed.rank()}.json", reporter.reported)
    for step in CUTS:
        train_cut_at(step, config, folder / f"cut-{step}")
        train(PAYDAY, config, folder / f"cut-{step}", resume=True)
    train_cut_at(6, without_dropout(config), folder / "two-then-one")
    train(PAYDAY, without_dropout(config), folder / "one-then-two", resume=True)
    reopened = load_run(folder / "whole").model
    assert all(torch.equal(a, b) for a, b in zip(reopened.parameters(), run.model.parameters(), strict=True))
    return run


def evaluations(run):
    """Of more episodes than there are processes, and of fewer."""
    policy = ReturnConditionedPolicy(run.model)
    many = evaluate(policy, run.environment, [2.0, 8.0, 5.0], episodes=3, seed=WAY_SEED)
    one = evaluate(policy, run.environment, [8.0], episodes=1, seed=WAY_SEED)
    return [result.to_json() for result in [*many, *one]]


def stopped_by(number, place, folder):
    """What each process says of a signal that one of them gets before its sixth step."""
    with at_step(5, lambda _: os.kill(os.getpid(), number) if distributed.rank() == place else None):
        try:
            train(PAYDAY, small(evaluate_every=4), folder)
        except Stopped as stopped:
            said = distributed.all_gather([stopped.exit_code, str(stopped), step_of(checkpoints(folder)[-1])])
    train(PAYDAY, small(evaluate_every=4), folder, resume=True)
    return said


def failures(folder):
    """What each process raises where one alone meets with it."""

    def poison(trainer):
        if not distributed.is_first_rank():
            next(trainer.model.parameters()).data.fill_(float("nan"))

    def raised(task):
        try:
            task()
        except Exception as error:
            return distributed.all_gather([type(error).__name__, str(error)])

    def fail():
        if not distributed.is_first_rank():
            raise KeyError("lost")

    with at_step(5, poison):
        poisoned = raised(lambda: train(PAYDAY, small(), folder / "poisoned"))
    return {
        "poisoned": poisoned,
        "refused": raised(lambda: train(PAYDAY, small(), folder / "whole")),
        "together": raised(lambda: distributed.raise_together(fail, ValueError, KeyError)),
        "too few": raised(lambda: train(PAYDAY, small(batch_size=1), folder / "too-few")),
    }


def by_command(folder):
    """`dt train`, of which the command line has been read."""
    from dt.cli.train import train_and_score, training_data

    command = _parse(["train", str(folder / "coins.npz"), *COMMAND, "--output", str(folder / "by-command")])
    train_and_score(command, *training_data(command))


def main(folder: Path):
    found = batches_and_gradients()
    if distributed.world_size() == 2:
        run = cut_and_resume(folder)
        found["evaluation"] = evaluations(run)
        found["SIGTERM"] = stopped_by(signal.SIGTERM, 1, folder / "SIGTERM")
        found["SIGINT"] = stopped_by(signal.SIGINT, 0, folder / "SIGINT")
        found |= failures(folder)
        by_command(folder)
    if distributed.is_first_rank():
        write_json(folder / "found.json", found)


if __name__ == "__main__":
    with distributed.process_group():
        main(Path(sys.argv[1]))
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert names  # this is Linux
    assert not [name for name in names if "gloo" in name]  # a thread that is left may abort Python's end
