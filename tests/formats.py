"""One recording in every layout that `envs.load` reads: how each is written, and a plain loop that reads it again.

The loops are the oracles of tests/test_formats.py. They use the formats' own libraries for arrays (h5py, numpy,
pyarrow) and nothing of this package.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
from pyarrow import parquet


@dataclass(frozen=True)
class Recorded:
    """One episode of T steps in Pendulum's spaces."""

    observations: Any  # (T + 1, 3) float32, or (T, 3) where a file has no final one
    actions: Any  # (T, 1) float32
    rewards: Any  # (T,) float32
    terminated: bool
    truncated: bool


def recording(seed: int = 0, lengths: tuple[int, ...] = (3, 5, 2)) -> list[Recorded]:
    """Episodes of random numbers, of which every other one is terminated and the rest truncated."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number, length in enumerate(lengths):
        episodes.append(
            Recorded(
                rng.normal(size=(length + 1, 3)).astype(np.float32),
                rng.uniform(-1, 1, (length, 1)).astype(np.float32),
                rng.normal(size=length).astype(np.float32),
                terminated=number % 2 == 0,
                truncated=number % 2 == 1,
            )
        )
    return episodes


@dataclass(frozen=True)
class Layout:
    """A way to write episodes. ends: what a file says of how they ended: "both", "done", "cut" or "nothing"."""

    write: Callable[[Path, list[Recorded]], Path]
    read: Callable[[Path], list[Recorded]]
    ends: str = "both"
    finals: bool = False  # whether the final observations are in it
    options: dict[str, Any] = field(default_factory=dict)  # what `load` is to be told


LAYOUTS: dict[str, Layout] = {}


def together(arrays: list[Any]) -> Any:
    return np.concatenate(arrays)


def flags(episodes: list[Recorded], name: str, rows: int = 0) -> Any:
    """A flag at each episode's last step, among T + rows rows."""
    found = [np.zeros(len(each.rewards) + rows, bool) for each in episodes]
    for flag, each in zip(found, episodes, strict=True):
        flag[-1] = each.terminated or each.truncated if name == "done" else getattr(each, name)
    return np.concatenate(found)


def cut(flat: dict[str, Any], lengths: Any, ends: list[tuple[bool, bool]]) -> list[Recorded]:
    """Flat arrays cut into episodes of these lengths, by a plain loop."""
    episodes, at = [], 0
    for length, (terminated, truncated) in zip(lengths, ends, strict=True):
        rows = slice(at, at + length)
        episodes.append(
            Recorded(*(flat[name][rows] for name in ("observations", "actions", "rewards")), terminated, truncated)
        )
        at += length
    return episodes


def with_final(episode: Recorded, final: Any) -> Recorded:
    observations = np.concatenate([episode.observations, final[None]])
    return Recorded(observations, episode.actions, episode.rewards, episode.terminated, episode.truncated)


# LeRobot.


def frames(episodes: list[Recorded], first: int = 0) -> Any:
    """The table of frames of episodes that are numbered from `first` on."""
    columns: dict[str, list[Any]] = {}
    names = ("observation.state", "action", "episode_index", "frame_index", "timestamp", "next.reward", "next.done")
    for number, each in enumerate(episodes, first):
        steps = len(each.rewards)
        values = (
            pyarrow.array(list(each.observations[:steps]), pyarrow.list_(pyarrow.float32(), 3)),
            pyarrow.array(list(each.actions), pyarrow.list_(pyarrow.float32(), 1)),
            pyarrow.array([number] * steps),
            pyarrow.array(range(steps)),
            pyarrow.array(np.arange(steps, dtype=np.float32) / 10),
            pyarrow.array(each.rewards),
            pyarrow.array(np.arange(steps) == steps - 1),
        )
        for name, value in zip(names, values, strict=True):
            columns.setdefault(name, []).append(value)
        columns.setdefault("next.success", []).append(pyarrow.array((np.arange(steps) == steps - 1) & each.terminated))
        columns.setdefault("task_index", []).append(pyarrow.array([0] * steps))
    return pyarrow.table({name: pyarrow.chunked_array(parts) for name, parts in columns.items()})


