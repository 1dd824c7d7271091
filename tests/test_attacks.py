"""Files made to harm: runs, cache entries and folders whose numbers, names and links were chosen by an attacker."""

import json
import os
import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import QUICK, run, trained  # noqa: F401
from test_nobody_gets_in import rewrite, text_run  # noqa: F401

from dt.cli import main
from envs import EnvironmentSpec, load
from envs.simulate.environments import MissingEnvError
from transformer.runs.checkpoint import LOCK, replace_text, write_json
from transformer.text.cli import main as text_main


def said(capsys, command, code=2, program=main):
    """The last line that a command prints to standard error, where it ends with this exit status."""
    capsys.readouterr()
    assert program([str(word) for word in command]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def resumed(run, trained):  # noqa: F811
    return ["train", trained.parent / "coins.npz", "--output", run, "--resume", "--steps", "7"]


# Weights.


def of_kind(kind):
    """All floating-point tensors of a file as another type, for `rewrite`."""

    def change(path):
        save_file({n: x.to(kind) if x.is_floating_point() else x for n, x in load_file(path).items()}, path)

    return change


KINDS = [torch.int8, torch.uint8, torch.bool, torch.int16, torch.int64, torch.uint16]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whole_numbers_and_flags_are_no_weights(run, kind, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", of_kind(kind))
    for command in (["inspect", run], ["evaluate", run]):
        assert f"is {kind}, expected torch.float32" in said(capsys, command)


def test_whole_numbers_are_no_weights_of_a_text_run(text_run, capsys):  # noqa: F811
    rewrite(text_run, "model.safetensors", of_kind(torch.int32))
    assert "is torch.int32, expected torch.float32" in said(capsys, ["generate", text_run], program=text_main)


def test_weights_of_half_the_width_are_weights(run, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", of_kind(torch.bfloat16))
    assert main(["inspect", str(run)]) == 0


# Names under which a file is written before it is complete.


def test_a_link_laid_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    names = iter(["laid", "free"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    for name in (f".scores.json.{os.getpid()}", ".scores.json.laid", ".scores.json"):
        (folder / name).symlink_to(tmp_path / "precious")
    replace_text(folder / "scores.json", "scores")
    assert next(names, None) is None  # both were tried
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (folder / "scores.json").is_symlink()
    assert (folder / "scores.json").read_text() == "scores"


def test_a_file_is_as_readable_as_any_and_its_name_may_be_long(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    os.umask(mask := os.umask(0o022))
    write_json(path, {})
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_in_place_of_a_runs_lock_is_not_followed(run, trained, tmp_path, capsys):  # noqa: F811
    (tmp_path / "precious").write_text("precious")
    (run / LOCK).unlink()
    (run / LOCK).symlink_to(tmp_path / "precious")
    assert f"{run / LOCK}: a link" in said(capsys, resumed(run, trained))
    assert (tmp_path / "precious").read_text() == "precious"


# Numbers and depths that no program writes.

ODD_LINES = {
    "a step of 400 digits": '{"step": 1' + "0" * 400 + "}",
    "a step of 5000 digits": '{"step": 1' + "0" * 5000 + "}",
    "a step of -400 digits": '{"step": -1' + "0" * 400 + "}",
    "endless nesting": "[" * 100_000,
    "a step that is a list": '{"step": []}',
    "no object": "5",
    "not a number": '{"step": NaN}',
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_a_log_of_odd_lines_is_gone_on_with_and_loses_them(run, trained, line, capsys):  # noqa: F811
    log = run / "log.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    assert main([str(word) for word in resumed(run, trained)]) == 0
    steps = [json.loads(text)["step"] for text in log.read_text().splitlines()]
    assert steps == sorted(steps)
    assert 7 in steps
    assert "Traceback" not in capsys.readouterr().err


RESULTS = [
    {"results": [{"mean_return": 10**400, "target_return": 1}]},
    {"results": [{"mean_return": 1.0, "target_return": 10**400}]},
    {"held_out": {"loss": 10**400, "leaves": [{"baseline": 1.0}]}},
    {"held_out": {"loss": 1.0, "leaves": [{"baseline": "x"}]}},
    {"results": "x" * 100},
    [],
]


@pytest.mark.parametrize("document", RESULTS, ids=lambda document: json.dumps(document)[:40])
def test_odd_results_do_not_keep_a_run_from_being_inspected(run, document, capsys):  # noqa: F811
    (run / "results" / "odd.json").write_text(json.dumps(document))
    (run / "results" / "deep.json").write_text("[" * 100_000)
    assert main(["inspect", str(run)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not the results of an evaluation" in line]
    assert len(lines) == 2


# Entries of the cache.


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A file that is in the cache, and the folder of its entry."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    rng, steps = np.random.default_rng(0), 60_000
    path = tmp_path / "big.npz"
    arrays = {"observations": rng.normal(size=(steps, 6)), "actions": rng.uniform(-1, 1, (steps, 2))}
    np.savez(path, **arrays, rewards=rng.normal(size=steps), lengths=np.full(600, 100), truncated=np.ones(600, bool))
    os.utime(path, (1e9, 1e9))
    load(path)
    (entry,) = (tmp_path / "cache").iterdir()
    return path, entry


def edited(entry, change):
    document = json.loads((entry / "dataset.json").read_text())
    change(document)
    (entry / "dataset.json").write_text(json.dumps(document))


def array_of(document, field):
    return next(each for each in document["arrays"] if each["field"] == field)


def overwrite(field, make):
    """Change the numbers of one array of an entry."""

    def attack(entry):
        document = json.loads((entry / "dataset.json").read_text())
        stored = array_of(document, field)
        path = entry / stored["file"]
        make(np.fromfile(path, stored["type"])).tofile(path)

    return attack


def typed(field, kind, shape=None):
    def change(document):
        array_of(document, field).update({"type": kind} | ({} if shape is None else {"shape": shape}))

    return lambda entry: edited(entry, change)


def replaced(make):
    """Something else in place of an entry's dataset.json."""

    def attack(entry):
        (entry / "dataset.json").unlink()
        make(entry / "dataset.json")

    return attack


ENTRIES = {
    "addresses of objects": typed("observations", "|O"),
    "addresses of objects in the rewards": typed("rewards", "|O"),
    "records": typed("observations", "f4,f4"),
    "times": typed("rewards", "<M8[s]"),
    "complex numbers": typed("rewards", "<c8", [60_000]),
    "a type that is no text": typed("rewards", ["<f8"]),
    "a shape past 64 bits": typed("rewards", "<f8", [2**33, 2**33, 2**33]),
    "a shape below zero": typed("rewards", "<f8", [-60_000]),
    "two axes of rewards": typed("rewards", "<f8", [30_000, 2]),
    "fewer rewards": overwrite("rewards", lambda x: x[:-1]),
    "offsets that fall": overwrite("offsets", lambda x: x[::-1].copy()),
    "offsets below zero": overwrite("offsets", lambda x: x - 5),
    "offsets past the end": overwrite("offsets", lambda x: x * 2),
    "episodes of no steps": overwrite("offsets", lambda x: np.where(x == 100, 0, x)),
    "actions in place of observations": typed("observations", "<f8", [60_000, 2, 3]),
    "a pipe": replaced(os.mkfifo),
    "a link": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a folder": replaced(os.mkdir),
    "endless nesting": lambda entry: (entry / "dataset.json").write_text("[" * 100_000),
    "no object": lambda entry: (entry / "dataset.json").write_text("5"),
    "another space": lambda entry: edited(entry, lambda d: d.update(observation_space='{"type": "Discrete", "n": 3}')),
}


@pytest.mark.parametrize("attack", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_of_the_cache_that_does_not_hold_together_is_made_again(cached, attack):
    path, entry = cached
    expected = load(path, cache="off")
    attack(entry)
    found = load(path)
    assert "fingerprint" in vars(found)
    assert [*vars(found)] == [*vars(load(path))]
    del vars(found)["fingerprint"]  # it is computed from the numbers, and not believed
    assert found.fingerprint == expected.fingerprint
    assert found.notes == expected.notes
    assert (entry / "dataset.json").is_file()


def test_an_entry_of_another_user_is_not_read(cached, monkeypatch):
    path, entry = cached
    expected = load(path, cache="off")
    overwrite("rewards", lambda x: x + 1)(entry)
    if os.geteuid() == 0:  # whose files all trust
        os.chown(entry, 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 2)
    found = load(path)
    assert found.fingerprint == expected.fingerprint
    assert found.notes[-1].endswith(f"{entry} belongs to another user")
    assert main(["inspect", str(path)]) == 0


def test_an_environment_of_an_entry_is_a_files_whatever_it_says(cached):
    path, entry = cached
    outward = {"id": "Payday-v0", "kwargs": {"limit": "../elsewhere"}, "max_episode_steps": None}
    edited(entry, lambda document: document.update(environment=outward, left_out=[], from_file=False))
    with pytest.raises(MissingEnvError, match="comes from a file"):
        load(path).environment.make()


def test_the_users_own_environment_is_trusted_from_the_cache_as_without(cached):
    path, _ = cached
    spec = EnvironmentSpec("Payday-v0", {"limit": "../elsewhere"})
    spaces_ = {"observation_space": load(path).observation_space, "action_space": load(path).action_space}
    for _ in range(2):
        assert not load(path, environment=spec, spaces=spaces_).environment.from_file
