"""Plays environments at random and cuts what they hand out into episodes, for test_env_*.py."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastdreamer.env import Env, Step
from fastdreamer.env_step import AnyArray, Arrays, Options


class Record(NamedTuple):
    """One record of one environment; `action` is what was sent after it, `info` what `play` was told to add."""

    obs: Arrays
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    action: Arrays
    info: Arrays


Policy = Callable[[Env, Step], Arrays]


def random_policy() -> Policy:
    """Any class; normal samples, of which every third lies outside [-1, 1]. Every policy starts at the same seed."""
    random = np.random.default_rng(0)
    return lambda env, step: random_action(env, random)


def random_action(env: Env, random: np.random.Generator) -> Arrays:
    """One action of every environment, (N, ...) per key."""
    action: Arrays = {}
    for name, space in env.act_space.items():
        shape = (env.num_envs, *space.shape)
        normal = random.normal(size=shape).astype(np.float32)
        action[name] = random.integers(0, space.classes, shape) if space.kind == "discrete" else normal
    return action


def play(
    env: Env,
    steps: int,
    info: Callable[[Arrays | None], Arrays] | None = None,
    policy: Policy | None = None,
) -> list[list[Record]]:
    """`steps` records per environment. `info` gets the action before each record, None before the first."""
    policy = policy or random_policy()
    records: list[list[Record]] = [[] for _ in range(env.num_envs)]
    action: Arrays | None = None
    for at in range(steps):
        step, extra = env.recv(), info(action) if info else {}
        action = policy(env, step)
        for index, row in enumerate(records):
            row.append(_record(step, action, extra, index))
        if at < steps - 1:
            env.send(action)
    return records


def episodes(records: list[list[Record]]) -> list[list[Record]]:
    """The finished episodes. Asserts that records are first, middle..., last without a gap, and that first pays 0."""
    finished = []
    for row in records:
        starts = [at for at, record in enumerate(row) if record.is_first]
        ends = [at for at, record in enumerate(row) if record.is_last]
        assert starts == [0, *(end + 1 for end in ends if end + 1 < len(row))]
        assert all(row[at].reward == 0 and not row[at].is_last for at in starts)
        assert all(record.is_last for record in row if record.is_terminal)
        finished += [row[start : end + 1] for start, end in zip(starts, ends, strict=False)]
    return finished


class Twin:
    """A bare EnvPool pool of the same seeds that is sent the same actions: what its info says is the truth."""

    def __init__(self, id: str, env: Env, seed: int, options: Options) -> None:
        import envpool

        self._pool = envpool.make(id, "gymnasium", num_envs=env.num_envs, seed=seed, **options)
        self._space = self._pool.action_space

    def __call__(self, action: Arrays | None) -> Arrays:
        """EnvPool's info after `action`, its reward as raw_reward, its observation as raw or, of a dict, raw/KEY."""
        if action is None:
            self._pool.async_reset()
        else:
            self._pool.send(self._executed(action["action"]))
        observation, reward, _, _, info = self._pool.recv()
        arrays = {key: value for key, value in info.items() if isinstance(value, np.ndarray)}
        raw = (
            {"raw": observation}
            if isinstance(observation, np.ndarray)
            else {f"raw/{k}": v for k, v in observation.items()}
        )
        return arrays | raw | {"raw_reward": reward}

    def _executed(self, action: AnyArray) -> AnyArray:
        if action.dtype.kind == "f":
            low, high = self._space.low, self._space.high
            action = (low + high) / 2 + np.clip(action.astype(np.float64), -1, 1) * (high - low) / 2
        return action.astype(self._space.dtype)


def _record(step: Step, action: Arrays, extra: Arrays, index: int) -> Record:
    def row(arrays: Arrays) -> dict[str, AnyArray]:
        return {name: value[index] for name, value in arrays.items()}

    flags = [bool(flag[index]) for flag in (step.is_first, step.is_last, step.is_terminal)]
    return Record(row(step.obs), float(step.reward[index]), flags[0], flags[1], flags[2], row(action), row(extra))
