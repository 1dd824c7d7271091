"""Data as its owners have it: flat files, arrays and episodes become the same dataset, or are refused by name."""

import io
import json
import sys

import h5py
import minari
import numpy as np
import pyarrow
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image
from pyarrow import csv, parquet
from test_datasets import GRIPPER, assert_same, samples

from dt.cli import main
from dt.data import returns_to_go
from envs import DataError, EnvironmentSpec, from_arrays, from_episodes, load
from envs.reading.readers import spaces_from_json
from envs.space_json import space_to_json

LENGTHS = (3, 5, 2)
ENDS = np.cumsum(LENGTHS) - 1
NO_FINALS = "no final observations: an episode of T steps has T observations, and nothing stands in for the last"


def numbers() -> dict:
    """Flat arrays of three episodes: the first and the last end, the second is cut."""
    rng, steps = np.random.default_rng(0), sum(LENGTHS)
    terminated, truncated = np.zeros((2, steps), bool)
    terminated[ENDS[[0, 2]]], truncated[ENDS[1]] = True, True
    return {
        "observations": rng.normal(size=(steps, 4)),
        "actions": rng.uniform(-1, 1, (steps, 2)),
        "rewards": rng.normal(size=steps),
        "terminated": terminated,
        "truncated": truncated,
    }


def columns(arrays: dict) -> dict:
    """The same as columns of a table."""
    table = {"episode": np.repeat(np.arange(3), LENGTHS)}
    for field, column in (("observations", "observation"), ("actions", "action")):
        table |= {f"{column}_{i}": arrays[field][:, i] for i in range(arrays[field].shape[1])}
    return {**table, "reward": arrays["rewards"], "terminated": arrays["terminated"], "truncated": arrays["truncated"]}


def write_npz(path, arrays):
    np.savez(path, **arrays)


def write_hdf5(path, arrays):
    names = {"terminated": "terminals", "truncated": "timeouts"}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[names.get(name, name)] = array


def write_csv(path, table):
    csv.write_csv(pyarrow.table(table), path)


def write_parquet(path, table):
    parquet.write_table(pyarrow.table(table), path)


WRITERS = {
    "npz": (write_npz, dict),
    "hdf5": (write_hdf5, dict),
    "csv": (write_csv, columns),
    "parquet": (write_parquet, columns),
}


def changed(content: dict, changes: dict) -> dict:
    """Some entries changed, by a value or a function of the old one; None takes one away."""
    new = {key: change(content[key]) if callable(change) else change for key, change in changes.items()}
    return {key: value for key, value in {**content, **new}.items() if value is not None}


def write(tmp_path, suffix, **changes):
    writer, layout = WRITERS[suffix]
    path = tmp_path / f"recorded.{suffix}"
    writer(path, changed(layout(numbers()), changes))
    return path


def put(value, *index):
    """Write a value into one place of an array."""

    def change(array):
        array = np.array(array, dtype=np.result_type(array, np.asarray(value)))
        array[index] = value
        return array

    return change


def problem(make, *words):
    """What `make` is refused for: one line with these words."""
    with pytest.raises(DataError) as caught:
        make()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message, message
    return caught.value


# What is read.


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_flat_file_is_the_same_dataset(tmp_path, suffix):
    expected, dataset = from_arrays(**numbers()), load(write(tmp_path, suffix))
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.name == "recorded"
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.terminated.tolist() == [True, False, True]
    assert dataset.truncated.tolist() == [False, True, False]
    assert dataset.final_observations is None
    assert len(dataset.episode(1).observations["value"]) == len(dataset.episode(1)) == 5
    assert dataset.notes == expected.notes
    assert load(dataset.loaded_from[0]).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("names", [("terminals", "timeouts"), ("terminations", "truncations")])
def test_fields_have_the_names_that_others_give_them(tmp_path, names):
    terminated, truncated = numbers()["terminated"], numbers()["truncated"]
    theirs = {names[0]: terminated.astype(float), names[1]: truncated[:, None].astype(np.uint8)}
    path = write(tmp_path, "npz", terminated=None, truncated=None, rewards=lambda old: old[:, None], **theirs)
    assert load(path).fingerprint == from_arrays(**numbers()).fingerprint
    assert load(path).terminated.tolist() == [True, False, True]


def test_what_says_where_episodes_end():
    arrays = numbers()
    flags = {name: arrays.pop(name) for name in ("terminated", "truncated")}
    at_ends = {name: flag[ENDS] for name, flag in flags.items()}
    ways = [
        flags,
        {"lengths": LENGTHS, **flags},
        {"lengths": LENGTHS, "terminated": at_ends["terminated"]},  # what does not end is cut
        {"episode": ["b"] * 3 + ["a"] * 5 + ["c"] * 2, **at_ends},
        {"episode": np.repeat([7.0, 3.0, 9.0], LENGTHS), **flags},
    ]
    for way in ways:
        dataset = from_arrays(**arrays, **way)
        assert dataset.lengths.tolist() == list(LENGTHS)
        assert (dataset.terminated.tolist(), dataset.truncated.tolist()) == ([True, False, True], [False, True, False])
    for way in ({"lengths": LENGTHS}, {"episode": np.repeat([0, 1, 2], LENGTHS)}):
        dataset = from_arrays(**arrays, **way)
        assert not (dataset.terminated | dataset.truncated).any()
        assert "3 of 3 episodes neither terminate nor are truncated" in dataset.notes


def test_what_comes_after_the_last_end_is_an_episode():
    arrays = numbers()
    arrays["terminated"][-1] = False
    dataset = from_arrays(**arrays)
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert "1 of 3 episodes neither terminate nor are truncated" in dataset.notes


