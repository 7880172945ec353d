"""Environments whose pictures tell what they are of: their step, and the action that led there."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Clock(gymnasium.Env[Any, Any]):
    """Shows its step, 10 brighter each, on the right half, and on the left the action that led there, 0 or 200."""

    observation_space = spaces.Box(0, 255, (48, 48, 3), np.uint8)
    action_space = spaces.Discrete(2)
    LENGTH = 20

    def __init__(self) -> None:
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return self._picture(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._picture(200 * int(action)), float(self._steps), False, self._steps >= self.LENGTH, {}

    def _picture(self, left: int) -> Any:
        picture = np.full((48, 48, 3), 10 * self._steps, np.uint8)
        picture[:, :24] = left
        return picture


class Drawn(Clock):
    """Observes its step as a number, and draws itself: 41 x 31 pixels, 10 brighter each step."""

    observation_space = spaces.Box(0, 99, ())  # type: ignore[assignment]

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.metadata, self.render_mode = {"render_modes": ["rgb_array"]}, render_mode

    def _picture(self, left: int) -> Any:
        return float(self._steps)

    def render(self) -> Any:
        return np.full((31, 41, 3), 10 * self._steps, np.uint8)
