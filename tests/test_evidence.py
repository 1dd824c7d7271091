"""What a file shows of its episodes is used: steps, next observations, flags. What contradicts the reading stops it."""

import csv
import decimal
import shlex
import time

import h5py
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_readers import problem

from dt.cli import main
from envs import DataError, from_arrays, from_episodes, load
from envs.reading.boundaries import episode_lengths
from envs.reading.csv_files import lists_in_text
from envs.reading.fields import looks_like_a_step, looks_like_no_end, plain, split_names
from envs.reading.options import ReadingOptions
from envs.reading.unnamed_next import named_alike
from transformer.files import read_json

STEP_NAMES = (
    *("step", "timestep", "timesteps", "t", "time", "time_step", "timeStepIndex", "step_id", "step_idx", "step_index"),
    *("frame_index", "frame", "env_step", "elapsed_steps", "timestamp", "index", "Time Step"),
)
NEXT_NAMES = (
    *("next_observations", "next_observation", "next_obs", "obs_next", "new_obs", "next_state", "next_states"),
    *("observations_next", "next.observation"),
)
SMALL = ["--width", "8", "--num-layers", "1", "--steps", "1", "--batch-size", "4", "--context-length", "2"]


def table(path, rows, *, delimiter=",", encoding="utf-8", before=()):
    """A CSV of rows that are dictionaries, as a plain writer makes it."""
    with path.open("w", newline="", encoding=encoding) as file:
        file.writelines(before)
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


# The order of rows.


def side_by_side(step: str) -> list[dict]:
    """Four environments that log a row each: 8 episodes of 5 steps, whose ends alone are marked."""
    return [
        {"env": env, step: t, "observation_0": env + t, "action": t % 2, "reward": 1, "done": int(t == 4)}
        for _ in range(2)
        for t in range(5)
        for env in range(4)
    ]


@pytest.mark.parametrize("name", STEP_NAMES)
def test_rows_side_by_side_are_never_read_as_one_episode(tmp_path, name):
    rows = side_by_side(name)
    error = problem(lambda: load(table(tmp_path / "log.csv", rows)), "row 2")
    assert "--columns step=none" in str(error) or "Sort the rows by env" in str(error)
    in_order = sorted(rows[:20], key=lambda row: row["env"]) + sorted(rows[20:], key=lambda row: row["env"])
    dataset = load(table(tmp_path / "log.csv", in_order))
    assert dataset.lengths.tolist() == [5] * 8
    assert dataset.returns.tolist() == [5] * 8
    assert looks_like_a_step(name)


@pytest.mark.parametrize("name", STEP_NAMES)
def test_two_swapped_steps_are_seen(tmp_path, name):
    rows = [{"episode": e, name: t, "observation_0": t, "action": 0, "reward": 1} for e in range(3) for t in range(5)]
    assert load(table(tmp_path / "log.csv", rows)).num_episodes == 3
    rows[1], rows[3] = rows[3], rows[1]
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "episode 0, step 2 (row 3)")
    left = load(tmp_path / "log.csv", columns={"step": "none"})  # the user says that it is none
    assert left.observations["value"].ravel()[:5].tolist() == [0, 3, 2, 1, 4]


@pytest.mark.parametrize("name", ["env", "env_id", "worker", "advertiserNumber", "World"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_of_several_environments_are_refused_or_noted(tmp_path, name, suffix):
    rows = [
        {(name if key == "env" else key): value for key, value in row.items() if key != "t"}
        for row in side_by_side("t")
    ]

    def path(each):
        if suffix == "csv":
            return table(tmp_path / "log.csv", each)
        texts = [{**row, name: f"n{row[name]}"} for row in each]
        parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "log.parquet")
        return tmp_path / "log.parquet"

    words = f"{name!r} changes within episodes, first at row 2, and each of its 4 values ends where an episode does"
    problem(lambda: load(path(rows)), words, f"Sort the rows by {name}")
    assert load(path(sorted(rows, key=lambda row: row[name]))).lengths.tolist() == [5] * 8  # the way out
    notes = [note for note in load(path(rows[:-6])).notes if "changes within episodes" in note]  # it was cut
    assert len(notes) == 1
    assert f"{name!r} changes within episodes, first at episode 0, step 1 (row 2)" in notes[0]
    as_they_stand = load(path(rows), columns={"done": "done"})
    assert as_they_stand.num_episodes == 8
    assert as_they_stand.lengths.tolist() != [5] * 8


@pytest.mark.parametrize("suffix", ["csv", "npz"])
@pytest.mark.parametrize("name", ["patient", "campaign", "who", "x7"])
def test_a_column_of_any_name_shows_rows_of_several_environments(tmp_path, suffix, name):
    """Each of its names ends with an episode, and their episodes of different lengths lie side by side."""
    lengths = (5, 7, 4, 6, 11)
    rows = [(t, e, length) for e, length in enumerate(lengths) for t in range(length)]
    arrays = {
        "observations": np.array([[10.0 * e + t] for t, e, _ in rows]),
        "actions": np.zeros(len(rows), np.int64),
        "rewards": np.ones(len(rows)),
        "done": np.array([t == length - 1 for t, _, length in rows]),
        name: np.array([f"n{e}" for _, e, _ in rows]),
    }
    interleaved = {key: values[np.argsort([t for t, _, _ in rows], kind="stable")] for key, values in arrays.items()}
    error = problem(lambda: load(written(tmp_path / f"log.{suffix}", interleaved)), f"{name!r} changes within episodes")
    assert f"Sort the rows by {name}" in str(error)
    assert load(written(tmp_path / f"sorted.{suffix}", arrays)).lengths.tolist() == list(lengths)


@pytest.mark.parametrize("name", NEXT_NAMES)
def test_next_observations_are_known_by_any_name(tmp_path, name):
    seen = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    arrays = {"observations": seen[:, :-1].reshape(-1, 3), name: seen[:, 1:].reshape(-1, 3)}
    arrays |= {"actions": np.zeros((20, 1)), "rewards": np.ones(20)}
    np.savez(tmp_path / "flat.npz", **arrays, terminals=np.arange(20) == 19)
    problem(
        lambda: load(tmp_path / "flat.npz"), "next_observations: episode 0, step 4", "not what the next row observes"
    )
    np.savez(tmp_path / "flat.npz", **arrays, terminals=np.arange(20) % 5 == 4)
    np.testing.assert_array_equal(load(tmp_path / "flat.npz").final_observations["value"], seen[:, -1])
    assert plain(name) in {plain(other) for other in NEXT_NAMES}


UNKNOWN_NEXT = ("obs2", "s_prime", "obs_tp1", "succ")


def transitions(name, suffix):
    """Arrays of episodes, in order, with next observations of a name that is not known; their final observations."""
    rng, lengths = np.random.default_rng(0), np.array(UNEVEN)
    path = rng.normal(size=(sum(lengths) + len(lengths), 2))
    final = np.cumsum(lengths + 1) - 1
    first = np.concatenate([[0], final[:-1] + 1])
    seen, after = np.delete(path, final, axis=0), np.delete(path, first, axis=0)
    arrays = {"observations": seen, "actions": np.zeros(len(seen), np.int64), "rewards": np.ones(len(seen))}
    arrays["done"] = np.isin(np.arange(len(seen)), np.cumsum(lengths) - 1)
    columns = {name: after} if suffix == "npz" else {f"{name}_{i}": after[:, i] for i in range(2)}
    return {**arrays, **columns}, path[final]


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
@pytest.mark.parametrize("name", UNKNOWN_NEXT)
def test_next_observations_are_known_by_their_numbers(tmp_path, name, suffix):
    arrays, finals = transitions(name, suffix)
    said = name if suffix == "npz" else f"{name}_0,{name}_1"
    in_order = load(written(tmp_path / f"log.{suffix}", arrays))
    assert in_order.lengths.tolist() == list(UNEVEN)
    assert any(f"--columns next_observations={said}" in note for note in in_order.notes)
    read = load(tmp_path / f"log.{suffix}", columns={"next_observations": said.split(",")})
    np.testing.assert_array_equal(read.final_observations["value"], finals)

    rows = np.random.default_rng(1).permutation(sum(UNEVEN))
    shuffled = written(tmp_path / f"shuffled.{suffix}", {key: values[rows] for key, values in arrays.items()})
    problem(lambda: load(shuffled), f"{said} holds next observations", "rows were shuffled")
    assert load(shuffled, columns={"next_observations": "none"}).num_episodes > 1

    arrays["done"][UNEVEN[0] + UNEVEN[1] - 1] = False  # one end is not marked
    path = written(tmp_path / f"half.{suffix}", arrays)
    problem(lambda: load(path), f"row {UNEVEN[0] + UNEVEN[1] + 1} does not observe", "episode_start=next_observations")
    del arrays["done"]
    path = written(tmp_path / f"none.{suffix}", arrays)
    problem(lambda: load(path), "nothing that is read says where episodes end", "reads 4 episodes")
    columns = {"next_observations": said.split(","), "episode_start": "next_observations"}
    assert load(path, columns=columns).lengths.tolist() == list(UNEVEN)


def test_earlier_observations_and_few_different_ones_show_no_order(tmp_path):
    arrays, _ = transitions("before", "npz")
    arrays["before"] = np.concatenate([arrays["observations"][:1], arrays["observations"][:-1]])
    assert load(written(tmp_path / "before.npz", arrays)).lengths.tolist() == list(UNEVEN)
    rng = np.random.default_rng(0)
    arrays["before"], arrays["observations"] = rng.integers(0, 3, (2, sum(UNEVEN), 2)).astype(np.float64)
    assert load(written(tmp_path / "grid.npz", arrays)).lengths.tolist() == list(UNEVEN)


def test_columns_are_found_by_the_names_of_the_observations(tmp_path):
    assert named_alike(["x", "v"], ["v_next", "max", "x_next"]) == [["x_next", "v_next"]]
    assert named_alike(["x", "v"], ["next_v", "next_x", "d"]) == [["next_x", "next_v"]]
    assert named_alike(["s0", "s1"], ["t1", "t0", "u0"]) == [["t0", "t1"]]


def test_the_way_out_names_the_length_where_steps_start_again_evenly(tmp_path):
    rows = [{"t": t, "observation_0": t, "action": 0, "reward": 1, "done": 0} for _ in range(3) for t in range(7)]
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "--episode-length 7")
    assert load(tmp_path / "log.csv", episode_length=7).lengths.tolist() == [7, 7, 7]


