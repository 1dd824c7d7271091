"""The core for text: against torch's Transformer, and generation against its plain definition."""

import itertools

import pytest
import torch
from torch import nn

from transformer.attention import causal_visibility
from transformer.blocks import Block, Transformer, fast_view
from transformer.config import TransformerConfig
from transformer.generation import (
    LanguageReader,
    Sampling,
    TranslationReader,
    beam_search,
    generate,
    window_start,
    write_on,
)
from transformer.language import LanguageConfig, LanguageModel
from transformer.translation import EncoderDecoder

WIDTH, HEADS, SOURCE, TARGET = 12, 3, 7, 5
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
NORMS = pytest.mark.parametrize("norm", ["pre", "post"])


def shake(module):
    """Every parameter away from zero and one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{"width": WIDTH, "num_heads": HEADS, "num_layers": 2, "dropout": 0.0, **changes})


def language_model(**changes) -> LanguageModel:
    shape = {"width": WIDTH, "num_heads": HEADS, "num_layers": 2, "dropout": 0.0, "vocabulary_size": 11}
    return shake(LanguageModel(LanguageConfig(**{**shape, "context_length": 8, **changes})))


def translator(**changes) -> EncoderDecoder:
    shape = {"width": WIDTH, "num_heads": HEADS, "num_layers": 2, "dropout": 0.0, "vocabulary_size": 11}
    return shake(EncoderDecoder(LanguageConfig(**{**shape, "context_length": 16, **changes})))


def carry(ours: Block, theirs) -> None:
    """Our block's weights into torch's encoder or decoder layer."""

    def attention(our, their):
        their.in_proj_weight.data = our.query_key_value.weight.detach().clone()
        their.in_proj_bias.data = our.query_key_value.bias.detach().clone()
        their.out_proj.load_state_dict(our.output.state_dict())

    attention(ours.attention, theirs.self_attn)
    norms = [ours.attention_norm, ours.feed_forward_norm]
    if ours.cross_attention is not None:
        attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for i, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.input.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.output.state_dict())


@NORMS
@DTYPES
def test_encoder_and_decoder_equal_torchs_transformer(norm, dtype, tolerance):
    encoder, decoder = (shake(Transformer(config(norm=norm), causal=c, cross=c)).to(dtype) for c in (False, True))
    theirs = nn.Transformer(
        WIDTH, HEADS, 2, 2, 4 * WIDTH, 0.0, norm_first=norm == "pre", batch_first=True, dtype=dtype
    ).eval()
    for ours, their in ((encoder, theirs.encoder), (decoder, theirs.decoder)):
        for block, layer in zip(ours.blocks, their.layers, strict=True):
            carry(block, layer)
        if norm == "pre":
            their.norm.load_state_dict(ours.final_norm.state_dict())
        else:
            their.norm = None  # torch adds a last norm after post-norm blocks too; the original Transformer has none
    source, target = torch.randn(2, SOURCE, WIDTH, dtype=dtype), torch.randn(2, TARGET, WIDTH, dtype=dtype)
    mask = torch.tensor([[True] * SOURCE, [True] * 4 + [False] * (SOURCE - 4)])
    hidden = nn.Transformer.generate_square_subsequent_mask(TARGET, dtype=dtype)
    expected = theirs(
        source, target, tgt_mask=hidden, src_key_padding_mask=~mask, memory_key_padding_mask=~mask, tgt_is_causal=True
    )
    memory = encoder(source, mask=mask)
    torch.testing.assert_close(decoder(target, memory=memory, memory_mask=mask), expected, rtol=0, atol=tolerance)


def test_a_translation_ignores_padding_of_its_source_and_the_future_of_its_target():
    model, mask = translator(), torch.tensor([[True, True, True, False]])
    source, target = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 6, 7]])
    logits = model(source, target, mask)
    assert torch.equal(logits, model(torch.tensor([[3, 4, 5, 9]]), target, mask))
    assert not torch.equal(logits, model(torch.tensor([[3, 4, 6, 0]]), target, mask))
    torch.testing.assert_close(logits, model(source[:, :3], target, mask[:, :3]))
    changed = model(source, torch.tensor([[1, 6, 8]]), mask)
    assert torch.equal(logits[:, :2], changed[:, :2])
    assert not torch.equal(logits[:, 2], changed[:, 2])


def test_every_decoder_block_sees_the_encoders_last_output():
    model = Transformer(config(), cross=True)
    memory = torch.randn(1, 3, WIDTH, requires_grad=True)
    x = torch.randn(1, 2, WIDTH)
    for block in model.blocks:
        block(x, memory=memory).sum().backward()
        assert memory.grad.abs().sum() > 0
        memory.grad = None


def test_the_heads_weights_are_the_embeddings():
    model = language_model()
    assert "head" not in " ".join(model.state_dict())
    model(torch.tensor([[3]]))[0, 0, 5].backward()
    assert model.embedding.tokens.weight.grad[5].abs().sum() > 0  # as an output
    assert model.embedding.tokens.weight.grad[3].abs().sum() > 0  # as an input


def test_attention_weights_are_those_that_the_kernel_uses():
    block = shake(Block(config(), cross=True))
    x, memory = torch.randn(2, TARGET, WIDTH), torch.randn(2, SOURCE, WIDTH)
    mask = torch.ones(2, SOURCE, dtype=torch.bool)
    mask[1, 3:] = False
    for module, context, keys in ((block.attention, None, None), (block.cross_attention, memory, mask)):
        weights = module.weights(x, context, mask=keys)  # (B, H, L, Lk)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, TARGET))
        _, _, v = module._project(x, context)
        expected = module.output((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(module(x, context, mask=keys), expected, rtol=0, atol=1e-5)
    assert block.cross_attention.weights(x, memory, mask=mask)[1, :, :, 3:].eq(0).all()
    hidden = ~causal_visibility(torch.arange(TARGET), TARGET)
    assert block.attention.weights(x)[:, :, hidden].eq(0).all()


def test_padding_and_causal_masks_combine():
    module = shake(Block(config())).attention
    x, mask = torch.randn(1, TARGET, WIDTH), torch.tensor([[False, True, True, True, True]])
    spoiled = x.clone()
    spoiled[:, 0] = 7.0
    assert torch.equal(module(x, mask=mask)[:, 1:], module(spoiled, mask=mask)[:, 1:])
    spoiled = x.clone()
    spoiled[:, 3:] = 7.0
    assert torch.equal(module(x, mask=mask)[:, 1:3], module(spoiled, mask=mask)[:, 1:3])
    assert not torch.equal(module(x, mask=mask)[:, 4], module(spoiled, mask=mask)[:, 4])


@pytest.mark.parametrize("changes", [{}, {"positions": "sinusoidal"}, {"positions": "none", "rotary": True}], ids=str)
def test_cached_generation_equals_uncached_for_prompts_of_different_lengths(changes):
    """Far past the context length, so every row's window is anchored anew many times, each at its own moment."""
    model = language_model(**changes).double()
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    greedy = Sampling(temperature=0)
    together = generate(model, prompts, 200, greedy)
    assert together == generate(model, prompts, 200, greedy, use_cache=False)
    assert together == [generate(model, [prompt], 200, greedy)[0] for prompt in prompts]
    assert [len(text) - len(prompt) for text, prompt in zip(together, prompts, strict=True)] == [200] * 4
    assert len({tuple(text[-20:]) for text in together}) > 1 or len({token for text in together for token in text}) > 2


