"""The command line as a user meets it: what it prints where, what it writes, and how it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import Payday
from tyro.conf import Positional

from dt import Config
from dt import config as dt_config
from dt.asking.guidance import Request
from dt.cli import main
from dt.evaluation import TargetResult
from dt.learning.description import read_description
from dt.sharing import video
from envs.errors import MissingEnvError
from envs.space_json import space_to_json
from transformer.errors import ConfigError
from transformer.files import read_json, write_json
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.command_line import RENAMED, parse
from transformer.text.cli import main as text_main
from transformer.weights import read_tensors

QUICK = [
    "--positions",
    "timesteps",
    "--no-rotary",
    "--precision",
    "float32",
    "--no-calibration",
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


def write_npz(path: Path, payday, environment: str = "Payday-v0", **changes) -> Path:
    finals = payday.observations["value"][9::10]
    metadata = {
        "dataset_id": "payday/coins-v0",
        "observation_space": space_to_json(payday.observation_space),
        "action_space": space_to_json(payday.action_space),
        "env_spec": json.dumps({"id": environment, "max_episode_steps": 20}),
        "ref_min_score": 0.0,
        "ref_max_score": 10.0,
        **changes,
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


@pytest.fixture(scope="module")
def trained(payday, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recorded = write_npz(folder / "coins.npz", payday)
    assert main(["train", str(recorded), "--output", str(folder / "run"), *QUICK, "--target-return", "2", "8"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A small run of Payday's coins, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


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
    results = {f"results/{name}" for name in ("last.json", "best.json", "target-against-achieved.png")}
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
    assert "evaluate: episode 6 of 6, " in err  # the progress
    document = json.loads(path.read_text())
    assert (document["schema"], document["dataset"], document["environment"]) == (1, "payday/coins-v0", "Payday-v0")
    assert document["environment_spec"] == {"id": "Payday-v0", "kwargs": {}, "max_episode_steps": 20}
    assert {"python", "torch", "gymnasium"} <= document["versions"].keys()
    for result, target in zip(document["results"], (1.0, 5.0), strict=True):
        assert result["target_return"] == target
        assert len(result["returns"]) == len(result["lengths"]) == 3
        assert result["mean_return"] == pytest.approx(np.mean(result["returns"]))
        assert result["std_return"] == pytest.approx(np.std(result["returns"]))
        assert result["normalized_score"] == pytest.approx(10 * result["mean_return"])
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_auto_chooses_a_target_on_environments_that_do_not_score_it(run, tmp_path, monkeypatch, capsys):
    def known(policy, environment, targets, *, episodes, seed, **_):
        """A policy that earns most when asked for 4, and in each environment the number of its seed beside."""
        asked = [target.return_to_go if isinstance(target, Request) else target for target in targets]
        return [
            TargetResult(g, tuple(seed + i - abs(g - 4) for i in range(episodes)), (1,) * episodes, None) for g in asked
        ]

    monkeypatch.setattr("dt.cli.scores.evaluate", known)
    path = tmp_path / "scores.json"
    arguments = ["evaluate", str(run), "--seed", "7", "--episodes", "5", "--json", str(path)]
    assert main([*arguments, "--target-return", "auto"]) == 0
    document = read_json(path)
    assert document["sweep"]["chosen"] == 4
    assert [result["target_return"] for result in document["results"]] == [4, 10]
    assert [result["returns"][0] for result in document["results"]] == [7, 1]
    played = [result["target_return"] for result in document["sweep"]["results"]]
    assert played == 2 * [*read_json(run / "run.json")["dataset"]["targets"], 11.5, 13.0]
    swept = {
        seed + abs(g - 4) for g, r in zip(played, document["sweep"]["results"], strict=True) for seed in r["returns"]
    }
    assert min(swept) == document["sweep"]["seed"] > 7 + 5
    assert "\ntarget 4 with guidance 1 earned most; scored on other seeds" in capsys.readouterr().out
    assert main([*arguments, "--target-return", "4"]) == 0
    assert "sweep" not in read_json(path)


def test_a_resumed_run_may_be_told_its_flags_again(recorded, tmp_path, capsys):
    """Also those that are its own by now: the same command, with --resume."""
    arguments = ["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "3"]
    arguments.remove("--no-rotary")
    assert main([*arguments, "--rotary"]) == 0
    assert main([*arguments, "--rotary", "--resume"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--no-rotary", "--resume"]) == 2
    assert "rotary was True, now False" in capsys.readouterr().err
    assert main([*arguments, "--rotary", "--no-rotary"]) == 2
    assert "--rotary is given twice" in capsys.readouterr().err


def test_what_stands_behind_two_dashes_is_no_option(recorded):
    said = parse(Said, "say", ["--loud", "--", "--a", "--a"], "")
    assert said == Said(words=("--a", "--a"), loud=True)
    with pytest.raises(ConfigError, match="--loud is given twice"):
        parse(Said, "say", ["--loud", "--no-loud"], "")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_option_by_an_older_name_is_refused_with_its_new_name(old, new, capsys):
    program, command = ("dt", "evaluate") if "env" in new else ("dt-text", "translate")
    run = main if program == "dt" else text_main
    for words in ([old, "3"], [f"{old}=3"], [old.replace("-", "_").replace("__", "--"), "3"]):
        assert run([command, "no-such-run", *words]) == 2
        assert capsys.readouterr().err == f"{program}: {old}: this option is now called {new}\n"


def test_a_run_of_before_its_settings_had_these_names_is_read(recorded, tmp_path):
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--num-envs", "3"]) == 0
    path = tmp_path / "run" / "run.json"
    document = read_json(path)
    evaluation = document["config"]["evaluation"]
    for old, new in dt_config.RENAMED.items():
        evaluation[old] = evaluation.pop(new)
    path.write_text(json.dumps(document))
    read = Config.from_json(read_description(path)["config"])
    assert (read.evaluation.num_envs, read.evaluation.env_timeout) == (3, None)
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert read_json(path)["config"] == read.to_json()


@dataclass(frozen=True, kw_only=True)
class Said:
    words: Positional[tuple[str, ...]] = ()
    loud: bool = False


def test_training_reports_the_chosen_target_and_the_datas_best(recorded, tmp_path):
    folder = tmp_path / "auto"
    arguments = ["train", str(recorded), "--output", str(folder), *QUICK]
    assert main([*arguments, "--target-return", "auto"]) == 0
    longer = ["7" if before == "--steps" else word for before, word in zip(["", *arguments], arguments, strict=False)]
    assert main([*longer, "--resume"]) == 0  # with its own configuration
    for which in ("last", "best"):
        document = read_json(folder / "results" / f"{which}.json")
        assert {result["target_return"] for result in document["results"]} == {document["sweep"]["chosen"], 10.0}
        tried = {(each["guidance"], each["target_return"]) for each in document["sweep"]["results"]}
        targets = [*read_json(folder / "run.json")["dataset"]["targets"], 11.5, 13.0]  # and beyond the data
        assert tried == {(guidance, target) for guidance in (1.0, 2.0) for target in targets}
        assert (document["sweep"]["guidance"], document["sweep"]["chosen"]) in tried
    assert read_json(folder / "run.json")["config"]["evaluation"]["target_return"] == "auto"


def test_a_clone_is_scored_at_one_target_that_it_does_not_hear(recorded, tmp_path, capsys):
    folder = tmp_path / "clone"
    assert main(["train", str(recorded), "--output", str(folder), *QUICK, "--conditioning", "none"]) == 0
    assert main(["evaluate", str(folder), "--episodes", "2"]) == 0
    asked = [row.split()[0] for row in capsys.readouterr().out.splitlines() if row.split()[0].isdecimal()]
    assert asked == ["10"] * 3  # last, best, asked again: the data's maximum alone
    assert main(["evaluate", str(folder), "--target-return", "1", "9", "--json", str(tmp_path / "scores.json")]) == 0
    low, high = read_json(tmp_path / "scores.json")["results"]
    assert low["returns"] == high["returns"]


def test_evaluate_gives_the_same_returns_for_any_number_of_environments(run, tmp_path):
    documents = []
    for environments in ("1", "7"):
        path = tmp_path / f"{environments}.json"
        assert main(["evaluate", str(run), "--num-envs", environments, "--json", str(path), "--episodes", "2"]) == 0
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
    for words in ("single, K 20, width 8", "payday/coins-v0, 60 episodes", "last: ", "6 steps of 5"):
        assert words in out


def test_films_begin_at_the_reset_and_are_told_apart(tmp_path, monkeypatch):
    import imageio.v2 as imageio
    from gymnasium.envs.classic_control import CartPoleEnv

    folder = tmp_path / "run"
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    cartpole = tmp_path / "cartpole.npz"
    rng = np.random.default_rng(0)
    env = CartPoleEnv()
    np.savez(
        cartpole,
        observations=rng.normal(0, 0.05, (12, 4)).astype(np.float32),
        actions=rng.integers(0, 2, 10),
        rewards=np.ones(10, np.float32),
        lengths=np.array([4, 6]),
        terminated=np.ones(2, bool),
        metadata=json.dumps(
            {
                "observation_space": space_to_json(env.observation_space),
                "action_space": space_to_json(env.action_space),
                "env_spec": json.dumps({"id": "CartPole-v1", "max_episode_steps": 15}),
            }
        ),
    )
    assert main(["train", str(cartpole), "--output", str(folder), *QUICK, "--target-return", "5"]) == 0
    alive = watch_pictures(monkeypatch)
    films, scores = tmp_path / "films", tmp_path / "scores.json"
    films.mkdir()
    (tmp_path / "precious").write_text("precious")
    (films / ".target-5.mp4").symlink_to(tmp_path / "precious")  # laid in wait for what is not complete
    arguments = ["evaluate", str(folder), "--target-return", "5", "5.0000001", "--episodes", "1", "--seed", "3"]
    assert main([*arguments, "--video", str(films), "--json", str(scores)]) == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert files(films) == {".target-5.mp4", "target-5.mp4", "target-5.0000001.mp4"}
    (length,) = read_json(scores)["results"][0]["lengths"]
    with imageio.get_reader(films / "target-5.mp4") as film:
        assert film.count_frames() == length + 1  # what the reset shows, and what each step
        env = CartPoleEnv(render_mode="rgb_array")
        env.reset(seed=3)
        expected, first = env.render().astype(float), film.get_data(0)
    assert np.abs(first[: expected.shape[0], : expected.shape[1]] - expected).mean() < 3
    assert length > 5
    assert max(alive) <= 2  # pictures go to the file one by one

    def killed(environments, policy, request, show):
        play(environments, policy, request, lambda picture: [show(picture), signal.raise_signal(signal.SIGTERM)])

    play = video._play
    monkeypatch.setattr(video, "_play", killed)
    assert main([*arguments, "--video", str(tmp_path / "killed")]) == 143
    assert files(tmp_path / "killed") == set()


def watch_pictures(monkeypatch) -> list[int]:
    """How many of the pictures taken so far are still in memory, at each new one."""
    from envs.simulate.environments import Environments

    original, taken, alive = Environments.render, [], []

    def watched(self, env):
        picture = original(self, env)
        taken.append(weakref.ref(picture))
        alive.append(sum(reference() is not None for reference in taken))
        return picture

    monkeypatch.setattr(Environments, "render", watched)
    return alive


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "no/such-v0"], "no/such-v0: no such file or folder, and no dataset of that id in"),
        (["train", "{recorded}", "--device", "cuda"], "device cuda: no usable GPU"),
        (["train", "{recorded}", "--width", "10", "--num-heads", "3"], "num_heads 3 must divide width 10"),
        (["train", "{recorded}", "--seed", "9" * 20], "seed must be a whole number of 64 bits, not 99999"),
        (
            ["train", "{recorded}", "--steps", str(2**63)],
            "steps must be a whole number of 64 bits, not 9223372036854775808",
        ),
        (["train", "{recorded}", "--fraction", "inf"], "fraction[0] must be a finite number, not inf"),
        (["evaluate", "{recorded}", "--seed", "9" * 20], "seed must be a whole number of 64 bits, not 99999"),
        (["train-many", "{recorded}", "--seeds", "1", "9" * 20], "seeds[1] must be a whole number of 64 bits, not 999"),
        (["train", "{recorded}", "--learning-rate", "nan"], "learning_rate must be a finite number, not nan"),
        (
            ["train", "{recorded}", "--positions", "timesteps", "--max-timesteps", "5"],
            "max_timesteps 5 is less than the data's longest episode, 10",
        ),
        (["train", "{recorded}", "--environment", "CartPole-v1"], "its observation space does not fit the data's"),
        (["train", "{recorded}", "--environment", "NoSuch-v3"], "environment NoSuch-v3: not registered; --import"),
        (["train", "{recorded}", "--import", "no_such_module"], "no_such_module: ModuleNotFoundError: No module"),
        (["train", "{recorded}", "--environment-kwargs", "{{"], "--environment-kwargs: not JSON"),
        (["train", "{recorded}", "--environment-kwargs", "{{}}x"], "--environment-kwargs: not JSON"),
        (["train", "{recorded}", "--resume"], "--resume needs --output"),
        (
            ["train", "{recorded}", "--positions", "timesteps", "--max-timesteps", "15"],
            "up to 20 steps, the model knows 15 timesteps",
        ),
        (
            ["train", "{recorded}", "--max-timesteps", "15"],
            "rows of a timestep table, which only --positions timesteps",
        ),
        (["inspect", "{recorded}.missing"], "no such file or folder"),
        (["evaluate", "no-such-run"], "no-such-run: no such run"),
        (["train", "{recorded}", "--environment-kwargs", "[" * 60_000], "--environment-kwargs: not JSON: [["),
        (
            ["train", "{recorded}", "--env-timeout", "1e300"],
            "env_timeout must be above 0 and at most 1e6",
        ),
        (
            ["train", "{recorded}", "--target-return", "1e300"],
            "target_return must be finite and at most 1e+38",
        ),
        (["train-many", "{recorded}", "--minutes", "nan"], "minutes must be a finite number or null, not nan"),
        (["train-many", "{recorded}", "--minutes", "-5"], "minutes must be 0 or more and finite, not -5"),
        (
            ["record", "CartPole-v1", "mine/x-v0", "--policy", "random", "--seed", "-5"],
            "seed must be at least 0 and below",
        ),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(recorded, capsys, monkeypatch, arguments, words):
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
        (["evaluate"], "required"),
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


@pytest.mark.parametrize("command", ["train", "train-many", "evaluate", "inspect", "report"])
def test_help_shows_no_empty_default_except_that_of_targets(command, capsys):
    """The text of --target-return says what is taken without any."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert words.count("(default: )") == words.count("next to the maximum. (default: )")


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
    assert returns("--temperature", "3.0") == returns("--temperature", "3.0", "--num-envs", "2")
    assert returns("--temperature", "3.0")[0] == 3
    assert returns("--temperature", "3.0")[1] != returns()[1]
    refused(capsys, ["evaluate", str(run), "--temperature", "-1"], "temperature must not be negative, not -1.0")


