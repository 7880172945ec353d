"""Scores: the undiscounted return and the length of every episode that ends."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdreamer.tables import read_table


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

    def state_dict(self) -> dict[str, list[float]]:
        """The episodes under way."""
        score: list[float] = self._score.tolist()
        return {"score": score, "length": [*map(float, self._length)]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on with a `state_dict` of as many environments. Raises ValueError for any other."""
        read = read_table(state, {"score": "a list of numbers", "length": "a list of numbers"}, "episodes")
        for name, values in read.items():
            if len(values) != len(self._score):
                raise ValueError(f"episodes: {name}: expected {len(self._score)} numbers, got {len(values)}")
        self._score, self._length = np.array(read["score"], float), np.array(read["length"], np.int64)
