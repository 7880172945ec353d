"""The replay ring: every record of every environment, the plan of what to learn from, and fresh latents back in.

One record holds obs_t, reward_t, the flags, the action chosen from obs_t and the state of the world model at t. All
environments step together, so record number r of each lies in row r % rows of its part of the ring. A window is
T + 1 successive records of one environment: the first gives the start state and the first previous action, the other
T are trained on. Window number w, counted over all environments in the order in which windows become complete, starts
at record w // num_envs of environment w % num_envs; the newest `capacity` windows can be sampled. Source: SPEC 1.1-1.3.

`insert`, `window` and `write_back` look at tensors alone, for CUDA graphs to hold; the host counts, plans and saves.
"""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdreamer.batch import Window
from fastdreamer.config import MAX_CLASSES
from fastdreamer.noise import Noise, Stream
from fastdreamer.replay_files import RingSave, chunk_length
from fastdreamer.replay_latents import LatentFiles
from fastdreamer.replay_mend import mend
from fastdreamer.replay_pinned import Pinning
from fastdreamer.replay_placement import Wanted, choose, read_machine
from fastdreamer.replay_records import RecordFiles
from fastdreamer.replay_storage import Field, allocate
from fastdreamer.replay_window import Plan, Windows
from fastdreamer.spaces import Spaces
from fastdreamer.tables import read_table

Value = np.ndarray | Tensor
CPU = torch.device("cpu")


