"""The Decision Transformer: what each output may depend on, what padding may not do, and what training reaches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ACTION, CONTEXT, STATE, small_model
from gymnasium import spaces
from torch.nn import functional as F

from dt.config import Config, ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.encoders import ContinuousHead, DiscreteHead, Normalizer, make_action_encoder, make_head, make_state_encoder
from dt.model import DecisionTransformer, ReturnModulation, interleave


def gradients(model, batch, step, direction):
    """Gradient of one step's output to each field, for a window without padding."""
    fields = {
        "returns": batch.returns_to_go.clone().requires_grad_(),
        "states": batch.states["value"].clone().requires_grad_(),
        "actions": batch.actions["value"].clone().requires_grad_(),
    }
    free = replace(
        batch,
        returns_to_go=fields["returns"],
        states={"value": fields["states"]},
        actions={"value": fields["actions"]},
    )
    (model.predict(free)["value"][:, step] @ direction).sum().backward()
    found = {name: torch.zeros_like(f) if f.grad is None else f.grad for name, f in fields.items()}
    return {name: gradient.reshape(*gradient.shape[:2], -1).abs().sum(-1) for name, gradient in found.items()}  # (B, T)


@pytest.fixture
def full(dataset) -> Batch:
    """Windows without padding."""
    return TrajectoryDataset(dataset, CONTEXT).gather(torch.tensor([3, 7, 15]))


def check_dependence(model, batch):
    """Each action sees earlier actions, states so far, and returns so far (token), its own (or none in cloning)."""
    direction, conditioning = torch.randn(ACTION), model.config.conditioning
    for step in range(CONTEXT):
        seen = gradients(model, batch, step, direction)
        assert seen["states"][:, : step + 1].gt(0).all()
        assert seen["actions"][:, :step].gt(0).all()
        assert seen["states"][:, step + 1 :].eq(0).all()
        assert seen["actions"][:, step:].eq(0).all()
        earlier, own = seen["returns"][:, :step], seen["returns"][:, step]
        assert own.eq(0).all() if conditioning == "none" else own.gt(0).all()
        assert seen["returns"][:, step + 1 :].eq(0).all()
        assert earlier.gt(0).all() if conditioning == "token" else earlier.eq(0).all()


def test_each_action_depends_on_the_past_alone(model, full):
    assert full.mask.all()
    check_dependence(model, full)


def test_one_token_holds_the_state_and_the_action_before_it(dataset, full):
    """Built by hand: what the Transformer is given, and that it is a third of the paper's tokens."""
    model, given = small_model("single", dataset), []
    model.transformer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model(full)
    (tokens,) = given
    state = model.state_encoders[0](full.states["value"]) + model.timestep_encoder(full.timesteps)
    action = model.action_encoders[0](full.actions["value"])
    expected = [state[:, 0]] + [state[:, t] + action[:, t - 1] for t in range(1, CONTEXT)]
    torch.testing.assert_close(tokens, model.embedding_norm(torch.stack(expected, 1)))
    assert tokens.shape == (3, CONTEXT, 16)


def test_interleave_puts_the_first_of_each_first():
    a, b, c = (torch.full((2, 3, 5), float(i)) + torch.arange(3)[:, None] * 10 for i in range(3))
    assert interleave([a, b, c])[0, :, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]


@pytest.mark.parametrize("junk", [7.0, float("nan"), float("inf")])
def test_padding_changes_neither_loss_nor_outputs_nor_gradients(model, batch, junk):
    def run(given):
        model.zero_grad()
        loss, count = model(given)
        loss.backward()
        return loss, count, model.predict(given)["value"][given.mask], [p.grad.clone() for p in model.parameters()]

    real = batch.mask
    assert not real.all()

    def spoil(x, value=junk):
        return torch.where(real.reshape(*real.shape, *[1] * (x.dim() - 2)), x, torch.full_like(x, value))

    spoiled = replace(
        batch,
        states={"value": spoil(batch.states["value"])},
        actions={"value": spoil(batch.actions["value"])},
        returns_to_go=spoil(batch.returns_to_go),
        timesteps=spoil(batch.timesteps, 999_999),
    )
    clean, dirty = run(batch), run(spoiled)
    assert torch.equal(clean[0], dirty[0])
    assert clean[1] == dirty[1] == int(real.sum())
    assert torch.equal(clean[2], dirty[2])
    assert all(torch.equal(a, b) for a, b in zip(clean[3], dirty[3], strict=True))


