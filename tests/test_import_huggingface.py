"""A published `DecisionTransformerModel` as a run: it plays what theirs plays, and what cannot be read is named."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import files, refused
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from dt.cli import main
from dt.learning.run import load_run
from dt.policy import ReturnConditionedPolicy
from dt.sharing.huggingface import import_huggingface
from transformer.files import read_json

K, SCALE, TARGET, MAX_EP_LEN = 20, 10.0, 100.0, 1000
HOPPER = (11, 3)  # numbers of a state and of an action
STANDING = json.dumps({"terminate_when_unhealthy": False})  # so that the hopper goes on for 300 steps
NO_WORDS = dict.fromkeys(("bos_token_id", "eos_token_id"))


def their_model(state: int, action: int, **changes) -> DecisionTransformerModel:
    """Theirs with every parameter away from zero and one, and actions that reach past 1 where no tanh holds them."""
    shape = {"hidden_size": 22, "n_layer": 2, "n_head": 2, "max_ep_len": MAX_EP_LEN}
    config = DecisionTransformerConfig(state_dim=state, act_dim=action, **{**shape, **NO_WORDS, **changes})
    model = DecisionTransformerModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.predict_action[0].weight.mul_(3)
    return model.eval()


def write_normalizer(path: Path, state: int) -> dict[str, list[float]]:
    numbers = {"mean": torch.randn(state).tolist(), "std": (torch.rand(state) + 0.5).tolist()}
    path.write_text(json.dumps(numbers))
    return numbers


@pytest.fixture
def published(tmp_path) -> Path:
    """A model for Hopper-v5 as their library writes it, and the states' mean and deviation beside it."""
    their_model(*HOPPER).save_pretrained(tmp_path / "hopper-medium")
    write_normalizer(tmp_path / "normalizer.json", HOPPER[0])
    return tmp_path / "hopper-medium"


def command(published: Path, *more: str) -> list[str]:
    """The import of `published` into RUN beside it, with more options, which may repeat these."""
    run, normalizer = published.parent / "run", published.parent / "normalizer.json"
    options = {
        "--output": str(run),
        "--context-length": "20",
        "--return-scale": "1000",
        "--normalizer": str(normalizer),
        "--environment": "Hopper-v5",
    }
    options |= dict(zip(more[::2], more[1::2], strict=True))
    given = [word for option, value in options.items() if value for word in (option, value)]  # "" leaves one out
    return ["import-huggingface", str(published), *given]


class TheirLoop:
    """One episode as their guide plays it: all in float32, the last K steps, padded on the left under a mask."""

    def __init__(self, model: DecisionTransformerModel, mean: list[float], std: list[float]):
        self.model, self.mean, self.std = model, torch.tensor(mean), torch.tensor(std)
        self.states, self.actions, self.returns = [], [], [torch.tensor(TARGET / SCALE)]

    def act(self, observation) -> np.ndarray:
        self.states.append((torch.tensor(observation, dtype=torch.float32) - self.mean) / self.std)
        self.actions.append(torch.zeros(self.model.config.act_dim))
        length = min(K, len(self.states))
        timesteps = torch.arange(len(self.states))

        def window(x):
            x = torch.as_tensor(x)[-K:]
            return torch.cat([torch.zeros(K - length, *x.shape[1:], dtype=x.dtype), x])[None]

        with torch.no_grad():
            output = self.model(
                states=window(torch.stack(self.states)),
                actions=window(torch.stack(self.actions)),
                returns_to_go=window(torch.stack(self.returns)[:, None]),
                timesteps=window(timesteps),
                attention_mask=window(torch.ones(length, dtype=torch.long)),
            )
        self.actions[-1] = output.action_preds[0, -1]
        return self.actions[-1].numpy()

    def feed(self, reward: float) -> None:
        self.returns.append(self.returns[-1] - torch.tensor(float(reward) / SCALE))


