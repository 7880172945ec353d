"""Environments behind one narrow interface: `recv` a Step, `send` an action, in turn; episodes follow one another.

    env = make_env("CartPole-v1", num_envs=16, seed=0)
    step = env.recv()                # every record is_first
    while True:
        env.send(policy(step))       # what is sent where is_last is ignored by the environment
        step = env.recv()

numpy only: nothing here imports torch.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fastdreamer.config import LARGEST_SEED
from fastdreamer.env_action import ActionCodec
from fastdreamer.env_backend import Backend, Raw, step_of
from fastdreamer.env_cursor import Cursors, EnvState, digest
from fastdreamer.env_envpool import EnvPoolBackend
from fastdreamer.env_gym import GymBackend
from fastdreamer.env_observation import ObservationCodec
from fastdreamer.env_step import Arrays, EnvError, NotFiniteError, Options, Step
from fastdreamer.spaces import Spaces

__all__ = ["Env", "EnvError", "EnvState", "Step", "make_env"]

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that an environment may take for a step."""


class Env:
    """N environments of one kind. Between `recv` and `send` nothing moves; between `send` and `recv` they step.

    obs_space, act_space   name -> Space; a bare observation is "image" or "vector", a bare action "action"
    num_envs               N
    """

    def __init__(self, backend: Backend, id: str, num_envs: int, seed: int, resize: int = 0) -> None:
        self._backend, self._id, self.num_envs = backend, id, num_envs
        self._observation = ObservationCodec(backend.observation_spaces, resize)
        self._action = ActionCodec(backend.action_space, num_envs)
        self._cursors = Cursors(num_envs, seed, backend.replays)
        self._stepping, self._closed = True, False
        self._pid = os.getpid()
        self.waiting_since: float | None = None
        """Where `recv` waits for environments, since when (time.monotonic)."""
        backend.send(None, 0, self._cursors.ended)

    @property
    def obs_space(self) -> Spaces:
        return self._observation.spaces

    @property
    def action_repeat(self) -> int:
        """Frames per step."""
        return self._backend.action_repeat

    @property
    def rebuilds(self) -> int:
        """How often an environment, or EnvPool's pool of them, was made anew after a fault."""
        return self._backend.rebuilds.count

    @property
    def supervised(self) -> bool:
        """Whether `recv` ends even where an environment hangs."""
        return self._backend.supervised

    @property
    def act_space(self) -> Spaces:
        return self._action.spaces

    def recv(self) -> Step:
        """The next record of every environment, in arrays that are never written again; waits for the slowest.

        Where is_first comes without is_last before, the episode was cut: its environment had to be made anew. Raises
        EnvError for a value that is not finite or outside its space, and where no `send` came before.
        """
        with _named(self._id):
            self._require_usable()
            if not self._stepping:
                raise EnvError("recv() needs a send() before it")
            self._cursors.wait()
            self.waiting_since = time.monotonic()
            raw, step = self._received()
            self.waiting_since = None
            self._stepping = False
            self._cursors.received(raw.obs, step.is_first, step.is_last)
            return step

    def send(self, action: Arrays) -> None:
        """Starts one step of every environment and returns; `action` holds an (N, ...) array per key of act_space.

        Continuous actions are the raw samples: they are clipped to [-1, 1] and mapped to the bounds here. Raises
        EnvError for a wrong key, shape, type or value, and where a `send` is still outstanding.
        """
        with _named(self._id):
            self._require_usable()
            if self._stepping:
                raise EnvError("send() needs a recv() before it: one action per record")
            encoded = self._action.encode(action)
            self._cursors.sent(action)
            self._backend.send(encoded, self._cursors.records, self._cursors.ended)
            self._stepping = True

    def save(self) -> EnvState:
        """Between `send` and `recv`: how to come back to this moment."""
        assert self._stepping, "an action is part of it"
        return self._cursors.save()

    def restore(self, state: EnvState) -> None:
        """Goes back to a `save`, also of another process: the next `recv` gives the record that would have come.

        Episodes are played again from their seed. One that cannot be, or that shows something else than it did, is cut:
        a new one begins. Raises EnvError for the state of other environments.
        """
        with _named(self._id):
            cursors = self._cursors.restore(state)
            shown = self._backend.resume(self._cursors.records, cursors)
            same = [index for index, obs in shown.items() if digest(obs) == cursors[index].digest]
            reset = np.ones(self.num_envs, bool)
            reset[same] = False
            if cut := np.flatnonzero(reset & ~self._cursors.ended).tolist():
                why = "after the same seed and actions they show something else" if shown else "they cannot be replayed"
                logger.warning("%d of %d episodes are cut, %s", len(cut), self.num_envs, why)
            action = self._cursors.last_action
            self._backend.send(None if action is None else self._action.encode(action), self._cursors.records, reset)
            self._stepping = True

    def render(self, index: int) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of environment `index` between recv and send. Needs env.options.render_mode rgb_array."""
        with _named(self._id):
            self._require_usable()
            if self._stepping:
                raise EnvError("render() only between recv() and send(): the environment is stepping")
            return self._backend.render(index)

    def close(self) -> None:
        """Ends threads and processes; may be called twice. Does nothing in a forked child, which has none of them."""
        if not self._closed and self._pid == os.getpid():
            self._closed = True
            self._backend.close()

    def _received(self) -> tuple[Raw, Step]:
        while True:
            raw = self._backend.receive()
            try:
                return raw, step_of(raw, self._observation.decode(raw.obs))
            except NotFiniteError as error:
                self._backend.rebuild(error)

    def _require_usable(self) -> None:
        if self._closed:
            raise EnvError("it is closed")
        if self._pid != os.getpid():
            raise EnvError("it was made in another process; its threads do not survive a fork, make a new one here")


def make_env(id: str, *, num_envs: int, seed: int, options: Options | None = None, timeout: float = TIMEOUT) -> Env:
    """Makes `num_envs` environments; environment i has seed `seed` + i.

    id        an EnvPool id (`CartPole-v1`), `gym:ID` for a gymnasium id, or `module:factory` for an importable callable
              that returns a gymnasium.Env
    options   arguments of the environment's constructor, but for three: `keys` (observations to keep, comma-separated),
              `resize` (side in pixels that every image gets) and, for the last two kinds, `vectorization` (sync, async)
    timeout   seconds that a step may take where environments have processes of their own (async)

    Raises EnvError, one line, for anything that cannot be made.
    """
    if num_envs < 1:
        raise EnvError(f"env.num_envs must be at least 1, got {num_envs}")
    if not 0 <= seed <= LARGEST_SEED - num_envs:
        raise EnvError(f"run.seed must lie in 0..{LARGEST_SEED - num_envs}, got {seed}")
    with _named(id):
        arguments = dict(options or {})
        keys = str(_taken(arguments, "keys", ""))
        resize = int(_taken(arguments, "resize", 0))
        backend: Backend
        if ":" in id:
            vectorization = str(_taken(arguments, "vectorization", "sync"))
            backend = GymBackend(id, num_envs, seed, arguments, keys, resize, vectorization, timeout)
        else:
            backend = EnvPoolBackend(id, num_envs, seed, arguments, keys)
        return Env(backend, id, num_envs, seed, resize)


def _taken(arguments: dict[str, bool | int | float | str], name: str, default: int | str) -> bool | int | float | str:
    value = arguments.pop(name, default)
    if type(value) is not type(default):
        raise EnvError(f"env.options.{name} must be {type(default).__name__}, got {value!r}")
    return value


@contextmanager
def _named(id: str) -> Iterator[None]:
    try:
        yield
    except EnvError as error:
        raise EnvError(f"env.id {id}: {error}") from error
