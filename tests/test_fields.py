"""What data calls its fields: end flags under all their usual names, and none of them left alone in silence."""

import numpy as np
import pytest
from test_readers import (
    ENDS,
    LENGTHS,
    columns,
    numbers,
    problem,
    write,
    write_csv,
    write_hdf5,
    write_npz,
    write_parquet,
)

from dt.cli import main
from dt.inspection import describe_dataset
from envs import DataError, from_arrays, from_episodes, load
from envs.reading.fields import FIELDS, looks_like_an_end, looks_like_an_episode
from envs.reading.flat_files import INTERLEAVED
from transformer.files import read_json

ALONE = "only done is there: each end counts as terminated, none as truncated"


def flags() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each step whether it terminates its episode, cuts it, or either."""
    terminated, truncated = numbers()["terminated"], numbers()["truncated"]
    return terminated, truncated, terminated | truncated


def ends(dataset) -> tuple:
    return dataset.lengths.tolist(), dataset.terminated.tolist(), dataset.truncated.tolist()


AS_RECORDED = (list(LENGTHS), [True, False, True], [False, True, False])


# End flags.


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet", "hdf5"])
@pytest.mark.parametrize("beside", ["flags alone", "an episode"])
@pytest.mark.parametrize(
    "names", [("terminal", "timeout"), ("termination", "truncation"), ("terminated", "done"), ("truncated", "dones")]
)
def test_end_flags_have_their_usual_names(tmp_path, suffix, beside, names):
    terminated, truncated, done = flags()
    values = {"terminated": terminated, "terminal": terminated, "termination": terminated}
    values |= {"truncated": truncated, "timeout": truncated, "truncation": truncated, "done": done, "dones": done}
    episode = {"episode": np.repeat(np.arange(3), LENGTHS) if beside == "an episode" else None}
    theirs = {name: values[name] for name in names}
    path = write(tmp_path, suffix, **{"terminated": None, "truncated": None, **episode, **theirs})
    assert ends(load(path)) == AS_RECORDED


def test_every_known_name_is_known_to_python():
    terminated, truncated, done = flags()
    arrays = {key: value for key, value in numbers().items() if key not in ("terminated", "truncated")}
    for name in FIELDS["terminated"]:
        for other in FIELDS["truncated"]:
            assert ends(from_arrays(**arrays, **{name: terminated, other: truncated})) == AS_RECORDED
    for name in FIELDS["done"]:
        dataset = from_arrays(**arrays, **{name: done})
        assert ends(dataset) == (list(LENGTHS), [True] * 3, [False] * 3)
        assert ALONE in dataset.notes
        assert ALONE not in from_arrays(**arrays, **{name: done}, timeouts=truncated).notes


def test_done_where_it_is_no_more_than_terminated(tmp_path):
    terminated, truncated, _ = flags()
    path = write(tmp_path, "csv", episode=None, terminated=None, truncated=None, done=terminated, timeouts=truncated)
    assert ends(load(path)) == AS_RECORDED  # an end is where either of them is


def test_three_flags_must_agree():
    arrays = {**numbers(), "done": flags()[2]}
    assert ends(from_arrays(**arrays)) == AS_RECORDED
    arrays["truncated"] = np.zeros(10, bool)
    words = "arrays: episode 1: terminated is false, truncated is false, done is true at its end"
    problem(lambda: from_arrays(**arrays), words)
    episode = {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}
    problem(
        lambda: from_episodes([episode, {**episode, "done": False, "truncated": True, "terminated": False}]),
        "episodes: episode 1: terminated is false, truncated is true, done is false at its end",
    )


def test_what_looks_like_an_end_is_never_left_alone_in_silence(tmp_path):
    path = write(tmp_path, "npz", is_last=flags()[2])
    problem(lambda: load(path), f"{path}: 'is_last' looks like an end of episodes and is not read")
    path = write(tmp_path, "npz", lengths=np.array(LENGTHS), is_last=flags()[2])
    assert "'is_last' looks like an end of episodes; it is not read" in load(path).notes
    path = write(tmp_path, "csv", **{"next.done": flags()[2]})
    assert "note          'next.done' looks like an end of episodes; it is not read" in describe_dataset(load(path))
    for name in ("is_terminal", "TimeLimit.truncated", "episode_end", "Done", "timed_out", "info_timeout"):
        assert looks_like_an_end(name), name
    for name in ("terminal_observation", "end_effector", "abandoned", "last_action", "undone", "friend"):
        assert not looks_like_an_end(name), name


NAMES = ("ep", "ep_id", "episodeId", "Episode ID", "episode_number", "traj_id", "trajectory", "trajectory_id", "run_id")


@pytest.mark.parametrize("suffix", ["npz", "csv", "hdf5"])
def test_what_looks_like_the_episodes_is_never_left_alone_in_silence(tmp_path, suffix):
    """Without it an episode that was cut goes on in the next."""
    terminated, truncated, done = flags()
    of = np.repeat(np.arange(3), LENGTHS)
    alone = {"terminated": terminated, "truncated": None, "episode": None, "trajectory_id": of}
    path = write(tmp_path, suffix, **alone)
    problem(lambda: load(path), f"{path}: flags mark 2 episodes, 'trajectory_id' shows 3", "episode=trajectory_id")
    assert load(path, columns={"episode": "trajectory_id"}).lengths.tolist() == list(LENGTHS)
    end = "terminals" if suffix == "hdf5" else "terminated"
    told = load(path, columns={"terminated": end})  # the user says that it ends there and nowhere else
    assert told.num_episodes == 2
    for more in ({"truncated": truncated}, {"terminated": None, "done": done}):
        known = load(write(tmp_path, suffix, **{**alone, **more}))
        assert (known.lengths.tolist(), "not read: trajectory_id" in known.notes) == (list(LENGTHS), True)


def test_what_looks_like_the_episodes_is_refused_whatever_its_numbers_are(tmp_path):
    terminated, _, _ = flags()
    changing = np.arange(sum(LENGTHS)) // 2 % 2
    path = write(tmp_path, "npz", terminated=terminated, truncated=None, episode=None, trajectory_id=changing)
    problem(lambda: load(path), f"{path}: 'trajectory_id' looks like the episodes' numbers", "'episode=trajectory_id'")


def test_names_that_look_like_the_episodes():
    for name in NAMES:
        assert looks_like_an_episode(name), name
    for name in ("episode_return", "step", "replay", "id", "run", "episode_length", "epsilon", "trajectory_cost"):
        assert not looks_like_an_episode(name), name


# Names in Python.


@pytest.mark.parametrize("unknown", ["reward_", "infos", "obs"])
def test_arrays_of_unknown_names_are_refused(unknown):
    words = (f"arrays: {unknown!r} is not known; known are observations, observation, actions", "timeouts, done, dones")
    problem(lambda: from_arrays(**numbers(), **{unknown: np.zeros(10)}), *words)


def test_episodes_as_minari_names_them():
    arrays = numbers()
    cuts = {name: np.split(array, ENDS[:-1] + 1) for name, array in arrays.items()}
    cuts["terminations"], cuts["truncations"] = cuts.pop("terminated"), cuts.pop("truncated")
    episodes = [{"id": i, "infos": {}, **{name: parts[i] for name, parts in cuts.items()}} for i in range(3)]
    assert ends(from_episodes(episodes)) == AS_RECORDED
    dones = [
        {**{key: e[key] for key in ("observations", "actions", "rewards")}, "done": True, "timeout": bool(i == 1)}
        for i, e in enumerate(episodes)
    ]
    assert ends(from_episodes(dones)) == AS_RECORDED
    episodes[2]["terminatd"] = True
    problem(lambda: from_episodes(episodes), "episodes: episode 2: 'terminatd' is not known; known are observations")
    problem(lambda: from_episodes([{**dones[0], "dones": True}]), "'done' and 'dones' are both done; keep one of them")
    with pytest.raises(DataError, match="episode 0, timeout: true at step 0, before the last step"):
        from_episodes([{**dones[0], "timeout": [True, False, False]}])


# Rows in order.


@pytest.mark.parametrize("name", ["step", "timestep"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_in_the_order_of_their_steps(tmp_path, suffix, name):
    step = np.concatenate([np.arange(length) for length in LENGTHS])
    for fine in (step, step * 3.5, np.arange(10), np.full(10, 0.05), [f"2024-05-{9 - i:02}" for i in range(9)] + ["-"]):
        assert ends(load(write(tmp_path, suffix, **{name: fine}))) == AS_RECORDED
    words = "the rows of an episode must be in the order of its steps"
    path = write(tmp_path, suffix, **{name: [0, 1, 2, 0, 2, 1, 3, 4, 1, 0]})
    problem(lambda: load(path), f"{path}: step: episode 1, step 2 (row 6): 1 after 2, the first of 2; {words}")
    path = write(tmp_path, suffix, **{name: [0, 1, 2, 0, 1, 2, 3, 3, 0, 1]})
    problem(lambda: load(path), f"{path}: step: episode 1, step 4 (row 8): 3 after 3; {words}")


def test_a_count_of_steps_in_a_file_of_arrays_is_left_alone(tmp_path):
    assert load(write(tmp_path, "npz", step=np.array(7))).notes[0] == "not read: step"
    problem(lambda: from_arrays(**numbers(), step=np.arange(3)), "arrays: step: shape (3,), expected (10,)")


def followed(**changes) -> dict:
    """Arrays with what each step leads to."""
    arrays = {**numbers(), **changes}
    after = np.roll(arrays["observations"], -1, axis=0)
    after[ENDS] = 7
    return {**arrays, "next_observations": after}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.uint8])
def test_what_a_step_leads_to_is_what_the_next_one_observes(kind):
    arrays = followed(observations=(10 * numbers()["observations"] + 50).astype(kind))
    assert (from_arrays(**arrays).final_observations["value"] == 7).all()
    if np.dtype(kind).kind == "f":  # one of them was kept with fewer digits
        narrower = {**arrays, "next_observations": arrays["next_observations"].astype(np.float16)}
        assert from_arrays(**narrower).num_episodes == 3
    arrays["next_observations"][3, 1] += 1
    words = "arrays: next_observations: episode 1, step 0 (row 4): not what the next row observes; rows are"
    problem(lambda: from_arrays(**arrays), words)


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
def test_shuffled_transitions_are_no_trajectories(tmp_path, suffix):
    order = np.random.default_rng(0).permutation(10)
    shuffled = {name: array[order] for name, array in followed().items()}
    path = write(tmp_path, suffix, **shuffled)
    error = problem(lambda: load(path), f"{path}: next_observations: episode 0, step", "not what the next row observes")
    assert "the first of" in str(error)
    table = {f"next_observation_{i}": followed()["next_observations"][:, i] for i in range(4)}
    assert load(write(tmp_path, "csv", **table)).final_observations["value"].tolist() == [[7.0] * 4] * 3
    table["next_observation_2"][0] = 3
    problem(lambda: load(write(tmp_path, "csv", **table)), "next_observations: episode 0, step 0 (row 1): not what")


def test_the_comparison_goes_piece_by_piece(monkeypatch):
    monkeypatch.setattr("envs.datasets.array_files.CHUNK", 8)  # two rows
    assert from_arrays(**followed()).num_episodes == 3
    for row in (0, 1, 3, 6, 8):
        arrays = followed()
        arrays["next_observations"][row, 3] = -7
        problem(lambda arrays=arrays: from_arrays(**arrays), f"(row {row + 1}): not what the next row observes; rows")
    whole = {**numbers(), "observations": np.insert(numbers()["observations"], ENDS + 1, 7.0, axis=0)}
    whole["next_observations"] = followed()["next_observations"]
    assert (from_arrays(**whole).final_observations["value"] == 7).all()


def test_next_observations_of_episodes():
    arrays = followed()
    cuts = {name: np.split(array, ENDS[:-1] + 1) for name, array in arrays.items()}
    episodes = [{name: parts[i] for name, parts in cuts.items()} for i in range(3)]
    assert from_episodes(episodes).final_observations["value"].tolist() == [[7.0] * 4] * 3
    del episodes[1]["next_observations"]
    problem(lambda: from_episodes(episodes), "episodes: next_observations are in 2 of 3 episodes")


# Rows of several episodes, side by side.


def interleaved(tmp_path, suffix="csv", order=None, **changes):
    """The table with its rows as three environments side by side would log them, or in another order."""
    if order is None:
        order = np.argsort(np.concatenate([np.arange(length) for length in LENGTHS]), kind="stable")
    assert order.tolist() != list(range(10))
    table = {**columns(numbers()), **changes}
    path = tmp_path / f"mixed.{suffix}"
    writer = write_csv if suffix == "csv" else write_parquet
    writer(path, {name: np.asarray(values)[order] for name, values in table.items()})
    return path


COUNTED = np.concatenate([np.arange(length) for length in LENGTHS])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("names", [[0, 1, 2], [2, 0, 1], ["b", "a", "c"]])
@pytest.mark.parametrize("shown", [{"step": COUNTED}, {"step": 10 + 0.1 * COUNTED}, "next"])
def test_interleaved_episodes_are_put_together(tmp_path, suffix, names, shown):
    if shown == "next":
        shown = {f"next_observation_{i}": followed()["next_observations"][:, i] for i in range(4)}
    dataset = load(interleaved(tmp_path, suffix, episode=np.repeat(names, LENGTHS), **shown))
    assert dataset.fingerprint == from_arrays(**numbers()).fingerprint
    assert ends(dataset) == AS_RECORDED
    assert INTERLEAVED in dataset.notes
    assert INTERLEAVED not in load(write(tmp_path, suffix)).notes


def test_rows_whose_order_nothing_shows_stay_refused(tmp_path):
    words = "begins again at row 4, and neither a column step that counts evenly nor next_observations shows the order"
    for nothing in ({}, {"step": np.full(10, 3)}, {"step": [f"2024-05-{9 - i:02}" for i in range(10)]}):
        problem(lambda nothing=nothing: load(interleaved(tmp_path, **nothing)), words)
    twice = {"step": np.where(np.arange(10) == 7, 40, COUNTED)}  # a gap: two episodes of one name, it may be
    problem(lambda: load(interleaved(tmp_path, **twice)), words)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_rows_are_not_taken_for_interleaved_ones(tmp_path, seed):
    order = np.random.default_rng(seed).permutation(10)
    problem(
        lambda: load(interleaved(tmp_path, order=order, step=COUNTED)), "begins again at row", "sort them by episode"
    )
    table = {f"next_observation_{i}": followed()["next_observations"][:, i] for i in range(4)}
    path = interleaved(tmp_path, order=order, terminated=np.zeros(10, bool), truncated=np.zeros(10, bool), **table)
    problem(lambda: load(path), "next_observations: episode", "not what the next row observes")


def test_rows_of_interleaved_episodes_have_their_places_in_the_file(tmp_path):
    """Rows as they stand in it: 0 of each episode, 1 of each, ...; the fourth step of the second is the ninth row."""
    after = followed()["next_observations"]
    after[6, 1] += 1
    table = {f"next_observation_{i}": after[:, i] for i in range(4)}
    problem(
        lambda: load(interleaved(tmp_path, **table)), "next_observations: episode 1, step 3 (row 9): not what the next"
    )
    rewards = [None if i == 6 else float(reward) for i, reward in enumerate(numbers()["rewards"])]
    path = interleaved(tmp_path, step=COUNTED, reward=np.array(rewards, np.float64))
    path.write_text(path.read_text().replace("nan", ""))
    problem(lambda: load(path), f"{path}: episode 1, step 3, row 9, column 'reward': nothing there")
    left = load(path, skip_bad_episodes=True)
    assert left.rewards.tolist() == numbers()["rewards"][[0, 1, 2, 8, 9]].tolist()
    steps, flat = COUNTED.copy(), {f"next_observation_{i}": followed()["next_observations"][:, i] for i in range(4)}
    steps[6] = 2
    problem(lambda: load(interleaved(tmp_path, step=steps, **flat)), "step: episode 1, step 3 (row 9): 2 after 2")


def test_several_columns_name_an_episode_together(tmp_path):
    """As environments side by side do that count their own episodes."""
    path = interleaved(
        tmp_path, episode=np.repeat([0, 0, 1], LENGTHS), env=np.repeat(["x", "y", "x"], LENGTHS), step=COUNTED
    )
    for names in ("env,episode", "episode,env"):
        dataset = load(path, columns={"episode": names.split(",")})
        assert dataset.fingerprint == from_arrays(**numbers()).fingerprint
    problem(
        lambda: load(path), "episode 0, step 0 is in rows 1 and 2", "--columns episode=ENVIRONMENT,EPISODE names both"
    )


# Names in other letters.


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet", "hdf5"])
def test_capitals_and_blanks_make_no_other_name(tmp_path, suffix):
    path = write(tmp_path, suffix)
    table = columns(numbers()) if suffix in ("csv", "parquet") else numbers()
    writer = {"csv": write_csv, "parquet": write_parquet, "npz": write_npz, "hdf5": write_hdf5}[suffix]
    writer(path, {f" {name.title()}": values for name, values in table.items()})
    assert load(path).fingerprint == from_arrays(**numbers()).fingerprint
    assert ends(load(path)) == AS_RECORDED
    writer(path, {**table, "Rewards": np.zeros(10), "reward": np.zeros(10), "rewards": np.zeros(10)})
    problem(lambda: load(path), "'Rewards' and 'reward' and 'rewards' are both rewards")


# Names that the user gives.

ODD = {
    "episode": "ep_id",
    "observations": ["x", "x_dot", "theta", "theta_dot"],
    "actions": ["act_x", "act_y"],
    "rewards": "rew",
    "terminations": "over",
    "truncated": "cut",
}


def oddly_named(path):
    """The numbers as a file whose columns have names of their own."""
    arrays = numbers()
    table = {"ep_id": np.repeat(np.arange(3), LENGTHS), "rew": arrays["rewards"]}
    table |= {"over": arrays["terminated"], "cut": arrays["truncated"], "is_last": flags()[2]}
    for field in ("observations", "actions"):
        table |= {name: arrays[field][:, i] for i, name in enumerate(ODD[field])}
    writers = {".npz": write_npz, ".hdf5": write_hdf5, ".csv": write_csv, ".parquet": write_parquet}
    writers[path.suffix](path, table)
    return path


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "csv", "parquet"])
def test_columns_of_names_of_their_own(tmp_path, suffix):
    path = oddly_named(tmp_path / f"odd.{suffix}")
    problem(lambda: load(path), f"{path}: no 'observations' in it")
    dataset = load(path, columns=ODD)
    assert dataset.fingerprint == from_arrays(**numbers()).fingerprint
    assert ends(dataset) == AS_RECORDED
    assert dataset.columns["terminated"] == ("over",)
    assert "'is_last' looks like an end of episodes; it is not read" in dataset.notes
    turned = load(path, columns={**ODD, "actions": ["act_y", "act_x"]})
    np.testing.assert_array_equal(turned.actions["value"], numbers()["actions"][:, ::-1])
    assert load(path, columns={**ODD, "actions": "act_y"}).actions["value"].shape == (10,)
    problem(lambda: load(path, columns={**ODD, "rewards": "gain"}), str(path), "gain")
    problem(lambda: load(path, columns={**ODD, "reward": "rew"}), "columns: rewards twice")
    problem(lambda: load(path, columns={**ODD, "score": "rew"}), "columns: 'score' is no field; observations, actions")
    problem(lambda: load(path, columns={**ODD, "actions": []}), "columns: actions: no column named")


def test_a_column_that_stands_for_its_numbers_and_one_that_is_chosen_of_two(tmp_path):
    path = write(tmp_path, "csv", action=np.arange(10) % 2)
    assert load(path, columns={"actions": "action"}).action_space.n == 2
    assert load(path, columns={"actions": "action"}).notes[0] == "not read: action_0, action_1"
    arrays = {f"s_{i}": numbers()["observations"][:, i] for i in range(4)}
    path = write(tmp_path, "csv", **{f"observation_{i}": None for i in range(4)}, **arrays)
    assert load(path, columns={"observations": "s"}).fingerprint == from_arrays(**numbers()).fingerprint


def test_vectors_of_arrays_of_other_lengths(tmp_path):
    path = write(tmp_path, "npz", some=np.zeros(9))
    words = "observations: shapes (10, 4), (9,) do not make one vector a step"
    problem(lambda: load(path, columns={"observations": ["observations", "some"]}), words)
    path = write(tmp_path, "npz", some=np.zeros(10))
    assert load(path, columns={"observations": ["observations", "some"]}).observations["value"].shape == (10, 5)


def test_a_dot_in_the_name_of_numbered_columns_is_a_dot(tmp_path):
    path = tmp_path / "dots.csv"
    path.write_text("obs.x_0,obs.x_1,obsyx_2,action,reward,episode\n1,2,9,0,1,0\n3,4,9,1,1,0\n")
    dataset = load(path, columns={"observations": "obs.x"})
    assert dataset.observations["value"].tolist() == [[1, 2], [3, 4]]


def test_the_cache_knows_which_columns_were_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("envs.datasets.cache.SMALLEST", 0)
    monkeypatch.setattr("envs.datasets.cache.FRESH", 0)
    path = oddly_named(tmp_path / "odd.npz")
    for _ in range(2):
        both, one = load(path, columns=ODD), load(path, columns={**ODD, "actions": "act_y"})
        assert (both.actions["value"].shape, one.actions["value"].shape) == ((10, 2), (10,))
        assert one.columns["actions"] == ("act_y",)


def test_a_run_reads_the_columns_that_it_was_begun_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    path, run = str(oddly_named(tmp_path / "odd.csv")), str(tmp_path / "run")
    columns = ["--columns", *(f"{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in ODD.items())]
    assert main(["inspect", path, *columns]) == 0
    assert main(["import", path, "mine/odd-v0", *columns]) == 0
    assert load("mine/odd-v0").fingerprint == load(path, columns=ODD).fingerprint
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--batch-size", "4", "--steps", "2"]
    small += ["--no-calibration"]
    assert main(["train", "mine/odd-v0", path, *columns, *small, "--output", run]) == 0
    parts = read_json(tmp_path / "run" / "run.json")["dataset"]["parts"]
    assert parts[0]["columns"] == {}
    assert parts[1]["columns"]["observations"] == ODD["observations"]
    assert main(["train", "mine/odd-v0", path, "--output", run, "--resume", "--steps", "3"]) == 0
    assert main(["evaluate", run]) == 0
    capsys.readouterr()
    assert main(["train", path, "--output", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["x"], "--columns: 'x', expected FIELD=COLUMN or FIELD=COLUMN,COLUMN,..."),
        (["actions="], "--columns: 'actions=', expected"),
        (["actions=a", "actions=b"], "--columns: actions twice; several columns are FIELD=COLUMN,COLUMN,..."),
        (["action=a", "actions=b"], "columns: actions twice"),
        (["score=a"], "columns: 'score' is no field"),
        (["rewards=a,"], "columns: rewards: no column named"),
    ],
)
def test_columns_that_say_nothing_are_refused(tmp_path, capsys, columns, words):
    assert main(["inspect", str(write(tmp_path, "csv")), "--columns", *columns]) == 2
    assert words in capsys.readouterr().err
    assert main(["inspect", "hopper/replay-v0", "--columns", "actions=a"]) == 2
    assert "--columns is for files (.npz, .hdf5, .h5, .csv, .tsv, .txt, .parquet), and hopper/replay-v0 is none" in (
        capsys.readouterr().err
    )