def test_the_loss_is_the_mean_over_real_steps_as_a_plain_loop(model, batch, dataset):
    outputs, total = model.predict(batch)["value"], 0.0
    for b, t in batch.mask.nonzero().tolist():
        total += (outputs[b, t] - batch.actions["value"][b, t]).square().mean().item()
    loss, count = model(batch)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert count.item() == int(batch.mask.sum())


def test_every_parameter_gets_a_gradient(model, batch):
    loss, _ = model(batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if name.endswith("key_value.bias"):  # softmax ignores what is added to every key alike: zero by mathematics
            queries, keys, values = gradient.chunk(3)
            assert keys.abs().max() < 1e-6
            assert queries.abs().gt(0).any(), name
            gradient = values
        if name == "timestep_encoder.weight":
            gradient = gradient[batch.timesteps[batch.mask].unique()]
        assert gradient.flatten(1).abs().sum(1).gt(0).all() if gradient.dim() > 1 else gradient.abs().gt(0).any(), name


def test_act_is_the_prediction_at_the_last_real_step(model, batch):
    outputs = model.predict(batch)["value"]
    last = batch.mask.sum(1) - 1
    expected = outputs[torch.arange(len(last)), last]  # the space's bounds are [-1, 1]: units are actions
    torch.testing.assert_close(model.act(batch)["value"], expected, rtol=0, atol=1e-6)
    assert len(set(last.tolist())) > 1


def test_the_normaliser_is_the_datas_and_travels_with_the_weights(model, dataset):
    normalizer = model.state_encoders[0].normalizer
    normal = normalizer(torch.from_numpy(dataset.observations["value"]))
    torch.testing.assert_close(normal.mean(0), torch.zeros(STATE), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(STATE), rtol=0, atol=1e-5)
    fresh = DecisionTransformer(model.config, model.observation_space, model.action_space, model.max_timesteps)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.state_encoders[0].normalizer.mean, normalizer.mean)
    assert fresh.return_scale == model.return_scale != 1


def test_a_dimension_that_never_varies_is_only_centred():
    normalizer = Normalizer((2,))
    normalizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    assert normalizer(torch.tensor([3.0, 6.0])).tolist() == [1.0, 1.0]


def test_bounded_actions_stay_in_their_bounds_and_unbounded_ones_take_the_datas_unit():
    space = spaces.Box(np.array([-2, 0, -np.inf]), np.array([2, 10, np.inf]), dtype=np.float64)
    head = ContinuousHead(space, 7)
    head.fit(np.array([[0, 5, 100.0], [0, 5, 140.0]]))
    output = head(torch.randn(501, 7) * 1000)
    actions = head.choose(output)
    assert actions[:, 0].abs().max() <= 2
    assert 0 <= actions[:, 1].min() <= actions[:, 1].max() <= 10
    assert actions[:, 2].abs().max() > 200
    exact = torch.tensor([[0.5, 0.6, 1.5]])  # in units
    target = torch.tensor([[[1.0, 8.0, 150.0]]], dtype=torch.float64)
    torch.testing.assert_close(head.choose(exact)[0], target[0, 0].float())
    assert head.loss(exact[None], target).abs().max() < 1e-12


def test_discrete_actions_start_where_their_space_starts():
    head = DiscreteHead(spaces.Discrete(3, start=5), 2)
    logits = torch.tensor([[[9.0, 0, 0]], [[0, 0, 9.0]]])  # (B, N, M)
    assert head.choose(logits).tolist() == [5, 7]
    assert head.loss(logits[None], torch.tensor([[5, 7]])).max() < 0.01
    assert head.loss(logits[None], torch.tensor([[7, 5]])).min() > 5


