"""Runs on the Hugging Face hub: sent and fetched by the hub's own client, against a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, serving
from huggingface_hub import constants
from test_cli import refused, run, trained  # noqa: F401

import dt
from dt.cli import main
from dt.sharing.card import Card, escaped
from dt.sharing.hub import find_run, run_files
from dt.sharing.push import package_run, without_places
from envs.datasets.fetching import hub_reason
from transformer.errors import CheckpointError
from transformer.files import write_json
from transformer.runs.checkpoint import checkpoints

NAME = "someone/hopper-2.0"
HF = f"hf://{NAME}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and the settings of a user who is logged in there."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("logging.raiseExceptions", False)  # the client's log holds a stream of an earlier test
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
        yield server


def push(run: Path, *options: str) -> int:  # noqa: F811
    return main(["push", str(run), NAME, "--yes", *options])


def fetched(tmp_path: Path) -> list[str]:
    (folder,) = (tmp_path / "cache" / "hub-runs" / NAME).glob("?" * 40)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_goes_to_the_hub_and_comes_back(hub, run, tmp_path, capsys):  # noqa: F811
    assert push(run) == 0
    out = capsys.readouterr().out
    commit = hub.repositories[NAME].head
    assert out.splitlines()[-1] == f"{HF}@{commit}"
    sent = hub.files(NAME)
    assert sorted(set(sent) - {".gitattributes"}) == [
        "README.md",
        "checkpoints/step-00000006/manifest.json",
        "checkpoints/step-00000006/model.safetensors",
        "checkpoints/step-00000006/run.json",
        "results/last.json",
        "results/target-against-achieved.png",
        "run.json",
    ]
    for name, content in sent.items():
        assert name == ".gitattributes" or f"{len(content):>12,}  {name}" in out
    original = dt.load_run(run)
    with pytest.raises(CheckpointError, match=r"not fetched yet \(--download, in Python download=True, fetches it\)"):
        dt.load_run(HF)
    there = dt.load_run(HF, download=True)
    assert there.source == f"{HF}@{commit}"
    assert dt.load_run(there.source).source == there.source  # what is here needs no download
    weights = original.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in there.model.state_dict().items())
    assert fetched(tmp_path) == [
        *(f"checkpoints/step-00000006/{name}" for name in ("manifest.json", "model.safetensors", "run.json")),
        "results/last.json",
        "run.json",
    ]


def test_a_run_of_the_hub_is_evaluated_as_the_run_itself(hub, run, tmp_path, capsys):  # noqa: F811
    assert push(run) == 0
    asked = ["--target-return", "3", "--episodes", "2"]
    hub.requests.clear()
    refused(capsys, ["evaluate", HF, *asked], f"{HF}: not fetched yet (--download")
    assert hub.requests == []
    assert main(["evaluate", HF, "--download", *asked, "--json", str(tmp_path / "there.json")]) == 0
    assert f"{HF}@{hub.repositories[NAME].head} in {tmp_path}" in capsys.readouterr().err
    assert main(["evaluate", str(run), *asked, "--json", str(tmp_path / "here.json")]) == 0
    there, here = (json.loads((tmp_path / name).read_text()) for name in ("there.json", "here.json"))
    assert there.pop("run") == f"{HF}@{hub.repositories[NAME].head}"
    assert there == here
    refused(capsys, ["calibrate", HF], f"{HF}: this command takes a run's folder")


def test_a_revision_is_one_commit(hub, run, capsys):  # noqa: F811
    assert push(run) == 0
    first = hub.repositories[NAME].head
    assert dt.load_run(HF, download=True).source == f"{HF}@{first}"
    (run / "results" / "last.json").unlink()
    assert push(run) == 0
    assert "results/last.json" not in hub.files(NAME)
    second = hub.repositories[NAME].head
    assert dt.load_run(HF).source == f"{HF}@{first}"  # as it was fetched
    assert dt.load_run(f"{HF}@{second}", download=True).source == f"{HF}@{second}"
    refused(capsys, ["evaluate", f"{HF}@{'0' * 40}", "--download"], f"{HF}: cannot be fetched (no such revision)")


def test_the_best_checkpoint_is_sent_as_the_only_one(hub, run, tmp_path, capsys):  # noqa: F811
    write_json(run / "best.json", {"step": 4, "score": 1.0})
    model = json.loads((run / "checkpoints/step-00000004/manifest.json").read_text())["sha256"]["model.safetensors"]
    curve = {"guidance": 1.0, "requests": [1.0, 2.0], "returns": [[1.0], [2.0]]}
    calibration = {"schema": 1, "binding": {"checkpoint": model}, "curves": [curve], "steps": 2}
    write_json(run / "calibration-best.json", calibration)
    write_json(run / "calibration-last.json", calibration)  # of another checkpoint than the last
    results = json.loads((run / "results" / "last.json").read_text())
    write_json(run / "results" / "best.json", results)
    assert push(run, "--checkpoint", "best") == 0
    assert "results/best.json: of step-00000006, not of step-00000004" in capsys.readouterr().err
    sent = hub.files(NAME)
    assert "checkpoints/step-00000004/model.safetensors" in sent
    assert json.loads(sent["calibration-last.json"]) == calibration
    assert "results/last.json" not in sent
    assert dt.load_run(HF, download=True).checkpoint.name == "step-00000004"
    assert push(run) == 0  # the other checkpoint takes its place
    assert "calibration-last.json: not of this checkpoint" in capsys.readouterr().err
    steps = {name.split("/")[1] for name in hub.files(NAME) if name.startswith("checkpoints/")}
    assert steps == {"step-00000006"}
    assert "calibration-last.json" not in hub.files(NAME)


def test_nothing_is_sent_without_the_users_word(hub, run, capsys, monkeypatch):  # noqa: F811
    assert main(["push", str(run), NAME]) == 2
    out, err = capsys.readouterr()
    assert "model.safetensors" in out
    assert "--yes sends without asking" in err
    for answer, status in (("\n", "nothing was sent"), ("no\n", "nothing was sent"), ("y\n", f"dt evaluate {HF}")):
        assert hub.repositories == {}
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert main(["push", str(run), HF, "--private"]) == 0
        err = capsys.readouterr().err
        assert f"Send this to {HF}, for its owner only? [y/N]" in err
        assert status in err
    assert hub.repositories[NAME].private


class Terminal:
    def __init__(self, answer: str):
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answer


def test_a_place_on_this_machine_is_not_sent(hub, run, tmp_path):  # noqa: F811
    assert str(tmp_path.parent) in (run / "run.json").read_text()
    films = run / "results"
    for target in ("2", "10", "note"):
        (films / f"target-{target}.mp4").write_bytes(target.encode())
    assert push(run) == 0
    sent = hub.files(NAME)
    assert json.loads(sent["run.json"])["dataset"]["parts"][0]["source"] == "coins.npz"
    assert sent["replay.mp4"] == b"10"
    assert not [name for name, content in sent.items() if os.fsencode(tmp_path.parent) in content]


def test_notes_on_the_data_name_no_folder_of_this_machine(run):  # noqa: F811
    document = json.loads((run / "run.json").read_text())
    (part,) = document["dataset"]["parts"]
    known = [f"{part['source']}: as recorded", "/home/me/my logs/a.csv and ~/b/c.npz: no end", "m/s in a/b/c, 3/4/5"]
    document["dataset"]["notes"] = known
    document["dataset"]["parts"].append({**part, "source": "logs/secret.csv"})
    document["imported"] = "/home/me/models/old"
    sent = without_places(document)
    assert sent["dataset"]["notes"] == ["coins.npz: as recorded", "my logs/a.csv and c.npz: no end", known[2]]
    assert [each["source"] for each in sent["dataset"]["parts"]] == ["coins.npz", "secret.csv"]
    assert sent["imported"] == "old"
    assert document["dataset"]["notes"] == known


def test_the_card_has_the_scores_the_picture_and_the_command(run):  # noqa: F811
    package = package_run(run, NAME)
    text = package.files["README.md"].decode()
    _, header, body = text.split("---\n", 2)
    about = yaml.safe_load(header)
    results = json.loads((run / "results" / "last.json").read_text())["results"]
    best = max(results, key=lambda result: result["mean_return"])
    (metric,) = about["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == f"{best['mean_return']:.2f} ± {best['std_return']:.2f}"
    assert about["tags"][-1] == "Payday-v0"
    for result in results:
        numbers = (result["target_return"], result["mean_return"], result["std_return"])
        assert "| " + " | ".join(f"{number:.5g}" for number in numbers) + " | 2 |" in body
    assert "![Target and achieved returns](results/target-against-achieved.png)" in body
    assert f"dt evaluate {HF} --download --target-return" in body
    assert f'dt.load_run("{HF}", download=True)' in body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"environment": "Hopper-v5"}, "in Hopper-v5, the run's environment is Payday-v0"),
        ({"partial": {"signal": "SIGINT"}}, "the evaluation was stopped before its end"),
        ({"checkpoint": "step-00000004"}, "of step-00000004, not of step-00000006"),
        ({"results": [{"target_return": "<b>"}]}, "is missing"),
    ],
)
def test_other_results_are_not_in_the_card(run, change, reason):  # noqa: F811
    path = run / "results" / "last.json"
    write_json(path, json.loads(path.read_text()) | change)
    package = package_run(run, NAME)
    assert reason in package.left_out[0]
    assert f"scores: dt evaluate {run} --checkpoint last --json {path} writes them" in package.left_out
    assert not [name for name in package.files if name.startswith("results/")]
    assert "No scores are published" in package.files["README.md"].decode()


def test_names_in_a_run_command_neither_card_nor_header(run):  # noqa: F811
    document = json.loads((run / "run.json").read_text())
    document["environment"]["id"] = 'a"\n---\nlicense: stolen\n<img src=x onerror=y>\x1b[2J'
    document["dataset"]["name"] = "[click](http://x) | `b` | ![p](q)"
    results = json.loads((run / "results" / "last.json").read_text())
    text = Card("a/b", document, "step-00000006", results).text()
    _, header, body = text.split("---\n", 2)
    assert set(yaml.safe_load(header)) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert "<img" not in body
    assert "\x1b" not in text
    assert escaped("[click](http://x)") in body
    assert "](http://x" not in body
    assert "](q" not in body


# What goes wrong.


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if TOKEN in line] == []
    assert not [line for line in lines if "Traceback" in line]
    return lines[-1]


def test_a_wrong_token_is_refused_in_a_line(hub, run, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(run) == 2
    assert one_line(capsys) == (
        f"dt: {NAME}: cannot be sent (the access token is not accepted; log in with: hf auth login); "
        "nothing of the run is published"
    )
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    hub.requests.clear()
    assert push(run) == 2
    assert "no access token of the Hugging Face hub. Log in with: hf auth login" in one_line(capsys)
    assert hub.requests == []


def test_a_token_that_no_header_can_hold_is_not_printed(hub, run, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x01x")
    assert push(run) == 2
    assert "cannot be sent" in one_line(capsys)
    assert main(["evaluate", HF, "--download"]) == 2
    assert "cannot be fetched" in one_line(capsys)


@pytest.mark.parametrize("shown", [f"Bearer {TOKEN}", TOKEN, repr(f"{TOKEN}\x01")])
def test_a_reason_that_shows_the_token_is_not_printed(hub, monkeypatch, shown):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x01" if "x01" in shown else TOKEN)
    error = RuntimeError("while it was sent")
    error.__cause__ = ValueError(f"Illegal header value {shown}")
    reason = hub_reason(error)
    assert reason.startswith("ValueError; the access token may hold a character that none has; log in")
    assert TOKEN not in reason
    assert hub_reason(OSError("the disk is full\nmore")) == "the disk is full"


def test_an_interrupted_upload_publishes_nothing_and_the_next_one_all(hub, run, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.dropped = 100
    assert push(run) == 2
    assert "nothing of the run is published" in one_line(capsys)
    assert list(hub.files(NAME)) == [".gitattributes"]
    hub.dropped = 1  # one that the client gets over
    assert push(run) == 0
    assert dt.load_run(HF, download=True).source == f"{HF}@{hub.repositories[NAME].head}"


def test_no_hub_at_all(hub, run, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert push(run) == 2
    assert "refused" in one_line(capsys)
    assert main(["evaluate", HF, "--download"]) == 2
    assert "refused" in one_line(capsys)


def test_a_repository_of_something_else_is_left_alone(hub, run, capsys):  # noqa: F811
    assert push(run) == 0
    stored = hub.repositories[NAME]
    stored.add({".gitattributes": b"", "pytorch_model.bin": b"", "README.md": b"mine"})
    refused_by = list(stored.commits)
    assert push(run) == 2
    assert "holds 3 files of something else, such as pytorch_model.bin" in one_line(capsys)
    assert list(stored.commits) == refused_by
    assert push(run, "--private") == 2
    assert "exists and is public" in one_line(capsys)


def test_what_is_no_run_is_not_sent(hub, run, tmp_path, capsys):  # noqa: F811
    refused(capsys, ["push", str(tmp_path / "none"), NAME, "--yes"], "no such run")
    refused(capsys, ["push", str(run), "hopper", "--yes"], "expected hf://USER/NAME")
    refused(capsys, ["push", str(run), f"{NAME}@main", "--yes"], "a revision cannot be sent to")
    (run / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    refused(capsys, ["push", str(run), NAME, "--yes"], "damaged")
    assert hub.requests == []


def test_a_repository_that_is_missing_or_holds_no_run(hub, run, capsys):  # noqa: F811
    refused(capsys, ["evaluate", HF, "--download"], f"{HF}: cannot be fetched (no such repository, or a private one")
    assert push(run) == 0
    hub.repositories[NAME].add({"README.md": b"", "run.json": b"{}"})
    refused(capsys, ["evaluate", HF, "--download"], f"{HF}: cannot be fetched (there is no run in it")


@pytest.mark.parametrize(
    "name",
    [
        "../run.json",
        "checkpoints/step-00000006/../../../run.json",
        "checkpoints/step-00000006/../model.safetensors",
        "/run.json",
        "checkpoints/*/run.json",
        "results/../../last.json",
        "checkpoints/step-00000006/model.safetensors\n",
        "checkpoints/step-٠٠٠٠٠٠٠٦/run.json",
        "envs.py",
        ".cache/run.json",
        "run.json/",
    ],
)
def test_a_hostile_list_of_files_leads_nowhere(hub, run, tmp_path, name):  # noqa: F811
    assert push(run) == 0
    hub.listed = (name,)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    run_folder, _ = find_run(HF, download=True)
    assert run_folder.is_relative_to(tmp_path / "cache" / "hub-runs")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert len(fetched(tmp_path)) == 5
    assert run_files([name, "run.json", "checkpoints/step-00000006/model.safetensors"]) == [
        "checkpoints/step-00000006/model.safetensors",
        "run.json",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "hf://",
        "hf://a",
        "hf://../a",
        "hf://a/..",
        "hf://a/b@../c",
        "hf://a/b/c",
        "hf://a/b@",
        "hf://datasets/a",
        "hf://.a/b",
    ],
)
def test_names_that_are_none_are_refused(hub, source):
    with pytest.raises(CheckpointError, match=r"expected hf://USER/NAME\[@REVISION\]"):
        dt.load_run(source, download=True)
    assert hub.requests == []


def test_a_fetched_run_obeys_the_rules_of_a_strangers_folder(hub, run, tmp_path, capsys):  # noqa: F811
    assert push(run) == 0
    files = dict(hub.files(NAME))
    checkpoint = "checkpoints/step-00000006"
    hub.repositories[NAME].add({**files, f"{checkpoint}/model.safetensors": b"other weights"})
    refused(capsys, ["evaluate", HF, "--download"], "model.safetensors: damaged (its SHA-256 is not the manifest's)")
    document = json.loads(files["run.json"])
    document["environment"] = {"id": "hostile_module:Env-v0"}
    shutil.rmtree(tmp_path / "cache")
    hub.repositories[NAME].add({**files, "run.json": json.dumps({**document, "kind": "other"}).encode()})
    refused(capsys, ["evaluate", HF, "--download"], "not a Decision Transformer's run")
    assert "hostile_module" not in sys.modules


def test_the_token_is_in_no_output_and_in_no_file(hub, run, tmp_path):  # noqa: F811
    """As a user does it: commands of their own, HF_ENDPOINT and HF_TOKEN in the environment."""
    home = tmp_path / "home"
    home.mkdir()
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "HOME": str(home)}
    env = {**os.environ, **settings, "TMPDIR": str(home)}
    pushing = "import sys; from dt.cli import main; sys.exit(main(sys.argv[1:]))"
    fetching = "import sys; from dt.sharing.hub import find_run; print(find_run(sys.argv[1], download=True)[1])"
    for program, *words in ((pushing, "push", str(run), NAME, "--yes"), (fetching, HF)):
        command = [sys.executable, "-c", program, *words]
        root = Path(__file__).parent.parent
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=root)
        assert done.returncode == 0, done.stderr
        assert f"{HF}@{hub.repositories[NAME].head}" in done.stdout
        assert TOKEN not in done.stdout + done.stderr
    assert checkpoints(find_run(HF)[0])
    held = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert held == []


def test_pushing_needs_no_torch(run, tmp_path):  # noqa: F811
    program = (
        "import sys\nfrom pathlib import Path\nfrom dt.sharing.push import package_run\n"
        "package_run(Path(sys.argv[1]), 'a/b')\nprint('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.split() == ["False", "False"]
