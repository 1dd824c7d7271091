"""Decision Transformers that Hugging Face's library has trained, as runs: their folder in, a run's folder out.

A `DecisionTransformerModel`'s files hold a network and no more. What a run knows besides is asked for: context length,
return scale, the states' mean and deviation, the environment. With these the run plays exactly what theirs plays.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dt.config import Config
from dt.encoders import ContinuousHead, LinearEncoder, is_image
from dt.evaluation import check_environment
from dt.learning.run import Run, describe, describe_data, load_run
from dt.model import DecisionTransformer
from dt.sharing.huggingface_config import Published, read_published
from envs.datasets.dataset import Dataset
from envs.datasets.temporary import temporary_folder
from envs.simulate.scores import reference_for
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.files import check_new, make_folder, new_folder, put_in_place, write_json
from transformer.gpt2 import (
    check_tensors,
    is_buffer,
    of_shapes,
    read_weights,
    stack_from_gpt2,
    stack_to_gpt2,
)
from transformer.runs.checkpoint import save_checkpoint
from transformer.runs.outputs import check_folder

NAMES = {
    "embed_timestep.weight": "timestep_encoder.weight",
    "embed_return.weight": "return_encoder.weight",
    "embed_return.bias": "return_encoder.bias",
    "embed_state.weight": "state_encoders.0.linear.weight",
    "embed_state.bias": "state_encoders.0.linear.bias",
    "embed_action.weight": "action_encoders.0.linear.weight",
    "embed_action.bias": "action_encoders.0.linear.bias",
    "embed_ln.weight": "embedding_norm.weight",
    "embed_ln.bias": "embedding_norm.bias",
    "predict_action.0.weight": "heads.0.linear.weight",
    "predict_action.0.bias": "heads.0.linear.bias",
}
"""Their parameters around the stack, and ours."""

UNUSED = ("predict_state.", "predict_return.", "encoder.wte.")
"""Parts of theirs that no action depends on."""


def import_huggingface(
    source: str | Path,
    output: str | Path,
    *,
    context_length: int,
    return_scale: float,
    normalizer: str | Path | None = None,
    dataset: Dataset | None = None,
    environment: EnvironmentSpec | None = None,
) -> Run:
    """Make a run of a saved `DecisionTransformerModel`. If something is refused, nothing is written.

    Args:
        source: the folder that it was saved in.
        output: the run's folder, a new one.
        context_length: steps that it was trained to see, K.
        return_scale: what returns were divided by in its training.
        normalizer: a JSON file {"mean": [...], "std": [...]} of the observations in its training.
        dataset: instead of `normalizer`, what it was trained on. It also gives the run's targets.
        environment: where the run plays; None takes the dataset's own.

    Raises:
        ConfigError: a setting cannot be used.
        CheckpointError: the folder cannot be used.
        EnvError: the environment does not fit.
    """
    published = read_published(
        source,
        context_length=context_length,
        return_scale=return_scale,
        normalizer=normalizer,
        dataset=dataset,
        environment=environment,
    )
    return import_published(published, Path(output))


def import_published(published: Published, output: Path) -> Run:
    """The second half of `import_huggingface`: the weights, and the run."""
    check_folder(output)
    environment, path = published.environment, published.config_path
    for space in (published.observation_space, published.action_space):
        if is_image(space):
            raise ConfigError(f"{path}: {space} holds pictures, and theirs takes only numbers")

    def make() -> DecisionTransformer:
        spaces = published.observation_space, published.action_space
        return DecisionTransformer(published.config, *spaces, published.rows)

    parameters = _read_parameters(published.weights_path, make, published.config.num_layers, published.num_positions)
    model = make()
    model.load_state_dict({**model.state_dict(), **parameters})
    _set_head(model, published.tanh)
    _set_normalizer(model, published.normalizer)
    if environment is not None:
        check_environment(environment, model)
    described = _describe(model, published.dataset, environment, path.resolve().parent.name)
    document = {**described, "imported": str(published.source)}
    check_new(output)
    make_folder(output.parent)
    # a prefix that no other folders have: in a place of the user's choosing what begins so is cleared
    with temporary_folder(output.parent, ".decision-transformer-import-") as temporary:
        with new_folder(temporary / "run") as folder:
            write_json(folder / "run.json", document)
            save_checkpoint(folder, 0, {"model": model.state_dict()}, {"run": document})
        put_in_place(temporary / "run", output)
    return load_run(output)


def _read_parameters(
    path: Path, make: Callable[[], DecisionTransformer], num_layers: int, num_positions: int
) -> dict[str, Tensor]:
    """The parameters of the model that `make` makes from their file, checked before it is made, in float32."""
    found = read_weights(path)
    tensors = {name: x for name, x in found.items() if not is_buffer(name) and not name.startswith(UNUSED)}
    check_tensors(tensors, _expected(of_shapes(make, num_layers, found, path), num_positions), path)
    return our_parameters({name: x.float() for name, x in tensors.items()}, num_layers)


def our_parameters(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """All of our parameters, from theirs: same numbers, and one sum."""
    state = {our: tensors[their] for their, our in NAMES.items()}
    # Every position of theirs is 0, so the table's first row is a constant after the norm: part of its bias.
    state["embedding_norm.bias"] = tensors["embed_ln.bias"] + tensors["encoder.wpe.weight"][0]
    stack = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    state |= {f"transformer.{name}": tensor for name, tensor in stack_from_gpt2(stack, num_layers).items()}
    return state


def _expected(model: DecisionTransformer, num_positions: int) -> dict[str, Tensor]:
    """Tensors of a file that fits this model, by name and shape."""
    state = model.state_dict()
    stack = stack_to_gpt2(model.transformer.state_dict(), model.config.num_layers)
    return {
        **{their: state[our] for their, our in NAMES.items()},
        **{f"encoder.{name}": tensor for name, tensor in stack.items()},
        "encoder.wpe.weight": torch.empty(num_positions, model.config.width, device="meta"),
    }


def _set_head(model: DecisionTransformer, tanh: bool) -> None:
    """Their actions are the head's own numbers, with or without a tanh, whatever the bounds of the space are."""
    (head,) = model.heads
    assert isinstance(head, ContinuousHead)
    head.bounded.fill_(tanh)
    head.center.zero_()
    head.scale.fill_(1.0)


def _set_normalizer(model: DecisionTransformer, source: tuple[list[float], list[float]] | Dataset) -> None:
    """Take mean and deviation of the states from two lists or from a dataset."""
    (encoder,), (leaf,) = model.state_encoders, model.state_leaves
    assert isinstance(encoder, LinearEncoder)
    assert encoder.normalizer is not None
    if isinstance(source, Dataset):
        encoder.normalizer.fit(source.observations[leaf])
        return
    buffers = encoder.normalizer
    for buffer, numbers in zip((buffers.mean, buffers.std), source, strict=True):
        buffer.copy_(torch.tensor(numbers).view(buffer.shape))


def _describe(
    model: DecisionTransformer, dataset: Dataset | None, environment: EnvironmentSpec | None, name: str
) -> dict[str, Any]:
    """What the run is, as JSON; without a dataset it has no targets of its own and is called by where it came from."""
    if dataset is None:
        data, reference = {"name": f"imported from {name}", "targets": []}, None
    else:
        data, reference = describe_data(dataset, model.config), dataset.reference
        environment = environment or dataset.environment
    if environment is not None:
        reference = reference or reference_for(environment)
    return describe(Config(model=model.config), model, data, environment, reference)
