"""Nothing is lost to float32 or to an absolute threshold: one easy problem in many units is learned equally well."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs
from dt.config import Config, DataConfig, ModelConfig
from dt.data import TrajectoryDataset, return_scale
from dt.encoders import ContinuousHead, Normalizer
from dt.fitted_units import observation_units
from dt.learning.build import build_model
from dt.learning.run import load_run
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from dt.units import Units
from dt.validation import Validation, choose_episodes
from envs import load
from envs.datasets.statistics import is_rounded, never_varies, statistics, without_marks
from envs.errors import DataError
from transformer.config import TrainingConfig

EPISODES, LENGTH = 31, 13
STEPS = EPISODES * LENGTH
LARGEST = float(np.finfo(np.float32).max)


def two_valued(seed: int = 0):
    """A column of zeros and ones, and one of noise."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 2, STEPS), generator.normal(size=STEPS)


def data_of(column, actions, rewards=None, action_space=None):
    """Episodes in which the first column tells the action."""
    noise = two_valued()[1]
    seen = np.stack([column, (noise * 100).astype(column.dtype) if column.dtype.kind == "i" else noise], 1)
    rewards = np.ones(STEPS) if rewards is None else rewards
    lengths = np.full(EPISODES, LENGTH)
    return envs.from_arrays(
        observations=seen, actions=actions, rewards=rewards, lengths=lengths, action_space=action_space
    )


def quick(**model) -> Config:
    model = {"width": 32, "num_layers": 1, "context_length": 1, "dropout": 0.0, **model}
    training = TrainingConfig(
        precision="float32", steps=60, batch_size=64, evaluate_every=0, warmup_steps=5, learning_rate=5e-3
    )
    return Config(data=DataConfig(held_out=0.1), model=ModelConfig(**model), training=training)


def held_out_error(run, dataset):
    learned, held_out = choose_episodes(dataset, run.config.data, run.config.training.seed)
    return Validation(run.model, learned, held_out).measure().leaves[0]


X = two_valued()[0]
OBSERVATIONS = {
    "as it is": X.astype(float),
    "seconds since 1970": 1.7e9 + 60.0 * X,
    "milliseconds since 1970, integers": 1_700_000_000_000 + 1000 * X,
    "a counter past float32's integers": 2**26 + X,
    "metres on a map": 500000 + 0.01 * X,
    "nano-units": 1e-9 * X,
    "smaller than any float32": 1e-300 * X,
    "larger than any float32": 1e300 * X,
    "a mark of missing numbers": np.where(np.random.default_rng(1).random(STEPS) < 0.01, -999999.0, X),
}


@pytest.mark.parametrize("column", OBSERVATIONS.values(), ids=OBSERVATIONS.keys())
def test_observations_in_any_unit_are_learned_from_and_played_with(column, tmp_path):
    dataset = data_of(column, X)
    run = train(dataset, quick(), tmp_path / "run")
    assert held_out_error(run, dataset).accuracy > 0.97
    policy = ReturnConditionedPolicy(run.model)
    for value in (0, 1):
        policy.reset(float(LENGTH))
        row = np.flatnonzero((value == X) & (column != -999999))[0]
        assert policy.act(dataset.observations["value"][row]) == value


ACTIONS = {
    "as they are": (3.0 * (X - 0.5), None),
    "tiny": (1e-7 * (X - 0.5), None),
    "far from zero": (1e9 + X, None),
    "larger than any float32": (1e300 * (X - 0.5), None),
    "bounds of 1e4": (X - 0.5, 1e4),
    "float32's largest number as bounds": (X - 0.5, LARGEST),
    "bounds past float32": (X - 0.5, 1e300),
    "set points in the thousands": (4000.0 * (X - 0.5), 5000.0),
}


@pytest.mark.parametrize(("actions", "bound"), ACTIONS.values(), ids=ACTIONS.keys())
def test_actions_of_any_unit_and_bounds_are_learned_and_played(actions, bound, tmp_path):
    space = None if bound is None else spaces.Box(-bound, bound, (1,), np.float64)
    dataset = data_of(X.astype(float), actions[:, None], action_space=space)
    run = train(dataset, quick(context_length=3), tmp_path / "run")
    error = held_out_error(run, dataset)
    assert error.error < 0.02 * error.baseline
    policy = ReturnConditionedPolicy(run.model)
    span = actions.max() - actions.min()
    for value in (0, 1):
        policy.reset(float(LENGTH))
        row = np.flatnonzero(value == X)[0]
        assert abs(policy.act(dataset.observations["value"][row])[0] - actions[row]) < 0.1 * span


