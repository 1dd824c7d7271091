"""Malformed inputs, each made by a few lines: what is wrong with it, and what a refusal of it has to say.

`python tests/malformed.py FOLDER` writes them all there. `CASES` has them by reader and name; a case's `make` puts one
into an empty folder and gives the arguments of the command that meets it.
"""

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
from formats import LAYOUTS, recording
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from pyarrow import parquet

from envs.space_json import space_to_json

LENGTHS = (3, 5, 2)
STEPS = sum(LENGTHS)
BOX, CHOICE = spaces.Box(-9, 9, (7,), np.float32), spaces.Discrete(4)
PARTS = spaces.Dict(arm=BOX, zone=CHOICE)
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One malformed input. words: what its one line has to hold beside its file."""

    make: Callable[[Path], list[str]]
    words: tuple[str, ...]


CASES: dict[str, dict[str, Case]] = {}


def case(reader: str, name: str, make: Callable[[Path], Any], *words: str, command: str = "inspect") -> None:
    """A file or folder that `make` writes, met by one command."""
    CASES.setdefault(reader, {})[name] = Case(lambda folder: [command, str(make(folder))], words)


# Minari's two layouts.


def minari(folder: Path, layout: str, observation_space: Any = BOX) -> Path:
    """A good dataset in Minari's layout: its folder."""
    rng, path = np.random.default_rng(0), folder / "dataset"
    (path / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        path / "data", observation_space=observation_space, action_space=CHOICE, data_format=layout
    )
    storage.update_metadata({"dataset_id": "some/numbers-v0", "minari_version": "0.5.4"})
    storage.update_episodes(
        EpisodeBuffer(
            observations=seen(observation_space, length + 1, rng),
            actions=rng.integers(4, size=length),
            rewards=rng.normal(size=length),
            terminations=np.arange(length) == length - 1,
            truncations=np.zeros(length, bool),
            infos={},
        )
        for length in LENGTHS
    )
    return path


def seen(space: Any, count: int, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: seen(child, count, rng) for key, child in space.spaces.items()}
    return rng.integers(4, size=count) if space is CHOICE else rng.normal(size=(count, 7)).astype(np.float32)


def hdf5(change: Callable[[Any], Any], space: Any = BOX) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = minari(folder, "hdf5", space)
        with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
            change(file)
        return path

    return make


def array(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Change one array of an HDF5 file; None takes it away."""

    def edit(file: Any) -> None:
        old = file[name][()]
        del file[name]
        new = change(old)
        if new is not None:
            file[name] = new

    return edit


def at(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Change one array of the second episode."""
    return array(f"episode_1/{name}", change)


def put(value: Any, *index: int) -> Callable[[Any], Any]:
    """Write a value into one place of an array."""

    def change(old: Any) -> Any:
        new = np.array(old, np.result_type(old, np.asarray(value)))
        new[index] = value
        return new

    return change


def described(layout: str, **changes: Any) -> Callable[[Path], Path]:
    """A dataset whose metadata says something else; None takes an entry away."""

    def make(folder: Path) -> Path:
        path = minari(folder, layout)
        file = path / "data" / "metadata.json"
        metadata = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))
        return path

    return make


