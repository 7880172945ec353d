"""What an environment hands out: one `Step` per vector step.

One record per environment and vector step: obs_t, the reward received on arrival in obs_t, three flags, and the action
chosen after obs_t (SPEC 1.1). numpy only: this file and its siblings never import torch.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

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


class NotFiniteError(EnvError):
    """Environment `index` shows NaN or infinity; `what` names where."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"env {index}: {what}")
        self.index, self.what = index, what


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


def require_finite(name: str, value: AnyArray) -> None:
    """Raises NotFiniteError naming the environment whose row of `value` (N, ...) holds NaN or infinity."""
    finite = np.isfinite(value)
    if not finite.all():
        index = int(np.argwhere(~finite)[0, 0])
        raise NotFiniteError(index, f"{name} is not finite (got {value[~finite][0]})")


def one_line(value: object) -> str:
    """Its text without line breaks, for the message of an EnvError."""
    return " ".join(str(value).split())


def unknown(name: str, known: Iterable[str], what: str = "such environment") -> str:
    """The message for a `name` that is not among `known`: it names those that look like it."""
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(by_lower[option] for option in close)}?" if close else "nothing looks like it"
    return f"there is no {what}; {hint}"
