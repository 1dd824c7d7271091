"""Attention, blocks and positions against the formula, against torch's own layers, and by gradient."""

import math

import pytest
import torch
from torch import nn

from transformer import attention as module
from transformer.attention import Dropout, MultiHeadAttention, attention, causal_visibility, take
from transformer.blocks import Block, Transformer
from transformer.config import TransformerConfig
from transformer.errors import ConfigError
from transformer.positions import LearnedPositions, RotaryPositions, SinusoidalPositions

WIDTH, HEADS, LENGTH = 12, 3, 7
KEEPS_ALL = 1e-9  # a rate of dropout that is there and zeroes nothing


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{"width": WIDTH, "num_heads": HEADS, "num_layers": 3, "dropout": 0.0, **changes})


def by_the_formula(module: MultiHeadAttention, x, queries, visible):
    """Multi-head attention written with `attention()` and the module's own weights."""

    def heads(t):
        return t.reshape(*t.shape[:2], HEADS, -1).transpose(1, 2)

    q = module.query_key_value(queries)[..., :WIDTH]
    k, v = module.query_key_value(x)[..., WIDTH:].chunk(2, dim=-1)
    return module.output(attention(heads(q), heads(k), heads(v), visible).transpose(1, 2).flatten(2))


def test_attention_is_a_weighted_mean_written_in_plain_loops():
    q, k, v = torch.randn(3, 2, HEADS, 5, 4, dtype=torch.float64)
    result = attention(q, k, v, causal_visibility(torch.arange(5), 5))
    for b in range(2):
        for h in range(HEADS):
            for i in range(5):
                weights = [math.exp((q[b, h, i] @ k[b, h, j]).item() / math.sqrt(4)) for j in range(i + 1)]
                expected = sum(w * v[b, h, j] for j, w in enumerate(weights)) / sum(weights)
                torch.testing.assert_close(result[b, h, i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "read", [None, [0, 2, 6], [6], [[1, 4], [5, 0]]], ids=["all", "some", "last", "each row its own"]
)
def test_the_fast_kernel_equals_the_formula(read, dtype, tolerance):
    module = MultiHeadAttention(config()).to(dtype)
    x = torch.randn(2, LENGTH, WIDTH, dtype=dtype)
    read = None if read is None else torch.tensor(read)
    positions = torch.arange(LENGTH) if read is None else read
    expected = by_the_formula(module, x, take(x, positions), causal_visibility(positions, LENGTH))
    torch.testing.assert_close(module(x, read=read), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"rotary": True}, {"activation": "gelu"}], ids=str)
@pytest.mark.parametrize("read", [[2, 4], [[6, 1], [0, 5]]], ids=["shared", "each row its own"])
def test_reading_some_positions_gives_the_same_numbers_and_gradients(changes, read):
    model, read = Transformer(config(**changes)).double(), torch.tensor(read)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    results = []
    for output in (model(x, read), take(model(x), read)):
        weights = torch.arange(output.numel()).view_as(output).double().cos()
        results.append([output, *torch.autograd.grad((output * weights).sum(), list(model.parameters()))])
    for pruned, full in zip(*results, strict=True):
        torch.testing.assert_close(pruned, full, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_torchs_encoder_layer_with_the_same_weights(norm, dtype, tolerance):
    ours = Block(config(norm=norm)).to(dtype)
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, norm_first=norm == "pre", batch_first=True, dtype=dtype
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        a, f = ours.attention, ours.feed_forward
        theirs.self_attn.in_proj_weight.copy_(a.query_key_value.weight)
        theirs.self_attn.in_proj_bias.copy_(a.query_key_value.bias)
        pairs = [
            (theirs.self_attn.out_proj, a.output),
            (theirs.linear1, f.input),
            (theirs.linear2, f.output),
            (theirs.norm1, ours.attention_norm),
            (theirs.norm2, ours.feed_forward_norm),
        ]
        for their, our in pairs:
            their.load_state_dict(our.state_dict())
    x = torch.randn(2, LENGTH, WIDTH, dtype=dtype)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=True), rtol=0, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not causal"])
@pytest.mark.parametrize("read", [None, [2, 5], [[1, 4], [5, 0]]], ids=["all", "some", "each row its own"])
@pytest.mark.parametrize("masked", [False, True], ids=["all real", "padded"])
def test_training_attends_by_the_formula_as_evaluation_does_by_the_kernel(causal, read, masked, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "attention", lambda *arguments: calls.append(1) or attention(*arguments))
    attend, x = MultiHeadAttention(config(dropout=KEEPS_ALL), causal), torch.randn(2, LENGTH, WIDTH)
    read = None if read is None else torch.tensor(read)
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4]]) if masked else None
    in_training = attend(x, read=read, mask=mask)
    in_evaluation = attend.eval()(x, read=read, mask=mask)
    assert len(calls) == 1
    torch.testing.assert_close(in_training, in_evaluation, rtol=0, atol=1e-6)


def test_bf16_is_trained_by_the_formula_too(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "attention", lambda *arguments: calls.append(1) or attention(*arguments))
    attend, x = MultiHeadAttention(config()), torch.randn(2, LENGTH, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        lower = attend(x)
        with torch.no_grad():
            kernel = attend(x)
    assert len(calls) == 1
    torch.testing.assert_close(lower, kernel, rtol=0, atol=1e-2)
    torch.testing.assert_close(lower.float(), attend(x), rtol=0, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"rotary": True}, {"dropout": KEEPS_ALL}], ids=str)
