"""Where the rows of the replay ring live: their fields, their memory, and whether they fit into it."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastdreamer.spaces import Space

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class Field(NamedTuple):
    """The shape and the element type of one value of a record."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, space: Space) -> "Field":
        """The field that stores a value of this space."""
        return cls(space.shape, getattr(torch, space.dtype))

    @property
    def bytes(self) -> int:
        """Per record."""
        return math.prod(self.shape) * self.dtype.itemsize


def allocate(fields: dict[str, Field], lead: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """One tensor (*lead, *shape) per field.

    Host memory is not touched, so the system commits it only as rows are written. On a GPU it is zero: a graph may be
    captured, and so be run, before there is a record.
    """
    make = torch.empty if device.type == "cpu" else torch.zeros
    return {key: make(*lead, *field.shape, dtype=field.dtype, device=device) for key, field in fields.items()}


def available_memory() -> int:
    """Bytes that this process may still use: what the system has left, or its control group if that is less."""
    if not MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    have = _table(MEMINFO)["MemAvailable:"] * 1024
    for group, limit, used in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if (group / limit).exists() and (allowed := (group / limit).read_text().strip()) != "max":
            stat = _table(group / "memory.stat")
            # cached files count as used, but give way to the ring
            cached = sum(stat.get(f"total_{key}", stat.get(key, 0)) for key in ("active_file", "inactive_file"))
            have = min(have, int(allowed) - int((group / used).read_text()) + cached)
    return have


def _table(path: Path) -> dict[str, int]:
    """The first two words of every line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}
