"""What stands behind `Env`: N environments of one kind, and how their words become the flags of a Step."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdreamer.env_cursor import Cursor
from fastdreamer.env_faults import Rebuilds
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, Flags, NotFiniteError, Step, require_finite


class Raw(NamedTuple):
    """What a backend received: observations by flat key, and gymnasium's words for the rest, all (N, ...).

    `first` marks the records of a reset. `game_over` is the environment's own end of episode where it is known better
    than by `terminated`.
    """

    obs: Arrays
    reward: AnyArray
    terminated: Flags
    truncated: Flags
    first: Flags
    game_over: Flags | None = None


class Backend(Protocol):
    """N environments of one kind in step with each other, reset by the step after a last record.

    `observation_spaces` holds leaf spaces by flat key; `action_space` is the environment's own;
    `action_repeat` is how many frames one step makes; `replays` says whether an episode can be played again;
    `supervised` whether `receive` ends even where an environment does not. Every `receive` answers the `send` before.
    `Env` guarantees this order.
    """

    observation_spaces: dict[str, AnySpace]
    action_space: AnySpace
    action_repeat: int
    replays: bool
    supervised: bool
    rebuilds: Rebuilds

    def send(self, action: object, record: int, reset: Flags) -> None:
        """Begins the step that gives a record of this number; None where all are `reset` (N,), as at the start."""

    def receive(self) -> Raw:
        """The record; the same once more where `rebuild` came between, but for what that made anew."""

    def rebuild(self, error: NotFiniteError) -> None:
        """Makes anew what has shown the value in `error`. Raises EnvError where it cannot, or too often."""

    def resume(self, record: int, cursors: Mapping[int, Cursor]) -> dict[int, Arrays]:
        """Before the `send` for a record: what environments show when their episodes are played again.

        All but the last action of each, which is sent then. What is not in the answer must be reset.
        """

    def render(self, index: int) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


def step_of(raw: Raw, obs: Arrays) -> Step:
    """The record, every array fresh. Raises EnvError where an environment ends on its own reset step (it resets within
    a step instead), or where the reward is not finite.
    """
    is_last = raw.terminated | raw.truncated
    if (wrong := raw.first & is_last).any():
        raise EnvError(f"env {wrong.argmax()} ended on its reset step; only next-step autoreset is supported")
    ended = raw.terminated if raw.game_over is None else raw.game_over
    with np.errstate(over="ignore"):
        # `where`, not a product: what EnvPool reports on a reset is uninitialised memory and may be NaN.
        reward = np.where(raw.first, np.float32(0), raw.reward.astype(np.float32))
    require_finite("reward", reward)
    return Step(obs, reward, raw.first.copy(), is_last, ended & is_last)
