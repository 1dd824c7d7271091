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
