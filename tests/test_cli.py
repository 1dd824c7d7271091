"""The command line as a user meets it: what it prints where, what it writes, and how it refuses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dt.cli import main
from envs.spaces import space_to_json
from transformer.checkpoint import checkpoints, read_json, step_of, write_json

QUICK = [
    "--steps",
    "6",
    "--width",
    "8",
    "--num-layers",
    "1",
    "--batch-size",
    "5",
    "--episodes",
    "2",
    "--device",
    "cpu",
    "--evaluate-every",
    "4",
]


@pytest.fixture
def recorded(payday, tmp_path) -> Path:
    """Payday's coins as an .npz file."""
    return write_npz(tmp_path / "coins.npz", payday)


def write_npz(path: Path, payday, environment: str = "Payday-v0") -> Path:
    finals = payday.observations["value"][9::10]
    metadata = {
        "dataset_id": "payday/coins-v0",
        "observation_space": space_to_json(payday.observation_space),
        "action_space": space_to_json(payday.action_space),
        "env_spec": json.dumps({"id": environment, "max_episode_steps": 20}),
        "ref_min_score": 0.0,
        "ref_max_score": 10.0,
    }
    np.savez(
        path,
        observations=np.insert(payday.observations["value"], np.arange(10, 601, 10), finals, axis=0),
        actions=payday.actions["value"],
        rewards=payday.rewards,
        lengths=np.full(60, 10),
        terminated=payday.terminated,
        metadata=json.dumps(metadata),
    )
    return path