def test_cached_logits_equal_uncached():
    model = language_model().double()
    cached, plain = LanguageReader(model), LanguageReader(model, use_cache=False)
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    with torch.no_grad():
        for step in range(30):
            logits = cached.next_logits(texts)
            torch.testing.assert_close(logits, plain.next_logits(texts), rtol=0, atol=1e-10)
            if step == 3:  # the furthest row leaves; the others change places, one of them doubled
                rows = [1, 0, 1]
                texts = [list(texts[row]) for row in rows]
                cached.keep(rows)
            for row, text in enumerate(texts):
                text.append((step * 7 + row) % 11)


def test_a_rows_window_moves_by_half_and_never_exceeds_the_context():
    starts = [window_start(length, 8) for length in range(1, 30)]
    assert starts[:14] == [0] * 8 + [4] * 4 + [8] * 2
    assert all(length - start <= 8 for length, start in zip(range(1, 30), starts, strict=True))


def test_a_stop_token_ends_its_row_alone():
    model = language_model()
    free = generate(model, [[1], [2], [3]], 12, Sampling(temperature=0))
    stop = free[0][3]
    stopped = generate(model, [[1], [2], [3]], 12, Sampling(temperature=0), stop={stop})
    for text, full in zip(stopped, free, strict=True):
        end = next((i for i, token in enumerate(full) if i > 0 and token == stop), len(full) - 1)
        assert text == full[: end + 1]


