"""Recorded episodes: what Minari wrote is read as Minari reads it, and what is broken is refused by name."""

import json
import shutil
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest import mock

import h5py
import minari
import numpy as np
import pyarrow.ipc
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset import _storages
from minari.dataset._storages.arrow_storage import ArrowStorage

from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from envs.errors import DataError
from envs.reading.hdf5 import numbers_at, open_hdf5
from envs.reading.readers import PACKAGED
from envs.space_json import space_to_json
from envs.spaces import ROOT, to_leaves

LENGTHS = (3, 5, 2)
FLAT = (spaces.Box(-9, 9, (7,), np.float32), spaces.Discrete(4, start=2))
GRIPPER = spaces.Dict(force=spaces.Box(-9, 9, (2, 3), np.float64), open=spaces.Discrete(2))
NESTED = spaces.Dict(arm=spaces.Dict(position=spaces.Box(-9, 9, (5,), np.float64), gripper=GRIPPER), zone=FLAT[1])
SEVERAL = spaces.Tuple([spaces.Box(-9, 9, (5,), np.float32), spaces.Discrete(3), spaces.Dict(hand=GRIPPER)])
KINDS = {
    "flat": FLAT,
    "dict": (NESTED, spaces.Box(-1, 1, (2,), np.float32)),
    "tuple": (SEVERAL, spaces.Discrete(3)),
    "dict and tuple": (NESTED, SEVERAL),
    "choices": (
        spaces.Tuple([spaces.MultiBinary([2, 3]), spaces.Discrete(3)]),
        spaces.MultiDiscrete([3, 5], start=[0, -2]),
    ),
}


def samples(space, count):
    """As many values of the space, stacked the way the space nests."""
    if isinstance(space, spaces.Dict):
        return {key: samples(child, count) for key, child in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(samples(child, count) for child in space)
    return np.stack([space.sample() for _ in range(count)])


def random_episodes(observation_space, action_space, lengths=LENGTHS) -> list[EpisodeBuffer]:
    rng = np.random.default_rng(0)
    for seed, space in enumerate((observation_space, action_space)):
        space.seed(seed)
    return [
        EpisodeBuffer(
            observations=samples(observation_space, length + 1),
            actions=samples(action_space, length),
            rewards=rng.normal(size=length),
            terminations=(np.arange(length) == length - 1) & (i % 2 == 0),  # one ends, the next is cut, ...
            truncations=(np.arange(length) == length - 1) & (i % 2 == 1),
        )
        for i, length in enumerate(lengths)
    ]


def write(identity: str, episodes: list[EpisodeBuffer], observation_space, action_space, **more) -> str:
    """A dataset by Minari's own writer, below the folder that MINARI_DATASETS_PATH names."""
    minari.create_dataset_from_buffers(
        identity, episodes, observation_space=observation_space, action_space=action_space, **more
    )
    return identity


def write_npz(path: Path, dataset: Dataset, **changes) -> Path:
    """The same episodes in flat arrays, each episode's last observation included; None leaves an array out."""
    episodes = [dataset.episode(i) for i in range(dataset.num_episodes)]
    metadata = {
        "dataset_id": dataset.name,
        "observation_space": space_to_json(dataset.observation_space),
        "action_space": space_to_json(dataset.action_space),
    }
    arrays = {
        "observations": np.concatenate([e.observations["value"] for e in episodes]),
        "actions": dataset.actions["value"],
        "rewards": dataset.rewards,
        "lengths": dataset.lengths,
        "terminated": dataset.terminated,
        "metadata": np.asarray(json.dumps({**metadata, **changes.pop("described", {})})),
    }
    np.savez_compressed(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
    return path


def assert_same(ours, theirs):
    """Leaves of the same names, shapes, types and numbers."""
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], strict=True)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Minari's own root, empty."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The folder of a good flat dataset, only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("minari")
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        return root / write("flat/good-v0", random_episodes(*FLAT), *FLAT)


@pytest.fixture
def folder(template, tmp_path) -> Path:
    """The same, to be broken."""
    return Path(shutil.copytree(template, tmp_path / "dataset"))


# What is read.


