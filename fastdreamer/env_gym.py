"""N gymnasium environments in step, checked as they run.

gymnasium copies what an environment returns into preallocated arrays, which would hide a wrong dtype or shape.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from fastdreamer.env_action import ActionCodec
from fastdreamer.env_factory import AnyEnv, make_single
from fastdreamer.env_observation import ObservationCodec, keep_keys, observation_tree
from fastdreamer.env_spaces import as_numbers
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, Options, Raw, one_line

MESSAGE = 80
"""Characters of a value that an EnvError shows."""


class GymBackend:
    """A SyncVectorEnv, which steps in `receive`, or an AsyncVectorEnv: one spawned process per environment."""

    def __init__(
        self, id: str, num_envs: int, seed: int, options: Options, keys: str, resize: int, vectorization: str
    ) -> None:
        """`keys`, `resize`, `vectorization` as in `make_env`. Environment i is first reset with seed `seed` + i."""
        makers = [partial(make_checked, id, index, dict(options), keys, resize) for index in range(num_envs)]
        try:
            self._vector = _vectorize(makers, vectorization)
        except RuntimeError as error:
            raise EnvError(f"its copies cannot be run side by side: {one_line(error)}") from error
        space = self._vector.single_observation_space
        assert isinstance(space, spaces.Dict), "Checked flattens"
        self.observation_spaces: dict[str, AnySpace] = dict(space.spaces)
        self.action_space: AnySpace = self._vector.single_action_space
        self._num_envs = num_envs
        self.action_repeat = 1  # a wrapper that repeats is part of the environment
        self._action: object = None
        try:
            self._reset: Arrays | None = self._vector.reset(seed=seed)[0]
        except EnvError:
            self.close()
            raise

    def receive(self) -> Raw:
        """The first call hands out the reset; later ones step (sync) or wait for the slowest (async)."""
        if self._reset is not None:
            obs, self._reset = self._reset, None
            nothing = np.zeros(self._num_envs, bool)
            return Raw(obs, np.zeros(self._num_envs, np.float32), nothing, nothing)
        if isinstance(self._vector, AsyncVectorEnv):
            obs, reward, terminated, truncated, _ = self._vector.step_wait()
        else:
            obs, reward, terminated, truncated, _ = self._vector.step(self._action)
        return Raw(obs, reward, terminated, truncated)

    def send(self, action: object) -> None:
        """Starts the workers (async), or keeps the action for `receive` (sync)."""
        if isinstance(self._vector, AsyncVectorEnv):
            self._vector.step_async(action)
        else:
            self._action = action

    def render(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3); EnvError unless env.options.render_mode is rgb_array."""
        frames = self._vector.render()
        if frames is None or self._vector.render_mode != "rgb_array":
            raise EnvError("cannot render: env.options.render_mode must be rgb_array")
        return np.asarray(frames[index])

    def close(self) -> None:
        """Ends the environments, and the processes within seconds even where one hangs."""
        if isinstance(self._vector, AsyncVectorEnv):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*Calling `close` while waiting", category=UserWarning)
                self._vector.close(timeout=5)
        else:
            self._vector.close()


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Flat observations with the keys to keep; EnvError, naming key and environment, for any other than declared."""

    def __init__(self, env: AnyEnv, index: int, keys: str) -> None:
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), gymnasium.Space):
                raise EnvError(f"its {name} is {getattr(env, name, None)!r}, not a gymnasium Space")
        try:
            inspect.signature(env.reset).bind(seed=0, options=None)
        except TypeError as error:
            raise EnvError(f"its reset() must take seed and options, the interface of gymnasium: {error}") from error
        super().__init__(env)
        self._index = index
        self._tree = observation_tree(deepcopy(env.observation_space))  # the environment may change its own
        self.leaves = keep_keys(self._tree.leaves, keys)
        self.observation_space = spaces.Dict(self.leaves)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            kinds = [type(part).__name__ for part in (result if isinstance(result, tuple) else [result])]
            raise EnvError(
                f"env {self._index}: reset() must return (observation, info), the interface of gymnasium,"
                f" got {', '.join(kinds)}"
            )
        return self._flat(result[0]), {}

    def step(self, action: object) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        result: tuple[Any, ...] = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise EnvError(
                f"env {self._index}: step() must return (observation, reward, terminated, truncated, info), got {got}"
            )
        observation, reward, terminated, truncated, _ = result
        number = self._scalar("reward", reward, "biuf", "a number")
        ended, cut = self._flag("terminated", terminated), self._flag("truncated", truncated)
        return self._flat(observation), float(number), ended, cut, {}

    def _flag(self, name: str, value: object) -> bool:
        return value if isinstance(value, bool) else bool(self._scalar(name, value, "biu", "a bool"))

    def _scalar(self, name: str, value: object, kinds: str, expected: str) -> bool | int | float:
        with suppress(RuntimeError, TypeError, ValueError):  # what numpy cannot take, such as a ragged list
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in kinds:
                return array.item()
        text = one_line(repr(value))
        raise EnvError(f"env {self._index}: {name} must be {expected}, got {text[:MESSAGE]}")

    def _flat(self, observation: object) -> Arrays:
        try:
            values = self._tree.split(observation)
            return {name: _as_declared(name, leaf, values[name]) for name, leaf in self.leaves.items()}
        except EnvError as error:
            raise EnvError(f"env {self._index}: {error}") from error


def make_checked(id: str, index: int, options: Options, keys: str, resize: int) -> Checked:
    """Environment `index` of a vector. Refuses spaces that the agent cannot handle, before gymnasium batches them."""
    env = Checked(make_single(id, options), index, keys)
    ObservationCodec(env.leaves, resize)
    ActionCodec(env.action_space, num_envs=1)
    return env


def _vectorize(makers: Sequence[Callable[[], AnyEnv]], vectorization: str) -> SyncVectorEnv | AsyncVectorEnv:
    match vectorization:
        case "sync":
            return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
        case "async":
            # gymnasium reports a worker's error three times before it raises it; ours is one line.
            ours = r"(?s).*(Error from Worker|following error from Worker|Raising the last exception|\.EnvError: )"
            warnings.filterwarnings("ignore", message=ours, category=UserWarning)
            # spawn: a forked child would inherit EnvPool's and CUDA's state without their threads.
            return AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP)
    raise EnvError(f"env.options.vectorization must be sync or async, got {vectorization}")


def _as_declared(name: str, leaf: AnySpace, value: object) -> AnyArray:
    array = as_numbers(value, f'observation "{name}"', leaf)
    if array.shape != leaf.shape:
        raise EnvError(f'observation "{name}" must have shape {leaf.shape}, got {array.shape}')
    if leaf.dtype is None or not np.can_cast(array.dtype, leaf.dtype, "same_kind"):
        raise EnvError(f'observation "{name}" must be {leaf.dtype}, got {array.dtype}')
    if np.can_cast(array.dtype, leaf.dtype):
        return array
    with np.errstate(over="ignore"):  # infinity is refused where observations are decoded
        narrow = array.astype(leaf.dtype)
    if leaf.dtype.kind in "iu" and (wrapped := narrow != array).any():
        raise EnvError(f'observation "{name}" must be {leaf.dtype}, got {array[wrapped][0]}')
    return narrow