def test_times_that_stand_still_or_are_missing_show_no_order(tmp_path):
    for times in (["2024-05-01"] * 3 + ["2024-04-30"] * 3, ["", "2024-05-02", "", "2024-05-01", "", ""]):
        rows = [
            {"date": day, "observation_0": i, "action": 0, "reward": 1, "done": int(i % 3 == 2)}
            for i, day in enumerate(times)
        ]
        assert load(table(tmp_path / "log.csv", rows)).lengths.tolist() == [3, 3]
    rows[4]["date"] = "2024-04-01"
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "'date': episode 1, step 1 (row 5) does not rise")


def test_dates_are_steps(tmp_path):
    days = [f"2024-01-0{day}" for day in range(2, 7)]
    rows = [
        {"date": day, "tic": name, "close": i, "shares": 1, "reward": -1}
        for i, day in enumerate(days)
        for name in ("AAPL", "MSFT")
    ]
    columns = {"observations": "close", "actions": "shares", "episode": "tic"}
    path = table(tmp_path / "trading.csv", rows)
    problem(lambda: load(path, columns=columns), "--columns step=date says that date is that step, or sort them")
    dataset = load(path, columns={**columns, "step": "date"})
    assert dataset.lengths.tolist() == [5, 5]
    assert dataset.observations["value"].tolist() == [0, 1, 2, 3, 4] * 2
    hourly = [
        {"timestamp": f"2024-01-01 {hour:02}:00:00", "zone": hour, "setpoint": 20.5, "reward": -1} for hour in range(24)
    ]
    path = table(tmp_path / "hvac.csv", hourly)
    columns = {"observations": "zone", "actions": "setpoint"}
    error = problem(lambda: load(path, columns=columns), "nothing says where episodes end")
    assert "--episode-length N, or --file-is-episode" in str(error)
    assert load(path, columns=columns, episode_length=12).lengths.tolist() == [12, 12]


def test_an_array_that_counts_steps_is_looked_at_where_it_has_a_number_for_each(tmp_path):
    arrays = {"observations": np.zeros((6, 2)), "actions": np.zeros(6, int), "rewards": np.ones(6)}
    ends = {"terminals": np.arange(6) % 3 == 2}
    for fine in (np.array(7), np.arange(2), np.tile(np.arange(3), 2), np.arange(6)):
        np.savez(tmp_path / "flat.npz", **arrays, **ends, timesteps=fine)
        assert load(tmp_path / "flat.npz").lengths.tolist() == [3, 3]
    np.savez(tmp_path / "flat.npz", **arrays, **ends, timesteps=[0, 0, 1, 1, 2, 2])
    problem(lambda: load(tmp_path / "flat.npz"), "step: episode 0, step 1 (row 2): 0 after 0")


# Ends that are not marked.