def test_hdf5_keeps_little_of_the_headers_of_what_was_read(tmp_path):
    path, names = tmp_path / "many.hdf5", ("observations", "actions", "rewards")
    with h5py.File(path, "w") as file:
        for i in range(500):
            for name in names:
                file.create_dataset(f"episode_{i}/{name}", data=np.zeros((60, 2)), chunks=(7, 1))
    with open_hdf5(path) as file:
        for i in range(500):
            for name in names:
                numbers_at(file, path, f"episode_{i}/{name}")
        assert file.id.get_mdc_size()[2] <= 1 << 20  # bytes now


@pytest.mark.parametrize("stored", ["compressed", "big-endian", "declared and never written"])
def test_hdf5_of_other_writers_is_read(root, stored):
    """Rewards in the types and layouts that Minari does not write are read as h5py reads them."""
    identity = write("any/stored-v0", random_episodes(*FLAT), *FLAT)
    expected = load(identity, cache="off")
    with h5py.File(root / identity / "data" / "main_data.hdf5", "a") as file:
        for episode in file.values():
            rewards = episode["rewards"][()]
            del episode["rewards"]
            if stored == "compressed":
                episode.create_dataset("rewards", data=rewards, chunks=(2,), compression="gzip")
            elif stored == "big-endian":
                episode.create_dataset("rewards", data=rewards, dtype=rewards.dtype.newbyteorder(">"))
            else:
                episode.create_dataset("rewards", shape=rewards.shape, dtype=rewards.dtype, fillvalue=-7)
    found = load(identity, cache="off")
    if stored != "declared and never written":
        assert found.fingerprint == expected.fingerprint
    else:
        assert (found.rewards == -7).all()
        assert (found.actions[ROOT] == expected.actions[ROOT]).all()


def test_arrow_of_other_writers_is_read(root):
    """Observations in lists of any length, an episode in two batches, another in two files."""
    identity = write("flat/lists-v0", random_episodes(*FLAT), *FLAT, data_format="arrow")
    expected = load(identity, cache="off").fingerprint
    for number in range(3):
        (path,) = (root / identity / "data" / str(number)).glob("*.arrow")
        table = pyarrow.ipc.open_file(path.read_bytes()).read_all()
        place, lists = table.schema.names.index("observations"), pyarrow.list_(pyarrow.float32())
        parts = [table.set_column(place, "observations", table["observations"].cast(lists))]
        if number == 2:
            parts, path = [table[:1], table[1:]], path.with_name("part-9.arrow")
            (path.parent / "part-0.arrow").unlink()
        for part in parts:
            with pyarrow.ipc.new_file(path, part.schema) as file:
                file.write_table(part, max_chunksize=2 if number == 1 else None)
            path = path.with_name("part-10.arrow")
    assert load(identity, cache="off").fingerprint == expected


@pytest.mark.parametrize("layout", ["hdf5", "arrow", "parquet"])
def test_loading_takes_three_times_the_arrays_at_most(root, layout):
    rng, box = np.random.default_rng(0), spaces.Box(-9, 9, (50,), np.float32)
    episodes = [
        EpisodeBuffer(
            observations=rng.normal(size=(1001, 50)).astype(np.float32),
            actions=np.zeros((1000, 50), np.float32),
            rewards=np.zeros(1000),
            terminations=np.arange(1000) == 999,
            truncations=np.zeros(1000, bool),
        )
        for _ in range(20)
    ]
    identity = write("large/box-v0", episodes, box, box, data_format=layout)
    load(identity, cache="off")  # what is imported once
    tracemalloc.start()
    dataset = load(identity, cache="off")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(array.nbytes for array in (dataset.observations["value"], dataset.actions["value"], dataset.rewards))
    assert size < peak < 3 * size


def test_a_damaged_arrow_dataset_is_refused(root):
    identity = write("flat/arrow-v0", random_episodes(*FLAT), *FLAT, data_format="arrow")
    for path in (root / identity / "data").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-40])
    refused(identity, "cannot be read as Arrow")


class TomorrowStorage(ArrowStorage):
    """A layout that Minari knows and we do not: its own Arrow under another name."""

    FORMAT = "tomorrow"

    def update_episodes(self, episodes):
        with mock.patch.object(type(self), "FORMAT", "arrow"):
            super().update_episodes(episodes)

    def get_episodes(self, episode_indices):
        with mock.patch.object(type(self), "FORMAT", "arrow"):
            yield from list(super().get_episodes(episode_indices))


@pytest.fixture
def tomorrow(monkeypatch):
    monkeypatch.setitem(_storages._registry, "tomorrow", lambda: TomorrowStorage)