def test_evaluate_plays_in_bf16_or_from_a_cache_where_it_is_told_to(run, tmp_path, monkeypatch):
    from dt.policy import ReturnConditionedPolicy

    asked, make = [], ReturnConditionedPolicy.__init__
    monkeypatch.setattr(
        ReturnConditionedPolicy, "__init__", lambda self, model, **how: asked.append(how) or make(self, model, **how)
    )
    for options, precision, cached in (
        ([], "float32", False),
        (["--precision", "bf16"], "bf16", False),
        (["--cached"], "float32", True),
    ):
        scores = tmp_path / "scores.json"
        assert (
            main(["evaluate", str(run), "--target-return", "5", "--episodes", "2", "--json", str(scores), *options])
            == 0
        )
        document = read_json(scores)
        assert (document["precision"], document["cached"]) == (precision, cached)
        assert (asked[-1]["precision"], asked[-1]["cached"]) == (precision, cached)


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


@pytest.mark.parametrize("arguments", [["--preset", "paper-hopper"], ["--preset=paper-hopper"]])
def test_a_preset_is_chosen_in_either_spelling(arguments):
    from dt.cli.program import _parse

    command = _parse(["train", "hopper/replay-v0", *arguments, "--width", "8"])
    assert (command.config.model.conditioning, command.config.model.width) == ("token", 8)