@pytest.mark.parametrize("unit", [1.0, 1e-8, 1e-30, 1e12])
def test_rewards_of_any_unit_are_heard(unit, tmp_path):
    good = np.repeat(np.arange(EPISODES) % 2, LENGTH)
    dataset = data_of(X.astype(float), good, unit * (1.0 + good))
    run = train(dataset, quick(context_length=2), tmp_path / "run")
    assert held_out_error(run, dataset).accuracy > 0.85
    assert run.model.return_scale.item() == pytest.approx(unit * 5.9, rel=0.2)


def test_returns_that_float32_cannot_hold_are_refused_in_one_line(tmp_path):
    for unit in (1e38, 1e-40):
        dataset = data_of(X.astype(float), X, unit * X)
        with pytest.raises(DataError, match=r"returns-to-go reach .* Scale the rewards\."):
            train(dataset, quick(), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    cloned = build_model(dataset, quick(conditioning="none"), None)  # which hears no return
    assert cloned.return_scale == 1


def test_a_column_of_rounding_noise_is_constant_and_one_of_a_little_more_is_not():
    noise = np.array([0, 1, 2, 1, 0, 2, 1, 1])
    for kind in (np.float32, np.float64):
        for base in (1.0, 1.7e9, 1e-12):
            step = np.spacing(kind(base))
            still, moving = (kind(base) + (noise * times * step).astype(kind) for times in (2, 4))
            assert never_varies(still.min(), still.max())
            assert not never_varies(moving.min(), moving.max())
            for column, constant in ((still, True), (moving, False)):
                normalizer = Normalizer(())
                normalizer.fit(column)
                seen = column if normalizer.units is None else normalizer.units.encode(column)
                spread = float(normalizer(torch.from_numpy(np.asarray(seen))).std(correction=0))
                assert spread < 1e-3 if constant else spread == pytest.approx(1, rel=0.05)
    assert never_varies(7, 7)
    assert not never_varies(2**60, 2**60 + 1)


def test_play_far_outside_the_data_stays_finite_and_in_bounds():
    noise = 1e-17 * two_valued()[1]  # of a sensor that never moved while it was recorded
    for column in (*OBSERVATIONS.values(), noise, np.full(STEPS, 1e39), np.full(STEPS, 5.0)):
        space = spaces.Box(-1e4, 1e4, (1,), np.float64)
        model = build_model(data_of(column, (X - 0.5)[:, None], action_space=space), quick(context_length=3), None)
        policy = ReturnConditionedPolicy(model)
        policy.reset(1.0)
        whole = np.asarray(column).dtype.kind == "i"
        for far in (2**62, -(2**62), 0) if whole else (1e39, -1e300, 1e-300, 1.7e308, 0.0):
            action = policy.act(np.array([far, 0], None if whole else np.float64))
            assert np.isfinite(action).all()
            assert abs(action[0]) < 1e3


def test_ordinary_data_has_no_units_and_its_tensors_are_the_recording():
    seen, acted = np.random.default_rng(0).normal(size=(STEPS, 3)), (X - 0.5)[:, None]
    dataset = envs.from_arrays(observations=seen, actions=acted, rewards=X, lengths=[STEPS])
    model = build_model(dataset, quick(), None)
    assert model.units.to_json() == {}
    data = TrajectoryDataset(dataset, 1, units=model.units)
    assert np.shares_memory(data.states["value"].numpy(), dataset.observations["value"])
    assert not any("units" in name for name in model.state_dict())  # as early versions wrote it


def test_the_window_in_play_is_that_of_training_where_there_are_units(tmp_path):
    actions = (1e9 + X)[:, None]
    dataset = data_of(1.7e9 + 60.0 * X, actions)
    model = build_model(dataset, quick(context_length=4), None)
    data, policy = TrajectoryDataset(dataset, 4, units=model.units), ReturnConditionedPolicy(model, rows=2)
    assert data.states["value"].dtype == data.actions["value"].dtype == torch.float32
    policy.reset(float(LENGTH))
    for row in range(LENGTH):
        policy.act(dataset.observations["value"][row])
        trained = data.gather(torch.tensor([max(0, row - 3)]))
        shown, last = policy._batch([policy._histories[0]]), min(row, 3)
        assert torch.equal(shown.states["value"][0, last], trained.states["value"][0, last])
        if last:
            assert torch.equal(shown.actions["value"][0, last - 1], trained.actions["value"][0, last - 1])
        policy._histories[0].set_action({"value": model.units.actions["value"].encode(actions[row])})
        policy.feed(1.0)


def test_a_run_remembers_its_units_and_one_of_before_them_goes_on_without(tmp_path):
    dataset = data_of(1.7e9 + 60.0 * X, 1e-7 * (X - 0.5)[:, None])
    config = replace(quick(), training=replace(quick().training, steps=4))
    run = train(dataset, config, tmp_path / "run")
    loaded = load_run(tmp_path / "run").model.units
    for kind in ("observations", "actions"):
        ours, theirs = getattr(run.model.units, kind)["value"], getattr(loaded, kind)["value"]
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("offset", "unit", "limit"))
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    del document["units"]
    model = load_run(tmp_path / "run").model
    model.set_units(document.get("units", {}))
    assert model.units.to_json() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"observations": {"value": {"offset": [0, 0], "unit": [1, 0], "limit": [1, 1]}}},
        {"observations": {"value": {"offset": [0, 0, 0], "unit": [1, 1, 1], "limit": [1, 1, 1]}}},
        {"observations": {"value": {"offset": [0, float("nan")], "unit": [1, 1], "limit": [1, 1]}}},
        {"observations": {"value": {"offset": "x", "unit": [1, 1], "limit": [1, 1]}}},
        {"observations": {"value": {}}},
        {"observations": {"elsewhere": {"offset": [0, 0], "unit": [1, 1], "limit": [1, 1]}}},
        {"rewards": {"value": {"offset": [0, 0], "unit": [1, 1], "limit": [1, 1]}}},
    ],
)
def test_units_that_do_not_fit_a_model_are_refused(wrong):
    model = build_model(data_of(X.astype(float), X), quick(), None)
    with pytest.raises(ValueError, match=r"units|could not convert"):
        model.set_units(wrong)


