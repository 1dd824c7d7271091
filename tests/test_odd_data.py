"""Odd data that is legitimate is read, counted and said; bad episodes are left out where the user asks for it."""

import numpy as np
import pytest
from gymnasium import spaces
from malformed import CHOICE, LENGTHS, NAN, array, at, bytes_of, d4rl, half, hdf5, npz, put, text
from test_cli import files
from test_datasets import edit_groups

from dt.cli import main
from dt.inspection import describe_dataset
from envs import DataError, from_arrays, load
from envs.datasets.arrays import outside
from envs.datasets.episodes import left_out_notes

STEPS = sum(LENGTHS)


def told(**changes) -> str:
    """What `dt inspect` says of ten steps that are odd in some way."""
    ended = np.isin(np.arange(STEPS), np.cumsum(LENGTHS) - 1)
    arrays = {
        "observations": np.zeros((STEPS, 2), np.float32),
        "actions": np.zeros((STEPS, 2), np.float32),
        "rewards": np.arange(STEPS, dtype=np.float32),
        "terminated": ended,
    }
    return describe_dataset(from_arrays(**{**arrays, **changes}))


def test_an_episode_that_neither_ends_nor_is_cut():
    ended = np.isin(np.arange(STEPS), (2, 7))  # what comes after the last end is an episode too
    assert "1 of 3 episodes neither terminate nor are truncated" in told(terminated=ended)
    assert "neither" not in told()


def test_actions_beyond_their_bounds():
    beyond = put(3.0, 4, 1)(put(-2.0, 9, 0)(np.zeros((STEPS, 2), np.float32)))
    said = told(actions=beyond, action_space=spaces.Box(-1, 1, (2,)))
    assert "actions: 2 of 10 steps are beyond the space's bounds" in said


def test_unbounded_actions():
    assert "2 of 2 numbers are unbounded" in told(action_space=spaces.Box(-np.inf, np.inf, (2,)))
    half_bound = spaces.Box(np.array([-1.0, -np.inf], np.float32), np.ones(2, np.float32))
    assert "1 of 2 numbers are unbounded" in told(action_space=half_bound)
    assert "unbounded" not in told(action_space=spaces.Box(-1, 1, (2,)))


def test_float32_under_a_float64_space():
    said = told(observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64))
    assert "observations are recorded as float32, the space says float64" in said


def test_an_episode_of_five_million_steps():
    count = 5_000_000
    dataset = from_arrays(
        observations=np.zeros((count, 1), np.float16),
        actions=np.zeros(count, np.int8),
        rewards=np.ones(count, np.float32),
        truncated=np.arange(count) == count - 1,
    )
    assert dataset.lengths.tolist() == [count]
    assert dataset.returns.tolist() == [float(count)]


def test_rewards_that_are_whole_numbers_and_episodes_of_one_step():
    said = told(rewards=np.arange(STEPS), terminated=np.ones(STEPS, bool))
    assert "10, 10 steps, lengths 1 to 1" in said


# Bad episodes.


def skipped(path) -> tuple[list[str], int]:
    dataset = load(path, skip_bad_episodes=True)
    return [note for note in dataset.notes if note.startswith("left out")], dataset.num_episodes


BAD = {
    "T observations": (hdf5(at("observations", lambda x: x[:-1])), "observations: shape (5, 7), expected (6, 7)"),
    "no rewards": (hdf5(at("rewards", lambda x: None)), "episode_1/rewards: missing"),
    "rewards of rank 2": (hdf5(at("rewards", lambda x: x[:, None])), "episode_1/rewards: shape (5, 1)"),
    "ended in the middle": (hdf5(at("terminations", put(True, 1))), "episode_1/terminations: true at step 1"),
    "NaN": (hdf5(at("rewards", put(NAN, 2))), "episode_1: rewards not finite"),
    "NaN at the end": (hdf5(at("observations", put(NAN, 5, 6))), "episode_1: final observation not finite"),
    "no such choice": (hdf5(at("actions", put(4, 3))), f"episode_1: actions outside {CHOICE}"),
    "an Arrow file cut in half": (bytes_of("1/part-0.arrow", half, "arrow"), "cannot be read as Arrow"),
    "npz": (npz(actions=put(NAN, 4, 1)), "episode 1: actions not finite"),
    "d4rl hdf5": (d4rl(rewards=put(np.inf, 7)), "episode 1: rewards not finite"),
    "csv": (text(observation_2=lambda x: [*x[:9], float("inf")]), "episode 2: observations not finite"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "why"), BAD.values(), ids=BAD)