@pytest.mark.parametrize("layout", ["hdf5", "arrow", "parquet", "tomorrow"])
@pytest.mark.parametrize(("observation_space", "action_space"), KINDS.values(), ids=KINDS)
def test_read_as_minari_reads_it(root, observation_space, action_space, layout, tomorrow):
    recorded = random_episodes(observation_space, action_space)
    identity = write("any/kind-v0", recorded, observation_space, action_space, data_format=layout)
    dataset, theirs = load(identity), minari.load_dataset(identity)
    assert (dataset.name, dataset.num_episodes, dataset.num_steps) == (identity, len(LENGTHS), sum(LENGTHS))
    assert (dataset.observation_space, dataset.action_space) == (observation_space, action_space)
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.offsets.tolist() == [0, 3, 8, 10]
    for i, expected in enumerate(theirs.iterate_episodes()):
        ours = dataset.episode(i)
        assert_same(ours.observations, to_leaves(observation_space, expected.observations))
        assert_same(ours.actions, to_leaves(action_space, expected.actions))
        np.testing.assert_array_equal(ours.rewards, expected.rewards, strict=True)
        assert all(len(array) == len(ours) + 1 for array in ours.observations.values())
        assert (ours.terminated, ours.truncated) == (expected.terminations[-1], expected.truncations[-1])
        assert dataset.returns[i] == pytest.approx(expected.rewards.sum(), abs=1e-12)
    assert (dataset.notes, dataset.environment, dataset.reference) == ((), None, None)


def test_episodes_come_in_the_order_of_their_numbers(root):
    lengths = range(1, 13)  # episode_10 comes before episode_2 in the file's own order
    dataset = load(write("flat/many-v0", random_episodes(*FLAT, lengths=lengths), *FLAT))
    assert dataset.lengths.tolist() == list(lengths)


def test_a_dataset_of_a_registered_environment(root):
    space = spaces.Box(-1, 1, (4,), np.float32)
    episodes = random_episodes(space, spaces.Discrete(2))
    options = {"env": "CartPole-v1", "ref_min_score": 20.0, "ref_max_score": 500.0}
    dataset = load(write("cartpole/random-v0", episodes, None, None, **options))
    assert (dataset.environment.id, dataset.environment.max_episode_steps) == ("CartPole-v1", 500)
    assert (dataset.reference.minimum, dataset.reference.maximum) == (20.0, 500.0)
    assert dataset.observation_space.shape == (4,)
    assert dataset.action_space == spaces.Discrete(2)


def test_found_by_id_by_folder_and_by_its_data(template, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(template.parent.parent))
    by_id = load("flat/good-v0")
    for source in (template, str(template), template / "data", template / "data" / "main_data.hdf5"):
        assert load(source).fingerprint == by_id.fingerprint


def test_episodes_are_indexed_as_a_list(template):
    dataset = load(template)
    np.testing.assert_array_equal(dataset.episode(-1).rewards, dataset.episode(2).rewards)
    assert len(dataset.episode(-1)) == LENGTHS[-1]
    with pytest.raises(IndexError):
        dataset.episode(3)


def test_the_fingerprint_is_what_is_learnt_from(folder):
    original = load(folder).fingerprint
    edit_metadata(dataset_id="another/name-v7", author=["somebody"])(folder)
    assert load(folder).name == "another/name-v7"
    assert load(folder).fingerprint == original
    seen = {original}
    for field, place, change in (
        ("rewards", (1,), lambda old: old + 1e-9),
        ("observations", (1, 3), lambda old: old + 1),
        ("actions", (1,), lambda old: old ^ 1),  # 2 for 3, 4 for 5
    ):
        edit(field, lambda array, place=place, change=change: put(change(array[place]), *place)(array))(folder)
        seen.add(load(folder).fingerprint)
    assert len(seen) == 4


def test_what_is_odd_is_noted_and_read(root):
    observation_space, action_space = spaces.Box(-9, 9, (7,), np.float64), spaces.Box(-1, 1, (2,), np.float32)
    episodes = random_episodes(observation_space, action_space)
    episodes = [replace(each, observations=each.observations.astype(np.float32)) for each in episodes]
    episodes[0] = replace(episodes[0], terminations=np.zeros(LENGTHS[0], bool))
    episodes[1].actions[1:3, 1] = 1.5
    dataset = load(write("flat/odd-v0", episodes, observation_space, action_space))
    assert dataset.notes == (
        "observations are recorded as float32, the space says float64",
        "actions: 2 of 10 steps are beyond the space's bounds",
        "1 of 3 episodes neither terminate nor are truncated",
    )
    assert dataset.actions["value"][4, 1] == 1.5
    assert dataset.terminated.tolist() == [False, False, True]
    assert dataset.truncated.tolist() == [False, True, False]


