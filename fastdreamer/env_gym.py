"""N gymnasium environments in step. Each episode has a seed of its own, so that one can be played again."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from fastdreamer.env_action import ActionCodec
from fastdreamer.env_backend import Raw
from fastdreamer.env_checked import Record, make_checked
from fastdreamer.env_cursor import Cursor, episode_seed
from fastdreamer.env_faults import Fault, Rebuilds
from fastdreamer.env_host import Host, Inline, Worker
from fastdreamer.env_step import Arrays, EnvError, Flags, NotFiniteError, Options

CLOSE_SECONDS = 5.0
"""For all processes together to end by themselves."""


class GymBackend:
    """vectorization: sync steps one after the other in `receive`, async has one spawned process per environment.

    With async an environment that raises, dies, does not answer within `timeout` seconds or shows what is not finite is
    made anew, without the others. With sync its error is the run's.
    """

    replays = True

    def __init__(
        self, id: str, num_envs: int, seed: int, options: Options, keys: str, resize: int, vectorization: str,
        timeout: float,
    ) -> None:  # fmt: skip
        """`keys`, `resize` as in `make_env`. Environment i begins its first episode with seed `seed` + i."""
        if vectorization not in ("sync", "async"):
            raise EnvError(f"env.options.vectorization must be sync or async, got {vectorization}")
        self.supervised = vectorization == "async"
        self._make, self._timeout = partial(make_checked, id, options=dict(options), keys=keys, resize=resize), timeout
        self._seed, self._record = seed, 0
        self.action_repeat = 1  # a wrapper that repeats is part of the environment
        self.rebuilds = Rebuilds()
        self._hosts: list[Host] = []
        try:
            for index in range(num_envs):
                self._hosts.append(self._host(index))
            first, *others = [host.spaces() for host in self._hosts]
            for index, spaces in enumerate(others, 1):
                if spaces != first:
                    raise EnvError(f"its copies cannot be run side by side: env {index} has {spaces}, env 0 {first}")
        except EnvError:
            self.close()
            raise
        self.observation_spaces, self.action_space = first
        self._batch = batch_space(first.action, num_envs)
        self._first = np.ones(num_envs, bool)
        self._asked: set[int] = set()
        self._records: dict[int, Record] = {}

    def send(self, action: object, record: int, reset: Flags) -> None:
        """Asks for the next record; the processes (async) begin."""
        self._record, self._first = record, reset.copy()
        actions = None if action is None else list(iterate(self._batch, action))
        for index, host in enumerate(self._hosts):
            if reset[index]:
                self._begin(index)
            else:
                assert actions is not None, "only a reset takes no action"
                host.ask("step", actions[index])
        self._asked = set(range(len(self._hosts)))

    def receive(self) -> Raw:
        """Steps (sync), or waits for the slowest (async)."""
        records = [self._answered(index) for index in range(len(self._hosts))]
        obs = {key: np.stack([record.obs[key] for record in records]) for key in self.observation_spaces}
        terminated, truncated = (np.array([record[at] for record in records], bool) for at in (2, 3))
        return Raw(obs, np.array([record.reward for record in records]), terminated, truncated, self._first)

    def rebuild(self, error: NotFiniteError) -> None:
        """After a record that is not finite: makes that environment anew (async), or raises the error (sync)."""
        if not self.supervised:
            raise error
        self._replace(error.index, error.what)
        self._begin(error.index)

    def resume(self, record: int, cursors: Mapping[int, Cursor]) -> dict[int, Arrays]:
        """Plays all but the last action of episodes again; what each shows then, of those that come so far."""
        self._record = record
        for index in self._asked:
            try:
                self._hosts[index].drop()
            except Fault as fault:
                self._replace(index, str(fault))
        self._asked.clear()
        left = {index: iter(self._played(cursor.actions)) for index, cursor in cursors.items()}
        asked: dict[int, tuple[str, object]] = {at: ("begin", cursor.seed) for at, cursor in cursors.items()}
        shown: dict[int, Arrays] = {}
        while asked:
            for index, (method, argument) in asked.items():
                self._hosts[index].ask(method, argument)
            for index in list(asked):
                del asked[index]
                try:
                    answer: Record = self._hosts[index].answer()
                except Fault as fault:
                    self._replace(index, str(fault))
                    continue
                following = next(left[index], None)
                if following is None:
                    shown[index] = answer.obs
                elif not (answer.terminated or answer.truncated):
                    asked[index] = "step", following
        return shown

    def render(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3); EnvError unless env.options.render_mode is rgb_array."""
        self._hosts[index].ask("render")
        frame: NDArray[np.uint8] = self._hosts[index].answer()
        return frame

    def close(self) -> None:
        """Ends the environments, and the processes within seconds even where one hangs."""
        for host in self._hosts:
            host.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for host in self._hosts:
            host.wait(deadline - time.monotonic())

    def _host(self, index: int) -> Host:
        make = partial(self._make, index=index)
        return Worker(make, self._timeout) if self.supervised else Inline(make)

    def _begin(self, index: int) -> None:
        self._first[index] = True
        self._hosts[index].ask("begin", episode_seed(self._seed + index, self._record))
        self._asked.add(index)

    def _answered(self, index: int) -> Record:
        while index in self._asked:
            try:
                self._records[index] = self._hosts[index].answer()
            except Fault as fault:
                self._replace(index, str(fault))
                self._begin(index)
            else:
                self._asked.remove(index)
        return self._records[index]

    def _replace(self, index: int, why: str) -> None:
        self.rebuilds.note(f"env {index}", why)
        self._hosts[index].close()
        self._hosts[index].wait(0)
        self._hosts[index] = self._host(index)

    def _played(self, actions: Arrays) -> list[Any]:
        """All actions of an episode but the last."""
        rows = len(next(iter(actions.values()))) - 1
        encoded = ActionCodec(self.action_space, rows).encode({key: value[:-1] for key, value in actions.items()})
        return list(iterate(batch_space(self.action_space, rows), encoded)) if rows else []
