"""Acts with an exported policy: `reset(target_return)`, then in turn `act(observation)` and `feed(reward)`.

`dt export` copies this file and window.py next to the model and policy.json. It needs numpy and onnxruntime, or torch
where the model was exported with `--format torch-export`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__:
    from .window import History, inside
else:  # this file was copied, and its folder is on Python's path
    from window import History, inside  # type: ignore[import-not-found, no-redef]

Arrays = dict[str, NDArray[Any]]
Leaf = Mapping[str, Any]
"""What policy.json says of one leaf of a space."""


class Policy:
    """Acts towards a target return, in one environment.

    folder: of the exported policy; None is the folder of this file.
    """

    def __init__(self, folder: str | Path | None = None):
        folder = Path(folder or Path(__file__).parent)
        self.about: dict[str, Any] = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        self._observations: dict[str, Leaf] = self.about["observation_leaves"]
        self._actions: dict[str, Leaf] = self.about["action_leaves"]
        self._model = _open(folder / self.about["model"], self.about)
        self._history: History | None = None

    def reset(self, target_return: float, *, seed: int = 0, guidance: float | None = None) -> None:
        """Start an episode.

        target_return: the return to earn, in the reward's unit.
        seed: of what is drawn, where the policy was exported with a temperature above 0.
        guidance: how strongly the model follows the return. None takes what the calibration found; a number also makes
            the target return the model's input as it is.
        """
        if not np.isfinite(target_return):
            raise ValueError(f"target return must be finite, not {target_return}")
        if guidance not in (None, 1) and not self.about["guided"]:
            raise ValueError(f"guidance {guidance}: this model takes none; leave it out")
        wanted, strength = self.request_for(target_return) if guidance is None else (float(target_return), guidance)
        states, actions = (
            {name: np.array(leaf["padding"], leaf["row_dtype"]) for name, leaf in leaves.items()}
            for leaves in (self._observations, self._actions)
        )
        images = {name for name, leaf in self._observations.items() if leaf["frames"]}
        for name in images:
            states[name] = np.stack([states[name]] * self._observations[name]["frames"])
        self._history = History(self.about["context_length"], states, images, actions, wanted, seed, strength)

    def act(self, observation: Any, action_mask: Any = None) -> Any:
        """The action for this observation, in the form of the action space.

        action_mask: what may be chosen, as Gymnasium's `space.sample(mask)` takes it; None allows everything.
        """
        history = self._started("act")
        limit = self.about["max_timesteps"]
        if limit is not None and history.elapsed >= limit:
            raise ValueError(f"the model knows {limit} timesteps, and this step is past them")
        given = _leaves(self.about["observation"], observation)
        state = {name: _encode(leaf, _checked(name, leaf, given[name])) for name, leaf in self._observations.items()}
        masks = _leaves(self.about["action"], action_mask)
        allowed = {name: _allowed(leaf, masks[name]) for name, leaf in self._actions.items() if leaf["counts"]}
        history.add_state(state)
        chosen = self._model(self._inputs(history, allowed))
        action = {}
        for name, leaf in self._actions.items():
            action[name] = inside(_decode(leaf, chosen[name]), leaf["dtype"], *leaf["bounds"])
        history.set_action({name: _encode(leaf, action[name]) for name, leaf in self._actions.items()})
        scalars = {name: row[()] for name, row in action.items() if self._actions[name]["kind"] == "Discrete"}
        return _nested(self.about["action"], action | scalars)

    def feed(self, reward: float) -> None:
        """The reward of the last action: from now on that much less is wanted."""
        self._started("feed").earned += float(reward)

    def request_for(self, target_return: float) -> tuple[float, float]:
        """What the model is conditioned on for a target return: a return and a guidance.

        On each curve of the calibration this is the request that earned the target, or came closest to it, unless a
        request that was played is surer. The curve is chosen by that distance and by how far single episodes are from
        their mean.
        """
        target, best = float(target_return), (np.inf, float(target_return), float(self.about["guidance"]))
        for curve in self.about["calibration"] or ():
            requests, achieved = np.array(curve["requests"]), np.array(curve["achieved"])
            answer = np.clip(target, achieved[0], achieved[-1])
            left, right = np.searchsorted(achieved, answer, "left"), np.searchsorted(achieved, answer, "right") - 1
            if left <= right:  # several requests earn the same, or one earns exactly this
                request = float(np.clip(target, requests[left], requests[right]))
            else:
                share = (answer - achieved[right]) / (achieved[left] - achieved[right])
                request = float(requests[right] + share * (requests[left] - requests[right]))
            unsure = curve["spread_weight"] * np.array(curve["spreads"])
            distance = abs(answer - target) + np.interp(request, requests, unsure)
            played = np.abs(achieved - target) + unsure
            if played.min() < distance - curve["surer"] * (achieved[-1] - achieved[0]):
                distance, request = played.min(), float(requests[played.argmin()])
            if distance < best[0]:
                best = (distance, request, float(curve["guidance"]))
        return best[1:]

    def _started(self, call: str) -> History:
        if self._history is None:
            raise RuntimeError(f"{call} before reset: call reset(target_return) at the start of each episode")
        return self._history

    def _inputs(self, history: History, allowed: Arrays) -> Arrays:
        """The model's inputs, a batch of one window each."""
        arrays = {f"state/{name}": array for name, array in history.states.items()}
        arrays |= {f"action/{name}": array for name, array in history.actions.items()}
        arrays |= {"returns_to_go": history.returns_to_go, "timesteps": history.timesteps}
        arrays["mask"] = np.arange(len(history.timesteps)) < history.length
        arrays["guidance"] = np.array(history.guidance, np.float32)
        for name, choices in sorted(allowed.items()):
            arrays[f"allowed/{name}"] = choices
            if self.about["temperature"]:
                noise = self.about["temperature"] * history.generator.gumbel(size=choices.shape)
                arrays[f"noise/{name}"] = noise.astype(np.float32)
        return {name: np.ascontiguousarray(arrays[name][None]) for name in self.about["inputs"]}