def maze(path, flags=False):
    """Goal after goal without an end, as D4RL's maze2d has it: 20 goals of 10 steps, of which some come again."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(200, 4)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
        file["rewards"] = (rng.random(200) < 0.05).astype(np.float32)
        file["terminals"] = np.arange(200) % 30 == 29 if flags else np.zeros(200, bool)
        file["infos/goal"] = np.repeat(np.array([[1.0, 7.1], [5.0, 1.2], [1.0, 1.2]])[np.arange(20) % 3], 10, axis=0)
        file["infos/qpos"] = rng.normal(size=(200, 2))
    return path


def test_flags_that_are_never_true_say_nothing(tmp_path):
    path = maze(tmp_path / "maze.hdf5")
    error = problem(lambda: load(path), f"{path}: terminated is false in all 200 rows")
    for way in ("--columns episode=NAME", "episode_start=NAME", "--episode-length N", "--file-is-episode"):
        assert way in str(error)
    by_goal = load(path, columns={"episode": "infos/goal"})
    assert by_goal.lengths.tolist() == [10] * 20
    assert "not read: infos (but for infos/goal)" in by_goal.notes
    cut = load(path, episode_length=30)
    assert cut.lengths.tolist() == [30] * 6 + [20]
    assert cut.truncated.tolist() == [True] * 6 + [False]
    assert load(path, file_is_episode=True).lengths.tolist() == [200]
    problem(lambda: load(path, episode_length=201), "--episode-length 201: it has 200 rows")


def test_an_episode_is_cut_after_its_length_unless_a_flag_ends_it_sooner(tmp_path):
    path = maze(tmp_path / "maze.hdf5", flags=True)
    dataset = load(path, episode_length=20)
    assert dataset.lengths.tolist() == [20, 10] * 6 + [20]
    assert dataset.terminated.tolist() == [False, True] * 6 + [False]
    assert dataset.truncated.tolist() == [True, False] * 6 + [True]
    assert load(path, episode_length=30).truncated.sum() == 0
    problem(lambda: load(path, file_is_episode=True), "true before the episode's last step")
    for options in ({"episode_length": 20}, {"file_is_episode": True}):
        problem(
            lambda options=options: load(path, columns={"episode": "infos/goal"}, **options), "says where episodes end"
        )
    with pytest.raises(DataError, match="give one of them"):
        load(path, episode_length=3, file_is_episode=True)
    for wrong in (0, -1, 2.5, True, "7"):
        with pytest.raises(DataError, match="expected a whole number"):
            ReadingOptions(episode_length=wrong)


@pytest.mark.parametrize("flags", ["done", "terminated truncated", "done terminated truncated", ""])
def test_what_a_length_cuts_agrees_with_a_plain_loop(tmp_path, flags):
    rng = np.random.default_rng(len(flags))
    for trial in range(20):
        steps, length = int(rng.integers(5, 40)), int(rng.integers(1, 9))
        done = rng.random(steps) < 0.2
        given = {"done": done, "terminated": done, "truncated": np.zeros(steps, bool)}
        np.savez(
            tmp_path / f"{trial}.npz",
            observations=np.zeros((steps, 1)),
            actions=np.zeros(steps, int),
            rewards=np.ones(steps),
            **{name: given[name] for name in flags.split()},
        )
        expected, now = [], 0
        for end in done if flags else np.zeros(steps, bool):
            now += 1
            if end or now == length:
                expected.append((now, bool(end), not end))
                now = 0
        expected += [(now, False, False)] if now else []
        if expected == [(steps, False, False)]:
            problem(lambda trial=trial, length=length: load(tmp_path / f"{trial}.npz", episode_length=length), "rows")
            continue
        found = load(tmp_path / f"{trial}.npz", episode_length=length)
        ours = zip(found.lengths.tolist(), found.terminated.tolist(), found.truncated.tolist(), strict=True)
        assert list(ours) == expected


def test_starts_of_episodes_are_flags_too(tmp_path):
    rows = [{"first": int(i in (0, 3)), "observation_0": i, "action": 0, "reward": 1} for i in range(7)]
    path = table(tmp_path / "log.csv", rows)
    assert load(path, columns={"episode_start": "first"}).lengths.tolist() == [3, 4]
    arrays = {"observations": np.zeros((7, 1)), "actions": np.zeros(7, int), "rewards": np.ones(7)}
    starts = np.isin(np.arange(7), [0, 3])
    assert from_arrays(**arrays, episode_starts=starts).lengths.tolist() == [3, 4]
    ended = from_arrays(**arrays, episode_start=starts, terminated=np.isin(np.arange(7), [2]))
    assert ended.terminated.tolist() == [True, False]
    problem(lambda: from_arrays(**arrays, episode_start=~starts), "episode_start: false at the first row")
    problem(
        lambda: from_arrays(**arrays, episode_start=starts, done=np.arange(7) == 4), "true before the episode's last"
    )


def test_several_numbers_name_an_episode_together():
    arrays = {"observations": np.zeros((6, 1)), "actions": np.zeros(6, int), "rewards": np.ones(6)}
    names = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1]])
    assert from_arrays(**arrays, episode=names).lengths.tolist() == [2, 1, 3]
    problem(lambda: from_arrays(**arrays, episode=names[[0, 2, 1, 3, 4, 5]]), "[0, 0] begins again at step 2")


# Ends of which a file's known names mark only some.

UNEVEN = (5, 3, 4, 6)


def half_marked(lengths=UNEVEN) -> dict:
    """Every other episode is terminated; no known name marks the ends of the others."""
    steps, last = sum(lengths), np.cumsum(lengths) - 1
    arrays = {"observations": np.arange(2.0 * steps).reshape(-1, 2) + 0.5, "actions": np.zeros(steps, int)}
    return {**arrays, "rewards": np.arange(steps) + 0.5, "terminals": np.isin(np.arange(steps), last[::2])}


def shown_by(kind: str, lengths=UNEVEN):
    """A column that shows all episodes."""
    steps, last = sum(lengths), np.cumsum(lengths) - 1
    first, number = last + 1 - np.array(lengths), np.repeat(np.arange(len(lengths)), lengths)
    return {
        "done": np.isin(np.arange(steps), last),
        "not_done": 1.0 - np.isin(np.arange(steps), last),
        "truncated": np.isin(np.arange(steps), last[1::2]),
        "episode_start": np.isin(np.arange(steps), first).astype(np.int8),
        "count": 1 + np.arange(steps) - first[number],
        "episode": 100 + 7 * number,
        "names": np.array([f"game {i}" for i in number]),
        "lengths": np.array(lengths),
        "ends": last + 1,
        "firsts": first,
        "offsets": np.append(first, steps),
    }[kind]


def written(path, arrays):
    """Flat arrays as .npz, or as .csv or .parquet where all have a row each."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    seen = arrays["observations"]
    others = {name: values for name, values in arrays.items() if name != "observations"}
    columns = {f"observation_{i}": seen[:, i] for i in range(seen.shape[1])} | others
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(columns), path)
        return path
    return table(path, [{name: column[i] for name, column in columns.items()} for i in range(len(seen))])


ROWS_EACH = ("done", "not_done", "truncated", "episode_start", "count", "episode", "names")
SHOWN = [(kind, suffix) for kind in ROWS_EACH for suffix in ("npz", "csv")]
SHOWN += [(kind, "npz") for kind in ("lengths", "ends", "firsts", "offsets")]