@pytest.mark.parametrize(
    ("environment", "kwargs", "settings"),
    [
        ("Hopper-v5", STANDING, {}),  # actions from -1 to 1, as their tanh
        ("Pendulum-v1", "{}", {"action_tanh": True, "activation_function": "gelu_new"}),  # from -2 to 2
        ("Pendulum-v1", "{}", {"action_tanh": False}),
    ],
)
def test_an_imported_run_plays_what_theirs_plays(environment, kwargs, settings, tmp_path):
    state, action = HOPPER if environment == "Hopper-v5" else (3, 1)
    theirs = their_model(state, action, **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    loop = TheirLoop(theirs, **write_normalizer(tmp_path / "normalizer.json", state))
    more = ["--context-length", str(K), "--return-scale", str(SCALE), "--environment", environment]
    assert main(command(tmp_path / "theirs", *more, "--environment-kwargs", kwargs)) == 0
    run = load_run(tmp_path / "run")
    policy, env = ReturnConditionedPolicy(run.model), run.environment.make()
    observation, _ = env.reset(seed=0)
    policy.reset(TARGET)
    played = []
    for step in range(300):
        found, expected = policy.act(observation), loop.act(observation)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=f"step {step}")
        observation, reward, terminated, _, _ = env.step(found)
        assert not terminated
        policy.feed(reward)
        loop.feed(reward)
        played.append(found)
    assert np.std(played, axis=0).min() > 0.01  # the actions differ, so equal numbers mean something
    assert bool(np.abs(played).max() > 1) is not theirs.config.action_tanh


def test_an_imported_run_is_inspected_and_evaluated_as_any_other(published, capsys, tmp_path):
    assert main(command(published)) == 0
    run = tmp_path / "run"
    assert f"dt evaluate {run} --target-return G" in capsys.readouterr().err
    assert main(["inspect", str(run)]) == 0
    out, _ = capsys.readouterr()
    for words in ("step-00000000", "imported from hopper-medium", "Hopper-v5", "token, K 20, width 22, 2 layers"):
        assert words in out
    assert f"training      not here: imported from {published}" in out
    scores, plot = tmp_path / "scores.json", tmp_path / "plot.png"
    asked = ["evaluate", str(run), "--target-return", "3600", "1800", "--episodes", "2"]
    assert main([*asked, "--json", str(scores), "--plot", str(plot)]) == 0
    assert "imported from hopper-medium in Hopper-v5, checkpoint step-00000000" in capsys.readouterr().out
    document = read_json(scores)
    assert [result["target_return"] for result in document["results"]] == [3600, 1800]
    assert document["reference"]["maximum"] == 3234.3  # the environment's own, as for a dataset
    assert plot.exists()
    refused(capsys, ["evaluate", str(run)], f"{run}: it does not know its data's returns; give --target-return")


def test_a_dataset_gives_normaliser_spaces_targets_and_name(dataset, tmp_path, capsys):
    theirs = their_model(5, 3, max_ep_len=13)
    theirs.save_pretrained(tmp_path / "theirs")
    folder = tmp_path / "run"
    run = import_huggingface(tmp_path / "theirs", folder, context_length=4, return_scale=2.0, dataset=dataset)
    normalizer, states = run.model.state_encoders[0].normalizer, dataset.observations["value"]
    np.testing.assert_allclose(normalizer.mean, states.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std, states.std(0), rtol=1e-5)
    assert (run.model.return_scale, run.model.max_timesteps, run.config.model.context_length) == (2, 13, 4)
    assert (run.dataset["name"], run.dataset["steps"]) == ("random/numbers-v0", 22)
    assert max(run.dataset["targets"]) == pytest.approx(dataset.returns.max())
    assert run.model.observation_space == dataset.observation_space
    assert run.environment is None
    assert not run.model.training


def test_a_dataset_named_on_the_command_line_brings_its_environment(published, capsys, tmp_path):
    assert main(command(published, "--normalizer", "", "--environment", "", "--dataset", "hopper/replay-v0")) == 0
    run = load_run(tmp_path / "run")
    assert (run.environment.id, run.reference.maximum) == ("Hopper-v5", 3234.3)
    resume = ["train", "hopper/replay-v0", "--output", str(run.folder), "--resume"]
    before = files(run.folder)
    refused(capsys, resume, f"run: imported from {published}, without the state that training goes on from")
    assert files(run.folder) == before