@pytest.mark.parametrize("arguments", [["--preset", "demo"], ["--preset=default"]])
def test_a_preset_and_a_run_to_resume_are_one_too_many(run, recorded, capsys, arguments):
    before = files(run)
    words = "starts a run, --resume goes on with a run's own configuration"
    refused(capsys, ["train", str(recorded), "--output", str(run), "--resume", *arguments], words)
    assert files(run) == before


def test_every_preset_can_be_chosen():
    from typing import get_args, get_type_hints

    from dt.cli.options import Train
    from dt.presets import PRESETS

    assert get_args(get_type_hints(Train)["preset"]) == tuple(PRESETS)


def test_an_environment_that_is_not_here_leaves_the_error_on_held_out_episodes(payday, tmp_path, capsys):
    recorded, folder = write_npz(tmp_path / "far.npz", payday, "FarAway-v3"), tmp_path / "run"
    assert main(["train", str(recorded), "--output", str(folder), *QUICK]) == 0
    output = capsys.readouterr()
    assert "no returns: environment FarAway-v3: not registered" in output.err
    assert "on 60 steps of 6 held-out episodes" in output.out
    assert step_of(checkpoints(folder)[-1]) == 6
    assert main(["evaluate", str(folder)]) == 0
    output = capsys.readouterr()
    assert "environment FarAway-v3: not registered; --import MODULE registers it" in output.err
    assert "on 60 steps of 6 held-out episodes" in output.out
    assert main(["evaluate", str(folder), "--environment", "Payday-v0", "--episodes", "1"]) == 0


