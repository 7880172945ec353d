"""Where the rows of the ring lie: with the learner, or the observations in host memory. Decided once, with a reason.

device  on the GPU
pinned  in page-locked host memory; windows are copied from it while earlier updates run
host    in plain host memory; windows go through a page-locked buffer. On the CPU everything lies there
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from fastdreamer import replay_storage
from fastdreamer.replay_pinned import pins
from fastdreamer.replay_storage import Field

Place = Literal["device", "pinned", "host"]
Wanted = Literal["auto", "device", "pinned", "host"]
GB = 1e9
RESERVE, RESERVE_SHARE, PEAK_SHARE = 20e9, 0.25, 1.3
"""Of the GPU: bytes kept free for training, on small cards a share, in any case a multiple of what an update takes."""
RAM_SHARE = 0.6
"""Of the host memory that is available: the most that rows of a GPU's learner take of it."""


class Machine(NamedTuple):
    """What a placement is decided from, in bytes."""

    card: int
    """Memory of the GPU."""
    free: int
    """Of it free now."""
    ram: int
    """Host memory that is still available."""
    pins: bool
    """Whether host memory can be page-locked."""


class Placement(NamedTuple):
    """Where each key of the ring lies, and one line that says why."""

    places: dict[str, Place]
    reason: str


def read_machine(device: torch.device) -> Machine | None:
    """This machine as a learner on `device` sees it; None for a learner that has no memory of its own."""
    if device.type != "cuda":
        return None
    free, card = torch.cuda.mem_get_info(device)
    return Machine(card, free, replay_storage.available_memory(), pins())


def choose(
    wanted: Wanted, fields: Mapping[str, Field], rows: int, machine: Machine | None, peak: int, what: str
) -> Placement:
    """The place of each key of a ring of `rows` rows in all.

    peak: bytes that an update takes of the GPU beside weights and ring. what: the ring, for messages. Only
    observations, "obs/...", may lie apart from the learner; auto moves the largest of them first. Raises ValueError,
    one line, for what does not fit or is not there.
    """
    size = {key: rows * field.bytes for key, field in fields.items()}
    if machine is None:
        return _on_host(wanted, size, what)
    reserve = max(min(RESERVE, RESERVE_SHARE * machine.card), PEAK_SHARE * peak)
    budget = max(machine.free - reserve, 0)
    kept = f"{machine.free / GB:.1f} GB free, {reserve / GB:.1f} GB of them kept for training"
    observations = sorted((key for key in size if key.startswith("obs/")), key=lambda key: (-size[key], key))
    away = observations if wanted in ("pinned", "host") else []
    while wanted == "auto" and _near(size, away) > budget and len(away) < len(observations):
        away = observations[: len(away) + 1]
    near = _near(size, away)
    if near > budget:
        part = "" if wanted == "device" else " without their observations"
        raise ValueError(f"replay.capacity: {what}{part} need {near / GB:.1f} GB of the GPU: {kept}")
    if not away:
        return Placement(dict.fromkeys(size, "device"), f"replay: {near / GB:.1f} GB on the GPU ({kept})")
    place, reason = _host_memory(wanted, sum(size.values()) - near, machine, what)
    keys = ", ".join(key.removeprefix("obs/") for key in away)
    reason = f"replay: {near / GB:.1f} GB on the GPU ({kept}), {keys} in {reason}"
    return Placement({key: place if key in away else "device" for key in size}, reason)


def _on_host(wanted: Wanted, size: Mapping[str, int], what: str) -> Placement:
    if wanted in ("device", "pinned"):
        raise ValueError(f"replay.placement must be auto or host for a learner on the CPU, got {wanted!r}")
    need, have = sum(size.values()), replay_storage.available_memory()
    _require(need, have, what, "are available")
    return Placement(dict.fromkeys(size, "host"), f"replay: {need / GB:.1f} GB of host memory")


def _host_memory(wanted: Wanted, need: int, machine: Machine, what: str) -> tuple[Place, str]:
    """Page-locked or not, and its description, for `need` bytes of observations."""
    share = f"are at hand, {RAM_SHARE:.0%} of what is available"
    _require(need, int(RAM_SHARE * machine.ram), f"the observations of {what}", share)
    if wanted == "host":
        return "host", f"{need / GB:.1f} GB of host memory"
    if machine.pins:
        return "pinned", f"{need / GB:.1f} GB of page-locked host memory"
    if wanted == "pinned":
        raise ValueError("replay.placement pinned: this system does not let memory be page-locked (ulimit -l)")
    return "host", f"{need / GB:.1f} GB of host memory, which cannot be page-locked here (ulimit -l)"


def _require(need: int, have: int, what: str, where: str) -> None:
    if need > have:
        raise ValueError(f"replay.capacity: {what} need {need / GB:.1f} GB of memory, but {have / GB:.1f} GB {where}")


def _near(size: Mapping[str, int], away: list[str]) -> int:
    return sum(count for key, count in size.items() if key not in away)