def bytes_of(name: str, change: Callable[[bytes], bytes], layout: str = "hdf5") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = minari(folder, layout)
        file = path / "data" / name
        file.write_bytes(change(file.read_bytes()))
        return path

    return make


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit in the middle of every kB is another."""
    new = bytearray(content)
    for i in range(0, len(new), 1024):
        new[i] ^= 16
    return bytes(new)


def box(**changes: Any) -> str:
    return json.dumps({**json.loads(space_to_json(BOX)), **changes})


M = "minari hdf5"
case(M, "cut in half", bytes_of("main_data.hdf5", half), "main_data.hdf5: cannot be read")
case(M, "flipped bits", bytes_of("main_data.hdf5", flipped), "main_data.hdf5: cannot be read")
case(M, "no HDF5", bytes_of("main_data.hdf5", lambda _: b"observations"), "main_data.hdf5: cannot be read")
case(M, "metadata cut in half", bytes_of("metadata.json", half), "metadata.json: not JSON")
case(M, "metadata that is a list", bytes_of("metadata.json", lambda _: b"[]"), "metadata is no JSON object")
case(M, "metadata in no encoding", bytes_of("metadata.json", lambda _: b"\xff\xfe"), "metadata.json: not a text file")
case(M, "no observation space", described("hdf5", observation_space=None), "metadata.json: no observation_space")
case(M, "no action space", described("hdf5", action_space=None), "metadata.json: no action_space")
case(M, "a layout of tomorrow", described("hdf5", data_format="zarr"), "data_format 'zarr' is not known; 'hdf5'")
case(
    M, "a count that is text", described("hdf5", total_episodes="three"), "total_episodes is 'three', expected a whole"
)
case(M, "a count below zero", described("hdf5", total_episodes=-1), "total_episodes is -1, expected a whole number")
case(M, "a count that is half", described("hdf5", total_episodes=2.5), "total_episodes is 2.5, expected a whole number")
case(M, "another count", described("hdf5", total_episodes=4), "3 episodes, metadata.json says 4")
case(M, "a billion episodes", described("hdf5", total_episodes=10**9), "3 episodes, metadata.json says 1000000000")
case(M, "another number of steps", described("hdf5", total_steps=11), "10 steps, metadata.json says 11")
case(M, "a space that is none", described("hdf5", action_space="Discrete(4)"), "action_space: not a space")
case(
    M, "bounds that are NaN", described("hdf5", observation_space=box(low=[NAN] * 7)), "observation_space: not a space"
)
case(M, "bounds upside down", described("hdf5", observation_space=box(low=[9.5] * 7)), "observation_space: not a space")
case(M, "choices of none", described("hdf5", action_space='{"type": "Discrete", "n": 0, "start": 0}'), "not a space")
case(M, "an environment that is none", described("hdf5", env_spec="Hopper-v5"), "not an environment's specification")
case(M, "no rewards", hdf5(at("rewards", lambda old: None)), "episode_1/rewards: missing")
case(M, "rewards of rank 2", hdf5(at("rewards", lambda x: x[:, None])), "shape (5, 1), expected (T,)")
case(M, "an episode of no steps", hdf5(at("rewards", lambda x: x[:0])), "episode_1/rewards: shape (0,)")
case(M, "rewards that are text", hdf5(at("rewards", lambda x: [b"1"] * 5)), "expected numbers")
case(M, "rewards that are flags", hdf5(at("rewards", lambda x: x > 0)), "episode_1/rewards: type bool")
case(M, "T observations", hdf5(at("observations", lambda x: x[:-1])), "(5, 7), expected (6, 7)")
case(
    M,
    "T - 1 actions",
    hdf5(at("actions", lambda x: x[1:])),
    "episode_1/actions: shape (4,), expected (5,)",
)
case(M, "another shape", hdf5(at("observations", lambda x: x[:, :3])), "(6, 3), expected (6, 7)")
case(
    M,
    "another type",
    hdf5(at("observations", lambda x: x.astype(int))),
    "episode_1/observations: type int64",
)
case(M, "complex numbers", hdf5(at("actions", lambda x: x * 1j)), "episode_1/actions: type complex128")
case(M, "NaN reward", hdf5(at("rewards", put(NAN, 2))), "episode 1, step 2, rewards: nan is not finite")
case(M, "infinite observation", hdf5(at("observations", put(np.inf, 0, 3))), "step 0, observations[3]: inf")
case(M, "NaN at the end", hdf5(at("observations", put(NAN, 5, 6))), "episode 1, final observation[6]: nan")
case(M, "no such choice", hdf5(at("actions", put(4, 3))), "step 3, actions: 4 is outside Discrete(4)")
case(
    M,
    "ended in the middle",
    hdf5(at("terminations", put(True, 1))),
    "true at step 1, before the last step",
)
case(M, "flags that are numbers", hdf5(at("truncations", lambda x: x + 0.5)), "truncations: 0.5", "expected")
case(
    M,
    "too few flags",
    hdf5(at("terminations", lambda x: x[1:])),
    "terminations: shape (4,), expected (5,)",
)
case(M, "a key is missing", hdf5(at("observations/arm", lambda x: None), PARTS), "observations/arm: missing")
case(
    M,
    "a key too many",
    hdf5(lambda file: file.__setitem__("episode_1/observations/leg", np.zeros(6)), PARTS),
    "episode_1/observations: 'leg' in it, expected arm, zone",
)
case(M, "an episode twice", hdf5(lambda file: file.copy("episode_1", "episode_01")), "episode_01", "episode_1")
case(
    M, "an episode of no number", hdf5(lambda file: file.move("episode_1", "episode_x")), "episode_x: not an episode's"
)
case(M, "no episode", hdf5(lambda file: file.clear()), "no episode in it")


def arrow(change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """A dataset of which one episode's table is another one."""

    def make(folder: Path) -> Path:
        path = minari(folder, "arrow")
        file = path / "data" / "1" / "part-0.arrow"
        table = change(pyarrow.ipc.open_file(file.read_bytes()).read_all())
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return path

    return make