@pytest.mark.parametrize(("kind", "suffix"), SHOWN)
def test_a_column_of_any_name_that_shows_more_episodes_is_never_left_alone(tmp_path, kind, suffix):
    name = {"truncated": "time limit hit", "episode": "match"}.get(kind, "xyz")  # what only cuts needs a name
    path = written(tmp_path / f"log.{suffix}", {**half_marked((5, 3, 4, 6) * 3), name: shown_by(kind, UNEVEN * 3)})
    error = str(problem(lambda: load(path), f"flags mark 7 episodes, {name!r} shows 12"))
    field, _, column = shlex.split(error.partition("--columns ")[2].partition(" reads")[0])[0].partition("=")
    dataset = load(path, columns={field: column})
    assert dataset.lengths.tolist() == list(UNEVEN * 3)
    assert load(path, columns={"terminated": "terminals"}).num_episodes == 7
    arrays = half_marked()
    del arrays["terminals"]
    path = written(tmp_path / f"unmarked.{suffix}", {**arrays, name: shown_by(kind)})
    if kind not in ("truncated",):
        error = str(problem(lambda: load(path), f"nothing that is read says where episodes end. {name!r} may"))
        field, _, column = shlex.split(error.partition("--columns ")[2].partition(" reads")[0])[0].partition("=")
        assert load(path, columns={field: column}).lengths.tolist() == list(UNEVEN)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("collision", lambda rng, steps: rng.random(steps) < 0.3),
        ("success", lambda rng, steps: shown_by("count", UNEVEN * 3) > 2),
        ("held", lambda rng, steps: np.convolve(shown_by("done", UNEVEN * 3), [1, 1, 1])[2:] > 0),
        ("gear", lambda rng, steps: rng.integers(0, 5, steps)),
        ("soc", lambda rng, steps: rng.random(steps)),
        ("serial", lambda rng, steps: np.arange(steps)),
        ("constant", lambda rng, steps: np.ones(steps)),
        ("firmware", lambda rng, steps: np.repeat(["1.0", "1.1"], [steps // 2, steps - steps // 2])),
        ("bins", lambda rng, steps: np.array([0, 2, 4, 7])),
        ("mean", lambda rng, steps: np.array([1.5, 2.5])),
        ("shape", lambda rng, steps: np.array([steps, 2])),
        ("ends_too", lambda rng, steps: np.isin(np.arange(steps), np.cumsum(UNEVEN * 3) - 1)),
    ],
)
def test_columns_that_show_no_other_episodes_are_left_alone(tmp_path, name, values):
    for seed in range(20):
        arrays = half_marked(UNEVEN * 3)
        steps = len(arrays["rewards"])
        arrays |= {"terminals": shown_by("done", UNEVEN * 3), name: values(np.random.default_rng(seed), steps)}
        assert load(written(tmp_path / f"{seed}.npz", arrays)).lengths.tolist() == list(UNEVEN * 3)


def test_hours_begin_again_without_an_episode(tmp_path):
    hours = np.arange(24 * 14) % 24
    arrays = {
        "observations": np.zeros((len(hours), 1)),
        "actions": np.zeros(len(hours)),
        "rewards": np.ones(len(hours)),
    }
    ends = np.isin(np.arange(len(hours)), [24 * 7 - 1, 24 * 14 - 1])
    path = written(
        tmp_path / "building.csv", {**arrays, "done": ends, "hour": hours, "day": np.arange(len(hours)) // 24}
    )
    dataset = load(path)
    assert dataset.lengths.tolist() == [24 * 7] * 2
    assert any("'hour' changes within episodes" in note for note in dataset.notes)


def test_a_count_of_any_name_shows_the_order_of_rows(tmp_path):
    rows = [
        {"k": 1 + t, "observation_0": t, "action": 0, "reward": 1, "done": int(t == 4)}
        for _ in range(3)
        for t in range(5)
    ]
    assert load(table(tmp_path / "log.csv", rows)).num_episodes == 3
    rows[6], rows[8] = rows[8], rows[6]
    error = problem(lambda: load(table(tmp_path / "log.csv", rows)), "'k' counts the steps of each episode, and row 7")
    assert "--columns step=none" in str(error)
    assert load(tmp_path / "log.csv", columns={"step": "none"}).num_episodes == 3


@pytest.mark.parametrize("waves", [1, 2])
def test_a_count_of_any_name_shows_rows_side_by_side(tmp_path, waves):
    lengths = (5, 3, 4) if waves == 1 else (4, 4, 4)  # those of one wave stop writing as they end
    rows = [
        {"lane": lane, "k": t, "observation_0": t, "action": 0, "reward": 1, "done": int(t == lengths[lane] - 1)}
        for _ in range(waves)
        for t in range(5)
        for lane in range(3)
        if t < lengths[lane]
    ]
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "'k' counts the steps of 3 episodes side by side")
    without = [{name: value for name, value in row.items() if name != "k"} for row in rows]
    problem(lambda: load(table(tmp_path / "log.csv", without)), "'lane' changes within episodes, first at row 2")
    notes = load(table(tmp_path / "log.csv", without[:-4])).notes
    assert any("'lane' goes round every 3 rows" in note for note in notes) == (waves == 2)


COUNTS = {
    "ms": lambda t: 20 * t,
    "elapsed": lambda t: 0.05 * t,
    "seconds": lambda t: np.round(t / 30, 2),
    "hour": lambda t: t + 6,
    "slot": lambda t: t,
}


def counted(name, lengths=UNEVEN):
    """Arrays of episodes with a count of steps that has no known name."""
    step = np.concatenate([np.arange(length) for length in lengths])
    arrays = {
        "observations": np.stack([step, np.arange(len(step))], axis=1) * 0.1,
        "actions": np.zeros(len(step), np.int64),
        "rewards": np.ones(len(step)),
        "done": np.isin(np.arange(len(step)), np.cumsum(lengths) - 1),
        name: COUNTS[name](step),
    }
    return arrays, step


@pytest.mark.parametrize("order", ["side by side", "shuffled", "swapped"])
@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_any_unit_show_the_order_of_rows(tmp_path, name, suffix, order):
    arrays, step = counted(name)
    rows = np.arange(len(step))
    assert load(written(tmp_path / f"log.{suffix}", arrays)).lengths.tolist() == list(UNEVEN)
    if order == "swapped":
        rows[[1, 2]] = rows[[2, 1]]
    else:
        rows = (
            np.argsort(step, kind="stable") if order == "side by side" else np.random.default_rng(0).permutation(rows)
        )
    wrong = {key: values[rows] for key, values in arrays.items()}
    error = problem(lambda: load(written(tmp_path / f"wrong.{suffix}", wrong)), f"{name!r}")
    assert "Sort the rows" in str(error)


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("said", ["episode", "lengths", "episode_start"])
def test_counts_show_the_order_of_rows_where_episodes_are_known(tmp_path, said, suffix):
    arrays, step = counted("ms")
    del arrays["done"]
    arrays[said] = {
        "episode": np.arange(len(UNEVEN)).repeat(UNEVEN),
        "lengths": np.array(UNEVEN),
        "episode_start": step == 0,
    }[said]
    if said == "lengths" and suffix != "npz":
        return
    assert load(written(tmp_path / f"log.{suffix}", arrays)).lengths.tolist() == list(UNEVEN)
    for name in ("observations", "ms"):  # two steps of the first episode change places
        arrays[name] = np.concatenate([arrays[name][[0, 2, 1]], arrays[name][3:]])
    path = written(tmp_path / f"swapped.{suffix}", arrays)
    problem(lambda: load(path), "'ms' counts the steps of each episode, and row 2 is not in its place")
    assert load(path, columns={"step": "none"}).num_episodes == len(UNEVEN)


def test_a_count_of_all_rows_shows_that_they_were_shuffled(tmp_path):
    arrays, step = counted("ms")
    arrays["ms"] = np.arange(len(step))
    assert load(written(tmp_path / "log.npz", arrays)).num_episodes == len(UNEVEN)
    rows = np.random.default_rng(0).permutation(len(step))
    problem(lambda: load(written(tmp_path / "shuffled.npz", {k: v[rows] for k, v in arrays.items()})), "'ms' counts")


def test_a_count_of_the_steps_that_are_left_is_left_alone(tmp_path):
    arrays, step = counted("ms")
    arrays["ms"] = np.repeat(UNEVEN, UNEVEN) - step
    assert load(written(tmp_path / "log.npz", arrays)).lengths.tolist() == list(UNEVEN)


def test_lengths_first_rows_and_ends_are_told_apart():
    for steps in (1, 2, 5, 9):
        for cuts in range(2 ** (steps - 1)):
            inside = [i + 1 for i in range(steps - 1) if cuts >> i & 1]
            lengths = np.diff([0, *inside, steps])
            for given in (lengths, [0, *inside], [*inside, steps], [0, *inside, steps]):
                if steps == 1 and list(given) == [0]:
                    continue
                found = episode_lengths(np.array(given), steps)
                assert found is not None, (given, steps)
                assert found.tolist() == lengths.tolist() or sum(given) == steps, (given, steps)
    for wrong in ([1, 2], [3, 1, 9], [-1, 9], [0, 4, 4, 8], [2, 10]):
        assert episode_lengths(np.array(wrong), 9) is None


def test_a_count_that_begins_again_says_where_episodes_begin(tmp_path):
    count = [0, 1, 2, 0, 1, 0, 1, 2, 3]
    rows = [{"step": t, "observation_0": t, "action": 0, "reward": 1} for t in count]
    path = table(tmp_path / "log.csv", rows)
    assert load(path, columns={"episode_start": "step"}).lengths.tolist() == [3, 2, 4]
    rows[3]["step"] = 1
    path = table(tmp_path / "log.csv", rows)
    problem(lambda: load(path, columns={"episode_start": "step"}), "episode_start: 1 at row 4, after 2")


@pytest.mark.parametrize("suffix", ["npz", "csv", "hdf5", "parquet"])
@pytest.mark.parametrize("flagged", [True, False])
def test_episodes_begin_where_next_observations_have_a_gap_if_the_user_says_so(tmp_path, suffix, flagged):
    seen = [np.random.default_rng(i).normal(size=(length + 1, 2)) for i, length in enumerate(UNEVEN)]
    steps = sum(UNEVEN)
    now, then = np.concatenate([rows[:-1] for rows in seen]), np.concatenate([rows[1:] for rows in seen])
    arrays = {"actions": np.zeros(steps), "rewards": np.ones(steps)}
    if flagged:
        arrays["terminals"] = np.arange(steps) == 4  # of the first episode
    path = tmp_path / f"log.{suffix}"
    if suffix in ("npz", "hdf5"):
        whole = {"observations": now, "next_observations": then, **arrays}
        if suffix == "npz":
            np.savez(path, **whole)
        else:
            with h5py.File(path, "w") as file:
                file.update(whole)
    else:
        columns = {
            f"{name}_{i}": rows[:, i] for name, rows in (("observation", now), ("next_obs", then)) for i in (0, 1)
        }
        rows = [{name: float(column[i]) for name, column in {**columns, **arrays}.items()} for i in range(steps)]
        if suffix == "csv":
            table(path, rows)
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    problem(lambda: load(path), "--columns episode_start=next_observations")
    dataset = load(path, columns={"episode_start": "next_observations"})
    assert dataset.lengths.tolist() == list(UNEVEN)
    np.testing.assert_array_equal(dataset.final_observations["value"], [rows[-1] for rows in seen])
    assert dataset.terminated.tolist() == [flagged, False, False, False]


def test_shuffled_transitions_have_no_episodes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(9, 2)), "next_observations": rng.normal(size=(9, 2))}
    np.savez(tmp_path / "log.npz", **arrays, actions=np.zeros(9), rewards=np.ones(9))
    columns = {"episode_start": "next_observations"}
    problem(lambda: load(tmp_path / "log.npz", columns=columns), "these are single transitions in no order")
    np.savez(tmp_path / "none.npz", observations=np.zeros((9, 2)), actions=np.zeros(9), rewards=np.ones(9))
    problem(lambda: load(tmp_path / "none.npz", columns=columns), "--columns next_observations=NAME names them")