def test_sampling_follows_its_probabilities_and_its_generator():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for sampling, expected in (
        (Sampling(), logits.softmax(-1)),
        (Sampling(temperature=2.0), (logits / 2).softmax(-1)),
        (Sampling(top_k=2), torch.tensor([[2.0, 1.0, -torch.inf, -torch.inf]]).softmax(-1)),
        (Sampling(top_p=0.7), torch.tensor([[2.0, 1.0, -torch.inf, -torch.inf]]).softmax(-1)),
        (Sampling(top_p=0.6), torch.tensor([[1.0, 0, 0, 0]])),
        (Sampling(top_k=9, top_p=1.0), logits.softmax(-1)),
    ):
        torch.testing.assert_close(sampling.probabilities(logits), expected)
        generator = torch.Generator().manual_seed(0)
        drawn = sampling.pick(logits.expand(20_000, -1), generator)
        torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 20_000, expected[0], rtol=0, atol=0.015)
        assert torch.equal(drawn, sampling.pick(logits.expand(20_000, -1), torch.Generator().manual_seed(0)))
    assert Sampling(temperature=0).pick(logits).tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e-320}, "at least 1e-30"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1e-320}, "top_p must be from 1e-30"),
        ({"top_p": 1.5}, "1.5"),
    ],
)
def test_sampling_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**changes)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(language_model(), [[1], []], 3, Sampling())


@pytest.mark.parametrize("length_penalty", [float("nan"), 1e308, -1.0])
def test_a_length_penalty_that_scores_nothing_is_refused(length_penalty):
    with pytest.raises(ValueError, match="length_penalty must be from 0 to 10"):
        beam_search(LanguageReader(language_model()), [[1]], 3, width=2, stop={2}, length_penalty=length_penalty)


def test_a_beam_of_one_is_greedy():
    model = translator()
    sources, greedy = [[3, 4, 5]], Sampling(temperature=0)
    expected = write_on(TranslationReader(model, sources), [[1]], 9, greedy, stop={2})[0]
    assert beam_search(TranslationReader(model, sources), [[1]], 9, width=1, stop={2})[0][0] == expected
    language = language_model()
    [(text, _)] = beam_search(LanguageReader(language), [[1]], 20, width=1, stop=frozenset())
    assert text == generate(language, [[1]], 20, greedy)[0]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_full_beam_finds_what_exhaustive_search_finds(length_penalty):
    model, stop, longest = language_model(vocabulary_size=3), 2, 4

    def score(tokens):
        with torch.no_grad():
            logs = model(torch.tensor([[0, *tokens]])).log_softmax(-1)[0]
        return sum(logs[i, token].item() for i, token in enumerate(tokens)) / len(tokens) ** length_penalty

    everything = [
        tokens
        for length in range(1, longest + 1)
        for tokens in itertools.product(range(3), repeat=length)
        if stop not in tokens[:-1] and (tokens[-1] == stop or length == longest)
    ]
    best = max(everything, key=score)
    options = {"width": 81, "stop": {stop}, "length_penalty": length_penalty}
    [(text, found)] = beam_search(LanguageReader(model), [[0]], longest, **options)
    assert tuple(text[1:]) == best
    assert found == pytest.approx(score(best), abs=1e-5)


