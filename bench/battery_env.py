"""Environments made of numpy, for machines without EnvPool: random observations, an end now and then."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

LENGTH = 1000
"""Steps of an episode."""


class Standin(gymnasium.Env[NDArray[Any], Any]):
    """Images for six buttons, or vectors for six motors. Frames are drawn beforehand: a step costs next to nothing."""

    def __init__(self, images: bool) -> None:
        rng = np.random.default_rng(0)
        if images:
            self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
            self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(6)
            self.frames: NDArray[Any] = rng.integers(0, 256, (64, 64, 64, 3), np.uint8)
        else:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (24,), np.float32)
            self.action_space = gymnasium.spaces.Box(-1, 1, (6,), np.float32)
            self.frames = rng.standard_normal((64, 24), np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], Any]:
        super().reset(seed=seed)
        self.steps = 0
        return self.frames[0], {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.frames[self.steps % 64], 1.0, False, self.steps >= LENGTH, {}


def make_image() -> Standin:
    return Standin(images=True)


def make_vector() -> Standin:
    return Standin(images=False)
