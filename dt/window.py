"""The window of an episode that a policy shows its model: the last K steps, and target return minus rewards.

numpy only: `dt export` copies this file next to the model, where nothing else of this package is installed.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = Mapping[str, NDArray[Any]]
"""One array for each leaf of a space, by the leaf's name."""


class History:
    """The last K steps of one episode: what the model is shown. Oldest first, each step at its place in the window."""

    def __init__(
        self,
        context_length: int,
        states: Rows,
        images: Set[str],
        actions: Rows,
        target_return: float,
        seed: int,
        guidance: float = 1.0,
    ):
        """An empty window.

        context_length: steps that it holds.
        states, actions: for each leaf a row of the right shape and type, which fills steps that are not there yet.
        images: the leaves that are stacks of frames.
        target_return: the return that the model is conditioned on at the first step, in the reward's unit.
        seed: of the episode's random choices.
        guidance: how strongly the model follows the return; 1 is the model as trained.
        """
        self.states = {name: np.stack([row] * context_length) for name, row in states.items()}
        self.actions = {name: np.stack([row] * context_length) for name, row in actions.items()}
        self._frames = {name: states[name].copy() for name in images}  # each (F, *leaf), oldest first
        self._no_action = actions
        self.returns_to_go = np.zeros(context_length, np.float32)
        self.timesteps = np.zeros(context_length, np.int64)
        self.length = 0  # steps in the window
        self.keep = context_length - 1  # steps kept when a full window takes a new one
        self.window_moved = True  # the present step is the episode's first, or old steps were just dropped
        self.elapsed = 0  # steps of the episode that have been seen
        self.target_return = target_return
        self.guidance = guidance
        self.earned = 0.0  # float64, summed in the order the rewards came, as the training data's
        self.allowed: Rows = {}  # what the present step's action mask says
        # With the 1, this is not the stream that the environment itself draws from.
        self.generator = np.random.default_rng([seed, 1])

    def add_state(self, state: Rows) -> None:
        """A new step begins: its state, its time and what is still wanted."""
        if self.length == len(self.timesteps):
            for array in (*self.states.values(), *self.actions.values(), self.returns_to_go, self.timesteps):
                array[: self.keep] = array[self.length - self.keep :]
            self.length, self.window_moved = self.keep, True
        else:
            self.window_moved = self.elapsed == 0
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
        """The last frames with this one as their newest; the first of an episode is repeated, as in training."""
        frames = self._frames[name]
        frames[:-1] = frames[1:] if self.elapsed else frame
        frames[-1] = frame
        return frames

    def set_action(self, action: Rows) -> None:
        """The action that was taken in the present step."""
        for name, row in action.items():
            self.actions[name][self.length - 1] = row


def inside(actions: NDArray[Any], dtype: Any, low: Any = None, high: Any = None) -> NDArray[Any]:
    """Actions of a leaf (..., *leaf) in their space's own type and bounds, which float32 may miss by a last bit.

    Integers are the nearest ones, not the next towards zero.

    dtype: of the space.
    low, high: bounds of a Box, (*leaf,); None where the leaf is not one.
    """
    whole = np.rint(actions) if np.dtype(dtype).kind in "iu" else actions
    return (whole if low is None else np.clip(whole, low, high)).astype(dtype)
