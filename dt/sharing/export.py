"""A policy as files that act without this package: the model, policy.json, runner.py and what it imports.

The model is exported for one window of K steps. Normaliser, bounds, return scale and guidance are inside it.
"""

import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from torch import Tensor, nn

from dt import runner
from dt.asking.calibration import Calibration
from dt.asking.guidance import MODULATED
from dt.data import Batch, TensorLeaves
from dt.encoders import ContinuousHead, is_image
from dt.errors import PolicyError
from dt.learning.run import Run
from dt.model import DecisionTransformer, last_step
from dt.policy import ReturnConditionedPolicy, empty_rows
from dt.units import Units
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_to_json
from envs.spaces import allowed_choices, choices, leaf_spaces, padding_value, reason, to_leaves
from transformer.errors import ConfigError
from transformer.files import read_json, write_json

Format = Literal["onnx", "torch-export"]

OPSET = 18
"""Version of ONNX's operators that a model is written in; the one that torch's exporter writes without converting."""

MODEL_FILES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}

COPIED = ("runner.py", "window.py", "leaves.py", "units.py", "curves.py")
"""Files of an exported policy that are copies of our own modules."""

TOLERANCE = 1e-5
"""How far numbers of a Box may be from the original's, in the action's own unit, or its half range where that is
larger."""


class WindowToAction(nn.Module):
    """A model as a function of plain tensors: the arrays of one window in, the action of each leaf out.

    Args:
        model: the trained model.
        inputs: names of the arrays, such as state/LEAF, action/LEAF, returns_to_go.
    """

    def __init__(self, model: DecisionTransformer, inputs: tuple[str, ...]):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Arrays (1, K, ...), and guidance (1,), allowed and noise (1, N, M); to actions (1, *leaf)."""
        given = dict(zip(self.inputs, arrays, strict=True))

        def part(kind: str) -> TensorLeaves:
            return {name[len(kind) :]: array for name, array in given.items() if name.startswith(kind)}

        times = given["returns_to_go"], given["timesteps"], given["mask"]
        batch = Batch(part("state/"), part("action/"), *times)
        last = last_step(batch.mask)  # (1, 1)
        x = self.model.transformer(self.model.embed(batch), self.model.state_tokens(last))  # (1, 1, D)
        outputs = self.model.apply_heads(x, batch, last, given.get("guidance"))
        return tuple(self.model.choose(outputs, part("allowed/"), part("noise/")).values())


def of_one_row(policy: ReturnConditionedPolicy, model: DecisionTransformer) -> ReturnConditionedPolicy:
    """The same policy for one environment: each call of the model has one window, as an exported one has."""
    return ReturnConditionedPolicy(
        model,
        rows=1,
        temperature=policy.temperature,
        guidance=policy.guidance,
        context_length=policy.context_length,
        calibration=policy.calibration,
    )


def export_policy(
    policy: ReturnConditionedPolicy, model: DecisionTransformer, folder: Path, model_format: Format, origin: Any = None
) -> None:
    """Write a policy into an empty folder, so that it acts there without this package.

    policy: how the model is played. Keys and values are not cached, and numbers are float32.
    model: the policy's.
    origin: where it comes from, as JSON, for policy.json.

    Raises:
        ConfigError: the model cannot be exported.
    """
    example = _example(policy, model)
    inputs, outputs = tuple(example), tuple(model.action_leaves)
    if policy.precision != "float32" or policy.cached:
        raise ConfigError("export: expected a policy in float32 and without --cached, since it runs on any machine")
    function = WindowToAction(model.eval(), inputs)
    try:
        _write_model(function, example, outputs, folder / MODEL_FILES[model_format], model_format)
    except Exception as error:  # whatever the exporters raise, their own types are not public
        raise ConfigError(f"--format {model_format}: torch cannot export this model ({reason(error)})") from error
    for name in COPIED:
        (folder / name).write_bytes(Path(runner.__file__).with_name(name).read_bytes())
    write_json(folder / "policy.json", _describe(policy, model, model_format, inputs, outputs, origin))


def _example(policy: ReturnConditionedPolicy, model: DecisionTransformer) -> TensorLeaves:
    """A model's inputs for a window of one step, by name: what is exported is a function of arrays of these shapes."""
    steps, units = policy.context_length, model.units
    states, images = empty_rows(model.observation_space, units.observations), leaf_spaces(model.observation_space)
    for name in filter(lambda name: is_image(images[name]), states):
        states[name] = np.stack([states[name]] * model.config.frame_stack)
    example: TensorLeaves = {}
    for kind, rows in (("state", states), ("action", empty_rows(model.action_space, units.actions))):
        example |= {f"{kind}/{name}": torch.from_numpy(np.stack([row] * steps)[None]) for name, row in rows.items()}
    example["returns_to_go"] = torch.zeros(1, steps)
    example["timesteps"] = torch.zeros(1, steps, dtype=torch.int64)
    example["mask"] = (torch.arange(steps) < 1)[None]
    if model.config.conditioning in MODULATED:
        example["guidance"] = torch.ones(1)
    for name, allowed in allowed_choices(model.action_space).items():
        example[f"allowed/{name}"] = torch.from_numpy(allowed[None])
        if policy.temperature:
            example[f"noise/{name}"] = torch.zeros(1, *allowed.shape)
    return example


