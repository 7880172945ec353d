"""Replay as lists of records, one list per environment, that keep everything; and rings with small random records."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdreamer.batch import Window
from fastdreamer.replay import Plan, Replay
from fastdreamer.spaces import Space, Spaces

OBS: Spaces = {"image": Space("image", (2, 3, 1)), "speed": Space("vector", (3,)), "room": Space("discrete", (), 5)}
ACT: Spaces = {"jump": Space("discrete", (2,), 4), "push": Space("vector", (2,), 0, (-1.0, -1.0), (1.0, 1.0))}
DETER, STOCH = 4, 3
Record = dict[str, Tensor]
Index = dict[str, Any]


def make_ring(
    num_envs: int = 2, capacity: int = 50, batch_size: int = 3, batch_length: int = 4, seed: int = 0,
    rank: int = 0, dtype: torch.dtype = torch.float32,
) -> Replay:  # fmt: skip
    return Replay(
        OBS, ACT, deter=DETER, stoch=STOCH, num_envs=num_envs, capacity=capacity, batch_size=batch_size,
        batch_length=batch_length, seed=seed, rank=rank, dtype=dtype,
    )  # fmt: skip


def make_record(rng: np.random.Generator, num_envs: int, dtype: torch.dtype = torch.float32) -> Record:
    """A record of every environment, key -> (N, ...), named as the ring names it."""
    record: Record = {}
    for prefix, spaces in (("obs/", OBS), ("action/", ACT)):
        for key, space in spaces.items():
            value = rng.integers(0, space.classes or 256, (num_envs, *space.shape)).astype(space.dtype)
            record[prefix + key] = torch.from_numpy(value)
    record["reward"] = torch.from_numpy(rng.normal(size=num_envs).astype(np.float32))
    for key in ("is_first", "is_last", "is_terminal"):
        record[key] = torch.from_numpy(rng.random(num_envs) < 0.25)
    return record | make_latents(rng, (num_envs,), dtype)


def filled(records: int = 20, **sizes: int) -> tuple[Replay, np.random.Generator]:
    """A ring with random records, and the source of more."""
    ring, rng = make_ring(**sizes), np.random.default_rng(0)
    for _ in range(records):
        add(ring, make_record(rng, ring.num_envs))
    return ring, rng


def make_latents(rng: np.random.Generator, lead: tuple[int, ...], dtype: torch.dtype) -> Record:
    deter = torch.from_numpy(rng.normal(size=(*lead, DETER))).to(dtype)
    return {"deter": deter, "stoch": torch.from_numpy(rng.integers(0, 256, (*lead, STOCH)).astype(np.int32))}


def add(ring: Replay, record: Record) -> None:
    """As the loop does it: numpy from the environment, tensors from the agent."""
    obs = {key: record[f"obs/{key}"].numpy() for key in OBS}
    action = {key: record[f"action/{key}"] for key in ACT}
    flags = (record[key].numpy() for key in ("is_first", "is_last", "is_terminal"))
    ring.add(obs, record["reward"].numpy(), *flags, action, record["deter"], record["stoch"])


@dataclass
class ListReplay:
    """What the ring has to do, one record and one window at a time."""

    num_envs: int
    capacity: int
    batch_size: int
    batch_length: int
    records: list[list[Record]] = field(default_factory=list)
    """[env][record number]."""
    windows: list[tuple[int, int]] = field(default_factory=list)
    """(env, start), oldest first."""
    online: list[tuple[int, int]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.records = self.records or [[] for _ in range(self.num_envs)]
        for env, records in enumerate(self.records):
            records.append({key: value[env].clone() for key, value in record.items()})
            last = len(records) - 1
            if last >= self.batch_length:
                self.windows.append((env, last - self.batch_length))
            if last > 0 and last % (self.batch_length + 1) == 0:
                self.online.append((env, last - self.batch_length))
        self.drop(self.capacity)

    def drop(self, capacity: int) -> None:
        self.capacity = capacity
        del self.windows[: max(len(self.windows) - capacity, 0)]

    def take_online(self) -> list[tuple[int, int]]:
        """The windows that a batch takes from the online queue."""
        taken: list[tuple[int, int]] = []
        while self.online and len(taken) < self.batch_size:
            if (window := self.online.pop(0)) in self.windows:
                taken.append(window)
        return taken

    def gather(self, plan: Plan) -> dict[str, Tensor]:
        """Every tensor of the planned windows by name; start/deter and start/stoch are the state of the context."""
        rows = [self._window(*window) for window in pairs(plan)]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _window(self, env: int, start: int) -> Record:
        context = self.records[env][start : start + self.batch_length]
        trained = self.records[env][start + 1 : start + 1 + self.batch_length]
        out = {
            key: torch.stack([record[key] for record in (context if key.startswith("action/") else trained)])
            for key in trained[0].keys() - {"deter", "stoch"}
        }
        for t in range(self.batch_length - 1):
            out["is_last"][t] = trained[t]["is_last"] or trained[t + 1]["is_first"]
        return out | {f"start/{key}": context[0][key] for key in ("deter", "stoch")}

    def write_back(self, plan: Plan, deter: Tensor, stoch: Tensor) -> None:
        for b, (env, start) in enumerate(pairs(plan)):
            for t in range(self.batch_length):
                self.records[env][start + 1 + t] |= {"deter": deter[b, t], "stoch": stoch[b, t]}


def pairs(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.env.tolist(), plan.start.tolist(), strict=True))


def gather(ring: Replay, plan: Plan) -> Window:
    """The planned windows of a ring."""
    ring.stage(plan)
    return ring.window()


def flatten(window: Window) -> dict[str, Tensor]:
    """Copies of every tensor of a window, named as `ListReplay.gather` names them."""
    batch, out = window.batch, {f"obs/{key}": value for key, value in window.batch.obs.items()}
    out |= {f"action/{key}": value for key, value in window.prev_action.items()}
    out |= {f"start/{key}": value for key, value in window.start._asdict().items()}
    flags = {"is_first": batch.is_first, "is_last": batch.is_last, "is_terminal": batch.is_terminal}
    return {key: value.clone() for key, value in (out | flags | {"reward": batch.reward}).items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


def drive(
    rings: Iterable[Replay], lists: ListReplay, rng: np.random.Generator, adds: int, delay: int, dtype: torch.dtype
) -> None:
    """Adds records, then learns once from rings that must all do what the lists do, `delay` records after the plan."""
    rings = list(rings)

    def grow(count: int) -> None:
        for _ in range(count):
            record = make_record(rng, lists.num_envs, dtype)
            lists.add(record)
            for ring in rings:
                add(ring, record)
                assert ring.windows == len(lists.windows)

    grow(adds)
    if not lists.windows:
        return
    plans, online = [ring.plan() for ring in rings], lists.take_online()
    assert all(pairs(plan) == pairs(plans[0]) and plan.online == len(online) for plan in plans)
    assert pairs(plans[0])[: len(online)] == online
    assert set(pairs(plans[0])) <= set(lists.windows)
    grow(delay)
    if any(plans[0].start.min() < ring.length - ring.rows for ring in rings):
        return
    state = make_latents(rng, (lists.batch_size, lists.batch_length), dtype)
    for ring, plan in zip(rings, plans, strict=True):
        assert_equal(flatten(gather(ring, plan)), lists.gather(plan))
        ring.write_back(**state)
    lists.write_back(plans[0], **state)


def save(ring: Replay, folder: Path) -> Index:
    """A save from its beginning to its end."""
    saving = ring.save(folder)
    try:
        index = saving.write()
    except OSError:
        saving.drop()
        raise
    saving.keep()
    return index
