"""Observations that no encoder takes, such as texts, are left out by name: in the data and in the environment."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from test_readers import problem

from dt.cli import main
from envs import EnvironmentSpec, load
from envs.errors import MissingEnvError, SpaceError
from envs.spaces import without

SEEN = spaces.Dict(
    {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
        "mission": spaces.Text(64),
        "arm": spaces.Dict({"joint": spaces.Box(-9, 9, (2,)), "label": spaces.Text(8)}),
    }
)
TEXTS = ("mission", "arm/label")


class Rooms(gymnasium.Env):
    """A few steps in rooms, with what is to be done as a text."""

    observation_space, action_space = SEEN, spaces.Discrete(7)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 6
        return self._seen(), {}

    def step(self, action):
        self.left -= 1
        return self._seen(), float(self.left == 0), self.left == 0, False, {}

    def _seen(self):
        image = self.np_random.integers(0, 11, (7, 7, 3), dtype=np.uint8)
        arm = {"joint": np.zeros(2, np.float32), "label": "left"}
        return {"direction": 1, "image": image, "mission": "get to the green goal", "arm": arm}


@pytest.fixture(autouse=True)
def rooms(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    gymnasium.register("LeaveOut/Rooms-v0", Rooms, max_episode_steps=8)
    yield
    del gymnasium.registry["LeaveOut/Rooms-v0"]


def recorded(tmp_path, layout="hdf5"):
    """Four episodes of six steps, as minari's own minigrid sets are: its id."""
    rng, path = np.random.default_rng(0), tmp_path / "root" / "minigrid" / "rooms-v0" / "data"
    path.mkdir(parents=True)
    storage = MinariStorage.new(
        path, observation_space=SEEN, action_space=Rooms.action_space, data_format=layout, env_spec=None
    )
    spec = json.dumps({"id": "LeaveOut/Rooms-v0", "max_episode_steps": 8}) if layout == "hdf5" else None
    storage.update_metadata({"dataset_id": "minigrid/rooms-v0", "minari_version": "0.5.4", "env_spec": spec})
    storage.update_episodes(
        EpisodeBuffer(
            observations={
                "direction": rng.integers(0, 4, 7),
                "image": rng.integers(0, 11, (7, 7, 7, 3), dtype=np.uint8),
                "mission": ["get to the green goal"] * 7,
                "arm": {"joint": rng.normal(size=(7, 2)).astype(np.float32), "label": ["left"] * 7},
            },
            actions=rng.integers(0, 7, 6),
            rewards=np.eye(1, 6, 5)[0],
            terminations=np.arange(6) == 5,
            truncations=np.zeros(6, bool),
            infos={},
        )
        for _ in range(4)
    )
    return "minigrid/rooms-v0"


@pytest.mark.parametrize("layout", ["hdf5", "arrow", "parquet"])
def test_texts_are_left_out_of_minaris_data(tmp_path, layout):
    name = recorded(tmp_path, layout)
    problem(lambda: load(name), "Text is not supported", "--leave-out arm/label mission reads the rest")
    problem(lambda: load(name, leave_out="mission"), "Text is not supported", "--leave-out arm/label reads the rest")
    dataset = load(name, leave_out=TEXTS)
    assert list(dataset.observations) == ["arm/joint", "direction", "image"]
    assert (dataset.num_episodes, dataset.num_steps) == (4, 24)
    assert dataset.returns.tolist() == [1] * 4
    assert list(load(name, leave_out=["mission", "arm"]).observations) == ["direction", "image"]
    problem(lambda: load(name, leave_out="misson"), "no 'misson' in it to leave out, only", "mission")
    problem(lambda: load(name, leave_out=list(SEEN)), "nothing is left of")
    without_texts = {"observation_space": without(SEEN, TEXTS)}
    problem(lambda: load(name, spaces=without_texts), "in it, expected")
    assert load(name, spaces=without_texts, leave_out=TEXTS).fingerprint == dataset.fingerprint


def test_a_run_leaves_out_what_its_data_left_out(tmp_path, capsys):
    run = str(tmp_path / "run")
    small = ["--width", "16", "--num-layers", "1", "--num-heads", "1", "--context-length", "3", "--episodes", "2"]
    command = ["train", recorded(tmp_path), "--output", run, *small]
    assert main([*command, "--steps", "2", "--leave-out", *TEXTS]) == 0
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["dataset"]["parts"][0]["leave_out"] == list(TEXTS)
    assert document["environment"]["leave_out"] == list(TEXTS)
    assert main([*command, "--steps", "3", "--resume"]) == 0
    assert main(["evaluate", run, "--episodes", "1"]) == 0
    assert main(["evaluate", run, "--episodes", "1", "--environment", "LeaveOut/Rooms-v0"]) == 0
    assert main(["record", "LeaveOut/Rooms-v0", "mine/rooms-v0", "--policy", run, "--episodes", "1"]) == 0
    assert list(load("mine/rooms-v0").observations) == ["arm/joint", "direction", "image"]
    assert "1 episodes, 6 steps" in capsys.readouterr().out


def test_an_environment_leaves_out_parts_of_its_observations():
    environment = EnvironmentSpec("LeaveOut/Rooms-v0", leave_out=TEXTS)
    made = environment.make()
    assert made.observation_space == without(SEEN, TEXTS)
    observation, _ = made.reset(seed=0)
    assert made.observation_space.contains(observation)
    assert set(observation["arm"]) == {"joint"}
    assert EnvironmentSpec.from_json(environment.to_json()) == environment
    with pytest.raises(MissingEnvError, match="no 'door' in it to leave out"):
        EnvironmentSpec("LeaveOut/Rooms-v0", leave_out=("door",)).make()
    with pytest.raises(SpaceError, match="which has no names"):
        without(spaces.Discrete(3), ["mission"])


def test_observations_of_files_are_left_out_too(tmp_path):
    import h5py

    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for i in range(2):
            group = file.create_group(f"data/demo_{i}")
            group["obs/eef"], group["obs/image"] = np.ones((3, 2)), np.zeros((3, 4, 4, 3), np.uint8)
            group["actions"], group["rewards"] = np.zeros((3, 1)), np.ones(3)
    path = tmp_path / "demos.hdf5"
    assert list(load(path).observations) == ["eef", "image"]
    dataset = load(path, leave_out="image")
    assert list(dataset.observations) == ["eef"]
    assert not any("image" in note for note in dataset.notes)
    problem(lambda: load(path, leave_out="picture"), "no 'picture' in it to leave out, only eef, image")
    problem(lambda: load(path, leave_out=["eef", "image"]), "no observation in it to read")
    np.savez(tmp_path / "plain.npz", observations=np.ones((3, 2)), actions=np.ones(3), rewards=np.ones(3), lengths=[3])
    problem(lambda: load(tmp_path / "plain.npz", leave_out="x"), "no 'x' in it to leave out, only one array")
