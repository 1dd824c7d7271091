"""Exported policies: they choose what the original chooses, in a process that has numpy and onnxruntime only."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import onnx
import pytest
import torch
from conftest import echo_dataset, random_mask, small_model

import dt
import envs
from dt import runner
from dt.asking.calibrated_policy import binding_of
from dt.asking.calibration import Calibration, Curve, to_json
from dt.cli import main
from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig
from dt.errors import PolicyError
from dt.learning.build import build_model
from dt.learning.training import train
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from dt.sharing.export import OPSET, _curves, compare, export_policy
from dt.units import Units
from envs.simulate.spec import EnvironmentSpec
from transformer.config import TrainingConfig

ECHO = {
    "Dict, masked": ("nested", "nested", "single", {}),
    "pictures, stacked, masked MultiDiscrete": ("image, channels last", "multi-discrete", "token", {"frame_stack": 3}),
    "MultiDiscrete to two axes of it": ("multi-discrete", "multi-discrete of two axes", "decoupled", {}),
    "MultiBinary to MultiBinary": ("multi-binary", "multi-binary", "none", {"rotary": True}),
    "numbers without bounds": ("bytes", "unbounded box", "single", {"context_length": 1}),
    "a number to a number": ("number", "number", "token", {"norm": "post"}),
}


def echo_spec(observation: str, action: str) -> EnvironmentSpec:
    kwargs = {"observation": observation, "action": action, "masked": True}
    return EnvironmentSpec("Echo-v0", kwargs, max_episode_steps=5)


def exported(policy, model, folder: Path, model_format="onnx") -> runner.Policy:
    folder.mkdir()
    export_policy(policy, model, folder, model_format)
    return runner.Policy(folder)


@pytest.mark.parametrize(("observation", "action", "conditioning", "changes"), ECHO.values(), ids=ECHO.keys())
def test_an_exported_policy_chooses_what_the_original_chooses(observation, action, conditioning, changes, tmp_path):
    model = small_model(conditioning, echo_dataset(observation, action), **changes)
    policy = ReturnConditionedPolicy(model, rows=1, temperature=0.7)
    theirs = exported(policy, model, tmp_path / "policy")
    result = compare(policy, theirs, echo_spec(observation, action), 3.0, steps=17)
    assert result.steps == 17
    assert result.difference <= 1e-5
    assert "17 steps" in result.line()


def in_environment(name: str, conditioning: str, **changes) -> tuple[DecisionTransformer, EnvironmentSpec]:
    """A model for a registered environment, with weights away from zero."""
    spec = EnvironmentSpec(name)
    with spec.make() as env:
        shape = {"positions": "timesteps", "rotary": False, "width": 32, "num_layers": 2, "context_length": 7} | changes
        config = ModelConfig(conditioning=conditioning, **shape)
        model = DecisionTransformer(config, env.observation_space, env.action_space, 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval(), spec


@pytest.mark.parametrize("model_format", ["onnx", "torch-export"])
@pytest.mark.parametrize("name", ["Hopper-v5", "CartPole-v1"])
def test_a_robot_and_a_pole_are_moved_as_by_the_original(name, model_format, tmp_path):
    model, spec = in_environment(name, "single")
    policy = ReturnConditionedPolicy(model, rows=1, guidance=1.5, context_length=5)
    theirs = exported(policy, model, tmp_path / "policy", model_format)
    assert compare(policy, theirs, spec, 200.0, steps=60).difference <= 1e-5


def time_stands_still(theirs):
    inputs = theirs._inputs
    theirs._inputs = lambda *given: {**inputs(*given), "timesteps": np.zeros((1, 7), np.int64)}


WRONG = {
    "every step is the first": time_stands_still,
    "another guidance": lambda theirs: theirs.about.update(guidance=2.0),
    "rewards are not subtracted": lambda theirs: setattr(theirs, "feed", lambda reward: None),
    "bounds of another robot": lambda theirs: theirs._actions["value"].update(bounds=[[-0.01] * 3, [0.01] * 3]),
    "actions are forgotten": lambda theirs: theirs._done_units.update(value=Units(*np.array([[0.0], [1], [0]]))),
}


@pytest.mark.parametrize("break_it", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_export_is_noticed(break_it, tmp_path, robot):
    policy, folder, spec = robot
    theirs = runner.Policy(folder)
    compare(policy, theirs, spec, 200.0, steps=9)
    break_it(theirs)
    with pytest.raises(PolicyError, match=r"step \d+: action value: the exported policy chose"):
        compare(policy, theirs, spec, 200.0, steps=9)


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    """A policy for Hopper-v5, the folder of its export, and its environment."""
    torch.manual_seed(0)
    model, spec = in_environment("Hopper-v5", "single")
    policy = ReturnConditionedPolicy(model, rows=1)
    folder = tmp_path_factory.mktemp("export") / "policy"
    exported(policy, model, folder)
    return policy, folder, spec


ELSEWHERE = """
import sys
from importlib.metadata import packages_distributions

