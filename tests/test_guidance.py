"""Guidance: the return's direction made longer, the plain model untouched at 1, and no return in the plain output."""

import numpy as np
import pytest
import torch
from conftest import CONTEXT, small_model

from dt.asking.guidance import Request
from dt.config import Config, ModelConfig
from dt.data import TrajectoryDataset, returns_to_go
from dt.errors import PolicyError
from dt.evaluation import evaluate
from dt.learning.build import build_model
from dt.model import ReturnModulation
from dt.policy import ReturnConditionedPolicy
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError


@pytest.fixture(params=["single", "decoupled"])
def guided(request, dataset):
    """A model that the return modulates, as if it had learned to listen."""
    model = small_model(request.param, dataset)
    torch.manual_seed(3)
    torch.nn.init.normal_(model.modulation.output.weight, std=0.5)
    torch.nn.init.normal_(model.modulation.output.bias, std=0.5)
    return model.eval()


@pytest.fixture
def windows(dataset):
    return TrajectoryDataset(dataset, CONTEXT).gather(torch.tensor([0, 2, 9, 14]))


def richer(batch, by=50.0):
    return type(batch)(**{**vars(batch), "returns_to_go": batch.returns_to_go + by})


def action(model, batch, guidance):
    w = None if guidance is None else torch.full((len(batch.mask),), float(guidance))
    return model.act(batch, guidance=w)["value"]


def test_guidance_one_is_the_plain_model_to_the_bit(guided, windows):
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            assert torch.equal(action(guided, windows, 1), action(guided, windows, None))


def test_no_return_leaks_into_the_plain_output(guided, windows):
    assert torch.equal(action(guided, windows, 0), action(guided, richer(windows), 0))
    assert not torch.equal(action(guided, windows, None), action(guided, richer(windows), None))


def test_each_row_has_its_own_guidance(guided, windows):
    mixed = guided.act(windows, guidance=torch.tensor([1.0, 0.0, 3.0, 1.5]))["value"]
    for row, w in enumerate([1, 0, 3, 1.5]):
        torch.testing.assert_close(mixed[row], action(guided, windows, w)[row])


def check_combination(modulation, head):
    """The output before the head is n + w (c - n), and a linear head's output the same combination of two outputs."""
    x, returns = torch.randn(3, 2, 8), torch.randn(3, 2)
    plain, conditioned = modulation(x, returns, torch.zeros(3)), modulation(x, returns)
    for w in (0.5, 1.0, 2.0, 3.0):
        guided = modulation(x, returns, torch.full((3,), w))
        torch.testing.assert_close(guided, plain + w * (conditioned - plain), rtol=1e-4, atol=1e-5)
        two = head(plain) + w * (head(conditioned) - head(plain))
        torch.testing.assert_close(head(guided), two, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, modulation.norm(x))


def listening():
    torch.manual_seed(0)
    modulation = ReturnModulation(8)
    for parameter in modulation.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return modulation


