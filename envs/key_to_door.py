"""Key-to-Door (Hung et al. 2019, Mesnard et al. 2021): what was done long ago decides what is earned now.

Three rooms, one after the other, each left when its time is over: one with a key, an empty one, one with a door. The
only reward is 1 at the door, if the key was taken in the first room. The agent sees only its own room, so in the
last one nothing shows whether it holds the key.

Importing this module registers `KeyToDoor-v0`.
"""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

SIDE = 4
"""Cells of a room, each way."""
ROOM_STEPS = 8
"""Steps in each room: playing at random finds the key, or the door, in 17.6 % of episodes, both in 3.1 %."""
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns that the actions move by: up, right, down, left."""
KEY_ROOM, EMPTY_ROOM, DOOR_ROOM = range(3)
NOTHING, KEY, DOOR = range(3)
IN_SIGHT = (KEY, NOTHING, DOOR)
"""What there is in each room."""

View = NDArray[np.int64]
Place = tuple[int, int]


class KeyToDoor(gymnasium.Env[View, np.int64]):
    """Walk over the key, wait, walk to the door: the episode ends there, or when the last room's time is over.

    Observation: MultiDiscrete [3, 7, 7]: nothing, the key or the door is in sight, how many rows below the agent it is
    and how many columns to its right, counted from three above and three to the left (3 and 3 where there is nothing).
    Action: one of `MOVES`; one against a wall does nothing.
    Key and door are each in the two rows at the top of their room, the agent enters in the two at the bottom.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  as Gymnasium's own environments

    def __init__(self, render_mode: Literal["rgb_array"] | None = None):
        self.observation_space = spaces.MultiDiscrete([3, 2 * SIDE - 1, 2 * SIDE - 1])
        self.action_space = spaces.Discrete(len(MOVES))
        self.render_mode = render_mode
        self._elapsed, self._has_key = 0, False
        self._agent: Place = (0, 0)
        self._place: Place = (0, 0)
        self._there = NOTHING

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[View, dict[str, Any]]:
        """Into the room with the key."""
        super().reset(seed=seed, options=options)
        self._elapsed, self._has_key = 0, False
        self._enter(KEY_ROOM)
        return self._view(), {}

    def step(self, action: np.int64) -> tuple[View, float, bool, bool, dict[str, Any]]:
        """One move; into the next room after `ROOM_STEPS` of them."""
        row, column = (place + move for place, move in zip(self._agent, MOVES[action], strict=True))
        if 0 <= row < SIDE and 0 <= column < SIDE:
            self._agent = row, column
        self._elapsed += 1
        if self._there == KEY and self._agent == self._place:
            self._has_key, self._there = True, NOTHING
        opened = self._there == DOOR and self._agent == self._place
        next_room, moved = divmod(self._elapsed, ROOM_STEPS)
        over = opened or next_room > DOOR_ROOM
        if moved == 0 and not over:
            self._enter(next_room)
        return self._view(), float(opened and self._has_key), over, False, {}

    def _enter(self, room: int) -> None:
        """The agent somewhere in the two rows at the bottom; what there is somewhere in those at the top."""
        top, bottom = (divmod(int(cell), SIDE) for cell in self.np_random.integers(2 * SIDE, size=2))
        self._there, self._place = IN_SIGHT[room], top
        self._agent = SIDE - 2 + bottom[0], bottom[1]

    def _view(self) -> View:
        """What is in sight, and where it is from the agent."""
        place = self._agent if self._there == NOTHING else self._place
        away = (there - here + SIDE - 1 for there, here in zip(place, self._agent, strict=True))
        return np.array([self._there, *away], np.int64)

    def render(self) -> NDArray[np.uint8]:
        """The room from above: the agent blue, the key gold, once it is taken in the corner, the door brown."""
        gold, brown, blue, floor, wall = (230, 180, 30), (140, 80, 40), (50, 100, 200), (235, 235, 225), (70, 70, 80)
        picture = np.full((SIDE + 2, SIDE + 2, 3), wall, np.uint8)
        room = picture[1:-1, 1:-1]
        room[:] = floor
        if self._there != NOTHING:
            room[self._place] = gold if self._there == KEY else brown
        room[self._agent] = blue
        if self._has_key:
            picture[0, 0] = gold
        return picture.repeat(32, 0).repeat(32, 1)


gymnasium.register("KeyToDoor-v0", "envs.key_to_door:KeyToDoor", disable_env_checker=True)