def test_times_in_nanoseconds_keep_their_digits(tmp_path):
    times = 1_700_000_000_000_000_001 + np.arange(6)
    rows = [
        {"timestamp": time, "observation_0": i, "action": 0, "reward": 1, "done": int(i % 3 == 2)}
        for i, time in enumerate(times.tolist())
    ]
    assert load(table(tmp_path / "log.csv", rows)).lengths.tolist() == [3, 3]
    rows[1]["timestamp"], rows[2]["timestamp"] = rows[2]["timestamp"], rows[1]["timestamp"]
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "'timestamp': episode 0, step 2 (row 3) does not rise")


def jaxrl():
    """Two episodes of three steps; the second was truncated."""
    ends = np.arange(6) % 3 == 2
    arrays = {"observations": np.zeros((6, 1)), "actions": np.zeros((6, 1)), "rewards": np.ones(6)}
    return {**arrays, "masks": 1.0 - (np.arange(6) == 2), "dones_float": ends.astype(np.float32)}


def test_names_of_jaxrl_and_dm_env(tmp_path):
    np.savez(tmp_path / "jaxrl.npz", **jaxrl())
    dataset = load(tmp_path / "jaxrl.npz")
    assert (dataset.terminated.tolist(), dataset.truncated.tolist()) == ([True, False], [False, True])
    rows = [{"observation_0": i, "action": 0, "reward": 1, "step_type": i % 3, "discount": 1} for i in range(6)]
    problem(lambda: load(table(tmp_path / "dm.csv", rows)), "'step_type' is dm_env's", "is_first, is_last")


def test_dreamers_rows_are_not_rlds(tmp_path):
    arrays = {"observations": np.arange(8.0)[:, None], "actions": np.ones((8, 1)), "rewards": np.eye(8)[2]}
    arrays["actions"][[0, 4]] = 0
    ends = np.arange(8) % 4 == 3
    flags = {"is_first": np.roll(ends, 1), "is_last": ends, "is_terminal": ends}
    np.savez(tmp_path / "dreamer.npz", **arrays, **flags)
    problem(lambda: load(tmp_path / "dreamer.npz"), "as Dreamer writes them", "--columns truncated=is_last")
    as_steps = load(tmp_path / "dreamer.npz", columns={"truncated": "is_last", "terminated": "is_terminal"})
    assert as_steps.lengths.tolist() == [4, 4]
    arrays["actions"] = arrays["actions"][::-1]
    np.savez(tmp_path / "rlds.npz", **arrays, **flags)
    assert load(tmp_path / "rlds.npz").lengths.tolist() == [3, 3]


def test_a_run_remembers_how_its_episodes_were_cut(tmp_path, capsys):
    path, run = str(maze(tmp_path / "maze.hdf5")), str(tmp_path / "run")
    assert main(["train", path, *SMALL, "--output", run]) == 2
    assert "--episode-length N" in capsys.readouterr().err
    assert main(["train", path, "--episode-length", "30", *SMALL, "--output", run]) == 0
    assert read_json(tmp_path / "run" / "run.json")["dataset"]["parts"][0]["episode_length"] == 30
    assert main(["train", path, "--output", run, "--resume", "--steps", "2"]) == 0
    assert main(["evaluate", run]) == 0
    whole = ReadingOptions(file_is_episode=True)
    assert ReadingOptions.from_json(whole.to_json()) == whole
    assert main(["inspect", "hopper/replay-v0", "--episode-length", "30"]) == 2
    assert "--episode-length is for files" in capsys.readouterr().err


def test_flags_that_say_the_opposite_are_understood(tmp_path):
    seen = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    arrays = {"state": seen[:, :-1].reshape(-1, 3), "next_state": seen[:, 1:].reshape(-1, 3)}
    arrays |= {"action": np.zeros((20, 2), np.float32), "reward": np.ones((20, 1))}
    going_on = (np.arange(20) % 5 != 4).astype(float)[:, None]
    np.savez(tmp_path / "td3.npz", **arrays, not_done=going_on)
    dataset = load(tmp_path / "td3.npz", columns={"observations": "state"})
    assert (dataset.lengths.tolist(), dataset.terminated.tolist()) == ([5] * 4, [True] * 4)
    for name in ("done", "terminated"):
        with pytest.raises(DataError, match=r"1 where an episode goes on, .* --columns not_done=not_done reads"):
            load(tmp_path / "td3.npz", columns={"observations": "state", name: "not_done"})
    np.savez(tmp_path / "td3.npz", **arrays, mask=going_on)
    words = "'mask' looks like the opposite of an end"
    problem(lambda: load(tmp_path / "td3.npz", columns={"observations": "state"}), words, "'not_done=mask'")
    asked = {"observations": "state", "not_done": "mask"}
    assert load(tmp_path / "td3.npz", columns=asked).lengths.tolist() == [5] * 4
    np.savez(tmp_path / "td3.npz", **arrays, not_done=going_on, done=1 - going_on)
    problem(lambda: load(tmp_path / "td3.npz", columns={"observations": "state"}), "both done and not_done")
    np.savez(tmp_path / "td3.npz", **arrays, not_done=going_on * 2)
    problem(lambda: load(tmp_path / "td3.npz", columns={"observations": "state"}), "not_done: expected true or false")
    for name in ("action_mask", "masked", "abandoned", "discount", "note_done_by"):
        assert not looks_like_no_end(name), name


