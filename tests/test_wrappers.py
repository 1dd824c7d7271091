"""Wrappers that a recording names, and step limits: what is put back, what is only named, and what is said."""

import json
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.envs.registration import WrapperSpec
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from test_cli import QUICK, refused, run, trained, write_npz  # noqa: F401

from dt.cli import main
from envs import EnvironmentSpec, load
from envs.errors import MissingEnvError
from envs.recording import ExperienceRecorder
from envs.simulate.spec import check_spaces
from envs.simulate.wrappers import PUT_BACK, RecordedWrapper


class Scene(gymnasium.Env):
    """A small picture and two numbers, a push of two numbers, a reward of their sum."""

    observation_space = spaces.Dict(camera=spaces.Box(0, 255, (6, 6, 3), np.uint8), speed=spaces.Box(-5, 5, (2,)))
    action_space = spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        return self._seen(), float(np.sum(action)), False, False, {}

    def _seen(self):
        camera = self.np_random.integers(0, 256, (6, 6, 3), np.uint8)
        return {"camera": camera, "speed": self.np_random.uniform(-5, 5, 2).astype(np.float32)}


class Numbers(Scene):
    observation_space = spaces.Box(-5, 5, (2,))

    def _seen(self):
        return self.np_random.uniform(-5, 5, 2).astype(np.float32)


class Picture(Scene):
    observation_space = spaces.Box(0, 255, (6, 6, 3), np.uint8)

    def _seen(self):
        return self.np_random.integers(0, 256, (6, 6, 3), np.uint8)


for kind in (Scene, Numbers, Picture):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=9)

SAFE = {
    "clipped action": ("Numbers-v0", lambda env: wrappers.ClipAction(env)),
    "rescaled action": ("Numbers-v0", lambda env: wrappers.RescaleAction(env, -1, 1)),
    "rescaled by arrays": (
        "Numbers-v0",
        lambda env: wrappers.RescaleAction(env, np.array([-1, -2], np.float32), np.array([1, 2], np.float32)),
    ),
    "rescaled observation": ("Numbers-v0", lambda env: wrappers.RescaleObservation(env, 0, 1)),
    "clipped reward": ("Numbers-v0", lambda env: wrappers.ClipReward(env, -1000, 0.5)),
    "flat": ("Scene-v0", lambda env: wrappers.FlattenObservation(env)),
    "filtered": ("Scene-v0", lambda env: wrappers.FilterObservation(env, ["speed"])),
    "reshaped": ("Picture-v0", lambda env: wrappers.ReshapeObservation(env, (36, 3))),
    "resized and grey": (
        "Picture-v0",
        lambda env: wrappers.GrayscaleObservation(wrappers.ResizeObservation(env, (4, 5)), keep_dim=True),
    ),
    "time": ("Numbers-v0", lambda env: wrappers.TimeAwareObservation(env, normalize_time=True)),
    "stacked": ("Numbers-v0", lambda env: wrappers.FrameStackObservation(env, 3, padding_type="zero")),
    "delayed": ("Numbers-v0", lambda env: wrappers.DelayObservation(env, 2)),
    "sticky": ("Numbers-v0", lambda env: wrappers.StickyAction(env, 0.5)),
    "skipping": ("Picture-v0", lambda env: wrappers.MaxAndSkipObservation(env, 2)),
    "shorter": ("Numbers-v0", lambda env: wrappers.TimeLimit(env, 4)),
}


def played(env, actions):
    """All that an environment answers: arrays and numbers."""
    answers = [env.reset(seed=3)[0]]
    for action in actions:
        observation, *rest = env.step(action)[:4]
        answers += [observation, *rest]
        if rest[1] or rest[2]:
            break
    env.close()
    return answers


