"""The DQN Replay Dataset's files: the same steps to the bit, and what of a buffer is no step is left out."""

import gzip
import tracemalloc

import numpy as np
import pytest
from gymnasium import spaces
from malformed import REPLAY_LENGTHS, replay, write_replay

from dt.cli import main
from envs import DataError, EnvironmentSpec, load
from envs.reading.dqn_replay import CLIPPED

ENDS = np.cumsum(REPLAY_LENGTHS)


def blank_before(field, starts):
    """Three rows of nothing before each of these rows, as Dopamine has them."""
    return np.insert(field, np.repeat(starts, 3), 0, axis=0)


def test_every_step_is_read_to_the_bit(tmp_path):
    arrays = replay()
    data = load(write_replay(tmp_path / "game", arrays))
    assert data.lengths.tolist() == list(REPLAY_LENGTHS)
    assert data.terminated.tolist() == [True, True, False]
    assert not data.truncated.any()
    for array, field in ((data.observations["value"], "observation"), (data.actions["value"], "action")):
        assert array.dtype == arrays[field].dtype
        assert np.array_equal(array, arrays[field])
    assert np.array_equal(data.rewards, arrays["reward"])
    assert data.observation_space == spaces.Box(0, 255, (84, 84), np.uint8)
    assert data.name == "game"
    assert "1 of 3 episodes neither terminate nor are truncated" in data.notes
    assert CLIPPED in data.notes


def test_a_row_is_a_picture_the_action_taken_at_it_and_what_that_earned(tmp_path):
    data = load(write_replay(tmp_path, replay()))
    first, arrays = data.episode(0), replay()
    assert data.final_observations is None  # the picture after the last action is in no file
    assert np.array_equal(first.observations["value"][2], arrays["observation"][2])
    assert first.actions["value"][2] == arrays["action"][2]
    assert first.rewards[2] == arrays["reward"][2]
    assert data.returns[0] == arrays["reward"][: REPLAY_LENGTHS[0]].sum()


def test_actions_are_the_users_the_environments_or_inferred(tmp_path):
    arrays = replay()
    arrays["action"] = np.minimum(arrays["action"], 2)
    folder = write_replay(tmp_path, arrays)
    inferred = load(folder)
    assert inferred.action_space == spaces.Discrete(3)
    assert "action_space is declared nowhere and inferred: Discrete(3) (--spaces says otherwise)" in inferred.notes
    assert load(folder, environment=EnvironmentSpec("Atari/Breakout-v5")).action_space == spaces.Discrete(4)
    declared = load(folder, spaces={"action_space": spaces.Discrete(6)})
    assert declared.action_space == spaces.Discrete(6)
    assert not [note for note in declared.notes if "inferred" in note]


def test_blank_rows_before_a_game_are_no_steps(tmp_path):
    arrays, starts = replay(), [0, *ENDS[:-1]]
    arrays["action"][0], arrays["reward"][0] = 0, 0  # a step that does nothing and earns nothing is one all the same
    padded = {field: blank_before(array, starts) for field, array in arrays.items()}
    assert len(padded["reward"]) == sum(REPLAY_LENGTHS) + 9
    plain, read = (load(write_replay(tmp_path / name, each)) for name, each in (("a", arrays), ("b", padded)))
    assert read.fingerprint == plain.fingerprint


def test_a_game_that_begins_in_the_dark_loses_no_step(tmp_path):
    dark = {field: np.concatenate([np.zeros_like(array[:2]), array]) for field, array in replay().items()}
    padded = {field: blank_before(array, [0]) for field, array in dark.items()}
    assert load(write_replay(tmp_path, padded)).lengths.tolist() == [2 + REPLAY_LENGTHS[0], *REPLAY_LENGTHS[1:]]