def described(folder: Path, version: str, episodes: list[Recorded], **more: Any) -> None:
    (folder / "meta").mkdir(parents=True)
    features = {"observation.state": {"dtype": "float32", "shape": [3]}, "observation.images.top": {"dtype": "video"}}
    steps = sum(len(each.rewards) for each in episodes)
    info = {"codebase_version": version, "total_episodes": len(episodes), "total_frames": steps, "total_tasks": 1}
    (folder / "meta" / "info.json").write_text(json.dumps({**info, "fps": 10, "features": features, **more}))


def write_lerobot_2(folder: Path, episodes: list[Recorded]) -> Path:
    """A file an episode, the second and later ones in a chunk of their own."""
    described(folder, "v2.1", episodes)
    lines = []
    for number, each in enumerate(episodes):
        chunk = folder / "data" / f"chunk-{min(number, 1):03d}"
        chunk.mkdir(parents=True, exist_ok=True)
        parquet.write_table(frames([each], number), chunk / f"episode_{number:06d}.parquet")
        lines.append(json.dumps({"episode_index": number, "tasks": ["swing up"], "length": len(each.rewards)}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_lerobot_3(folder: Path, episodes: list[Recorded]) -> Path:
    """Several episodes a file, in two files, and the same of their descriptions."""
    described(folder, "v3.0", episodes)
    half = (len(episodes) + 1) // 2
    for number, (first, part) in enumerate(((0, episodes[:half]), (half, episodes[half:]))):
        if not part:
            continue
        lengths = [len(each.rewards) for each in part]
        meta = {
            "episode_index": range(first, first + len(part)),
            "length": lengths,
            "tasks": [["swing up"]] * len(part),
        }
        for name, table in (("data", frames(part, first)), ("meta/episodes", pyarrow.table(meta))):
            (folder / name / "chunk-000").mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, folder / name / "chunk-000" / f"file-{number:03d}.parquet")
    return folder


def write_lerobot_file(path: Path, episodes: list[Recorded]) -> Path:
    parquet.write_table(frames(episodes), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def read_lerobot(path: Path) -> list[Recorded]:
    files = sorted(path.glob("data/*/*.parquet")) if path.is_dir() else [path]
    by_episode: dict[int, list[Any]] = {}
    for row in (row for file in files for row in parquet.read_table(file).to_pylist()):
        by_episode.setdefault(row["episode_index"], []).append(row)
    return [
        Recorded(
            np.array([row["observation.state"] for row in rows], np.float32),
            np.array([row["action"] for row in rows], np.float32),
            np.array([row["next.reward"] for row in rows], np.float32),
            rows[-1]["next.done"],
            False,
        )
        for rows in by_episode.values()
    ]


LAYOUTS["lerobot 2"] = Layout(write_lerobot_2, read_lerobot, "done")
LAYOUTS["lerobot 3"] = Layout(write_lerobot_3, read_lerobot, "done")
LAYOUTS["lerobot file"] = Layout(write_lerobot_file, read_lerobot, "done")


# robomimic.


def write_robomimic(path: Path, episodes: list[Recorded]) -> Path:
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(each.rewards) for each in episodes)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for number, each in enumerate(episodes):
            group, steps = data.create_group(f"demo_{number}"), len(each.rewards)
            group.attrs["num_samples"] = steps
            for name, rows in (("obs", slice(0, steps)), ("next_obs", slice(1, steps + 1))):
                group[f"{name}/eef_pos"] = each.observations[rows, :2]
                group[f"{name}/gripper"] = each.observations[rows, 2:]
            group["actions"], group["rewards"] = each.actions, each.rewards
            group["dones"] = (np.arange(steps) == steps - 1).astype(np.int64)
            group["states"] = np.zeros((steps, 9))
        file["mask/train"] = np.array([b"demo_0"])
    return path.with_suffix(".hdf5")


def read_robomimic(path: Path) -> list[Recorded]:
    episodes = []
    with h5py.File(path) as file:
        for number in range(len(file["data"])):
            group = file[f"data/demo_{number}"]
            rows = [
                np.concatenate([group[f"{name}/eef_pos"][()], group[f"{name}/gripper"][()]], axis=1)
                for name in ("obs", "next_obs")
            ]
            seen = np.concatenate([rows[0], rows[1][-1:]])
            episodes.append(Recorded(seen, group["actions"][()], group["rewards"][()], bool(group["dones"][-1]), False))
    return episodes


VECTOR = {"columns": {"observations": ["eef_pos", "gripper"]}}
LAYOUTS["robomimic"] = Layout(write_robomimic, read_robomimic, "done", finals=True, options=VECTOR)


# OGBench.


def padded(array: Any) -> Any:
    """A row more, of zeros: what stands at the row of a final observation."""
    return np.concatenate([array, np.zeros_like(array[:1])])


def write_ogbench(path: Path, episodes: list[Recorded]) -> Path:
    rows = sum(len(each.rewards) + 1 for each in episodes)
    np.savez(
        path.with_suffix(".npz"),
        observations=together([each.observations for each in episodes]),
        actions=together([padded(each.actions) for each in episodes]),
        rewards=together([padded(each.rewards) for each in episodes]),
        terminals=flags(episodes, "done", rows=1).astype(np.float32),
        qpos=np.zeros((rows, 2)),
        qvel=np.zeros((rows, 2)),
    )
    return path.with_suffix(".npz")


def read_ogbench(path: Path) -> list[Recorded]:
    episodes, at = [], 0
    with np.load(path) as file:
        for row in np.flatnonzero(file["terminals"]):
            seen = file["observations"][at : row + 1]
            episodes.append(Recorded(seen, file["actions"][at:row], file["rewards"][at:row], False, True))
            at = row + 1
    return episodes


FINAL = {"last_row_is_final": True}
LAYOUTS["ogbench"] = Layout(write_ogbench, read_ogbench, "cut", finals=True, options=FINAL)


# Parquet with a row for each episode.


def write_rows(path: Path, episodes: list[Recorded]) -> Path:
    nested = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    table = {
        "observations": pyarrow.array([list(each.observations[:-1]) for each in episodes], nested),
        "actions": pyarrow.array([list(each.actions) for each in episodes], nested),
        "rewards": pyarrow.array([each.rewards for each in episodes], pyarrow.list_(pyarrow.float32())),
        "dones": pyarrow.array([[*[False] * (len(each.rewards) - 1), True] for each in episodes]),
    }
    parquet.write_table(pyarrow.table(table), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def read_rows(path: Path) -> list[Recorded]:
    return [
        Recorded(
            *(np.array(row[name], np.float32) for name in ("observations", "actions", "rewards")),
            row["dones"][-1],
            False,
        )
        for row in parquet.read_table(path).to_pylist()
    ]


LAYOUTS["rows of episodes"] = Layout(write_rows, read_rows, "done")


# d3rlpy.


def write_d3rlpy_1(path: Path, episodes: list[Recorded]) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["observations"] = together([each.observations[:-1] for each in episodes])
        file["actions"] = together([each.actions for each in episodes])
        file["rewards"] = together([each.rewards for each in episodes])[:, None]
        file["terminals"] = flags(episodes, "terminated").astype(np.float32)
        file["episode_terminals"] = flags(episodes, "done").astype(np.float32)
        file["discrete_action"], file["version"] = False, "1.0"
    return path.with_suffix(".h5")


def read_d3rlpy_1(path: Path) -> list[Recorded]:
    episodes, at = [], 0
    with h5py.File(path) as file:
        for row in np.flatnonzero(file["episode_terminals"][()]):
            steps, over = slice(at, row + 1), bool(file["terminals"][row])
            arrays = file["observations"][steps], file["actions"][steps], file["rewards"][steps, 0]
            episodes.append(Recorded(*arrays, over, not over))
            at = row + 1
    return episodes


def write_d3rlpy_2(path: Path, episodes: list[Recorded]) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"], file["version"] = len(episodes), "2.1"
        for number, each in enumerate(episodes):
            file[f"observations_{number}"] = each.observations[:-1]
            file[f"actions_{number}"], file[f"rewards_{number}"] = each.actions, each.rewards[:, None]
            file[f"terminated_{number}"] = each.terminated
    return path.with_suffix(".h5")


def read_d3rlpy_2(path: Path) -> list[Recorded]:
    episodes = []
    with h5py.File(path) as file:
        for number in range(int(file["num_episodes"][()])):
            arrays = [file[f"{name}_{number}"][()] for name in ("observations", "actions", "rewards", "terminated")]
            episodes.append(Recorded(arrays[0], arrays[1], arrays[2][:, 0], bool(arrays[3]), not arrays[3]))
    return episodes


LAYOUTS["d3rlpy 1"] = Layout(write_d3rlpy_1, read_d3rlpy_1)
LAYOUTS["d3rlpy 2"] = Layout(write_d3rlpy_2, read_d3rlpy_2)


# NeoRL.


def write_neorl(path: Path, episodes: list[Recorded]) -> Path:
    lengths = [len(each.rewards) for each in episodes]
    np.savez(
        path.with_suffix(".npz"),
        obs=together([each.observations[:-1] for each in episodes]),
        next_obs=together([each.observations[1:] for each in episodes]),
        action=together([each.actions for each in episodes]),
        reward=together([each.rewards for each in episodes])[:, None],
        done=flags(episodes, "done").astype(np.float32)[:, None],
        index=np.cumsum([0, *lengths[:-1]]),
    )
    return path.with_suffix(".npz")


def read_neorl(path: Path) -> list[Recorded]:
    episodes = []
    with np.load(path) as file:
        bounds = [*file["index"], len(file["obs"])]
        for start, stop in pairwise(bounds):
            seen = np.concatenate([file["obs"][start:stop], file["next_obs"][stop - 1 : stop]])
            over = bool(file["done"][stop - 1, 0])
            episodes.append(Recorded(seen, file["action"][start:stop], file["reward"][start:stop, 0], over, False))
    return episodes


LAYOUTS["neorl"] = Layout(write_neorl, read_neorl, "done", finals=True)


# RLDS.


def rlds(episodes: list[Recorded]) -> dict[str, Any]:
    first = [np.arange(len(each.rewards) + 1) == 0 for each in episodes]
    return {
        "observation": together([each.observations for each in episodes]),
        "action": together([padded(each.actions) for each in episodes]),
        "reward": together([padded(each.rewards) for each in episodes]),
        "is_first": together(first),
        "is_last": flags(episodes, "done", rows=1),
        "is_terminal": flags(episodes, "terminated", rows=1),
    }


def write_rlds(path: Path, episodes: list[Recorded]) -> Path:
    table = {name: list(array) if array.ndim == 2 else array for name, array in rlds(episodes).items()}
    parquet.write_table(pyarrow.table(table), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def write_rlds_npz(path: Path, episodes: list[Recorded]) -> Path:
    np.savez(path.with_suffix(".npz"), **rlds(episodes))
    return path.with_suffix(".npz")


def write_rlds_csv(path: Path, episodes: list[Recorded]) -> Path:
    """With nothing where the last rows have no action and no reward."""
    arrays = rlds(episodes)
    with path.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            [*(f"observation_{i}" for i in range(3)), "action_0", "reward", "is_first", "is_last", "is_terminal"]
        )
        for i, last in enumerate(arrays["is_last"]):
            done = ["", ""] if last else [repr(float(arrays["action"][i, 0])), repr(float(arrays["reward"][i]))]
            marks = [int(arrays[name][i]) for name in ("is_first", "is_last", "is_terminal")]
            rows.writerow([*(repr(float(x)) for x in arrays["observation"][i]), *done, *marks])
    return path.with_suffix(".csv")


def read_rlds(path: Path) -> list[Recorded]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        rows = [{name: array[i] for name, array in arrays.items()} for i in range(len(arrays["reward"]))]
    elif path.suffix == ".csv":
        with path.open() as file:
            rows = [
                {
                    "observation": [float(row[f"observation_{i}"]) for i in range(3)],
                    "action": [float(row["action_0"] or "nan")],
                    "reward": float(row["reward"] or "nan"),
                    **{name: row[name] == "1" for name in ("is_first", "is_last", "is_terminal")},
                }
                for row in csv.DictReader(file)
            ]
    else:
        rows = parquet.read_table(path).to_pylist()
    episodes: list[Recorded] = []
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if not row["is_last"]:
            continue
        steps = held[:-1]
        episodes.append(
            Recorded(
                np.array([each["observation"] for each in held], np.float32),
                np.array([each["action"] for each in steps], np.float32),
                np.array([each["reward"] for each in steps], np.float32),
                bool(row["is_terminal"]),
                not row["is_terminal"],
            )
        )
        held = []
    return episodes


LAYOUTS["rlds parquet"] = Layout(write_rlds, read_rlds, finals=True)
LAYOUTS["rlds npz"] = Layout(write_rlds_npz, read_rlds, finals=True)
LAYOUTS["rlds csv"] = Layout(write_rlds_csv, read_rlds, finals=True)


# Tianshou.


def places(episodes: list[Recorded]) -> dict[str, Any]:
    return {
        "obs": together([each.observations[:-1] for each in episodes]),
        "act": together([each.actions for each in episodes]),
        "rew": together([each.rewards for each in episodes]),
        "terminated": flags(episodes, "terminated"),
        "truncated": flags(episodes, "truncated"),
        "done": flags(episodes, "done"),
        "obs_next": together([each.observations[1:] for each in episodes]),
    }


def write_tianshou(path: Path, episodes: list[Recorded]) -> Path:
    """A ring that is full and whose oldest row is in its middle."""
    arrays = places(episodes)
    size, shift = len(arrays["rew"]), len(arrays["rew"]) // 3
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        file.attrs.update({"maxsize": size, "_size": size, "_insertion_idx": shift, "stack_num": 1})
        file["last_index"] = np.array([(shift - 1) % size])
        for name, array in arrays.items():
            file[f"_meta/{name}"] = np.roll(array, shift, axis=0)
    return path.with_suffix(".hdf5")


def write_tianshou_vector(path: Path, episodes: list[Recorded]) -> Path:
    """An episode in each environment's part, none of which is full."""
    spare, lengths = 4, [len(each.rewards) for each in episodes]
    starts = np.cumsum([0, *(length + spare for length in lengths)])
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        file.attrs.update({"maxsize": int(starts[-1]), "buffer_num": len(episodes), "_size": 0, "_insertion_idx": 0})
        file["_offset"], file["_lengths"] = starts[:-1], np.array(lengths)
        file["last_index"] = starts[:-1] + np.array(lengths) - 1
        for name, array in places(episodes).items():
            wide = np.full((starts[-1], *array.shape[1:]), 1, array.dtype)
            for start, at, length in zip(starts, np.cumsum([0, *lengths]), lengths, strict=False):
                wide[start : start + length] = array[at : at + length]
            file[f"_meta/{name}"] = wide
    return path.with_suffix(".hdf5")


def read_tianshou(path: Path) -> list[Recorded]:
    with h5py.File(path) as file:
        arrays = {name: node[()] for name, node in file["_meta"].items()}
        if "_offset" in file:
            order = [s + i for s, n in zip(file["_offset"], file["_lengths"], strict=True) for i in range(n)]
        else:
            order = [(file.attrs["_insertion_idx"] + i) % file.attrs["maxsize"] for i in range(file.attrs["_size"])]
    episodes, held = [], []
    for row in order:
        held.append(row)
        if arrays["done"][row]:
            seen = np.concatenate([arrays["obs"][held], arrays["obs_next"][held[-1:]]])
            over = bool(arrays["terminated"][row]), bool(arrays["truncated"][row])
            episodes.append(Recorded(seen, arrays["act"][held], arrays["rew"][held], *over))
            held = []
    return episodes


LAYOUTS["tianshou"] = Layout(write_tianshou, read_tianshou, finals=True)
LAYOUTS["tianshou vector"] = Layout(write_tianshou_vector, read_tianshou, finals=True)
