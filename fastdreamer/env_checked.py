"""One gymnasium environment, asked for one record at a time, and everything that it returns checked on the way."""

import inspect
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastdreamer.env_action import ActionCodec
from fastdreamer.env_factory import AnyEnv, make_single
from fastdreamer.env_observation import ObservationCodec, keep_keys, observation_tree
from fastdreamer.env_spaces import as_numbers
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, Options, one_line

MESSAGE = 80
"""Characters of a value that an EnvError shows."""


class Record(NamedTuple):
    """What one environment returned: observations by flat key, a number and gymnasium's two flags."""

    obs: Arrays
    reward: float
    terminated: bool
    truncated: bool


class EnvSpaces(NamedTuple):
    """Leaf spaces of the observations by flat key, and the action space as it is."""

    observation: dict[str, AnySpace]
    action: AnySpace


class Checked:
    """Flat observations with the keys to keep; EnvError, naming key and environment, for any other than declared.

    Not a gymnasium.Wrapper: what a wrapper forwards could not be checked.
    """

    def __init__(self, env: AnyEnv, index: int, keys: str) -> None:
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), gymnasium.Space):
                raise EnvError(f"its {name} is {getattr(env, name, None)!r}, not a gymnasium Space")
        try:
            inspect.signature(env.reset).bind(seed=0, options=None)
        except TypeError as error:
            raise EnvError(f"its reset() must take seed and options, the interface of gymnasium: {error}") from error
        self._env, self._index = env, index
        self._tree = observation_tree(deepcopy(env.observation_space))  # the environment may change its own
        self.spaces = EnvSpaces(keep_keys(self._tree.leaves, keys), env.action_space)

    def begin(self, seed: int) -> Record:
        """Resets; the first record of an episode."""
        result: object = self._env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            kinds = [type(part).__name__ for part in (result if isinstance(result, tuple) else [result])]
            raise EnvError(
                f"env {self._index}: reset() must return (observation, info), the interface of gymnasium,"
                f" got {', '.join(kinds)}"
            )
        return Record(self._flat(result[0]), 0.0, False, False)

    def step(self, action: object) -> Record:
        """The record that an action leads to."""
        result: tuple[Any, ...] = self._env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise EnvError(
                f"env {self._index}: step() must return (observation, reward, terminated, truncated, info), got {got}"
            )
        observation, reward, terminated, truncated, _ = result
        number = self._scalar("reward", reward, "biuf", "a number")
        ended, cut = self._flag("terminated", terminated), self._flag("truncated", truncated)
        return Record(self._flat(observation), float(number), ended, cut)

    def render(self) -> NDArray[np.uint8]:
        """(H, W, 3); EnvError unless env.options.render_mode is rgb_array."""
        if self._env.render_mode != "rgb_array":
            raise EnvError("cannot render: env.options.render_mode must be rgb_array")
        try:
            picture: object = self._env.render()
        except (gymnasium.error.Error, NotImplementedError) as error:  # a package that is missing is one of these
            raise EnvError(f"cannot render: {one_line(error)}") from error
        if not isinstance(picture, np.ndarray) or picture.shape[2:] != (3,) or picture.dtype != np.uint8:
            kind = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise EnvError(f"cannot render: render() must return uint8 (height, width, 3), got {kind}")
        return picture

    def close(self) -> None:
        self._env.close()

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
            return {name: _as_declared(name, leaf, values[name]) for name, leaf in self.spaces.observation.items()}
        except EnvError as error:
            raise EnvError(f"env {self._index}: {error}") from error


def make_checked(id: str, index: int, options: Options, keys: str, resize: int) -> Checked:
    """Copy `index` of an environment. Raises EnvError for spaces that the agent cannot handle."""
    env = Checked(make_single(id, options), index, keys)
    ObservationCodec(env.spaces.observation, resize)
    ActionCodec(env.spaces.action, num_envs=1)
    return env


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