def test_guidance_is_the_combination_of_two_outputs_through_a_linear_head():
    check_combination(listening(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize("planted", ["square", "shift_only", "leak"])
def test_a_guidance_that_is_wrong_is_noticed(planted, monkeypatch):
    def wrong(self, x, returns, guidance=None):
        scale, shift = self.output(torch.nn.functional.gelu(self.input(returns[..., None]))).chunk(2, dim=-1)
        w = torch.ones(len(x), 1, 1) if guidance is None else guidance[:, None, None]
        if planted == "square":
            return self.norm(x) * (1 + w**2 * scale) + w**2 * shift
        if planted == "shift_only":
            return self.norm(x) * (1 + scale) + w * shift
        return self.norm(x) * (1 + w * scale) + w * shift + 0.1 * returns[..., None]

    monkeypatch.setattr(ReturnModulation, "forward", wrong)
    with pytest.raises(AssertionError):
        check_combination(listening(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize("cached", [False, True])
def test_returns_do_not_depend_on_the_number_of_environments_with_guidance(payday, cached):
    model = small_model("single", payday)
    torch.nn.init.normal_(model.modulation.output.weight, std=0.5)
    how = {"guidance": 2.5, "context_length": 2, "cached": cached}
    requests = [Request(3.0, 2.0), 5.0, Request(8.0, 0.5)]
    alone, many = (
        evaluate(ReturnConditionedPolicy(model, **how), EnvironmentSpec("Payday-v0"), requests, episodes=3, **counts)
        for counts in ({"num_envs": 1}, {"num_envs": 7})
    )
    assert [result.returns for result in alone] == [result.returns for result in many]


def test_a_shorter_window_at_play_is_the_model_of_those_steps(dataset):
    model = small_model("single", dataset)
    policy, short = ReturnConditionedPolicy(model), ReturnConditionedPolicy(model, context_length=2)
    rng = np.random.default_rng(0)
    seen = []
    for each in (policy, short):
        each.reset(9.0)
    for _ in range(4):
        state = rng.normal(size=dataset.observation_space.shape).astype(np.float32)
        seen.append((policy.act(state), short.act(state)))
        for each in (policy, short):
            each.feed(0.5)
            each._histories[0].set_action({"value": seen[-1][1]})  # one past for both
    assert np.array_equal(*seen[0])
    assert np.allclose(*seen[1], atol=1e-6)
    assert not np.allclose(*seen[3])
    history = short._histories[0]
    assert history.timesteps.tolist() == [2, 3]
    with pytest.raises(PolicyError, match="context_length must be 1 to"):
        ReturnConditionedPolicy(model, context_length=model.config.context_length + 1)
    with pytest.raises(PolicyError, match="context_length must be 1 to"):
        ReturnConditionedPolicy(model, context_length=0)


@pytest.mark.parametrize("conditioning", ["token", "none"])
def test_guidance_is_refused_where_there_is_no_output_without_the_return(dataset, conditioning):
    with pytest.raises(ConfigError, match="train with --conditioning single or decoupled"):
        ReturnConditionedPolicy(small_model(conditioning, dataset), guidance=2.0)


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf"), 101.0])
def test_a_guidance_that_means_nothing_is_refused(dataset, guidance):
    with pytest.raises(ConfigError, match="guidance must be at least 0"):
        ReturnConditionedPolicy(small_model("single", dataset), guidance=guidance)


def test_hidden_units_begin_at_returns_spread_over_the_data():
    modulation = ReturnModulation(8)
    returns = torch.tensor([0.0, 0.0, 0.0, 1.0, 4.0, 10.0])
    modulation.fit(returns)
    begin = (-modulation.input.bias / modulation.input.weight[:, 0]).sort().values
    expected = torch.tensor([0.0, 0.0, 0.0, 2.0, 10 / 3, 20 / 3, 10.0, 10.0])  # quantiles and even steps
    torch.testing.assert_close(begin, expected, atol=1e-4, rtol=1e-4)
    moved = modulation.input(torch.tensor([[10.0]])) - modulation.input(torch.tensor([[0.0]]))
    assert moved[0].tolist() == pytest.approx([8, -8] * 4, rel=1e-4)
    before = modulation.input.weight.clone()
    modulation.fit(torch.full((5,), 3.0))  # returns that do not vary leave the weights as they are
    assert torch.equal(modulation.input.weight, before)


def test_a_new_model_spreads_the_returns_of_its_data(dataset):
    model = build_model(dataset, Config(model=ModelConfig(width=8, num_layers=1)), None)
    begin = -model.modulation.input.bias / model.modulation.input.weight[:, 0] * model.return_scale
    to_go = returns_to_go(dataset.rewards, dataset.offsets)
    assert begin.min().item() == pytest.approx(to_go.min(), abs=1e-3)
    assert begin.max().item() == pytest.approx(to_go.max(), abs=1e-3)