def test_a_buffer_that_ends_between_two_games_has_no_empty_one(tmp_path):
    arrays = {field: array[: ENDS[1]] for field, array in replay().items()}
    padded = {field: np.concatenate([array, np.zeros_like(array[:2])]) for field, array in arrays.items()}
    assert load(write_replay(tmp_path, padded)).lengths.tolist() == list(REPLAY_LENGTHS[:2])


@pytest.mark.parametrize("added", [6, 6 + 3 * sum(REPLAY_LENGTHS)])
def test_rows_from_the_cursor_on_are_of_the_buffer_before(tmp_path, added):
    data = load(write_replay(tmp_path, {**replay(), "add_count": np.array(added)}))
    assert data.lengths.tolist() == [REPLAY_LENGTHS[0], 6 - REPLAY_LENGTHS[0]]
    assert data.terminated.tolist() == [True, False]
    assert np.array_equal(data.observations["value"], replay()["observation"][:6])


def test_a_cursor_that_came_round_leaves_nothing_out(tmp_path):
    arrays = {**replay(), "add_count": np.array(2 * sum(REPLAY_LENGTHS))}
    assert load(write_replay(tmp_path, arrays)).num_steps == sum(REPLAY_LENGTHS)


def test_buffers_follow_each_other_by_number_and_a_broken_one_can_be_left_out(tmp_path):
    for number in (0, 2, 10):
        write_replay(tmp_path, replay(number), number)
    data = load(tmp_path)
    assert data.num_episodes == 9
    for place, number in enumerate((0, 2, 10)):
        rows = slice(place * ENDS[-1], (place + 1) * ENDS[-1])
        assert np.array_equal(data.observations["value"][rows], replay(number)["observation"])
    path = tmp_path / "$store$_observation_ckpt.2.gz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"_observation_ckpt.2.gz: episode 2, observation: cannot be read from row 7"):
        load(tmp_path)
    left = load(tmp_path, skip_bad_episodes=True)
    assert left.num_episodes == 8  # those before the damage are whole
    assert [note for note in left.notes if note.startswith("left out") and "observation_ckpt.2.gz" in note]


def test_bytes_behind_an_array_and_a_wrong_checksum_are_seen(tmp_path):
    path = write_replay(tmp_path, replay()) / "$store$_observation_ckpt.0.gz"
    good = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(good) + b"?"))
    with pytest.raises(DataError, match=r"observation: more in it than the shape \(10, 84, 84\)"):
        load(tmp_path)
    path.write_bytes(good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])
    with pytest.raises(DataError, match=r"observation: damaged .CRC check failed"):
        load(tmp_path)


def test_what_is_in_memory_is_an_episode_and_not_a_buffer(tmp_path, monkeypatch):
    games, length = 40, 100
    rng = np.random.default_rng(0)
    pictures = np.tile(rng.integers(1, 9, (length, 84, 84), np.uint8), (games, 1, 1))
    terminal = np.tile(np.arange(length) == length - 1, games).astype(np.uint8)
    arrays = {"action": np.arange(games * length, dtype=np.int32) % 4, "terminal": terminal}
    arrays["reward"] = np.ones(games * length, np.float32)
    folder = write_replay(tmp_path / "game", {**arrays, "observation": pictures})
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    tracemalloc.start()
    data = load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.num_steps == games * length
    assert peak < pictures.nbytes / 4
    assert np.array_equal(data.observations["value"][::977], pictures[::977])


def test_a_replay_is_inspected_trained_on_and_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    folder = str(write_replay(tmp_path / "game", replay()))
    assert main(["inspect", folder]) == 0
    assert "episodes      3, 10 steps" in capsys.readouterr().out
    assert main(["import", folder, "mine/game-v0"]) == 0
    assert load("mine/game-v0").fingerprint == load(folder).fingerprint
    small = ["--width", "8", "--num-layers", "1", "--context-length", "2", "--frame-stack", "4", "--batch-size", "2"]
    quick = [
        "--no-calibration",
        "--steps",
        "2",
        "--warmup-steps",
        "0",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["train", folder, *small, *quick]) == 0