@pytest.mark.parametrize("name", SAFE)
def test_gymnasiums_own_wrappers_are_put_back_and_play_the_same(name):
    env_id, wrap = SAFE[name]
    recorded = wrap(gymnasium.make(env_id))
    spec = recorded.spec
    kept = tuple(RecordedWrapper.of(each) for each in spec.additional_wrappers)
    ours = EnvironmentSpec(env_id, {}, spec.max_episode_steps, kept)
    again = EnvironmentSpec.from_json(json.loads(json.dumps(ours.to_json())))
    assert again.from_file
    assert again == ours
    made = again.make()
    assert (made.observation_space, made.action_space) == (recorded.observation_space, recorded.action_space)
    recorded.action_space.seed(0)
    actions = [recorded.action_space.sample() for _ in range(10)]
    for theirs, mine in zip(played(recorded, actions), played(made, actions), strict=True):
        np.testing.assert_equal(mine, theirs)


@pytest.mark.parametrize(
    ("wrapper", "kwargs"),
    [
        (wrappers.TransformReward, {"func": lambda reward: 0.01 * reward}),
        (wrappers.NormalizeReward, {}),
        (wrappers.NormalizeObservation, {}),
    ],
)
def test_any_code_and_statistics_are_named_and_not_built(wrapper, kwargs):
    env = wrapper(gymnasium.make("Numbers-v0"), **kwargs)
    spec = EnvironmentSpec("Numbers-v0", wrappers=tuple(map(RecordedWrapper.of, env.spec.additional_wrappers)))
    assert (spec.left_out, spec.put_back) == ((wrapper.__name__,), ())
    json.dumps(spec.to_json())
    assert type(spec.make()) is type(gymnasium.make("Numbers-v0"))


def wrapper(name="ClipReward", entry_point=None, **kwargs):
    return {"name": name, "entry_point": entry_point or f"gymnasium.wrappers.somewhere:{name}", "kwargs": kwargs}


