"""What flows between the ring and the agent: states of the world model, and windows of replayed records."""

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """A state of the world model: deter (..., D) in the compute dtype, stoch (..., S) integer class indices."""

    deter: Tensor
    stoch: Tensor


class Batch(NamedTuple):
    """The trained records of B windows of T steps. Every flag is bool; reward was earned on arrival."""

    obs: dict[str, Tensor]
    """(B, T, *shape) per observation key."""
    reward: Tensor
    """(B, T) float32."""
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor


class Window(NamedTuple):
    """What one update learns from: a batch, the state before it, and the action before each of its records."""

    batch: Batch
    start: State
    """The stored state of the context record: deter (B, D), stoch (B, S)."""
    prev_action: dict[str, Tensor]
    """(B, T, *shape) per action key."""
