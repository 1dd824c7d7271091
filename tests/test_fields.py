"""What data calls its fields: end flags under all their usual names, and none of them left alone in silence."""

import numpy as np
import pytest
from test_readers import ENDS, LENGTHS, numbers, problem, write

from dt.inspection import describe_dataset
from envs import DataError, from_arrays, from_episodes, load
from envs.fields import FIELDS, looks_like_an_end

ALONE = "done stands alone: each end counts as terminated, none as cut"


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
    words = "arrays: next_observations: episode 1, step 0 (row 4): not what the next row observes; these rows are no"
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
    monkeypatch.setattr("envs.cache.PIECE", 8)  # two rows
    assert from_arrays(**followed()).num_episodes == 3
    for row in (0, 1, 3, 6, 8):
        arrays = followed()
        arrays["next_observations"][row, 3] = -7
        problem(lambda arrays=arrays: from_arrays(**arrays), f"(row {row + 1}): not what the next row observes; these")
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