def test_a_needed_field_is_not_none():
    with pytest.raises(DataError, match="a dataset needs them"):
        load("hopper/replay-v0", columns={"observations": "none"})


# The bidding log.


def bids(by_tick=False, as_text=True):
    """AuctionNet's columns: 2 periods of 3 advertisers, each an episode of 8 ticks."""
    rng, rows = np.random.default_rng(0), []
    for period in (7, 8):
        for advertiser in range(3):
            states = rng.random((9, 4)).round(4).tolist()
            for tick in range(8):
                row = {"deliveryPeriodIndex": period, "advertiserNumber": advertiser, "timeStepIndex": tick}
                if as_text:
                    row |= {"state": str(tuple(states[tick]))}
                else:
                    row |= {f"state_{i}": number for i, number in enumerate(states[tick])}
                row |= {"action": advertiser + tick / 10, "reward": advertiser, "done": int(tick == 7)}
                rows.append(row | ({"next_state": str(tuple(states[tick + 1])) if tick < 7 else ""} if as_text else {}))
    return sorted(rows, key=lambda row: (row["deliveryPeriodIndex"], row["timeStepIndex"])) if by_tick else rows


def test_a_bidding_log_is_read_as_it_is_and_tick_by_tick(tmp_path):
    path = table(tmp_path / "rl.csv", bids())
    assert "--columns observations=state says which" in str(problem(lambda: load(path), "no 'observations' in it"))
    columns = {"observations": "state"}
    dataset = load(path, columns=columns)
    assert (dataset.lengths.tolist(), dataset.returns.tolist()) == ([8] * 6, [0, 8, 16] * 2)
    assert dataset.observations["value"].shape == (48, 4)
    assert dataset.final_observations is None
    assert "next_observations hold nothing at the end of 6 of 6 episodes" in dataset.notes
    apart = load(table(tmp_path / "flat.csv", bids(as_text=False)), columns=columns)
    assert apart.fingerprint == dataset.fingerprint
    path = table(tmp_path / "ticks.csv", bids(by_tick=True, as_text=False))
    problem(lambda: load(path, columns=columns), "step: episode 0, step 1 (row 2): 0 after 0")
    named = load(path, columns={**columns, "episode": ["deliveryPeriodIndex", "advertiserNumber"]})
    assert named.fingerprint == dataset.fingerprint


def test_all_names_of_a_file_are_listed(tmp_path):
    path = table(tmp_path / "wide.csv", [{f"column{i}": i for i in range(30)}])
    for i in range(30):
        problem(lambda: load(path), f"column{i}")


# Tables as people's tools write them.

ROWS = [
    {"episode": e, "step": t, "observation_0": t + 0.5, "action": t % 2, "reward": t + 1.5}
    for e in range(2)
    for t in range(3)
]


def lines(rows=ROWS, delimiter=","):
    return [delimiter.join(rows[0])] + [delimiter.join(map(str, row.values())) for row in rows]


TEXTS = {
    "bom": ("\ufeff" + "\n".join(lines())).encode(),
    "excel's separator": "\r\n".join(["sep=;", *lines(delimiter=";")]).encode(),
    "a comment": "\n".join(['#{"t_start": 1.0, "env_id": "CartPole-v1"}', *lines()]).encode(),
    "numpy's header": "\n".join(["# " + lines()[0], *lines()[1:]]).encode(),
    "utf-16": "\n".join(lines()).encode("utf-16"),
    "utf-16 of the other order": b"\xfe\xff" + "\n".join(lines()).encode("utf-16-be"),
    "latin-1": "\n".join(f"{line},größer" for line in lines()).encode("latin-1"),
    "tabs": "\n".join(lines(delimiter="\t")).encode(),
    "blanks after commas": "\n".join(lines(delimiter=", ")).encode(),
    "blank lines": "\n\n".join(lines()).encode(),
    "bars": "\n".join(lines(delimiter="|")).encode(),
    "blanks": "\n".join(lines(delimiter=" ")).encode(),
    "decimal commas": "\n".join(line.replace(".", ",") for line in lines(delimiter=";")).encode(),
    "decimal commas in quotes": "\n".join(
        ",".join(f'"{cell.replace(".", ",")}"' for cell in line.split(",")) for line in lines()
    ).encode(),
    "empty columns at the right": "\n".join(f"{line},,," for line in lines()).encode(),
    "blanks around names": "\n".join([lines()[0].replace(",", " , "), *lines()[1:]]).encode(),
}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_tables_as_tools_write_them(tmp_path, text, suffix):
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(text)
    dataset = load(path)
    assert (dataset.lengths.tolist(), dataset.returns.tolist()) == ([3, 3], [7.5, 7.5])
    assert dataset.observations["value"].ravel().tolist() == [0.5, 1.5, 2.5] * 2


LISTS = (
    "[{}, {}]",
    "({}, {})",
    "[{}  {}]",
    "[{},{}]",
    "({}, {},)",
    "array([{}, {}])",
    "[np.float64({}), np.float64({})]",
    "tensor([{}, {}])",
    "array([{}, {}], dtype=float32)",
)


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_lists_in_text_are_numbers(tmp_path, form, suffix):
    rows = [
        {"episode": i // 3, "observation": form.format(i + 0.5, -i), "action": i % 2, "reward": 1} for i in range(6)
    ]
    path = table(tmp_path / "log.csv", rows)
    if suffix == "parquet":
        path = tmp_path / "log.parquet"
        parquet.write_table(pyarrow.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    seen = load(path).observations["value"]
    assert seen.tolist() == [[i + 0.5, -i] for i in range(6)]
    whole = table(tmp_path / "whole.csv", [{**row, "observation": form.format(7, i)} for i, row in enumerate(rows)])
    if "float" not in form:
        assert load(whole).observations["value"].dtype == np.int64


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("[1, 2, 3]", "row 2, column 'observation': 3 numbers, expected 2"),
        ("[1, x]", "'x' in '[1, x]', expected a number"),
        ("[0.1 0.2 ... 0.9]", "numbers are left out of '[0.1 0.2 ... 0.9]'"),
        ("[[1, 2]]", "expected a list of numbers such as [1, 2]"),
        ("[1, 2", "expected a list of numbers such as [1, 2]"),
        ("1, 2", "expected a list of numbers such as [1, 2]"),
        ("[1 2]]", "expected a list of numbers such as [1, 2]"),
        ("[]", "'' in '[]', expected a number"),
        ("", "column 'observation': nothing there"),
    ],
)
def test_lists_in_text_that_are_none_are_refused(tmp_path, cell, words):
    rows = [{"episode": 0, "observation": "[1, 2]", "action": 0, "reward": 1} for _ in range(3)]
    rows[1]["observation"] = cell
    problem(lambda: load(table(tmp_path / "log.csv", rows)), words)


def test_a_row_of_units_is_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("\n".join([lines()[0], "-,s,m,-,EUR", *lines()[1:]]) + "\n")
    problem(
        lambda: load(path), "row 1, column 'observation_0': 'm'", "if this row holds units or descriptions, delete it"
    )
    path.write_text("\n".join(["My log", *lines()]) + "\n")
    problem(lambda: load(path), "each line must have as many cells as the first")


