"""Small gymnasium environments for test_env.py, importable as `fake_envs:Name` here and in spawned workers."""

import os
import signal
import time
import types
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from fastdreamer.env_step import AnySpace

# What the environment `Shapes` shows: every kind of leaf, nested, with a value that is known beforehand.
SHAPES: dict[str, tuple[AnySpace, Any]] = {
    "box": (spaces.Box(-9, 9, (2, 3), np.float64), np.arange(6.0).reshape(2, 3)),
    "bytes": (spaces.Box(0, 255, (5,), np.uint8), np.arange(5, dtype=np.uint8)),
    "class": (spaces.Discrete(4, start=-1), 2),
    "equal": (spaces.MultiDiscrete([3, 3]), np.array([2, 0])),
    "flags": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8)),
    "gray": (spaces.Box(0, 255, (64, 64), np.uint8), np.full((64, 64), 9, np.uint8)),
    "hwc": (spaces.Box(0, 255, (64, 64, 3), np.uint8), np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)),
    "chw": (spaces.Box(0, 255, (3, 64, 64), np.uint8), np.arange(64 * 64 * 3, dtype=np.uint8).reshape(3, 64, 64)),
    "nest": (
        spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": spaces.Tuple([spaces.Discrete(2)])}),
        {"a": [0.5], "b": (1,)},
    ),
    "scalar": (spaces.Box(-1, 1, (), np.float64), 0.25),
    "uneven": (spaces.MultiDiscrete([3, 5], start=[0, 1]), np.array([2, 5])),
}

ACTIONS: dict[str, AnySpace] = {
    "box": spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64),
    "binary": spaces.MultiBinary(3),
    "discrete": spaces.Discrete(4, start=-1),
    "equal": spaces.MultiDiscrete([3, 3]),
    "nested": spaces.Dict(
        {"move": spaces.Discrete(3), "aim": spaces.Tuple([spaces.Box(0, 4, ()), spaces.Discrete(2)])}
    ),
    "uneven": spaces.MultiDiscrete(np.array([[3, 4], [3, 2]]), start=np.array([[0, 0], [0, 7]])),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "wide": spaces.Box(-1e10, 1e10, (2,)),
    "empty range": spaces.Box(1, 1, (2,)),
    "integer": spaces.Box(0, 5, (2,), np.int32),
    "text": spaces.Text(5),
}


class Shapes(gymnasium.Env[Any, Any]):
    """Shows SHAPES for ever."""

    observation_space = spaces.Dict({name: space for name, (space, _) in SHAPES.items()})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {name: value for name, (_, value) in SHAPES.items()}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 1.0, False, False, {}