def test_final_observations_are_kept_where_they_are_recorded_and_never_made_up():
    arrays = numbers()
    after = np.roll(arrays["observations"], -1, axis=0)
    after[ENDS] = finals = np.arange(12.0).reshape(3, 4)
    with_finals = np.insert(arrays["observations"], ENDS + 1, finals, axis=0)
    by_rows = from_arrays(**{**arrays, "observations": with_finals})
    by_next = from_arrays(**arrays, next_observations=after)
    for dataset in (by_rows, by_next):
        np.testing.assert_array_equal(dataset.final_observations["value"], finals)
        np.testing.assert_array_equal(dataset.episode(1).observations["value"][-1], finals[1])
        assert NO_FINALS not in dataset.notes
    assert by_rows.fingerprint == by_next.fingerprint == from_arrays(**arrays).fingerprint
    assert NO_FINALS in from_arrays(**arrays).notes


def test_what_is_not_read_is_said(tmp_path):
    path = write(tmp_path, "npz", init_qpos=np.zeros(3), goal=np.zeros(10))
    assert load(path).notes[0] == "not read: goal, init_qpos"
    path = write(tmp_path, "csv", place_0=np.arange(10), place_1=np.arange(10), note=["?"] * 10)
    assert load(path).notes[0] == "not read: note, place_0, place_1"
    path = write(tmp_path, "hdf5")
    with h5py.File(path, "a") as file:
        file[b"\xff"] = [0]  # a name that is no text, such as damage makes
    assert load(path).notes[0] == r"not read: b'\xff'"


@pytest.mark.parametrize("kind", [pyarrow.list_(pyarrow.float64()), pyarrow.list_(pyarrow.float64(), 4)])
def test_a_vector_may_be_a_column_of_lists(tmp_path, kind):
    table = columns(numbers())
    for i in range(4):
        del table[f"observation_{i}"]
    table["observation"] = pyarrow.array(list(numbers()["observations"]), kind)
    write_parquet(tmp_path / "lists.parquet", table)
    assert load(tmp_path / "lists.parquet").fingerprint == from_arrays(**numbers()).fingerprint


def test_a_table_of_one_number_a_step(tmp_path):
    text = "episode,observation,action,reward,terminated\na,0,1,0,0\na,3,0,0,1\nb,1,1,0.5,0\nb,2,2,1,1\n"
    (tmp_path / "small.csv").write_text(text)
    dataset = load(tmp_path / "small.csv")
    assert (dataset.observation_space, dataset.action_space) == (spaces.Discrete(4), spaces.Discrete(3))
    assert dataset.returns.tolist() == [0, 1.5]
    assert dataset.terminated.all()


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_suffix_may_be_in_capitals(tmp_path, suffix):
    path = write(tmp_path, suffix)
    path = path.rename(path.with_suffix(f".{suffix.upper()}"))
    assert load(path).fingerprint == from_arrays(**numbers()).fingerprint
    problem(lambda: load("nowhere.CSV"), "nowhere.CSV: no such file or folder")


def test_columns_are_ordered_by_their_numbers(tmp_path):
    table = {f"observation_{i}": np.full(10, float(i)) for i in reversed(range(12))}
    write_csv(tmp_path / "wide.csv", {**columns(numbers()), **table})
    assert load(tmp_path / "wide.csv").observations["value"][0].tolist() == list(range(12))


def test_whole_numbers_first_and_others_late_in_a_long_table(tmp_path):
    steps = 200_000  # more than one block of the file
    rewards = np.zeros(steps)
    rewards[-1] = 0.5
    text = "episode,observation,action,reward\n" + "".join(f"{i // 1000},0,1,{r:g}\n" for i, r in enumerate(rewards))
    (tmp_path / "long.csv").write_text(text)
    assert load(tmp_path / "long.csv").rewards[-1] == 0.5


PICTURES = np.random.default_rng(0).integers(0, 256, (10, 32, 36), dtype=np.uint8)


@pytest.mark.parametrize(
    ("field", "values", "space"),
    [
        ("observations", np.zeros((10, 3), np.float32), spaces.Box(-np.inf, np.inf, (3,), np.float32)),
        ("observations", np.full((10, 3), 0.9), spaces.Box(-np.inf, np.inf, (3,), np.float64)),
        ("observations", PICTURES, spaces.Box(0, 255, (32, 36), np.uint8)),
        ("observations", np.arange(10), spaces.Discrete(10)),
        ("observations", np.arange(10) * 1000, spaces.Box(-(2**63), 2**63 - 1, (), np.int64)),
        ("observations", np.arange(20).reshape(10, 2) > 3, spaces.MultiBinary(2)),
        ("observations", np.arange(40).reshape(10, 2, 2) > 3, spaces.MultiBinary((2, 2))),
        ("observations", np.arange(20).reshape(10, 2), spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64)),  # quantities
        ("actions", np.linspace(-0.9, 1, 20).reshape(10, 2), spaces.Box(-1, 1, (2,), np.float64)),
        ("actions", np.linspace(-0.9, 1.3, 20).reshape(10, 2), spaces.Box(-np.inf, np.inf, (2,), np.float64)),
        ("actions", np.full((10, 2), 0.01), spaces.Box(-np.inf, np.inf, (2,), np.float64)),
        ("actions", np.arange(10)[:, None] % 4, spaces.Discrete(4)),
        ("actions", np.arange(20).reshape(10, 2) % 3, spaces.MultiDiscrete([3, 3])),
        ("actions", np.arange(20).reshape(10, 2).astype(np.uint8), spaces.MultiDiscrete([19, 20])),
        ("actions", np.arange(20).reshape(10, 2) > 3, spaces.MultiBinary(2)),
        ("actions", np.arange(20).reshape(10, 2) - 1, spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64)),
        ("actions", np.arange(20).reshape(10, 2) * 60, spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64)),
        ("actions", np.arange(20).reshape(10, 2).astype(np.float32) - 1, spaces.Box(-np.inf, np.inf, (2,))),
        ("actions", np.arange(10) - 3, spaces.Discrete(10, start=-3)),
        ("actions", {"a": np.arange(10) % 2}, spaces.Dict(a=spaces.Discrete(2))),
        ("actions", (np.arange(10) % 3, np.arange(10) % 2), spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)])),
    ],
)
def test_spaces_that_nobody_declares_are_inferred_and_said(field, values, space):
    dataset = from_arrays(**{**numbers(), field: values})
    name = f"{field[:-1]}_space"
    assert getattr(dataset, name) == space
    assert any(
        note.startswith(f"{name} is declared nowhere and inferred: {type(space).__name__}") for note in dataset.notes
    )