class Replay:
    """A ring of `[env][time]` rows and the sampler that knows it.

    deter, stoch: widths of the stored state; deter is kept in `dtype`, stoch as one byte per index below `classes`.
    capacity: how many windows can be sampled before the oldest are dropped. device: the learner's, where everything
    lies but the observations that `placement` puts elsewhere, for which peak counts: see `choose`. Raises ValueError if
    the rows cannot fit into memory.
    """

    def __init__(
        self, obs: Spaces, act: Spaces, *, deter: int, stoch: int, num_envs: int, capacity: int,
        batch_size: int, batch_length: int, seed: int, rank: int = 0, classes: int = MAX_CLASSES,
        dtype: torch.dtype = torch.float32, device: torch.device = CPU, placement: Wanted = "auto", peak: int = 0,
    ) -> None:  # fmt: skip
        for name, value in {"capacity": capacity, "batch_size": batch_size, "batch_length": batch_length}.items():
            if value < 1:
                raise ValueError(f"replay.{name} must be at least 1, got {value}")
        self.num_envs, self.capacity, self.batch_size, self.batch_length = num_envs, capacity, batch_size, batch_length
        # A window and its margin: rows that the write cursor can reach while a planned copy is still under way.
        needed, chunk = -(-capacity // num_envs) + batch_length + 2 * (batch_length + 1), chunk_length(num_envs)
        self.rows = -(-needed // chunk) * chunk  # so that no file of the ring wraps around
        record = {f"obs/{key}": Field.of(space) for key, space in obs.items()}
        record |= {f"action/{key}": Field.of(space) for key, space in act.items()}
        record |= {"reward": Field((), torch.float32)}
        record |= {key: Field((), torch.bool) for key in ("is_first", "is_last", "is_terminal")}
        spaces = {f"obs/{key}": space for key, space in obs.items()} | {f"action/{k}": v for k, v in act.items()}
        self._classes = {key: space.classes for key, space in spaces.items() if space.kind == "discrete"}
        self._classes["stoch"] = classes
        latent = {"deter": Field((deter,), dtype), "stoch": Field((stoch,), torch.uint8)}
        what = f"{capacity} windows of {num_envs} environments"
        rows = num_envs * self.rows
        self.placement = choose(placement, record | latent, rows, read_machine(device), peak, what)
        places = self.placement.places
        away = {key: field for key, field in record.items() if places[key] != places["reward"]}
        near = {key: field for key, field in record.items() if key not in away}
        self.away = tuple(away)
        """Keys that do not lie with the learner."""
        lead = (num_envs, self.rows)
        self.records = allocate(near, lead, device) | allocate(away, lead, CPU)
        self.latents = allocate(latent, lead, device)
        self._record_files, self._latent_files = RecordFiles(self.records), LatentFiles(self.latents)
        pinned = [self.records[key] for key in away if places[key] == "pinned"]
        self._pinning = Pinning(pinned) if pinned else None
        if self._pinning is not None:
            weakref.finalize(self, self._pinning.close)
        locked = _never if self._pinning is None else self._pinning.covers
        self._windows = Windows(self.records, self.latents, self.away, locked, batch_size, batch_length, device)
        self.staged = self._windows.staged
        """The plan that the device has, (2, B) int64: environment and context record."""
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        """The row that `insert` writes next."""
        self._begin = torch.arange(num_envs, device=device) * self.rows
        self.noise = Noise(seed, Stream.PLAN, rank)
        self.length = 0
        """Records that each environment has added since the run began."""
        self.first = 0
        """The oldest record that was ever in this ring: 0 but after a load."""
        self.served = 0
        """Online windows that were taken from the queue or dropped from it."""

    @property
    def windows(self) -> int:
        """How many windows can be sampled now."""
        low, high = self.window_range()
        return high - low

    def window_range(self) -> tuple[int, int]:
        """The window numbers that can be sampled: from the first up to, not including, the second."""
        high = self.num_envs * max(self.length - self.batch_length, 0)
        return min(max(high - self.capacity, self.first * self.num_envs), high), high

    def add(
        self, obs: Mapping[str, Value], reward: Value, is_first: Value, is_last: Value, is_terminal: Value,
        action: Mapping[str, Value], deter: Value, stoch: Value,
    ) -> None:  # fmt: skip
        """Appends one record per environment; every value is (N, ...), on any device.

        deter, stoch: the state after the observation, stoch as class indices. action: what was chosen from it, zero
        where is_last. Raises ValueError for a missing or unknown key or another shape.
        """
        values = {f"obs/{key}": value for key, value in obs.items()} | {f"action/{k}": v for k, v in action.items()}
        values |= {"reward": reward, "is_first": is_first, "is_last": is_last, "is_terminal": is_terminal}
        tensors = {key: torch.as_tensor(value) for key, value in (values | {"deter": deter, "stoch": stoch}).items()}
        ring = self.records | self.latents
        if tensors.keys() != ring.keys():
            raise ValueError(f"replay.add takes {sorted(ring)}, got {sorted(tensors)}")
        for key, value in tensors.items():
            expected = (self.num_envs, *ring[key].shape[2:])
            if value.shape != expected:
                raise ValueError(f"replay.add: {key} must be {expected}, got {tuple(value.shape)}")
        self.insert({key: value.to(self.cursor.device) for key, value in tensors.items() if key not in self.away})
        self.count({key: tensors[key] for key in self.away})

    def insert(self, record: Mapping[str, Tensor]) -> None:
        """The part of `add` that the learner's device does: (N, ...) per key, but for those that lie elsewhere."""
        index = self._begin + self.cursor
        for key, ring in (self.records | self.latents).items():
            if key in self.away:
                continue
            ring.flatten(0, 1).index_copy_(0, index, record[key].to(ring.dtype))
        self.cursor.add_(1).remainder_(self.rows)

    def count(self, away: Mapping[str, Tensor]) -> None:
        """The part of `add` that the host does: counts the record and stores what lies with it, (N, ...) per key."""
        row = self.length % self.rows
        if self._pinning is not None:
            self._pinning.reach(row)
        for key in self.away:
            self.records[key][:, row].copy_(away[key])
        self._latent_files.changed(slice(None), self.length)
        self.length += 1

    def plan(self) -> Plan:
        """Draws the windows of one batch: first the online queue, in order, then uniformly with replacement.

        Raises ValueError while there is no window.
        """
        low, high = self.window_range()
        if low == high:
            raise ValueError(f"replay holds no window of {self.batch_length + 1} records yet, only {self.length}")
        fresh = self._take_online(low)
        words = self.noise.bits(2 * self.batch_size).numpy().astype(np.uint64)
        window = low + _below(high - low, words[0::2], words[1::2])
        window[: len(fresh)] = fresh
        return Plan(window % self.num_envs, window // self.num_envs, len(fresh))

    def _take_online(self, low: int) -> list[int]:
        """Takes up to a batch of windows from the online queue and drops those older than window number `low`.

        The queue holds one window per T + 1 records of each environment: records 1..T+1, T+2..2T+2 and so on.
        """
        span = self.batch_length + 1
        complete = self.num_envs * (max(self.length - 1, 0) // span)
        fresh: list[int] = []
        while self.served < complete and len(fresh) < self.batch_size:
            period, env = divmod(self.served, self.num_envs)
            window = (1 + period * span) * self.num_envs + env
            if window >= low:
                fresh.append(window)
            self.served += 1
        return fresh

    def stage(self, plan: Plan) -> None:
        """Makes a plan the one that `window` and `write_back` are about, without waiting for the device.

        Raises ValueError if a window was overwritten since it was planned.
        """
        if plan.start.min() < self.length - self.rows:
            raise ValueError(f"replay: record {plan.start.min()} was planned but is overwritten already")
        self._windows.stage(plan)
        self._latent_files.changed(plan.env[:, None], self._windows.trained_records(plan))

    def window(self) -> Window:
        """The staged windows, in tensors that the next call overwrites."""
        return self._windows.read()

    def write_back(self, deter: Tensor, stoch: Tensor, keep: Tensor | None = None) -> None:
        """Replaces the states of the staged windows' trained records, unless keep () bool is false; see `Windows`."""
        self._windows.write_back(deter, stoch, keep)

    def mend(self) -> int:
        """Rids the ring of values that are not finite; how many records per environment had some. See `mend`."""
        first = max(self.first, self.length - self.rows)
        records, latents = (mend(ring, first, self.length) for ring in (self.records, self.latents))
        self._record_files.changed(records)
        self._latent_files.changed(slice(None), latents)
        return len(records) + len(latents)

    def save(self, folder: Path) -> RingSave:
        """A save of every record that can still be sampled, as it is now, that `RingSave.write` writes to `folder`.

        Records are written once, states again if they changed since they were saved.
        """
        first = self.window_range()[0] // self.num_envs
        halves = [files.stage(folder, first, self.length) for files in (self._record_files, self._latent_files)]
        counters = {"length": self.length, "first": first, "served": self.served, "plans": int(self.noise.counter)}
        return RingSave(folder, (halves[0], halves[1]), {"ring": self._facts(), **counters})

    def load(self, folder: Path, index: Mapping[str, object]) -> None:
        """Goes on from the index of a `save`, bit by bit as if never interrupted; the ring must be new.

        Its capacity may differ: a larger ring goes on filling up, a smaller one takes the newest records. Raises
        ValueError where the index belongs to another kind of ring, or where a file is missing, unreadable or does not
        fit; the ring cannot be used then.
        """
        if self.length:
            raise ValueError(f"replay.load needs a new ring, this one holds {self.length} records")
        own, saved, chunks = self._facts(), _entry(index, "ring"), _entry(index, "chunks")
        for name in sorted(own.keys() | saved.keys()):
            if own.get(name) != saved.get(name):
                raise ValueError(f"replay: saved with {name} {saved.get(name)}, but this run has {own.get(name)}")
        counts = {name: index.get(name) for name in ("length", "first", "served", "plans")}
        length, first, served, plans = read_table(counts, dict.fromkeys(counts, "a count"), "replay index").values()
        for name, value, most in (("first", first, length), ("served", served, length * self.num_envs)):
            if value > most:
                raise ValueError(f"replay index: {name}: expected at most {most}, got {value}")
        first = max(first, length - self.rows)
        for files in (self._record_files, self._latent_files):
            files.load(folder, chunks, first, length)
        rows = torch.arange(first, length) % self.rows
        for key, classes in self._classes.items():
            ring = (self.records | self.latents)[key]
            for part in rows.split(self._record_files.length):
                require_classes(f"replay: {key}", ring[:, part.to(ring.device)], classes)
        self.length, self.first, self.served = length, first, served
        self.cursor.fill_(length % self.rows)
        self.noise.counter.fill_(plans)

    def _facts(self) -> dict[str, object]:
        """What must agree between a saved ring and the one that it is loaded into."""
        rings = self.records | self.latents
        fields: dict[str, object] = {key: f"{ring.dtype} {tuple(ring.shape[2:])}" for key, ring in rings.items()}
        return fields | {
            "num_envs": self.num_envs,
            "batch_length": self.batch_length,
            "chunk": self._record_files.length,
        }


def require_classes(name: str, index: Tensor, classes: int) -> None:
    """Raises ValueError where a class index is none: kernels would take it for a place in memory."""
    low, high = (int(end) for end in index.aminmax()) if index.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"{name} must lie in 0..{classes - 1}, got {low}..{high}")


def _never(part: Tensor) -> bool:
    """Memory that is not page-locked."""
    return False


def _below(span: int, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """floor(span * u / 2**64) of 64-bit u = high * 2**32 + low: uniform in 0..span-1 to one part in 2**64 / span."""
    assert span < 1 << 31, span
    return ((high * np.uint64(span) + (low * np.uint64(span) >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def _entry(index: Mapping[str, object], name: str) -> dict[str, Any]:
    value = index.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"replay index: {name}: expected a table, got {repr(value)[:60]}")
    return value


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
