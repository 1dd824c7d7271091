"""Which episodes are learned from: the best by the paper's rule, shares drawn by a seed, several datasets as one."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from dt.cli import main
from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from dt.learning.training import train
from envs.datasets.dataset import Dataset, DatasetSource
from envs.datasets.in_memory import from_arrays, from_episodes
from envs.datasets.selection import _declared, best_episodes, join, sample_episodes, take
from envs.errors import DataError
from envs.simulate.scores import Reference
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json


def recorded(lengths, returns, name="made", final=1, **spaces_) -> Dataset:
    """Episodes whose observations and actions tell episode and step."""
    episodes = [
        {
            "observations": np.stack([np.full(length + final, i), np.arange(length + final)], 1).astype(np.float32),
            "actions": np.stack([np.full(length, -i), np.arange(length)], 1).astype(np.float32),
            "rewards": np.full(length, total / length),
            "terminated": i % 2 == 0,
            "truncated": i % 2 == 1,
        }
        for i, (length, total) in enumerate(zip(lengths, returns, strict=True))
    ]
    return from_episodes(episodes, name=name, **spaces_)


def same(a, b) -> bool:
    """Whether two episodes hold the same numbers and ended alike."""
    pairs = [(a.observations["value"], b.observations["value"]), (a.actions["value"], b.actions["value"])]
    pairs += [(a.rewards, b.rewards)]
    return all(np.array_equal(x, y) for x, y in pairs) and (a.terminated, a.truncated) == (b.terminated, b.truncated)


@pytest.mark.parametrize(
    ("lengths", "returns", "share", "chosen"),
    [
        ((5, 3, 7, 2, 3), (1, 9, 4, 8, 2), 1.0, (0, 1, 2, 3, 4)),
        ((5, 3, 7, 2, 3), (1, 9, 4, 8, 2), 0.25, (1, 3)),  # 3 + 2 of 20 steps; the next would make it 12
        ((5, 3, 7, 2, 3), (1, 9, 4, 8, 2), 0.59, (1, 3)),  # 11.8 is 11: rounded down, one short of the next
        ((5, 3, 7, 2, 3), (1, 9, 4, 8, 2), 0.6, (1, 2, 3)),
        ((5, 3, 7, 2, 3), (1, 9, 4, 8, 2), 0.01, (1,)),  # the best one always
        ((2, 2, 2, 2), (3, 3, 3, 3), 0.5, (0, 1)),  # of equals the first recorded
        ((4, 1, 1, 1), (2, 8, 9, 1), 0.99, (0, 1, 2)),
        ((1, 5, 1, 3), (4, 3, 2, 1), 0.3, (0,)),  # the second does not fit, and none after it is taken instead
    ],
)
def test_the_best_are_taken_by_the_rule_of_the_papers_code(lengths, returns, share, chosen):
    assert tuple(best_episodes(recorded(lengths, returns), share)) == chosen


def test_taken_episodes_are_those_that_were_recorded():
    dataset = recorded((3, 1, 4, 2), (1, 2, 3, 4))
    part = take(dataset, [3, 0, 1], "chosen by hand")
    assert part.offsets.tolist() == [0, 2, 5, 6]
    assert all(same(part.episode(i), dataset.episode(j)) for i, j in enumerate((3, 0, 1)))
    assert part.notes[-1] == "3 of 4 episodes taken: chosen by hand"
    assert part.returns == pytest.approx([4, 1, 2])  # and not what was worked out for the whole
    assert part.fingerprint != dataset.fingerprint
    assert take(dataset, range(4), "all") is dataset
    with pytest.raises(DataError, match="made: none: no episode is left of 4"):
        take(dataset, [], "none")


def test_a_share_is_drawn_by_the_seed_and_a_larger_one_holds_the_smaller():
    dataset = recorded([1] * 40, range(40))
    drawn = [set(sample_episodes(dataset, share, 7).tolist()) for share in (0.001, 0.25, 0.5, 1.0)]
    assert [len(each) for each in drawn] == [1, 10, 20, 40]
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]
    assert drawn[1] == set(sample_episodes(dataset, 0.25, 7).tolist())
    assert drawn[1] != set(sample_episodes(dataset, 0.25, 8).tolist())


@pytest.mark.parametrize("final", [0, 1])
def test_joined_datasets_are_their_episodes_one_after_the_other(final):
    a, b = recorded((3, 1), (1, 2), "a", final), recorded((2, 5, 1), (3, 4, 5), "b", final)
    both = join([a, b])
    assert (both.name, both.num_episodes, both.num_steps) == ("a + b", 5, 12)
    for i, (part, j) in enumerate([(a, 0), (a, 1), (b, 0), (b, 1), (b, 2)]):
        assert same(both.episode(i), part.episode(j))
    assert both.parts == (DatasetSource("a", None, a.fingerprint, 1.0), DatasetSource("b", None, b.fingerprint, 1.0))
    assert join([a]) is a


def test_a_fraction_of_each_is_taken():
    a, b = recorded([1] * 10, range(10), "a"), recorded([1] * 20, range(20), "b")
    each, one = join([a, b], [0.5, 1.0], seed=3), join([a, b], [0.5], seed=3)
    assert (each.num_episodes, one.num_episodes) == (25, 15)
    assert [part.fraction for part in each.parts + one.parts] == [0.5, 1.0, 0.5, 0.5]
    assert join([a], [0.5], seed=3).num_episodes == 5
    assert "5 of 10 episodes taken: a fraction of 0.5, drawn by seed 3" in str(each.notes)


def test_what_cannot_be_joined_is_refused_by_name():
    a = recorded((3,), (1,), "a", action_space=spaces.Box(-1, 1, (2,)))
    wide = recorded((3,), (1,), "wide", action_space=spaces.Box(-5, 5, (2,)))
    with pytest.raises(DataError, match=r"wide: its action_space is not that of a: .*bounds"):
        join([a, wide])
    with pytest.raises(DataError, match="3 fractions for 2 datasets"):
        join([a, a], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"at most 1, not 0.5 1.5"):
        join([a, a], [0.5, 1.5])


def test_a_joined_dataset_has_the_environment_and_the_reference_that_its_parts_agree_on():
    a = replace(recorded((3,), (1,), "a"), environment=EnvironmentSpec("Payday-v0"), reference=Reference(0, 1, "a"))
    silent, other = replace(a, environment=None), replace(a, environment=EnvironmentSpec("Echo-v0"))
    assert join([silent, a]).environment == a.environment
    assert join([a, a]).reference == a.reference
    assert join([a, replace(a, reference=None)]).reference is None
    different = join([a, other])
    assert different.environment is None
    assert different.reference is None
    assert "different environments, Payday-v0, Echo-v0" in different.notes[-1]


# Runs.


SMALL = Config(
    model=ModelConfig(width=8, num_layers=1, context_length=3),
    training=TrainingConfig(steps=2, batch_size=4, evaluate_every=0, precision="float32"),
    evaluation=EvaluationConfig(calibration=False),
)


def test_a_run_learns_from_the_best_alone(payday, tmp_path):
    run = train(payday, replace(SMALL, data=DataConfig(top_fraction=0.1)), tmp_path / "run")
    best = np.sort(payday.returns)[-6:]
    assert run.dataset["episodes"] == 6
    assert run.dataset["targets"][0] >= best.min()  # and not a quantile of the whole
    assert run.model.return_scale != train(payday, SMALL, tmp_path / "all").model.return_scale
    with pytest.raises(CheckpointError, match=r"top_fraction was 0.1, now 1.0"):
        train(payday, SMALL, tmp_path / "run", resume=True)


def test_a_resumed_run_names_the_part_that_is_another(payday, tmp_path):
    other = replace(payday, name="other/coins-v0", rewards=payday.rewards * 2)
    changed = replace(other, rewards=payday.rewards * 3)
    train(join([payday, other]), SMALL, tmp_path / "run")
    train(join([payday, other]), SMALL, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"trained on dataset other/coins-v0, its fingerprint differs now"):
        train(join([payday, changed]), SMALL, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"trained on dataset payday/coins-v0, its fraction differs now"):
        train(join([payday, other], [0.5, 1.0]), SMALL, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"trained on dataset payday/coins-v0 \+ other/coins-v0, its name"):
        train(payday, SMALL, tmp_path / "run", resume=True)


def test_a_run_of_before_there_was_a_choice_goes_on(payday, tmp_path):
    from transformer.files import write_json

    model, training = replace(SMALL.model, observation_noise=0.0), replace(SMALL.training, learning_rate_floor=0.1)
    early = replace(SMALL, model=model, training=training)
    train(payday, early, tmp_path / "run")
    document = read_json(tmp_path / "run" / "run.json")
    del document["config"]["data"], document["dataset"]["parts"]
    del document["config"]["model"]["observation_noise"], document["config"]["training"]["learning_rate_floor"]
    write_json(tmp_path / "run" / "run.json", document)
    before = Config.from_json(document["config"])
    assert before.data == DataConfig(balanced=0.0, from_start=0.0)  # what there was then
    assert (before.model, before.evaluation) == (early.model, early.evaluation)
    assert before.training.learning_rate_floor == 0.1
    train(payday, early, tmp_path / "run", resume=True)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="top_fraction must be"):
        DataConfig(top_fraction=share)


UNLIKE = {
    "choices": (np.arange(12) % 2, np.arange(12) % 3 - 1, spaces.Discrete(3, start=-1)),
    "buttons": (np.eye(12, 2, dtype=int), np.full((12, 2), 4), spaces.MultiDiscrete([5, 5])),
    "flags and buttons": (np.eye(12, 2, dtype=bool), np.full((12, 2), 4), spaces.MultiDiscrete([5, 5])),
    "halves": (np.full((12, 2), 0.2), np.full((12, 2), 0.9), spaces.Box(-1, 1, (2,), np.float64)),
    "unbounded": (np.full((12, 2), 0.7), np.full((12, 2), 1.9), spaces.Box(-np.inf, np.inf, (2,), np.float64)),
    "whole and not": (np.arange(12) % 2, np.linspace(-1, 1, 12), spaces.Box(-1, 1, (), np.float64)),
    "a vector of one": (np.arange(12) % 2, np.linspace(-1, 1, 12)[:, None], spaces.Box(-1, 1, (1,), np.float64)),
    "by name": (
        {"a": np.arange(12) % 2, "b": np.zeros(12)},
        {"a": np.arange(12) % 3, "b": np.ones(12)},
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (), np.float64)),
    ),
}


def unlike(actions, name="some", **more) -> Dataset:
    return from_arrays(
        observations=np.arange(24.0).reshape(12, 2),
        actions=actions,
        rewards=np.ones(12),
        lengths=[4, 8],
        name=name,
        **more,
    )


@pytest.mark.parametrize("of_it", UNLIKE)
def test_spaces_of_several_are_inferred_from_all_of_them(of_it):
    first, second, space = UNLIKE[of_it]
    for one, other in ((first, second), (second, first)):
        joined = join([unlike(one), unlike(other, "other")])
        assert joined.action_space == space
        assert joined.inferred == ("action_space", "observation_space")
        told = [note for note in joined.notes if "action_space is declared nowhere" in note]
        assert told == [f"action_space is declared nowhere and inferred: {space} (--spaces says otherwise)"]
        again = join([unlike(one, action_space=space), unlike(other, "other", action_space=space)])
        assert again.inferred == ("observation_space",)
        assert joined.fingerprint == again.fingerprint
        assert joined.parts == again.parts  # so that a run which declares its space takes the same data up again


def test_a_space_that_somebody_declares_is_that_of_the_others_where_they_fit():
    one, other = unlike(np.arange(12) % 2), unlike(np.arange(12) % 3, "other", action_space=spaces.Discrete(3))
    for joined in (join([one, other]), join([other, one])):
        assert joined.action_space == spaces.Discrete(3)
        assert joined.inferred == ("observation_space",)
        told = "some: action_space Discrete(2) is inferred, and taken as that of other, Discrete(3)"
        assert told in joined.notes
    for numbers, space in (
        (np.arange(12) % 4, spaces.Discrete(3)),  # no such choice
        (np.arange(12) / 2, spaces.Discrete(30)),  # no choices
        (np.zeros((12, 2)), spaces.Box(-1, 1, (3,))),
        (np.full((12, 2), 1.5), spaces.Box(-1, 1, (2,))),  # beyond its bounds
        ({"a": np.arange(12)}, spaces.Discrete(12)),
    ):
        sample = np.zeros((12, *space.shape), space.dtype)
        with pytest.raises(DataError, match="--spaces declares one"):
            join([unlike(numbers), unlike(sample, "other", action_space=space)])
    with pytest.raises(DataError, match="--spaces declares one"):
        join([one, unlike(np.zeros((12, 2)))])
    with pytest.raises(DataError, match="--spaces declares one"):
        join([one, unlike({"a": np.arange(12) % 2})])


def seen(numbers, name, **more) -> Dataset:
    """Two episodes, whose observations are these numbers; the last ones of each are its final observations."""
    arrays = {"actions": np.zeros((8, 2)), "rewards": np.ones(8), "lengths": [3, 5]}
    return from_arrays(observations=np.asarray(numbers), name=name, **arrays, **more)


def test_a_space_is_taken_where_the_final_observations_fit_it_too():
    there = seen([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], "there", observation_space=spaces.Discrete(3))
    fitting = seen([0, 1, 1, 1, 0, 1, 0, 1, 0, 2], "fitting")
    joined = join([fitting, there])
    assert joined.observation_space == spaces.Discrete(3)
    assert joined.final_observations["value"].tolist() == [1, 2, 0, 0]
    with pytest.raises(DataError, match=r"its observation_space is not that of there"):
        join([there, seen([0, 1, 1, 1, 0, 1, 0, 1, 0, 7], "beyond")])
    with pytest.raises(DataError, match=r"beyond: episode 1, final observation: 7 is outside Discrete\(3\)"):
        seen([0, 1, 1, 1, 0, 1, 0, 1, 0, 7], "beyond", observation_space=spaces.Discrete(3))


def test_what_is_mapped_and_takes_another_type_is_mapped_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr("envs.datasets.array_files.CHUNK", 3)
    mapped = np.memmap(tmp_path / "rows", np.int64, "w+", shape=(8, 2))
    mapped[:] = np.arange(16).reshape(8, 2)
    found = _declared(mapped, spaces.Box(-np.inf, np.inf, (2,), np.float64))
    assert found._mmap is not None
    assert (found.dtype, found.tolist()) == (np.float64, mapped.tolist())


def test_the_same_data_twice_is_said():
    one, other = unlike(np.arange(12) % 2), unlike(np.arange(12) % 2 * 2, "other")
    note = "the same data more than once, some: its episodes count as often"
    assert note in join([one, one]).notes
    assert note in join([one, other, one]).notes
    assert not any("more than once" in said for said in join([one, other]).notes)


def test_seen_numbers_of_several_are_inferred_from_all_of_them():
    seen = {"actions": np.zeros((12, 2)), "rewards": np.ones(12), "lengths": [4, 8]}
    after = np.append(np.arange(1, 12), 3)
    one = from_arrays(observations=np.arange(12), next_observations=after, **seen)
    other = from_arrays(observations=np.arange(12) + 0.5, next_observations=after + 0.5, **seen)
    joined = join([one, other])
    assert joined.observation_space == spaces.Box(-np.inf, np.inf, (), np.float64)
    assert joined.final_observations["value"].tolist() == [4, 3, 4.5, 3.5]
    assert joined.observations["value"].dtype == np.float64


def test_a_run_of_inferred_spaces_goes_on(tmp_path, capsys):
    for name, actions in (("two", np.arange(12) % 2), ("three", np.arange(12) % 3)):
        arrays = {"observations": np.arange(24.0).reshape(12, 2), "actions": actions, "rewards": np.ones(12)}
        np.savez(tmp_path / f"{name}.npz", **arrays, lengths=np.full(4, 3))
    command = [
        "train",
        *(str(tmp_path / f"{name}.npz") for name in ("two", "three")),
        "--output",
        str(tmp_path / "run"),
    ]
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--batch-size", "4"]
    assert main([*command, *small, "--steps", "2"]) == 0
    assert main([*command, "--resume", "--steps", "3"]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    capsys.readouterr()


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for name, episodes in (("a", 4), ("b", 6)):
        np.savez(
            tmp_path / f"{name}.npz",
            observations=rng.normal(size=(3 * episodes, 2)),
            actions=rng.uniform(-1, 1, (3 * episodes, 2)),
            rewards=rng.normal(size=3 * episodes),
            lengths=np.full(episodes, 3),
        )
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def test_several_datasets_by_the_command_line(files, tmp_path, capsys):
    small = [
        "--width",
        "8",
        "--num-layers",
        "1",
        "--context-length",
        "3",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--held-out",
        "0",
    ]
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", *files, "--fraction", "0.5", "1.0", *output, *small]) == 0
    document = read_json(tmp_path / "run" / "run.json")
    assert (document["dataset"]["name"], document["dataset"]["episodes"]) == ("a + b", 8)
    assert [(part["name"], part["fraction"]) for part in document["dataset"]["parts"]] == [("a", 0.5), ("b", 1.0)]
    capsys.readouterr()
    assert main(["train", *files, *output, "--resume", "--steps", "3"]) == 0  # the fraction is the run's own
    assert main(["train", files[0], *output, "--resume", "--steps", "4"]) == 2
    assert "trained on dataset a, its fraction differs now" in capsys.readouterr().err.splitlines()[-1]
    assert main(["inspect", *files]) == 0
    assert "episodes      10, 30 steps" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "run"), files[0]]) == 2
    assert "dt inspect takes one run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_no_dataset_is_refused(command, capsys):
    assert main([command]) == 2
    assert "named" in capsys.readouterr().err


def test_selection_needs_no_torch():
    statement = "import sys, envs.datasets.selection, dt.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", statement], check=False).returncode == 0


def test_a_hundred_files_of_one_episode_each(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(100):
        rows = [f"{number},{i},{rng.normal():.3f},{i % 2},1.0" for i in range(5)]
        (tmp_path / f"log-{number:02}.csv").write_text("\n".join(["episode,step,observation,action,reward", *rows]))
    files = sorted(map(str, tmp_path.glob("*.csv")))
    started = time.perf_counter()
    assert main(["inspect", *files]) == 0
    assert time.perf_counter() - started < 20  # a second or two; a loaded machine is slow
    told = capsys.readouterr().out
    assert "dataset       log-00 + 99 more (" in told
    assert "episodes      100, 500 steps" in told
    assert "log-00, log-01" in told
    assert "log-11 and 88 more: no final observations" in told
    assert len(told.splitlines()) < 40
    small = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--steps", "2", "--batch-size", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["train", *files, *small, "--fraction", "1"]) == 0
        assert (tmp_path / "runs" / "log-00+99more-s0").is_dir()  # named after so many, and not after them all
        assert main(["train", *files, "--output", "runs/log-00+99more-s0", "--resume", "--steps", "3"]) == 0
        assert main(["evaluate", "runs/log-00+99more-s0"]) == 0
