"""A trained model that acts: an environment's last K steps, and target minus reward (Chen et al. 2021, algorithm 1)."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor

from dt.asking.calibration import Calibration
from dt.asking.guidance import Request, check_guidance
from dt.cached_windows import CachedWindows
from dt.data import Batch, TensorLeaves
from dt.encoders import is_image
from dt.errors import PolicyError
from dt.model import DecisionTransformer
from dt.units import Units, encoded
from dt.window import History, inside
from envs.errors import SpaceError
from envs.spaces import Leaves, allowed_choices, from_leaves, leaf_spaces, padding_value, to_leaves, value_error
from transformer.blocks import fast_view


class ReturnConditionedPolicy:
    """Acts towards a target return, in many environments at once or in a loop of your own.

    In a loop of your own, call `reset(target_return)`, then in turn `act(observation)` and `feed(reward)`. `rollout`
    calls `begin`, `choose` and `receive`, which do the same for many environments. If an environment's info holds an
    `action_mask`, as Gymnasium's spaces take it, only actions that it allows are chosen.

    Args:
        model: the trained model.
        rows: windows in each call of the model. Every call has this one shape, with idle rows filled, because the last
            bits of a matrix product depend on its number of rows. So returns do not depend on how many environments
            run. With fewer than 16, some processors' products also differ in the last bit from row to row.
        temperature: 0 takes the most likely of discrete actions; above 0 they are drawn from softmax(logits /
            temperature), each episode from a generator of its own seed. A Box has nothing to draw.
        precision: "bf16" is faster on hardware with such products, and its actions are slightly different.
        cached: reuse keys and values between steps. This is several times faster and a different policy: the window
            grows from half the context length to all of it, and then restarts from its most recent half.
        guidance: 1 plays the model as it was trained; above 1 it follows the target return more strongly. Only for
            models that the return modulates (conditioning single or decoupled).
        context_length: steps of history that the model sees, at most those of its training. None takes as many.
        calibration: what a run has measured about itself. It replaces each target return by the request and the
            guidance that achieve it (see `dt.asking.calibration`); `guidance` must then be 1.

    Raises:
        PolicyError: the temperature, guidance or context length cannot be used.
    """

    def __init__(
        self,
        model: DecisionTransformer,
        *,
        rows: int = 16,
        temperature: float = 0.0,
        precision: Literal["float32", "bf16"] = "float32",
        cached: bool = False,
        guidance: float = 1.0,
        context_length: int | None = None,
        calibration: Calibration | None = None,
    ):
        if not 0 <= temperature < np.inf:
            raise PolicyError(f"temperature must be 0 or more and finite, not {temperature}")
        check_guidance(model.config, guidance)
        if calibration is not None and guidance != 1:
            raise PolicyError(f"guidance {guidance:g} with a calibration, which chooses its own: give one of them")
        trained = model.config.context_length
        context_length = trained if context_length is None else context_length
        if not 1 <= context_length <= trained:
            raise PolicyError(f"context_length must be 1 to {trained}, as the model was trained, not {context_length}")
        self.model = fast_view(model.eval())
        self.rows = rows
        self.temperature = temperature
        self.guidance = guidance
        self.calibration = calibration
        self.context_length = context_length
        self.device = model.return_scale.device
        self._limit = model.timestep_limit
        self._units = model.units
        self._observation_spaces = leaf_spaces(model.observation_space)
        self._images = {name for name, leaf in self._observation_spaces.items() if is_image(leaf)}
        self._observations = empty_rows(model.observation_space, self._units.observations)
        self._actions = empty_rows(model.action_space, self._units.actions)
        self._states = self._observations | {
            name: np.stack([self._observations[name]] * model.config.frame_stack) for name in self._images
        }
        self._action_spaces = leaf_spaces(model.action_space)
        self._anything = allowed_choices(model.action_space)
        self._histories: dict[int, History] = {}
        self.precision = precision
        self.cached = cached
        self._bf16 = precision == "bf16"
        self._cached = CachedWindows(self.model, rows, self._bf16, self.context_length) if cached else None
        self._idle = self._history(Request(0.0), 0)
        self._idle.allowed = self._anything

    def reset(self, target_return: float, *, seed: int = 0) -> None:
        """Begin an episode in a loop of your own.

        Args:
            target_return: what the episode should earn, in the environment's unit.
            seed: of the draws, with a temperature above 0.
        """
        self.begin(0, target_return, seed)

    def act(self, observation: Any, info: Mapping[str, Any] | None = None) -> Any:
        """The action for an observation, in a loop of your own.

        Args:
            observation: as the environment gives it.
            info: as the environment gives it; an `action_mask` in it is respected.

        Raises:
            PolicyError: `reset` was not called, or no action is allowed.
        """
        return self.choose({0: observation}, {0: info or {}})[0]

    def feed(self, reward: float) -> None:
        """The reward of the last action, in a loop of your own. It lowers the return that is still wanted.

        Args:
            reward: in the environment's unit.
        """
        self.receive(0, reward)

    def begin(self, env: int, condition: float | Request, seed: int) -> None:
        """An episode starts in this environment.

        env: its number.
        condition: the target return, which a calibration translates; or a `Request`, which is used unchanged.
        seed: of what the episode draws.
        """
        request = condition if isinstance(condition, Request) else self.request_for(float(condition))
        if not np.isfinite(request.return_to_go):
            raise PolicyError(f"target return must be finite, not {request.return_to_go}")
        self._histories[env] = self._history(request, seed)

    def request_for(self, target_return: float) -> Request:
        """What the model is conditioned on for a target return: the calibration's choice, or the target itself."""
        if self.calibration is None or not np.isfinite(target_return):
            return Request(target_return, self.guidance)
        return self.calibration.request_for(target_return)

    def _history(self, request: Request, seed: int) -> History:
        history = History(
            self.context_length,
            states=self._states,
            images=self._images,
            actions=self._actions,
            target_return=float(request.return_to_go),
            seed=seed,
            guidance=request.guidance,
        )
        if self._cached is not None:
            history.keep = self._cached.keep
        return history

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """An action for each environment that has an observation here; infos: what came with them."""
        self._take_in(observations, infos)
        actions: dict[int, Any] = {}
        act = self._act if self._cached is None else partial(self._act_cached, self._cached)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            for environments, outputs in act(list(observations)):
                arrays = {name: self._in_space(name, x.cpu().numpy()) for name, x in outputs.items()}
                for row, env in environments.items():
                    action = {name: array[row] for name, array in arrays.items()}
                    self._histories[env].set_action(encoded(action, self._units.actions))
                    actions[env] = from_leaves(self.model.action_space, action)
        return actions

    def _take_in(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> None:
        """Add each observation to its episode's history; if one does not fit, none is and `PolicyError` is raised."""
        seen, reasons = dict[int, tuple[Leaves, Leaves]](), dict[int, str]()
        for env, observation in observations.items():
            try:
                seen[env] = self._checked_observation(env, observation, infos[env].get("action_mask"))
            except SpaceError as error:
                reasons[env] = f"step {self._histories[env].elapsed}: {error}"
        if reasons:
            raise PolicyError("; ".join(f"environment {env}, {reason}" for env, reason in reasons.items()), reasons)
        for env, (state, allowed) in seen.items():
            self._histories[env].allowed = allowed
            self._histories[env].add_state(state)

    def _in_space(self, name: str, chosen: NDArray[Any]) -> NDArray[Any]:
        """Actions of a leaf as its space has them, from the model's numbers."""
        units, space = self._units.actions.get(name), self._action_spaces[name]
        actions = chosen if units is None else units.decode(chosen)
        bounds = (space.low, space.high) if isinstance(space, spaces.Box) else ()
        return inside(actions, space.dtype, *bounds)

    def _act(self, environments: list[int]) -> Iterator[tuple[dict[int, int], TensorLeaves]]:
        """Actions of `rows` environments at a time, each (rows, *leaf), and the environment of each row."""
        for start in range(0, len(environments), self.rows):
            chunk = environments[start : start + self.rows]
            histories = [self._histories[env] for env in chunk]
            actions = self.model.act(
                self._batch(histories),
                allowed=self._allowed(histories),
                noise=self._noise(histories),
                guidance=self._guidance(histories),
            )
            yield dict(enumerate(chunk)), actions

    def _act_cached(
        self, cached: CachedWindows, environments: list[int]
    ) -> Iterator[tuple[dict[int, int], TensorLeaves]]:
        """The same with cached keys and values: windows that restart, `restart_rows` at a time, then the others."""
        moved = [env for env in environments if self._histories[env].window_moved]
        for start in range(0, len(moved), cached.restart_rows):
            chunk = moved[start : start + cached.restart_rows]
            histories = [self._histories[env] for env in chunk]
            outputs = cached.begin(chunk, self._batch(histories), self._guidance(histories))
            yield dict(enumerate(chunk)), self._choose(outputs, histories)
        places: dict[int, dict[int, int]] = {}  # by cache the environment of each row: each has one place
        for env in sorted(set(environments) - set(moved)):
            number, row = divmod(env, self.rows)
            places.setdefault(number, {})[row] = env
        for number, by_row in places.items():
            histories = [self._idle] * self.rows
            for row, env in by_row.items():
                histories[row] = self._histories[env]
            outputs = cached.go_on(number, self._batch(histories), self._guidance(histories))
            yield by_row, self._choose(outputs, histories)

    def _choose(self, outputs: TensorLeaves, histories: list[History]) -> TensorLeaves:
        """Actions from head outputs at one step, for each leaf: (rows, *leaf)."""
        return self.model.choose(outputs, self._allowed(histories), self._noise(histories))

    def receive(self, env: int, reward: float) -> None:
        """The reward that the last action in this environment earned."""
        if env not in self._histories:
            raise PolicyError("feed before reset: call reset(target_return) at the start of each episode")
        self._histories[env].earned += float(reward)

    def _checked_observation(self, env: int, observation: Any, action_mask: Any) -> tuple[Leaves, Leaves]:
        """The leaves of an observation, and what may be chosen now.

        Raises:
            SpaceError: the model cannot act there.
        """
        if env not in self._histories:
            raise PolicyError("act before reset: call reset(target_return) at the start of each episode")
        if self._limit is not None and self._histories[env].elapsed >= self._limit:
            raise SpaceError(f"past the model's table of {self._limit} timesteps; train with a larger --max-timesteps")
        state = to_leaves(self.model.observation_space, observation)
        for name, row in state.items():
            if row.shape != self._observations[name].shape:
                raise SpaceError(f"observation {name}: shape {row.shape}, expected {self._observations[name].shape}")
            if wrong := value_error(name, self._observation_spaces[name], row):
                raise SpaceError(f"observation {wrong}")
        allowed = self._anything if action_mask is None else allowed_choices(self.model.action_space, action_mask)
        return encoded(state, self._units.observations), allowed

    def _allowed(self, histories: list[History]) -> dict[str, torch.Tensor]:
        """What may be chosen, for each leaf of choices (rows, N, M); in idle rows anything."""
        idle = [self._anything] * (self.rows - len(histories))
        rows = [history.allowed for history in histories] + idle
        allowed = {}
        for name in self._anything:
            stacked = np.stack([row[name] for row in rows])  # (rows, N, M)
            allowed[name] = torch.from_numpy(stacked).to(self.device)
        return allowed

    def _guidance(self, histories: list[History]) -> Tensor | None:
        """Guidance of each row, (rows,) float32; None where it is 1 everywhere, so that the plain model is played."""
        if all(history.guidance == 1 for history in histories):
            return None
        rows = torch.ones(self.rows)
        rows[: len(histories)] = torch.tensor([history.guidance for history in histories])
        return rows.to(self.device)

    def _noise(self, histories: list[History]) -> dict[str, torch.Tensor] | None:
        """Temperature times Gumbel noise, (rows, N, M); None where nothing is drawn.

        `DiscreteHead.choose` adds it to the logits. Each episode draws it from its own `History.generator`.
        """
        if self.temperature == 0:
            return None
        noise = {name: np.zeros((self.rows, *anything.shape), np.float32) for name, anything in self._anything.items()}
        for row, history in enumerate(histories):
            for array in noise.values():
                array[row] = self.temperature * history.generator.gumbel(size=array[row].shape)
        return {name: torch.from_numpy(array).to(self.device) for name, array in noise.items()}

    def _batch(self, histories: list[History]) -> Batch:
        """One batch of `rows` windows; rows past the histories are empty, their mask False."""
        mask = np.zeros((self.rows, self.context_length), np.bool_)
        for row, history in enumerate(histories):
            mask[row, : history.length] = True

        def stack(windows: list[NDArray[Any]]) -> torch.Tensor:
            full = np.zeros((self.rows, *windows[0].shape), windows[0].dtype)
            full[: len(windows)] = windows
            return torch.from_numpy(full).to(self.device)

        return Batch(
            states={name: stack([h.states[name] for h in histories]) for name in self._states},
            actions={name: stack([h.actions[name] for h in histories]) for name in self._actions},
            returns_to_go=stack([h.returns_to_go for h in histories]),
            timesteps=stack([h.timesteps for h in histories]),
            mask=torch.from_numpy(mask).to(self.device),
        )


def empty_rows(space: Space[Any], units: Mapping[str, Units]) -> Leaves:
    """For each leaf a row that says nothing: floats as float32, which is what models see, all else as the space."""
    rows = {name: padding_value(leaf) for name, leaf in leaf_spaces(space).items()}
    floats = {name for name, row in rows.items() if row.dtype.kind == "f" or name in units}
    return {name: row.astype(np.float32) if name in floats else row for name, row in rows.items()}
