"""Acting: the window a policy shows its model is the training data's, and a return does not depend on company."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ACTION, CONTEXT, STATE, Payday, small_model
from gymnasium import spaces

from dt.asking.alignment import rank_correlation
from dt.asking.targets import default_targets
from dt.cached_windows import CachedWindows
from dt.config import ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.errors import PolicyError
from dt.evaluation import TargetResult, best_target, check_environment, evaluate, labels
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from dt.window import History
from envs.errors import EnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError


def replay(policy, dataset, episode):
    """Play a recorded episode through the policy, its own choices overruled by the record; yields each shown batch."""
    rows = range(int(dataset.offsets[episode]), int(dataset.offsets[episode + 1]))
    policy.reset(float(np.sum(dataset.rewards[rows.start : rows.stop], dtype=np.float64)))
    for row in rows:
        policy.act(dataset.observations["value"][row].astype(np.float64))
        history = policy._histories[0]
        yield row, policy._batch([history])
        history.set_action({"value": dataset.actions["value"][row]})
        policy.feed(float(dataset.rewards[row]))


def check_replay(model, dataset):
    """Every window that the policy shows equals, bit for bit, the window that training cuts from the same record."""
    window = model.config.context_length
    data = TrajectoryDataset(dataset, window, frame_stack=model.config.frame_stack)
    policy = ReturnConditionedPolicy(model, rows=2)
    for episode in range(dataset.num_episodes):
        for row, shown in replay(policy, dataset, episode):
            first = max(int(dataset.offsets[episode]), row - window + 1)
            length = row - first + 1
            trained = data.gather(torch.tensor([first]))
            assert shown.mask[0].tolist() == [True] * length + [False] * (window - length)
            assert not shown.mask[1].any()
            for ours, theirs in (
                (shown.states["value"][0, :length], trained.states["value"][0, :length]),
                (shown.actions["value"][0, : length - 1], trained.actions["value"][0, : length - 1]),
                (shown.returns_to_go[0, :length], trained.returns_to_go[0, :length]),
                (shown.timesteps[0, :length], trained.timesteps[0, :length]),
            ):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs)


def test_a_replayed_episode_gives_exactly_the_training_inputs(model, dataset):
    check_replay(model, dataset)


@pytest.mark.parametrize(("context_length", "frame_stack"), [(CONTEXT, 3), (1, 4), (3, 1)])
def test_replayed_pictures_are_stacked_as_in_training(pictures, context_length, frame_stack):
    model = small_model("token", pictures, context_length=context_length, frame_stack=frame_stack)
    check_replay(model, pictures)


def trained_on(dataset, conditioning="single", **changes):
    torch.manual_seed(0)
    config = ModelConfig(conditioning=conditioning, width=24, num_layers=2, context_length=5, **changes)
    model = DecisionTransformer(config, dataset.observation_space, dataset.action_space, 20)
    model.fit(dataset)
    data = TrajectoryDataset(dataset, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        loss, count = model(data.gather(data.indices(0, step, 64)))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("conditioning", ["token", "decoupled", "single"])
def test_asking_for_more_earns_more(payday, conditioning):
    model = trained_on(payday, conditioning)
    results = evaluate(ReturnConditionedPolicy(model), payday.environment, [0.0, 3.0, 6.0, 10.0], episodes=5, seed=0)
    achieved = [result.mean_return for result in results]
    assert achieved == sorted(achieved)
    assert achieved[0] <= 2
    assert achieved[-1] >= 8
    assert rank_correlation(results) == pytest.approx(1)


def test_behaviour_cloning_plays_the_same_whatever_it_is_asked_for(payday):
    """It has learned the coins' mean: about half the steps are heads, so it neither takes all nor leaves all."""
    policy = ReturnConditionedPolicy(trained_on(payday, "none"), temperature=1.0)
    low, high = evaluate(policy, payday.environment, [0.0, 10.0], episodes=8, seed=0)
    assert low.returns == high.returns
    assert 2 < low.mean_return < 8
    assert rank_correlation([low, high]) == 0