def test_there_and_back_is_the_recording():
    values = np.array([1.7e9, 1.7e9 + 60, 1.7e9 + 0.5])[:, None]
    units = observation_units(values)
    assert np.abs(units.decode(units.encode(values)) - values).max() < 1e-5
    again = Units.from_json(json.loads(json.dumps(units.to_json())), (1,))
    assert np.array_equal(again.encode(values), units.encode(values))


def test_whole_numbers_that_float64_rounds_are_found(tmp_path):
    ids = 2**53 + np.arange(6)
    assert is_rounded(ids)
    assert is_rounded(np.stack([ids.astype(np.float64), np.arange(6) / 7], axis=1))
    for fine in (np.arange(6) + 2**52, np.arange(6) / 7, np.arange(6) * 1e30, (ids + 0.5) / 4, ids.astype(np.float32)):
        assert not is_rounded(fine), fine
    rows = [f"{i // 3},{2**63 + 977 * i},0.5,1" for i in range(6)]
    (tmp_path / "hashes.csv").write_text("\n".join(["episode,action,observation,reward", *rows]) + "\n")
    assert any(note.startswith("actions: whole numbers beyond 2^53") for note in load(tmp_path / "hashes.csv").notes)


def test_statistics_are_numpys_own():
    data = np.random.default_rng(0).normal(size=(1003, 3, 2))
    found = statistics(data)
    np.testing.assert_allclose(found.std, data.std(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean, data.mean(0), atol=1e-12)
    assert np.array_equal(found.low, data.min(0))
    assert np.array_equal(found.reach, np.abs(data).max(0))
    for unit in (1e-200, 1e200):  # whose squares are no float64s
        np.testing.assert_allclose(statistics(data * unit).std, data.std(0) * unit, rtol=1e-12)


def test_a_mark_is_found_and_what_only_looks_like_one_is_not():
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(997, 5))
    columns[::100, 0] = -999999
    columns[::100, 1] = 1e6
    columns[500, 2] = -999999  # once: an outlier
    columns[:, 3] = np.where(generator.random(997) < 0.5, 0.0, 1e6)  # two values
    columns[:, 4] = np.clip(generator.standard_cauchy(997), -10, 10)
    rest, marks = without_marks(columns, statistics(columns))
    assert marks[:2].tolist() == [-999999, 1e6]
    assert np.isnan(marks[2:]).all()
    kept = np.delete(columns[:, 0], np.s_[::100])
    assert (rest.low[0], rest.high[0]) == (kept.min(), kept.max())
    assert rest.std[0] == pytest.approx(kept.std())
    assert rest.std[2] == statistics(columns).std[2]


def test_bounds_count_where_they_say_something_of_the_data():
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    actions[:, 2] = 0.25  # never moves
    for bound, counts in ((1.0, [True, True, True]), (50.0, [True, True, True]), (1e4, [False, False, False])):
        head = ContinuousHead(spaces.Box(-bound, bound, (3,), np.float64), 5)
        head.fit(actions)
        assert head.bounded.tolist() == counts


def test_returns_of_rounding_noise_are_constant():
    dataset = data_of(X.astype(float), X, np.full(STEPS, 0.0))
    assert return_scale(dataset) == 1
    assert return_scale(data_of(X.astype(float), X, 1e-9 * X)) < 1e-8
