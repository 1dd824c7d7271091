"""GPT-2 in Hugging Face's layout, in and out: the same numbers and gradients, and what cannot be read is named."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from transformer.errors import CheckpointError, ConfigError
from transformer.gpt2 import load_gpt2, save_gpt2, stack_to_gpt2
from transformer.language import LanguageConfig, LanguageModel

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 11, 8, 12, 2, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
QKV, WTE = "transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"


def shaken(model):
    """Every parameter away from zero and one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def their_model(**changes) -> GPT2LMHeadModel:
    shape = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    return shaken(GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **changes})))


def our_model(**changes) -> LanguageModel:
    shape = {"vocabulary_size": VOCABULARY, "context_length": CONTEXT, "width": WIDTH, "num_heads": HEADS}
    return shaken(LanguageModel(LanguageConfig(**{**shape, "num_layers": LAYERS, "activation": "gelu", **changes})))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as their library writes it."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    their_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """That folder's config.json and weights, to be changed."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    return tmp_path


def set_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(folder: Path, change) -> None:
    """Replace the folder's tensors by `change(tensors)`."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in change(load_file(path)).items()}, path)


def logits_of(path: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_gpt2(path)(torch.arange(7)[None])


def assert_equal_models(ours: LanguageModel, theirs: GPT2LMHeadModel, dtype: torch.dtype = torch.float32) -> None:
    """Equal logits, and after one backward pass of a loss equal gradients of every parameter."""
    ours, theirs, tolerance = ours.to(dtype), theirs.to(dtype).eval(), TOLERANCE[dtype]
    tokens = torch.randint(VOCABULARY, (2, CONTEXT - 1))
    found, expected = ours(tokens), theirs(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for logits in (found, expected):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    wanted = {name: p.grad for name, p in theirs.transformer.named_parameters()}
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    stack = {name.removeprefix("transformer."): gradient for name, gradient in gradients.items()}
    carried = {
        "wte.weight": gradients["embedding.tokens.weight"],
        "wpe.weight": gradients["embedding.positions.weight"],
        **stack_to_gpt2(stack, LAYERS),
    }
    assert carried.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(carried[name], gradient, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu"])
def test_theirs_comes_in_with_equal_logits_and_gradients(activation, dtype, tmp_path):
    theirs = their_model(activation_function=activation)
    theirs.save_pretrained(tmp_path)
    assert_equal_models(load_gpt2(tmp_path), theirs, dtype)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_ours_goes_out_with_equal_logits_and_gradients(activation, tmp_path):
    ours, folder = our_model(activation=activation, dropout=0.2), tmp_path / "new" / "gpt2"
    save_gpt2(ours, folder)
    theirs, told = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())  # nothing missing, nothing unexpected, nothing of another shape
    assert {theirs.config.resid_pdrop, theirs.config.embd_pdrop, theirs.config.attn_pdrop} == {0.2}
    assert_equal_models(ours, theirs)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_out_and_in_again_is_the_same_model(tmp_path):
    model = our_model(dropout=0.3, activation="relu")
    save_gpt2(model, tmp_path / "gpt2")
    again = load_gpt2(tmp_path / "gpt2")
    assert again.config == model.config
    assert not again.training
    for (name, found), expected in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_loading_draws_no_random_number(published):
    state = torch.random.get_rng_state()
    load_gpt2(published)
    assert torch.equal(torch.random.get_rng_state(), state)


LAYOUTS = {
    "without the prefix": lambda tensors: {name.removeprefix("transformer."): x for name, x in tensors.items()},
    "with the tied read-out": lambda tensors: {**tensors, "lm_head.weight": tensors[WTE]},
    "with the read-out in place of the embedding": lambda tensors: {
        "lm_head.weight" if name == WTE else name: x for name, x in tensors.items()
    },
    "with causal masks": lambda tensors: {
        **tensors,
        **{f"transformer.h.{i}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for i in range(LAYERS)},
        **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(LAYERS)},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_the_same_model(layout, published, folder):
    set_tensors(folder, LAYOUTS[layout])
    assert torch.equal(logits_of(folder), logits_of(published))


def test_several_files_with_an_index_are_the_same_model(published, tmp_path):
    GPT2LMHeadModel.from_pretrained(published).save_pretrained(tmp_path, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits_of(tmp_path), logits_of(published))
    missing = min(tmp_path.glob("model-*.safetensors"))
    missing.unlink()
    with pytest.raises(CheckpointError, match=rf"{missing.name}: cannot be read"):
        load_gpt2(tmp_path)


def test_a_file_beside_its_config_is_the_same_model(published):
    assert torch.equal(logits_of(published / "model.safetensors"), logits_of(published))


def test_half_precision_comes_in_as_float32(folder):
    set_tensors(folder, lambda tensors: {name: x.bfloat16() for name, x in tensors.items()})
    model = load_gpt2(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.embedding.tokens.weight, load_file(folder / "model.safetensors")[WTE].float())


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("scale_attn_weights", False, "scale_attn_weights is false, here it is always true"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is true"),
        ("reorder_and_upcast_attn", True, "reorder_and_upcast_attn is true"),
        ("add_cross_attention", True, "add_cross_attention is true"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, here it is always 1e-05"),
        ("tie_word_embeddings", False, "tie_word_embeddings is false"),
        ("n_inner", 47, "n_inner is 47, here it is always 4 n_embd, 48"),
        ("activation_function", "gelu", 'activation_function is "gelu", here there are gelu_new, gelu_pytorch_tanh'),
        ("attn_pdrop", 0.0, "resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.0: here one dropout serves all three"),
        ("resid_pdrop", "0.1", "one dropout serves all three"),
        ("model_type", "gpt_neo", 'model_type is "gpt_neo", expected "gpt2"'),
        ("n_embd", "12", 'n_embd is "12", expected a whole number'),
        ("n_layer", None, "n_layer is null, expected a whole number"),
        ("n_head", 5, "num_heads 5 must divide width 12"),
        ("n_positions", True, "n_positions is true, expected a whole number"),
    ],
)
def test_a_setting_that_we_lack_is_refused_by_name(setting, value, words, folder):
    set_config(folder, **{setting: value})
    with pytest.raises(ConfigError) as error:
        load_gpt2(folder)
    assert str(error.value).startswith(f"{folder / 'config.json'}: ")
    assert words in str(error.value)


def test_settings_that_say_what_ours_are_come_in(published, folder):
    set_config(folder, n_inner=4 * WIDTH, resid_pdrop=0, embd_pdrop=0.0, attn_pdrop=0.0, some_later_setting=3)
    assert torch.equal(logits_of(folder), logits_of(published))
    assert load_gpt2(folder).config.dropout == 0


TENSORS = {
    "a missing one": (
        lambda tensors: {name: x for name, x in tensors.items() if name != QKV},
        f"tensor {QKV} is missing",
    ),
    "an extra one": (
        lambda tensors: {**tensors, "score.weight": torch.ones(2, WIDTH)},
        "tensor score.weight has no place in the model",
    ),
    "another shape": (
        lambda tensors: {**tensors, QKV: tensors[QKV].t()},
        f"tensor {QKV} has shape [36, 12], expected [12, 36]",
    ),
    "another type": (
        lambda tensors: {**tensors, QKV: tensors[QKV].to(torch.int8)},
        f"tensor {QKV} is torch.int8, expected floating point",
    ),
    "a read-out of its own": (
        lambda tensors: {**tensors, "lm_head.weight": tensors[WTE] + 1},
        f"tensor lm_head.weight differs from {WTE}",
    ),
    "no embedding": (
        lambda tensors: {name: x for name, x in tensors.items() if name != WTE},
        f"tensor {WTE} is missing",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(case, folder):
    change, words = TENSORS[case]
    set_tensors(folder, change)
    with pytest.raises(CheckpointError) as error:
        load_gpt2(folder)
    assert str(error.value).startswith(f"{folder / 'model.safetensors'}: {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "model.safetensors: no config.json next to it"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), ": no model.safetensors in it"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors: cannot be read"),
        (
            lambda f: (f / "model.safetensors").rename(f / "model.safetensors.index.json").write_text("[]"),
            "model.safetensors.index.json: not an index of files next to it",
        ),
        (
            lambda f: (
                (f / "model.safetensors")
                .rename(f / "model.safetensors.index.json")
                .write_text('{"weight_map": {"a": "../model.safetensors"}}')
            ),
            "model.safetensors.index.json: not an index of files next to it",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(spoil, words, folder):
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        load_gpt2(folder)
    assert str(error.value).startswith(str(folder))
    assert words in str(error.value)


def test_a_name_that_is_no_folder_says_how_to_fetch_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"openai/gpt2: no such file or folder \(a model of the hub comes first"):
        load_gpt2("openai/gpt2")


@pytest.mark.parametrize(
    ("shards", "named"),
    [
        (["pytorch_model.bin"], ""),
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"], ""),
    ],
)
def test_a_pickle_is_refused_with_the_line_that_converts_it(shards, named, published, tmp_path):
    folder = tmp_path / 'it\'s "their" folder'
    folder.mkdir()
    (folder / "config.json").write_bytes((published / "config.json").read_bytes())
    tensors = load_file(published / "model.safetensors")
    tensors["lm_head.weight"] = tensors[WTE]  # one storage under two names, which safetensors refuses
    names = sorted(tensors)
    for i, shard in enumerate(shards):
        torch.save({name: tensors[name] for name in names[i :: len(shards)]}, folder / shard)
    with pytest.raises(CheckpointError, match=r"only \.safetensors is opened here") as error:
        load_gpt2(folder / named)
    assert not (folder / "model.safetensors").exists()
    python, option, line = shlex.split(str(error.value).split("makes a model.safetensors of it: ")[1])
    assert (python, option) == ("python", "-c")
    exec(line, {})
    assert torch.equal(logits_of(folder), logits_of(published))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "sinusoidal"}, "positions sinusoidal: GPT-2 has only learned ones"),
        ({"positions": "none"}, "positions none: GPT-2 has only learned ones"),
        ({"rotary": True}, "rotary true: GPT-2"),
        ({"norm": "post"}, "norm post: GPT-2"),
    ],
)
def test_a_model_that_gpt2_cannot_express_is_refused_by_name(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        save_gpt2(our_model(**changes), tmp_path / "gpt2")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=rf"{folder}: exists already"):
        save_gpt2(our_model(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    def full(path, document):
        raise OSError("disk full")

    monkeypatch.setattr("transformer.gpt2.write_json", full)
    with pytest.raises(OSError, match="disk full"):
        save_gpt2(our_model(), tmp_path / "gpt2")
    assert list(tmp_path.iterdir()) == []
