"""Any data written as Minari's: Minari opens it, and it loads as what it was."""

from dataclasses import replace

import minari
import numpy as np
import pytest
from test_datasets import KINDS, assert_same, random_episodes, root, write  # noqa: F401 (root is a fixture)
from test_readers import WRITERS, numbers
from test_readers import write as write_flat

from dt.cli import main
from envs import DataError, EnvironmentSpec, from_arrays, load, write_minari
from envs.simulate.scores import Reference, reference_for
from envs.spaces import to_leaves


def assert_equal_datasets(ours, theirs):
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert (ours.environment, ours.reference) == (theirs.environment, theirs.reference)
    for name in ("terminated", "truncated", "offsets"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.final_observations is None) == (theirs.final_observations is None)
    if ours.final_observations is not None:
        assert_same(ours.final_observations, theirs.final_observations)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_flat_file_imported_is_the_same_dataset(root, tmp_path, suffix, capsys):  # noqa: F811
    path = write_flat(tmp_path, suffix)
    assert main(["import", str(path), "mine/flat-v0"]) == 0
    out, err = capsys.readouterr()
    assert out == f"mine/flat-v0: 3 episodes, 10 steps, in {root}/mine/flat-v0\n"
    assert "note          action_space is declared nowhere and inferred" in err
    source, imported = load(path), load("mine/flat-v0")
    assert_equal_datasets(imported, source)
    assert imported.name == "mine/flat-v0"
    assert [note for note in imported.notes if "inferred" in note] == []
    for ours, theirs in zip(range(3), minari.load_dataset("mine/flat-v0").iterate_episodes(), strict=True):
        np.testing.assert_array_equal(theirs.observations[:-1], source.episode(ours).observations["value"])
        np.testing.assert_array_equal(theirs.observations[-1], theirs.observations[-2])  # Minari wants T + 1 of them
        np.testing.assert_array_equal(theirs.actions, source.episode(ours).actions["value"])
        assert (theirs.terminations[-1], theirs.truncations[-1]) == (ours != 1, ours == 1)
        assert len(theirs.rewards) == [3, 5, 2][ours]
        assert repr(theirs)


@pytest.mark.parametrize(("observation_space", "action_space"), KINDS.values(), ids=KINDS)
def test_nested_spaces_and_final_observations_survive(root, observation_space, action_space):  # noqa: F811
    source = load(
        write("from/minari-v0", random_episodes(observation_space, action_space), observation_space, action_space)
    )
    write_minari(source, "to/minari-v3")
    assert_equal_datasets(load("to/minari-v3"), source)
    for i, theirs in enumerate(minari.load_dataset("to/minari-v3").iterate_episodes()):
        assert_same(source.episode(i).observations, to_leaves(observation_space, theirs.observations))
    assert list(minari.list_local_datasets()) == ["from/minari-v0", "to/minari-v3"]


def test_episodes_that_neither_end_nor_are_cut_stay_so(root):  # noqa: F811
    arrays = {**numbers(), "terminated": [True, False, False], "truncated": [False, False, True], "lengths": [3, 5, 2]}
    source = from_arrays(**arrays)
    write_minari(source, "mine/open-v0")
    assert_equal_datasets(load("mine/open-v0"), source)
    assert "1 of 3 episodes neither terminate nor are truncated" in load("mine/open-v0").notes


def test_minaris_root_may_be_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "here")
    source = from_arrays(**numbers())
    write_minari(source, "mine/relative-v0")
    assert_equal_datasets(load("mine/relative-v0"), source)


def test_pictures_are_written_without_loss(root):  # noqa: F811
    pictures = np.random.default_rng(0).integers(0, 256, (10, 32, 36), dtype=np.uint8)
    source = from_arrays(**{**numbers(), "observations": pictures})
    write_minari(source, "mine/pictures-v0")
    assert_equal_datasets(load("mine/pictures-v0"), source)


def test_the_environment_and_the_reference_returns_are_written(root, tmp_path, capsys):  # noqa: F811
    path = write_flat(tmp_path, "npz", actions=lambda old: (old[:, 0] > 0).astype(int))
    assert main(["import", str(path), "mine/cartpole-v0", "--environment", "CartPole-v1"]) == 0
    assert load("mine/cartpole-v0").environment == EnvironmentSpec("CartPole-v1", {}, 500)
    env = minari.load_dataset("mine/cartpole-v0").recover_environment()
    assert (env.spec.id, env.spec.max_episode_steps) == ("CartPole-v1", 500)


def test_an_environment_that_is_not_here_is_written_by_name(root):  # noqa: F811
    unheard = EnvironmentSpec("Unheard-v0", {"size": 3}, 77)
    write_minari(replace(from_arrays(**numbers()), environment=unheard), "mine/unheard-v0")
    assert load("mine/unheard-v0").environment == unheard
    assert minari.load_dataset("mine/unheard-v0").env_spec.max_episode_steps == 77
    made_of_a_class = replace(from_arrays(**numbers()), environment=EnvironmentSpec("Payday-v0", {}, 20))
    write_minari(made_of_a_class, "mine/payday-v0")
    assert load("mine/payday-v0").environment == made_of_a_class.environment
    nameless = replace(from_arrays(**numbers()), environment=EnvironmentSpec("no id"))
    with pytest.raises(DataError, match=r"environment no id: Malformed"):
        write_minari(nameless, "mine/nameless-v0")


def test_reference_returns_are_written_where_the_data_brought_them(root):  # noqa: F811
    brought = replace(from_arrays(**numbers()), reference=Reference(1.0, 2.0, "the dataset's own metadata"))
    write_minari(brought, "mine/brought-v0")
    assert load("mine/brought-v0").reference == brought.reference
    hopper = replace(
        from_arrays(**numbers()), environment=EnvironmentSpec("Hopper-v5"), reference=reference_for("Hopper-v5")
    )
    write_minari(hopper, "mine/hopper-v0")
    assert load("mine/hopper-v0").reference == hopper.reference  # D4RL's, and still called that


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ("mine/taken-v0", "exists already, in"),
        ("hopper/replay-v0", "ships with the package"),
        ("mine/taken-v0/inside-v0", "mine/taken-v0 is a dataset"),
        ("no-version", "not a Minari id; NAMESPACE/NAME-v0 is one"),
        ("../outside-v0", "not a Minari id"),
        ("/root/outside-v0", "not a Minari id"),
        ("", "not a Minari id"),
        ("a b-v0", "not a Minari id"),
    ],
)
def test_an_id_that_is_none_or_taken_is_refused_and_nothing_is_written(root, tmp_path, capsys, identity, words):  # noqa: F811
    write_minari(from_arrays(**numbers()), "mine/taken-v0")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["import", str(write_flat(tmp_path, "npz")), identity]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(DataError):
        write_minari(from_arrays(**numbers()), identity)


def test_a_write_that_fails_leaves_nothing(root, monkeypatch):  # noqa: F811
    dataset = from_arrays(**numbers())
    monkeypatch.setattr(type(dataset), "episode", lambda self, index: [][index])
    with pytest.raises(IndexError):
        write_minari(dataset, "mine/half-v0")
    assert list(root.iterdir()) == []