def _open(path: Path, about: Mapping[str, Any]) -> Any:
    """The model as a function from its inputs to the action of each leaf."""
    if path.suffix == ".pt2":
        import torch

        model = torch.export.load(path).module()

        def run_torch(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                outputs = model(*(torch.from_numpy(array) for array in inputs.values()))
            return {name: np.asarray(output[0]) for name, output in zip(about["outputs"], outputs, strict=True)}

        return run_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one window is too little work for more
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        return {
            name: np.asarray(output[0])
            for name, output in zip(about["outputs"], session.run(None, inputs), strict=True)
        }

    return run


def _leaves(structure: Any, value: Any) -> dict[str, Any]:
    """The parts of a value that nests as the structure does: dictionaries, lists for tuples, names of leaves."""
    if isinstance(structure, str):
        return {structure: value}
    pairs = structure.items() if isinstance(structure, dict) else enumerate(structure)
    parts = (_leaves(part, None if value is None else value[key]) for key, part in pairs)
    return {name: leaf for part in parts for name, leaf in part.items()}


def _nested(structure: Any, leaves: Arrays) -> Any:
    """The inverse of `_leaves`."""
    if isinstance(structure, str):
        return leaves[structure]
    if isinstance(structure, dict):
        return {key: _nested(part, leaves) for key, part in structure.items()}
    return tuple(_nested(part, leaves) for part in structure)


def _checked(name: str, leaf: Leaf, value: Any) -> NDArray[Any]:
    """An observation's leaf as an array; one that the model does not know is refused."""
    row = np.asarray(value)
    if row.shape != tuple(leaf["shape"]):
        raise ValueError(f"observation {name}: shape {row.shape}, expected {tuple(leaf['shape'])}")
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise ValueError(f"observation {name} is not finite: {row}")
    if leaf["range"]:
        low, high = leaf["range"]
        if (row != np.rint(row)).any() or (row < low).any() or (row > high).any():
            raise ValueError(f"observation {name}: {row}, expected whole numbers from {low} to {high}")
    return row


def _encode(leaf: Leaf, row: NDArray[Any]) -> NDArray[Any]:
    """Numbers as the model sees them. The offset is subtracted in float64, where float32 has too few digits."""
    units = leaf["units"]
    if units:
        with np.errstate(over="ignore"):
            row = (row.astype(np.float64) - np.array(units["offset"])) / np.array(units["unit"])
        return np.clip(row, -np.array(units["limit"]), units["limit"]).astype(np.float32)
    is_wide = row.dtype.kind == "f" and row.dtype.itemsize > 2
    return np.clip(row, -leaf["largest"], leaf["largest"]) if is_wide else row


def _decode(leaf: Leaf, row: NDArray[Any]) -> NDArray[Any]:
    """The model's numbers in the unit of the action space."""
    units = leaf["units"]
    return row.astype(np.float64) * np.array(units["unit"]) + np.array(units["offset"]) if units else row


def _allowed(leaf: Leaf, mask: Any) -> NDArray[np.bool_]:
    """Which values of each choice may be taken: (N, M), M the most values of any choice."""
    counts = np.array(leaf["counts"])
    allowed = np.arange(counts.max()) < counts[:, None]
    if mask is None:
        return allowed
    if leaf["kind"] == "Discrete":
        mask = [mask]
    elif leaf["kind"] == "MultiBinary":  # for each bit the value that it must have, or 2
        mask = [(bit != 1, bit != 0) for bit in np.ravel(mask)]
    for _ in range(len(leaf["shape"]) - 1 if leaf["kind"] == "MultiDiscrete" else 0):  # tuples of tuples
        mask = [flags for row in mask for flags in row]
    for row, count, flags in zip(allowed, counts, mask, strict=True):
        flags = np.asarray(flags, np.bool_)
        if flags.shape != (count,) or not flags.any():
            raise ValueError(f"action mask: {flags}, expected {count} flags, at least one of them true")
        row[:count] = flags
    return allowed
