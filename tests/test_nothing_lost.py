"""Attacks on a run's folder: kills inside a save, damage, full disks. The long versions are marked `torture`."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from test_cli import write_npz
from test_training import assert_equal_runs, log_without_clock, small

from dt.cli import main
from dt.learning.training import train
from envs.datasets.temporary import temporary_folder
from envs.simulate.spec import EnvironmentSpec
from transformer import files as module
from transformer.attention import MultiHeadAttention
from transformer.errors import CheckpointError, ConfigError, MemoryExhaustedError, NonFiniteError, Stopped
from transformer.files import read_json, write_json
from transformer.runs import distributed
from transformer.runs.checkpoint import (
    best_step,
    check_checkpoint,
    checkpoints,
    folder_of,
    newest_checkpoint,
    prune,
    save_checkpoint,
    step_of,
)
from transformer.runs.folder import clear_leftovers, only_writer
from transformer.runs.log import RunLog
from transformer.runs.training import Trainer
from transformer.weights import read_tensors

LAST = 6


def save(run: Path, step: int, size: int = 1000) -> None:
    """What `Trainer.save` does, with contents that tell their step."""
    tensors = {name: {"weight": torch.full((size,), float(step))} for name in ("model", "optimizer")}
    save_checkpoint(run, step, tensors, {"state": {"step": step}, "run": {}})
    write_json(run / "best.json", {"step": step - step % 2, "score": 0.0})
    prune(run, 2, step)


def in_a_process(work) -> int:
    """Call `work` in a fork of this process; returns the number of the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def die_at(run: Path, event: int) -> None:
    """From now on count what this process does to files of the run, and kill it just before number `event`."""
    left = [event]

    def hook(name: str, arguments: tuple) -> None:
        if name.split(".")[0] in ("open", "os", "shutil", "tempfile") and str(run) in str(arguments[0]):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


def assert_nothing_is_lost(run: Path, step: int) -> None:
    """Every checkpoint is whole and of one step, at most the save that was cut is missing, the best is there."""
    present = [step_of(path) for path in checkpoints(run)]
    for path in checkpoints(run):
        check_checkpoint(path)
        for name in ("model", "optimizer"):
            assert read_tensors(path / f"{name}.safetensors")["weight"].eq(step_of(path)).all()
        assert read_json(path / "state.json") == {"step": step_of(path)}
    assert present[-1] in (step - 1, step)
    assert step - 1 in present
    assert best_step(run) in present
    clear_leftovers(run)
    save(run, step)
    assert {step - 1, step} <= {step_of(path) for path in checkpoints(run)}
    assert not list(run.rglob(".*"))


def kill_inside_a_save(tmp_path: Path, events, times: int) -> int:
    """How many saves were killed, `times` at each of these events."""
    killed, before = 0, tmp_path / "before"
    for step in range(1, LAST):
        save(before, step)
    for event in events:
        for _ in range(times):
            run = shutil.copytree(before, tmp_path / "run")
            killed += in_a_process(lambda event=event, run=run: (die_at(run, event), save(run, LAST))) == signal.SIGKILL
            assert_nothing_is_lost(run, LAST)
            shutil.rmtree(run)
    return killed


def test_a_save_that_is_killed_loses_nothing(tmp_path):
    assert kill_inside_a_save(tmp_path, range(0, 32, 4), times=1) == 8


def kill_at_any_moment(tmp_path: Path, times: int) -> list[int]:
    """Kill a process that saves without end, by the clock: also inside the writing of weights, which no hook hears.

    Returns how many checkpoints each of them had finished.
    """
    rng, finished = random.Random(0), []
    for i in range(times):
        run = tmp_path / f"run-{i}"
        save(run, 2)
        child = os.fork()
        if child == 0:
            for step in range(3, 10_000):
                save(run, step, size=500_000)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        newest = step_of(checkpoints(run)[-1])
        assert_nothing_is_lost(run, newest + 1)
        finished.append(newest)
        shutil.rmtree(run)
    return finished


