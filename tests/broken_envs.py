"""gymnasium environments that break the contract in one way each, importable as `broken_envs:NAME`.

`Broken` behaves for STEPS steps; then the copy that was reset with an odd seed does what `how` says. The other classes
are wrong from the start.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from fastdreamer.env_step import AnySpace

STEPS = 2
LISTS = [[1.0], [1.0, 2.0]]
"""Of no shape that numpy knows."""
Observation = dict[str, Any]


def good() -> Observation:
    return {
        "class": 1,
        "eye": np.zeros((64, 64, 3), np.uint8),
        "grid": np.array([2, 1]),
        "pair": (1, np.zeros(1, np.float32)),
        "speed": np.zeros(2, np.float32),
    }


def space() -> spaces.Dict:
    pair = spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))])
    return spaces.Dict({
        "class": spaces.Discrete(3, start=-1),
        "eye": spaces.Box(0, 255, (64, 64, 3), np.uint8),
        "grid": spaces.MultiDiscrete([3, 2]),
        "pair": pair,
        "speed": spaces.Box(-9, 9, (2,)),
    })  # fmt: skip


VALUES: dict[str, Observation] = {
    "class: float": {"class": 1.5},
    "class: too high": {"class": 2},
    "class: too low": {"class": -2},
    "class: array": {"class": np.array([1])},
    "class: none": {"class": None},
    "grid: too high": {"grid": np.array([2, 2])},
    "grid: float": {"grid": np.array([2.0, 1.0])},
    "grid: shape": {"grid": np.array([2, 1, 0])},
    "grid: ragged": {"grid": LISTS},
    "pair: length": {"pair": (1,)},
    "pair: array": {"pair": np.zeros(2)},
    "pair: part": {"pair": (1, np.zeros(3, np.float32))},
    "speed: shape": {"speed": np.zeros(3, np.float32)},
    "speed: scalar": {"speed": 0.5},
    "speed: complex": {"speed": np.zeros(2, np.complex64)},
    "speed: none": {"speed": None},
    "speed: text": {"speed": "fast"},
    "speed: dict": {"speed": {"x": 1.0, "y": 2.0}},
    "speed: ragged": {"speed": LISTS},
    "speed: objects": {"speed": np.array([1.0, 2.0], object)},
    "speed: nan": {"speed": np.array([0, np.nan], np.float32)},
    "speed: infinite": {"speed": np.array([-np.inf, 0], np.float32)},
    "speed: huge": {"speed": np.array([0, 1e300])},
    "eye: width": {"eye": np.zeros((64, 48, 3), np.uint8)},
    "eye: channels first": {"eye": np.zeros((3, 64, 64), np.uint8)},
    "eye: float": {"eye": np.zeros((64, 64, 3), np.float32)},
    "eye: int64": {"eye": np.zeros((64, 64, 3), np.int64)},
    "eye: wraps": {"eye": np.full((64, 64, 3), 300, np.uint16)},
    "more keys": {"other": 1},
}
"""Parts of the observation, instead of the good ones."""

WHOLE: dict[str, Any] = {
    "observation: none": None,
    "observation: array": np.zeros(2),
    "observation: fewer keys": {key: value for key, value in good().items() if key != "speed"},
}

REWARDS: dict[str, Any] = {
    "reward: none": None,
    "reward: vector": np.zeros(2),
    "reward: text": "high",
    "reward: ragged": LISTS,
    "reward: complex": 1j,
    "reward: nan": float("nan"),
    "reward: infinite": -np.inf,
    "reward: huge": 1e300,
}

FLAGS: dict[str, Any] = {
    "flag: array": np.array([False, True]),
    "flag: none": None,
    "flag: text": "False",
    "flag: float": 0.5,
}

TRANSITIONS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "step: four values": lambda good: (*good[:2], False, {}),
    "step: six values": lambda good: (*good, {}),
    "step: list": list,
    "step: observation": lambda good: good[0],
    "step: nothing": lambda good: None,
}

RESETS: dict[str, Callable[[Observation], Any]] = {
    "reset: bare": lambda observation: observation,
    "reset: three values": lambda observation: (observation, {}, {}),
    "reset: info": lambda observation: (observation, None),
    "reset: nothing": lambda observation: None,
    "reset: list": lambda observation: [observation, {}],
    "reset: shape": lambda observation: (observation | {"speed": np.zeros(3, np.float32)}, {}),
}


class Broken(gymnasium.Env[Any, Any]):
    """Nothing is wrong where `how` is ""."""

    def __init__(self, how: str = "") -> None:
        self._how, self._steps, self._odd = how, 0, False
        self.observation_space: AnySpace = space()
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._odd = bool(seed is not None and seed % 2)
        return RESETS[self._how](good()) if self._odd and self._how in RESETS else (good(), {})

    def step(self, action: Any) -> Any:
        self._steps += 1
        how, usual = self._how, (good(), 1.0, False, False, {})
        if not self._odd or self._steps <= STEPS:
            return usual
        if how in TRANSITIONS:
            return TRANSITIONS[how](usual)
        if how == "space: replaced":
            self.observation_space = spaces.Dict({"speed": spaces.Box(-9, 9, (4,))})
            return {"speed": np.zeros(4, np.float32)}, *usual[1:]
        if how == "space: a key less":
            assert isinstance(self.observation_space, spaces.Dict)
            del self.observation_space.spaces["speed"]
            return WHOLE["observation: fewer keys"], *usual[1:]
        observation = WHOLE[how] if how in WHOLE else good() | VALUES.get(how, {})
        return observation, REWARDS.get(how, 1.0), FLAGS.get(how, False), False, {}


class Reused(gymnasium.Env[Any, Any]):
    """Changes in place, and returns again and again, one dict of arrays: its steps since the first reset."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict({
        "eye": spaces.Box(0, 255, (48, 48, 3), np.uint8),
        "double": spaces.Box(0, 99, (2,), np.float64),
        "floats": spaces.Box(0, 99, (48, 48, 3)),
        "single": spaces.Box(0, 99, (2,)),
    })  # fmt: skip

    def __init__(self) -> None:
        self._shown = {name: np.zeros(box.shape, box.dtype) for name, box in self.observation_space.spaces.items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._shown, {}

    def step(self, action: Any) -> Any:
        for array in self._shown.values():
            array += 1
        return self._shown, 0.0, False, False, {}


class OldReset(Broken):
    def reset(self) -> Any:  # type: ignore[override]  # as before gymnasium 0.26
        return good()


class NoObservationSpace(gymnasium.Env[Any, Any]):
    action_space = spaces.Discrete(2)


class NoActionSpace(gymnasium.Env[Any, Any]):
    observation_space = spaces.Discrete(2)


OBSERVATIONS: dict[str, Any] = {
    "shape": (64, 64, 3),
    "not square": spaces.Box(0, 255, (64, 80, 3), np.uint8),
    "side": spaces.Box(0, 255, (84, 84), np.uint8),
    "small": spaces.Box(0, 255, (3, 40, 40), np.uint8),
    "stack": spaces.Box(0, 255, (4, 64, 64, 3), np.uint8),
    "text": spaces.Dict({"says": spaces.Text(5), "speed": spaces.Box(0, 1, (2,))}),
    "sequence": spaces.Sequence(spaces.Discrete(2)),
    "no elements": spaces.Box(0, 1, (0,)),
    "no keys": spaces.Dict({}),
    "clash": spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}),
}

ACTIONS: dict[str, Any] = {
    "count": 4,
    "no elements": spaces.Box(0, 1, (0,)),
    "no classes": spaces.MultiDiscrete([]),
    "no keys": spaces.Dict({}),
    "text": spaces.Text(5),
    "integers": spaces.Dict({"move": spaces.Box(0, 5, (2,), np.int32)}),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "one point": spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float64),
}


class Spaces(Broken):
    """`obs` and `act` name a space, the good one where empty."""

    def __init__(self, obs: str = "", act: str = "") -> None:
        super().__init__()
        self.observation_space = OBSERVATIONS.get(obs, self.observation_space)
        self.action_space = ACTIONS.get(act, self.action_space)


class Differing(Broken):
    """Every copy has a longer "speed"."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.observation_space = spaces.Box(-9, 9, (self.made,))


def nothing() -> None:
    """A factory that forgot to return its environment."""


def one_by_one() -> list[gymnasium.Env[Any, Any]]:
    return [Broken()]
