"""Files and folders that are not read: the refusal names a way, and the commands that it names work."""

import json
import pickle
import shlex
import subprocess
import sys

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
    "trajs.npy": "observations=numpy.load",
    "log.xlsx": "save it as log.csv",
    "demo.mat": "scipy.io.loadmat",
    "demo.bag": "a row for each step",
    "log.csv.gz": "compressed; unpack it first",
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