# Flat arrays.


@pytest.mark.parametrize("integers", [np.int64, np.uint8])
def test_flat_arrays_are_the_same_dataset(template, tmp_path, integers):
    expected = load(template)
    dataset = load(write_npz(tmp_path / "flat.npz", expected, lengths=expected.lengths.astype(integers)))
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.name == expected.name
    assert_same(dataset.final_observations, expected.final_observations)
    for field in ("terminated", "truncated", "returns", "lengths"):
        np.testing.assert_array_equal(getattr(dataset, field), getattr(expected, field))


def test_lengths_may_be_as_narrow_as_they_fit(root, tmp_path):
    expected = load(write("flat/long-v0", random_episodes(*FLAT, lengths=(127, 3)), *FLAT))
    dataset = load(write_npz(tmp_path / "flat.npz", expected, lengths=expected.lengths.astype(np.int8)))
    assert_same(dataset.final_observations, expected.final_observations)
    assert_same(dataset.observations, expected.observations)


def test_numbers_of_the_other_byte_order_become_native(template, tmp_path):
    expected = load(template)
    swapped = {"actions": expected.actions["value"].astype(">i8"), "rewards": expected.rewards.astype(">f8")}
    dataset = load(write_npz(tmp_path / "flat.npz", expected, **swapped))
    assert dataset.rewards.dtype.isnative  # torch takes no others
    assert dataset.notes == ()
    assert dataset.fingerprint == expected.fingerprint


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.npz")), ids=lambda path: path.stem)
def test_what_ships_with_the_package_is_read_by_its_id(path, root):
    dataset = load(load(path).name)
    assert dataset.source == path
    assert dataset.environment is not None
    assert dataset.returns.max() > dataset.returns.min()


# What is not there.


def test_a_missing_id_names_the_root_and_the_option(root):
    refused("no/such-v0", "no/such-v0", str(root), "--download")


@pytest.mark.parametrize("source", ["", "../secrets", "a/../../b", "~/x", "/nowhere/x", "nowhere.npz", "x" * 400])
def test_a_path_that_is_not_there_is_refused_and_never_an_id(source, root, monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", lambda identity: pytest.fail(f"downloads {identity}"))
    with pytest.raises(DataError, match=r"\A.*(no such file or folder|File name too long|no dataset named)\Z"):
        load(source, download=True)


def test_neither_a_folder_nor_flat_arrays(tmp_path):
    (tmp_path / "data.dat").write_text("1,2")
    refused(tmp_path / "data.dat", "data.dat", ".npz", ".hdf5", ".csv", ".parquet")


def test_downloaded_where_asked_for(root, monkeypatch):
    asked = []

    def download(identity):
        asked.append(identity)
        write(identity, random_episodes(*FLAT), *FLAT)

    monkeypatch.setattr(minari, "download_dataset", download)
    refused("flat/remote-v0", "--download")
    assert asked == []
    assert load("flat/remote-v0", download=True).num_steps == sum(LENGTHS)
    load("flat/remote-v0", download=True)  # it is here now
    assert asked == ["flat/remote-v0"]


@pytest.mark.parametrize(("error", "words"), [(OSError("no network\nat all"), "no network"), (KeyError(), "KeyError")])
def test_a_download_that_fails_is_a_data_error(root, monkeypatch, error, words):
    def download(identity):
        raise error

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(DataError, match=rf"\Aflat/remote-v0: cannot be downloaded \({words}\)\Z"):
        load("flat/remote-v0", download=True)


def test_loading_never_imports_what_the_file_names(folder, tmp_path, monkeypatch):
    sung = tmp_path / "sung"
    (tmp_path / "module_that_must_not_be_imported.py").write_text(f"open({str(sung)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    identity = "module_that_must_not_be_imported:Env-v0"
    specification = {"id": identity, "entry_point": "module_that_must_not_be_imported:Env", "kwargs": {}}
    edit_metadata(env_spec=json.dumps(specification))(folder)
    assert load(folder).environment.id == identity
    assert not sung.exists()
    assert "module_that_must_not_be_imported" not in sys.modules


# What is broken. A message is one line, and names the file, the episode and the field.


def refused(source, *words, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message


def edit_metadata(**changes):
    """Change what a Minari folder's metadata.json says; None takes an entry away."""

    def change(folder: Path):
        path = folder / "data" / "metadata.json"
        metadata = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))

    return change


def edit_file(name, change):
    """Change the bytes of a file of a Minari folder; None deletes it."""

    def write_over(folder: Path):
        path = folder / "data" / name
        path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))

    return write_over


