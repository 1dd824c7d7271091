"""Every kind of space: it trains, plays, is masked, drawn from and saved, all from what the space itself says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ACTIONS, OBSERVATIONS, echo_dataset, ends, random_mask
from gymnasium import spaces

from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig
from dt.data import TrajectoryDataset
from dt.encoders import ContinuousHead, DiscreteHead, ImageEncoder, is_image, make_state_encoder
from dt.errors import PolicyError
from dt.evaluation import evaluate
from dt.learning.run import load_run
from dt.learning.training import prepare, train
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from envs.datasets.dataset import Dataset
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, RandomPolicy, rollout
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import allowed_choices, choices, leaf_spaces, to_leaves
from transformer.config import TrainingConfig
from transformer.errors import ConfigError
from transformer.positions import LearnedPositions

SMALL = {
    "width": 24,
    "num_layers": 1,
    "context_length": 3,
    "dropout": 0.0,
    "observation_noise": 0.0,
    "activation": "gelu",
}


def model_for(dataset, **changes) -> DecisionTransformer:
    torch.manual_seed(0)
    model = DecisionTransformer(ModelConfig(**{**SMALL, **changes}), dataset.observation_space, dataset.action_space, 5)
    model.fit(dataset)
    return model


def opinionated(dataset) -> DecisionTransformer:
    """An untrained model whose logits are far from one another."""
    model = model_for(dataset)
    with torch.no_grad():
        for head in model.heads:
            head.linear.weight.normal_()
    return model


def test_it_is_right_or_wrong_as_it_is_asked(echo):
    model, data = model_for(echo), TrajectoryDataset(echo, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        loss, count = model(data.gather(data.indices(0, step, 12)))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    wrong, right = evaluate(ReturnConditionedPolicy(model), echo.environment, [0.0, 5.0], episodes=5)
    assert wrong.mean_return < 1
    assert right.mean_return > 4


def test_every_parameter_gets_a_gradient_and_padding_none(echo):
    model, batch = model_for(echo, conditioning="token"), TrajectoryDataset(echo, 3).gather(torch.arange(0, 200, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert not batch.mask.all()

    def spoil(x):
        real = batch.mask.reshape(*batch.mask.shape, *[1] * (x.dim() - 2))
        return torch.where(real, x, torch.full_like(x, float("nan") if x.dtype.is_floating_point else 99))

    def gradients(batch):
        model.zero_grad()
        model(batch)[0].backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    clean, dirty = (
        gradients(batch),
        gradients(
            replace(
                batch,
                states={name: spoil(x) for name, x in batch.states.items()},
                actions={name: spoil(x) for name, x in batch.actions.items()},
            )
        ),
    )
    for name, gradient in clean.items():
        assert torch.equal(gradient, dirty[name]), name
        if "table" not in name:  # of a table only the rows that the data shows
            assert gradient.abs().sum() > 0, name
    assert all(head.linear.weight.grad.abs().sum(1).gt(0).all() for head in model.heads)  # each single output


def test_a_run_comes_back_and_plays_as_it_did(echo, tmp_path):
    training = TrainingConfig(steps=2, batch_size=3, evaluate_every=0, device="cpu", precision="float32")
    evaluation = EvaluationConfig(target_return=(4.0,), temperature=1.0, calibration=False)
    run = train(echo, Config(model=ModelConfig(**SMALL), training=training, evaluation=evaluation), tmp_path / "run")
    back = load_run(tmp_path / "run")
    assert (back.model.observation_space, back.model.action_space) == (echo.observation_space, echo.action_space)
    assert back.config == run.config
    states = run.model.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in back.model.state_dict().items())
    ours, theirs = (
        evaluate(ReturnConditionedPolicy(model, temperature=1.0), echo.environment, [4.0], episodes=2)
        for model in (run.model, back.model)
    )
    assert ours == theirs


def test_the_loss_is_the_sum_of_its_leaves_as_a_plain_loop():
    dataset = echo_dataset("box", "nested")
    model, batch = opinionated(dataset), TrajectoryDataset(dataset, 3).gather(torch.tensor([0, 3, 4, 17]))
    outputs, total = model.predict(batch), 0.0
    for b, t in batch.mask.nonzero().tolist():
        for name, leaf in leaf_spaces(dataset.action_space).items():
            action, output = batch.actions[name][b, t].reshape(-1), outputs[name][b, t]
            if isinstance(leaf, spaces.Box):
                total += (output - action).square().mean().item()  # its bounds are [-1, 1]: units are actions
            else:
                for i, (count, start) in enumerate(zip(*choices(leaf), strict=True)):
                    total -= output[i, :count].log_softmax(-1)[action[i] - start].item()
    loss, count = model(batch)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert count == 3 + 2 + 1 + 3


# One episode, learned by heart.

SIXTEEN = list(itertools.islice(zip(itertools.cycle(OBSERVATIONS), itertools.cycle(ACTIONS)), 16))
"""Each kind of observation, and each kind of action at least twice."""


def one_by_one(space) -> list[dict]:
    """The lowest value of a space, then values that differ from it in one place alone: a number, or a whole colour."""
    low, high = ends(space)
    found = [low]
    for name, leaf in leaf_spaces(space).items():
        places = list(np.ndindex(leaf.shape))
        if is_image(leaf):
            colours = int(np.argmin(leaf.shape))
            places = [(slice(None),) * colours + (i,) for i in range(leaf.shape[colours])] if leaf.shape[2:] else [...]
        for place in places:
            least, most = (float(np.max(end[name][place])) for end in (low, high))
            between = [(least + most) / 2] if isinstance(leaf, spaces.Box) else np.arange(least + 1, most)
            for value in (*between, most):
                found.append({**low, name: low[name].copy()})
                found[-1][name][place] = value
    return found


def unlike_the_first(space, count: int) -> list[dict]:
    """An action, then others that differ from it in every place, so that it cannot pass for any of them."""
    rng, (low, high) = np.random.default_rng(0), ends(space)

    def action(name, leaf, is_first):
        if isinstance(leaf, spaces.Box):
            share = 0.1 if is_first else rng.uniform(0.4, 0.9, leaf.shape)
            return (low[name] + share * (high[name] - low[name])).astype(leaf.dtype)
        return low[name] if is_first else rng.integers(low[name] + 1, high[name] + 1, dtype=leaf.dtype)

    return [{name: action(name, leaf, i == 0) for name, leaf in leaf_spaces(space).items()} for i in range(count)]


def one_episode(observation: str, action: str, seen: list[dict], done: list[dict]) -> Dataset:
    """An episode of these observations and actions that earns nothing: no return tells its steps apart."""
    data, steps = echo_dataset(observation, action), len(seen)
    return replace(
        data,
        observations={name: np.stack([step[name] for step in seen]) for name in seen[0]},
        actions={name: np.stack([step[name] for step in done]) for name in done[0]},
        rewards=np.zeros(steps, np.float32),
        offsets=np.array([0, steps]),
        terminated=np.ones(1, bool),
        truncated=np.zeros(1, bool),
    )


@pytest.fixture
def stopped_clock(monkeypatch):
    """All timesteps look alike: else they alone would tell which step of the one episode it is."""
    forward = LearnedPositions.forward
    monkeypatch.setattr(LearnedPositions, "forward", lambda table, steps: forward(table, steps * 0))


def learn_by_heart(dataset, folder, **changes):
    """Train on the one episode: the model as it was left, and all windows of the episode with its outputs for them."""
    training = TrainingConfig(
        steps=300,
        batch_size=8,
        learning_rate=5e-3,
        learning_rate_floor=0.1,
        warmup_steps=10,
        gradient_clip=1.0,
        evaluate_every=0,
        device="cpu",
        precision="float32",
    )
    config = Config(
        data=DataConfig(balanced=0.0, from_start=0.0),
        model=ModelConfig(**{"positions": "timesteps", "rotary": False, **SMALL, **changes}),
        training=training,
    )
    trainer = prepare(dataset, config, folder)
    trainer.start()
    trainer.train()
    batch = TrajectoryDataset(dataset, config.model.context_length).gather(torch.arange(dataset.num_steps))
    return trainer.model.eval(), batch, trainer.model.predict(batch)


def check_known_by_heart(model, batch, outputs, first=0, error=1e-3):
    """Over 95 % of each choice, or an error below `error`, at each place of a window from `first` on."""
    for place in range(first, batch.mask.shape[1]):
        real = batch.mask[:, place]
        for head, name in zip(model.heads, model.action_leaves, strict=True):
            output, actions = outputs[name][real, place], batch.actions[name][real, place]
            if isinstance(head, ContinuousHead):
                assert head.loss(output[:, None], actions[:, None]).mean() < error, (name, place)
            else:
                right = (head.choose(output) == actions).double().reshape(len(actions), -1).mean(0)  # of each choice
                assert right.min() > 0.95, (name, place, right)


@pytest.mark.parametrize(("observation", "action"), SIXTEEN, ids=[" -> ".join(pair) for pair in SIXTEEN])
def test_one_episode_is_learned_by_heart_played_and_kept(observation, action, tmp_path, stopped_clock):
    """Only what is seen tells the steps apart: were one place of it not heard, steps would pass for the first."""
    seen = one_by_one(OBSERVATIONS[observation])
    dataset = one_episode(observation, action, seen, unlike_the_first(ACTIONS[action], len(seen)))
    conditioning = "decoupled" if SIXTEEN.index((observation, action)) % 2 else "token"
    model, batch, outputs = learn_by_heart(dataset, tmp_path / "run", conditioning=conditioning)
    check_known_by_heart(model, batch, outputs)
    back = load_run(tmp_path / "run").model
    assert all(torch.equal(actions, model.act(batch)[name]) for name, actions in back.act(batch).items())
    first, second = (
        evaluate(ReturnConditionedPolicy(m), dataset.environment, [1.0], episodes=3) for m in (model, back)
    )
    assert first == second
    assert (len(first[0].returns), first[0].lengths) == (3, (5, 5, 5))


@pytest.mark.parametrize("action", ACTIONS)
def test_the_action_before_is_heard_in_every_place(action, tmp_path, stopped_clock):
    """All steps look alike and each action follows on another: only the action before tells which one comes."""
    done = one_by_one(ACTIONS[action])
    dataset = one_episode("number", action, [ends(OBSERVATIONS["number"])[0]] * (len(done) + 1), [*done, done[0]])
    model, batch, outputs = learn_by_heart(dataset, tmp_path / "run", context_length=2, conditioning="single")
    check_known_by_heart(model, batch, outputs, first=1, error=1e-2)


# Masks.


def masked(action: str) -> EnvironmentSpec:
    return EnvironmentSpec("Echo-v0", {"observation": "discrete", "action": action, "masked": True})


def check_masks(action, temperature):
    """Echo-v0 itself refuses an action against its mask; without its masks the same model takes such actions."""
    dataset = echo_dataset("discrete", action)
    policy = ReturnConditionedPolicy(opinionated(dataset), temperature=temperature)
    (result,) = evaluate(policy, masked(action), [2.0], episodes=20)
    assert not result.failures, result.failures[0]


KINDS_OF_CHOICES = ["discrete", "multi-discrete", "multi-discrete of two axes", "multi-binary", "nested"]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("action", KINDS_OF_CHOICES)
def test_nothing_is_chosen_that_the_mask_forbids(action, temperature):
    check_masks(action, temperature)


@pytest.mark.parametrize("action", KINDS_OF_CHOICES)
def test_the_random_policy_heeds_masks_too(action):
    with Environments(masked(action).make, 2) as environments:
        assert (
            len(rollout(environments, RandomPolicy(ACTIONS[action]), [EpisodeRequest(seed, seed) for seed in range(9)]))
            == 9
        )


def test_the_likeliest_of_what_is_allowed_is_taken():
    head = DiscreteHead(spaces.MultiDiscrete([2, 3], start=[0, 5]), 4)
    logits = torch.tensor([[[1.0, 2.0, -torch.inf], [3.0, 1.0, 2.0]]])
    for flags, expected in (((1, 1), (1, 1, 1)), [1, 5]), (((1, 0), (0, 1, 1)), [0, 7]), (((0, 1), (0, 1, 0)), [1, 6]):
        allowed = allowed_choices(spaces.MultiDiscrete([2, 3], start=[0, 5]), flags)["value"]
        assert head.choose(logits, torch.from_numpy(allowed)[None]).tolist() == [expected]


def test_a_mask_that_cannot_be_used_is_named_with_environment_and_step():
    dataset = echo_dataset("box", "discrete")
    policy = ReturnConditionedPolicy(model_for(dataset))
    policy.reset(1.0)
    policy.act(np.zeros((2, 3)), {"action_mask": np.array([1, 0, 0], np.int8)})
    with pytest.raises(
        PolicyError, match=r"environment 0, step 1: action mask of Discrete\(3, start=5\): it allows nothing"
    ):
        policy.act(np.zeros((2, 3)), {"action_mask": np.zeros(3, np.int8)})
    assert policy.act(np.zeros((2, 3)), {}) in dataset.action_space


# Drawing.


def check_frequencies(temperature, with_masks):
    """What 4,000 environments draw is what softmax(logits / temperature) says, among what each choice's mask allows."""
    dataset, count = echo_dataset("discrete", "nested"), 4_000
    model = model_for(dataset)
    for head in model.heads:
        torch.nn.init.zeros_(head.linear.weight)
        torch.nn.init.normal_(head.linear.bias)
    policy = ReturnConditionedPolicy(model, temperature=temperature, rows=500)
    mask = random_mask(dataset.action_space, np.random.default_rng(5)) if with_masks else None
    for env in range(count):
        policy.begin(env, 0.0, seed=env)
    actions = policy.choose(dict.fromkeys(range(count), 0), {env: {"action_mask": mask} for env in range(count)})
    drawn = [to_leaves(dataset.action_space, action) for action in actions.values()]
    allowed, several = allowed_choices(dataset.action_space, mask), 0
    for head, name in zip(model.heads, model.action_leaves, strict=True):
        leaf = leaf_spaces(dataset.action_space)[name]
        if isinstance(leaf, spaces.Box):
            assert len({row[name].tobytes() for row in drawn}) == 1  # there is nothing to draw
            continue
        logits = iter(head.linear.bias.tolist())
        for i, (values, start) in enumerate(zip(*choices(leaf), strict=True)):
            weights = np.exp([next(logits) / temperature for _ in range(values)]) * allowed[name][i, :values]
            seen = np.bincount([int(row[name].reshape(-1)[i] - start) for row in drawn], minlength=values)
            expected = count * weights / weights.sum()
            error = np.sqrt(expected * (count - expected).clip(0) / count)
            assert (np.abs(seen - expected) <= 4 * error + 1e-6).all(), f"{name}: {seen}, expected {expected}"
            several += np.count_nonzero(weights) > 1
    assert several >= 3