HOSTILE = {
    "another library's": [wrapper(entry_point="hostile_module:ClipReward", max_reward=1)],
    "a module that looks like Gymnasium's": [wrapper(entry_point="gymnasium.wrappers:evil:Clip", max_reward=1)],
    "no entry point": [{"name": "ClipReward", "kwargs": {"max_reward": 1}}],
    "no arguments recorded": [{**wrapper(), "kwargs": None}],
    "something of Gymnasium's that is no wrapper": [wrapper("vector"), wrapper("__loader__")],
    "one that writes files": [wrapper("RecordVideo", video_folder="/tmp/films"), wrapper("TransformReward", func="x")],
    "a path": [wrapper("FilterObservation", filter_keys=["../../etc"])],
    "a module": [wrapper("FrameStackObservation", stack_size=2, padding_type="hostile_module:zero")],
    "gigabytes": [wrapper("FrameStackObservation", stack_size=10**9)],
    "a large picture": [wrapper("ResizeObservation", shape=[10**5, 10**5])],
    "sizes that multiply": [wrapper("FrameStackObservation", stack_size=60)] * 9,
    "an endless step": [wrapper("MaxAndSkipObservation", skip=10**9)],
    "nesting": [wrapper(max_reward={"a": 1}), wrapper("ReshapeObservation", shape=[[[[10**9]]]])],
    "no number": [wrapper(max_reward=float("nan"))],
    "a million keys": [wrapper("FilterObservation", filter_keys=["speed"] * 10**6)],
    "a thousand wrappers": [wrapper(f"Wrapper{i}") for i in range(1000)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrapper_that_may_be_anything_is_never_built(name):
    started = time.monotonic()
    spec = EnvironmentSpec.from_json({"id": "Numbers-v0", "additional_wrappers": HOSTILE[name]})
    assert spec.put_back == ()
    assert type(spec.make()) is type(gymnasium.make("Numbers-v0"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "given",
    [
        [wrapper(no_such_argument=1)],
        [wrapper("ReshapeObservation", shape=[7, 7])],
        [wrapper("FilterObservation", filter_keys=["speed"])],
        [wrapper("FrameStackObservation", stack_size=-1)],
        [wrapper("GrayscaleObservation")],
    ],
)
def test_a_wrapper_that_does_not_fit_is_named_in_one_line(given):
    with pytest.raises(MissingEnvError, match=f"^environment Numbers-v0: {given[0]['name']}: ") as caught:
        EnvironmentSpec.from_json({"id": "Numbers-v0", "additional_wrappers": given}).make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [[7], [{}], [{"name": "ClipReward", "kwargs": 3}], 7])
def test_what_is_no_wrapper_is_refused(document):
    with pytest.raises(ValueError, match="not an environment's specification"):
        EnvironmentSpec.from_json({"id": "Numbers-v0", "additional_wrappers": document})


def test_wrappers_of_the_registered_id_itself_are_not_put_on_twice():
    own = (wrappers.RecordEpisodeStatistics.wrapper_spec(), wrappers.ClipReward.wrapper_spec(max_reward=0.5))
    gymnasium.register("Wrapped-v0", Numbers, additional_wrappers=own)
    try:
        env = wrappers.FrameStackObservation(gymnasium.make("Wrapped-v0"), 2)
        assert [each.name for each in env.spec.additional_wrappers][-1] == "FrameStackObservation"
        spec = EnvironmentSpec("Wrapped-v0", wrappers=tuple(map(RecordedWrapper.of, env.spec.additional_wrappers)))
        assert [each.name for each in spec.put_back] == ["FrameStackObservation"]
        names, layer = [], spec.make()
        while isinstance(layer, gymnasium.Wrapper):
            names.append(type(layer).__name__)
            layer = layer.env
        assert names.count("ClipReward") == names.count("FrameStackObservation") == 1
    finally:
        del gymnasium.registry["Wrapped-v0"]


def test_every_name_of_the_list_is_gymnasiums():
    assert [name for name in PUT_BACK if not hasattr(wrappers, name)] in ([], ["RepeatAction"])
    assert not {"NormalizeObservation", "NormalizeReward", "TransformReward", "RecordVideo"} & PUT_BACK


def test_a_learners_wrappers_are_kept_and_played_with(tmp_path, monkeypatch, capsys):
    """Recorded by a learner, written as a Minari dataset, trained on, and in the run's own environment."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    environments = make_vec_env(
        "Numbers-v0",
        2,
        seed=0,
        wrapper_class=lambda env: wrappers.RescaleAction(
            wrappers.TransformReward(env, lambda reward: 0.01 * reward), -1, 1
        ),
    )
    with ExperienceRecorder(tmp_path / "experience") as recorder:
        PPO("MlpPolicy", environments, n_steps=16, batch_size=16, n_epochs=1, seed=0).learn(64, callback=recorder)
    assert main(["import", str(tmp_path / "experience"), "mine/numbers-v0"]) == 0
    for source in (tmp_path / "experience", tmp_path / "minari" / "mine" / "numbers-v0"):
        spec = load(source).environment
        assert (spec.left_out, [each.name for each in spec.put_back]) == (("TransformReward",), ["RescaleAction"])
    capsys.readouterr()
    assert main(["inspect", "mine/numbers-v0"]) == 0
    out = capsys.readouterr().out
    assert "recorded inside the wrappers RescaleAction, which the environment is put into here too" in out
    assert "recorded inside the wrappers TransformReward, which are not built here" in out
    output = tmp_path / "run"
    assert main(["train", "mine/numbers-v0", "--output", str(output), *QUICK, "--target-return", "0"]) == 0
    document = json.loads((output / "run.json").read_text())
    assert [each["name"] for each in document["environment"]["additional_wrappers"]] == [
        "TransformReward",
        "RescaleAction",
    ]
    capsys.readouterr()
    assert main(["evaluate", str(output), "--target-return", "0", "--episodes", "1"]) == 0
    command = ["inspect", "mine/numbers-v0", "--environment", "Numbers-v0"]
    refused(capsys, command, "its action space does not fit the data's: value: bounds")


def test_why_the_spaces_differ_is_said_where_a_wrapper_is_missing():
    spec = EnvironmentSpec("Numbers-v0", wrappers=(RecordedWrapper("Blindfold", "mine:Blindfold"),))
    present = Numbers.observation_space, Numbers.action_space
    with pytest.raises(ValueError, match="The data was recorded inside Blindfold, not built here"):
        check_spaces(spec, (spaces.Box(-5, 5, (1,)), Numbers.action_space), present)


def test_a_step_limit_of_ones_own_is_the_runs(payday, tmp_path, capsys):
    """In training, with the run's own environment and with a named one, and in evaluation, recording and inspection."""
    recorded = str(write_npz(tmp_path / "coins.npz", payday))
    output = tmp_path / "run"
    assert (
        main(
            [
                "train",
                recorded,
                "--output",
                str(output),
                *QUICK,
                "--target-return",
                "5",
                "--max-timesteps",
                "20",
                "--max-episode-steps",
                "4",
            ]
        )
        == 0
    )
    assert json.loads((output / "run.json").read_text())["environment"]["max_episode_steps"] == 4
    assert set(json.loads((output / "results" / "last.json").read_text())["results"][0]["lengths"]) == {4}
    command = [
        "evaluate",
        str(output),
        "--target-return",
        "5",
        "--episodes",
        "2",
        "--json",
        str(tmp_path / "scores.json"),
    ]
    for options, length in (([], 4), (["--max-episode-steps", "3"], 3)):
        for env in ([], ["--environment", "Payday-v0"]):
            expected = 10 if env and not options else length
            assert main([*command, *options, *env]) == 0
            document = json.loads((tmp_path / "scores.json").read_text())
            assert set(document["results"][0]["lengths"]) == {expected}
    capsys.readouterr()
    assert main(["inspect", recorded, "--max-episode-steps", "30"]) == 0
    out = capsys.readouterr().out
    assert "Payday-v0, at most 30 steps" in out
    said = "episodes in Payday-v0 last up to 30 steps, the longest recorded one has 10: later steps are not trained"
    assert said in out
    assert main(["inspect", recorded, "--max-episode-steps", "10"]) == 0
    assert "later steps" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--environment-kwargs", '{"max_episode_steps": 5}', "--environment", "Payday-v0"],
            "Use --max-episode-steps N",
        ),
        (["--max-episode-steps", "0"], "max_episode_steps must be at least 1, not 0"),
        (["--max-episode-steps", "-1", "--environment", "Payday-v0"], "max_episode_steps must be at least 1, not -1"),
        (["--max-episode-steps", "21"], "episodes last up to 21 steps, the model knows 20 timesteps"),
    ],
)
def test_a_step_limit_that_cannot_be_is_refused(run, capsys, options, words):  # noqa: F811
    refused(capsys, ["evaluate", str(run), "--target-return", "5", *options], words)


def test_a_step_limit_without_an_environment_is_refused(payday, tmp_path, capsys):
    recorded = str(write_npz(tmp_path / "coins.npz", payday, env_spec=None))
    refused(capsys, ["inspect", recorded, "--max-episode-steps", "5"], "--max-episode-steps needs an environment")


def test_recorded_wrappers_are_written_as_gymnasium_writes_them(payday, tmp_path):
    env = wrappers.ClipReward(gymnasium.make("CartPole-v1"), -1, 1)
    specification = json.loads(env.spec.to_json())
    assert (
        WrapperSpec(**RecordedWrapper.of(env.spec.additional_wrappers[0]).to_json()) == env.spec.additional_wrappers[0]
    )
    recorded = write_npz(tmp_path / "coins.npz", payday, env_spec=json.dumps(specification))
    assert isinstance(load(recorded).environment.make(), wrappers.ClipReward)
