"""Where the running episodes of N environments are: the seed of each, and the actions since.

An environment cannot be saved, but most can be played again to the same place. So a checkpoint holds this instead, and
a checksum of what the environment showed last: what does not come back to it is cut off, not gone on with.
"""

import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdreamer.env_step import AnyArray, Arrays, EnvError, Flags

LONGEST = 100_000
"""Actions that are kept; an episode that is longer is cut when a run goes on."""
SEEDS = 2**30
"""Seeds of later episodes lie below; an int32 has room for a seed per environment on top."""


def episode_seed(seed: int, record: int) -> int:
    """The seed of an episode that begins at a record of the run: `seed` itself for the first."""
    return seed if record == 0 else int(np.random.SeedSequence((seed, record)).generate_state(1)[0]) % SEEDS


def digest(obs: Mapping[str, AnyArray]) -> int:
    """A checksum of one observation."""
    value = 0
    for key in sorted(obs):
        value = zlib.crc32(np.ascontiguousarray(obs[key]).tobytes(), value)
    return value


class Cursor(NamedTuple):
    """One running episode: the seed that it began with, its actions (L, ...) per key, what it showed after L - 1."""

    seed: int
    actions: Arrays
    digest: int


class EnvState(NamedTuple):
    """What a checkpoint keeps: JSON data, and the actions of all running episodes one after the other."""

    facts: dict[str, Any]
    actions: Arrays


class Cursors:
    """The cursors of N environments, kept up with every `recv` and `send`. keep: False keeps no actions."""

    def __init__(self, num_envs: int, seed: int, keep: bool) -> None:
        self.num_envs, self.seed = num_envs, seed
        self.records = 0
        """Records so far; also the number of the next."""
        self.ended = np.ones(num_envs, bool)
        """Whose next record begins an episode."""
        self._began = np.zeros(num_envs, np.int64)
        self._actions: deque[Arrays] = deque(maxlen=LONGEST if keep else 0)
        self._obs: Arrays = {}
        self._digests = [0] * num_envs  # where no observation came since a restore
        self._waiting = False

    def wait(self) -> None:
        """The environments are asked for a record. Until it is there nothing is replayed: it would fail again."""
        self._waiting = True

    def received(self, obs: Arrays, is_first: Flags, is_last: Flags) -> None:
        """The next record, its observations (N, ...) as the environments gave them."""
        self._waiting, self._obs = False, obs
        self._began[is_first] = self.records
        self.ended = is_last.copy()
        self.records += 1

    def sent(self, action: Arrays) -> None:
        """The action (N, ...) per key that was chosen from it."""
        self._actions.append({key: np.array(value) for key, value in action.items()})
        oldest = self._began[~self.ended].min(initial=self.records)
        while len(self._actions) > self.records - oldest:
            self._actions.popleft()

    def save(self) -> EnvState:
        """After `sent`."""
        lengths = self.records - self._began
        lengths[self.ended | (lengths > len(self._actions)) | self._waiting] = 0
        if self._obs:
            rows = [{key: value[at] for key, value in self._obs.items()} for at in range(self.num_envs)]
            self._digests = [digest(row) for row in rows]
        facts = {"records": self.records, "ended": self.ended, "began": self._began, "lengths": lengths}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()}
        return EnvState(plain | {"digests": self._digests}, self._concatenated(lengths))

    def restore(self, state: EnvState) -> dict[int, Cursor]:
        """Goes back to a `save`; the cursors of the episodes that can be played again.

        Raises EnvError for the state of other environments, or none.
        """
        columns = {name: self._column(state, name) for name in ("ended", "began", "lengths", "digests")}
        self.records, self.ended = _count(state.facts.get("records")), columns["ended"].astype(bool)
        self._began, lengths = columns["began"], columns["lengths"]
        self._obs, self._digests = {}, columns["digests"].tolist()
        if (self._began < 0).any() or ((lengths != 0) & (lengths != self.records - self._began)).any():
            raise EnvError("its saved state is not one: episodes begin and are as long as they cannot be")
        for key, value in state.actions.items():
            if value.shape[:1] != (lengths.sum(),):
                raise EnvError(f"its saved state has {key} of shape {value.shape}, not of {lengths.sum()} actions")
        if lengths.any() and not state.actions:
            raise EnvError(f"its saved state has none of {lengths.sum()} actions")
        ends = lengths.cumsum()
        each = {
            at: {key: value[ends[at] - lengths[at] : ends[at]] for key, value in state.actions.items()}
            for at in np.flatnonzero(lengths).tolist()
        }
        self._actions.clear()
        for back in range(lengths.max(), 0, -1):
            action = {
                key: np.zeros((self.num_envs, *value.shape[1:]), value.dtype) for key, value in state.actions.items()
            }
            for at, saved in each.items():
                for key in action if back <= lengths[at] else ():
                    action[key][at] = saved[key][-back]
            self._actions.append(action)
        return {
            at: Cursor(episode_seed(self.seed + at, int(self._began[at])), actions, int(columns["digests"][at]))
            for at, actions in each.items()
        }

    @property
    def last_action(self) -> Arrays | None:
        """What was sent last, where it is kept."""
        return self._actions[-1] if self._actions else None

    def _concatenated(self, lengths: NDArray[np.int64]) -> Arrays:
        if not lengths.any():
            return {}
        kept = list(self._actions)[-lengths.max() :]
        stacked = {key: np.stack([action[key] for action in kept]) for key in kept[0]}  # (L, N, ...)
        return {
            key: np.concatenate([value[len(kept) - length :, at] for at, length in enumerate(lengths)])
            for key, value in stacked.items()
        }

    def _column(self, state: EnvState, name: str) -> NDArray[np.int64]:
        values = state.facts.get(name)
        if not isinstance(values, list) or len(values) != self.num_envs:
            raise EnvError(f"its saved state needs {name}, one of each of {self.num_envs} environments")
        return np.array([_count(value) for value in values], np.int64)


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise EnvError(f"its saved state holds {str(value)[:40]!r} where a count should be")
    return int(value)