@pytest.mark.parametrize("with_masks", [False, True])
def test_drawn_actions_are_as_frequent_as_the_model_says(with_masks):
    check_frequencies(0.7, with_masks)


def check_draws_alone_and_together():
    """Drawn from each episode's own seed, whatever plays beside it."""
    dataset = echo_dataset("discrete", "nested")
    policy = ReturnConditionedPolicy(opinionated(dataset), temperature=1.0)
    alone, few, all_at_once = (
        evaluate(policy, masked("nested"), [1.0, 4.0], episodes=9, seed=5, num_envs=n) for n in (1, 4, 64)
    )
    assert alone == few == all_at_once
    assert len(set(alone[0].returns)) > 5
    assert alone == evaluate(policy, masked("nested"), [1.0, 4.0], episodes=9, seed=5)  # and again
    cold = ReturnConditionedPolicy(policy.model)
    assert alone != evaluate(cold, masked("nested"), [1.0, 4.0], episodes=9, seed=5)


def test_drawn_returns_do_not_depend_on_the_number_of_environments():
    check_draws_alone_and_together()


def test_episodes_with_other_seeds_draw_other_actions():
    dataset = echo_dataset("discrete", "multi-discrete")
    policy = ReturnConditionedPolicy(model_for(dataset), temperature=5.0)

    def actions(seed):
        policy.reset(3.0, seed=seed)
        return [policy.act(0).tolist() for _ in range(5)]

    assert actions(1) == actions(1) != actions(2)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature must .*not.* {temperature}"):
        EvaluationConfig(temperature=temperature)
    with pytest.raises(PolicyError, match=f"temperature must be 0 or more and finite, not {temperature}"):
        ReturnConditionedPolicy(model_for(echo_dataset("box", "box")), temperature=temperature)