def test_vectors_of_nothing_are_refused_and_not_taken_for_choices():
    for kind in (bool, int, float):
        empty = np.zeros((10, 0), kind)
        problem(
            lambda empty=empty: from_arrays(**{**numbers(), "actions": empty}), "expected at least one number a step"
        )


def test_choices_that_are_stored_as_floats():
    floats = {**numbers(), "actions": np.arange(10) % 2 * 1.0}
    inferred, declared = from_arrays(**floats), from_arrays(**floats, action_space=spaces.Discrete(2))
    assert inferred.action_space == spaces.Box(-1, 1, (), np.float64)
    (note,) = [note for note in inferred.notes if note.startswith("actions are floats, but whole numbers: choices?")]
    said = spaces_from_json(note.split("--spaces ")[1].strip("'"))
    assert said == {"action_space": spaces.Discrete(2)}
    whole = from_arrays(**{**floats, "actions": np.arange(10) % 2}, action_space=spaces.Discrete(2))
    assert declared.fingerprint == whole.fingerprint
    assert not any("whole numbers" in note for note in declared.notes)
    pairs = np.arange(20.0).reshape(10, 2) % 3
    taken = from_arrays(**{**floats, "actions": pairs}, action_space=spaces.MultiDiscrete([3, 3]))
    assert taken.actions["value"].dtype == np.int64
    assert any('"nvec": [3, 3]' in note for note in from_arrays(**{**floats, "actions": pairs}).notes)
    for none in (np.zeros(10), np.arange(20.0).reshape(10, 2) - 1, np.arange(10) / 2, np.arange(10.0) * 1000):
        assert not any("choices" in note for note in from_arrays(**{**floats, "actions": none}).notes)
    huge = {**floats, "actions": put(1e300, 3)(floats["actions"])}
    problem(lambda: from_arrays(**huge, action_space=spaces.Discrete(2)), "actions: type float64, the space says int64")


def test_floats_of_an_environment_of_choices(tmp_path):
    path = write(tmp_path, "csv", action=[f"{i % 2}.0" for i in range(10)], action_0=None, action_1=None)
    assert load(path, environment=EnvironmentSpec("CartPole-v1")).actions["value"].dtype == np.int64


def test_whole_numbers_of_a_box_of_floats():
    """A table's column that happens to hold whole numbers is one of integers."""
    box = spaces.Box(-9, 9, (2,), np.float32)
    dataset = from_arrays(**{**numbers(), "actions": np.arange(20).reshape(10, 2) % 9}, action_space=box)
    assert dataset.actions["value"].dtype == np.float32
    floats = spaces.Box(0, 1, (32, 36), np.float32)
    words = "observations: type uint8, the space says float32"  # which may be meant to be divided by 255
    problem(lambda: from_arrays(**{**numbers(), "observations": PICTURES}, observation_space=floats), words)


def test_pictures_stay_bytes():
    dataset = from_arrays(**{**numbers(), "observations": PICTURES})
    assert dataset.observations["value"].dtype == np.uint8
    assert np.shares_memory(dataset.observations["value"], PICTURES)  # nor are they copied


def test_declared_spaces_are_taken_and_actions_beyond_them_counted(tmp_path):
    path = write(tmp_path, "hdf5", actions=lambda old: put(1.5, 4, 1)(old))
    box = {"type": "Box", "shape": [2], "dtype": "float64", "low": [-1, -1], "high": [1, 1]}
    text = json.dumps({"action_space": box})
    (tmp_path / "spaces.json").write_text(text)
    for given in (text, str(tmp_path / "spaces.json")):
        dataset = load(path, spaces=spaces_from_json(given))
        assert dataset.action_space == spaces.Box(-1, 1, (2,), np.float64)
        assert "actions: 1 of 10 steps are beyond the space's bounds" in dataset.notes
        assert not any(note.startswith("action_space is") for note in dataset.notes)
        assert any(note.startswith("observation_space is") for note in dataset.notes)


def test_spaces_of_the_environment_that_the_user_names(tmp_path):
    path = write(tmp_path, "npz", actions=lambda old: (old[:, 0] > 0).astype(int))
    dataset = load(path, environment=EnvironmentSpec("CartPole-v1"))
    with EnvironmentSpec("CartPole-v1").make() as env:
        assert (dataset.observation_space, dataset.action_space) == (env.observation_space, env.action_space)
    assert dataset.environment.id == "CartPole-v1"
    assert "observations are recorded as float64, the space says float32" in dataset.notes
    problem(
        lambda: load(path, environment=EnvironmentSpec("Acrobot-v1")), "observations", "(10, 4)", "expected (10, 6)"
    )


def test_an_environment_that_the_user_names_brings_its_reference_returns():
    arrays = {**numbers(), "observation_space": spaces.Box(-9, 9, (4,)), "action_space": spaces.Box(-1, 1, (2,))}
    assert from_arrays(**arrays, environment=EnvironmentSpec("Hopper-v5")).reference.maximum == 3234.3
    assert from_arrays(**arrays, environment=EnvironmentSpec("Unheard-v0")).reference is None


def test_an_environment_that_a_file_names_is_not_built(tmp_path):
    path = write(tmp_path, "npz", metadata=json.dumps({"env_spec": {"id": "CartPole-v1"}}))
    dataset = load(path)
    assert dataset.environment.id == "CartPole-v1"
    assert dataset.action_space == spaces.Box(-1, 1, (2,), np.float64)  # CartPole's is Discrete(2)


