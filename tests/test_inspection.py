"""What `dt inspect` tells before training: shares, policies, targets, and every problem of a broken dataset."""

import json
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import small_model
from gymnasium import spaces
from test_datasets import FLAT, random_episodes, root, write  # noqa: F401 (root is a fixture)

from dt.cli import main
from dt.data import return_scale
from dt.inspection import describe_dataset, plot_dataset, return_histogram, return_predictability
from envs import from_arrays
from envs.simulate.scores import Reference, reference_for


def coins(biases, steps=30):
    """Episodes of coins, one bias each, of which every head earns 1."""
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.random(steps) < bias for bias in biases]).astype(int)
    observations = rng.normal(size=(len(actions), 2))
    lengths = np.full(len(biases), steps)
    return from_arrays(observations=observations, actions=actions, rewards=actions.astype(float), lengths=lengths)


def line(text: str, label: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"{label} ")]
    return found


def test_several_policies_are_told_from_ones_luck():
    several, one = coins(np.linspace(0, 1, 200)), coins(np.full(200, 0.5))
    assert return_predictability(several) > 0.4
    assert return_predictability(one) < 0.05
    assert "several: an episode's first 7 actions predict" in line(describe_dataset(several), "policies")
    printed = line(describe_dataset(one), "policies")
    assert "probably one policy: the first actions do not predict the return" in printed
    assert "behaviour cloning" in printed


def test_policies_of_continuous_actions_are_told_apart_too():
    rng, strengths = np.random.default_rng(0), np.repeat(np.linspace(-1, 1, 150), 12)
    noise = rng.normal(size=(1800, 3))
    arrays = {"observations": rng.normal(size=(1800, 2)), "lengths": np.full(150, 12)}
    several = from_arrays(**arrays, actions=strengths[:, None] + noise, rewards=strengths + rng.normal(size=1800))
    one = from_arrays(**arrays, actions=noise, rewards=rng.normal(size=1800))
    assert return_predictability(several) > 0.4
    assert return_predictability(one) < 0.05


def test_few_episodes_do_not_tell_and_equal_returns_do():
    assert "20 episodes are too few" in line(describe_dataset(coins(np.linspace(0, 1, 20))), "policies")
    printed = line(describe_dataset(coins(np.ones(20))), "policies")
    assert "probably one policy: most earn 30 to 30, so the return cannot be chosen" in printed
    printed = line(describe_dataset(coins([0.5])), "policies")
    assert (
        "unknown: one episode does not show whether there were several; a Decision Transformer is behaviour" in printed
    )


def test_constant_dimensions_and_numbers_at_a_bound_are_counted():
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(10, 5)), rng.uniform(-0.9, 0.9, (10, 2))
    observations[:, [1, 3]], actions[[2, 5], 0], actions[7, 1] = 4.0, (1, 1.5), -1
    box = spaces.Box(-1, 1, (2,), np.float64)
    arrays = {"observations": observations, "actions": actions, "rewards": np.arange(10.0), "action_space": box}
    text = describe_dataset(from_arrays(**arrays, lengths=[5, 5])).splitlines()
    after = {label: text[[row.startswith(label) for row in text].index(True) + 1].strip() for label in ("obs", "act")}
    assert after["obs"] == "2 of 5 dimensions never vary"
    assert after["act"] == "15.0 % of the numbers are at a bound or beyond it"


def test_targets_and_return_scale_are_those_of_training(dataset):
    text = describe_dataset(replace(dataset, rewards=np.repeat([1.0, 2.0, 0.0, 4.0], dataset.lengths)))
    assert line(text, "targets").split()[1:] == ["0.45", "2.25", "12.5", "23.5", "27.1", "28"]
    model = small_model("token", dataset)
    assert return_scale(dataset) == pytest.approx(model.return_scale.item(), rel=1e-6)


def test_d4rls_constants_on_other_data_are_warned_of(payday):
    warned = "these are D4RL's constants, and this is not D4RL's data"
    constants = replace(reference_for("Hopper-v5"), source="the dataset's own metadata")
    assert warned in describe_dataset(replace(payday, reference=constants))
    assert warned not in describe_dataset(replace(payday, name="D4RL/hopper/medium-v2", reference=constants))
    assert warned not in describe_dataset(replace(payday, reference=Reference(0, 10, "mine")))
    assert "not normalised" in line(describe_dataset(replace(payday, reference=None)), "score")


