"""Recordings in the layouts of other libraries: the same numbers come out of each, as a plain loop reads them."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
from formats import LAYOUTS, Recorded, frames, recording
from pyarrow import parquet
from test_readers import problem

from dt import train
from dt.cli import main
from dt.config import Config, DataConfig, ModelConfig
from envs import EnvironmentSpec, from_episodes, join, load, write_minari
from transformer.config import ConfigError

PENDULUM = EnvironmentSpec("Pendulum-v1")


def assert_holds(dataset, episodes: list[Recorded], finals: bool) -> None:
    """The dataset holds these episodes, bit for bit where the types are theirs."""
    assert dataset.lengths.tolist() == [len(each.rewards) for each in episodes]
    assert dataset.terminated.tolist() == [each.terminated for each in episodes]
    assert dataset.truncated.tolist() == [each.truncated for each in episodes]
    assert (dataset.final_observations is not None) == finals
    for i, each in enumerate(episodes):
        found = dataset.episode(i)
        np.testing.assert_array_equal(found.observations["value"].astype(np.float32), each.observations)
        np.testing.assert_array_equal(found.actions["value"].astype(np.float32), each.actions)
        np.testing.assert_array_equal(found.rewards.astype(np.float32), each.rewards)
        assert dataset.returns[i] == pytest.approx(float(np.sum(each.rewards, dtype=np.float64)), rel=1e-12)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_recording_is_the_same_in_every_layout(tmp_path, name):
    layout, episodes = LAYOUTS[name], recording()
    expected = from_episodes([vars(each) for each in episodes], environment=PENDULUM)
    dataset = load(layout.write(tmp_path / "recorded", episodes), environment=PENDULUM, **layout.options)
    if not name.endswith("csv"):  # where numbers are text they come as float64
        assert dataset.fingerprint == expected.fingerprint
    if layout.ends == "both":
        assert dataset.terminated.tolist() == expected.terminated.tolist()
        assert dataset.truncated.tolist() == expected.truncated.tolist()
    if layout.finals:
        final, other = dataset.final_observations["value"], expected.final_observations["value"]
        np.testing.assert_array_equal(final.astype(np.float32), other)
    assert (
        load(dataset.loaded_from[0], environment=PENDULUM, **vars(dataset.reading)).fingerprint == dataset.fingerprint
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_plain_loop_reads_the_same(tmp_path, name, seed):
    rng, layout = np.random.default_rng(seed), LAYOUTS[name]
    episodes = recording(seed + 1, tuple(rng.integers(1, 8, rng.integers(1, 7)).tolist()))
    path = layout.write(tmp_path / "recorded", episodes)
    assert_holds(load(path, environment=PENDULUM, **layout.options), layout.read(path), layout.finals)


# LeRobot.


def lerobot(tmp_path, change=lambda table: table, episodes=None):
    """A file of frames that are changed."""
    path = tmp_path / "frames.parquet"
    parquet.write_table(change(frames(episodes or recording())), path)
    return path


NO_REWARDS = ["next.reward", "next.done", "next.success"]


def test_lerobot_folders_of_many_files_and_chunks(tmp_path):
    """Chunks and files are taken in the order of their numbers, 1000 after 999."""
    episodes = recording(lengths=(3, 2, 4, 2))
    for name, part, first in (("chunk-999/file-010", episodes[2:3], 2), ("chunk-1000/file-000", episodes[3:], 3)):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(frames(part, first), tmp_path / "data" / f"{name}.parquet")
    parquet.write_table(frames(episodes[:2]), tmp_path / "data" / "chunk-999" / "file-009.parquet")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v3.0", "total_episodes": 4}')
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.rewards, np.concatenate([each.rewards for each in episodes]))
    assert dataset.lengths.tolist() == [3, 2, 4, 2]


def test_lerobots_deleted_episodes_are_left_out(tmp_path):
    path = LAYOUTS["lerobot 2"].write(tmp_path / "set", recording())
    lines = (path / "meta" / "episodes.jsonl").read_text().splitlines()
    (path / "meta" / "episodes.jsonl").write_text("\n".join([lines[0], lines[2]]))
    dataset = load(path)
    assert dataset.lengths.tolist() == [3, 2]
    assert "not listed in meta/, as deleted, and left out: episodes 1" in dataset.notes
    assert "meta/info.json says 3 episodes, meta/ lists 2" in dataset.notes
    (path / "data" / "chunk-001" / "episode_000002.parquet").unlink()
    problem(lambda: load(path), "episode 2: 0 frames in data/, meta/ says 2")


def test_lerobots_pictures_and_tasks_are_named(tmp_path):
    path = LAYOUTS["lerobot 3"].write(tmp_path / "set", recording())
    info = json.loads((path / "meta" / "info.json").read_text())
    (path / "meta" / "info.json").write_text(json.dumps({**info, "total_tasks": 2}))
    notes = load(path).notes
    assert "pictures are not read: observation.images.top" in notes
    assert any(note.startswith("2 tasks in one dataset, and no observation says which") for note in notes)
    both = load(path, columns={"observations": ["observation.state", "task_index"]})
    assert both.observations["value"].shape == (10, 4)


def test_several_observations_of_lerobot_are_a_dictionary(tmp_path):
    def change(table):
        table = table.append_column("observation.velocity", pyarrow.array(np.arange(10.0)))
        pictures = pyarrow.array([{"bytes": b"x", "path": "x"}] * 10)
        return table.append_column("observation.images.top", pictures)

    dataset = load(lerobot(tmp_path, change))
    assert list(dataset.observations) == ["state", "velocity"]
    assert dataset.observations["velocity"].tolist() == list(range(10))
    assert list(load(lerobot(tmp_path, change), leave_out="velocity").observations) == ["state"]
    assert "pictures are not read: observation.images.top" in dataset.notes


def test_lerobots_frames_out_of_order_are_refused(tmp_path):
    swapped = pyarrow.array([0, 1, 2, 4, 3, *range(5, 10)])
    problem(lambda: load(lerobot(tmp_path, lambda table: table.take(swapped))), "step: episode 1, step 1", "0 after 1")


# Demonstrations without rewards.


def test_demonstrations_without_rewards_are_read_as_such(tmp_path):
    path = lerobot(tmp_path, lambda table: table.drop_columns(NO_REWARDS))
    dataset = load(path)
    assert dataset.rewards_from == "none"
    assert not dataset.rewards.any()
    assert "no rewards are recorded: a return means nothing here" in dataset.notes
    assert load(path, reward="last").rewards.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 1]
    assert load(path, reward="last").rewards_from == "last"
    problem(lambda: load(path, reward="success"), "no success flag is read of it", "--reward last")
    problem(lambda: load(path, reward="most"), "reward: 'most', expected one of success, last, none")


def test_success_is_the_recorded_flag(tmp_path):
    dataset = load(lerobot(tmp_path), reward="success")
    assert dataset.rewards.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]  # the second episode fails
    assert "rewards are made by the rule 'success', the recorded ones are not read" in dataset.notes
    arrays = {"observations": np.zeros((5, 2)), "actions": np.zeros((5, 1)), "lengths": [2, 3]}
    np.savez(tmp_path / "one-each.npz", **arrays, solved=[False, True])
    named = load(tmp_path / "one-each.npz", reward="success", columns={"success": "solved"})
    assert named.rewards.tolist() == [0, 0, 0, 0, 1]
    np.savez(tmp_path / "plain.npz", **arrays)
    problem(lambda: load(tmp_path / "plain.npz"), "no 'rewards' in it", "--conditioning none", "--reward success")
    assert load(tmp_path / "plain.npz", reward="none").rewards_from == "none"


def test_minaris_rewards_can_be_made_by_a_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(from_episodes([vars(each) for each in recording()]), "some/numbers-v0")
    assert load("some/numbers-v0", reward="last").rewards.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 1]
    problem(lambda: load("some/numbers-v0", reward="success"), "no success flag is read of such a folder")
    problem(lambda: load("some/numbers-v0", last_row_is_final=True), "leave out --last-row-is-final")
    silent = load(lerobot(tmp_path, lambda table: table.drop_columns(NO_REWARDS)))
    problem(lambda: write_minari(silent, "some/silent-v0"), "it has no rewards, and Minari's datasets have")
    problem(lambda: join([silent, load(lerobot(tmp_path))]), "its rewards are from 'recording'", "from 'none'")


SMALL = ["--width", "16", "--num-layers", "1", "--num-heads", "1", "--context-length", "3", "--steps", "2"]


def test_demonstrations_train_where_it_is_said_how(tmp_path, capsys):
    path, run = lerobot(tmp_path, lambda table: table.drop_columns(NO_REWARDS)), str(tmp_path / "run")
    assert main(["train", str(path), "--output", run, *SMALL]) == 2
    assert "--conditioning none clones the behaviour; --reward success or --reward last" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no return to condition on"):
        train(load(path), Config(), run)
    with pytest.raises(ConfigError, match="--top-fraction has no best episodes"):
        train(load(path), Config(model=ModelConfig(conditioning="none"), data=DataConfig(top_fraction=0.5)), run)
    assert not (tmp_path / "run").exists()
    assert main(["train", str(path), "--output", run, *SMALL, "--conditioning", "none"]) == 0
    assert main(["train", str(path), "--output", run, *SMALL, "--conditioning", "none", "--resume"]) == 0
    assert main(["evaluate", run]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "no rewards are recorded, so a return means nothing here" in out
    assert "targets" not in out


def test_a_run_remembers_how_its_data_was_read(tmp_path, capsys):
    path = LAYOUTS["ogbench"].write(tmp_path / "maze", recording())
    run = str(tmp_path / "run")
    assert main(["train", str(path), "--output", run, *SMALL, "--last-row-is-final", "--reward", "last"]) == 0
    part = json.loads((tmp_path / "run" / "run.json").read_text())["dataset"]["parts"][0]
    assert (part["last_row_is_final"], part["reward"]) == (True, "last")
    assert main(["train", str(path), "--output", run, *SMALL[:-1], "3", "--resume"]) == 0
    assert main(["evaluate", run]) == 0
    capsys.readouterr()
    assert main(["train", str(tmp_path), "--output", str(tmp_path / "x"), "--last-row-is-final"]) == 2
    assert "--last-row-is-final is for files" in capsys.readouterr().err


# robomimic and LIBERO.


def robomimic(tmp_path, change=lambda file: None):
    path = LAYOUTS["robomimic"].write(tmp_path / "low_dim", recording())
    with h5py.File(path, "a") as file:
        change(file)
    return path


def test_robomimics_observations_are_a_dictionary_unless_they_are_named(tmp_path):
    path = robomimic(tmp_path)
    dataset = load(path)
    assert {name: array.shape for name, array in dataset.observations.items()} == {
        "eef_pos": (10, 2),
        "gripper": (10, 1),
    }
    assert dataset.final_observations["eef_pos"].shape == (3, 2)
    assert "not read: mask, states" in dataset.notes
    assert load(path, columns={"observations": "obs"}).observations["value"].shape == (10, 3)
    assert load(path, columns={"observations": "states"}).observations["value"].shape == (10, 9)
    one = {"observations": "data/demo_1/obs/eef_pos", "actions": "data/demo_1/actions"}
    one |= {"rewards": "data/demo_1/rewards", "done": "data/demo_1/dones"}
    assert load(path, columns=one).lengths.tolist() == [5]  # one demonstration, by its paths


def test_demonstrations_are_in_the_order_of_their_numbers(tmp_path):
    episodes = recording(lengths=tuple(range(1, 13)))
    path = LAYOUTS["robomimic"].write(tmp_path / "many", episodes)
    assert load(path).lengths.tolist() == list(range(1, 13))


def test_liberos_demonstrations_have_no_next_observations(tmp_path):
    def change(file):
        for demo in file["data"].values():
            del demo["next_obs"], demo["rewards"]
            demo["dones"][:] = 1

    dataset = load(robomimic(tmp_path, change))
    assert dataset.final_observations is None
    assert dataset.rewards_from == "none"
    assert (
        "done is true at 7 steps before the last of their demonstrations: those end at their last steps"
        in dataset.notes
    )
    assert dataset.lengths.tolist() == [3, 5, 2]


# OGBench and RLDS: the last row of an episode.


def test_ogbenchs_last_rows_are_observations_only(tmp_path):
    path = LAYOUTS["ogbench"].write(tmp_path / "maze", recording())
    problem(lambda: load(path), "--last-row-is-final says that it is so", "--columns terminated=terminals")
    assert load(path, columns={"terminated": "terminals"}).lengths.tolist() == [4, 6, 3]
    with np.load(path) as file:
        np.savez(tmp_path / "goals.npz", **{name: file[name] for name in file.files if name != "rewards"})
    goals = load(tmp_path / "goals.npz")
    assert goals.lengths.tolist() == [3, 5, 2]
    assert goals.rewards_from == "none"
    assert goals.truncated.all()
    np.testing.assert_array_equal(goals.final_observations["value"], [x.observations[-1] for x in recording()])


def test_an_episode_of_one_row_has_no_step(tmp_path):
    arrays = {"observations": np.arange(6.0)[:, None], "actions": np.arange(6.0)[:, None], "rewards": np.arange(6.0)}
    np.savez(tmp_path / "a.npz", **arrays, done=[0, 0, 1, 1, 0, 1])
    dataset = load(tmp_path / "a.npz", last_row_is_final=True)
    assert dataset.lengths.tolist() == [2, 1]
    assert dataset.rewards.tolist() == [0, 1, 4]
    assert dataset.final_observations["value"].ravel().tolist() == [2, 5]
    assert "1 of 3 episodes have one row, of an observation only: left out" in dataset.notes
    arrays |= {"success": [0, 0, 1, 0, 0, 0]}  # seen in the last row, earned by the step before
    np.savez(tmp_path / "c.npz", **arrays, done=[0, 0, 1, 0, 0, 1])
    assert load(tmp_path / "c.npz", last_row_is_final=True, reward="success").rewards.tolist() == [0, 1, 0, 0]
    np.savez(tmp_path / "b.npz", **arrays, done=np.ones(6))
    problem(lambda: load(tmp_path / "b.npz", last_row_is_final=True), "each episode has one row")


def test_what_is_missing_in_a_last_row_is_named_by_its_row(tmp_path):
    path = LAYOUTS["rlds csv"].write(tmp_path / "steps", recording())
    lines = path.read_text().splitlines()
    (tmp_path / "seen.csv").write_text("\n".join([*lines[:4], "," + lines[4].partition(",")[2], *lines[5:]]))
    problem(lambda: load(tmp_path / "seen.csv"), "row 4, observation_0: nothing there")
    cells = lines[6].split(",")
    (tmp_path / "done.csv").write_text("\n".join([*lines[:6], ",".join([*cells[:3], "", *cells[4:]]), *lines[7:]]))
    problem(lambda: load(tmp_path / "done.csv"), "episode 1, step 1, row 6, column 'action_0': nothing there")
    assert load(tmp_path / "done.csv", skip_bad_episodes=True).lengths.tolist() == [3, 2]


def test_rlds_is_rlds_whatever_flags_are_named(tmp_path):
    path = LAYOUTS["rlds npz"].write(tmp_path / "steps", recording())
    followed = load(path, columns={"done": "is_last", "terminated": "is_terminal"})
    assert followed.lengths.tolist() == [3, 5, 2]
    assert followed.fingerprint == load(path).fingerprint
    plain = load(path, columns={"truncated": "is_last", "terminated": "is_terminal"})
    assert plain.lengths.tolist() == [4, 6, 3]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["reward"][3] = 2.5  # as libraries have it that put the last step's reward there
    np.savez(tmp_path / "late.npz", **arrays)
    problem(lambda: load(tmp_path / "late.npz"), "row 4: reward 2.5 where is_last is true", "--columns truncated=is_l")
    assert load(tmp_path / "late.npz", last_row_is_final=True).fingerprint == load(path).fingerprint


# d3rlpy, rows of episodes, Tianshou.


def test_d3rlpys_tuples_are_tuples(tmp_path):
    with h5py.File(tmp_path / "buffer.h5", "w") as file:
        file["num_episodes"] = 2
        for i, steps in enumerate((2, 3)):
            file[f"observations_{i}_0"], file[f"observations_{i}_1"] = np.zeros((steps, 3)), np.ones((steps, 2))
            file[f"actions_{i}"], file[f"rewards_{i}"] = np.arange(steps)[:, None] % 2, np.ones((steps, 1))
            file[f"terminated_{i}"] = False
    dataset = load(tmp_path / "buffer.h5")
    assert {name: array.shape for name, array in dataset.observations.items()} == {"0": (5, 3), "1": (5, 2)}
    assert dataset.action_space.n == 2
    assert dataset.truncated.all()


def test_a_row_is_an_episode_where_rewards_are_lists(tmp_path):
    rows = {"observations": [[0.5] * 5, [1.5] * 4], "actions": [[1, 0, 1, 0, 1], [0, 0, 1, 1]]}
    table = pyarrow.table({**rows, "rewards": [[1.0] * 5, [2.0] * 4], "dones": [[False] * 5, [False] * 4]})
    parquet.write_table(table, tmp_path / "numbers.parquet")
    dataset = load(tmp_path / "numbers.parquet")
    assert dataset.returns.tolist() == [5, 8]
    assert dataset.observations["value"].tolist() == [0.5] * 5 + [1.5] * 4
    assert dataset.action_space.n == 2
    table = pyarrow.table({**rows, "rewards": [[1.0] * 2, [2.0] * 4]})
    parquet.write_table(table, tmp_path / "short.parquet")
    problem(lambda: load(tmp_path / "short.parquet"), "column 'observations'", "row 1: 5 steps, expected 2")
    steps = {"observations": [[0.5, 0.2, 0.1]] * 4, "actions": [[0.3]] * 4, "rewards": [[1.0]] * 4}
    parquet.write_table(pyarrow.table({**steps, "episode": [0, 0, 1, 1]}), tmp_path / "steps.parquet")
    assert load(tmp_path / "steps.parquet").returns.tolist() == [2, 2]  # a row a step, as replay buffers are written


def test_a_buffers_unused_rows_are_not_read(tmp_path):
    path = LAYOUTS["tianshou"].write(tmp_path / "buffer", recording())
    with h5py.File(path, "a") as file:
        file.attrs["_size"] = file.attrs["_insertion_idx"] = 6
    dataset = load(path)
    assert dataset.num_steps == 6
    assert "4 of the buffer's 10 places were never filled; they are not read" in dataset.notes
    problem(lambda: load(path, columns={"observations": "obs"}), "have names of their own; leave out --columns")
    ring = LAYOUTS["tianshou"].write(tmp_path / "ring", recording())
    expected = load(ring).fingerprint
    with h5py.File(ring, "a") as file:
        file.attrs["_index"] = file.attrs.pop("_insertion_idx")  # its name before version 2
    assert load(ring).fingerprint == expected


# Files that the libraries themselves have written; tests/written/write.py says how.

WRITTEN = {
    "d3rlpy-2.8.1.h5": ("both", False),
    "tianshou-2.0.1.hdf5": ("both", True),
    "tianshou-2.0.1-vector.hdf5": ("both", True),
    "datasets-5.2.0.parquet": ("done", False),
    "lerobot-0.4.0": ("done", False),
    "lerobot-0.3.3": ("done", False),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_the_libraries_themselves_are_read(name):
    (ends, finals), episodes = WRITTEN[name], recording()
    if ends == "done":
        episodes = [replace(each, terminated=True, truncated=False) for each in episodes]
    if not finals:
        episodes = [replace(each, observations=each.observations[:-1]) for each in episodes]
    dataset = load(Path(__file__).parent / "written" / name, environment=PENDULUM)
    assert_holds(dataset, episodes, finals)


def test_the_libraries_files_are_small():
    folder = Path(__file__).parent / "written"
    sizes = {name: (folder / name).stat().st_size for name in WRITTEN if (folder / name).is_file()}
    for name in WRITTEN.keys() - sizes.keys():
        sizes[name] = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
    assert max(sizes.values()) < 100_000


# A group for each episode.


def maniskill(path, names=("traj_0", "traj_1", "traj_10", "traj_2"), final=1, observations="obs", **more):
    """Episodes of 3 to 6 steps, which count the steps of all; some arrays are left to `more`."""
    at = 0
    with h5py.File(path, "w") as file:
        for number, name in enumerate(names):
            steps = 3 + number
            rows = np.arange(at, at + steps + final, dtype=np.float32)
            group = file.create_group(name)
            group[observations] = np.stack([rows, -rows], axis=1)
            group["actions"], group["rewards"] = np.full((steps, 1), number, np.float32), np.ones(steps, np.float32)
            group["success"] = np.arange(steps) >= steps - 2
            group["terminated"] = np.arange(steps) >= steps - 2
            group["truncated"] = np.arange(steps) == steps - 1
            group["env_states/actors/cube"] = np.zeros((steps + 1, 13))
            for key, value in more.items():
                group[key.replace("__", "/")] = value(steps)
            at += steps
    return path


@pytest.mark.parametrize("prefix", ["traj_", "episode_", "data/", "data/episode_", ""])
@pytest.mark.parametrize("final", [0, 1])
def test_a_group_for_each_episode_is_read_in_the_order_of_its_numbers(tmp_path, prefix, final):
    names = [f"{prefix}{number}" for number in (0, 1, 10, 2)]
    path = maniskill(tmp_path / "demos.h5", names, final, "obs" if prefix == "traj_" else "observations")
    dataset = load(path)
    starts = {0: 0, 1: 3, 10: 7, 2: 12}
    expected = [
        start + i
        for number, steps in ((0, 3), (1, 4), (2, 6), (10, 5))
        for i in range(steps)
        for start in [starts[number]]
    ]
    assert dataset.lengths.tolist() == [3, 4, 6, 5]
    assert dataset.observations["value"][:, 0].tolist() == expected
    assert dataset.terminated.all()
    assert (dataset.final_observations is not None) == final
    assert "terminated is true at 4 steps before the last of their episodes" in dataset.notes
    assert any("not read: env_states, success" in note for note in dataset.notes)
    by_rule = load(path, reward="success")
    assert by_rule.returns.tolist() == [1] * 4


def test_a_group_for_each_episode_may_hold_groups_of_observations(tmp_path):
    parts = {
        "obs__agent__qpos": lambda steps: np.zeros((steps + 1, 9)),
        "obs__extra": lambda steps: np.ones((steps + 1, 7)),
        "obs__language": lambda steps: [b"lift"] * (steps + 1),
    }
    path = maniskill(tmp_path / "demos.h5", observations="pos", **parts)
    problem(
        lambda: load(path), "traj_0/obs/language: type object, expected numbers; --leave-out language reads the rest"
    )
    dataset = load(path, leave_out="language")
    assert {name: array.shape for name, array in dataset.observations.items()} == {
        "agent/qpos": (18, 9),
        "extra": (18, 7),
    }
    assert list(load(path, leave_out=["language", "agent"]).observations) == ["extra"]
    chosen = {"observations": ["obs/extra", "pos"]}
    assert load(path, columns=chosen).observations["value"].shape == (18, 9)


HOSTILE_GROUPS = {
    "an episode of another shape": (
        lambda g: (g["traj_1"].pop("actions"), g["traj_1"].create_dataset("actions", data=np.zeros((4, 2)))),
        "traj_1/actions: float64 of shape (4, 2), expected float32",
    ),
    "an episode without an array": (lambda g: g["traj_1"].pop("rewards"), "traj_1/rewards: missing"),
    "no step": (
        lambda g: (g["traj_1"].pop("actions"), g["traj_1"].create_dataset("actions", data=np.zeros((0, 1)))),
        "traj_1: no step in it",
    ),
    "a link": (
        lambda g: (g["traj_1"].pop("actions"), g["traj_1"].__setitem__("actions", h5py.SoftLink("/traj_0/actions"))),
        "is a link elsewhere",
    ),
    "text": (
        lambda g: (g["traj_0"].pop("actions"), g["traj_0"].create_dataset("actions", data=[b"x"] * 3)),
        "traj_0/actions: type object, expected numbers",
    ),
    "not a number": (lambda g: g["traj_1/rewards"].__setitem__(1, np.nan), "rewards: nan is not finite"),
    "no observations": (lambda g: [g[name].pop("obs") for name in g], "no 'observations' in it"),
}


@pytest.mark.parametrize("case", HOSTILE_GROUPS)
def test_broken_groups_of_episodes_are_refused(tmp_path, case):
    path = maniskill(tmp_path / "demos.h5")
    change, words = HOSTILE_GROUPS[case]
    with h5py.File(path, "r+") as file:
        change(file)
    problem(lambda: load(path), words)


def test_a_group_of_observations_is_named_with_what_reads_it(tmp_path):
    with h5py.File(tmp_path / "aloha.hdf5", "w") as file:
        file["observations/qpos"], file["observations/qvel"] = np.zeros((4, 2)), np.ones((4, 2))
        file["action"], file["reward"] = np.zeros((4, 2)), np.ones(4)
    words = "--columns FIELD=observations/qpos,observations/qvel makes one vector of them"
    problem(lambda: load(tmp_path / "aloha.hdf5"), words)
    columns = {"observations": ["observations/qpos", "observations/qvel"]}
    assert load(tmp_path / "aloha.hdf5", columns=columns, file_is_episode=True).observations["value"].shape == (4, 4)