def follow(policy, environments=5, steps=11):
    """Environments that begin one after the other: at each step the expected window, and what was chosen."""
    K, rng, told = policy.model.config.context_length, np.random.default_rng(0), {}
    for now in range(steps + environments - 1):
        playing = [env for env in range(environments) if env <= now < env + steps]
        if now < environments:
            policy.begin(now, 7.0 + now, seed=0)
            told[now] = {"state": [], "action": [], "return": [7.0 + now], "length": 0}
        seen = {env: rng.normal(3, 2, STATE).astype(np.float32) for env in playing}
        for env, action in policy.choose(seen, {env: {} for env in playing}).items():
            past = told[env]
            past["length"] = max(1, K // 2) if past["length"] == K else past["length"] + 1
            past["state"].append(seen[env])
            yield env, window(past), action
            past["action"].append(action)
            policy.receive(env, reward := float(rng.normal()))
            past["return"].append(past["return"][-1] - reward)


def window(past):
    """The last steps of an episode as a batch without padding."""
    last, now = slice(-past["length"], None), len(past["state"])
    actions = [*past["action"], np.zeros(ACTION, np.float32)]  # the last is not chosen yet
    return Batch(
        states={"value": torch.from_numpy(np.stack(past["state"][last]))[None]},
        actions={"value": torch.from_numpy(np.stack(actions[last]))[None]},
        returns_to_go=torch.tensor(past["return"][last], dtype=torch.float32)[None],
        timesteps=torch.arange(now)[None, last],
        mask=torch.ones(1, past["length"], dtype=torch.bool),
    )


def check_cached(model):
    for env, batch, action in follow(ReturnConditionedPolicy(model, cached=True, rows=3)):
        difference = np.abs(action - model.act(batch)["value"][0].numpy()).max()
        assert difference <= 3e-5, f"environment {env}, step {batch.timesteps[0, -1]}"


@pytest.mark.parametrize("context_length", [1, 2, 5, 8])
@pytest.mark.parametrize("conditioning", ["token", "decoupled", "none", "single"])
def test_cached_is_a_plain_forward_over_the_same_window(dataset, conditioning, context_length):
    check_cached(small_model(conditioning, dataset, context_length=context_length))


def dropped_steps_are_remembered(patch):
    add_state = History.add_state

    def never_restarted(self, state):
        add_state(self, state)
        self.window_moved = self.elapsed == 1

    patch.setattr(History, "add_state", never_restarted)


def rows_without_a_step_move_on(patch):
    go_on = CachedWindows.go_on

    def all_move(self, number, batch, guidance):
        outputs = go_on(self, number, batch, guidance)
        for cache in self._caches[number]:
            cache.lengths += ~batch.mask.any(1) * self.model.tokens_per_step
        return outputs

    patch.setattr(CachedWindows, "go_on", all_move)


@pytest.mark.parametrize(
    ("plant", "where"),
    [(dropped_steps_are_remembered, "environment 0, step 8"), (rows_without_a_step_move_on, "environment 1")],
)
def test_a_cache_that_is_wrong_is_noticed(dataset, monkeypatch, plant, where):
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=where):
        check_cached(small_model("token", dataset, context_length=8))


def test_bf16_acts_almost_as_float32(dataset):
    model = small_model("token", dataset)
    policies = [ReturnConditionedPolicy(model, precision=precision) for precision in ("float32", "bf16")]
    first, second = ([action for _, _, action in follow(policy, 1, 4)] for policy in policies)
    assert 0 < np.abs(np.stack(first) - np.stack(second)).max() < 0.1


HOW = {"cached": {"cached": True}, "bf16": {"precision": "bf16"}, "both": {"precision": "bf16", "cached": True}}


@pytest.fixture
def narrow_products_by_row(monkeypatch):
    """Narrow products of fewer than 16 rows depend on the row, as they do in the last bit on some processors."""
    linear = torch.nn.functional.linear

    def by_row(x, weight, bias=None):
        y = linear(x, weight, bias)
        rows = y[..., 0].numel()
        few = 1 < rows < 16 and y.shape[-1] < 16
        return y + torch.arange(rows).view(*y.shape[:-1], 1) * 1e-3 if few else y

    monkeypatch.setattr(torch.nn.functional, "linear", by_row)