def test_episodes_one_by_one_are_the_same_dataset():
    arrays, episodes = numbers(), []
    for start, end in zip([0, *ENDS[:-1] + 1], ENDS + 1, strict=True):
        episode = {name: array[start:end] for name, array in arrays.items()}
        episodes.append({**episode, "truncated": bool(episode["truncated"][-1])})
    dataset = from_episodes(episodes)
    assert dataset.fingerprint == from_arrays(**arrays).fingerprint
    assert dataset.truncated.tolist() == [False, True, False]
    final = [{**e, "observations": np.concatenate([e["observations"], np.full((1, 4), 5.0)])} for e in episodes]
    dataset = from_episodes(iter(final))
    assert dataset.fingerprint == from_arrays(**arrays).fingerprint
    assert dataset.final_observations["value"].tolist() == [[5.0] * 4] * 3


def test_nested_episodes():
    space = spaces.Dict(hand=GRIPPER, pair=spaces.Tuple([spaces.Discrete(3), spaces.Box(-9, 9, (2,), np.float64)]))
    episodes = [
        {"observations": samples(space, length + 1), "actions": samples(space, length), "rewards": np.zeros(length)}
        for length in LENGTHS
    ]
    dataset = from_episodes(episodes, observation_space=space, action_space=space)
    assert set(dataset.observations) == {"hand/force", "hand/open", "pair/0", "pair/1"}
    np.testing.assert_array_equal(dataset.episode(1).actions["pair/1"], episodes[1]["actions"]["pair"][1])
    del episodes[2]["actions"]["hand"]
    problem(lambda: from_episodes(episodes), "episodes: episode 2, actions: ['pair'], expected ['hand', 'pair']")


