"""Datasets of the Hugging Face hub: names, revisions, and that nothing is fetched unless it is asked for."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from formats import LAYOUTS, recording
from test_readers import problem

from dt.cli import main
from envs import load
from envs.datasets.hub import HubName

SHAS = {"main": "a" * 40, "v2.0": "b" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of local folders, by commit, and what was fetched of it."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    server = SimpleNamespace(root=tmp_path / "server", fetched=[], revisions=dict(SHAS))

    def dataset_info(_, repository, revision=None):
        if repository != "someone/numbers":
            raise OSError(f"404 Client Error: {repository}\nmore of it")
        return SimpleNamespace(sha=server.revisions.get(revision, revision))

    def snapshot_download(repository, *, repo_type, revision, local_dir, allow_patterns, ignore_patterns):
        assert (repository, repo_type) == ("someone/numbers", "dataset")
        assert "*.mp4" in ignore_patterns
        server.fetched.append(revision)
        chosen = allow_patterns or [path.relative_to(server.root / revision) for path in files(server.root / revision)]
        for name in chosen:
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(server.root / revision / name, Path(local_dir) / name, follow_symlinks=False)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return server


def files(folder):
    return [path for path in folder.rglob("*") if not path.is_dir()]


NAME = "hf://datasets/someone/numbers"


def test_a_dataset_on_the_hub_is_fetched_when_it_is_asked_for(hub):
    LAYOUTS["lerobot 3"].write(hub.root / SHAS["main"], recording())
    LAYOUTS["lerobot 3"].write(hub.root / SHAS["v2.0"], recording(lengths=(2, 3)))
    problem(lambda: load(NAME), f"{NAME}: not fetched yet (--download fetches it)")
    assert hub.fetched == []
    dataset = load(NAME, download=True)
    assert dataset.lengths.tolist() == [3, 5, 2]
    assert dataset.name == "numbers"
    assert dataset.loaded_from == (f"{NAME}@{SHAS['main']}",)
    assert f"from the hub: {NAME}@{SHAS['main']}" in dataset.notes
    assert load(f"{NAME}@v2.0", download=True).lengths.tolist() == [2, 3]
    assert load(NAME).fingerprint == load(NAME, download=True).fingerprint == dataset.fingerprint
    assert hub.fetched == [SHAS["main"], SHAS["v2.0"]]
    hub.revisions["main"] = SHAS["v2.0"]  # what a run names is one commit, whatever becomes of the branch
    assert load(dataset.loaded_from[0]).fingerprint == dataset.fingerprint
    assert load(dataset.loaded_from[0], download=True).fingerprint == dataset.fingerprint


def test_a_run_remembers_the_commit(hub, tmp_path, capsys):
    LAYOUTS["lerobot 3"].write(hub.root / SHAS["main"], recording())
    small = ["--width", "16", "--num-layers", "1", "--num-heads", "1", "--context-length", "3", "--steps", "2"]
    assert main(["train", NAME, "--download", "--output", str(tmp_path / "run"), *small, "--reward", "last"]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"{NAME}@{SHAS['main']}" in (tmp_path / "run" / "run.json").read_text()
    assert len(hub.fetched) == 1
    capsys.readouterr()


def test_one_file_of_several_is_named(hub):
    folder = hub.root / SHAS["main"]
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("numbers")
    only = LAYOUTS["rows of episodes"].write(folder / "hopper", recording())
    assert load(NAME, download=True).lengths.tolist() == [3, 5, 2]
    shutil.rmtree(folder)
    hub.revisions["main"] = "c" * 40
    folder = hub.root / ("c" * 40)
    (folder / "data").mkdir(parents=True)
    only = LAYOUTS["rows of episodes"].write(folder / "data" / "hopper", recording())
    LAYOUTS["rows of episodes"].write(folder / "data" / "walker", recording(lengths=(4,)))
    named = f"{NAME}@{'c' * 40}"
    problem(lambda: load(named, download=True), "2 files in it, name one", f"{NAME}/data/hopper.parquet")
    dataset = load(f"{named}/data/walker.parquet", download=True)
    assert dataset.lengths.tolist() == [4]
    assert dataset.name == "walker"
    problem(lambda: load(f"{named}/data/ant.parquet"), "not fetched yet")
    assert only.exists()


def test_what_was_fetched_is_a_strangers_file(hub, tmp_path):
    folder = LAYOUTS["lerobot 2"].write(hub.root / SHAS["main"], recording())
    frames = folder / "data" / "chunk-000" / "episode_000000.parquet"
    frames.rename(tmp_path / "elsewhere.parquet")
    frames.symlink_to(tmp_path / "elsewhere.parquet")
    problem(lambda: load(NAME, download=True), "a link to what lies outside")
    problem(lambda: load("hf://datasets/some/other", download=True), "cannot be fetched (404 Client Error: some/other)")
    assert [path.name for path in (tmp_path / "cache" / "hub" / "some" / "other").iterdir()] == []


@pytest.mark.parametrize(
    "name", ["someone", "someone/numbers/../../x", "some one/x", "someone/numbers@", "a/b@main/../x", "", "/a/b"]
)
def test_names_that_are_none_are_refused(hub, name):
    problem(lambda: load(f"hf://datasets/{name}", download=True), "expected hf://datasets/USER/NAME[@REVISION][/PATH]")
    assert hub.fetched == []


def test_names_on_the_hub_have_parts():
    assert HubName.of(f"{NAME}@v2.0/data/a.parquet") == HubName("someone/numbers", "v2.0", "data/a.parquet")
    assert HubName.of(f"{NAME}/data/a.parquet") == HubName("someone/numbers", "main", "data/a.parquet")


def test_minaris_full_ids_stay_minaris(hub, monkeypatch):
    from envs import from_episodes, write_minari

    write_minari(from_episodes([vars(each) for each in recording()]), "D4RL/door/human-v2")
    dataset = load("hf://farama-minari/D4RL/door/human-v2")
    assert dataset.fingerprint == load("D4RL/door/human-v2").fingerprint
    asked = []
    monkeypatch.setattr("minari.download_dataset", asked.append)
    problem(lambda: load("hf://farama-minari/D4RL/pen/human-v2", download=True), "no dataset of that id in")
    assert asked == ["hf://farama-minari/D4RL/pen/human-v2"]
    problem(lambda: load("https://example.com/a.npz"), "not read from there")