class Echo(gymnasium.Env[Any, Any]):
    """Observes the action it executed, flattened in the order of its space; `name` picks one of ACTIONS."""

    def __init__(self, name: str) -> None:
        self.action_space = ACTIONS[name]
        size = (
            1
            if name in ("wide", "unbounded", "integer", "text", "empty range")
            else len(self._flat(self.action_space.sample()))
        )
        self.observation_space = spaces.Box(-99, 99, (size,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        return np.array(self._flat(action), np.float32), 0.0, False, False, {}

    def _flat(self, action: Any) -> list[float]:
        if isinstance(action, dict):
            return [number for key in ("move", "aim") for number in self._flat(action[key])]
        if isinstance(action, tuple):
            return [number for part in action for number in self._flat(part)]
        return [float(number) for number in np.ravel(action)]


class Bad(gymnasium.Env[Any, Any]):
    """Well behaved for two steps, then the environment that was reset with an odd seed does what `how` says."""

    action_space = spaces.Discrete(2)

    def __init__(self, how: str) -> None:
        self._how, self._steps, self._odd = how, 0, False
        parts: dict[str, AnySpace] = {"speed": spaces.Box(-9, 9, (2,)), "class": spaces.Discrete(3)}
        self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._odd = bool(seed is not None and seed % 2)
        if self._how == "reset":
            return cast(tuple[Any, dict[str, Any]], self._good())
        return self._good(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        observation: Any = self._good()
        reward: Any = 1.0
        if self._odd and self._steps > 2:
            match self._how:
                case "shape":
                    observation["speed"] = np.zeros(3, np.float32)
                case "dtype":
                    observation["class"] = 1.5
                case "key":
                    del observation["speed"]
                case "more keys":
                    observation["other"] = 1
                case "structure":
                    observation = np.zeros(2)
                case "space":
                    self.observation_space = spaces.Dict(
                        {"speed": spaces.Box(-9, 9, (4,)), "class": spaces.Discrete(3)}
                    )
                    observation["speed"] = np.zeros(4, np.float32)
                case "nan":
                    observation["speed"] = np.array([0, np.nan], np.float32)
                case "huge":
                    observation["speed"] = np.array([0, 1e300])
                case "class":
                    observation["class"] = 3
                case "reward nan":
                    reward = float("nan")
                case "raises":
                    raise ValueError("of the environment")
                case "reward none":
                    reward = None
                case "old":
                    return observation, reward, False, {}  # type: ignore[return-value]  # as before gymnasium 0.26
        return observation, reward, False, False, {}

    def _good(self) -> Any:
        return {"speed": np.zeros(2, np.float32), "class": 1}


class Counter(gymnasium.Env[Any, Any]):
    """Observes its steps and ends truly after five, plus one for an odd first seed; renders its count."""

    observation_space = spaces.Box(0, 99, ())
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.metadata, self.render_mode = {"render_modes": ["rgb_array"]}, render_mode
        self._steps, self._length = 0, 5

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        self._length += 0 if seed is None else seed % 2
        return 0.0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return float(self._steps), 1.0, self._steps >= self._length, False, {}

    def render(self) -> Any:
        return np.full((8, 8, 3), self._steps, np.uint8)


class Differing(Counter):
    """Every copy has another observation space."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.observation_space = spaces.Box(0, 99, (self.made,))


class View(gymnasium.Env[Any, Any]):
    """Never stepped: one observation space of a kind."""

    action_space = spaces.Discrete(2)

    def __init__(self, height: int = 0, width: int = 0, kind: str = "image") -> None:
        kinds: dict[str, Any] = {
            "image": spaces.Box(0, 255, (height, width, 3), np.uint8) if height else None,
            "stack": spaces.Box(0, 255, (4, 64, 64, 3), np.uint8),
            "text": spaces.Dict({"says": spaces.Text(5), "speed": spaces.Box(0, 1, (2,))}),
            "nothing": spaces.Box(0, 1, (0,)),
            "clash": spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}),
            "none": None,
        }
        self.observation_space = kinds[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}


class Sampled(gymnasium.Env[Any, Any]):
    """Random values of some keys of SHAPES, in episodes of five steps that are cut and terminal in turn.

    `obs`: comma-separated; `act`: one of ACTIONS.
    """

    def __init__(self, obs: str, act: str) -> None:
        self.observation_space = spaces.Dict({name: SHAPES[name][0] for name in obs.split(",")})
        self.action_space = ACTIONS[act]
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        ends = [self._steps % 10 == at for at in (0, 5)]
        return self.observation_space.sample(), float(self._steps % 3), *ends, {}  # type: ignore[return-value]  # ends are two


class Walk(gymnasium.Env[Any, Any]):
    """A random walk that actions push, in episodes of uneven length; shown as a number, or as a picture of 48 pixels.

    show: vector or image. act: one of ACTIONS. seeded: False takes randomness from elsewhere than its seed.
    """

    def __init__(self, show: str = "vector", act: str = "discrete", seeded: bool = True) -> None:
        self._image, self._seeded = show == "image", seeded
        picture = spaces.Box(0, 255, (48, 48, 3), np.uint8)
        self.observation_space = picture if self._image else spaces.Box(-99, 99, (3,))
        self.action_space = ACTIONS[act]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed if self._seeded else None)
        self._place, self._steps, self._length = np.zeros(3), 0, int(self.np_random.integers(5, 40))
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._place += self.np_random.normal(size=3) + spaces.flatten(self.action_space, action).sum()
        ended = self._steps >= self._length
        return self._shown(), float(self._place[0]), ended and self._length % 2 == 0, ended, {}

    def _shown(self) -> Any:
        if self._image:
            return np.full((48, 48, 3), (10 * self._place) % 256, np.uint8)
        return self._place.astype(np.float32) + self.np_random.normal(size=3).astype(np.float32)


class Faulty(Walk):
    """A `Walk` that fails at its eighth step, as long as the file `once` is there, which it takes away first.

    how: raise, die, hang, nan, reward. once: ends in the seed at which it fails; empty fails in every episode.
    """

    def __init__(self, how: str, once: str = "") -> None:
        super().__init__()
        self._how, self._once = how, Path(once)
        self.observation_space = spaces.Box(-99, 99, (3,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed = seed
        shown = super().reset(seed=seed)
        self._length = 40
        return shown

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        shown, reward, *rest = super().step(action)
        if self._steps == 8 and (self._once == Path() or self._fails_now()):
            match self._how:
                case "raise":
                    raise ValueError("of the environment")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(1000)
                case "nan":
                    shown = np.array([0, np.nan, 0], np.float32)
                case "reward":
                    reward = float("inf")
        return shown, reward, *rest  # type: ignore[return-value]  # the rest are three

    def _fails_now(self) -> bool:
        if self._once.suffix != f".{self._seed}" or not self._once.exists():
            return False
        self._once.unlink()
        return True


class OldCrafter:
    """The interface of crafter 1.8.3 in miniature: the player dies at its third step where the seed is odd."""

    action_space = types.SimpleNamespace(n=17)

    def __init__(self, size: tuple[int, int], length: int, seed: int | None = None) -> None:
        self._size, self._length, self._seed, self._steps = size, length, seed or 0, 0

    def reset(self) -> np.ndarray:
        self._steps = 0
        return np.full((*self._size, 3), self._seed % 200, np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, float]]:
        self._steps += 1
        dead = self._seed % 2 == 1 and self._steps == 3
        picture = np.full((*self._size, 3), self._seed % 200 + self._steps, np.uint8)
        return picture, 0.5, dead or self._steps >= self._length, {"discount": 1 - float(dead)}


def makes_a_list() -> list[int]:
    return []


NOT_CALLABLE = 3