def test_dict_observations_and_discrete_actions_go_through_and_survive_padding(dataset):
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2, 3)), "b": spaces.Discrete(4, start=2)})
    config = ModelConfig(width=16, num_layers=1, context_length=3, dropout=0.0)
    model = DecisionTransformer(config, space, spaces.Discrete(3, start=1), 9)
    states = {"a": torch.randn(2, 3, 2, 3), "b": torch.tensor([[2, 5, 3], [4, 0, 0]])}
    batch = Batch(
        states=states,
        actions={"value": torch.tensor([[1, 3, 2], [2, 0, 0]])},
        returns_to_go=torch.randn(2, 3),
        timesteps=torch.tensor([[0, 1, 2], [4, 0, 0]]),
        mask=torch.tensor([[True] * 3, [True, False, False]]),
    )
    loss, count = model(batch)
    loss.backward()
    assert count == 4
    assert loss.isfinite()
    assert model.act(batch)["value"].shape == (2,)
    assert set(model.act(batch)["value"].tolist()) <= {1, 2, 3}


def test_every_leaf_of_an_action_counts_in_the_loss(dataset):
    space = spaces.Dict(arm=spaces.Box(-1, 1, (3,)), gear=spaces.Discrete(4), leg=spaces.Box(-2, 2, (2,)))
    model = DecisionTransformer(ModelConfig(width=8, num_layers=1), dataset.observation_space, space, 13).eval()
    batch = TrajectoryDataset(dataset, CONTEXT).gather(torch.tensor([2, 14]))
    arm, leg, gear = torch.rand(2, CONTEXT, 3), torch.rand(2, CONTEXT, 2), torch.randint(4, (2, CONTEXT))
    batch = replace(batch, actions={"arm": arm, "gear": gear, "leg": leg})
    outputs, real = model.predict(batch), batch.mask
    expected = (
        (outputs["arm"] - arm)[real].square().mean(-1).sum()
        + F.cross_entropy(outputs["gear"][real][:, 0], gear[real], reduction="sum")
        + (outputs["leg"] - leg / 2)[real].square().mean(-1).sum()
    )
    torch.testing.assert_close(model(batch)[0], expected)


def test_a_space_without_an_encoder_is_named():
    text = spaces.Text(5)
    for make in (lambda: make_state_encoder(text, 8, 1), lambda: make_action_encoder(text, 8)):
        with pytest.raises(TypeError, match=r"no encoder for Text"):
            make()
    with pytest.raises(TypeError, match="no action head for Text"):
        make_head(text, 8)


def test_behaviour_cloning_hears_no_return(dataset, batch):
    model = small_model("none", dataset)
    junk = replace(batch, returns_to_go=torch.full_like(batch.returns_to_go, float("nan")))
    assert torch.equal(model.predict(batch)["value"], model.predict(junk)["value"])
    assert torch.equal(model(batch)[0], model(junk)[0])
    model.return_scale.mul_(3)
    assert torch.equal(model.predict(batch)["value"], model.predict(junk)["value"])


def test_a_whole_number_as_return_scale_keeps_fractions(dataset):
    for scale, expected in ((7, 7.0), (0.5, 0.5)):
        config = ModelConfig(width=8, num_layers=1, return_scale=scale)
        model = DecisionTransformer(config, dataset.observation_space, dataset.action_space, 13)
        model.fit(dataset)
        assert model.return_scale.item() == expected
        assert model.return_scale.dtype == torch.float32


@pytest.mark.parametrize("conditioning", ["token", "decoupled", "single"])
def test_the_return_is_divided_by_its_scale(conditioning, dataset, batch):
    model = small_model(conditioning, dataset)
    expected = model.predict(batch)["value"]
    model.return_scale.mul_(2)
    torch.testing.assert_close(model.predict(replace(batch, returns_to_go=batch.returns_to_go * 2))["value"], expected)
    assert not torch.allclose(model.predict(batch)["value"], expected)