def edit(field, change, group="episode_1"):
    """Change one array of a Minari folder's episode; None deletes it."""

    def write_over(folder: Path):
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            array = file[f"{group}/{field}"][()]
            del file[f"{group}/{field}"]
            if change is not None:
                file[f"{group}/{field}"] = change(array)

    return write_over


def edit_every(field, change):
    """Change one array in every episode: where only one has another type, they are joined in a type that fits both."""

    def write_over(folder: Path):
        for i in range(len(LENGTHS)):
            edit(field, change, f"episode_{i}")(folder)

    return write_over


def edit_groups(change):
    """Change the groups of a Minari folder's HDF5 file."""

    def write_over(folder: Path):
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            change(file)

    return write_over


def put(value, *index):
    """Write a value into one place of an array, made wider where it must be."""

    def change(array):
        array = array.astype(np.result_type(array, np.asarray(value)))
        array[index] = value
        return array

    return change


BROKEN_SPACE = '{"type": "Box", "shape": [2]}'
UPSIDE_DOWN = json.dumps({"type": "Box", "shape": [99], "dtype": "float32", "low": [1.0] * 99, "high": [0.0] * 99})
TEXT = space_to_json(spaces.Text(5))
METADATA = {
    "missing": (edit_file("metadata.json", None), ["cannot be read"]),
    "empty": (edit_file("metadata.json", lambda _: b""), ["not JSON"]),
    "not JSON": (edit_file("metadata.json", lambda old: old[:-9]), ["not JSON"]),
    "nested too deep": (edit_file("metadata.json", lambda _: b"[" * 100_000), ["not JSON"]),
    "not text": (edit_file("metadata.json", lambda _: b"\xff\xfe\x00"), ["not a text file"]),
    "not an object": (edit_file("metadata.json", lambda _: b"[1]"), ["no JSON object"]),
    "no observation space": (edit_metadata(observation_space=None), ["no observation_space"]),
    "no action space": (edit_metadata(action_space=None), ["no action_space"]),
    "broken space": (edit_metadata(action_space=BROKEN_SPACE), ["action_space: not a space"]),
    "space with its bounds swapped": (edit_metadata(observation_space=UPSIDE_DOWN), ["observation_space: not a space"]),
    "space that is a number": (edit_metadata(observation_space=7), ["observation_space: not a space"]),
    "unsupported space": (edit_metadata(observation_space=TEXT), ["observation_space: Text is not supported"]),
    "another layout": (edit_metadata(data_format="zarr"), ["data_format 'zarr'"]),
    "broken environment": (edit_metadata(env_spec="{"), ["not an environment's specification"]),
    "environment with an endless limit": (
        edit_metadata(env_spec='{"id": "A-v0", "max_episode_steps": 1e999}'),
        ["A-v0"],
    ),
}


def test_a_space_of_the_users_stands_in_for_one_that_is_not_supported(folder):
    edit_metadata(observation_space=TEXT)(folder)
    dataset = load(folder, spaces={"observation_space": FLAT[0]})
    assert dataset.observation_space == FLAT[0]


@pytest.mark.parametrize(("damage", "words"), METADATA.values(), ids=METADATA)
def test_broken_metadata_is_refused(folder, damage, words):
    damage(folder)
    refused(folder, str(folder / "data" / "metadata.json"), *words)