def test_the_environment_of_a_run_with_held_out_episodes_is_tried_with_the_time_limit(recorded, tmp_path, monkeypatch):
    """In a process of its own, since it may hang when it is made."""
    folder, limits = tmp_path / "run", []
    assert main(["train", str(recorded), "--output", str(folder), "--held-out", "0.2", *QUICK]) == 0

    def absent(maker, num_envs, env_timeout=None):
        limits.append(env_timeout)
        raise MissingEnvError("not here")

    monkeypatch.setattr("dt.evaluation.Environments", absent)
    main(["evaluate", str(folder), "--env-timeout", "60"])
    assert limits == [60.0]


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"config": {"model": {}}}'])
def test_a_broken_run_json_is_refused_on_resume(run, recorded, capsys, content):
    (run / "run.json").write_text(content)
    refused(capsys, ["train", str(recorded), "--output", str(run), "--resume"], "")


def test_a_run_without_a_checkpoint_is_refused(run, capsys):
    shutil.rmtree(run / "checkpoints")
    for command in ("inspect", "evaluate"):
        refused(capsys, [command, str(run)], f"{run}: no checkpoint in it")


@pytest.fixture
def nothing_is_played(monkeypatch):
    """Any step of any environment fails the test."""
    from envs.simulate.environments import Environments

    monkeypatch.setattr(Environments, "step", lambda *_: pytest.fail("an environment was stepped"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "{folder}"], ": is a folder, a file is meant"),
        (["--plot", "{folder}"], ": is a folder, a file is meant"),
        (["--json", "{folder}/no/scores.json"], "scores.json: its folder does not exist"),
        (["--plot", "{folder}/no/plot.png"], "plot.png: its folder does not exist"),
        (["--plot", "{folder}/plot.pgn"], "plot.pgn: no kind of picture; its name must end in one of "),
        (["--plot", "{folder}/plot"], "plot: no kind of picture"),
        (["--video", "{folder}/run.json"], "run.json: is a file, a folder is meant"),
        (["--json", "{folder}/../stdout"], "stdout: a link, a pipe or a device"),
        (["--json", "{folder}/../link.json"], "link.json: a link, a pipe or a device"),
        (["--plot", "{folder}/../pipe.png"], "pipe.png: a link, a pipe or a device"),
        (["--json", "{folder}/run.json"], "run.json: a part of the run "),
        (["--json", "{folder}/../linked/best.json"], "best.json: a part of the run "),
        (["--json", "{folder}/checkpoints/step-00000006/state.json"], "state.json: a part of the run "),
        (["--plot", "{folder}/checkpoints/new.png"], "new.png: a part of the run "),
        (["--video", "{folder}/checkpoints/step-00000006"], "step-00000006: a part of the run "),
        (["--video", "{folder}/films"], "render_mode"),  # Payday shows no pictures
    ],
)
@pytest.mark.usefixtures("nothing_is_played")
def test_what_could_not_be_written_is_refused_before_anything_is_played(run, capsys, options, words):
    (run.parent / "link.json").symlink_to(run / "run.json")
    (run.parent / "linked").symlink_to(run)
    (run.parent / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout, which a test that fails may replace
    os.mkfifo(run.parent / "pipe.png")
    before = files(run)
    refused(capsys, ["evaluate", str(run), *[option.format(folder=run) for option in options]], words)
    assert files(run) == before


@pytest.mark.usefixtures("nothing_is_played")
def test_a_folder_that_may_not_be_written_to_is_refused(run, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # a test that runs as root may write anywhere
    refused(capsys, ["evaluate", str(run), "--json", str(run / "x.json")], "x.json: its folder may not be written to")


class Dark(Payday):
    """Payday on a machine that cannot draw."""

    metadata: typing.ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        raise RuntimeError("no screen and no EGL")


@pytest.mark.usefixtures("nothing_is_played")
def test_films_on_a_machine_that_cannot_draw_are_refused_before_anything_is_played(run, capsys):
    gymnasium.register("Dark-v0", Dark, max_episode_steps=20)
    try:
        arguments = ["evaluate", str(run), "--environment", "Dark-v0", "--video", str(run / "films")]
        refused(capsys, arguments, "environment 0, no picture: RuntimeError: no screen and no EGL")
    finally:
        del gymnasium.registry["Dark-v0"]
    assert not (run / "films").exists()


@pytest.mark.parametrize("module", ["imageio", "imageio_ffmpeg"])
@pytest.mark.usefixtures("nothing_is_played")
def test_films_without_their_library_are_refused_before_anything_is_played(run, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    refused(capsys, ["evaluate", str(run), "--video", str(run / "films")], "--video needs imageio and ffmpeg: pip")
    assert not (run / "films").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"step": 99, "score": 1.0}', "best.json: names step 99, which has no checkpoint; there are: 4, 6"),
        ("{}", "best.json: score is missing"),
    ],
)
def test_a_broken_best_is_refused(run, capsys, content, words):
    (run / "best.json").write_text(content)
    refused(capsys, ["evaluate", str(run), "--checkpoint", "best"], words)
    assert main(["evaluate", str(run), "--episodes", "1", "--target-return", "5"]) == 0  # the last is as good as ever


