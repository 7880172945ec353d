"""What an environment hands out: one `Step` per vector step, and the flags of its records.

One record per environment and vector step: obs_t, the reward received on arrival in obs_t, three flags, and the action
chosen after obs_t (SPEC 1.1). numpy only: this file and its siblings never import torch.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

AnySpace = gymnasium.Space[Any]
AnyArray = NDArray[Any]
Arrays = dict[str, AnyArray]
Flags = NDArray[np.bool_]
Options = Mapping[str, bool | int | float | str]


class EnvError(ValueError):
    """The environment, or what was asked of it, cannot be used; the message is one line that names the field."""


class Step(NamedTuple):
    """One record of every environment, before its action.

    obs          name -> (N, ...) of the dtype of its Space
    reward       (N,) float32, received on arrival in obs; 0 where is_first
    is_first     (N,) bool, obs comes from a reset: no action led to it
    is_last      (N,) bool, obs is the last of its episode, terminated or cut; the next step is its reset
    is_terminal  (N,) bool, the episode truly ended: False for a time limit
    """

    obs: Arrays
    reward: NDArray[np.float32]
    is_first: Flags
    is_last: Flags
    is_terminal: Flags


class Raw(NamedTuple):
    """What a backend received: observations by flat key, and gymnasium's words for the rest, all (N, ...).

    `game_over` is the environment's own end of episode where it is known better than by `terminated`.
    """

    obs: Arrays
    reward: AnyArray
    terminated: Flags
    truncated: Flags
    game_over: Flags | None = None


class Backend(Protocol):
    """N environments of one kind in step with each other, reset by the step after a last record (NEXT_STEP).

    `observation_spaces` holds leaf spaces by flat key; `action_space` is the environment's own;
    `action_repeat` is how many frames one step makes. The first `receive`
    returns the reset observations, every later one answers the `send` before it. `Env` guarantees this order.
    """

    observation_spaces: dict[str, AnySpace]
    action_space: AnySpace
    action_repeat: int

    def receive(self) -> Raw: ...

    def send(self, action: object) -> None: ...

    def render(self, index: int) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


class Stream:
    """Turns terminated and truncated of a NEXT_STEP environment into is_first, is_last, is_terminal."""

    def __init__(self, num_envs: int) -> None:
        self._previous_last = np.ones(num_envs, bool)

    def step(self, raw: Raw) -> tuple[NDArray[np.float32], Flags, Flags, Flags]:
        """Reward and flags of the next record, every array fresh: reward, is_first, is_last, is_terminal.

        Raises EnvError where an environment ends on its own reset step (it resets within a step instead), or where
        the reward is not finite.
        """
        is_first = self._previous_last
        is_last = raw.terminated | raw.truncated
        if (wrong := is_first & is_last).any():
            raise EnvError(f"env {wrong.argmax()} ended on its reset step; only next-step autoreset is supported")
        ended = raw.terminated if raw.game_over is None else raw.game_over
        with np.errstate(over="ignore"):
            # `where`, not a product: what EnvPool reports on a reset is uninitialised memory and may be NaN.
            reward = np.where(is_first, np.float32(0), raw.reward.astype(np.float32))
        require_finite("reward", reward)
        self._previous_last = is_last.copy()
        return reward, is_first, is_last, ended & is_last


def require_finite(name: str, value: AnyArray) -> None:
    """Raises EnvError naming the environment whose row of `value` (N, ...) holds NaN or infinity."""
    finite = np.isfinite(value)
    if not finite.all():
        index = int(np.argwhere(~finite)[0, 0])
        raise EnvError(f"env {index}: {name} is not finite (got {value[~finite][0]})")


def one_line(value: object) -> str:
    """Its text without line breaks, for the message of an EnvError."""
    return " ".join(str(value).split())


def unknown(name: str, known: Iterable[str], what: str = "such environment") -> str:
    """The message for a `name` that is not among `known`: it names those that look like it."""
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(by_lower[option] for option in close)}?" if close else "nothing looks like it"
    return f"there is no {what}; {hint}"
