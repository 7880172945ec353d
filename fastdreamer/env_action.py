"""Actions as the agent gives them: int32 classes from 0, or raw samples that are clipped to [-1, 1] (SPEC 1.10)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastdreamer.env_spaces import Tree
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, require_finite
from fastdreamer.spaces import Space, Spaces

# Larger bounds mean that the environment has none: EnvPool's LQR says 1e10, its ViZDoom uninitialised memory.
LARGEST_BOUND = 1e6
ALLOWED = "Discrete, MultiDiscrete, MultiBinary, float Box with finite bounds, and Dict or Tuple of these"


@dataclass(frozen=True)
class ClassAction:
    """Classes 0 .. classes - 1, executed as start .. start + classes - 1."""

    space: Space
    start: int
    dtype: np.dtype[Any]

    def encode(self, name: str, value: AnyArray) -> AnyArray:
        if value.dtype.kind not in "iu":
            raise EnvError(f'action "{name}" must be integer, got {value.dtype}')
        wrong = (value < 0) | (value >= self.space.classes)
        if wrong.any():
            index, got = int(np.argwhere(wrong)[0, 0]), value[wrong][0]
            raise EnvError(f'env {index}: action "{name}" must lie in 0..{self.space.classes - 1}, got {got}')
        return (value.astype(np.int64) + self.start).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class BoundedAction:
    """Raw samples: clipped to [-1, 1], then mapped to low..high."""

    space: Space
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    dtype: np.dtype[Any]

    def encode(self, name: str, value: AnyArray) -> AnyArray:
        if value.dtype.kind != "f":
            raise EnvError(f'action "{name}" must be floating point, got {value.dtype}')
        require_finite(f'action "{name}"', value)
        share = (np.clip(value.astype(np.float64), -1, 1) + 1) / 2
        return np.clip(self.low + share * (self.high - self.low), self.low, self.high).astype(self.dtype)


class ActionCodec:
    """The action keys of one kind of environment."""

    def __init__(self, space: AnySpace, num_envs: int) -> None:
        """Raises EnvError for a space in which the agent cannot act."""
        self._tree, self._num_envs = Tree(space, bare="action"), num_envs
        self._keys = {name: _action_key(name, leaf) for name, leaf in self._tree.leaves.items()}
        if not self._keys:
            raise EnvError("the action space is empty")
        self.spaces: Spaces = {name: key.space for name, key in self._keys.items()}

    def encode(self, action: Arrays) -> object:
        """(N, ...) per key to a batch of the environment's action space; EnvError for a bad key, shape or value."""
        if action.keys() != self._keys.keys():
            raise EnvError(f"the action must have the keys {sorted(self._keys)}, got {sorted(action)}")
        encoded: Arrays = {}
        for name, key in self._keys.items():
            value, shape = np.asarray(action[name]), (self._num_envs, *key.space.shape)
            if value.shape != shape:
                raise EnvError(f'action "{name}" must have shape {shape}, got {value.shape}')
            encoded[name] = key.encode(name, value)
        return self._tree.join(encoded)


def _action_key(name: str, leaf: AnySpace) -> ClassAction | BoundedAction:
    match leaf:
        case spaces.MultiDiscrete() if not leaf.nvec.size:
            raise EnvError(f'action "{name}" has shape {leaf.shape}, no elements')
        case spaces.Discrete():
            return ClassAction(Space("discrete", (), int(leaf.n)), int(leaf.start), leaf.dtype)
        case spaces.MultiDiscrete():
            classes, start = int(leaf.nvec.flat[0]), int(leaf.start.flat[0])
            return ClassAction(Space("discrete", leaf.shape, classes), start, leaf.dtype)
        case spaces.MultiBinary():
            return ClassAction(Space("discrete", leaf.shape, 2), 0, leaf.dtype)
        case spaces.Box() if leaf.dtype.kind == "f":
            return _bounded_action(name, leaf)
    kind = f"{leaf.dtype} Box" if isinstance(leaf, spaces.Box) else type(leaf).__name__
    raise EnvError(f'action "{name}" is a {kind}; allowed: {ALLOWED}')


def _bounded_action(name: str, leaf: spaces.Box) -> BoundedAction:
    low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
    usable = (np.abs(low) < LARGEST_BOUND) & (np.abs(high) < LARGEST_BOUND) & (low < high)  # False for NaN
    if not usable.all() or not usable.size:
        got = f"{low[~usable][0]:g}..{high[~usable][0]:g}" if usable.size else "no elements"
        raise EnvError(
            f'action "{name}" must have bounds low < high, finite and below {LARGEST_BOUND:.0e} in size, got {got}'
        )
    bounds = Space("vector", leaf.shape, low=tuple(low.ravel().tolist()), high=tuple(high.ravel().tolist()))
    return BoundedAction(bounds, low, high, leaf.dtype)
