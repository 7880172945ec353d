"""Plays environments at random and cuts what they hand out into episodes, for test_env_*.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdreamer.env import Env, Step
from fastdreamer.env_step import AnyArray, Arrays


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
    """The finished episodes of every environment. Asserts first, middle..., last without a gap, and reward 0 at first."""
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
    """A bare EnvPool pool with the same seeds that is sent the same actions: its info is the truth that ours hides."""

    def __init__(self, id: str, num_envs: int, seed: int, options: dict[str, Any], keys: tuple[str, ...]) -> None:
        import envpool

        self._pool = envpool.make(id, "gymnasium", num_envs=num_envs, batch_size=num_envs, seed=seed, **options)
        self._keys = keys
        self.observation: NDArray[Any] | dict[str, Any] = np.zeros(0)

    def __call__(self, action: Arrays | None) -> Arrays:
        """The info keys after `action`, and "reward" as EnvPool gives it."""
        if action is None:
            self._pool.async_reset()
        else:
            self._pool.send(action["action"].astype(self._pool.action_space.dtype))
        self.observation, reward, _, _, info = self._pool.recv()
        return {"reward": reward, **{key: info[key].copy() for key in self._keys}}


def _record(step: Step, action: Arrays, extra: Arrays, index: int) -> Record:
    def row(arrays: Arrays) -> dict[str, AnyArray]:
        return {name: value[index] for name, value in arrays.items()}

    flags = [bool(flag[index]) for flag in (step.is_first, step.is_last, step.is_terminal)]
    return Record(row(step.obs), float(step.reward[index]), flags[0], flags[1], flags[2], row(action), row(extra))