def _write_model(
    function: nn.Module, example: TensorLeaves, outputs: tuple[str, ...], path: Path, model_format: Format
) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch itself will change
        program = torch.export.export(function, tuple(example.values()), strict=False)
        if model_format == "torch-export":
            torch.export.save(program, path)
            return
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that are not needed
        exported = torch.onnx.export(
            program,
            input_names=list(example),
            output_names=[f"action of {name}" for name in outputs],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        exported.save(path, external_data=False)


def _describe(
    policy: ReturnConditionedPolicy,
    model: DecisionTransformer,
    model_format: Format,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    origin: Any,
) -> dict[str, Any]:
    """policy.json: all that the runner needs to know, and where the policy comes from."""
    seen, done, units = model.observation_space, model.action_space, model.units
    empty = empty_rows(seen, units.observations), empty_rows(done, units.actions)
    observations = {
        name: {
            **_leaf(leaf, empty[0][name].dtype, units.observations.get(name)),
            "frames": model.config.frame_stack if is_image(leaf) else 0,
        }
        for name, leaf in leaf_spaces(seen).items()
    }
    actions = {
        name: _leaf(leaf, empty[1][name].dtype, units.actions.get(name)) for name, leaf in leaf_spaces(done).items()
    }
    return {
        "schema": 1,
        "model": MODEL_FILES[model_format],
        "opset": OPSET if model_format == "onnx" else None,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "context_length": policy.context_length,
        "max_timesteps": model.timestep_limit,
        "guided": model.config.conditioning in MODULATED,
        "guidance": policy.guidance,
        "temperature": policy.temperature,
        "calibration": None if policy.calibration is None else _curves(policy.calibration),
        "observation": _structure(seen),
        "observation_leaves": observations,
        "action": _structure(done),
        "action_leaves": actions,
        "observation_space": space_to_json(seen),
        "action_space": space_to_json(done),
        "origin": origin,
    }


def _leaf(leaf: Space[Any], row_dtype: np.dtype[Any], units: Units | None) -> dict[str, Any]:
    """What the runner needs to know of a leaf. row_dtype: of its rows in the window."""
    counts, start = choices(leaf)
    dtype = np.dtype(leaf.dtype)
    limits: list[Any] = []
    if len(counts):
        limits = [each.reshape(leaf.shape).tolist() for each in (start, start + counts - 1)]
    elif dtype.kind in "iu":
        limits = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    bounds = [np.nan_to_num(each).tolist() for each in (leaf.low, leaf.high)] if isinstance(leaf, spaces.Box) else []
    return {
        "kind": type(leaf).__name__,
        "shape": list(leaf.shape or ()),
        "dtype": dtype.name,  # of the space
        "row_dtype": row_dtype.name,  # in the window
        "padding": padding_value(leaf).tolist(),
        "range": limits,  # of whole numbers: what the model knows
        "bounds": bounds,  # of a Box; infinity is the largest number of its type
        "counts": counts.tolist(),  # values of each choice
        "units": None if units is None else units.to_json(),
    }


def _structure(space: Space[Any], path: str = "") -> Any:
    """How a space nests, as JSON: dictionaries, lists for tuples, and the names of its leaves."""
    if isinstance(space, spaces.Dict):
        return {key: _structure(part, f"{path}/{key}") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_structure(part, f"{path}/{i}") for i, part in enumerate(space.spaces)]
    return path[1:] or next(iter(leaf_spaces(space)))


def _curves(calibration: Calibration) -> list[dict[str, Any]]:
    """The curves of a calibration in the form in which the runner looks up a request."""
    return [
        {
            "guidance": guidance,
            "requests": requests.tolist(),
            "achieved": achieved.tolist(),
            "spreads": spreads.tolist(),
        }
        for guidance, requests, achieved, spreads in (curve.points for curve in calibration.curves)
    ]


def origin_of(run: Run) -> dict[str, Any]:
    """Where a run's exported policy comes from: its checkpoint, data, environment and versions."""
    return {
        "checkpoint": run.checkpoint.name,
        "sha256": read_json(run.checkpoint / "manifest.json")["sha256"]["model.safetensors"],
        "dataset": run.dataset["name"],
        "percentiles": run.dataset.get("percentiles", []),
        "environment": run.environment.to_json() if run.environment else None,
        "versions": {name: version(name) for name in ("decision-transformer", "torch")},
    }


@dataclass(frozen=True)
class Comparison:
    """What came of playing the original and an exported policy side by side.

    steps: at which both acted.
    difference: the largest between numbers of Box actions; see `TOLERANCE` for its unit.
    latency: median milliseconds of an action, exported.
    torch_latency: the same of the original.
    """

    steps: int
    difference: float
    latency: float
    torch_latency: float

    def line(self) -> str:
        """All of it in a line."""
        return (
            f"{self.steps} steps: every action is the original's, numbers within {self.difference:.1e}; "
            f"an action takes {self.latency:.2f} ms, torch's {self.torch_latency:.2f} ms, "
            f"{self.torch_latency / self.latency:.1f} times as long"
        )


def compare(
    policy: ReturnConditionedPolicy,
    exported: runner.Policy,
    environment: EnvironmentSpec,
    target_return: float,
    steps: int = 300,
) -> Comparison:
    """Play the original, show its observations to an exported policy too, and compare each action.

    policy: the original, of one row.
    exported: from its folder.
    environment: where the original plays; episode i begins with seed i.
    target_return: what both are asked for.
    steps: environment steps in all.

    Raises:
        PolicyError: an action differs.
    """
    times: dict[str, list[float]] = {"torch": [], "exported": []}
    scales, largest, episode, info = _scales(policy.model), 0.0, 0, None
    with environment.make() as env:
        for step in range(steps):
            if info is None:
                observation, info = env.reset(seed=episode)
                policy.reset(target_return, seed=episode)
                exported.reset(target_return, seed=episode)
            before = time.perf_counter()
            ours = policy.act(observation, info)
            between = time.perf_counter()
            theirs = exported.act(observation, info.get("action_mask"))
            times["torch"].append(between - before)
            times["exported"].append(time.perf_counter() - between)
            largest = max(largest, _difference(policy.model.action_space, ours, theirs, scales, step))
            observation, reward, terminated, truncated, info = env.step(ours)
            policy.feed(float(reward))
            exported.feed(float(reward))
            if terminated or truncated:
                episode, info = episode + 1, None
    latency, torch_latency = (1000 * float(np.median(times[name])) for name in ("exported", "torch"))
    return Comparison(steps, largest, latency, torch_latency)


def _scales(model: DecisionTransformer) -> dict[str, Any]:
    """The unit in which differences of each Box leaf are judged: at least 1, and its half range or deviation."""
    units, scales = model.units.actions, {}
    for name, head in zip(model.action_leaves, model.heads, strict=True):
        if isinstance(head, ContinuousHead):
            scale = head.scale.cpu().double().numpy().reshape(head.shape)
            scales[name] = np.maximum(1, scale * (units[name].unit if name in units else 1))
    return scales


def _difference(space: Space[Any], ours: Any, theirs: Any, scales: Mapping[str, Any], step: int) -> float:
    """The largest difference of two actions' Box leaves; `PolicyError` where it is too large, or a choice differs."""
    largest, first, second = 0.0, to_leaves(space, ours), to_leaves(space, theirs)
    for name, leaf in leaf_spaces(space).items():
        where = f"step {step}: action {name}: the exported policy chose {second[name]}, the original {first[name]}"
        if first[name].dtype != second[name].dtype or first[name].shape != second[name].shape:
            raise PolicyError(f"{where} (of another type or shape)")
        if np.dtype(leaf.dtype).kind != "f":
            if (first[name] != second[name]).any():
                raise PolicyError(where)
            continue
        distance = np.abs(first[name].astype(np.float64) - second[name].astype(np.float64)) / scales[name]
        if not (distance <= TOLERANCE).all():
            raise PolicyError(f"{where} (expected a difference of at most {TOLERANCE:g})")
        largest = max(largest, float(distance.max(initial=0.0)))
    return largest