@pytest.mark.parametrize("returns", [[2.5], [2.5, 2.5, 2.5], [0.6, 0.6000000000000001], [2.0**53, 2.0**53 + 2]])
def test_returns_that_differ_by_rounding_only_are_one_line(returns):
    found = return_histogram(np.array(returns))
    assert float(found.split()[0]) == pytest.approx(returns[0], rel=1e-4)
    assert found.endswith(f" in each of {len(returns)} episodes")


def test_the_histogram_counts_every_episode():
    rows = return_histogram(np.array([0.0, 0.0, 0.0, 10.0])).splitlines()
    assert [int(row.split()[3]) for row in rows] == [3, *[0] * 8, 1]
    assert len(rows[0].split()[4]) == 40


@pytest.mark.parametrize("returns", [[0.6, 0.6000001], [-1e300, 1e300]])
def test_returns_that_hardly_differ_and_far_ones_have_a_histogram(returns):
    lines = return_histogram(np.array(returns)).splitlines()
    assert sum(int(line.split()[3]) for line in lines) == len(returns)


def test_a_picture_of_a_dataset(payday, tmp_path):
    plot_dataset(payday, tmp_path / "returns.png")
    assert (tmp_path / "returns.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_inspect_draws_and_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["inspect", "hopper/replay-v0", "--plot", str(tmp_path / "returns.png")]) == 0
    assert (tmp_path / "returns.png").exists()
    assert "policies      several" in capsys.readouterr().out
    assert main(["inspect", "hopper/replay-v0", "--plot", str(tmp_path / "no" / "returns.png")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_inspect_lists_every_problem(root, capsys):  # noqa: F811
    identity = write("flat/broken-v0", random_episodes(*FLAT, lengths=[3] * 25), *FLAT)
    path = root / identity / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        for i in range(25):
            actions = file[f"episode_{i}/actions"][()]
            del file[f"episode_{i}/actions"]
            file[f"episode_{i}/actions"] = actions[1:]
    assert main(["inspect", identity]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == f"dt: {path}: episode_0/actions: shape (2,), expected (3,)"
    assert (len(lines), lines[-1]) == (21, "dt: and 5 more")
    assert main(["train", identity]) == 2
    assert capsys.readouterr().err.splitlines() == [f"{lines[0]} (and 24 more; `dt inspect` lists them)"]


def cartpole_file(path, **more):
    """A flat file that could be CartPole's and says so nowhere."""
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(0, 0.05, (12, 4)), "rewards": np.ones(12), "lengths": [4, 8]}
    np.savez(path, actions=np.arange(12) % 2, **arrays, **more)
    return str(path)


@pytest.mark.parametrize("recorded_in", [None, "CartPole-v0"])
def test_a_file_is_inspected_in_the_environment_that_it_would_be_trained_in(tmp_path, capsys, recorded_in):
    more = {} if recorded_in is None else {"metadata": json.dumps({"env_spec": {"id": recorded_in}})}
    path = cartpole_file(tmp_path / "flat.npz", **more)
    assert main(["inspect", path]) == 0
    printed = capsys.readouterr().out
    none = "none named: --environment ID names one to play in"
    assert (
        line(printed, "environment")
        == f"environment   {none if recorded_in is None else 'CartPole-v0, at most 200 steps'}"
    )
    assert "observation_space is declared nowhere and inferred" in printed
    assert main(["inspect", path, "--environment", "CartPole-v1"]) == 0
    printed = capsys.readouterr().out
    assert line(printed, "environment") == "environment   CartPole-v1, at most 500 steps"
    assert "inferred" not in printed
    assert line(printed, "observations").startswith("observations  Box([-4.8")
    small = ["--width", "8", "--num-layers", "1", "--steps", "1", "--batch-size", "4", "--episodes", "1"]
    small += ["--no-calibration"]
    run = ["--output", str(tmp_path / "run"), "--target-return", "5", *small]
    assert main(["train", path, "--environment", "CartPole-v1", *run]) == 0
    assert printed in capsys.readouterr().err


def test_the_environment_that_is_named_has_its_own_limit_and_reference(capsys):
    assert main(["inspect", "hopper/replay-v0"]) == 0
    own = capsys.readouterr().out
    assert main(["inspect", "hopper/replay-v0", "--environment", "Hopper-v5"]) == 0
    assert capsys.readouterr().out == own
    kwargs = ["--environment-kwargs", '{"reset_noise_scale": 0.1}']
    assert main(["inspect", "hopper/replay-v0", "--environment", "Hopper-v5", *kwargs]) == 0
    assert "not normalised" in line(capsys.readouterr().out, "score")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{flat}", "--environment", "NoSuch-v3"], "environment NoSuch-v3: not registered"),
        (["{flat}", "--environment", "Acrobot-v1"], "observations: shape (12, 4), expected (12, 6)"),
        (["hopper/replay-v0", "--environment", "CartPole-v1"], "its observation space does not fit the data's"),
        (["{flat}", "--environment-kwargs", '{"a": 1}'], "--environment-kwargs needs --environment"),
        (["{flat}", "--import", "no_such_module"], "--import no_such_module: ModuleNotFoundError: No module named"),
    ],
)
def test_an_environment_that_is_none_or_does_not_fit_is_refused(tmp_path, capsys, arguments, words):
    flat = cartpole_file(tmp_path / "flat.npz")
    assert main(["inspect", *(flat if argument == "{flat}" else argument for argument in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_a_run_is_told_of_without_options_for_data(tmp_path, capsys):
    path, run = cartpole_file(tmp_path / "flat.npz"), str(tmp_path / "run")
    small = ["--width", "8", "--num-layers", "1", "--steps", "1", "--batch-size", "4", "--no-calibration"]
    assert main(["train", path, "--output", run, *small]) == 0
    for option in (["--environment", "CartPole-v1"], ["--skip-bad-episodes"], ["--plot", str(tmp_path / "x.png")]):
        assert main(["inspect", run, *option]) == 2
        assert f"{run}: dt inspect takes one run, without options or other names" in capsys.readouterr().err
    assert main(["inspect", run]) == 0


def bandit(rewards, length=1, episodes=200):
    """Episodes of actions and rewards that know nothing of each other."""
    rng, steps = np.random.default_rng(0), length * episodes
    arrays = {"observations": rng.random((steps, 4)), "actions": rng.integers(0, 5, steps)}
    return from_arrays(**arrays, rewards=rewards, lengths=np.full(episodes, length), terminated=np.ones(episodes))


def test_nothing_is_predicted_where_nothing_is_earned_after_the_first_actions():
    one_step = bandit(np.random.default_rng(1).random(200))
    early = bandit(np.where(np.arange(4000) % 20 < 2, np.random.default_rng(1).random(4000), 0), length=20)
    for dataset, first in ((one_step, "first action every"), (early, "first 5 actions every")):
        assert return_predictability(dataset) is None
        policies = line(describe_dataset(dataset), "policies")
        assert "unknown: after an episode's" in policies
        assert first in policies
        assert "%" not in policies


@pytest.mark.parametrize("choices", [50, 5000, 10**9])
def test_many_choices_are_inspected_at_once(choices):
    rng = np.random.default_rng(0)
    dataset = from_arrays(
        observations=rng.normal(size=(4000, 2)),
        actions=rng.integers(0, choices, 4000),
        rewards=rng.random(4000),
        lengths=np.full(200, 20),
        action_space=spaces.Discrete(choices),
    )
    begun = time.process_time()
    assert return_predictability(dataset) < 0.05
    assert time.process_time() - begun < 5


def test_the_strength_of_a_policy_is_seen_in_the_commonest_of_many_choices():
    rng, episodes, steps = np.random.default_rng(0), 200, 20
    good = np.repeat(np.linspace(0, 1, episodes), steps)
    actions = np.where(rng.random(episodes * steps) < good, 3, rng.integers(0, 5000, episodes * steps))
    arrays = {"observations": rng.normal(size=(len(actions), 2)), "rewards": (actions == 3).astype(float)}
    lengths, space = np.full(episodes, steps), spaces.Discrete(5000)
    assert return_predictability(from_arrays(**arrays, actions=actions, lengths=lengths, action_space=space)) > 0.4


def test_ten_thousand_dimensions_take_a_line_and_a_moment():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(120, 10007)).astype(np.float32)
    dataset = from_arrays(
        observations=wide, actions=wide[:, :7001], rewards=rng.normal(size=120), lengths=np.full(120, 1)
    )
    begun = time.process_time()
    text = describe_dataset(dataset)
    assert time.process_time() - begun < 10
    assert "10007 dimensions: min " in text
    assert len(text) < 5000


def test_each_dimensions_range_is_printed():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(60, 3)) * [1, 1e-9, 1e9]
    arrays = {"actions": rng.integers(0, 2, 60), "rewards": rng.normal(size=60), "lengths": [60]}
    rows = describe_dataset(from_arrays(observations=observations, **arrays)).splitlines()
    first = next(i for i, row in enumerate(rows) if row.startswith("observations")) + 1
    assert rows[first].split() == ["dimension", "min", "max", "mean", "std"]
    for i in range(3):
        number, *figures = rows[first + 1 + i].split()
        column = observations[:, i]
        assert number == str(i)
        expected = [column.min(), column.max(), column.mean(), column.std()]
        np.testing.assert_allclose([float(figure) for figure in figures], expected, rtol=1e-4)


def warned(observations) -> list[str]:
    """The warnings of a dataset with these observations."""
    steps = len(observations)
    dataset = from_arrays(
        observations=observations, actions=np.arange(steps) % 2, rewards=np.arange(float(steps)), lengths=[steps]
    )
    lines = describe_dataset(dataset).splitlines()
    return [row.removeprefix("warning       ") for row in lines if row.startswith("warning")]


def test_sentinels_outliers_and_lost_digits_are_warned_of_and_nothing_else_is():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(5000, 3))
    assert warned(plain) == []
    assert warned(1.7e9 + plain) == []  # float64 holds it, and so do the model's units
    assert warned(np.round(plain).astype(np.int64)) == []
    marked = plain.copy()
    marked[::100, 1] = -999999
    assert [row[:60] for row in warned(marked)] == [
        "observations: dimension 1: -999999 in 1 % of the steps is far from al"[:60]
    ]
    spike = plain.copy()
    spike[77, 2] = 1e5
    (found,) = warned(spike)
    assert found.startswith("observations: dimension 2: outliers; 1e+05 in dimension 2 is 7")
    (found,) = warned((1.7e9 + 60 * plain).astype(np.float32))
    assert "dimensions 0, 1, 2: float32 keeps multiples of 128 only at 1.7e+09" in found


def test_small_returns_keep_their_digits():
    text = describe_dataset(bandit(1e-8 * np.random.default_rng(0).random(200)))
    assert "e-0" in line(text, "returns")
    assert "0.0 0.0" not in text


def test_one_hot_actions_are_choices():
    chosen = np.random.default_rng(0).integers(0, 4, 100)
    arrays = {"observations": np.zeros((100, 2)), "rewards": np.ones(100), "lengths": [100]}
    for kind in (np.int64, np.float32, np.bool_, np.uint8):
        dataset = from_arrays(actions=np.eye(4)[chosen].astype(kind), **arrays)
        assert dataset.action_space == spaces.Discrete(4)
        assert dataset.actions["value"].tolist() == chosen.tolist()
        assert any("actions are one-hot" in note for note in dataset.notes)
        declared = from_arrays(
            actions=np.eye(4)[chosen].astype(kind), action_space=spaces.Discrete(4, start=3), **arrays
        )
        assert declared.actions["value"].tolist() == (chosen + 3).tolist()
    for other in (np.eye(4)[chosen] * 2, np.ones((100, 4)), np.eye(4)[[1] * 100], np.eye(4)[chosen] - 0.5):
        assert not isinstance(from_arrays(actions=other, **arrays).action_space, spaces.Discrete)


def test_ids_of_many_items_are_asked_about():
    actions = np.random.default_rng(0).integers(0, 5000, 300)
    actions[7] = 4999
    dataset = from_arrays(observations=np.zeros((300, 2)), actions=actions, rewards=np.ones(300), lengths=[300])
    asked = '--spaces \'{"action_space": {"type": "Discrete", "n": 5000}}\''
    assert [note for note in dataset.notes if note.endswith(asked)]
