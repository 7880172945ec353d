"""Scores: the undiscounted return and the length of every episode that ends."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Episode(NamedTuple):
    """One finished episode of environment `env`: its summed reward and its length in agent steps."""

    env: int
    score: float
    length: int


class EpisodeTracker:
    """Sums rewards and counts actions per environment, from one vector step to the next."""

    def __init__(self, num_envs: int) -> None:
        self._score = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)

    def add(
        self, reward: NDArray[np.float32], is_first: NDArray[np.bool_], is_last: NDArray[np.bool_]
    ) -> list[Episode]:
        """Takes the next record of every environment, each (N,), and returns the episodes that it ends."""
        self._score = np.where(is_first, 0.0, self._score + reward)
        self._length = np.where(is_first, 0, self._length + 1)
        return [Episode(int(i), float(self._score[i]), int(self._length[i])) for i in np.flatnonzero(is_last)]