# Images.


def test_which_leaves_are_images():
    def box(*shape, kind=np.uint8):
        return spaces.Box(0, 255, shape, kind)

    for space in (box(84, 84), box(3, 36, 36), box(36, 50, 1), box(4, 84, 84, 3), box(2, 3, 40, 40)):
        assert is_image(space), space
    for space in (box(128), box(7, 7, 3), box(84, 35), box(84, 84, kind=np.float32), spaces.Discrete(3)):
        assert not is_image(space), space


def test_the_convolutions_are_the_papers():
    encoder = ImageEncoder(spaces.Box(0, 255, (84, 84), np.uint8), 128, frame_stack=4)
    first, _, second, _, third, *_ = encoder.convolutions
    assert [tuple(c.weight.shape) for c in (first, second, third)] == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert [c.stride[0] for c in (first, second, third)] == [4, 2, 1]
    assert encoder.linear.in_features == 3136
    frames = torch.randint(256, (2, 3, 4, 84, 84), dtype=torch.uint8)
    by_hand = torch.stack([encoder.linear(encoder.convolutions(window.float() / 255)).tanh() for window in frames])
    torch.testing.assert_close(encoder(frames), by_hand, rtol=0, atol=1e-6)


def check_channels():
    """Colours behind height and width give what they give before them."""
    first, last = (
        make_state_encoder(spaces.Box(0, 255, shape, np.uint8), 8, 2) for shape in ((3, 37, 41), (37, 41, 3))
    )
    last.load_state_dict(first.state_dict())
    x = torch.randint(256, (2, 5, 2, 3, 37, 41), dtype=torch.uint8)
    torch.testing.assert_close(last(x.permute(0, 1, 2, 4, 5, 3)), first(x), rtol=0, atol=1e-6)
    assert not torch.allclose(first(x), first(x.flip(2)))  # the order of frames counts,
    assert not torch.allclose(first(x), first(x.flip(3)))  # and that of colours


def test_channels_last_are_channels_first_on_transposed_data():
    check_channels()


def test_a_stack_of_frames_needs_images():
    with pytest.raises(ConfigError, match="frame_stack 4: the observations hold no images"):
        model_for(echo_dataset("box", "box"), frame_stack=4)
    with pytest.raises(ConfigError, match="context_length must be at most 1000000, not 1000000000000"):
        ModelConfig(context_length=10**12)
    with pytest.raises(ConfigError, match="frame_stack must be at least 1, not 0"):
        ModelConfig(frame_stack=0)


def test_the_ends_of_an_integer_type_are_no_bounds():
    ends = np.iinfo(np.int64)
    box = spaces.Box(np.array([ends.min, -4]), np.array([ends.max, 6]), (2,), np.int64)
    head, actions = ContinuousHead(box, 8), np.array([[10, 1], [30, 1]])
    head.fit(actions)
    assert head.bounded.tolist() == [False, True]
    assert (head.center.tolist(), head.scale.tolist()) == ([20.0, 1.0], [10.0, 5.0])
    loss = head.loss(torch.tensor([[[-1.0, 0.0], [0.5, 0.0]]]), torch.from_numpy(actions)[None])
    assert loss[0].tolist() == pytest.approx([0.0, 0.125])