def test_output_ignores_the_future(changes):
    model = Transformer(config(**changes))
    direction = torch.randn(WIDTH)  # a layer norm's plain sum would be constant
    for position in range(LENGTH):
        x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
        (model(x)[:, position] @ direction).sum().backward()
        assert x.grad[:, position + 1 :].eq(0).all()
        assert x.grad[:, : position + 1].abs().sum(-1).gt(1e-8).all()


def test_initial_weights_are_gpt2s():
    model = Transformer(TransformerConfig(width=128, num_layers=8))
    block = model.blocks[5]
    assert block.feed_forward.input.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.output.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert block.feed_forward.output.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert all(p.eq(0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_dropout_acts_in_training_alone():
    model, x = Transformer(config(dropout=0.5)), torch.randn(2, LENGTH, WIDTH)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropout_acts_on_attention_weights():
    module, x = MultiHeadAttention(config(dropout=0.5)), torch.randn(2, LENGTH, WIDTH)
    assert not torch.allclose(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_dropout_acts_on_embeddings():
    model = Transformer(config(dropout=0.5, norm="post"))
    model.blocks = nn.ModuleList()  # what is left is what happens to the embeddings
    x = torch.ones(5, LENGTH, WIDTH)
    assert model(x).eq(0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(model.eval()(x), x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    dropout, x = Dropout(rate), torch.ones(1009, 997, requires_grad=True)
    y = dropout(x)
    assert y.eq(0).float().mean().item() == pytest.approx(rate, abs=0.002)
    assert y[y > 0].unique().tolist() == pytest.approx([1 / (1 - rate)])
    assert (y[:-1].eq(0) & y[1:].eq(0)).float().mean().item() == pytest.approx(rate**2, abs=0.002)  # independent
    assert (y[:, :-1].eq(0) & y[:, 1:].eq(0)).float().mean().item() == pytest.approx(rate**2, abs=0.002)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout.eval()(x), x)


def test_rotary_positions_see_distance_alone():
    rotary = RotaryPositions(8).double()
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(i, j):
        return (rotary(q, torch.tensor([i])) * rotary(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=0, atol=1e-10)
    assert (product(9, 4) - product(9, 5)).abs() > 1e-3
    torch.testing.assert_close(rotary(q, torch.tensor([0])), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", [torch.arange(5), torch.randint(1000, (3, 5))], ids=["(L,)", "(B, L)"])
def test_rotary_positions_have_the_bits_of_the_formula(dtype, positions):
    rotary = RotaryPositions(14)

    def formula(x):
        angles = positions.expand(3, 5)[:, None, :, None] * rotary.frequencies
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)

    x = torch.randn(3, 5, 2, 14, dtype=dtype).transpose(1, 2)  # as attention has it
    weights, found = torch.randn(3, 2, 5, 14, dtype=dtype), []
    for turn in (formula, lambda x: rotary(x, positions)):
        leaf = x.detach().requires_grad_()
        turned = turn(leaf)
        turned.backward(weights)
        found.append((turned.detach(), leaf.grad))
    assert found[1][0].dtype == dtype
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_sinusoidal_positions_follow_the_papers_formula():
    encoding = SinusoidalPositions(6)(torch.tensor([[0, 3], [17, 1000]]))
    assert encoding.shape == (2, 2, 6)
    for i in range(3):
        angle = 17 / 10_000 ** (2 * i / 6)
        assert encoding[1, 0, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert encoding[1, 0, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)
    with pytest.raises(ValueError, match="even width, not 5"):
        SinusoidalPositions(5)


def test_learned_positions_are_rows_of_a_table():
    table = LearnedPositions(11, 6)
    assert torch.equal(table(torch.tensor([[10, 0]]))[0, 0], table.weight[10])
    with pytest.raises(IndexError):
        table(torch.tensor([11]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 10, "num_heads": 3}, "num_heads 3 must divide width 10"),
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"dropout": float("nan")}, "dropout must be a finite number, not nan"),
        ({"width": 9, "rotary": True}, "even width a head, not 3"),
    ],
)
def test_a_shape_that_cannot_work_is_refused_with_its_value(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("start", [0, 3, "rows"])
@pytest.mark.parametrize("read", ["all", "last", "reversed"])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_visibility_is_that_of_a_plain_loop(num_tokens, read, start, causal, masked):
    """Where it leaves the choice to the kernel, the kernel's rule holds: all keys, or the plain triangle."""
    read = {"all": None, "last": [num_tokens - 1], "reversed": [*range(num_tokens)][::-1]}[read]
    rows, num_keys = 2, num_tokens + 5 if start == "rows" else num_tokens + start
    starts = [1, 4] if start == "rows" else [start] * rows
    mask = torch.tensor([[True] * num_keys, [i != 1 for i in range(num_keys)]]) if masked else None
    visible, is_causal = module.visibility(
        num_tokens,
        num_keys,
        causal=causal,
        read=None if read is None else torch.tensor(read),
        start=torch.tensor(starts)[:, None] if start == "rows" else start,
        mask=mask,
        device=torch.device("cpu"),
    )
    queries = range(num_tokens) if read is None else read
    expected = torch.tensor(
        [
            [[(not causal or key <= starts[b] + q) and (mask is None or bool(mask[b, key])) for key in range(num_keys)]]
            for b in range(rows)
            for q in queries
        ]
    ).view(rows, 1, len(queries), num_keys)
    if is_causal:
        assert visible is None
        visible = torch.ones(num_tokens, num_keys, dtype=torch.bool).tril()
    found = torch.ones_like(expected) if visible is None else visible.expand_as(expected)
    assert torch.equal(found, expected)