def test_a_save_killed_at_any_moment_loses_nothing(tmp_path):
    assert len(kill_at_any_moment(tmp_path, times=12)) == 12


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_many_saves_killed_at_any_moment_lose_nothing(tmp_path):
    finished = kill_at_any_moment(tmp_path, times=500)
    print(f"{len(finished)} processes were killed after {sum(finished)} saves")
    assert max(finished) > 2


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_saves_killed_at_every_point_lose_nothing(tmp_path):
    killed = kill_inside_a_save(tmp_path, range(60), times=25)
    print(f"{killed} saves were killed")
    assert killed > 800


def test_the_check_of_killed_saves_can_fail(tmp_path, monkeypatch):
    """A save that writes under its final name is caught."""

    def careless(run, step, tensors, documents):
        final = folder_of(run, step)
        final.mkdir(parents=True)
        for name, content in tensors.items():
            safetensors.torch.save_file(content, final / f"{name}.safetensors")
        for name, document in documents.items():
            write_json(final / f"{name}.json", document)
        hashes = {path.name: module.sha256_of(path) for path in sorted(final.iterdir())}
        write_json(final / "manifest.json", {"schema": 1, "step": step, "sha256": hashes})

    monkeypatch.setattr(sys.modules[__name__], "save_checkpoint", careless)
    with pytest.raises(CheckpointError, match="no manifest"):
        kill_inside_a_save(tmp_path, [5], times=1)


def test_files_reach_the_disk_before_the_rename_and_the_rename_before_the_end(tmp_path, monkeypatch):
    save(tmp_path, 1)
    done, sync, rename = [], module._sync, Path.rename

    def noting_sync(path):
        sync(path)
        done.append(("sync", path))

    def noting_rename(path, target):
        done.append(("rename", path, target))
        return rename(path, target)

    monkeypatch.setattr(module, "_sync", noting_sync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    save_checkpoint(tmp_path, 2, {"model": {"weight": torch.zeros(3)}}, {"state": {}})
    (at,) = [i for i, event in enumerate(done) if event[0] == "rename"]
    temporary, final = done[at][1:]
    files = {path.name for path in final.iterdir()}
    assert files == {"model.safetensors", "state.json", "manifest.json"}
    assert {event[1] for event in done[: at - 1]} == {temporary / name for name in files}
    assert done[at - 1] == ("sync", temporary)
    assert done[at + 1 :] == [("sync", final.parent)]


@pytest.mark.torture
def test_the_order_of_system_calls_in_a_save(tmp_path):
    """strace, of the system's packages, sees all files written and flushed, then the folder, the rename, the parent."""
    trace = tmp_path / "trace"
    program = (
        "import torch; from pathlib import Path; from transformer.runs.checkpoint import save_checkpoint\n"
        f"save_checkpoint(Path({str(tmp_path / 'run')!r}), 1, {{'model': {{'w': torch.zeros(9)}}}}, {{'state': {{}}}})"
    )
    calls = "trace=write,pwrite64,writev,fsync,rename,renameat,renameat2"
    strace = ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(trace), sys.executable, "-c", program]
    subprocess.run(strace, check=True)
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if str(tmp_path / "run") in line]
    kinds = [line.split("(")[0] for line in lines]
    at = next(i for i, line in enumerate(lines) if line.startswith("rename") and "step-00000001" in line)
    for name in ("model.safetensors", "state.json", "manifest.json"):
        flushed = [i for i, line in enumerate(lines) if line.startswith("fsync") and f"/{name}>" in line]
        # safetensors writes under a name of its own and renames; any write to the folder comes before the first flush
        written = [i for i, kind in enumerate(kinds) if "write" in kind]
        assert flushed
        assert max(written) < min(flushed) < at, lines
    assert re.match(r"fsync\(\d+<.*/\.saving-\w+>\) += 0", lines[at - 1])
    assert re.match(rf"fsync\(\d+<{re.escape(str(tmp_path))}/run/checkpoints>\) += 0", lines[at + 1])


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path):
    rng = random.Random(0)
    save(tmp_path, 1), save(tmp_path, 2)
    files = sorted(checkpoints(tmp_path)[-1].iterdir())
    assert len(files) == 5
    for number in range(250):
        path = files[number % len(files)]
        content = path.read_bytes()
        if number < 200:
            place, damaged = rng.randrange(len(content)), bytearray(content)
            damaged[place] ^= 1 << rng.randrange(8)
        else:
            damaged = content[: rng.choice([0, len(content) - 1, rng.randrange(len(content))])]
        path.write_bytes(damaged)
        told: list[str] = []
        assert step_of(newest_checkpoint(tmp_path, told.append)) == 1
        assert "step-00000002" in "".join(told)
        path.write_bytes(content)
    assert step_of(newest_checkpoint(tmp_path)) == 2