@pytest.fixture
def run(recorded, tmp_path) -> Path:
    folder = tmp_path / "run"
    assert main(["train", str(recorded), "--output", str(folder), *QUICK, "--target-return", "2", "8"]) == 0
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys, arguments: list[str], words: str, code: int = 2) -> None:
    """The command exits with `code`, prints nothing on standard output and one line with these words on the other."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("dt: ")
    assert words in last


def test_train_leaves_a_run_and_prints_its_scores(run, capsys):
    results = {f"results/{name}" for name in ("last.json", "best.json", "asked-against-achieved.png")}
    assert results | {"run.json", "log.jsonl", "best.json"} <= files(run)
    assert read_json(run / "results" / "best.json")["seed"] != read_json(run / "results" / "last.json")["seed"]
    document = read_json(run / "results" / "last.json")
    assert [result["target_return"] for result in document["results"]] == [2.0, 8.0]


def test_evaluate_prints_a_table_and_writes_its_json(run, capsys, tmp_path):
    capsys.readouterr()
    path, plot = tmp_path / "scores.json", tmp_path / "plot.png"
    arguments = ["evaluate", str(run), "--target-return", "1", "5", "--episodes", "3", "--seed", "4"]
    assert main([*arguments, "--json", str(path), "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert "payday/coins-v0 in Payday-v0, checkpoint step-00000006" in out
    assert "normalised: 0 is 0, 100 is 10; the dataset's own metadata" in out
    assert "episode" not in out.splitlines()[0]
    assert "evaluate" in err  # the progress bar
    document = json.loads(path.read_text())
    assert (document["schema"], document["dataset"], document["environment"]) == (1, "payday/coins-v0", "Payday-v0")
    assert {"python", "torch", "gymnasium"} <= document["versions"].keys()
    for result, target in zip(document["results"], (1.0, 5.0), strict=True):
        assert result["target_return"] == target
        assert len(result["returns"]) == len(result["lengths"]) == 3
        assert result["mean_return"] == pytest.approx(np.mean(result["returns"]))
        assert result["std_return"] == pytest.approx(np.std(result["returns"]))
        assert result["normalized_score"] == pytest.approx(10 * result["mean_return"])
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_evaluate_gives_the_same_returns_for_any_number_of_worlds(run, tmp_path):
    documents = []
    for worlds in ("1", "7"):
        path = tmp_path / f"{worlds}.json"
        assert main(["evaluate", str(run), "--num-worlds", worlds, "--json", str(path), "--episodes", "2"]) == 0
        documents.append(json.loads(path.read_text())["results"])
    assert documents[0] == documents[1]
    assert len(documents[0]) > 3  # quantiles of the data's returns


def test_resume_goes_on_with_the_runs_own_configuration(run, recorded, capsys):
    assert main(["train", str(recorded), "--output", str(run), "--resume", "--steps", "9"]) == 0
    assert step_of(checkpoints(run)[-1]) == 9


def test_inspect_tells_what_data_and_runs_are(run, recorded, capsys):
    capsys.readouterr()
    assert main(["inspect", str(recorded)]) == 0
    out, _ = capsys.readouterr()
    for words in ("payday/coins-v0", "Payday-v0, at most 20 steps", "Discrete(2)", "60, 600 steps", "█"):
        assert words in out
    assert main(["inspect", str(run)]) == 0
    out, _ = capsys.readouterr()
    for words in ("decoupled, K 20, width 8", "payday/coins-v0, 60 episodes", "last: ", "6 steps of 5"):
        assert words in out


def test_a_film_is_made(tmp_path, capsys):
    folder = tmp_path / "run"
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    cartpole = tmp_path / "cartpole.npz"
    rng = np.random.default_rng(0)
    from gymnasium.envs.classic_control import CartPoleEnv

    world = CartPoleEnv()
    np.savez(
        cartpole,
        observations=rng.normal(0, 0.05, (12, 4)).astype(np.float32),
        actions=rng.integers(0, 2, 10),
        rewards=np.ones(10, np.float32),
        lengths=np.array([4, 6]),
        terminated=np.ones(2, bool),
        metadata=json.dumps(
            {
                "observation_space": space_to_json(world.observation_space),
                "action_space": space_to_json(world.action_space),
                "env_spec": json.dumps({"id": "CartPole-v1", "max_episode_steps": 15}),
            }
        ),
    )
    assert main(["train", str(cartpole), "--output", str(folder), *QUICK, "--target-return", "5"]) == 0
    films = tmp_path / "films"
    arguments = ["evaluate", str(folder), "--target-return", "5", "--episodes", "1", "--video", str(films)]
    assert main(arguments) == 0
    assert (films / "target-5.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "no/such-v0"], "no/such-v0: no such file or folder, and no dataset of that id in"),
        (["train", "{recorded}", "--device", "cuda"], "device cuda: no usable GPU"),
        (["train", "{recorded}", "--width", "10", "--num-heads", "3"], "num_heads 3 must divide width 10"),
        (["train", "{recorded}", "--learning-rate", "nan"], "learning_rate must be finite, not nan"),
        (
            ["train", "{recorded}", "--max-timesteps", "5"],
            "max_timesteps 5 is less than the data's longest episode, 10",
        ),
        (["train", "{recorded}", "--environment", "CartPole-v1"], "its observation space does not fit the data's"),
        (["train", "{recorded}", "--environment", "NoSuch-v3"], "environment NoSuch-v3: not registered; --import"),
        (["train", "{recorded}", "--import", "no_such_module"], "--import no_such_module: No module named"),
        (["train", "{recorded}", "--environment-kwargs", "{{"], "--environment-kwargs: not JSON"),
        (["train", "{recorded}", "--environment-kwargs", "{{}}x"], "--environment-kwargs: not JSON"),
        (["train", "{recorded}", "--resume"], "--resume needs --output"),
        (["inspect", "{recorded}.missing"], "no such file or folder"),
        (["evaluate", "no-such-run"], "no-such-run: no such run"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(recorded, capsys, monkeypatch, arguments, words):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        arguments = [*arguments[:-1], "cpu", "--learning-rate", "-1"]
        words = "learning_rate must be above 0"
    monkeypatch.chdir(recorded.parent)
    before = files(recorded.parent)
    filled = [argument.format(recorded=recorded) for argument in arguments]
    refused(
        capsys, [*filled, "--output", "run"] if filled[0] == "train" and "--resume" not in filled else filled, words
    )
    assert files(recorded.parent) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "hopper/replay-v0", "--steps", "many"], "--steps"),
        (["train", "hopper/replay-v0", "--no-such-option", "1"], "--no-such-option"),
        (["train"], "required"),
        (["evaluate", "run", "--device", "tpu"], "--device"),
    ],
)
def test_an_option_that_is_none_exits_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert words in "".join(capsys.readouterr())


def test_an_existing_run_is_refused_without_resume(run, recorded, capsys):
    before = files(run)
    refused(capsys, ["train", str(recorded), "--output", str(run), *QUICK], "exists already; --resume continues it")
    assert files(run) == before


def test_a_checkpoint_of_another_version_is_refused(run, capsys):
    for checkpoint in checkpoints(run):
        write_json(checkpoint / "manifest.json", {**read_json(checkpoint / "manifest.json"), "schema": 7})
    refused(capsys, ["evaluate", str(run)], "schema 7, this version reads 1")


def test_a_damaged_run_is_refused(run, capsys):
    for checkpoint in checkpoints(run):
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-3])
    refused(capsys, ["evaluate", str(run)], "model.safetensors: damaged")


def test_help_is_quick_and_names_every_option():
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dt", "train", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 20  # it loads no torch; a loaded machine is slow
    from dataclasses import fields

    from dt.config import EvaluationConfig, ModelConfig
    from transformer.config import TrainingConfig

    for config in (ModelConfig, TrainingConfig, EvaluationConfig):
        for field in fields(config):
            assert f"--{field.name.replace('_', '-')}" in done.stdout


def test_presets_are_the_papers_rows():
    from dt.presets import PRESETS

    for name, targets in (
        ("paper-hopper", (3600, 1800)),
        ("paper-halfcheetah", (12000, 6000)),
        ("paper-walker2d", (5000, 2500)),
    ):
        config = PRESETS[name]()
        model, training = config.model, config.training
        assert (model.context_length, model.width, model.num_layers, model.num_heads) == (20, 128, 3, 1)
        assert (model.conditioning, model.activation, model.dropout, model.return_scale) == ("token", "relu", 0.1, 1000)
        assert (training.batch_size, training.learning_rate, training.weight_decay) == (64, 1e-4, 1e-4)
        assert (training.warmup_steps, training.steps, training.gradient_clip) == (10_000, 100_000, 0.25)
        assert training.schedule == "constant"
        assert config.evaluation.target_return == targets


def test_the_atari_preset_is_the_papers_breakout():
    from dt.presets import PRESETS

    config = PRESETS["paper-breakout"]()
    model, training = config.model, config.training
    assert (model.context_length, model.width, model.num_layers, model.num_heads) == (30, 128, 6, 8)
    assert (model.conditioning, model.activation, model.frame_stack) == ("token", "gelu", 4)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (128, 6e-4, 0.1)
    assert (training.gradient_clip, training.schedule) == (1.0, "cosine")
    assert (config.evaluation.target_return, config.evaluation.temperature) == ((90.0,), 1.0)


def test_actions_are_drawn_where_a_temperature_is_given(run, tmp_path, capsys):
    def returns(*options):
        arguments = [
            "evaluate",
            str(run),
            "--target-return",
            "5",
            "--episodes",
            "9",
            "--json",
            str(tmp_path / "x.json"),
        ]
        assert main([*arguments, *options]) == 0
        document = read_json(tmp_path / "x.json")
        return document["temperature"], document["results"][0]["returns"]

    assert returns()[0] == 0
    assert returns("--temperature", "3.0") == returns("--temperature", "3.0", "--num-worlds", "2")
    assert returns("--temperature", "3.0")[0] == 3
    assert returns("--temperature", "3.0")[1] != returns()[1]
    refused(capsys, ["evaluate", str(run), "--temperature", "-1"], "temperature must be 0 or more and finite, not -1.0")


def test_frames_are_stacked_of_images_alone(recorded, tmp_path, capsys):
    arguments = ["train", str(recorded), "--output", str(tmp_path / "stacked"), "--frame-stack", "4"]
    refused(capsys, arguments, "frame_stack 4: the observations hold no images")
    assert not (tmp_path / "stacked").exists()


def test_a_preset_and_an_option_over_it(recorded, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["train", str(recorded), "--preset", "paper-hopper", "--output", str(folder), *QUICK]
    assert main([*arguments, "--target-return", "5"]) == 0
    config = read_json(folder / "run.json")["config"]
    assert config["model"]["conditioning"] == "token"
    assert config["model"]["width"] == 8
    assert config["training"]["learning_rate"] == 1e-4


def test_every_preset_can_be_chosen():
    from typing import get_args, get_type_hints

    from dt.cli import Train
    from dt.presets import PRESETS

    assert get_args(get_type_hints(Train)["preset"]) == tuple(PRESETS)


def test_a_world_that_is_not_here_stops_evaluation_and_not_training(payday, tmp_path, capsys):
    recorded, folder = write_npz(tmp_path / "far.npz", payday, "FarAway-v3"), tmp_path / "run"
    assert main(["train", str(recorded), "--output", str(folder), *QUICK]) == 0
    assert "no score: environment FarAway-v3: not registered" in capsys.readouterr().err
    assert step_of(checkpoints(folder)[-1]) == 6
    refused(capsys, ["evaluate", str(folder)], "environment FarAway-v3: not registered; --import MODULE registers it")
    assert main(["evaluate", str(folder), "--environment", "Payday-v0", "--episodes", "1"]) == 0


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"config": {"model": {}}}'])
def test_a_broken_run_json_is_refused_on_resume(run, recorded, capsys, content):
    (run / "run.json").write_text(content)
    refused(capsys, ["train", str(recorded), "--output", str(run), "--resume"], "")