def test_cached_translation_equals_uncached():
    model = translator().double()
    sources, starts = [[3, 4, 5], [6], [7, 8, 9, 10, 3]], [[1]] * 3
    results = []
    for use_cache in (True, False):
        reader = TranslationReader(model, sources, use_cache)
        results.append(write_on(reader, starts, 12, Sampling(temperature=0), stop={2}))
    assert results[0] == results[1]
    alone = [
        write_on(TranslationReader(model, [source]), [[1]], 12, Sampling(temperature=0), stop={2})[0]
        for source in sources
    ]
    assert results[0] == alone


def test_searching_for_many_at_once_finds_what_searching_one_by_one_finds():
    model = translator().double()
    sources, options = [[3, 4, 5], [6], [7, 8, 9, 10, 3]], {"width": 4, "stop": {2}, "length_penalty": 0.6}
    together, uncached = (
        beam_search(TranslationReader(model, sources, use_cache), [[1]] * 3, 8, **options)
        for use_cache in (True, False)
    )
    alone = [beam_search(TranslationReader(model, [source]), [[1]], 8, **options)[0] for source in sources]
    assert [text for text, _ in together] == [text for text, _ in uncached] == [text for text, _ in alone]
    assert [score for _, score in together] == pytest.approx([score for _, score in alone])
    language, prompts = language_model().double(), [[1], [2, 3, 4, 5], [6, 7]]
    texts = [text for text, _ in beam_search(LanguageReader(language), prompts, 20, width=3, stop={5})]
    assert texts == [beam_search(LanguageReader(language), [p], 20, width=3, stop={5})[0][0] for p in prompts]
    assert len({len(text) - len(prompt) for text, prompt in zip(texts, prompts, strict=True)}) > 1, "all ended at once"


def test_alignments_are_the_weights_by_which_the_memory_is_summed():
    model = translator()
    source, mask = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[True, True, True, False]])
    maps = model.alignments(source, torch.tensor([[1, 6]]), mask)
    blocks, heads = model.config.num_layers, model.config.num_heads
    assert maps.shape == (blocks, 1, heads, 2, 4)
    assert maps[..., 3].eq(0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(blocks, 1, heads, 2))
    last = model.decoder.blocks[-1].cross_attention
    seen = []
    last.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    model(source, torch.tensor([[1, 6]]), mask)
    (_, memory), output = seen[0]
    values = last.query_key_value(memory)[..., 2 * WIDTH :].view(1, 4, heads, -1).transpose(1, 2)  # (B, H, M, Hd)
    torch.testing.assert_close(last.output((maps[-1] @ values).transpose(1, 2).flatten(2)), output)


def test_positions_without_a_cache_hide_the_future_too():
    model, positions = language_model(), torch.arange(3, 7)
    tokens, changed = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 9]])
    for where in (positions, positions[None]):
        assert torch.equal(model(tokens, positions=where)[:, :3], model(changed, positions=where)[:, :3])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients_with_dropout(precision):
    gradients, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        shape = LanguageConfig(vocabulary_size=11, width=16, num_heads=2, dropout=0.3, activation_checkpointing=again)
        model, tokens, sizes = LanguageModel(shape).train(), torch.arange(26).view(2, 13) % 11, []
        torch.manual_seed(1)
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x
            ),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
        ):
            loss = model(tokens).float().square().sum()
        kept.append(sum(sizes))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 4


def test_the_twin_for_reading_shares_the_weights_and_gives_the_same_bits():
    model, tokens = language_model(), torch.tensor([[1, 2, 3, 4]])
    twin = fast_view(model)
    assert torch.equal(twin(tokens), model(tokens))
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        model.transformer.blocks[1].feed_forward.output.bias.add_(1.0)
    assert torch.equal(twin(tokens), model(tokens))
    twin.train()
    assert not any(part.training for part in model.modules())