def test_a_checkpoint_under_another_steps_name_is_not_that_step(tmp_path):
    save(tmp_path, 1), save(tmp_path, 2)
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", tmp_path / "checkpoints" / "step-00000003")
    assert step_of(newest_checkpoint(tmp_path)) == 2


def test_damaged_checkpoints_do_not_crowd_out_whole_ones(tmp_path):
    for step in (7, 13):
        save(tmp_path, step)
    path = tmp_path / "checkpoints" / "step-00000013" / "state.json"
    path.write_text("{}")
    save(tmp_path, 11)  # gone back to 7, the run comes past 11
    prune(tmp_path, keep=1, step=11)
    assert step_of(newest_checkpoint(tmp_path)) == 11
    save(tmp_path, 13)
    assert step_of(newest_checkpoint(tmp_path)) == 13


def test_a_run_is_written_by_one_process_at_a_time(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(steps=4), folder)
    with only_writer(folder), pytest.raises(CheckpointError, match="another process is training in it"):
        train(payday, small(steps=8), folder, resume=True)
    train(payday, small(steps=8), folder, resume=True)


def test_what_a_killed_process_left_is_cleared_at_restart_and_nothing_else(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(steps=4), folder)
    mine = [folder / "checkpoints" / ".mine", folder / ".notes.txt", folder / "best.json.bak"]
    left = [folder / "checkpoints" / name for name in (".saving-a1b2", ".removing-step-00000002")]
    left += [folder / name for name in (".run.json.77", ".best.json.77", ".log.jsonl.77")]
    for path in [*mine[:1], *left[:2]]:
        path.mkdir()
    for path in [*mine[1:], *left[2:]]:
        path.write_text("x")
    train(payday, small(steps=8), folder, resume=True)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in left)


def test_a_log_on_a_full_disk_does_not_stop_training(payday, tmp_path, monkeypatch, capsys):
    train(payday, small(), tmp_path / "whole")
    folder = tmp_path / "run"
    started, stepped = Trainer.start, Trainer._one_step

    def start(self):
        started(self)
        (self.record.folder / "tensorboard").write_text("in the way")

    def step(self):
        if self.step == 0:
            (self.record.folder / "log.jsonl").symlink_to("/dev/full")  # whose writes fail with ENOSPC
        return stepped(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "start", start)
        patch.setattr(Trainer, "_one_step", step)
        patch.setattr("dt.learning.training.load_run", lambda *_, **__: None)  # which would refuse the link
        patch.setattr("dt.learning.training.calibrate_after_training", lambda run: None)
        train(payday, small(), folder)
    err = capsys.readouterr().err
    assert err.count("log.jsonl: cannot be written, the disk is full (No space left on device); training goes on") == 1
    assert err.count("cannot be written, File exists; training goes on") == 1
    (folder / "log.jsonl").unlink()
    shutil.copy(tmp_path / "whole" / "log.jsonl", folder)
    assert_equal_runs(tmp_path / "whole", folder)