def tear_in_half(file):
    return file[: len(file) // 2]


def rename_episode(file):
    file.move("episode_1", "episode_one")


def replace_episode(file):
    del file["episode_1"]
    file["episode_1"] = np.zeros(3)


def declare_a_huge_array(file):
    del file["episode_1/rewards"]
    file.create_dataset("episode_1/rewards", shape=(10**15,), chunks=(10,))


NAN, INFINITY = np.float32("nan"), np.float32("inf")
DATA = {
    "no file": (edit_file("main_data.hdf5", None), ["no such file"]),
    "empty file": (edit_file("main_data.hdf5", lambda _: b""), ["cannot be read"]),
    "truncated file": (edit_file("main_data.hdf5", tear_in_half), ["cannot be read"]),
    "damaged file": (edit_file("main_data.hdf5", lambda old: old.replace(b"SNOD", b"XXXX")), ["cannot be read"]),
    "no episode": (edit_groups(lambda file: file.clear()), ["no episode"]),
    "another count": (edit_metadata(total_episodes=4), ["3 episodes", "says 4"]),
    "episode without a number": (edit_groups(rename_episode), ["episode_one"]),
    "episode that is an array": (edit_groups(replace_episode), ["episode_1/rewards", "missing"]),
    "huge array": (edit_groups(declare_a_huge_array), ["episode_1/rewards", "more than 64 MB"]),
    "no rewards": (edit("rewards", None), ["episode_1/rewards", "missing"]),
    "rewards of rank 2": (edit("rewards", lambda old: old[:, None]), ["episode_1/rewards", "(5, 1)"]),
    "empty rewards": (edit("rewards", lambda old: old[:0]), ["episode_1/rewards", "(0,)"]),
    "rewards that are text": (edit("rewards", lambda old: ["much"] * 5), ["episode_1/rewards", "numbers"]),
    "rewards that are flags": (edit_every("rewards", lambda old: old > 0), ["rewards", "bool", "numbers"]),
    "NaN reward": (edit("rewards", put(NAN, 2)), ["episode 1, step 2", "rewards", "nan is not finite"]),
    "infinite reward": (edit("rewards", put(-INFINITY, 4)), ["episode 1, step 4", "rewards", "-inf is not finite"]),
    "T observations": (edit("observations", lambda old: old[:-1]), ["episode_1/observations", "(5, 7)", "(6, 7)"]),
    "wrong shape": (edit("observations", lambda old: old[:, 1:]), ["episode_1/observations", "(6, 6)", "(6, 7)"]),
    "no observations": (edit("observations", None), ["episode_1/observations", "missing"]),
    "integer observations": (
        edit_every("observations", lambda old: old.astype(int)),
        ["observations", "int64", "float32"],
    ),
    "NaN observed": (edit("observations", put(NAN, 3, 5)), ["episode 1, step 3", "observations[5]", "nan"]),
    "infinity observed": (edit("observations", put(INFINITY, 0, 0)), ["episode 1, step 0", "observations[0]", "inf"]),
    "NaN at the end": (edit("observations", put(NAN, -1, 6)), ["episode 1, final observation[6]", "nan"]),
    "T - 1 actions": (edit("actions", lambda old: old[:-1]), ["episode_1/actions", "(4,)", "(5,)"]),
    "float actions": (edit("actions", lambda old: old.astype(float)), ["actions", "float64", "int64"]),
    "action below": (edit("actions", put(1, 4)), ["episode 1, step 4", "actions", "1 is outside Discrete(4, start=2)"]),
    "action above": (edit("actions", put(6, 0)), ["episode 1, step 0", "actions", "6 is outside Discrete(4, start=2)"]),
    "actions that are records": (edit("actions", lambda old: np.zeros(5, "i4,i4")), ["episode_1/actions", "numbers"]),
    "ends in the middle": (edit("terminations", put(True, 1)), ["episode_1/terminations", "step 1"]),
    "cut in the middle": (edit("truncations", put(True, 3)), ["episode_1/truncations", "step 3"]),
    "too few flags": (edit("terminations", lambda old: old[1:]), ["episode_1/terminations", "(4,)", "(5,)"]),
    "flags that are text": (edit("truncations", lambda old: ["no"] * 5), ["episode_1/truncations", "numbers"]),
}


@pytest.mark.parametrize(("damage", "words"), DATA.values(), ids=DATA)
def test_broken_data_is_refused(folder, damage, words):
    damage(folder)
    refused(folder, str(folder / "data" / "main_data.hdf5"), *words)


NESTED_DATA = {
    "missing key": (
        edit("observations/arm/gripper/force", None),
        ["episode_1/observations/arm/gripper/force", "missing"],
    ),
    "missing part": (edit("actions/_index_2/hand/open", None), ["episode_1/actions/_index_2/hand/open", "missing"]),
    "wrong shape": (
        edit("observations/arm/position", lambda old: old[:, :2]),
        ["episode_1/observations/arm/position", "(6, 2)", "(6, 5)"],
    ),
    "NaN": (
        edit("actions/_index_2/hand/force", put(NAN, 4, 1, 2)),
        ["episode 1, step 4", "actions/2/hand/force[1, 2]"],
    ),
    "NaN at the end": (
        edit("observations/arm/position", put(NAN, -1, 3)),
        ["episode 1, final observation/arm/position[3]"],
    ),
    "out of range": (edit("observations/zone", put(7, 0)), ["episode 1, step 0", "observations/zone", "7 is outside"]),
    "array in place of a group": (edit_groups(replace_episode), ["episode_1/rewards", "missing"]),
}


@pytest.mark.parametrize(("damage", "words"), NESTED_DATA.values(), ids=NESTED_DATA)
def test_broken_nested_data_is_refused_by_its_path(root, damage, words):
    spaces_of = KINDS["dict and tuple"]
    identity = write("nested/good-v0", random_episodes(*spaces_of), *spaces_of)
    damage(root / identity)
    refused(identity, "main_data.hdf5", *words)


def zero(count, kind=np.float32):
    return np.zeros(count, kind)


ARRAYS = {
    **{f"no {name}": ({name: None}, [repr(name)]) for name in ("observations", "actions", "rewards", "lengths")},
    "no end": ({"terminated": None, "lengths": None}, ["where episodes end"]),
    "metadata not JSON": ({"metadata": np.asarray("{")}, ["not JSON"]),
    "metadata not text": ({"metadata": zero(3)}, ["metadata"]),
    "broken space": ({"described": {"action_space": BROKEN_SPACE}}, ["action_space: not a space"]),
    "nested space": (
        {"described": {"observation_space": space_to_json(NESTED)}},
        ["observations", "one array cannot hold Dict"],
    ),
    "pickled": ({"actions": np.asarray([{}] * 10, object)}, ["actions: type object is a pickle"]),
    "lengths that disagree": ({"lengths": np.asarray([3, 5, 3])}, ["rewards", "(10,)", "(11,)"]),
    "lengths of another split": ({"lengths": np.asarray([3, 7])}, ["terminated", "(3,)", "(2,)"]),
    "no length": ({"lengths": zero(0, int)}, ["lengths"]),
    "length of zero": ({"lengths": np.asarray([0, 5, 5])}, ["lengths"]),
    "float lengths": ({"lengths": np.asarray([3.0, 5.0, 2.0])}, ["lengths", "float64"]),
    "lengths of rank 2": ({"lengths": np.asarray([[3, 5, 2]])}, ["lengths"]),
    "lengths that are text": ({"lengths": np.asarray(["3", "5", "2"])}, ["lengths", "numbers"]),
    "too few actions": ({"actions": zero(9, int)}, ["actions", "(9,)", "(10,)"]),
    "observations of no length": ({"observations": zero((11, 7))}, ["observations", "(11, 7)", "(10, 7) or (13, 7)"]),
    "NaN rewards": ({"rewards": np.full(10, np.nan)}, ["episode 0, step 0", "rewards", "nan"]),
    "NaN observed": ({"observations": put(NAN, 4, 1)(zero((13, 7)))}, ["episode 1, step 0", "observations[1]", "nan"]),
    "NaN at the end": ({"observations": put(NAN, 9, 1)(zero((13, 7)))}, ["episode 1, final observation[1]", "nan"]),
}


@pytest.mark.parametrize(("changes", "words"), ARRAYS.values(), ids=ARRAYS)
def test_broken_flat_arrays_are_refused(template, tmp_path, changes, words):
    path = write_npz(tmp_path / "broken.npz", load(template), **dict(changes))
    refused(path, str(path), *words)


def test_any_byte_may_be_damaged_in_flat_arrays(template, tmp_path):
    good = write_npz(tmp_path / "good.npz", load(template)).read_bytes()
    broken, messages = tmp_path / "broken.npz", set()
    for place in range(0, len(good), 7):
        broken.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            load(broken)  # some bytes are dates
        except DataError as error:
            messages.add(str(error))
    assert len(messages) > 3
    assert all(message.startswith(str(broken)) for message in messages)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04", None], ids=str)
def test_what_is_no_zip_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.npz"
    if content is None:
        with path.open("wb") as file:
            np.save(file, zero(3))  # one bare array
    else:
        path.write_bytes(content)
    refused(path, str(path), "cannot be read as .npz")
