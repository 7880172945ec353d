"""The grid world of golden/toy_grid_curves.json, importable as `toy_grid:ToyGrid`."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

SIDE, LIMIT = 5, 30
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))


class ToyGrid(gymnasium.Env[NDArray[np.float32], int]):
    """Walk to the corner: reward 1 there, -0.05 per step elsewhere; cut, not terminated, after 30 steps."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        cell = int(self.np_random.integers(SIDE * SIDE - 1))  # every cell but the goal
        self._x, self._y, self._steps = cell % SIDE, cell // SIDE, 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        dx, dy = MOVES[action]
        self._x, self._y = (min(max(at, 0), SIDE - 1) for at in (self._x + dx, self._y + dy))
        reached = self._x == self._y == SIDE - 1
        cut = self._steps >= LIMIT and not reached
        return self._observe(), 1.0 if reached else -0.05, reached, cut, {}

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self._x / (SIDE - 1), self._y / (SIDE - 1), self._steps / LIMIT], np.float32)
