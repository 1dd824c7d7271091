"""A trained model that acts: each world's last K steps, and target minus reward (Chen et al. 2021, algorithm 1)."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from dt.data import Batch
from dt.encoders import is_image
from dt.model import DecisionTransformer
from envs.spaces import Leaves, SpaceError, allowed_choices, from_leaves, leaf_spaces, least, to_leaves


class PolicyError(ValueError):
    """A policy asked for what it cannot do; the message says what and why."""


class History:
    """The last K steps of one episode: what the model is shown. Oldest first, each step at its place in the window."""

    def __init__(
        self, context_length: int, states: Leaves, images: Set[str], actions: Leaves, target_return: float, seed: int
    ):
        """states, actions: for each leaf a row of the right shape and type that stands where there is none.

        images: the leaves of which a row is a stack of frames. seed: what the episode's random choices come from.
        """
        self.states = {name: np.stack([row] * context_length) for name, row in states.items()}
        self.actions = {name: np.stack([row] * context_length) for name, row in actions.items()}
        self._frames = {name: states[name].copy() for name in images}  # each (F, *leaf), oldest first
        self._no_action = actions
        self.returns_to_go = np.zeros(context_length, np.float32)
        self.timesteps = np.zeros(context_length, np.int64)
        self.length = 0  # steps in the window
        self.elapsed = 0  # steps of the episode that have been seen
        self.target_return = target_return
        self.earned = 0.0  # float64, summed in the order the rewards came, as the training data's
        self.allowed: Leaves = {}  # what the present step's action mask says
        self.generator = np.random.default_rng([seed, 1])  # with the 1, not the stream that the world itself draws from

    def add_state(self, state: Leaves) -> None:
        """A new step begins: its state, its time and what is still wanted."""
        if self.length == len(self.timesteps):
            for array in (*self.states.values(), *self.actions.values(), self.returns_to_go, self.timesteps):
                array[:-1] = array[1:]
        else:
            self.length += 1
        now = self.length - 1
        for name, row in state.items():
            self.states[name][now] = self._stacked(name, row) if name in self._frames else row
        for name, array in self.actions.items():
            array[now] = self._no_action[name]  # not chosen yet; the model reads it before it comes to this token
        self.returns_to_go[now] = self.target_return - self.earned
        self.timesteps[now] = self.elapsed
        self.elapsed += 1

    def _stacked(self, name: str, frame: NDArray[Any]) -> NDArray[Any]:
        """The last frames with this one as their newest; the first of an episode is repeated. As `gather` does it."""
        frames = self._frames[name]
        frames[:-1] = frames[1:] if self.elapsed else frame
        frames[-1] = frame
        return frames

    def set_action(self, action: Leaves) -> None:
        """The action that was taken in the present step."""
        for name, row in action.items():
            self.actions[name][self.length - 1] = row


class ReturnConditionedPolicy:
    """Acts towards a target return, in many worlds at once or in a loop of one's own.

    In one's own loop: `reset(target_return)`, then in turn `act(observation)` and `feed(reward)`. `rollout` uses
    `begin`, `choose` and `receive`, the same for many worlds. Where a world's info holds an `action_mask`, as
    Gymnasium's spaces take it, nothing is chosen that it forbids.

    temperature: 0 takes the likeliest of discrete actions; above it they are drawn from softmax(logits / temperature).
    Each episode draws from a generator of its own seed. A Box has nothing to draw: its action is the model's.
    rows: windows in each call of the model. Every call has this one shape, idle rows filled: the last bits of a matrix
    product depend on its number of rows, so only then does a world's return not depend on how many play beside it.
    """

    def __init__(self, model: DecisionTransformer, *, rows: int = 16, temperature: float = 0.0):
        if not 0 <= temperature < np.inf:
            raise PolicyError(f"temperature must be 0 or more and finite, not {temperature}")
        self.model, self.rows, self.temperature = model.eval(), rows, temperature
        self.device = model.return_scale.device
        leaves = leaf_spaces(model.observation_space)
        self._images = {name for name, leaf in leaves.items() if is_image(leaf)}
        self._observations, self._actions = _empty_rows(model.observation_space), _empty_rows(model.action_space)
        self._states = self._observations | {
            name: np.stack([self._observations[name]] * model.config.frame_stack) for name in self._images
        }
        self._action_spaces = leaf_spaces(model.action_space)
        self._anything = allowed_choices(model.action_space)
        self._histories: dict[int, History] = {}

    def reset(self, target_return: float, *, seed: int = 0) -> None:
        """A new episode in a loop of one's own, towards this return (in the reward's own unit).

        seed: of what is drawn where the temperature is above 0.
        """
        self.begin(0, target_return, seed)

    def act(self, observation: Any, info: Mapping[str, Any] | None = None) -> Any:
        """The action for this observation, in the action space's own form; info: what came with it, for its mask."""
        return self.choose({0: observation}, {0: info or {}})[0]

    def feed(self, reward: float) -> None:
        """The reward that the last action earned: from now on that much less is wanted."""
        self.receive(0, reward)

    def begin(self, world: int, request: float, seed: int) -> None:
        """An episode starts in this world; the request is its target return."""
        if not np.isfinite(request):
            raise PolicyError(f"target return must be finite, not {request}")
        self._histories[world] = History(
            self.model.config.context_length, self._states, self._images, self._actions, float(request), seed
        )

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """An action for each world whose observation is given; infos: what came with them."""
        for world, observation in observations.items():
            self._observe(world, observation, infos[world].get("action_mask"))
        worlds, actions = list(observations), {}
        for start in range(0, len(worlds), self.rows):
            chunk = worlds[start : start + self.rows]
            histories = [self._histories[world] for world in chunk]
            outputs = self.model.act(self._batch(histories), self._allowed(histories), self._noise(histories))
            arrays = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
            for row, world in enumerate(chunk):
                action = {name: _inside(array[row], self._action_spaces[name]) for name, array in arrays.items()}
                self._histories[world].set_action(action)
                actions[world] = from_leaves(self.model.action_space, action)
        return actions

    def receive(self, world: int, reward: float) -> None:
        """The reward that the last action in this world earned."""
        if world not in self._histories:
            raise PolicyError("feed before reset: call reset(target_return) at the start of each episode")
        self._histories[world].earned += float(reward)

    def _observe(self, world: int, observation: Any, action_mask: Any) -> None:
        if world not in self._histories:
            raise PolicyError("act before reset: call reset(target_return) at the start of each episode")
        history = self._histories[world]
        if history.elapsed >= self.model.max_timesteps:
            raise PolicyError(
                f"step {history.elapsed} is past the model's table of {self.model.max_timesteps} timesteps; "
                "train with a larger --max-timesteps"
            )
        state = to_leaves(self.model.observation_space, observation)
        for name, row in state.items():
            if row.shape != self._observations[name].shape:
                raise PolicyError(f"observation {name}: shape {row.shape}, expected {self._observations[name].shape}")
            if not np.isfinite(row).all():
                raise PolicyError(f"world {world}, step {history.elapsed}: observation {name} is not finite: {row}")
        try:
            history.allowed = allowed_choices(self.model.action_space, action_mask)
        except SpaceError as error:
            raise PolicyError(f"world {world}, step {history.elapsed}: {error}") from None
        history.add_state(state)

    def _allowed(self, histories: list[History]) -> dict[str, torch.Tensor]:
        """What may be chosen, for each leaf of choices (rows, N, M); in idle rows anything."""
        idle = [self._anything] * (self.rows - len(histories))
        rows = [history.allowed for history in histories] + idle
        return {
            name: torch.from_numpy(np.stack([row[name] for row in rows])).to(self.device) for name in self._anything
        }

    def _noise(self, histories: list[History]) -> dict[str, torch.Tensor] | None:
        """Temperature times Gumbel noise of each episode's own generator, (rows, N, M); None where nothing is drawn."""
        if self.temperature == 0:
            return None
        noise = {name: np.zeros((self.rows, *anything.shape), np.float32) for name, anything in self._anything.items()}
        for row, history in enumerate(histories):
            for array in noise.values():
                array[row] = self.temperature * history.generator.gumbel(size=array[row].shape)
        return {name: torch.from_numpy(array).to(self.device) for name, array in noise.items()}

    def _batch(self, histories: list[History]) -> Batch:
        """One batch of `rows` windows; rows past the histories are empty, their mask False."""
        mask = np.zeros((self.rows, self.model.config.context_length), np.bool_)
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


def _inside(array: NDArray[Any], space: Space[Any]) -> NDArray[Any]:
    """An action leaf in its space's own type and bounds, which float32 arithmetic may miss by a last bit.

    Integers are the nearest ones, not the next towards zero.
    """
    kind = np.dtype(space.dtype)
    whole = np.rint(array) if kind.kind in "iu" else array
    return (np.clip(whole, space.low, space.high) if isinstance(space, spaces.Box) else whole).astype(kind)


def _empty_rows(space: Space[Any]) -> Leaves:
    """For each leaf a row that says nothing: floats as float32, which is what models see, all else as the space."""
    rows = {name: least(leaf) for name, leaf in leaf_spaces(space).items()}
    return {name: row.astype(np.float32) if row.dtype.kind == "f" else row for name, row in rows.items()}