kept = {"numpy", "onnxruntime", "flatbuffers", "packaging", "google"}
sys.modules |= dict.fromkeys({*packages_distributions(), "dt", "envs", "transformer"} - kept)  # an import of it fails
sys.path.insert(0, sys.argv[1])
import numpy as np
from runner import Policy

policy = Policy()
policy.reset(500.0)
for step in range(9):
    print(*policy.act(np.linspace(-1, 1, 11) * step).tolist())
    policy.feed(1.0)
"""


def test_it_acts_where_only_numpy_and_onnxruntime_are_installed(robot, tmp_path):
    """What it chooses there is what it chooses here; that this is the original's choice is tested above."""
    _, folder, _ = robot
    command = [sys.executable, "-c", ELSEWHERE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    here, lines = runner.Policy(folder), done.stdout.splitlines()
    here.reset(500.0)
    assert len(lines) == 9
    for step, line in enumerate(lines):
        assert line == " ".join(map(str, here.act(np.linspace(-1, 1, 11) * step).tolist()))
        here.feed(1.0)


def test_the_folder_holds_our_own_window_and_a_pinned_opset(robot):
    _, folder, _ = robot
    names = ["curves.py", "leaves.py", "model.onnx", "policy.json", "runner.py", "units.py", "window.py"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in filter(lambda name: name.endswith(".py"), names):
        assert (folder / name).read_text() == Path(dt.__file__).with_name(name).read_text()
    assert len((folder / "runner.py").read_text().splitlines()) <= 150
    written = onnx.load(folder / "model.onnx")
    assert [(each.domain, each.version) for each in written.opset_import] == [("", OPSET)] == [("", 18)]
    assert [each.name for each in written.graph.input] == json.loads((folder / "policy.json").read_text())["inputs"]


def test_a_calibration_gives_the_same_requests(robot, tmp_path):
    folder = copytree(robot[1], tmp_path / "policy")
    rng = np.random.default_rng(0)
    requests = np.array([0, 10, 20, 30, 40, 40.1, 60, 70, 80])  # with a jump in the middle
    curves = tuple(
        Curve(w, requests, tuple(np.minimum(60.0, i * 8) + 50 * (i > 4) + rng.normal(0, 9, 3) for i in range(9)))
        for w in (1.0, 1.5, 2.5)
    )
    calibration = Calibration({}, curves, 0)
    about = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(about | {"calibration": _curves(calibration)}))
    theirs = runner.Policy(folder)
    targets = [*np.linspace(-20, 170, 57), *curves[0].achieved, *curves[1].achieved]
    ours = [calibration.request_for(float(target)) for target in targets]
    assert [(each.return_to_go, each.guidance) for each in ours] == [theirs.request_for(target) for target in targets]
    assert len({each.guidance for each in ours}) > 1
    theirs.reset(33.0, guidance=1.25)
    assert (theirs._history.target_return, theirs._history.guidance) == (33.0, 1.25)


def test_numbers_that_float32_does_not_hold_are_the_same(tmp_path):
    steps = np.arange(40)
    seen = np.stack([1.7e9 + 60.0 * steps, np.where(steps % 9, 0.1 * steps, -999999.0)], 1)
    acted = np.stack([1e9 + steps % 5, 1e-7 * (steps % 3)], 1)

    dataset = envs.from_arrays(observations=seen, actions=acted, rewards=np.ones(40), lengths=[20, 20])
    model = build_model(dataset, Config(model=ModelConfig(width=16, num_layers=1, context_length=3)), None).eval()
    assert model.units.observations
    assert model.units.actions
    policy = ReturnConditionedPolicy(model, rows=1)
    theirs = exported(policy, model, tmp_path / "policy")
    policy.reset(5.0), theirs.reset(5.0)
    for row in (*seen[:6], np.array([1e300, -1e300])):
        ours, other = policy.act(row), theirs.act(row)
        np.testing.assert_allclose(other, ours, rtol=1e-6)
        for name in ("states", "actions"):
            kept, same = getattr(policy._histories[0], name)["value"], getattr(theirs._history, name)["value"]
            assert kept.dtype == same.dtype == np.float32
            np.testing.assert_allclose(same, kept, atol=1e-5)


def test_what_the_runner_cannot_do_is_refused(robot, tmp_path):
    theirs = runner.Policy(robot[1])
    with pytest.raises(RuntimeError, match="act before reset"):
        theirs.act(np.zeros(11))
    with pytest.raises(RuntimeError, match="feed before reset"):
        theirs.feed(1.0)
    with pytest.raises(ValueError, match="finite, not nan"):
        theirs.reset(float("nan"))
    theirs.reset(1.0)
    with pytest.raises(ValueError, match=r"observation value: shape \(12,\), expected \(11,\)"):
        theirs.act(np.zeros(12))
    with pytest.raises(ValueError, match="observation value is not finite"):
        theirs.act(np.full(11, np.nan))
    theirs._history.elapsed = 1000
    with pytest.raises(ValueError, match="knows 1000 timesteps"):
        theirs.act(np.zeros(11))
    theirs.about["guided"] = False
    with pytest.raises(ValueError, match="guidance 2: this model takes none"):
        theirs.reset(1.0, guidance=2)


def test_choices_and_masks_that_the_model_does_not_know_are_refused(tmp_path):
    model = small_model("single", echo_dataset("multi-discrete", "nested"))
    theirs = exported(ReturnConditionedPolicy(model, rows=1), model, tmp_path / "policy")
    theirs.reset(1.0)
    for wrong in ([2, 7], [0, 12], [0.5, 7.0]):
        with pytest.raises(ValueError, match="expected whole numbers from"):
            theirs.act(np.array(wrong))
    mask = random_mask(model.action_space, np.random.default_rng(0))
    for wrong in (np.ones(4), np.zeros(3)):
        with pytest.raises(ValueError, match="expected 3 flags"):
            theirs.act(np.array([0, 7]), {**mask, "move": (None, wrong)})
    assert theirs._history.elapsed == 0  # nothing of what was refused was taken in


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from conftest import Payday  # noqa: F401  (registers the environment)

    dataset = echo_dataset("box", "discrete")
    training = TrainingConfig(steps=2, batch_size=4, evaluate_every=0, warmup_steps=1, precision="float32")
    shape = ModelConfig(width=8, num_layers=1, num_heads=1, context_length=3)
    evaluation = EvaluationConfig(calibration=False)
    config = Config(data=DataConfig(), model=shape, training=training, evaluation=evaluation)
    return train(dataset, config, tmp_path_factory.mktemp("run") / "run").folder


def test_a_run_is_exported_by_one_command(run, tmp_path, capsys):
    assert main(["export", str(run), "--output", str(tmp_path / "policy"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "300 steps: every action is the original's" in out
    assert "times as long" in out
    about = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert about["origin"]["dataset"] == "echo/right-and-wrong-v0"
    assert about["origin"]["environment"]["id"] == "Echo-v0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]


def test_a_calibration_in_bf16_is_not_dropped_in_silence(run, tmp_path, capsys, monkeypatch):
    folder = copytree(run, tmp_path / "run")
    monkeypatch.setattr("dt.asking.calibrated_policy.precision_of", lambda run: "bf16")

    def calibrated(precision, name):
        there = dt.load_run(folder)
        binding = binding_of(there, there.config.evaluation, precision, False)
        curve = Curve(1.0, np.array([0.0, 1.0]), (np.zeros(2), np.ones(2)))
        (folder / name).write_text(json.dumps(to_json(Calibration(binding, (curve,), 20))))

    def export(*options):
        status = main(["export", str(folder), "--output", str(tmp_path / "policy"), *options])
        return status, capsys.readouterr().err

    calibrated("bf16", "calibration-last.json")
    status, err = export()
    assert status == 2
    assert "its calibration was measured in bf16" in err
    assert f"dt calibrate {folder} --precision float32" in err
    assert not (tmp_path / "policy").exists()
    assert export("--no-calibration")[0] == 0
    policy = tmp_path / "policy" / "policy.json"
    assert json.loads(policy.read_text())["calibration"] is None
    rmtree(tmp_path / "policy")
    calibrated("float32", "calibration-last-float32.json")  # where dt calibrate --precision float32 writes it
    assert export() == (0, "")
    assert json.loads(policy.read_text())["calibration"][0]["requests"] == [0.0, 1.0]


def test_a_difference_leaves_no_folder(run, tmp_path, capsys, monkeypatch):
    original = runner.Policy.act
    monkeypatch.setattr(runner.Policy, "act", lambda self, *seen: original(self, *seen) + 1)
    assert main(["export", str(run), "--output", str(tmp_path / "policy"), "--verify"]) == 2
    assert "step 0: action value: the exported policy chose" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_one_line(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused = {
        ("export", str(run), "--output", str(tmp_path / "taken")): "exists already",
        ("export", str(tmp_path), "--output", str(tmp_path / "new")): "no run.json in it",
        ("export", str(run), "--output", str(run / "checkpoints" / "x")): "a part of the run",
    }
    for arguments, words in refused.items():
        assert main(list(arguments)) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    monkeypatch.setattr("dt.cli.export.find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", str(run), "--output", str(tmp_path / "new")]) == 2
    assert "needs onnxscript: pip install 'decision-transformer[export]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_policy_with_a_cache_or_in_bf16_is_refused(tmp_path, dataset):
    model = small_model("single", dataset)
    for how in ({"cached": True}, {"precision": "bf16"}):
        with pytest.raises(dt.ConfigError, match="in float32 and without --cached"):
            export_policy(ReturnConditionedPolicy(model, **how), model, tmp_path, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_an_environment_cannot_be_verified(tmp_path, capsys):
    dataset = replace(echo_dataset("box", "discrete"), environment=None)
    training = TrainingConfig(steps=1, batch_size=4, evaluate_every=0, warmup_steps=1)
    config = Config(model=ModelConfig(width=8, num_layers=1, num_heads=1, context_length=2), training=training)
    folder = train(dataset, config, tmp_path / "run").folder
    assert main(["export", str(folder), "--output", str(tmp_path / "policy"), "--verify"]) == 2
    assert "--verify plays in an environment, and the run names none: --environment ID" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()
