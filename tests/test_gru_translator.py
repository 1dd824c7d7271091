"""The recurrent translator that the Transformer is shown beside: padding, one word at a time, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.gru_translator import GRUReader, GRUTranslator
from transformer.generation import Sampling, beam_search, pad, write_on

VOCABULARY, START, END, WIDTH = 11, 1, 2, 14
SOURCES, TARGETS = [[3, 4, 5, 6, 7], [8], [9, 10, 3]], torch.tensor([[1, 7, 6], [1, 8, 2], [1, 3, 10]])
CPU = torch.device("cpu")


def padded(sources):
    source = pad(sources, CPU)  # (B, M)
    return source, source != 0


@pytest.fixture
def model() -> GRUTranslator:
    model = GRUTranslator(vocabulary_size=VOCABULARY, width=WIDTH, dropout=0.3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_padding_changes_neither_outputs_nor_looks(model):
    source, mask = padded(SOURCES)
    logits, looks = model(source, TARGETS, mask), model.weights(source, TARGETS, mask)
    assert logits.shape == (3, 3, VOCABULARY)
    assert torch.equal(logits, model(source.masked_fill(~mask, 9), TARGETS, mask))
    assert looks.masked_select(~mask[:, None]).eq(0).all()
    torch.testing.assert_close(looks.sum(-1), torch.ones(3, 3, dtype=torch.float64))
    for row, words in enumerate(SOURCES):
        alone, real = padded([words])
        expected = model(alone, TARGETS[row : row + 1], real)
        torch.testing.assert_close(logits[row : row + 1], expected, rtol=0, atol=1e-10)
    changed = source.clone()
    changed[0, 4] = 8  # a real word, so it must show, and in its own row alone
    assert torch.equal(logits[1:], model(changed, TARGETS, mask)[1:])
    assert (logits[0] - model(changed, TARGETS, mask)[0]).abs().amax(-1).gt(1e-6).all()


def test_each_output_depends_on_its_own_and_earlier_words_of_the_target(model):
    source, mask = padded(SOURCES)
    logits, changed = model(source, TARGETS, mask), TARGETS.clone()
    changed[:, 1] = 9
    other = model(source, changed, mask)
    assert torch.equal(logits[:, 0], other[:, 0])
    assert (logits[:, 1:] - other[:, 1:]).abs().amax(-1).gt(1e-6).all()


def test_one_word_at_a_time_equals_a_known_target(model):
    source, mask = padded(SOURCES)
    reader, expected = GRUReader(model, SOURCES), model(source, TARGETS, mask)
    for length in (1, 3):  # the second call has two new words
        found = reader.next_logits(TARGETS[:, :length].tolist())
        torch.testing.assert_close(found, expected[:, length - 1], rtol=0, atol=1e-10)
    rows = [2, 0, 2]  # one row leaves, the others change places, one of them doubled
    reader.keep(rows)
    targets = torch.cat([TARGETS[rows], torch.tensor([[4], [5], [6]])], dim=1)
    found = reader.next_logits(targets.tolist())
    torch.testing.assert_close(found, model(source[rows], targets, mask[rows])[:, -1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("texts", [[[1, 2], [1]], [[1], [1]]], ids=["different lengths", "nothing new"])
def test_a_reader_refuses_targets_that_it_cannot_continue(model, texts):
    reader = GRUReader(model, SOURCES[:2])
    reader.next_logits([[1], [1]])
    with pytest.raises(ValueError, match="expected one length above 1"):
        reader.next_logits(texts)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="not 7"):
        GRUTranslator(vocabulary_size=VOCABULARY, width=7)


def test_every_parameter_gets_a_gradient(model):
    source, mask = padded(SOURCES)
    (model(source, TARGETS, mask) * torch.randn(3, 3, VOCABULARY)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 1e-9] == []


def test_dropout_drops_words_and_features_in_training_alone(model):
    source, mask = padded(SOURCES)
    assert torch.equal(model(source, TARGETS, mask), model(source, TARGETS, mask))
    model.train()
    memories = [model.encode(source, mask) for _ in range(2)]
    assert not torch.equal(*memories)
    steps = [model.step(TARGETS[:, 0], memories[0][:, 0], memories[0], mask) for _ in range(2)]
    (features, state, _), (_, another_state, _) = steps
    assert not torch.equal(state, another_state)
    assert 0 < features.eq(0).double().mean() < 0.6


def test_it_learns_to_reverse():
    model, draw = GRUTranslator(vocabulary_size=VOCABULARY, width=32, dropout=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def words(count):
        lengths = torch.randint(1, 5, (count,), generator=draw).tolist()
        return [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]

    for _ in range(120):
        sources = words(32)
        target = pad([[START, *reversed(source)] for source in sources], CPU)
        following = pad([[*reversed(source), END] for source in sources], CPU)
        source, mask = padded(sources)
        loss = F.cross_entropy(model(source, target, mask).flatten(0, 1), following.flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    sources = words(50)
    written = write_on(GRUReader(model, sources), [[START]] * 50, 8, Sampling(temperature=0), stop={END})
    right = [text == [START, *reversed(source), END] for text, source in zip(written, sources, strict=True)]
    assert sum(right) >= 45
    word = sources[right.index(True)]
    [(text, _)] = beam_search(GRUReader(model, [word]), [[START]], 8, width=3, stop={END})
    assert text == [START, *reversed(word), END]