@pytest.mark.parametrize("words", ["yes no", "Y N", "T F", "on off", "TRUE FALSE", "[True] [False]", "1.0 0.0"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_words_for_true_and_false(tmp_path, words, suffix):
    yes, no = words.split()
    rows = [{"observation_0": i, "action": 0, "reward": 1, "done": no if i % 3 < 2 else yes} for i in range(6)]
    if suffix == "csv":
        path = table(tmp_path / "log.csv", rows)
    else:
        path = tmp_path / "log.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load(path).lengths.tolist() == [3, 3]
    rows[1]["done"] = "maybe"
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "row 2, column 'done': 'maybe', expected true or false")
    rows[1]["done"] = ""
    problem(
        lambda: load(table(tmp_path / "log.csv", [{**row, "done": "1" * (i % 3 == 2)} for i, row in enumerate(rows)])),
        "write 0 (or false)",
    )


PARQUET_CELLS = {
    "decimals": lambda i: (decimal.Decimal(i) / 2, [i / 2]),
    "long lists": lambda i: ([i / 2, 1], [i / 2, 1]),
    "matrices": lambda i: ([[i, 1], [2, 3]], [i, 1, 2, 3]),
    "records": lambda i: ({"x": i / 2, "y": {"z": 1}}, [i / 2, 1]),
    "tensors": lambda i: (np.array([[i, 1.0]]), [i, 1]),
}


@pytest.mark.parametrize("kind", PARQUET_CELLS)
def test_cells_of_parquet(tmp_path, kind):
    cells, expected = zip(*(PARQUET_CELLS[kind](i) for i in range(6)), strict=True)
    if kind == "tensors":
        column = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.stack(cells))
    elif kind == "long lists":
        column = pyarrow.array(cells, pyarrow.large_list(pyarrow.float64()))
    else:
        column = pyarrow.array(cells)
    path, ends = tmp_path / "log.parquet", [i % 3 == 2 for i in range(6)]
    parquet.write_table(
        pyarrow.table({"observation": column, "action": [0] * 6, "reward": [1] * 6, "done": ends}), path
    )
    if kind == "records":
        error = problem(lambda: load(path), "--columns observations=observation.x,observation.y.z says which")
        assert "observation.y.z" in str(error)
        seen = load(path, columns={"observations": ["observation.x", "observation.y.z"]}).observations["value"]
    else:
        seen = load(path).observations["value"]
    np.testing.assert_array_equal(seen.reshape(6, -1), expected)


def test_steps_of_a_table_with_a_row_for_each_episode_show_its_order(tmp_path):
    rows = {
        "observations": [[[0.5], [1.5]], [[2.5], [3.5]]],
        "actions": [[[0.0], [1.0]]] * 2,
        "rewards": [[1.0, 2.0]] * 2,
    }
    for steps, fine in (([[0, 1], [0, 1]], True), ([[0, 1], [1, 0]], False), ([2, 2], True)):
        parquet.write_table(pyarrow.table({**rows, "timesteps": steps}), tmp_path / "rows.parquet")
        if fine:
            assert load(tmp_path / "rows.parquet").lengths.tolist() == [2, 2]
        else:
            problem(lambda: load(tmp_path / "rows.parquet"), "step: episode 1, step 1")


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_an_index_of_pandas_shows_that_rows_were_shuffled(tmp_path, name):
    rows = [{name: i, "observation_0": i, "action": 0, "reward": 1, "done": int(i % 3 == 2)} for i in range(6)]
    assert load(table(tmp_path / "log.csv", rows)).lengths.tolist() == [3, 3]
    rows[0], rows[4] = rows[4], rows[0]
    problem(lambda: load(table(tmp_path / "log.csv", rows)), f"{name!r}: episode 0, step 1 (row 2) does not rise")
    assert load(tmp_path / "log.csv", columns={"step": "none"}).num_episodes == 2


def test_names_with_a_comma_in_them(tmp_path, capsys):
    rows = [{"pos, x": i, "pos, y": 1, "action": 0, "reward": 1, "done": int(i == 2)} for i in range(3)]
    path = str(table(tmp_path / "log.csv", rows))
    assert main(["inspect", path, "--columns", "observations=pos, x,pos, y"]) == 2
    assert "no column 'pos'" in (error := capsys.readouterr().err)
    assert """a name with a comma goes in double quotes, such as 'observations="pos, x"'""" in error
    assert main(["inspect", path, "--columns", 'observations="pos, x","pos, y"']) == 0
    assert "Box(-9223372036854775808, 9223372036854775807, (2,), int64)" in capsys.readouterr().out
    assert split_names('"a,b", c') == ["a,b", "c"]
    assert split_names("a, b") == ["a", " b"]


def test_all_names_that_are_missing_are_asked_for_at_once(tmp_path):
    rows = [{"s0": i, "s1": 1, "a": 0, "r": 1, "done": int(i == 2)} for i in range(3)]
    words = "--columns observations=s0,s1 actions=a rewards=r says which"
    problem(
        lambda: load(table(tmp_path / "log.csv", rows)),
        "no 'observations' in it, no 'actions', no 'rewards', only",
        words,
    )
    columns = {"observations": ["s0", "s1"], "actions": "a", "rewards": "r"}
    assert load(tmp_path / "log.csv", columns=columns).lengths.tolist() == [3]


def test_an_axis_too_many_is_named(tmp_path):
    square = {"observations": np.zeros((4, 5, 3)), "actions": np.zeros((4, 5, 2)), "rewards": np.zeros((4, 5))}
    np.savez(tmp_path / "square.npz", **square, dones=np.zeros((4, 5)))
    problem(lambda: load(tmp_path / "square.npz"), "rewards: shape (4, 5)", "envs.from_episodes({'observations': o")
    zipped = zip(square["observations"], square["actions"], square["rewards"], strict=True)
    dataset = from_episodes({"observations": o, "actions": a, "rewards": r} for o, a, r in zipped)
    assert dataset.lengths.tolist() == [5] * 4


def test_an_empty_list_is_a_row_without_numbers():
    values, nothing = lists_in_text("{row}", np.array(["[1, 2]", "", " "], object))
    assert (values.tolist(), nothing.tolist()) == ([[1, 2], [0, 0], [0, 0]], [1, 2])


@pytest.mark.parametrize(
    ("header", "cell", "words"),
    [
        (lines()[1], "0.5", "line 1 holds numbers only, so no column has a name"),
        (lines()[0], "0,5", "write decimals with a point, and no sign for thousands"),
        (lines()[0], "1,000.5", "write decimals with a point"),
        (lines()[0].replace("observation_0", "observation[0]"), "0.5", "--columns 'observations=observation[0]' says"),
        (lines()[0].replace("observation_0", "obs0"), "0.5", "--columns observations=obs0 says which"),
        (lines()[0].replace("observation_0", "observation_1"), "0.5", "--columns observations=observation_1 says"),
        (lines()[0], "observation_0", "the line of names again: delete it"),
        (lines()[0], "#DIV/0!", "--skip-bad-episodes leaves its episode out"),
        (lines()[0], "12 %", "write numbers without a unit"),
        (lines()[0], "\u22120.5", "write the sign of negative numbers as -"),
        (lines()[0], "{'x': 1}", "write each of its parts as a column"),
        (lines()[0], "0.5 1.5", "write a list as [0.5, 1.5, ...], or as columns observation_0_0, observation_0_1"),
    ],
)
def test_every_refusal_of_a_table_has_a_way_out(tmp_path, header, cell, words):
    path = tmp_path / "log.csv"
    path.write_text("\n".join([header, *(f'0,{t},"{cell}",{t % 2},1.5' for t in range(3))]) + "\n")
    problem(lambda: load(path), words)