def test_checkpoint_and_seed_reach_the_evaluation(run, monkeypatch):
    from dt.policy import ReturnConditionedPolicy

    write_json(run / "best.json", {"step": 4, "score": 1.0})
    seeds, weights, reset, make = [], [], Payday.reset, ReturnConditionedPolicy.__init__

    def noting_seeds(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    def noting_weights(self, model, **options):
        weights.append(model.heads[0].linear.weight.detach().clone())
        make(self, model, **options)

    monkeypatch.setattr(Payday, "reset", noting_seeds)
    monkeypatch.setattr(ReturnConditionedPolicy, "__init__", noting_weights)
    scores = run / "scores.json"
    arguments = ["evaluate", str(run), "--target-return", "5", "--episodes", "3", "--json", str(scores)]
    for checkpoint, seed in (("best", 40), ("last", 70)):
        assert main([*arguments, "--checkpoint", checkpoint, "--seed", str(seed)]) == 0
        document = read_json(scores)
        assert document["seed"] == seed
        assert document["checkpoint"] == {"best": "step-00000004", "last": "step-00000006"}[checkpoint]
        saved = read_tensors(run / "checkpoints" / document["checkpoint"] / "model.safetensors")
        assert torch.equal(weights[-1], saved["heads.0.linear.weight"])
    assert sorted(seeds) == [40, 40, 41, 42, 70, 70, 71, 72]  # the first is played again at the end
    assert not torch.equal(weights[0], weights[1])


CUT = '{"schema": 1, "results": [{"target_return": 2.0, "mean_re'


@pytest.mark.parametrize(
    "content", [CUT, "[]", "{}", '{"results": []}', '{"results": [{"mean_return": null}]}', "\xff"]
)
def test_inspect_passes_over_results_that_are_none(run, capsys, content):
    (run / "results" / "mine.json").write_text(content, encoding="latin-1")
    capsys.readouterr()
    assert main(["inspect", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"results       mine: not the results of an evaluation ({run}/results/mine.json)" in lines
    assert sum(line.startswith("results       last: ") for line in lines) == 1


def test_inspect_of_a_wrong_path_says_what_it_found(run, capsys, monkeypatch):
    for inside in (run / "checkpoints" / "step-00000006", run / "checkpoints", run / "results", run / "log.jsonl"):
        refused(capsys, ["inspect", str(inside)], f"{inside}: a part of the run {run}; name that folder")
    refused(
        capsys, ["inspect", str(run.parent)], f"{run.parent}: neither a run (no run.json in it) nor a Minari dataset"
    )
    refused(capsys, ["inspect", str(run) + "s"], "runs: no such file or folder")
    monkeypatch.chdir(run / "checkpoints")
    refused(capsys, ["inspect", "step-00000006"], f"step-00000006: a part of the run {run}; name that folder")


def test_inspect_reads_a_dataset_that_lies_in_a_runs_folder(run, payday, capsys):
    assert main(["inspect", str(write_npz(run / "more.npz", payday))]) == 0


@pytest.mark.parametrize(
    ("command", "metavar"), [("train", "DATASET"), ("evaluate", "RUN"), ("inspect", r"DATASET\|RUN")]
)
def test_help_says_what_the_positional_argument_is(command, metavar, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out.splitlines()[0]
    assert re.search(rf"\b{metavar}\b", usage)
    assert not re.search(r"\b(STR|PATH)\b", usage)


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ([], True),
        (["--environment", "Payday-v0"], True),  # the same environment, named again
        (["--environment", "Payday-v0", "--environment-kwargs", '{"limit": 5}'], False),
        (["--environment", "OtherPayday-v0"], False),
    ],
)
def test_a_normalised_score_is_printed_in_the_datas_own_environment_alone(run, capsys, other_payday, options, holds):
    scores = run / "scores.json"
    arguments = ["evaluate", str(run), "--target-return", "5", "--episodes", "1", "--json", str(scores)]
    capsys.readouterr()
    assert main([*arguments, *options]) == 0
    out, err = capsys.readouterr()
    assert ("normalised: 0 is 0, 100 is 10" in out) == holds
    assert ("no normalised score" in err) != holds
    document = read_json(scores)
    assert (document["reference"] is not None) == (document["results"][0]["normalized_score"] is not None) == holds
    if "--environment-kwargs" in options:
        assert document["environment_spec"] == {"id": "Payday-v0", "kwargs": {"limit": 5}, "max_episode_steps": 20}


@pytest.fixture
def other_payday():
    """Payday under another id."""
    gymnasium.register("OtherPayday-v0", Payday, max_episode_steps=20)
    yield
    del gymnasium.registry["OtherPayday-v0"]


def test_a_run_trained_in_another_environment_has_no_normalised_score(recorded, tmp_path, capsys, other_payday):
    arguments = ["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "5"]
    assert main([*arguments, "--environment", "OtherPayday-v0"]) == 0
    assert "normalised: " not in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "run.json")["reference"] is None


def test_data_without_an_environment_takes_the_known_reference_of_the_one_it_is_played_in(
    payday, tmp_path, capsys, monkeypatch
):
    from envs.simulate import scores

    published = replace(scores._ROBOTS, returns={"Payday": (0.0, 20.0)}, versions=frozenset({0}))
    monkeypatch.setitem(scores._PUBLISHED, "Payday", published)
    recorded = write_npz(tmp_path / "coins.npz", payday, env_spec=None, ref_min_score=None)
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--max-timesteps", "20"]) == 0
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "run"), "--episodes", "1", "--target-return", "5"]
    assert main([*arguments, "--environment", "Payday-v0"]) == 0
    assert "normalised: 0 is 0, 100 is 20; D4RL's constants" in capsys.readouterr().out


def test_wrappers_of_a_recording_are_noted_once_on_standard_error(payday, tmp_path, capsys):
    wrappers = [
        {"name": name, "entry_point": f"somewhere:{name}", "kwargs": {}} for name in ("ClipReward", "Blindfold")
    ]
    spec = {"id": "Payday-v0", "max_episode_steps": 20, "kwargs": {"render_mode": "human"}}
    recorded = write_npz(tmp_path / "coins.npz", payday, env_spec=json.dumps({**spec, "additional_wrappers": wrappers}))
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "5"]) == 0
    out, err = capsys.readouterr()  # Payday takes no render_mode: it would not have been made with it
    assert err.count("recorded inside the wrappers ClipReward, Blindfold, which are not built here") == 1
    assert "wrappers" not in out
    assert "Payday-v0, checkpoint step-00000006" in out