def column(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A table with one column changed, from and to what pyarrow takes."""

    def edit(table: Any) -> Any:
        place = table.schema.names.index(name)
        return table.set_column(place, name, [change(table[name].to_pylist())])

    return edit


def remove(name: str, change: str = "dataset") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = minari(folder, "arrow")
        target = path / "data" / name
        for file in target.iterdir() if target.is_dir() else [target]:
            file.unlink()
        return path

    return make


def item(value: Any, row: int) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [*old[:row], value, *old[row + 1 :]]


def more_rows(content: bytes) -> bytes:
    """An Arrow file that says of its six rows, in every count of them, that they are a million."""
    batch = list(pyarrow.ipc.MessageReader.open_stream(pyarrow.py_buffer(content).slice(8)))[1]
    metadata = batch.metadata.to_pybytes()
    six, million = (number.to_bytes(8, "little") for number in (6, 1_000_000))
    assert six in metadata
    return content.replace(metadata, metadata.replace(six, million))


A = "minari arrow"
case(A, "cut in half", bytes_of("1/part-0.arrow", half, "arrow"), "1: cannot be read as Arrow")
case(A, "no Arrow", bytes_of("1/part-0.arrow", lambda _: b"observations", "arrow"), "1: cannot be read as Arrow")
case(A, "without its end", bytes_of("1/part-0.arrow", lambda old: old[:-6], "arrow"), "1: cannot be read as Arrow")
case(A, "more rows than numbers", bytes_of("1/part-0.arrow", more_rows, "arrow"), "1: cannot be read as Arrow")
case(A, "a column twice", arrow(lambda x: x.append_column("rewards", x["rewards"])), "1: two columns 'rewards' in it")
case(A, "no file", remove("1/part-0.arrow"), "1: no .arrow file in it")
case(A, "one episode less", described("arrow", total_episodes=4), "3: no such episode, metadata.json says 4")
case(A, "another number of steps", described("arrow", total_steps=9), "10 steps, metadata.json says 9")
case(A, "no rewards", arrow(lambda table: table.drop_columns("rewards")), "1: no column 'rewards' in it, only")
case(A, "nothing in a place", arrow(column("rewards", item(None, 2))), "rewards: nothing in a place, expected numbers")
case(A, "rewards that are text", arrow(column("rewards", lambda x: ["much"] * 6)), "rewards: type string, expected")
case(A, "another shape", arrow(column("observations", lambda x: [row[:3] for row in x])), "expected 7 a row")
case(A, "ragged", arrow(column("observations", lambda x: [*x[:-1], [1.0]])), "observations", "expected 7 a row")
case(A, "NaN reward", arrow(column("rewards", item(NAN, 3))), "episode 1, step 3, rewards: nan is not finite")
case(
    A, "no such choice", arrow(column("actions", item(-1, 4))), "episode 1, step 4, actions: -1 is outside Discrete(4)"
)
case(A, "ended in the middle", arrow(column("terminations", item(True, 0))), "true at step 0, before the last step")
case(A, "an episode of no steps", arrow(lambda table: table[:1]), "rewards: shape (0,), expected (T,)")


# Flat files.


def flat() -> dict[str, Any]:
    """Flat arrays of three episodes."""
    rng, ended = np.random.default_rng(0), np.zeros(STEPS, bool)
    ended[np.cumsum(LENGTHS) - 1] = True
    arrays = {"observations": rng.normal(size=(STEPS, 4)), "actions": rng.uniform(-1, 1, (STEPS, 2))}
    return {**arrays, "rewards": rng.normal(size=STEPS), "terminated": ended, "truncated": np.zeros(STEPS, bool)}


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    new = {name: change(content[name]) if callable(change) else change for name, change in changes.items()}
    return {name: value for name, value in {**content, **new}.items() if value is not None}


def npz(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "flat.npz", **changed(flat(), changes))
        return folder / "flat.npz"

    return make


def d4rl(**changes: Any) -> Callable[[Path], Path]:
    names = {"terminated": "terminals", "truncated": "timeouts"}

    def make(folder: Path) -> Path:
        with h5py.File(folder / "flat.hdf5", "w") as file:
            for name, values in changed(flat(), changes).items():
                file[names.get(name, name)] = values
        return folder / "flat.hdf5"

    return make


def content(name: str, value: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(value)
        return folder / name

    return make


def damaged(make: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return damage


for reader, write, suffix in (("npz", npz, "npz"), ("d4rl hdf5", d4rl, "hdf5")):
    case(reader, "cut in half", damaged(write(), half), f"flat.{suffix}: cannot be read")
    case(reader, "empty", content(f"flat.{suffix}", b""), "cannot be read")
    case(reader, "no rewards", write(rewards=None), "no 'rewards' in it, only")
    case(reader, "rewards twice", write(reward=np.zeros(STEPS)), "'reward' and 'rewards' are both rewards; keep one")
    case(reader, "no end", write(terminated=None, truncated=None), "nothing says where episodes end: terminated")
    case(reader, "actions shorter", write(actions=lambda x: x[1:]), "actions: shape (9, 2), expected (10, 2)")
    case(reader, "rewards of rank 2", write(rewards=np.zeros((STEPS, 2))), "rewards: shape (10, 2), expected (N,)")
    case(reader, "rewards that are flags", write(rewards=np.ones(STEPS, bool)), "rewards: type bool, expected numbers")
    case(reader, "NaN action", write(actions=put(NAN, 4, 1)), "episode 1, step 1, actions[1]: nan is not finite")
    case(reader, "a flag that is none", write(terminated=put(0.5, 3)), "terminated: 0.5 at 3, expected true or false")
    case(reader, "other lengths", write(lengths=[3, 5, 3]), "rewards: shape (10,), lengths say (11,)")
    case(reader, "lengths whose sum runs over", write(lengths=[2**62] * 4 + [10]), "lengths say 4611686018427387904 of")
    case(reader, "rewards that sum to infinity", write(rewards=np.full(10, 1.5e308)), "return", "inf", "not finite")
    case(reader, "longer floats", write(rewards=np.ones(10, np.longdouble)), "type float128, at most float64")
    case(reader, "an episode of no steps", write(lengths=[3, 0, 7]), "lengths: expected at least one", "found 0")
    case(reader, "complex", write(observations=lambda x: x * 1j), "observations: type complex128, expected numbers")
    case(reader, "of no width", write(observations=np.zeros((STEPS, 0))), "observations: shape (10, 0), expected")
case("npz", "no zip", content("flat.npz", b"PK\x03\x04"), "cannot be read as .npz")
case("npz", "a text", content("flat.npz", b"observations,actions\n1,2\n"), "cannot be read as .npz (no zip file)")
case("npz", "metadata that is none", npz(metadata=np.asarray("{")), "not JSON")
case("npz", "text", npz(rewards=np.asarray(["1"] * STEPS)), "rewards: type <U1, expected numbers")
case("npz", "objects", npz(rewards=np.asarray([1, {}], object)), "rewards: type object is a pickle")
case(
    "d4rl hdf5", "a group", d4rl(rewards=None, **{"rewards/first": np.zeros(3)}), "rewards: a group of first, expected"
)
case("d4rl hdf5", "flipped bits", damaged(d4rl(), flipped), "cannot be read")


def rows() -> dict[str, list[Any]]:
    """The same as columns of a table."""
    arrays = flat()
    table = {"episode": [i for i, length in enumerate(LENGTHS) for _ in range(length)]}
    for name, stem in (("observations", "observation"), ("actions", "action")):
        table |= {f"{stem}_{i}": arrays[name][:, i].tolist() for i in range(arrays[name].shape[1])}
    return {**table, "reward": arrays["rewards"].tolist(), "terminated": arrays["terminated"].tolist()}


def text(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        table = changed(rows(), changes)
        lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
        (folder / "flat.csv").write_text("\n".join(lines).replace("None", "") + "\n")
        return folder / "flat.csv"

    return make


def parquet_file(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        parquet.write_table(pyarrow.table(changed(rows(), changes)), folder / "flat.parquet")
        return folder / "flat.parquet"

    return make


for reader, write, suffix in (("csv", text, "csv"), ("parquet", parquet_file, "parquet")):
    case(reader, "empty", content(f"flat.{suffix}", b""), f"flat.{suffix}: cannot be read as .{suffix}")
    case(reader, "no reward", write(reward=None), "no 'rewards' in it, only")
    case(reader, "a gap in the columns", write(observation_1=None), "no column 'observation_1', only observation_0, ")
    case(reader, "nothing in a place", write(reward=item(None, 6)), "row 7, column 'reward': nothing there")
    case(
        reader, "text in a place", write(action_1=["1"] * 3 + ["much"] + ["2"] * 6), "row 4, column 'action_1': 'much'"
    )
    case(reader, "infinite", write(observation_2=item(float("inf"), 9)), "episode 2, step 1, observations[2]: inf")
    case(reader, "begins again", write(episode=[0] * 5 + [1] * 3 + [0] * 2), "0 begins again at row 9")
    case(reader, "ended in the middle", write(terminated=item(True, 0)), "episode 0, step 0: true before the episode's")
    case(reader, "a flag that is none", write(terminated=[7] * 10), "terminated: 7 at 0, expected true or false")
case("csv", "NaN", text(reward=item(NAN, 4)), "row 5, column 'reward': nothing there")
case("parquet", "NaN", parquet_file(reward=item(NAN, 4)), "episode 1, step 1, rewards: nan is not finite")
case("csv", "ragged", content("flat.csv", b"episode,reward\n1,2\n3\n"), "Expected 2 columns, got 1")
case("csv", "rows of nothing", content("flat.csv", b"episode,observation,action,reward\n"), "no row in it")
case("csv", "no header", content("flat.csv", b"1,2,3\n4,5,6\n"), "line 1 holds numbers only")
case("csv", "a column twice", content("flat.csv", b"reward,reward\n1,2\n"), "column 'reward' appears twice")
case("parquet", "cut in half", damaged(parquet_file(), half), "cannot be read as .parquet")
in_one = {f"observation_{i}": None for i in range(4)}
ragged = parquet_file(**in_one, observation=[[1.0, 2.0]] * 9 + [[1.0]])
case("parquet", "ragged lists", ragged, "row 10, column 'observation': 1 numbers")
of_text = parquet_file(**in_one, observation=[["a"]] * 10)
case("parquet", "lists of text", of_text, "type list<element: string>, expected numbers")
for reader, write in (("csv", text), ("parquet", parquet_file)):
    case(reader, "one and several", write(action=np.zeros(10)), "'action' and 'action_0' are both actions; keep one of")


# Layouts of other libraries.


def layout(name: str, change: Callable[[Path], None] = lambda path: None) -> Callable[[Path], Path]:
    """One recording in a layout of tests/formats.py, changed in its place."""

    def make(folder: Path) -> Path:
        path = LAYOUTS[name].write(folder / "recorded", recording())
        change(path)
        return path

    return make


def in_hdf5(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """The same, changed by what h5py can do."""

    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            edit(file)

    return layout(name, change)


def in_npz(name: str, **changes: Any) -> Callable[[Path], Path]:
    """The same, with other arrays in it."""

    def change(path: Path) -> None:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        np.savez(path, **changed(arrays, changes))

    return layout(name, change)


def in_table(name: str, file: str, edit: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """The same, with another table in one of its files; "" is the file itself."""

    def change(path: Path) -> None:
        place = path / file if file else path
        parquet.write_table(edit(parquet.read_table(place)), place)

    return layout(name, change)


def in_text(file: str, edit: Callable[[str], str]) -> Callable[[Path], Path]:
    """A LeRobot folder with another text in one of its files."""
    return layout("lerobot 2", lambda path: (path / file).write_text(edit((path / file).read_text())) and None)


def cut_file(path: Path) -> None:
    path.write_bytes(half(path.read_bytes()))


def linked_frames(path: Path) -> None:
    file = path / "data" / "chunk-000" / "episode_000000.parquet"
    file.rename(path.parent / "elsewhere.parquet")
    file.symlink_to(path.parent / "elsewhere.parquet")


def replaced(name: str, value: Any) -> Callable[[Any], None]:
    """Another array in the place of one of an HDF5 file."""

    def edit(file: Any) -> None:
        del file[name]
        file[name] = value

    return edit


def declared(file: Any) -> None:
    """Terabytes of observations, of which nothing is stored."""
    del file["data/demo_1/obs/eef_pos"]
    file.create_dataset("data/demo_1/obs/eef_pos", (5, 10**9, 200), np.float32, chunks=(1, 1000, 200))


FRAMES, INFO, LISTED = "data/chunk-001/episode_000001.parquet", "meta/info.json", "meta/episodes.jsonl"
STATE = "observation.state"
for name, make, *words in (
    ("no data", layout("lerobot 2", lambda path: (path / "data").rename(path / "away")), "no folder data/ in it"),
    ("an old version", in_text(INFO, lambda text: text.replace("v2.1", "v1.6")), 'codebase_version is "v1.6", expec'),
    ("no version", in_text(INFO, lambda _: "{}"), "codebase_version is null, expected v2.0 to v3"),
    ("a list", in_text(INFO, lambda _: "[]"), "info.json: metadata is no JSON object"),
    ("cut in half", layout("lerobot 2", lambda path: cut_file(path / FRAMES)), "cannot be read as Parquet"),
    ("a line that is no JSON", in_text(LISTED, lambda text: text + "{"), "cannot be read as lines of JSON"),
    ("an episode listed twice", in_text(LISTED, lambda text: text + text), "line 4: episode_index 0 of length 3, exp"),
    ("another length", in_text(LISTED, lambda text: text.replace("5}", "6}")), "episode 1: 5 frames in data/, meta/ s"),
    ("a link", layout("lerobot 2", linked_frames), "a link to what lies outside"),
    ("ragged states", in_table("lerobot 2", FRAMES, column(STATE, lambda x: [[1.0]] * 4 + [[1.0, 2.0]])),
     "episode_000001.parquet: column 'observation.state': row 5: 2 numbers, expected 1"),
    ("nothing in a row", in_table("lerobot 2", FRAMES, column("action", lambda x: [*x[:-1], None])),
     "episode_000001.parquet: column 'action': row 5: nothing there"),
    ("no action", in_table("lerobot 2", FRAMES, lambda table: table.drop_columns(["action"])),
     "episode_000001.parquet: no 'action' in it, which episode_000000.parquet has"),
):  # fmt: skip
    case("lerobot", name, make, *words)
for name, make, *words in (
    ("an observation less", in_hdf5("robomimic", lambda file: file["data/demo_1/obs"].__delitem__("gripper")),
     "data/demo_1/obs/gripper: missing"),
    ("other shapes", in_hdf5("robomimic", replaced("data/demo_1/actions", np.zeros((5, 2), np.float32))),
     "data/demo_1/actions: float32 of shape (5, 2), expected float32 of shape (5, 1)"),
    ("fewer rewards", in_hdf5("robomimic", replaced("data/demo_1/rewards", np.zeros(4, np.float32))),
     "data/demo_1/rewards: 4 rows, actions of that demonstration has 5"),
    ("another count", in_hdf5("robomimic", lambda file: file["data/demo_1"].attrs.update(num_samples=6)),
     "data/demo_1: 5 steps, its attribute num_samples says 6"),
    ("what is no demonstration", in_hdf5("robomimic", lambda file: file.create_group("data/extra")),
     "data/extra: not a demonstration's name"),
    ("a link elsewhere", in_hdf5("robomimic", replaced("data/demo_1/actions", h5py.ExternalLink("x.hdf5", "/a"))),
     "data/demo_1/actions: 'actions' is a link elsewhere"),
    ("terabytes declared", in_hdf5("robomimic", declared), "data/demo_1/obs/eef_pos: float32 of shape (5, 1000000000"),
    ("actions of text", in_hdf5("robomimic", replaced("data/demo_1/actions", ["x"] * 5)), "demo_1/actions: type obj"),
):  # fmt: skip
    case("robomimic", name, make, *words)
for name, make, *words in (
    ("another count", in_hdf5("d3rlpy 2", replaced("num_episodes", 9)), "num_episodes is 9, and there are rewards o"),
    ("no actions", in_hdf5("d3rlpy 2", lambda file: file.__delitem__("actions_1")), "actions_1: missing"),
    ("many flags", in_hdf5("d3rlpy 2", replaced("terminated_1", [True, False])), "(2,), expected one number"),
    ("no step", in_hdf5("d3rlpy 2", replaced("rewards_1", np.zeros((0, 1)))), "rewards_1: no step in it"),
    ("fewer observations", in_hdf5("d3rlpy 2", replaced("observations_1", np.zeros((4, 3), np.float32))),
     "observations_1: 4 rows, rewards of that episode has 5"),
):  # fmt: skip
    case("d3rlpy", name, make, *words)
for name, make, *words in (
    ("too many filled", in_hdf5("tianshou", lambda file: file.attrs.update(_size=99)), "_size is 99, expected 0 to 10"),
    ("another size", in_hdf5("tianshou", lambda file: file.attrs.update(maxsize=7)), "maxsize is 7, rew has 10 rows"),
    ("a size of text", in_hdf5("tianshou", lambda file: file.attrs.update(_size="all")), "_size is not a whole number"),
    ("fewer actions", in_hdf5("tianshou", replaced("_meta/act", np.zeros((9, 1)))), "_meta/act: shape (9, 1), expec"),
    ("parts that fall", in_hdf5("tianshou vector", replaced("_offset", [0, 9, 7])), "_offset: 0, 9, 7, expected risi"),
):  # fmt: skip
    case("tianshou", name, make, *words)
for name, make, *words in (
    ("an episode behind the end", in_npz("neorl", index=[0, 3, 99]), "index: expected the first row of each episode"),
    ("a first row that is not 0", in_npz("neorl", index=[1, 3, 8]), "index: expected the first row of each episode"),
    ("halves of rows", in_npz("neorl", index=[0, 2.5]), "index: float64 of shape (2,), expected the first row"),
    ("another next observation", in_npz("neorl", next_obs=put(9, 4, 1)), "next_observations: episode 1, step 1 (row"),
    ("OGBench or not", layout("ogbench"), "--last-row-is-final says that it is so here"),
    ("a reward behind the end", in_npz("rlds npz", reward=put(2, 3)), "row 4: reward 2.0 where is_last is true"),
    ("a flag that is none", in_npz("rlds npz", is_last=put(7, 1)), "7 at 1, expected true or false"),
):  # fmt: skip
    case("conventions", name, make, *words)
for name, make, *words in (
    ("fewer actions", in_table("rows of episodes", "", column("actions", lambda x: [x[0], x[1][:-1], x[2]])),
     "column 'actions': row 2: 4 steps, expected 5"),
    ("ragged actions", in_table("rows of episodes", "", column("actions", lambda x: [x[0], [*x[1][:4], [1, 2]], x[2]])),
     "column 'actions': row 2, step 4: 2 numbers, expected 1"),
    ("an episode of nothing", in_table("rows of episodes", "", column("rewards", lambda x: [x[0], None, x[2]])),
     "column 'rewards': row 2: nothing there"),
    ("an episode of no step", in_table("rows of episodes", "", column("rewards", lambda x: [x[0], [], x[2]])),
     "column 'rewards': row 2: no step in it"),
    ("text", in_table("rows of episodes", "", column("observations", lambda x: [["x"] * len(y) for y in x])),
     "expected numbers"),
):  # fmt: skip
    case("rows of episodes", name, make, *words)


# The DQN Replay Dataset's files.

REPLAY_LENGTHS = (4, 3, 3)


def replay(seed: int = 0) -> dict[str, Any]:
    """A buffer of three games, the last of which goes on somewhere else."""
    rng, steps = np.random.default_rng(seed), sum(REPLAY_LENGTHS)
    terminal = np.zeros(steps, np.uint8)
    terminal[np.cumsum(REPLAY_LENGTHS[:-1]) - 1] = 1
    return {
        "observation": rng.integers(1, 256, (steps, 84, 84), np.uint8),
        "action": (np.arange(steps, dtype=np.int32) + 1) % 4,
        "reward": rng.integers(-1, 2, steps).astype(np.float32),
        "terminal": terminal,
    }


def write_replay(folder: Path, arrays: dict[str, Any], number: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for field, values in arrays.items():
        name = field if field == "add_count" else f"$store$_{field}"
        with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as file:
            np.save(file, values)
    return folder


def replay_files(**changes: Any) -> Callable[[Path], Path]:
    """A folder of them in which some fields are others, and None takes one away."""
    return lambda folder: write_replay(folder / "game", changed({**replay(), "add_count": np.array(7)}, changes))


def replay_bytes(field: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A folder of them in which one file's bytes are others."""

    def make(folder: Path) -> Path:
        path = write_replay(folder / "game", replay()) / f"$store$_{field}_ckpt.0.gz"
        path.write_bytes(change(path.read_bytes()))
        return path.parent

    return make


def huge(_: bytes) -> bytes:
    """A header that declares thousands of gigabytes, and a million zeros behind it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 84, 84)})
    return gzip.compress(header.getvalue() + bytes(1 << 20))


def linked(folder: Path) -> Path:
    game = write_replay(folder / "game", replay())
    path = game / "$store$_reward_ckpt.0.gz"
    path.rename(folder / "elsewhere.gz")
    path.symlink_to(folder / "elsewhere.gz")
    return game


for name, make, *words in (
    ("no rewards", replay_files(reward=None), "$store$_reward_ckpt.0.gz: missing"),
    ("no pictures", replay_files(observation=None), "$store$_observation_ckpt.0.gz: missing"),
    ("cut in half", replay_bytes("observation", half), "episode 1, observation: cannot be read from row 4 on"),
    ("actions cut", replay_bytes("action", half), "$store$_action_ckpt.0.gz: action: cannot be read"),
    ("no gzip", replay_bytes("reward", gzip.decompress), "reward: cannot be read as a compressed .npy (Not a gzipped"),
    ("no .npy", replay_bytes("terminal", lambda _: gzip.compress(b"?" * 99)), "terminal: cannot be read as a compr"),
    ("fewer pictures", replay_files(observation=lambda x: x[:-1]), "observation: 9 rows, 10 in $store$_terminal_ckpt"),
    ("fewer actions", replay_files(action=lambda x: x[:4]), "action: 4 rows, 10 in $store$_terminal_ckpt.0.gz"),
    ("larger pictures", replay_files(observation=lambda x: np.pad(x, 1)[1:-1]), "(10, 86, 86), expected (N, 84, 84)"),
    ("pictures of floats", replay_files(observation=lambda x: x / np.float32(255)), "float32 of shape (10, 84, 84)"),
    ("pictures of 16 bits", replay_files(observation=lambda x: x.astype(np.uint16)), "uint16 of shape (10, 84, 84)"),
    ("pictures by columns", replay_files(observation=np.asfortranarray), "expected (N, 84, 84) uint8"),
    ("whole rewards", replay_files(reward=lambda x: x.astype(int)), "reward: int64 of shape (10,), expected (N,) fl"),
    ("pickled actions", replay_files(action=lambda x: x.astype(object)), "action: type object is pickle"),
    ("a reward of NaN", replay_files(reward=put(NAN, 5)), "episode 1, step 1, rewards: nan is not finite"),
    ("an action too large", replay_files(action=put(18, 2)), "action 18, Atari has 0 to 17"),
    ("an action below 0", replay_files(action=put(-1, 2)), "episode 0, step 2, actions: -1 is outside Discrete(4)"),
    ("a flag that is none", replay_files(terminal=put(2, 5)), "$store$_terminal_ckpt.0.gz: row 5: 2, expected 0 or 1"),
    ("no rows", replay_files(terminal=lambda x: x[:0]), "terminal: no row in it"),
    ("nothing was added", replay_files(add_count=np.array(0)), "add_count_ckpt.0.gz: 0 rows, expected at least 1"),
    ("several counts", replay_files(add_count=np.arange(3)), "add_count: int64 of shape (3,), expected () integer"),
    ("thousands of gigabytes", replay_bytes("observation", huge), "more than 64 MB, which no file of"),
    ("a link", linked, "$store$_reward_ckpt.0.gz: a link or no file"),
):
    case("dqn replay", name, make, *words)


# Commands' options, runs, and paths that are none.

GOOD = npz()


def options(name: str, *arguments: str, words: tuple[str, ...], make: Callable[[Path], Path] = GOOD) -> None:
    """A command with these arguments; {} stands for the file that `make` writes."""
    case_ = Case(lambda folder: [argument.replace("{}", str(make(folder))) for argument in arguments], words)
    CASES.setdefault("options", {})[name] = case_


def a_run(**document: Any) -> Callable[[Path], Path]:
    return lambda folder: content("run.json", json.dumps(document).encode())(folder).parent


def as_is(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / name


options("no such file", "inspect", "{}.csv", words=("no such file or folder",))
options("a file of no known kind", "inspect", "{}", words=("neither a Minari dataset's folder nor a file",),
        make=content("flat.dat", b""))  # fmt: skip
options("an empty folder", "inspect", "{}", words=("neither a run", "nor a Minari dataset"), make=lambda folder: folder)
options("spaces that are none", "inspect", "{}", "--spaces", "{", words=("--spaces: not JSON",))
options("spaces of another name", "inspect", "{}", "--spaces", '{"space": 1}', words=("--spaces: expected",))
options("spaces in no file", "train", "{}", "--spaces", "no.json", words=("no.json: no such file",))
options("a space that does not fit", "train", "{}", "--spaces", f'{{"action_space": {json.dumps(space_to_json(BOX))}}}',
        words=("actions: shape (10, 2), expected (10, 7)",))  # fmt: skip
options("a picture of no kind", "inspect", "{}", "--plot", "x.bmp2", words=("x.bmp2",))
options("a fraction of nothing", "train", "{}", "--fraction", "0", words=("fraction must be above 0",))
options("too many fractions", "train", "{}", "--fraction", "1", "0.5", words=("2 fractions for 1 datasets",))
options("arguments for no environment", "train", "{}", "--environment-kwargs", "{}", words=("not JSON",))
options("arguments that are a list", "train", "{}", "--environment-kwargs", "[]", words=("not a JSON object",))
options("a module that is none", "train", "{}", "--import", "no_such_module", words=("--import no_such_module",))
options("a resumed run of nowhere", "train", "{}", "--resume", words=("--resume needs --output",))
options("an id that is none", "import", "{}", "no id", words=("no id: not a Minari id",))
options("an id with a path", "import", "{}", "../x/y-v0", words=("not a Minari id",))
options("no run", "evaluate", "{}", words=("no such run",))
options("a width of no heads", "train", "{}", "--width", "10", "--num-heads", "3", words=("num_heads 3 must divide",))
options(
    "a rate that is NaN",
    "train",
    "{}",
    "--learning-rate",
    "nan",
    words=("learning_rate must be a finite number, not nan",),
)
options("a run's description cut", "evaluate", "{}", words=("run.json",), make=content("run.json", b"{"))
for name, arguments, words in (
    ("scores in no folder", ("--json", "no/x.json"), "x.json: its folder does not exist"),
    ("scores in a folder", ("--json", "."), "is a folder, a file is meant"),
    ("a picture of no kind of scores", ("--plot", "x.bmp2"), "x.bmp2: no kind of picture"),
    ("films in a file", ("--video", "{}/run.json"), "is a file, a folder is meant"),
    ("arguments for no environment of a run", ("--environment-kwargs", "{1}"), "--environment-kwargs: not JSON"),
    ("a run that says nothing of itself", (), "run.json: action_space is missing"),
):
    options(name, "evaluate", "{}", *arguments, words=(words,), make=a_run(kind="decision-transformer", schema=1))
for name, document, words in (
    ("another kind of run", {"kind": "characters", "schema": 1}, "run.json: not a Decision Transformer's run"),
    ("a run of another version", {"kind": "decision-transformer", "schema": 2}, "schema 2, this version reads 1"),
):
    options(name, "evaluate", "{}", words=(words,), make=a_run(**document))
options("no episodes to play", "evaluate", "{}", "--episodes", "0", words=("episodes must be at least 1",),
        make=a_run(kind="decision-transformer", schema=1))  # fmt: skip
options("a seed below the least", "evaluate", "{}", "--seed", "-1", words=("seed must be at least 0",))
options("a run in no environment", "evaluate", "{}", "--environment", "NoSuch-v3", words=("NoSuch-v3: not registered",))

for name, arguments, words in (
    ("many of none", ("no/such-v0",), "no/such-v0: no such file or folder"),
    ("many of nothing", (), "no dataset named"),
    ("many without a seed", ("{}", "--seeds"), "no dataset or no seed to train"),
    ("many with a seed too low", ("{}", "--seeds", "0", "-1"), "seed must be from 0 to"),
    ("many with one seed twice", ("{}", "--seeds", "1", "1"), "two runs of one dataset and seed"),
    ("many with another seed", ("{}", "--seed", "4"), "seed 4: train-many has --seeds"),
    ("many for less than no time", ("{}", "--minutes", "-1"), "minutes must be 0 or more and finite, not -1.0"),
    ("many that are compiled", ("{}", "--compile"), "compile: many runs at once cannot have it"),
    ("many that recompute", ("{}", "--activation-checkpointing"), "many runs at once cannot have it"),
    ("many in no environment", ("{}", "--environment", "NoSuch-v3"), "environment NoSuch-v3: not registered"),
    ("many of no columns", ("{}", "--columns", "a"), "--columns: 'a', expected FIELD=COLUMN"),
    ("many with spaces that are none", ("{}", "--spaces", "{"), "--spaces: not JSON"),
):
    options(name, "train-many", *arguments, words=(words,))


def in_the_way(folder: Path) -> Path:
    """A good file, and where its second run would be is a folder that is not a run."""
    GOOD(folder)
    (folder / "flat-s1").mkdir(exist_ok=True)
    return folder


options("many where no run is", "train-many", "{}/flat.npz", "--output", "{}", make=in_the_way,
        words=("flat-s1: no run.json in it, so it is not a run",))  # fmt: skip


def a_policy(module: str) -> Callable[[Path], Path]:
    """A file like those of Stable-Baselines3, with nothing in it but whose it is."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "policy.zip", "w") as file:
            file.writestr("data", json.dumps({"policy_class": {"__module__": module}}))
        return folder / "policy.zip"

    return make


def but(command: tuple[str, ...], arguments: tuple[str, ...]) -> tuple[str, ...]:
    """A command with these options, in the place of its own of the same names, each of which has one value."""
    mine = [i for i, word in enumerate(command) if word.startswith("--") and word in arguments]
    return *(word for i, word in enumerate(command) if i not in mine and i - 1 not in mine), *arguments


def record(name: str, *arguments: str, words: str, make: Callable[[Path], Path] = GOOD) -> None:
    """What cannot be recorded: random play with these options, or a whole command."""
    command = ("record", "CartPole-v1", "mine/x-v0", "--policy", "random")
    options(name, *(arguments if arguments[0] == "record" else but(command, arguments)), words=(words,), make=make)


AUTO = ("--target-return", "auto")
SAC = a_policy("stable_baselines3.sac.policies")
record(
    "an environment that is none",
    "record",
    "NoSuch-v3",
    "mine/x-v0",
    "--policy",
    "random",
    words="NoSuch-v3: not regist",
)
record(
    "an environment of a module",
    "record",
    "os:Env-v0",
    "mine/x-v0",
    "--policy",
    "random",
    words="os:Env-v0: not registered",
)
record("an id of no version", "record", "CartPole-v1", "mine/x", "--policy", "random", words="mine/x: not a Minari id")
record(
    "an id that ships", "record", "CartPole-v1", "hopper/replay-v0", "--policy", "random", words="ships with the pac"
)
record("a policy that is none", "--policy", "nowhere", words="--policy nowhere: neither random, nor a run's folder")
record("a policy in no archive", "--policy", "{}", words="no file of Stable-Baselines3's", make=content("x.zip", b"PK"))
record("a policy of others", "--policy", "{}", "--trust", make=a_policy("os.path"), words="a policy of os.path; those")
record(
    "a policy without trust", "--policy", "{}", make=SAC, words="is pickle, which may run any code; --trust opens it"
)
record("a policy that is a run cut", "--policy", "{}", make=a_run(kind="decision-transformer", schema=1),
       words="run.json: action_space is missing")  # fmt: skip
record("a target that is to be chosen", *AUTO, words="--target-return auto chooses what is scored")
record("a target of random actions", "--target-return", "5", words="asked of a run, and random is none")
record("a scale of random actions", "--vec-normalize", "x", words="--vec-normalize is of a Stable-Baselines3 policy")
record(
    "an environment's seed too high",
    "--seed",
    "4294967296",
    words="seed must be at least 0 and below 2^32, not 4294967296",
)
record("no episode to record", "--episodes", "0", words="episodes must be at least 1, not 0")
record("an environment made with a list", "--environment-kwargs", "[]", words="--environment-kwargs: not a JSON object")


def published(numbers: Any = None, **changes: Any) -> Callable[[Path], Path]:
    """A folder as Hugging Face's library writes a Decision Transformer for Pendulum, its weights apart."""
    settings = {"model_type": "decision_transformer", "state_dim": 3, "act_dim": 1, "hidden_size": 22, "n_layer": 2}
    settings |= {"n_head": 2, "max_ep_len": 1000, **changes}

    def make(folder: Path) -> Path:
        content("config.json", json.dumps(settings).encode())(folder)
        content("normalizer.json", json.dumps({"mean": [0.0] * 3, "std": [1.0] * 3} | (numbers or {})).encode())(folder)
        return content("model.safetensors", b"")(folder).parent

    return make


PENDULUMS = published()


def publication(name: str, *arguments: str, words: str, make: Callable[[Path], Path] = PENDULUMS) -> None:
    """What cannot be imported, of a model that could be without these options."""
    command = ("import-huggingface", "{}", "--output", "new", "--context-length", "20", "--return-scale", "1000")
    command += ("--normalizer", "{}/normalizer.json", "--environment", "Pendulum-v1")
    options(name, *but(command, arguments), words=(words,), make=make)


publication("a model that is nowhere", make=as_is("nowhere"), words="nowhere: no such file or folder (a model of the")
publication("a model in an empty folder", make=lambda folder: folder, words="no model.safetensors in it")
publication("a model in a place that is taken", "--output", "{}", words="exists already")
publication(
    "a model of another kind", make=published(model_type="gpt2"), words='config.json: model_type is "gpt2", exp'
)
publication("a model of no state", make=published(state_dim=None), words="config.json: state_dim is null, expected")
publication("a model of another environment", "--environment", "CartPole-v1", words="state_dim is 3, the space has 4")
publication("a model of no environment", "--environment", "NoSuch-v3", words="environment NoSuch-v3: not registered")
publication("a model of no steps", "--context-length", "0", words="context_length must be at least 1, not 0")
publication("a model of no scale", "--return-scale", "0", words="return_scale must be above 0, not 0.0")
publication("a model of two normalisers", "--dataset", "x", words="x: no such file or folder")
publication("a normaliser that is none", make=published({"std": [1.0] * 2}), words="json: std must be a list of 3 num")
publication("a normaliser of NaN", make=published({"mean": [0.0, NAN, 0.0]}), words="json: mean[1] is nan, expected a")
publication("a normaliser in no file", "--normalizer", "no.json", words="no.json: no such file")
publication("a tanh that is a number", make=published(action_tanh=1), words="action_tanh is 1, expected true or false")


def runs(folder: Path) -> Path:
    """A run, another one among its checkpoints, and a link to these."""
    a_run()(folder)
    for inner in (folder / "checkpoints", folder / "checkpoints" / "inner"):
        inner.mkdir(exist_ok=True)
    a_run()(folder / "checkpoints" / "inner")
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(folder / "checkpoints")
    return folder


SPARED = "itself; "
OF_A_RUN = ("hopper/replay-v0", "--steps", "1", "--episodes", "1", "--device", "cpu", "--output")
options("a run in a run's checkpoints", "train", *OF_A_RUN, "{}/checkpoints/x", words=(SPARED,), make=runs)
options("a run in a run's log", "train", *OF_A_RUN, "{}/tensorboard", words=(SPARED,), make=runs)
options("a run behind a link", "train", *OF_A_RUN, "{}/link", words=("link: a part of the run", SPARED), make=runs)
options("a run in a run of a run", "train", *OF_A_RUN, "{}/link/inner/results/x", words=(SPARED,), make=runs)
options("an option twice", "train", "{}", "--columns", "a=b", "--columns", "c=d", words=("--columns is given twice",))
options("a run where one is", "train", *OF_A_RUN, "{}", words=("exists already; --resume continues it",), make=runs)
options("a run in a file", "train", *OF_A_RUN, "{}/run.json", words=("run.json: is a file, a folder is me",), make=runs)
options("many in a run's checkpoints", "train-many", *OF_A_RUN, "{}/checkpoints", words=(SPARED,), make=runs)
options("many in a run's samples", "train-many", *OF_A_RUN, "{}/samples/x", words=(SPARED,), make=runs)
publication("a model in a run's checkpoints", "--output", "{}/checkpoints/x", words=SPARED,
            make=lambda folder: PENDULUMS(runs(folder)))  # fmt: skip


if __name__ == "__main__":
    for reader, cases in CASES.items():
        for name, each in cases.items():
            folder = Path(sys.argv[1]) / reader / name
            folder.mkdir(parents=True)
            print(" ".join(["dt", *each.make(folder)]))
