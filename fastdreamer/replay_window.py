"""The windows of one update: from a plan into tensors that never move, and fresh states back into the ring.

`stage` runs on the host before an update. `read` and `write_back` are part of the update: they look only at tensors, so
that a CUDA graph can hold them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdreamer.batch import Batch, State, Window
from fastdreamer.replay_fetch import Fetch, HostSlots
from fastdreamer.replay_storage import Field, allocate
from fastdreamer_kernels import replay_gather


class Plan(NamedTuple):
    """Which windows make up a batch, host arrays."""

    env: np.ndarray
    """(B,) int64."""
    start: np.ndarray
    """(B,) int64: the record number of the context record, counted from the first record of the run."""
    online: int
    """How many of them, from the front, came from the online queue."""


class Windows:
    """B windows of T trained records out of a ring of (N, rows, ...) tensors.

    records, latents: the ring by key, on `device`, where the learner is, but for the keys `away`; locked: see `Fetch`.
    """

    def __init__(
        self, records: Mapping[str, Tensor], latents: Mapping[str, Tensor], away: Collection[str],
        locked: Callable[[Tensor], bool], batch: int, time: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.batch, self.time = batch, time
        self.records, self.latents = records, latents
        self.num_envs, self.rows = records["reward"].shape[:2]
        fields = {key: Field(tuple(ring.shape[2:]), ring.dtype) for key, ring in records.items()}
        states = {key: Field(tuple(ring.shape[2:]), ring.dtype) for key, ring in latents.items()}
        self.tensors = allocate(fields, (batch, time), device) | allocate(states, (batch, 1), device)
        self._start_stoch = torch.zeros(batch, latents["stoch"].shape[2], dtype=torch.int32, device=device)
        self.near = {key: ring for key, ring in records.items() if key not in away}
        rings, out = ({key: tensors[key] for key in away} for tensors in (records, self.tensors))
        self.fetch = Fetch(rings, out, locked) if away else None
        # Per window: environment, context record, first trained record. Per trained record: its row, who writes it.
        self._index = torch.zeros(3 * batch + 2 * batch * time, dtype=torch.int64, device=device)
        self._slots = HostSlots(self._index)
        self._env, self._context, self._trained = self._index[: 3 * batch].view(3, batch)
        self.staged = self._index[: 2 * batch].view(2, batch)
        """Environment and context record of every window."""
        self._row, self._source = self._index[3 * batch :].view(2, batch * time)

    def stage(self, plan: Plan) -> None:
        """Sends the plan, and what only the host holds of its windows, to the learner's device without waiting."""
        with self._slots.next() as slot:
            index = slot.numpy()
            env, context, trained = index[: 3 * self.batch].reshape(3, self.batch)
            env[:], context[:], trained[:] = plan.env, plan.start, plan.start + 1
            row, source = index[3 * self.batch :].reshape(2, self.batch, self.time)
            row[:] = plan.env[:, None] * self.rows + self.trained_records(plan) % self.rows
            source[:] = winners(plan, self.time)
        if self.fetch is not None:
            self.fetch(plan.env, plan.start + 1)

    def trained_records(self, plan: Plan) -> np.ndarray:
        """(B, T) record numbers."""
        return plan.start[:, None] + np.arange(1, self.time + 1)

    def read(self) -> Window:
        """The staged windows. The next `read` overwrites the tensors.

        is_last is also set where the next record of the window begins an episode, so that abandoned episodes end.
        """
        out = self.tensors
        for key, ring in self.near.items():
            start = self._context if key.startswith("action/") else self._trained
            replay_gather(ring, self._env, start, self.time, out[key])
        for key, ring in self.latents.items():
            replay_gather(ring, self._env, self._context, 1, out[key])
        out["is_last"][:, :-1] |= out["is_first"][:, 1:]
        state = State(out["deter"][:, 0], self._start_stoch.copy_(out["stoch"][:, 0]))
        flags = out["is_first"], out["is_last"], out["is_terminal"]
        return Window(Batch(under(out, "obs/"), out["reward"], *flags), state, under(out, "action/"))

    def write_back(self, deter: Tensor, stoch: Tensor, keep: Tensor | None = None) -> None:
        """Replaces the states of the trained records by fresh ones: deter (B, T, D), stoch (B, T, S) class indices.

        Where windows overlap, the highest batch index wins, as in the official loop over the batch. The context record
        keeps its state. keep () bool: false leaves everything as it is.
        """
        for key, value in {"deter": deter, "stoch": stoch}.items():
            ring = self.latents[key].flatten(0, 1)
            fresh = value.detach().to(ring.dtype).flatten(0, 1).index_select(0, self._source)
            if keep is not None:
                fresh = torch.where(keep, fresh, ring.index_select(0, self._row))
            ring.index_copy_(0, self._row, fresh)  # a row that is written twice gets the same values twice


def winners(plan: Plan, time: int) -> np.ndarray:
    """(B, T): for each trained record the place b * T + t of the last window that holds the same record."""
    batch = len(plan.env)
    shift = plan.start[:, None] - plan.start[None, :]  # (B, B): record t of window b is record t + shift of window c
    place = np.arange(time)[None, :, None] + shift[:, None, :]  # (B, T, C)
    holds = (plan.env[:, None] == plan.env[None, :])[:, None, :] & (place >= 0) & (place < time)
    last = batch - 1 - holds[:, :, ::-1].argmax(2)
    return last * time + np.take_along_axis(place, last[:, :, None], 2)[:, :, 0]


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