def test_loading_needs_no_pyarrow_until_a_table_comes(tmp_path, monkeypatch):
    path = write(tmp_path, "csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    load(write(tmp_path, "npz"))
    problem(lambda: load(path), str(path), "pip install 'decision-transformer[arrow]'")


# One recording, every reader.


AWKWARD = [0.1, -0.0, 1 / 3, 5e-324, 1.7e308, np.nextafter(1, 2), 1e22, -123456789.12345678]
"""Numbers that lose bits where somebody rounds, or writes too few digits."""


def recording(number: type) -> list[dict]:
    """Three episodes of T steps, with T + 1 observations: the first and the last end, the second is cut."""
    rng, most = np.random.default_rng(1), np.finfo(number).max
    episodes = []
    for i, length in enumerate(LENGTHS):
        seen, rewards = rng.normal(size=(length + 1, 4)), rng.normal(size=length)
        seen[:2], rewards[:2] = np.reshape(AWKWARD, (2, 4)).clip(-most, most), [1 / 3, 5e-324]
        arrays = {"observations": seen, "actions": rng.uniform(-1, 1, (length, 2)), "rewards": rewards}
        ends = {"terminated": i != 1, "truncated": i == 1}
        episodes.append({**{name: array.astype(number) for name, array in arrays.items()}, **ends})
    return episodes


def flags(episode: dict, name: str) -> np.ndarray:
    """Whether it ends at each of its steps: at the last or at none."""
    steps = len(episode["rewards"])
    return (np.arange(steps) == steps - 1) & episode[name]


def flattened(episodes: list[dict]) -> dict:
    """The same as flat arrays, flags at each step; final observations have no room there."""
    return {
        "observations": np.concatenate([episode["observations"][:-1] for episode in episodes]),
        **{name: np.concatenate([episode[name] for episode in episodes]) for name in ("actions", "rewards")},
        **{name: np.concatenate([flags(e, name) for e in episodes]) for name in ("terminated", "truncated")},
    }


def by_minari(data_format: str):
    """Minari's own writer and our reader."""

    def read(tmp_path, episodes):
        arrays = ("observations", "actions", "rewards")
        ends = {"terminations": "terminated", "truncations": "truncated"}
        buffers = [
            EpisodeBuffer(
                **{name: episode[name] for name in arrays},
                **{theirs: flags(episode, ours) for theirs, ours in ends.items()},
            )
            for episode in episodes
        ]
        observations, actions = (
            spaces.Box(-np.inf, np.inf, episodes[0][name].shape[1:], episodes[0][name].dtype) for name in arrays[:2]
        )
        minari.create_dataset_from_buffers(
            "one/recording-v0", buffers, observation_space=observations, action_space=actions, data_format=data_format
        )
        return load("one/recording-v0")

    return read


def by_file(suffix: str):
    """A flat file by somebody else's writer and our reader."""

    def read(tmp_path, episodes):
        writer, layout = WRITERS[suffix]
        writer(tmp_path / f"one.{suffix}", layout(flattened(episodes)))
        return load(tmp_path / f"one.{suffix}")

    return read


READERS = {
    "Minari, HDF5": by_minari("hdf5"),
    "Minari, Arrow": by_minari("arrow"),
    "Minari, Parquet": by_minari("parquet"),
    "D4RL's HDF5": by_file("hdf5"),
    "npz": by_file("npz"),
    "CSV": by_file("csv"),
    "Parquet": by_file("parquet"),
    "from_arrays": lambda _, episodes: from_arrays(**flattened(episodes)),
    "from_episodes": lambda _, episodes: from_episodes(episodes),
}
KEEP_FINALS = ("Minari, HDF5", "Minari, Arrow", "Minari, Parquet", "from_episodes")


@pytest.mark.parametrize("number", [np.float64, np.float32])
@pytest.mark.parametrize("reader", READERS)
def test_one_recording_is_the_same_bits_by_every_reader(reader, number, tmp_path, monkeypatch):
    """But for final observations where a layout has no room, and for the width in CSV, which knows no types."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    expected = recording(number)
    dataset = READERS[reader](tmp_path, expected)
    assert dataset.num_episodes == 3
    assert (dataset.final_observations is not None) == (reader in KEEP_FINALS)
    for i, theirs in enumerate(expected):
        episode = dataset.episode(i)
        assert (episode.terminated, episode.truncated) == (theirs["terminated"], theirs["truncated"])
        seen = theirs["observations"][: None if reader in KEEP_FINALS else -1]
        for ours, array in (
            (episode.observations["value"], seen),
            (episode.actions["value"], theirs["actions"]),
            (episode.rewards, theirs["rewards"]),
        ):
            assert ours.dtype == (np.float64 if reader == "CSV" else number)
            assert ours.shape == array.shape
            assert ours.astype(number).tobytes() == array.tobytes()


def test_what_ships_is_the_same_in_d4rls_layout_but_for_final_observations(tmp_path):
    """Real numbers; and rewards in float64 instead of float32 change nothing that a model sees."""
    ours = load("hopper/replay-v0")
    ends = np.zeros((2, ours.num_steps), bool)
    ends[:, ours.offsets[1:] - 1] = ours.terminated, ours.truncated
    arrays = {name: getattr(ours, name)["value"] for name in ("observations", "actions")}
    arrays |= {"rewards": ours.rewards, "terminated": ends[0], "truncated": ends[1]}
    write_hdf5(tmp_path / "twin.hdf5", arrays)
    write_hdf5(tmp_path / "wide.hdf5", {**arrays, "rewards": ours.rewards.astype(np.float64)})
    twin, wide = (load(tmp_path / f"{name}.hdf5", environment=ours.environment) for name in ("twin", "wide"))
    assert ours.rewards.dtype == np.float32
    assert twin.fingerprint == ours.fingerprint  # spaces, observations, actions, rewards, where episodes begin
    assert (ours.final_observations is None, twin.final_observations is None) == (False, True)
    for flat in (twin, wide):
        for name in ("terminated", "truncated", "offsets", "returns"):
            assert getattr(flat, name).tobytes() == getattr(ours, name).tobytes(), name
    assert wide.rewards.dtype == np.float64  # kept as they are, so the fingerprint is another
    assert wide.fingerprint != ours.fingerprint
    assert returns_to_go(wide.rewards, wide.offsets).tobytes() == returns_to_go(ours.rewards, ours.offsets).tobytes()


# Minari's pictures.


@pytest.fixture(params=[(32, 36), (33, 35, 3)], ids=["grey", "colour"])
def pictured(request, tmp_path, monkeypatch):
    """A Minari dataset of pictures, JPEG inside: the episode's pictures are as long as each other, or not."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = spaces.Box(0, 255, request.param, np.uint8)
    ramp = np.linspace(0, 255, int(np.prod(request.param))).reshape(request.param)
    observations = np.stack([ramp, 255 - ramp, ramp // 2, ramp]).astype(np.uint8)
    same = np.stack([observations[0]] * 4)
    episodes = [
        EpisodeBuffer(
            observations=pictures,
            actions=np.zeros(3, int),
            rewards=np.zeros(3),
            terminations=np.arange(3) == 2,
            truncations=np.zeros(3, bool),
        )
        for pictures in (observations, same)
    ]
    options = {"observation_space": space, "action_space": spaces.Discrete(2)}
    minari.create_dataset_from_buffers("pictures/jpeg-v0", episodes, **options)
    minari.create_dataset_from_buffers("pictures/raw-v0", episodes, jpeg_encoding=False, **options)
    return tmp_path / "pictures" / "jpeg-v0"


def test_jpeg_pictures_are_decoded_as_minari_does(pictured):
    dataset, raw = load("pictures/jpeg-v0"), load("pictures/raw-v0")
    for i, theirs in enumerate(minari.load_dataset("pictures/jpeg-v0").iterate_episodes()):
        assert_same(dataset.episode(i).observations, {"value": theirs.observations})
    for i, theirs in enumerate(minari.load_dataset("pictures/raw-v0").iterate_episodes()):
        assert_same(raw.episode(i).observations, {"value": theirs.observations})
    error = dataset.observations["value"].astype(int) - raw.observations["value"]
    assert 0 < np.abs(error).max() < 64


def test_broken_pictures_are_refused(pictured):
    path = pictured / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        pictures = file["episode_1/observations"][()]
        pictures[2, :20] = 0
        file["episode_1/observations"][...] = pictures
    problem(lambda: load(pictured), f"{path}: episode_1/observations: row 2 is no JPEG picture")
    with h5py.File(path, "a") as file:
        del file["episode_1/observations"]
        image = io.BytesIO()
        Image.new("L", (36, 32)).save(image, format="PNG")
        file["episode_1/observations"] = np.stack([np.frombuffer(image.getvalue(), np.uint8)] * 4)
    problem(lambda: load(pictured), f"{path}: episode_1/observations: row 0 is no JPEG picture")
    metadata = pictured / "data" / "metadata.json"
    described = json.loads(metadata.read_text())
    space = spaces.Box(0, 255, (34, 34), np.uint8)
    metadata.write_text(json.dumps({**described, "observation_space": space_to_json(space)}))
    problem(lambda: load(pictured), "episode_0/observations", "row 0: a picture of shape", "expected (34, 34)")


# What is broken.


NAN = np.float64("nan")
FLAT = {
    "no observations": ({"observations": None}, ["no 'observations' in it, only"]),
    "no actions": ({"actions": None}, ["no 'actions' in it, only observations, rewards"]),
    "no rewards": ({"rewards": None}, ["no 'rewards' in it"]),
    "no ends": ({"terminated": None, "truncated": None}, ["nothing says where episodes end: terminated, truncated"]),
    "a field twice": ({"reward": np.zeros(10)}, ["'reward' and 'rewards' are both rewards"]),
    "NaN reward": ({"rewards": put(NAN, 4)}, ["episode 1, step 1, rewards: nan is not finite"]),
    "NaN action": ({"actions": put(NAN, 4, 1)}, ["episode 1, step 1, actions[1]: nan is not finite"]),
    "NaN observed": ({"observations": put(-np.inf, 9, 3)}, ["episode 2, step 1, observations[3]: -inf is not finite"]),
    "too few rewards": ({"rewards": lambda old: old[1:]}, ["terminated: shape (10,), expected (9,)"]),
    "too few actions": ({"actions": lambda old: old[1:]}, ["actions: shape (9, 2), expected (10, 2)"]),
    "too many observations": (
        {"observations": lambda old: np.concatenate([old, old])},
        ["observations: shape (20, 4), expected (10, 4) or (13, 4)"],
    ),
    "wrong next observations": (
        {"next_observations": np.zeros((9, 4))},
        ["next_observations: shape (9, 4), expected (10, 4)"],
    ),
    "NaN at an end": (
        {"next_observations": put(NAN, 7, 2)(np.roll(numbers()["observations"], -1, axis=0))},
        ["episode 1, final observation[2]: nan is not finite"],
    ),
    "a flag that is none": ({"terminated": put(0.5, 3)}, ["terminated: 0.5 at 3, expected true or false"]),
    "flags of rank 2": ({"truncated": np.zeros((10, 2))}, ["truncated: shape (10, 2), expected (N,)"]),
    "rewards of rank 2": ({"rewards": np.zeros((10, 2))}, ["rewards: shape (10, 2), expected (N,)"]),
    "rewards that are flags": ({"rewards": np.ones(10, bool)}, ["rewards: type bool, expected numbers"]),
    "no step": ({"rewards": np.zeros(0)}, ["rewards: shape (0,), expected (N,) with N at least 1"]),
    "an end too early": (
        {"episode": np.repeat([0, 1], 5)},
        ["terminated: episode 0, step 2: true before the episode's last step"],
    ),
    "an episode that begins again": (
        {"episode": [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]},
        ["episode: 0 begins again at step 8; its steps must stand together"],
    ),
    "an episode that is none": ({"episode": put(NAN, 3)(np.zeros(10))}, ["episode: nan is not a number or name"]),
    "too few episodes": ({"episode": np.zeros(9)}, ["episode: shape (9,), expected (10,)"]),
    "lengths of less": ({"lengths": np.array([3, 5])}, ["rewards: shape (10,), lengths say (8,)"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
def test_broken_flat_files_are_refused(tmp_path, suffix, changes, words):
    path = write(tmp_path, suffix, **changes)
    problem(lambda: load(path), str(path), *words)


@pytest.mark.parametrize(("changes", "words"), FLAT.values(), ids=FLAT)
def test_broken_arrays_are_refused(changes, words):
    problem(lambda: from_arrays(**changed(numbers(), changes), name="mine"), "mine: ", *words)


def test_text_and_ragged_lists_are_no_arrays():
    problem(lambda: from_arrays(**{**numbers(), "rewards": ["much"] * 10}), "arrays: rewards: type <U4")
    ragged = [[1.0, 2.0]] * 9 + [[1.0]]
    problem(lambda: from_arrays(**{**numbers(), "actions": ragged}), "arrays: actions: no array")
    problem(lambda: from_arrays(**{**numbers(), "observations": 3.0}), "arrays: observations: one number")


DAMAGE = {
    "empty": b"",
    "not HDF5": b"observations",
    "cut": None,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_files_are_refused(tmp_path, suffix, content):
    path = write(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    problem(lambda: load(path), str(path))


def test_arrays_that_are_groups_or_text_in_hdf5(tmp_path):
    path = write(tmp_path, "hdf5", rewards=[b"much"] * 10)
    problem(lambda: load(path), f"{path}: rewards: type", "expected numbers")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards/first"] = np.zeros(10)
    problem(lambda: load(path), f"{path}: rewards: a group of first, expected an array")


TABLES = {
    "no observation": ({f"observation_{i}": None for i in range(4)}, ["no 'observations' in it, only action, episode"]),
    "no reward": ({"reward": None}, ["no 'rewards' in it"]),
    "a gap": (
        {"observation_2": None},
        ["no column 'observation_2', only observation_0, observation_1, observation_3; numbers are"],
    ),
    "from one": (
        {"action_0": None, "action_2": np.zeros(10)},
        ["no column 'action_0', only action_1, action_2; numbers are expected from action_0 on"],
    ),
    "nothing in a place": (
        {"reward": pyarrow.array([1.0] * 6 + [None] + [2.0] * 3)},
        ["row 7, column 'reward': nothing there"],
    ),
    "text in a place": ({"action_1": ["1"] * 3 + ["much"] + ["2"] * 6}, ["row 4, column 'action_1': 'much'"]),
    "two of a kind": ({"rewards": np.zeros(10)}, ["'reward' and 'rewards' are both rewards"]),
    "one and several": ({"action": np.zeros(10)}, ["'action' and 'action_0' are both actions; keep one of them"]),
    "one and a second": ({"reward_1": np.zeros(10)}, ["'reward' and 'reward_1' are both rewards; keep one of them"]),
    "flag that is none": ({"terminated": put(3, 2)}, ["terminated: 3 at 2, expected true or false"]),
    "infinite": ({"observation_1": put(np.inf, 9)}, ["episode 2, step 1, observations[1]: inf is not finite"]),
    "an end too early": ({"terminated": put(True, 4)}, ["terminated: episode 1, step 1: true before"]),
    "an episode that begins again": (
        {"episode": ["a"] * 5 + ["b"] * 3 + ["a"] * 2},
        ["episode: a begins again at row 9, and neither a column step that counts evenly nor next_observations"],
    ),
    "no end": ({"episode": None, "terminated": None, "truncated": None}, ["nothing says where episodes end"]),
    "dates": ({"reward": pyarrow.array(range(10), pyarrow.timestamp("s"))}, ["column 'reward': type datetime64"]),
}


@pytest.mark.parametrize(("changes", "words"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_broken_tables_are_refused(tmp_path, suffix, changes, words):
    path = write(tmp_path, suffix, **changes)
    problem(lambda: load(path), str(path), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("episode,reward,reward\n1,2,3\n", "column 'reward' appears twice"),
        ("episode,observation,action,reward\n", "no row in it"),
        ("episode,reward\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("1,2,3\n4,5,6\n", "line 1 holds numbers only, so no column has a name"),
        ("episode;observation;action;reward\n0;1,500;1;1\n", "row 1, column 'observation': '1,500', expected a number"),
        (
            "episode,observation,action,reward,done\n0,1,1,1,maybe\n",
            "column 'done': 'maybe', expected true or false, or 1 or 0",
        ),
        (
            "episode,observation,action,reward\n0,1,left,1\n",
            "'left', expected a number; choices are given as whole numbers, such as 0 and 1",
        ),
        (
            "episode,x,y,action,reward\n0,1,1,1,1\n",
            "action, episode, reward, x, y; --columns observations=NAME,... says",
        ),
        (
            "episode,observation,action,reward\n0,1,1,1\n0,2,,\n1,1,1,1\n1,2,,\n",
            "column 'action': nothing there (in each episode's last row: --last-row-is-final if it holds an",
        ),
        (
            "observation,action,reward\n1,1,1\n",
            "episode or lengths. Give lengths or episode; of a file, --columns episode=NAME",
        ),
    ],
)
def test_broken_csv_is_refused(tmp_path, text, words):
    (tmp_path / "broken.csv").write_text(text)
    problem(lambda: load(tmp_path / "broken.csv"), str(tmp_path / "broken.csv"), words)


@pytest.mark.parametrize("sign", [";", "\t"])
def test_columns_may_be_separated_by_semicolons_or_tabs(tmp_path, sign):
    path = write(tmp_path, "csv")
    path.write_text(path.read_text().replace(",", sign))
    assert load(path).fingerprint == from_arrays(**numbers()).fingerprint


def test_a_column_without_a_name_is_left_alone_and_said(tmp_path):
    path = write(tmp_path, "csv")
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f",{first}", *(f"{i},{row}" for i, row in enumerate(rows))]))
    assert load(path).fingerprint == from_arrays(**numbers()).fingerprint
    assert load(path).notes[0] == "not read: a column without a name"


def test_what_is_compressed_or_a_folder_of_files_says_what_to_do(tmp_path, capsys):
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("a.csv", "b.csv", "c.parquet"):
        (folder / name).touch()
    (tmp_path / "a.csv.gz").touch()
    problem(lambda: load(tmp_path / "a.csv.gz"), "a.csv.gz: neither a Minari", "compressed; unpack it first")
    words = f"{folder}: a folder of files, which are named one by one: {folder}/*.csv {folder}/*.parquet"
    problem(lambda: load(folder), words)
    assert main(["inspect", str(folder)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ([[1.0, 2.0]] * 7 + [[1.0]] * 3, "row 8, column 'observation': 1 numbers, expected 2"),
        ([[1.0, 2.0]] * 7 + [[1.0, None]] * 3, "row 8, column 'observation': nothing there, the first of 3"),
        ([["a", "b"]] * 10, "column 'observation': type list<element: string>, expected numbers"),
    ],
)
def test_broken_lists_are_refused(tmp_path, lists, words):
    path = write(tmp_path, "parquet", observation=lists, **{f"observation_{i}": None for i in range(4)})
    problem(lambda: load(path), str(path), words)


def hole(values, *rows):
    """The same with nothing in these rows."""
    return pyarrow.array([None if i in rows else value for i, value in enumerate(values)])


HOLES = {
    "reward": (numbers()["rewards"], lambda dataset: dataset.rewards),
    "action": (np.arange(10) % 3, lambda dataset: dataset.actions["value"]),
    "observation": (list(numbers()["observations"]), lambda dataset: dataset.observations["value"]),
}


@pytest.mark.parametrize("column", HOLES)
def test_an_episode_with_a_hole_is_a_bad_one(tmp_path, column):
    values, read = HOLES[column]
    values = values.tolist() if isinstance(values, np.ndarray) else values
    one = {f"{column}_{i}": None for i in range(4 if column == "observation" else 2)} | {column: values}
    whole = load(write(tmp_path, "parquet", **one))
    path = write(tmp_path, "parquet", **one | {column: hole(values, 4, 5)})
    words = f"{path}: episode 1, step 1, row 5, column '{column}': nothing there, the first of 2"
    problem(lambda: load(path), words)
    left = load(path, skip_bad_episodes=True)
    assert f"left out: episode 1: column '{column}' nothing there" in left.notes
    assert left.num_episodes == 2
    np.testing.assert_array_equal(read(left), read(whole)[[0, 1, 2, 8, 9]])
    assert read(left).dtype == read(whole).dtype  # integers with a hole stay integers
    assert left.action_space == whole.action_space
    path = write(tmp_path, "parquet", **one | {column: hole(values, 0, 4, 9)})
    problem(lambda: load(path, skip_bad_episodes=True), "episode 0, step 0, row 1", "nothing there, the first of 3")


@pytest.mark.parametrize("cell", ["", "nan", "NaN"])
def test_a_csv_with_an_empty_cell(tmp_path, cell):
    rows = [f"{i // 5},{i}.5,{i % 2},1,{i % 5 == 4}" for i in range(20)]
    rows[7] = f"1,{cell},1,1,False"
    (tmp_path / "hole.csv").write_text("\n".join(["episode,observation,action,reward,terminated", *rows]))
    words = "hole.csv: episode 1, step 2, row 8, column 'observation': nothing there"
    problem(lambda: load(tmp_path / "hole.csv"), words)
    assert load(tmp_path / "hole.csv", skip_bad_episodes=True).num_episodes == 3
    rows[7] = "1,7.5,1,1,"
    (tmp_path / "hole.csv").write_text("\n".join(["episode,observation,action,reward,terminated", *rows]))
    words = "hole.csv: row 8, column 'terminated': nothing there"  # where episodes end is not known
    problem(lambda: load(tmp_path / "hole.csv", skip_bad_episodes=True), words)
    rows[7] = "1,abc,1,1,False"
    (tmp_path / "hole.csv").write_text("\n".join(["episode,observation,action,reward,terminated", *rows]))
    problem(lambda: load(tmp_path / "hole.csv", skip_bad_episodes=True), "row 8, column 'observation': 'abc'")


def test_a_list_with_a_hole_in_it_and_names_with_none(tmp_path):
    lists = [[1.0, 2.0]] * 7 + [[1.0, None]] + [[1.0, 2.0]] * 2
    one = {"observation": lists, **{f"observation_{i}": None for i in range(4)}}
    left = load(write(tmp_path, "parquet", **one), skip_bad_episodes=True)
    assert left.observations["value"].tolist() == [[1.0, 2.0]] * 5
    path = write(tmp_path, "parquet", episode=pyarrow.array(["a"] * 3 + [None] * 5 + ["b"] * 2))
    problem(lambda: load(path, skip_bad_episodes=True), "row 4, column 'episode': nothing there")


@pytest.mark.parametrize("row", [3, 5, 6])
def test_holes_beside_what_each_step_leads_to(tmp_path, row):
    after = np.roll(numbers()["observations"], -1, axis=0)
    table = {f"next_observation_{i}": after[:, i] for i in range(4)}
    holes = {"observation_1": hole(numbers()["observations"][:, 1].tolist(), row)}
    assert load(write(tmp_path, "parquet", **table, **holes), skip_bad_episodes=True).num_episodes == 2
    arrays = {**numbers(), "observations": put(NAN, row, 1)(numbers()["observations"]), "next_observations": after}
    write_npz(tmp_path / "nan.npz", arrays)
    assert load(tmp_path / "nan.npz", skip_bad_episodes=True).num_episodes == 2


EPISODES = {
    "no reward": ({"rewards": None}, "episode 1: no 'rewards' in it, only actions, observations, terminated"),
    "NaN": ({"observations": put(NAN, 2, 1)}, "episode 1, step 2, observations[1]: nan is not finite"),
    "too few actions": ({"actions": lambda old: old[1:]}, "episode 1, actions: shape (4, 2), expected (5, 2)"),
    "final observation in one": (
        {"observations": np.zeros((6, 4))},
        "episode 1, observations: shape (6, 4), expected (5, 4)",
    ),
    "other observations": (
        {"observations": np.zeros((5, 3))},
        "episode 1, observations: shape (5, 3), expected (5, 4)",
    ),
    "end too early": ({"terminated": [0, 1, 0, 0, 0]}, "episode 1, terminated: true at step 1, before the last step"),
    "too few flags": ({"truncated": [0, 1]}, "episode 1, truncated: shape (2,), expected () or (5,)"),
    "a flag that is none": ({"truncated": 7}, "episode 1, truncated: 7 at 0, expected true or false"),
    "one number": ({"rewards": 1.0}, "episode 1, rewards: one number, expected an array"),
    "nested": ({"actions": {"a": np.zeros((5, 2))}}, "episode 1, actions: ['a'], expected []"),
}


@pytest.mark.parametrize(("changes", "words"), EPISODES.values(), ids=EPISODES)
def test_broken_episodes_are_refused(changes, words):
    arrays = numbers()
    cuts = {name: np.split(array, ENDS[:-1] + 1) for name, array in arrays.items()}
    episodes = [{name: parts[i] for name, parts in cuts.items()} for i in range(3)]
    episodes[1] = changed(episodes[1], changes)
    problem(lambda: from_episodes(episodes, name="mine"), f"mine: {words}")


def test_no_episode_is_no_dataset():
    problem(lambda: from_episodes([]), "episodes: no episode in it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "--spaces: expected observation_space, action_space or both, found []"),
        ('{"actions": {}}', "found ['actions']"),
        ('{"action_space": {"type": "Box"}}', "--spaces: action_space: not a space"),
        ('{"action_space"', "--spaces: not JSON"),
        ("nowhere.json", "--spaces: nowhere.json: no such file; JSON, if that is meant, is such as {"),
        (
            "MultiDiscrete([3, 3])",
            "--spaces: MultiDiscrete([3, 3]): no such file; JSON, if that is meant, is such as {",
        ),
        ("x" * 5000, "no such file"),
        ('{"type": "Discrete", "n": 3}', "found ['n', 'type'], and not such as {\"action_space\": {"),
    ],
)
def test_broken_spaces_are_refused(text, words):
    problem(lambda: spaces_from_json(text), words)


def test_a_space_that_the_numbers_do_not_fit():
    box, three = spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(3)
    problem(lambda: from_arrays(**numbers(), action_space=box), "actions: shape (10, 2), expected (10, 3)")
    scalars = {**numbers(), "actions": np.arange(10) % 5}
    problem(lambda: from_arrays(**scalars, action_space=three), "episode 1, step 0, actions: 3 is outside Discrete(3)")
    halves = {**numbers(), "actions": np.arange(10) / 5}
    problem(lambda: from_arrays(**halves, action_space=three), "actions: type float64, the space says int64")
    halved = {**numbers(), "observations": {"a": np.zeros((13, 2)), "b": np.zeros((10, 2))}}
    problem(lambda: from_arrays(**halved), "observations/b: shape (10, 2), expected (13, 2)")
    wrong = {**numbers(), "actions": {"a": np.zeros(10)}}
    problem(lambda: from_arrays(**wrong, action_space=spaces.Dict(b=three)), "actions: does not nest as Dict")


def test_every_problem_is_known_and_the_first_is_told(tmp_path):
    broken = {"rewards": lambda old: put(NAN, 4)(put(NAN, 7)(old)), "actions": put(np.inf, 2, 0)}
    path = write(tmp_path, "npz", **broken)
    error = problem(lambda: load(path), "rewards", "(and 1 more; `dt inspect` lists them)")
    assert error.problems == (
        f"{path}: episode 1, step 1, rewards: nan is not finite, the first of 2",
        f"{path}: episode 0, step 2, actions[0]: inf is not finite",
    )