@pytest.mark.parametrize(
    "names",
    [
        [str(12345678901234567890 + i) for i in range(3)],
        ["1.1", "1.10", "1.2"],
        ["007", "7", "8"],
        ["1e1", "10", "1e2"],
        ["NA", "null", "nan"],
    ],
)
def test_episodes_that_are_named_apart_are_apart(tmp_path, names):
    rows = [{"episode": name, "observation_0": t, "action": t % 2, "reward": 1} for name in names for t in range(4)]
    assert load(table(tmp_path / "log.csv", rows)).lengths.tolist() == [4, 4, 4]
    both = [{"run": 1, **row} for row in rows]
    path = table(tmp_path / "both.csv", both)
    assert load(path, columns={"episode": ["run", "episode"]}).lengths.tolist() == [4, 4, 4]
    rows[5]["episode"] = " "
    problem(lambda: load(table(tmp_path / "log.csv", rows)), "row 6, column 'episode': nothing there")


def test_many_columns_are_refused_or_read_at_once(tmp_path):
    count = 9001
    path = tmp_path / "wide.csv"
    for name in ("x", "observation_"):
        names = ["episode", "action", "reward", *(f"{name}{i}" for i in range(count))]
        path.write_text(",".join(names) + "\n" + ",".join(["0", "1", "0.5", *["0"] * count]) + "\n")
        begun = time.process_time()
        if name == "x":
            problem(lambda: load(path), "no 'observations' in it")
        else:
            assert load(path).observations["value"].shape == (1, count)
        assert time.process_time() - begun < 5
    path.write_text("reward,reward,action\n1,1,0\n")
    problem(lambda: load(path), "column 'reward' appears twice")


# A plain loop over random files.


def random_rows(rng):
    """Rows of random episodes in a random layout, and the episodes as a plain loop has them."""
    text, integers = rng.random() < 0.5, rng.random() < 0.3
    marks = rng.choice(["done", "both", "episode", "episode_start", "not_done"])
    follows, counted, dim = rng.random() < 0.5, rng.random() < 0.5, int(rng.integers(1, 4))
    rows, episodes = [], []
    for number in range(int(rng.integers(1, 5))):
        length = int(rng.integers(1, 6))
        states = rng.integers(0, 9, (length + 1, dim)) if integers else rng.normal(size=(length + 1, dim)).round(3)
        states, rewards = states.tolist(), rng.normal(size=length).round(2).tolist()
        episodes.append((states, rewards))
        for t in range(length):
            last, row = t == length - 1, {}
            for prefix, state in [("observation", states[t]), *([("next_obs", states[t + 1])] if follows else [])]:
                if text:
                    row[prefix] = str(state)
                else:
                    row |= {f"{prefix}_{i}": value for i, value in enumerate(state)}
            row |= {"action": int(rng.integers(2)), "reward": rewards[t]}
            row |= {"timeStepIndex": t} if counted else {}
            row |= {
                "done": {"done": int(last)},
                "both": {"terminal": int(last and number % 2), "timeout": int(last and not number % 2)},
                "episode": {"episode": f"e{number}"},
                "episode_start": {"episode_start": int(t == 0)},
                "not_done": {"not_done": int(not last)},
            }[marks]
            rows.append(row)
    return rows, episodes, marks, follows, integers


@pytest.mark.parametrize("seed", range(40))
def test_a_plain_loop_agrees_on_random_tables(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows, episodes, marks, follows, integers = random_rows(rng)
    delimiter, encoding = rng.choice([",", ";", "\t"]), rng.choice(["utf-8", "utf-16", "utf-8-sig"])
    path = table(tmp_path / "log.csv", rows, delimiter=str(delimiter), encoding=str(encoding))
    dataset = load(path)
    assert dataset.lengths.tolist() == [len(rewards) for _, rewards in episodes]
    np.testing.assert_allclose(dataset.returns, [sum(rewards) for _, rewards in episodes], rtol=0, atol=1e-12)
    assert dataset.rewards.tolist() == [reward for _, rewards in episodes for reward in rewards]
    seen = dataset.observations["value"]
    expected = [state for states, _ in episodes for state in states[:-1]]
    assert seen.reshape(len(seen), -1).tolist() == expected
    assert seen.dtype == (np.int64 if integers else np.float64)
    if follows:
        finals = dataset.final_observations["value"]
        assert finals.reshape(len(finals), -1).tolist() == [states[-1] for states, _ in episodes]
    else:
        assert dataset.final_observations is None
    count = len(episodes)
    ended = {
        "both": [bool(i % 2) for i in range(count)],
        "done": [True] * count,
        "not_done": [True] * count,
    }.get(marks, [False] * count)
    assert dataset.terminated.tolist() == ended


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "parquet"])
@pytest.mark.parametrize("seed", range(12))
def test_a_plain_loop_agrees_on_random_arrays(tmp_path, seed, suffix):
    rng = np.random.default_rng(seed)
    kind = rng.choice(["float32", "float64", "int16", "int64"])
    dim, marks = int(rng.integers(2, 5)), rng.choice(["done", "lengths", "episode", "episode_start", "not_done"])
    if suffix == "parquet" and marks == "lengths":
        marks = "episode"
    episodes = [(10 * rng.normal(size=(int(rng.integers(2, 7)), dim))).astype(kind) for _ in range(3)]
    actions = [rng.uniform(-1, 1, (len(seen) - 1, 2)).astype("float32") for seen in episodes]
    rewards = [rng.normal(size=len(seen) - 1).astype("float32") for seen in episodes]
    steps = [len(each) for each in rewards]
    last = np.concatenate([np.arange(count) == count - 1 for count in steps])
    told = {
        "done": {"dones": last},
        "not_done": {"nonterminals": (~last).astype("float32")},
        "lengths": {"lengths": np.array(steps)},
        "episode": {"episode": np.repeat([5, 3, 4], steps)},
        "episode_start": {"is_first": np.concatenate([np.arange(count) == 0 for count in steps])},
    }[marks]
    arrays = {
        "observations": np.concatenate([seen[:-1] for seen in episodes]),
        "next_obs": np.concatenate([seen[1:] for seen in episodes]),
        "actions": np.concatenate(actions),
        "rewards": np.concatenate(rewards),
        **told,
    }
    path = tmp_path / f"flat.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    elif suffix == "hdf5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {
            name: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.ravel()), array.shape[1])
            if array.ndim == 2
            else pyarrow.array(array)
            for name, array in arrays.items()
        }
        parquet.write_table(pyarrow.table(columns), path)
    dataset = load(path)
    assert dataset.num_episodes == len(episodes)
    for i, seen in enumerate(episodes):
        episode = dataset.episode(i)
        np.testing.assert_array_equal(episode.observations["value"], seen)
        np.testing.assert_array_equal(episode.actions["value"], actions[i])
        np.testing.assert_array_equal(episode.rewards, rewards[i])
        assert episode.terminated == (marks in ("done", "not_done"))
        assert not episode.truncated
    assert dataset.observations["value"].dtype == kind
    assert (dataset.actions["value"].dtype, dataset.rewards.dtype) == (np.float32, np.float32)
    returns = [float(np.sum(each, dtype=np.float64)) for each in rewards]
    np.testing.assert_allclose(dataset.returns, returns, rtol=0, atol=1e-6)