@pytest.mark.usefixtures("narrow_products_by_row")
@pytest.mark.parametrize("kind", ["token", "decoupled", "none", "single", *HOW])
def test_returns_do_not_depend_on_the_number_of_environments(kind):
    """In Hopper-v5 a difference in the last bit of one action would grow into other returns within a few steps."""
    environment = EnvironmentSpec("Hopper-v5", max_episode_steps=60)
    with environment.make() as env:
        observations, actions = env.observation_space, env.action_space
    torch.manual_seed(1)
    conditioning = "token" if kind in HOW else kind
    config = ModelConfig(conditioning=conditioning, width=32, num_layers=2, context_length=7)
    model = DecisionTransformer(config, observations, actions, 60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    alone, few, all_at_once = (
        evaluate(
            ReturnConditionedPolicy(model, **HOW.get(kind, {})),
            environment,
            [100.0, 900.0],
            episodes=9,
            seed=5,
            num_envs=n,
        )
        for n in (1, 4, 64)
    )
    assert alone == few == all_at_once
    assert len({value for result in alone for value in result.returns}) == (9 if kind == "none" else 18)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_loop_of_ones_own_earns_what_evaluate_reports(payday, temperature):
    model = trained_on(payday)
    env, policy = gymnasium.make("Payday-v0"), ReturnConditionedPolicy(model, temperature=temperature)
    observation, _ = env.reset(seed=7)
    policy.reset(6.0, seed=7)
    total, done = 0.0, False
    while not done:
        action = policy.act(observation)
        assert env.action_space.contains(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        policy.feed(reward)
        total, done = total + reward, terminated or truncated
    assert (total,) == evaluate(policy, payday.environment, [6.0], episodes=1, seed=7)[0].returns


def test_what_a_policy_cannot_do_is_said(model, dataset):
    policy = ReturnConditionedPolicy(model)
    with pytest.raises(PolicyError, match="act before reset: call reset"):
        policy.act(np.zeros(5))
    with pytest.raises(PolicyError, match="feed before reset: call reset"):
        policy.feed(1.0)
    with pytest.raises(TypeError, match="target_return"):
        policy.reset()
    with pytest.raises(PolicyError, match="must be finite, not nan"):
        policy.reset(float("nan"))
    policy.reset(1.0)
    with pytest.raises(PolicyError, match=r"shape \(6,\), expected \(5,\)"):
        policy.act(np.zeros(6))
    with pytest.raises(PolicyError, match="step 0: observation value is not finite"):
        policy.act(np.full(5, np.nan))
    for _ in range(model.max_timesteps):
        policy.act(np.zeros(5))
        policy.feed(0.0)
    with pytest.raises(
        PolicyError, match=r"environment 0, step 13: past the model's table of 13 timesteps; .*--max-timesteps"
    ):
        policy.act(np.zeros(5))
    endless = ReturnConditionedPolicy(small_model("single", dataset, positions="none"))
    endless.reset(1.0)
    for _ in range(2 * model.max_timesteps):
        endless.act(np.zeros(5))


@pytest.mark.parametrize("seen", [[3, 0], [-1, 0], [0, 9], [0.5, 0.0]])
def test_a_choice_that_the_model_does_not_know_is_refused(dataset, seen):
    """The row of a different number would be read without a word."""
    space = spaces.MultiDiscrete([2, 3])
    rows = np.random.default_rng(0).integers(0, [2, 3], (dataset.num_steps, 2))
    known = replace(dataset, observation_space=space, observations={"value": rows})
    policy = ReturnConditionedPolicy(small_model("single", known))
    policy.reset(1.0)
    policy.act(np.array([1, 2]))
    with pytest.raises(PolicyError, match="environment 0, step 1: observation value"):
        policy.act(np.array(seen))
    policy.act(np.array([0, 2]))  # nothing of the refused one was taken in


def test_an_environment_that_does_not_fit_is_refused(model):
    with pytest.raises(EnvError, match=r"CartPole-v1: its observation space does not fit the data's: value:"):
        check_environment(EnvironmentSpec("CartPole-v1"), model)


def test_an_environment_whose_episodes_are_longer_than_the_models_table_is_refused():
    config = ModelConfig(width=8, num_layers=1, positions="timesteps", rotary=False)
    model = DecisionTransformer(config, Payday.observation_space, Payday.action_space, 15)
    check_environment(EnvironmentSpec("Payday-v0", max_episode_steps=15), model)
    for spec in (EnvironmentSpec("Payday-v0"), EnvironmentSpec("Payday-v0", max_episode_steps=20)):
        with pytest.raises(EnvError, match=r"up to 20 steps, the model knows 15 timesteps; .*--max-timesteps 20"):
            check_environment(spec, model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes": 0}, "episodes must be at least 1, not 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"targets": []}, "targets must hold at least one return"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(model, changes, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(ReturnConditionedPolicy(model), EnvironmentSpec("Payday-v0"), **{"targets": [1.0], **changes})


def test_labels_of_targets_are_short_and_never_the_same():
    assert labels([5.0, 172.98123, 1e6]) == ["5", "172.981", "1e+06"]
    assert labels([5.0, 5.0]) == ["5", "5"]
    near = [5.0, np.nextafter(5.0, 6.0), 3423.471, 3423.4712]
    assert len(set(labels(near))) == 4


def test_default_targets_are_quantiles_up_to_the_maximum():
    assert default_targets(np.arange(101.0)) == (5, 25, 50, 75, 95, 100)
    assert default_targets(np.full(9, 7.0)) == (7.0,)
    assert default_targets(np.arange(101.0), conditioned=False) == (100,)


def test_the_best_target_earned_most_and_is_the_lowest_of_equals():
    results = [TargetResult(target, (mean,), (1,), None) for target, mean in ((9.0, 4), (5.0, 7), (3.0, 7), (1.0, 2))]
    assert best_target(results) == 3.0


def test_rank_correlation_is_spearmans_and_zero_for_a_policy_that_ignores_its_target():
    def results(*achieved):
        return [TargetResult(float(i), (value,), (1,), None) for i, value in enumerate(achieved)]

    assert rank_correlation(results(1, 2, 9)) == pytest.approx(1)
    assert rank_correlation(results(9, 2, 1)) == pytest.approx(-1)
    assert rank_correlation(results(5, 5, 5)) == 0
    assert rank_correlation(results(1, 1, 2, 0)) == pytest.approx(-0.3162278, abs=1e-6)
    assert np.isnan(rank_correlation(results(1)))


def test_small_returns_are_not_rounded_away():
    assert default_targets(np.array([0.01, 0.02, 0.04])) == pytest.approx((0.011, 0.015, 0.02, 0.03, 0.038, 0.04))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(
            np.array([-0.3, 0.1, -1.3]), np.array([0.9, 0.4, 0.7]), dtype=np.float32
        ),  # centre + scale is past it
        spaces.Box(-0.1, 0.1, (3,), np.float64),  # float32's 0.1 is larger
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [-1, 1])
def test_actions_never_leave_their_bounds_by_a_last_bit(dataset, space, side):
    model = DecisionTransformer(ModelConfig(width=8, num_layers=1), dataset.observation_space, space, 13)
    with torch.no_grad():
        model.heads[0].linear.bias.fill_(50.0 * side)  # tanh: exactly 1 or -1
    policy = ReturnConditionedPolicy(model)
    policy.reset(1.0)
    action = policy.act(np.zeros(5))
    assert space.contains(action)
    np.testing.assert_array_equal(action, space.high if side > 0 else space.low)
    np.testing.assert_array_equal(policy._histories[0].actions["value"][0], action.astype(np.float32))


def test_whole_number_actions_are_the_nearest_ones(dataset):
    space = spaces.Box(-1, 1, (3,), np.int64)
    model = DecisionTransformer(ModelConfig(width=8, num_layers=1), dataset.observation_space, space, 13)
    with torch.no_grad():
        model.heads[0].linear.bias.copy_(torch.tensor([2.0, -2.0, 0.1]))  # tanh: 0.96, -0.96, 0.1
    policy = ReturnConditionedPolicy(model)
    policy.reset(1.0)
    assert policy.act(np.zeros(5)).tolist() == [1, -1, 0]