def test_modulation_is_adaptive_layer_norm_and_none_at_first(dataset):
    config = ModelConfig(width=8, num_layers=1)
    fresh = DecisionTransformer(config, dataset.observation_space, dataset.action_space, 13).modulation
    x, returns = torch.randn(2, 3, 8), torch.randn(2, 3)
    torch.testing.assert_close(fresh(x, returns), fresh.norm(x))
    modulation = ReturnModulation(8)
    scale, shift = modulation.output(F.gelu(modulation.input(returns[..., None]))).split(8, dim=-1)
    normal = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    torch.testing.assert_close(modulation(x, returns), normal * (1 + scale) + shift, rtol=0, atol=1e-3)


@pytest.mark.parametrize("conditioning", ["single", "token", "decoupled", "none"])
def test_the_time_of_a_step_counts_only_with_a_table_of_timesteps(dataset, full, conditioning):
    later = replace(full, timesteps=full.timesteps + 4)
    timed, free = (small_model(conditioning, dataset, positions=positions) for positions in ("timesteps", "none"))
    assert not torch.equal(timed.predict(full)["value"], timed.predict(later)["value"])
    assert torch.equal(free.predict(full)["value"], free.predict(later)["value"])
    assert (timed.timestep_limit, free.timestep_limit) == (13, None)
    assert {name for name, _ in timed.named_parameters()} - {name for name, _ in free.named_parameters()} == {
        "timestep_encoder.weight"
    }


@pytest.mark.parametrize("conditioning", ["single", "token", "decoupled", "none"])
def test_without_a_table_the_order_of_the_history_still_counts(dataset, full, conditioning):
    """A causal mask tells the order to a stack of two blocks (Haviv et al. 2022)."""
    model = small_model(conditioning, dataset, positions="none")
    swapped = full.states["value"].clone()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    outputs = (model.predict(each)["value"][:, -1] for each in (full, replace(full, states={"value": swapped})))
    assert not torch.equal(*outputs)


def test_a_configuration_of_before_there_was_a_choice_has_a_table_of_timesteps():
    document = Config(model=ModelConfig(positions="none")).to_json()
    assert Config.from_json(document).model.positions == "none"
    del document["model"]["positions"]
    assert Config.from_json(document).model.positions == "timesteps"


def test_observation_noise_is_a_share_of_the_data_and_only_in_training():
    """Numbers in any unit get the same noise once they are normalised; choices, pictures and actions get none."""
    data = np.stack([np.linspace(-3e6, 1e6, 4_001), np.linspace(0, 1e-3, 4_001)], 1).astype(np.float32)
    encoder = make_state_encoder(spaces.Box(-np.inf, np.inf, (2,)), 2, 1, noise=0.05)
    encoder.normalizer.fit(data)
    with torch.no_grad():
        encoder.linear.weight.copy_(torch.eye(2))
        encoder.linear.bias.zero_()
    steps = torch.from_numpy(data)[None]
    plain = encoder.eval()(steps)
    assert torch.equal(encoder(steps), plain)
    torch.manual_seed(0)
    noise = encoder.train()(steps) - plain
    assert noise.std((0, 1)).tolist() == pytest.approx([0.05, 0.05], rel=0.05)
    assert noise.mean().abs() < 0.005
    assert not torch.equal(encoder(steps) - plain, noise)
    for space in (spaces.Discrete(3), spaces.MultiBinary(3)):
        other = make_state_encoder(space, 2, 1, noise=0.05).train()
        ones = torch.ones(1, 5, *space.shape, dtype=torch.int64)
        assert torch.equal(other(ones), other(ones))
    actions = make_action_encoder(spaces.Box(-1, 1, (2,)), 2).train()
    assert torch.equal(actions(steps), actions(steps))


def test_a_model_has_the_noise_of_its_configuration(dataset):
    for noise in (0.0, 0.05):
        model = small_model("single", dataset, observation_noise=noise).train()
        batch = TrajectoryDataset(dataset, CONTEXT).gather(torch.arange(5))
        assert (model(batch)[0] == model(batch)[0]) == (noise == 0)