def test_a_log_that_cannot_be_cut_does_not_stop_a_resume(payday, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    train(payday, small(), folder)

    def full(path, text):
        raise OSError(28, "No space left on device")

    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 99}\n')
    with monkeypatch.context() as patch:
        patch.setattr("transformer.runs.log.replace_text", full)
        train(payday, small(steps=13), folder, resume=True)
    assert (
        "log.jsonl: cannot be written, the disk is full (No space left on device); training" in capsys.readouterr().err
    )
    (folder / "log.jsonl").unlink()
    (folder / "log.jsonl").mkdir()
    train(payday, small(steps=14), folder, resume=True)
    assert "log.jsonl: cannot be written, Is a directory; training goes on" in capsys.readouterr().err
    assert step_of(newest_checkpoint(folder)) == 14


@pytest.mark.parametrize("environment", ["Payday-v0", "FarAway-v3"])
def test_results_that_cannot_be_written_are_printed(payday, tmp_path, capsys, environment):
    source, folder = write_npz(tmp_path / "coins.npz", payday, environment), tmp_path / "run"
    command = ["train", str(source), "--output", str(folder), *QUICK[2:], "--episodes", "1", "--target-return", "3"]
    assert main([*command, "--steps", "2"]) == 0
    shutil.rmtree(folder / "results")
    (folder / "results").write_text("in the way")
    capsys.readouterr()
    assert main([*command, "--steps", "3", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "checkpoint step-00000003" in out
    assert f"{folder}/results: cannot be written, File exists; what is printed stands" in err


FILLING = """
import sys, time
from pathlib import Path
from envs.datasets.temporary import temporary_folder
with temporary_folder(Path(sys.argv[1]), ".building-") as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_that_was_being_filled_is_cleared_and_one_that_is_stays(tmp_path, number):
    """By SIGTERM at once, after a kill by the next process; that of a process that lives, and anything else, stays."""
    (tmp_path / ".building-mine").write_text("a file")
    command = [sys.executable, "-c", FILLING, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as alive,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ended,
    ):
        lives, dies = (Path(process.stdout.readline().strip()) for process in (alive, ended))
        ended.send_signal(number)
        assert ended.wait() == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert dies.exists() == (number == signal.SIGKILL)
        with temporary_folder(tmp_path, ".building-") as mine:
            assert sorted(tmp_path.iterdir()) == sorted([tmp_path / ".building-mine", lives, mine])
        alive.terminate()
    assert [path.name for path in tmp_path.iterdir()] == [".building-mine"]


@pytest.mark.parametrize(
    ("place", "kept"), [("MINARI_DATASETS_PATH", ".building-b2"), ("DECISION_TRANSFORMER_CACHE", ".importing-a1")]
)
def test_what_an_import_or_a_load_left_is_cleared_by_the_next(payday, tmp_path, monkeypatch, place, kept):
    source = write_npz(tmp_path / "coins.npz", payday)
    os.utime(source, (1, 1))
    for name in ("MINARI_DATASETS_PATH", "DECISION_TRANSFORMER_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("envs.datasets.cache.SMALLEST", 1)
    for name in (".importing-a1", ".building-b2"):
        (tmp_path / place / name).mkdir(parents=True)
    assert main(["import", str(source), "mine/coins-v0"]) == 0
    assert [path.name for path in (tmp_path / place).glob(".*-*")] == [kept]


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    import io

    log = RunLog(tmp_path, 0)
    log.write("train", {"step": 1, "loss": 1.0})
    write = io.FileIO.write

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 8:
                raise OSError(28, "No space left on device")
            return write(self, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode.replace("b", "")))
        log.write("train", {"step": 2, "loss": 1.0})
    log.write("train", {"step": 3, "loss": 1.0})
    assert [line["step"] for line in log_without_clock(tmp_path)] == [1, 3]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3]


def test_a_folder_that_cannot_be_removed_does_not_stop_training(payday, tmp_path, monkeypatch, capsys):
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module.shutil, "rmtree", refuse)
    train(payday, small(), tmp_path / "run")
    assert step_of(newest_checkpoint(tmp_path / "run")) == 12
    assert "an old one cannot be removed, Permission denied; training goes on" in capsys.readouterr().err


def test_a_checkpoint_that_finds_no_room_stops_training_and_the_last_one_stands(payday, tmp_path, monkeypatch):
    folder, save_file = tmp_path / "run", safetensors.torch.save_file
    train(payday, small(), tmp_path / "whole")

    def full(tensors, path):
        if len(checkpoints(folder)) == 2:
            raise safetensors.SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(CheckpointError, match=r"step-00000012: cannot be saved, the disk is full .*step-00000008"):
            train(payday, small(), folder)
    train(payday, small(), folder, resume=True)
    assert_equal_runs(tmp_path / "whole", folder)


@pytest.mark.torture
def test_a_disk_that_is_really_full_and_one_that_is_read_only(tmp_path):
    """A file system of 400 kB in a namespace of its own (unshare, of util-linux)."""
    program = """
        import subprocess, sys
        from pathlib import Path
        import torch
        from transformer.errors import CheckpointError
        from transformer.runs.checkpoint import newest_checkpoint, save_checkpoint, step_of
        from transformer.runs.log import RunLog

        def save(step):
            save_checkpoint(run, step, {"model": {"w": torch.full((9000,), float(step))}}, {"state": {}})

        disk, run = Path(sys.argv[1]), Path(sys.argv[1]) / "run"
        run.mkdir()
        log, steps = RunLog(run, 0), 0
        try:
            while True:
                save(steps + 1)
                steps += 1
        except CheckpointError as error:
            assert "the disk is full" in str(error), error
        assert steps >= 3 and step_of(newest_checkpoint(run)) == steps
        (disk / "rest").write_bytes(b"")
        try:
            with (disk / "rest").open("wb", buffering=0) as rest:
                while True:
                    rest.write(bytes(512))
        except OSError:
            pass
        for step in range(300):
            log.write("train", {"step": step, "loss": 0.0})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        log.write("train", {"step": 300, "loss": 0.0})
        try:
            save(steps + 1)
        except CheckpointError as error:
            assert "Read-only file system" in str(error), error
        assert step_of(newest_checkpoint(run)) == steps
        print("survived", steps)
    """
    mount = 'mount -t tmpfs -o size=400k none "$0" && exec "$1" -c "$2" "$0"'
    arguments = [str(tmp_path), sys.executable, textwrap.dedent(program)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "survived" in done.stdout
    assert "log.jsonl: cannot be written, the disk is full" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 5, 11])
def test_a_run_stopped_by_a_signal_and_resumed_is_the_uninterrupted_run(payday, tmp_path, monkeypatch, number, step):
    original = Trainer._one_step

    def signalled(self):
        if self.step == step:
            os.kill(os.getpid(), number)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", signalled)
        with pytest.raises(Stopped) as stopped:
            train(payday, small(), tmp_path / "run")
    assert stopped.value.exit_code == 128 + number
    assert step_of(checkpoints(tmp_path / "run")[-1]) == step + 1
    train(payday, small(), tmp_path / "run", resume=True)
    train(payday, small(checkpoint_every=step + 1), tmp_path / "whole")
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def poison_inputs(trainer, patch):
    batch_at = trainer.batch_at

    def poisoned(step):
        batch = batch_at(step)
        batch.states["value"][0, 0] = float("nan")
        return batch

    trainer.batch_at = poisoned


def poison_returns(trainer, patch):
    batch_at = trainer.batch_at

    def poisoned(step):
        batch = batch_at(step)
        batch.returns_to_go[0, 0] = float("inf")
        return batch

    trainer.batch_at = poisoned


def poison_forward(trainer, patch):
    trainer.model.transformer.register_forward_hook(lambda module, arguments, output: output * float("nan"))


def poison_attention(trainer, patch):
    """One number of one key of one window."""
    module = next(module for module in trainer.model.modules() if isinstance(module, MultiHeadAttention))
    attend = module._attend

    def poisoned(q, k, v, visible, is_causal):
        k = k.clone()
        k[0, 0, 0, 0] = float("nan")
        return attend(q, k, v, visible, is_causal)

    patch.setattr(module, "_attend", poisoned)


def poison_loss(trainer, patch):
    loss = trainer.loss
    trainer.loss = lambda batch: (loss(batch)[0] * float("inf"), loss(batch)[1])


def poison_backward(trainer, patch):
    trainer.model.heads[0].linear.weight.register_hook(lambda gradient: gradient * float("nan"))


def poison_weight(trainer, patch):
    with torch.no_grad():
        trainer.model.embedding_norm.weight[0] = float("nan")


QUICK = (
    "--steps 60 --precision float32 --no-calibration --width 8 --num-layers 1 --context-length 2 --batch-size 2 "
    "--dropout 0 --device cpu"
)
QUICK = QUICK.split()
POISONS = [
    poison_inputs,
    poison_returns,
    poison_attention,
    poison_forward,
    poison_loss,
    poison_backward,
    poison_weight,
]


@pytest.mark.parametrize("poison", POISONS)
def test_what_is_not_finite_stops_before_the_update(payday, tmp_path, monkeypatch, poison):
    original, weights = Trainer._one_step, []

    def poisoned(self):
        if self.step == 5:
            poison(self, monkeypatch)
            weights.extend(parameter.clone() for parameter in self.model.parameters())
            weights.append(self)
        return original(self)

    monkeypatch.setattr(Trainer, "_one_step", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 5: loss .*episodes \[\d+.*nothing was updated") as stopped:
        train(payday, small(), tmp_path / "run")
    trainer = weights.pop()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(weights, trainer.model.parameters(), strict=True))
    assert stopped.value
    tensors = read_tensors(newest_checkpoint(tmp_path / "run") / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_command_ends_with_3_and_names_the_episode_whose_numbers_are_too_large(tmp_path, capsys):
    """Finite numbers, so the door lets them in; but the square of 1e30 is infinite in float32."""
    actions = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    actions[33] = 1e30
    arrays = {"observations": np.zeros((60, 3), np.float32), "actions": actions, "rewards": np.ones(60, np.float32)}
    np.savez(tmp_path / "huge.npz", **arrays, lengths=np.full(6, 10))
    space = {"type": "Box", "shape": [2], "low": [-1, -1], "high": [1, 1], "dtype": "float32"}
    command = ["train", str(tmp_path / "huge.npz"), "--output", str(tmp_path / "run"), "--held-out", "0"]
    command += ["--spaces", json.dumps({"action_space": space}), *QUICK, "--checkpoint-every", "1"]
    for options in ([], ["--resume"]):
        assert main([*command, *options]) == 3
        said = re.fullmatch(
            r"dt: step (\d+): loss (?:inf|nan), gradient norm (?:inf|nan) \(episodes \[(.*)\]\); nothing was updated",
            capsys.readouterr().err.splitlines()[-1],
        )
        assert said is not None
        assert "3" in said[2].split(", ")
        newest = newest_checkpoint(tmp_path / "run")
        assert step_of(newest) == int(said[1]) > 0
        assert all(tensor.isfinite().all() for tensor in read_tensors(newest / "model.safetensors").values())


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_a_moment_that_is_not_finite_is_never_saved(payday, tmp_path, monkeypatch, moment):
    """Nothing is wrong with loss and gradient then; the step's own update spoils the weights, and a save comes next."""
    original = Trainer._one_step

    def poisoned(self):
        if self.step == 7:
            next(iter(self.optimizer.state.values()))[moment].fill_(float("nan"))
        return original(self)

    monkeypatch.setattr(Trainer, "_one_step", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 8: model/\S+ is not finite; no checkpoint of it is made"):
        train(payday, small(), tmp_path / "run")
    assert step_of(newest_checkpoint(tmp_path / "run")) == 4


def test_too_little_memory_says_what_to_lower(payday, tmp_path, monkeypatch):
    def greedy(self, batch):
        torch.empty(2**60)

    monkeypatch.setattr("dt.model.DecisionTransformer.forward", greedy)
    words = "step 0: out of memory; lower batch_size 7 or context_length, or turn activation_checkpointing on"
    with pytest.raises(MemoryExhaustedError, match=words):
        train(payday, small(), tmp_path / "run")
    with pytest.raises(MemoryExhaustedError, match="batch_size 1000000000000 "):
        train(payday, small(batch_size=10**12), tmp_path / "greedier")


def test_a_model_too_large_says_what_to_lower(payday, tmp_path):
    wide = small(conditioning="none")
    wide = replace(wide, model=replace(wide.model, width=10**12))
    with pytest.raises(MemoryExhaustedError, match="the model: out of memory; lower width, num_layers"):
        train(payday, wide, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_alone_cannot_ask_for_more_weights_than_steps_to_learn_them_from(payday, tmp_path):
    far = replace(payday, environment=EnvironmentSpec("FarAway-v3", max_episode_steps=4_000_000))
    with pytest.raises(ConfigError, match=r"may last 4000000 steps, the longest recorded one has 10: --max-timesteps"):
        train(far, small(), tmp_path / "run")
    many = replace(
        payday, observation_space=spaces.Discrete(4_000_000), observations={"value": np.zeros(600, np.int64)}
    )
    with pytest.raises(ConfigError, match=r"Discrete\(4000000\): 4000000 values, and 600 steps to learn them from"):
        train(many, small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = small(steps=1)
    train(far, replace(config, model=replace(config.model, max_timesteps=20)), tmp_path / "run")
    train(
        far, replace(config, model=replace(config.model, positions="none")), tmp_path / "endless"
    )  # no table, no rows


def test_a_model_too_large_for_memory_says_what_to_lower(payday, tmp_path):
    config = small()
    config = replace(config, model=replace(config.model, max_timesteps=10**14))
    with pytest.raises(MemoryExhaustedError, match="the model: out of memory; lower width, num_layers, context_length"):
        train(payday, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), float("inf")])
def test_a_score_that_is_no_number_never_chooses_the_best(payday, tmp_path, monkeypatch, score):
    monkeypatch.setattr(
        "dt.learning.scoring.Scorer._returns", lambda *arguments: {"score": score if arguments[-1] < 8 else 1.0}
    )
    train(payday, small(evaluate_every=4), tmp_path / "run")
    assert best_step(tmp_path / "run") == 8
    train(payday, small(evaluate_every=4, steps=16), tmp_path / "run", resume=True)


def test_another_error_of_a_step_is_its_own(payday, tmp_path, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("dt.model.DecisionTransformer.forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(payday, small(), tmp_path / "run")


def test_settings_come_from_the_checkpoint_and_not_from_a_run_json_that_was_changed(payday, tmp_path):
    folder = tmp_path / "run"
    train(payday, small(steps=4), folder)
    document = read_json(folder / "run.json")
    document["config"]["training"]["learning_rate"] = 0.003
    write_json(folder / "run.json", document)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.001, now 0.003; a resumed run cannot"):
        train(payday, small(steps=8, learning_rate=0.003), folder, resume=True)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_where_python_drops_exceptions_still_ends_the_command(tmp_path, request, number, raised):
    """As in the weak references of h5py, in which a tenth of the interrupts of a `dt import` were lost."""

    class Thing:
        pass

    if number == signal.SIGINT:  # which a shell that starts something in the background lets it ignore
        request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))

    def fill():
        with distributed.resend_dropped_signals(), temporary_folder(tmp_path, ".filling-"):
            thing = Thing()
            watch = weakref.ref(thing, lambda _: signal.raise_signal(number))
            del thing
            assert watch() is None
            time.sleep(5)

    with pytest.raises(raised):
        fill()
    assert list(tmp_path.iterdir()) == []
