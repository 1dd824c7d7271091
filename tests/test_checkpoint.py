"""Checkpoints are complete or absent, damage is noticed, and nothing else is read."""

import json
import os
from pathlib import Path

import pytest
import torch

from transformer import files as module
from transformer.errors import CheckpointError
from transformer.files import read_json, write_json
from transformer.runs.checkpoint import (
    best_checkpoint,
    check_checkpoint,
    checkpoints,
    newest_checkpoint,
    prune,
    save_checkpoint,
    step_of,
)
from transformer.runs.folder import run_around
from transformer.weights import read_tensors


def save(run, step):
    return save_checkpoint(run, step, {"model": {"weight": torch.full((3,), float(step))}}, {"state": {"step": step}})


def test_what_was_saved_comes_back(tmp_path):
    folder = save(tmp_path, 7)
    assert step_of(folder) == 7
    check_checkpoint(folder)
    assert read_tensors(folder / "model.safetensors")["weight"].tolist() == [7, 7, 7]


def test_a_run_that_holds_query_and_key_value_apart_is_read_as_one_map(tmp_path):
    """What early versions wrote, weights and AdamW's moments alike."""
    names, apart = ("weight", "bias", "weight/exp_avg"), {"a.output.weight": torch.randn(4, 4)}
    for name in names:
        for part, rows in (("query", 4), ("key_value", 8)):
            apart[f"a.{part}.{name}"] = torch.randn(rows, *([] if name == "bias" else [4]))
            apart[f"a.{part}.{name.split('/')[0]}/step"] = torch.tensor(7.0)
    folder = save_checkpoint(tmp_path, 7, {"model": apart}, {})
    found = read_tensors(folder / "model.safetensors")
    assert found.keys() == {
        "a.output.weight",
        *(f"a.query_key_value.{n}" for n in (*names, "weight/step", "bias/step")),
    }
    for name in names:
        both = torch.cat([apart[f"a.query.{name}"], apart[f"a.key_value.{name}"]])
        assert torch.equal(found[f"a.query_key_value.{name}"], both)
    assert found["a.query_key_value.weight/step"].item() == 7


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "flip": lambda: path.write_bytes(content),
        "truncate": lambda: path.write_bytes(content[:-1]),
        "remove": path.unlink,
    }[damage]()
    told = []
    assert step_of(newest_checkpoint(tmp_path, told.append)) == 1
    assert len(told) == 1
    assert f"step-00000002/{name}: {'missing' if damage == 'remove' else 'damaged'}" in told[0]


def test_a_save_that_dies_leaves_nothing_under_the_checkpoints_name(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def die(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_sync", die)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: cannot be saved, the disk is full .*before it: step-00000001\Z"
    ):
        save(tmp_path, 2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, {"model": {"weight": torch.zeros(3)}}, {})
    assert read_tensors(newest_checkpoint(tmp_path) / "model.safetensors")["weight"].tolist() == [0, 0, 0]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    write_json(tmp_path / "best.json", {"step": 2, "score": 1.0})
    prune(tmp_path, keep=2, step=6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000005",
        "step-00000006",
    ]
    assert step_of(best_checkpoint(tmp_path)) == 2


def test_pruning_takes_no_folder_that_is_no_checkpoint(tmp_path):
    for name in ("step-0", "step-00000001"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "precious").write_text("mine")
    for step in range(2, 5):
        save(tmp_path, step)
    prune(tmp_path, keep=1, step=4)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-0", "step-00000001", "step-00000004"]


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read_as_json(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/null"), tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot be read \(not a file\)"):
            read_json(path)


def test_another_schema_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "schema": 99})
    with pytest.raises(CheckpointError, match="schema 99, this version reads 1"):
        check_checkpoint(folder)


def test_a_pickle_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_json_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_empty_run_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "7", "{", '{"step": "2"}', '{"step": true}', '{"step": null}'])
def test_a_best_that_names_no_step_is_refused_and_nothing_is_removed(tmp_path, content):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "best.json").write_text(content)
    for use in (best_checkpoint, lambda run: prune(run, keep=1, step=3)):
        with pytest.raises(
            CheckpointError, match=r"best.json: (step is missing|(step|it) must be|score is missing|cannot be read)"
        ):
            use(tmp_path)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 2, 3]


def test_a_best_without_its_checkpoint_is_refused_with_what_there_is(tmp_path):
    save(tmp_path, 5), save(tmp_path, 6)
    write_json(tmp_path / "best.json", {"step": 2, "score": 1.0})
    with pytest.raises(CheckpointError, match=r"best.json: names step 2, which has no checkpoint; there are: 5, 6\Z"):
        best_checkpoint(tmp_path)


def test_where_nothing_was_scored_the_newest_stands_in_and_that_is_said(tmp_path):
    save(tmp_path, 5), save(tmp_path, 6)
    told = []
    assert step_of(best_checkpoint(tmp_path, told.append)) == 6
    assert len(told) == 1
    assert "nothing was scored on the way" in told[0]


def test_what_lies_in_a_run_is_known(tmp_path):
    checkpoint = save(tmp_path / "run", 1)
    for folder in (tmp_path / "run", checkpoint):
        write_json(folder / "run.json", {})
    for inside in (checkpoint, checkpoint / "state.json", checkpoint.parent):
        assert run_around(inside) == tmp_path / "run"
    assert run_around(tmp_path / "run") is None
    assert run_around(checkpoint / "missing") is None
