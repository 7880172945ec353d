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


def allocate(fields: dict[str, Field], lead: tuple[int, ...], device: str = "cpu") -> dict[str, Tensor]:
    """One tensor (*lead, *shape) per field: the one place that decides where replay lives.

    The memory is not touched, so the system commits it only as rows are written.
    """
    return {key: torch.empty(*lead, *field.shape, dtype=field.dtype, device=device) for key, field in fields.items()}


def check_memory(fields: dict[str, Field], rows: int, capacity: int, num_envs: int) -> None:
    """Raises ValueError if this many rows of these fields are more than the memory that is available now."""
    need, have = rows * sum(field.bytes for field in fields.values()), available_memory()
    if need > have:
        raise ValueError(
            f"replay.capacity: {capacity} windows of {num_envs} environments need {need / 1e9:.1f} GB of memory,"
            f" but {have / 1e9:.1f} GB are available"
        )


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
