"""Acts with an exported policy: `reset(target_return)`, then in turn `act(observation)` and `feed(reward)`.

`dt export` copies this file and those that it imports next to the model and policy.json. They need numpy and
onnxruntime, or torch where the model was exported with `--format torch-export`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__:
    from .curves import Points, find_request
    from .leaves import allowed_choices, checked, empty, from_leaves, to_leaves, units_of
    from .units import encoded
    from .window import History, inside
else:  # the folder of these files is on Python's path
    from curves import Points, find_request  # type: ignore[import-not-found, no-redef]
    from leaves import (  # type: ignore[import-not-found, no-redef]
        allowed_choices,
        checked,
        empty,
        from_leaves,
        to_leaves,
        units_of,
    )
    from units import encoded  # type: ignore[import-not-found, no-redef]
    from window import History, inside  # type: ignore[import-not-found, no-redef]

Arrays = dict[str, NDArray[Any]]


class Policy:
    """Acts towards a target return, in one environment.

    folder: of the exported policy; None is the folder of this file.
    """

    def __init__(self, folder: str | Path | None = None):
        folder = Path(folder or Path(__file__).parent)
        about = self.about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        self._observations, self._actions = about["observation_leaves"], about["action_leaves"]
        self._seen_units, self._done_units = units_of(self._observations), units_of(self._actions)
        self._curves = [
            Points(curve["guidance"], *(np.array(curve[part]) for part in ("requests", "achieved", "spreads")))
            for curve in about["calibration"] or ()
        ]
        self._model = _open(folder / about["model"])
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
        request, strength = (target_return, guidance) if guidance is not None else self.request_for(target_return)
        states, actions = (
            {name: empty(leaf) for name, leaf in leaves.items()} for leaves in (self._observations, self._actions)
        )
        images = {name for name, leaf in self._observations.items() if leaf["frames"]}
        self._history = History(self.about["context_length"], states, images, actions, request, seed, strength)

    def act(self, observation: Any, action_mask: Any = None) -> Any:
        """The action for this observation, in the form of the action space.

        action_mask: what may be chosen, as Gymnasium's `space.sample(mask)` takes it; None allows everything.
        """
        history, limit = self._started("act"), self.about["max_timesteps"]
        if limit is not None and history.elapsed >= limit:
            raise ValueError(f"the model knows {limit} timesteps, and this step is past them")
        given, masks = to_leaves(self.about["observation"], observation), to_leaves(self.about["action"], action_mask)
        state = {name: checked(name, leaf, given[name]) for name, leaf in self._observations.items()}
        allowed = {name: allowed_choices(leaf, masks[name]) for name, leaf in self._actions.items() if leaf["counts"]}
        history.add_state(encoded(state, self._seen_units))
        chosen = dict(zip(self.about["outputs"], self._model(self._inputs(history, allowed)), strict=True))
        action = {}
        for name, leaf in self._actions.items():
            row = self._done_units[name].decode(chosen[name][0]) if leaf["units"] else chosen[name][0]
            action[name] = inside(row, leaf["dtype"], *leaf["bounds"])
        history.set_action(encoded(action, self._done_units))
        scalars = {name: row[()] for name, row in action.items() if self._actions[name]["kind"] == "Discrete"}
        return from_leaves(self.about["action"], action | scalars)

    def feed(self, reward: float) -> None:
        """The reward of the last action: from now on that much less is wanted."""
        self._started("feed").earned += float(reward)

    def request_for(self, target_return: float) -> tuple[float, float]:
        """What the model is conditioned on for a target return: a return and a guidance, by the calibration."""
        if not self._curves:
            return float(target_return), self.about["guidance"]
        guidance, request, *_ = find_request(self._curves, float(target_return))
        return request, guidance

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


def _open(path: Path) -> Callable[[Arrays], list[Any]]:
    """The model as a function from its inputs to the action of each leaf, (1, *leaf)."""
    if path.suffix == ".pt2":
        import torch

        model = torch.export.load(path).module()
        function = torch.inference_mode()(model)
        return lambda inputs: [np.asarray(output) for output in function(*map(torch.from_numpy, inputs.values()))]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one window is too little work for more
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, inputs))
