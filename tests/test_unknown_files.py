"""Files and folders that are not read: the refusal names a way, and the commands that it names work."""

import json
import pickle
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pyarrow
import pytest
from formats import recording
from pyarrow import feather
from test_readers import problem

from dt.cli import main
from envs import EnvironmentSpec, from_replay_buffer, load

KINDS = {
    "buffer.pth": "torch.load",
    "trajs.npy": "cannot be read as .npy",
    "log.xlsx": "save it as log.csv",
    "demo.mat": "scipy.io.loadmat",
    "demo.bag": "a row for each step",
    "log.csv.gz": "compressed; unpack it first: gunzip -k ",
    "log.tar.gz": "compressed; unpack it first: tar -xf ",
    "log.zip": "compressed; unpack it first: unzip ",
    "hopper.tfrecord": "is_first, is_last and is_terminal",
    "hopper.tfrecord-00000-of-00001": "is_first, is_last and is_terminal",
    "something.xyz": "envs.from_episodes",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_not_read_has_a_way(tmp_path, name):
    (tmp_path / name).write_text("x")
    problem(lambda: load(tmp_path / name), f"{tmp_path / name}: ", KINDS[name])


FOLDERS = {
    "pusht.zarr": ({".zgroup": "{}"}, "zarr.open"),
    "saved": ({"dataset_info.json": "{}", "data-00000-of-00001.arrow": "x"}, "datasets.load_from_disk("),
    "splits": ({"dataset_dict.json": "{}"}, '["train"].to_parquet('),
    "rlds": ({"features.json": "{}"}, "is_first, is_last and is_terminal"),
    "tfds": ({"hopper/1.0.0/features.json": "{}"}, "hopper/1.0.0 is TensorFlow's"),
    "buffer": ({"meta.json": "{}", "action.memmap": "x"}, "TensorDict.load_memmap"),
    "arrays": ({"observations.npy": "x"}, "the arrays of its .npy files"),
    "below": ({"data/chunk-000/file-000.parquet": "x"}, "name a file of it: "),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_read_has_a_way(tmp_path, capsys, name):
    files, words = FOLDERS[name]
    for file, text in files.items():
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text(text)
    problem(lambda: load(tmp_path / name), "no metadata.json", "no meta/info.json", words)
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def named_command(path) -> str:
    """The command in a refusal."""
    error = problem(lambda: load(path))
    return "python -c " + str(error).partition("python -c ")[2]


def followed(path, monkeypatch, name):
    """The dataset that comes of the command in a refusal. name: of the file or id that it writes."""
    root = path.parent / "root"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    words = shlex.split(named_command(path))
    subprocess.run([sys.executable, "-W", "ignore", *words[1:]], check=True, cwd=path.parent)
    return load(path.parent / name if (path.parent / name).exists() else name)


def test_the_papers_pickles_are_refused_with_a_line_that_opens_them(tmp_path, monkeypatch):
    episodes = [
        {
            "observations": each.observations[:-1],
            "next_observations": each.observations[1:],
            "actions": each.actions,
            "rewards": each.rewards,
            "terminals": np.arange(len(each.rewards)) == (len(each.rewards) - 1 if each.terminated else -1),
        }
        for each in recording()
    ]
    path = tmp_path / "hopper-medium-v2.pkl"
    path.write_bytes(pickle.dumps(episodes))
    problem(lambda: load(path), "a pickle, which may run any code as it is opened; if you trust it: python -c")
    dataset = followed(path, monkeypatch, "mine/hopper-medium-v2-v0")
    assert dataset.lengths.tolist() == [3, 5, 2]
    assert dataset.terminated.tolist() == [True, False, True]
    np.testing.assert_array_equal(dataset.final_observations["value"][1], recording()[1].observations[-1])


def test_a_pickle_is_not_opened_to_say_what_it_is(tmp_path):
    class Ran:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",))

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps([Ran()]))
    problem(lambda: load(tmp_path / "evil.pkl"), "which may run any code")
    assert not (tmp_path / "ran").exists()


def test_a_files_name_is_no_command(tmp_path, monkeypatch):
    """The line is for a shell, and a name may hold what a shell would take for commands."""
    arrays = {"observations": np.ones((4, 2)), "actions": np.ones(4), "rewards": np.ones(4), "dones": [0, 1, 0, 1]}
    path = tmp_path / """$(touch ran) `touch ran` "x'; touch ran.pkl"""
    path.write_bytes(pickle.dumps(arrays))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    subprocess.run(named_command(path).replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    assert len(list((tmp_path / "root" / "mine").iterdir())) == 2  # the dataset, and the namespace's metadata


def test_a_pickle_of_arrays_is_opened_as_arrays(tmp_path, monkeypatch):
    arrays = {"observations": np.ones((4, 2)), "actions": np.ones(4), "rewards": np.ones(4), "dones": [0, 1, 0, 1]}
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(arrays))
    assert followed(tmp_path / "arrays.pkl", monkeypatch, "mine/arrays-v0").lengths.tolist() == [2, 2]


def test_torchs_arrays_are_opened_without_code(tmp_path, monkeypatch):
    import torch

    arrays = {"observations": torch.ones(4, 2), "actions": torch.ones(4), "rewards": torch.ones(4)}
    torch.save({**arrays, "done": torch.tensor([0, 1, 0, 1])}, tmp_path / "arrays.pt")
    assert followed(tmp_path / "arrays.pt", monkeypatch, "mine/arrays-v0").lengths.tolist() == [2, 2]


ROWS = [{"observation": i / 2, "action": i % 2, "reward": 1.0, "terminated": i % 2} for i in range(4)]


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.json", "rows.json", "columns.json", "log.feather", "log.arrow"])
def test_tables_of_other_kinds_become_parquet(tmp_path, monkeypatch, name):
    path, table = tmp_path / name, pyarrow.Table.from_pylist(ROWS)
    if name == "log.feather":
        feather.write_feather(table, path)
    elif name == "log.arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        lines = "\n".join(map(json.dumps, ROWS))
        path.write_text({"rows.json": json.dumps(ROWS), "columns.json": json.dumps(table.to_pydict())}.get(name, lines))
    dataset = followed(path, monkeypatch, path.with_suffix(".parquet").name)
    assert dataset.rewards.tolist() == [1] * 4
    assert dataset.lengths.tolist() == [2, 2]


def filled(buffer, steps):
    """A buffer of two environments, whose episodes are of 3 steps, the second environment's cut: what it was given."""
    given = []
    for step in range(steps):
        seen = np.array([[step, 0, 0], [step, 1, 1]], np.float32)
        after = seen + np.array([[1, 0, 0], [1, 0, 0]], np.float32)
        action = np.array([[-1.0], [0.5]], np.float32)  # scaled, as SAC stores it
        done, cut = np.array([step % 3 == 2] * 2), [{}, {"TimeLimit.truncated": step % 3 == 2}]
        buffer.add(seen, after, action, np.array([1.0, 2.0]), done, cut)
        given.append(action * 2)
    return buffer


def test_a_replay_buffer_of_stable_baselines_is_opened_by_its_line(tmp_path, monkeypatch):
    from stable_baselines3.common.buffers import ReplayBuffer

    env = EnvironmentSpec("Pendulum-v1").make()
    spaces = env.observation_space, env.action_space
    part = from_replay_buffer(filled(ReplayBuffer(20, *spaces, device="cpu", n_envs=2), 8))
    assert part.lengths.tolist() == [3, 3, 2, 3, 3, 2]
    assert part.terminated.tolist() == [True, True, False, False, False, False]
    assert part.truncated.tolist() == [False, False, False, True, True, False]
    assert part.actions["value"].ravel().tolist() == [-2.0] * 8 + [1.0] * 8  # as the environment got them
    assert part.rewards.tolist() == [1.0] * 8 + [2.0] * 8
    assert part.final_observations["value"][:, 0].tolist() == [3, 6, 8, 3, 6, 8]
    full = from_replay_buffer(filled(ReplayBuffer(14, *spaces, device="cpu", n_envs=2), 9))  # 7 places each
    assert full.observations["value"][:7, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert full.lengths.tolist() == [1, 3, 3, 1, 3, 3]
    problem(lambda: from_replay_buffer(ReplayBuffer(6, *spaces, device="cpu")), "the buffer is empty")
    path = tmp_path / "replay.pkl"
    path.write_bytes(pickle.dumps(filled(ReplayBuffer(20, *spaces, device="cpu", n_envs=2), 8)))
    assert "envs.from_replay_buffer(" in named_command(path)
    assert followed(path, monkeypatch, "mine/replay-v0").lengths.tolist() == part.lengths.tolist()


STEPS = [{name: value for name, value in row.items() if name != "terminated"} for row in ROWS]
EPISODES = [STEPS[:2], STEPS[2:]]
COLUMNS = [{name: [row[name] for row in episode] for name in episode[0]} for episode in EPISODES]
NESTED = {
    "rows in an object": {"version": 1, "data": ROWS},
    "lists of rows": EPISODES,
    "lists of rows in an object": {"trajectories": EPISODES},
    "episodes with rows": {"episodes": [{"id": i, "steps": rows} for i, rows in enumerate(EPISODES)]},
    "episodes with columns": {"environment": "x", "episodes": COLUMNS},
    "episodes by their names": {f"episode-{i}": columns for i, columns in enumerate(COLUMNS)},
    "columns and more": {**{name: [row[name] for row in ROWS] for name in ROWS[0]}, "metadata": {"author": "x"}},
    "columns in an object": {"data": {name: [row[name] for row in ROWS] for name in ROWS[0]}},
}


@pytest.mark.parametrize("name", NESTED)
def test_json_is_opened_as_it_nests(tmp_path, monkeypatch, name):
    (tmp_path / "log.json").write_text(json.dumps(NESTED[name]))
    dataset = followed(tmp_path / "log.json", monkeypatch, "log.parquet")
    assert dataset.lengths.tolist() == [2, 2]
    assert dataset.rewards.tolist() == [1] * 4
    assert dataset.observations["value"].reshape(-1).tolist() == [0, 0.5, 1, 1.5]


def test_arrays_of_objects_and_records_are_opened_by_their_lines(tmp_path, monkeypatch):
    episodes = [{name: np.array(values) for name, values in columns.items()} for columns in COLUMNS]
    renamed = [{f"{name}s": values for name, values in episode.items()} for episode in episodes]
    np.save(tmp_path / "dicts.npy", np.array(renamed, object))
    np.save(
        tmp_path / "dict.npy", {"lengths": [2, 2]} | {k: np.concatenate([e[k] for e in renamed]) for k in renamed[0]}
    )
    uneven = {name: np.empty(2, object) for name in renamed[0]}
    for name, values in uneven.items():
        values[0], values[1] = renamed[0][name], np.concatenate([renamed[1][name], renamed[1][name]])
    np.savez(tmp_path / "objects.npz", **uneven)
    records = np.array([tuple(row.values()) for row in ROWS], [(name, "f8") for name in ROWS[0]])
    np.save(tmp_path / "records.npy", records)
    for name, lengths in (("dicts.npy", [2, 2]), ("dict.npy", [2, 2]), ("objects.npz", [2, 4])):
        made = f"mine/{name.partition('.')[0]}-v0"
        assert followed(tmp_path / name, monkeypatch, made).lengths.tolist() == lengths
    assert followed(tmp_path / "records.npy", monkeypatch, "records.parquet").lengths.tolist() == [2, 2]
    np.save(tmp_path / "plain.npy", np.zeros(3))
    problem(lambda: load(tmp_path / "plain.npy"), "observations=numpy.load")


def grouped(path, names, within=False, **more):
    """An HDF5 file with these groups, each of an episode of 3 steps, or of two if `within`."""
    with h5py.File(path, "w") as file:
        for name in names:
            for key, values in {"obs": np.arange(6.0), "act": np.zeros(6), "rew": np.ones(6), **more}.items():
                file[f"{name}/{key}"] = values if within else values[:3]
    return path


def test_groups_of_any_names_have_a_way(tmp_path, monkeypatch):
    path = grouped(tmp_path / "people.hdf5", ["alice", "bob", "carol"])
    assert followed(path, monkeypatch, "mine/people-v0").lengths.tolist() == [3, 3, 3]
    path = grouped(tmp_path / "splits.hdf5", ["test", "train"], within=True, done=np.arange(6) % 3 == 2)
    said = "observations=test/obs actions=test/act rewards=test/rew done=test/done"
    problem(lambda: load(path), "only groups of arrays, test, train", f"--columns {said} reads test")
    columns = dict(each.split("=") for each in said.split())
    assert load(path, columns=columns).lengths.tolist() == [3, 3]
    path = grouped(tmp_path / "numbered.hdf5", ["ep 1", "ep 2"])
    problem(lambda: load(path), "--columns actions=act rewards=rew says which")
    columns = {"actions": "act", "rewards": "rew"}
    assert load(path, columns=columns).lengths.tolist() == [3, 3]


def test_a_group_of_several_episodes_is_not_one(tmp_path):
    more = {"action": np.zeros(6), "reward": np.ones(6), "done": np.arange(6) % 3 == 2}
    path = grouped(tmp_path / "shards.hdf5", ["shard_0", "shard_1"], within=True, observation=np.zeros(6), **more)
    problem(lambda: load(path), "shard_0/done: true at step 2, and false later", "--columns done=none")
    assert load(path, columns={"done": "none", "observations": "obs"}).lengths.tolist() == [6, 6]


ARRAYS = {
    "observations": (np.zeros(3, [("x", "f8"), ("y", "f8")]), "a record: write each of x, y as an array of its own"),
    "actions": (np.array(["left", "right", "left"]), "numpy.unique(array, return_inverse=True)[1] numbers them"),
    "rewards": (np.array(["1.5", "-2", "1e3"]), "array.astype(float) makes numbers of it"),
    "terminals": (np.array(["False", "False", "True"]), 'array == "True" makes true and false of it'),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_no_numbers_have_a_way(tmp_path, name):
    arrays = {"observations": np.zeros(3), "actions": np.zeros(3), "rewards": np.zeros(3), "terminals": [0, 0, 1]}
    np.savez(tmp_path / "log.npz", **{**arrays, name: ARRAYS[name][0]})
    problem(lambda: load(tmp_path / "log.npz"), "expected numbers", ARRAYS[name][1])


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_columns_apart_by_several_blanks_are_read(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    for align in (str.ljust, str.rjust):
        rows = [ROWS[0].keys(), *(row.values() for row in ROWS)]
        path.write_text("\n".join("  ".join(align(str(cell), 14) for cell in row) for row in rows) + "\n")
        dataset = load(path)
        assert dataset.lengths.tolist() == [2, 2]
        assert dataset.observations["value"].tolist() == [0, 0.5, 1, 1.5]


def test_a_column_that_is_not_read_may_be_left_out_by_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("observation,action,reward,done,mission\n0,1,1,0,go\n1,0,1,1,go\n")
    assert load(path, leave_out="mission").lengths.tolist() == [2]
    problem(lambda: load(path, leave_out="observation"), "no 'observation' in it to leave out")


def test_powderworlds_last_rows_are_asked_for(tmp_path):
    path, seen = tmp_path / "powderworld-easy-play-v0.npz", np.arange(16)
    np.savez(path, observations=seen, actions=np.tile([1, 2, 0, 3], 4), terminals=np.tile([0, 0, 0, 1], 4))
    problem(lambda: load(path, reward="none"), "--last-row-is-final", "--columns terminated=terminals")
    dataset = load(path, last_row_is_final=True)
    assert (dataset.lengths.tolist(), dataset.truncated.tolist()) == ([3] * 4, [True] * 4)
    assert dataset.final_observations["value"].tolist() == [3, 7, 11, 15]
    assert load(path, reward="none", columns={"terminated": "terminals"}).lengths.tolist() == [4] * 4
