"""Hugging Face's Decision Transformer with the same weights says the same actions, whichever side is padded."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from dt.config import ModelConfig
from dt.data import Batch
from dt.model import DecisionTransformer
from dt.sharing.huggingface import our_parameters

B, T, STATE, ACTION, WIDTH, HEADS, LAYERS, MAX_TIMESTEPS = 3, 7, 5, 3, 22, 2, 2, 31
LENGTHS = (T, 3, 1)  # real steps of each window
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new"}  # our name: theirs

BUGS = {
    "the state before the return": lambda parts: torch.stack([parts[1], parts[0], parts[2]], dim=2).flatten(1, 2),
    "joined end to end": lambda parts: torch.cat(parts, dim=1),
}


def carry_weights(theirs: DecisionTransformerModel, ours: DecisionTransformer) -> None:
    """Give our model all of theirs that acts on the actions, which is every parameter that we have."""
    weights = our_parameters(theirs.state_dict(), LAYERS)
    assert weights.keys() == dict(ours.named_parameters()).keys()
    ours.load_state_dict({**ours.state_dict(), **weights})


def make_models(activation: str, dtype: torch.dtype) -> tuple[DecisionTransformerModel, DecisionTransformer]:
    """Theirs with every parameter away from zero and one, ours with the same weights."""
    shape = {"n_layer": LAYERS, "n_head": HEADS, "activation_function": ACTIVATIONS[activation]}
    theirs = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=STATE, act_dim=ACTION, hidden_size=WIDTH, max_ep_len=MAX_TIMESTEPS, n_inner=4 * WIDTH, **shape
        )
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    config = ModelConfig(
        conditioning="token",
        positions="timesteps",
        rotary=False,
        width=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        activation=activation,
        context_length=T,
        return_scale=1.0,
    )
    observation_space = spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    ours = DecisionTransformer(config, observation_space, spaces.Box(-1, 1, (ACTION,), np.float32), MAX_TIMESTEPS)
    theirs, ours = theirs.to(dtype).eval(), ours.to(dtype).eval()
    carry_weights(theirs, ours)  # in their final precision: the folded bias is a sum, which rounds
    return theirs, ours


def make_batch(dtype: torch.dtype) -> Batch:
    """Windows full, short and of one step, each from somewhere in its episode; NaN stands in the padding."""
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    first = torch.randint(0, MAX_TIMESTEPS - T, (B, 1))

    def padded(x):
        return x.masked_fill(~mask.view(B, T, *[1] * (x.dim() - 2)), torch.nan)

    return Batch(
        states={"value": padded(torch.randn(B, T, STATE, dtype=dtype))},
        actions={"value": padded(torch.rand(B, T, ACTION, dtype=dtype) * 2 - 1)},
        returns_to_go=padded(torch.randn(B, T, dtype=dtype)),
        timesteps=(first + torch.arange(T)).masked_fill(~mask, MAX_TIMESTEPS),
        mask=mask,
    )


def their_actions(theirs: DecisionTransformerModel, batch: Batch) -> torch.Tensor:
    """Windows padded on the left, their users' values in the padding: actions of the real steps, row by row."""

    def left(x, fill):
        rows = [torch.cat([torch.full_like(row[n:], fill), row[:n]]) for row, n in zip(x, LENGTHS, strict=True)]
        return torch.stack(rows)

    mask = left(batch.mask, False)
    with torch.no_grad():
        output = theirs(
            states=left(batch.states["value"], 0.0),
            actions=left(batch.actions["value"], -10.0),
            returns_to_go=left(batch.returns_to_go, 0.0)[..., None],
            timesteps=left(batch.timesteps, 0),
            attention_mask=mask.long(),
        )
    return output.action_preds[mask]  # (N, A)


def our_actions(ours: DecisionTransformer, batch: Batch) -> torch.Tensor:
    """Actions of the real steps, row by row."""
    raw = []
    hook = ours.heads[0].linear.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.no_grad():
        predicted = ours.predict(batch)["value"]
    hook.remove()
    exact = raw[0].tanh()  # the head answers in float32, whatever the weights are
    torch.testing.assert_close(predicted, exact, rtol=0, atol=1e-6, check_dtype=False)
    return exact[batch.mask]  # (N, A)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_weights_give_the_same_actions(activation, dtype):
    theirs, ours = make_models(activation, dtype)
    batch = make_batch(dtype)
    expected, found = their_actions(theirs, batch), our_actions(ours, batch)
    assert expected.shape == (sum(LENGTHS), ACTION)
    assert expected.std(0).gt(0.05).all()  # the steps differ, so equal numbers mean something
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bug", BUGS)
def test_another_order_of_tokens_is_noticed(bug, monkeypatch):
    theirs, ours = make_models("relu", torch.float64)
    batch = make_batch(torch.float64)
    expected = their_actions(theirs, batch)
    torch.testing.assert_close(our_actions(ours, batch), expected, rtol=0, atol=1e-10)
    monkeypatch.setattr("dt.model.interleave", BUGS[bug])
    assert (our_actions(ours, batch) - expected).abs().max() > 1e-2


def test_the_dead_position_table_is_noticed():
    theirs, ours = make_models("relu", torch.float64)
    batch = make_batch(torch.float64)
    with torch.no_grad():
        ours.embedding_norm.bias -= theirs.encoder.wpe.weight[0]
    assert (our_actions(ours, batch) - their_actions(theirs, batch)).abs().max() > 1e-2