def set_config(**changes):
    def change(published: Path) -> None:
        path = published / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def set_tensors(change):
    def apply(published: Path) -> None:
        path = published / "model.safetensors"
        save_file({name: x.contiguous().clone() for name, x in change(load_file(path)).items()}, path)

    return apply


def set_normalizer(**changes):
    def change(published: Path) -> None:
        path = published.parent / "normalizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def as_pickle(published: Path) -> None:
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()


def nothing(published: Path) -> None:
    pass


CASES = {
    "neither normaliser": (nothing, ["--normalizer", ""], "from a normalizer or from a dataset, one of the two"),
    "two normalisers": (nothing, ["--dataset", "hopper/replay-v0"], "from a normalizer or from a dataset, one of"),
    "no environment": (nothing, ["--environment", ""], "without a dataset the environment must be named"),
    "no such environment": (nothing, ["--environment", "NoSuch-v3"], "environment NoSuch-v3: not registered"),
    "another environment": (
        nothing,
        ["--environment", "Pendulum-v1"],
        "config.json: state_dim is 11, the space has 3: Box",
    ),
    "another action": (set_config(act_dim=2), [], "config.json: act_dim is 2, the space has 3: Box"),
    "discrete": (
        set_config(state_dim=4),
        ["--environment", "CartPole-v1"],
        "config.json: act_dim is 3, and Discrete(2) is not a Box",
    ),
    "a dataset of another environment": (
        nothing,
        ["--normalizer", "", "--dataset", "hopper/replay-v0", "--environment", "Pendulum-v1"],
        "environment Pendulum-v1: its observation space does not fit",
    ),
    "K": (nothing, ["--context-length", "0"], "dt: context_length must be at least 1, not 0"),
    "scale": (nothing, ["--return-scale", "0"], "dt: return_scale must be above 0, not 0.0"),
    "layers": (
        set_config(scale_attn_by_inverse_layer_idx=True),
        [],
        "config.json: scale_attn_by_inverse_layer_idx is true, here it is always false",
    ),
    "inner": (set_config(n_inner=22), [], "config.json: n_inner is 22, here it is always 4 hidden_size, 88"),
    "activation": (set_config(activation_function="silu"), [], 'config.json: activation_function is "silu", here'),
    "tanh": (set_config(action_tanh="yes"), [], "config.json: action_tanh is 'yes', expected true or false"),
    "kind": (set_config(model_type="gpt2"), [], 'config.json: model_type is "gpt2", expected "decision_transformer"'),
    "no steps": (set_config(max_ep_len=None), [], "config.json: max_ep_len is null, expected a whole number"),
    "not one step": (set_config(max_ep_len=0), [], "config.json: max_timesteps must be at least 1, not 0"),
    "rows": (
        set_config(max_ep_len=7),
        [],
        "model.safetensors: tensor embed_timestep.weight has shape [1000, 22], expected [7, 22]",
    ),
    "layers without end": (set_config(n_layer=10_000), [], "has 43 tensors, its config.json says 10000 layers"),
    "wider than its tensors": (
        set_config(hidden_size=10**8),
        [],
        "tensor embed_timestep.weight has shape [1000, 22], expected [1000, 100000000]",
    ),
    "wider than 64 bits": (set_config(hidden_size=2**50), [], "no file holds what its config.json says (Storage size"),
    "width past all": (set_config(hidden_size=10**30), [], "hidden_size is 1000000000000000000000000000000, expected"),
    "steps without end": (
        set_config(max_ep_len=10**12),
        [],
        "tensor embed_timestep.weight has shape [1000, 22], expected [1000000000000, 22]",
    ),
    "steps past all": (set_config(max_ep_len=10**30), [], "expected a whole number up to 9007199254740992"),
    "positions past all": (set_config(n_positions=10**30), [], "n_positions is 1000000000000000000000000000000, exp"),
    "a dropout past all": (
        set_config(resid_pdrop=10**400, embd_pdrop=10**400, attn_pdrop=10**400),
        [],
        "here one dropout serves all three; write one number from 0 to 1",
    ),
    "missing": (
        set_tensors(lambda tensors: {name: x for name, x in tensors.items() if name != "encoder.wpe.weight"}),
        [],
        "model.safetensors: tensor encoder.wpe.weight is missing",
    ),
    "extra": (
        set_tensors(lambda tensors: {**tensors, "embed_goal.weight": torch.ones(2)}),
        [],
        "model.safetensors: tensor embed_goal.weight has no place in the model",
    ),
    "quantised": (
        set_tensors(lambda tensors: {name: x.to(torch.int8) for name, x in tensors.items()}),
        [],
        "model.safetensors: tensor embed_timestep.weight is torch.int8, expected floating point",
    ),
    "pickle": (as_pickle, [], "pytorch_model.bin: only .safetensors is opened here"),
    "no mean": (set_normalizer(mean=None), [], "normalizer.json: mean must be a list of 11 numbers"),
    "short": (set_normalizer(std=[1.0] * 10), [], "normalizer.json: std must be a list of 11 numbers"),
    "nan": (set_normalizer(mean=[0.0, float("nan")] + [0.0] * 9), [], "mean[1] is nan, expected a finite number"),
    "huge": (set_normalizer(mean=[10**400] + [0] * 10), [], "normalizer.json: mean[0] is 1000"),
    "text": (set_normalizer(mean=["0"] * 11), [], "normalizer.json: mean[0] is '0', expected a finite number"),
    "zero": (set_normalizer(std=[1.0, 0.0] + [1.0] * 9), [], "std[1] is 0.0, expected a finite number above 0"),
    "no normaliser's file": (nothing, ["--normalizer", "nowhere.json"], "nowhere.json: no such file"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_imported_is_one_line_and_nothing_is_written(case, published, capsys):
    spoil, more, words = CASES[case]
    spoil(published)
    before = files(published.parent)
    refused(capsys, command(published, *more), words)
    assert files(published.parent) == before


def test_a_run_that_is_there_already_is_left_alone(published, capsys):
    assert main(command(published)) == 0
    before = files(published.parent)
    refused(capsys, command(published, "--return-scale", "7"), f"{published.parent / 'run'}: exists already")
    assert files(published.parent) == before
    assert read_json(published.parent / "run" / "run.json")["config"]["model"]["return_scale"] == 1000


def test_an_import_that_breaks_leaves_nothing(published, monkeypatch, capsys):
    def full(*_):
        raise OSError("disk full")

    before = files(published.parent)
    monkeypatch.setattr("dt.sharing.huggingface.save_checkpoint", full)
    refused(capsys, command(published), "disk full")
    assert files(published.parent) == before


ENDED = """
import os, sys
import dt.sharing.huggingface
from dt.cli import main
dt.sharing.huggingface.save_checkpoint = lambda *_: os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_an_import_that_was_ended_left_is_cleared(published, number):
    """By SIGTERM at once, after a kill by the next import beside it; nobody else's folder is taken for such."""
    (published.parent / ".importing-photos").mkdir()
    before = files(published.parent)
    done = subprocess.run([sys.executable, "-c", ENDED, str(int(number)), *command(published)], capture_output=True)
    killed = number == signal.SIGKILL
    assert done.returncode == (-signal.SIGKILL if killed else 128 + number), done.stderr
    left = files(published.parent) - before
    assert bool(left) == killed
    assert all(name.startswith(".decision-transformer-import-") for name in left)
    assert main(command(published)) == 0
    assert {name.split("/")[0] for name in files(published.parent) - before} == {"run"}
    assert before <= files(published.parent)


def test_old_files_with_causal_masks_and_half_precision_are_read(published, tmp_path):
    def half(tensors):
        masks = {f"encoder.h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for i in range(2)}
        return {name: x.half() for name, x in tensors.items()} | masks

    set_tensors(half)(published)
    assert main(command(published)) == 0
    model = load_run(tmp_path / "run").model
    tensors = {name: x.float() for name, x in load_file(published / "model.safetensors").items()}
    assert torch.equal(model.heads[0].linear.weight, tensors["predict_action.0.weight"])
    folded = tensors["embed_ln.bias"] + tensors["encoder.wpe.weight"][0]  # summed in float32
    assert torch.equal(model.embedding_norm.bias, folded)