def test_a_bad_episode_is_left_out_and_said(tmp_path, make, why):
    path = make(tmp_path)
    with pytest.raises(DataError):
        load(path)
    (note,), count = skipped(path)
    assert why in note
    assert count == 2


def test_bad_episodes_go_by_their_files_names(tmp_path):
    """One has another shape and a later one a bad number, which is no longer the third that is read."""
    path = hdf5(array("episode_0/rewards", lambda x: x[:, None]))(tmp_path)
    edit_groups(array("episode_2/rewards", put(NAN, 0)))(path)
    notes, count = skipped(path)
    assert "episode_0/rewards: shape (3, 1)" in notes[0]
    assert "episode_2: rewards not finite" in notes[1]
    assert count == 1


def test_what_is_wrong_with_all_of_it_is_refused_all_the_same(tmp_path):
    path = hdf5(lambda file: [array(f"episode_{i}/rewards", put(NAN, 0))(file) for i in range(3)])(tmp_path)
    with pytest.raises(DataError, match="rewards: nan is not finite"):
        load(path, skip_bad_episodes=True)
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="no 'rewards' in it"):
        load(npz(rewards=None)(tmp_path / "flat"), skip_bad_episodes=True)


def test_nothing_is_left_out_of_good_data(tmp_path):
    path = hdf5(lambda file: None)(tmp_path)
    assert load(path, skip_bad_episodes=True).fingerprint == load(path).fingerprint
    assert skipped(path) == ([], 3)


def test_many_are_counted():
    assert left_out_notes([str(i) for i in range(30)])[19:] == ["left out: 19", "left out: 10 more"]


def test_the_commands_offer_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    path = str(hdf5(at("rewards", put(NAN, 2)))(tmp_path))
    assert main(["inspect", path, "--skip-bad-episodes"]) == 0
    assert "note          left out: episode_1: rewards not finite" in capsys.readouterr().out
    assert main(["import", path, "mine/good-v0", "--skip-bad-episodes"]) == 0
    assert "left out: episode_1: rewards not finite" in capsys.readouterr().err
    assert load("mine/good-v0").num_episodes == 2
    quick = ["--no-calibration", "--steps", "1", "--width", "8", "--num-layers", "1", "--held-out", "0.5"]
    run = tmp_path / "run"
    assert main(["train", path, "--skip-bad-episodes", "--output", str(run), *quick]) == 0
    assert "left out: episode_1" in capsys.readouterr().err
    assert main(["evaluate", str(run)]) == 0  # the error on what was held out of the good ones
    before = files(tmp_path)
    assert main(["train", path, "--output", str(tmp_path / "other"), *quick]) == 2
    assert files(tmp_path) == before


def test_the_cache_keeps_the_two_apart(tmp_path, monkeypatch):
    import os

    from envs.datasets import cache

    monkeypatch.setattr(cache, "SMALLEST", 0)
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    path = hdf5(at("rewards", put(NAN, 2)))(tmp_path)
    for file in path.rglob("*"):
        os.utime(file, (1, 1))
    for _ in range(2):
        assert skipped(path)[1] == 2
        with pytest.raises(DataError):
            load(path)


@pytest.mark.parametrize(
    ("rows", "low", "high", "found"),
    [
        ([[0, 5], [1, 6]], (0, 5), (1, 6), [[False]]),
        ([[0, 5], [1, 4]], (0, 5), (9, 9), [[False, False], [False, True]]),
        ([[2, 5], [1, 6]], (0, 0), (1, 6), [[True, False], [False, False]]),
        ([[0, 5], [np.nan, 7]], (0, 0), (6, 6), [[False, False], [False, True]]),
    ],
)
def test_what_is_outside_is_asked_of_each_column(rows, low, high, found):
    assert outside(np.array(rows, float), np.array(low), np.array(high)).reshape(-1, len(found[0])).tolist() == found
