"""Crafter (Hafner 2021) as a gymnasium environment, for `--env.id fastdreamer.env_crafter:Crafter`."""

import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastdreamer.env_step import EnvError

LENGTH = 10_000  # steps, the benchmark's


class Crafter(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """The package's environment speaks the old gym interface and takes its seed only when it is made."""

    def __init__(self, size: int = 64, length: int = LENGTH) -> None:
        """`size`: side of the image in pixels; `length`: time limit in steps. Raises EnvError without the package."""
        try:
            self._crafter: Any = importlib.import_module("crafter")
        except ModuleNotFoundError as error:
            raise EnvError(
                f"needs the package {error.name}, which is not installed: pip install {error.name}"
            ) from error
        self._arguments = {"size": (size, size), "length": length}
        self._env = self._crafter.Env(**self._arguments)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(self._env.action_space.n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new world; `seed` fixes it and those that follow."""
        super().reset(seed=seed)
        if seed is not None:
            self._env = self._crafter.Env(seed=seed, **self._arguments)
        return self._env.reset(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Terminated where the player died; every other end is the time limit."""
        observation, reward, done, info = self._env.step(action)
        died = bool(done) and info["discount"] == 0
        return observation, float(reward), died, bool(done) and not died, info
