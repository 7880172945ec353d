"""What a run will need of memory and disk, said before its first step, and refused where it is not there.

The ring, the checkpoints and what a save copies follow from their shapes. What an update takes on a CPU is measured, on
updates of one and of two windows that change nothing: memory grows with the windows.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from fastdreamer.batch import Batch
from fastdreamer.checkpoint import KEEP
from fastdreamer.learner import Learner
from fastdreamer.noise import Noise, Stream
from fastdreamer.replay_storage import available_memory

logger = logging.getLogger(__name__)

GIB = 1 << 30
PAGE = os.sysconf("SC_PAGE_SIZE")
KNOBS = "try a smaller replay.capacity, replay.batch_size or model.size"


class Needs(NamedTuple):
    """Bytes.

    memory: of the host's, all that the process will have; held: what of it the process has already
    disk: of the run folder once the ring is full; beside: what a save takes more until it is done
    """

    memory: int
    held: int
    disk: int
    beside: int


def check(learner: Learner, folder: Path) -> None:
    """Logs what the run in `folder` needs and what there is. Raises ValueError where that is too little."""
    needs, free = estimate(learner), available_memory()
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    space = shutil.disk_usage(place).free + _size(folder)
    parts = [
        f"{_gib(needs.memory)} GiB of memory ({_gib(free + needs.held)} free)",
        f"{_gib(needs.disk)} GiB of disk, {_gib(needs.disk + needs.beside)} during a save ({_gib(space)} free)",
    ]
    if learner.device.type == "cuda":
        allocated, (left, _) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
        parts.insert(1, f"{_gib(allocated)} GiB of GPU memory ({_gib(left + torch.cuda.memory_reserved())} free)")
    logger.info("needs %s", ", ".join(parts))
    if needs.memory - needs.held > free:
        raise ValueError(f"needs {parts[0]}: {KNOBS}")
    if needs.disk + needs.beside > space:
        raise ValueError(f"run.dir {place}: needs {parts[-1]}: {KNOBS}")


def estimate(learner: Learner) -> Needs:
    """What the run will need, of a learner whose ring is empty or not."""
    replay, config = learner.replay, learner.config
    rows = replay.num_envs * min(replay.rows, -(-config.capacity // replay.num_envs) + config.replay.batch_length)
    state = sum(
        tensor.numel() * tensor.element_size() for group in learner.state().values() for tensor in group.values()
    )
    record, latent = (
        sum(value[0, 0].numel() * value.element_size() for value in ring.values())
        for ring in (replay.records, replay.latents)
    )
    on_host = sum(
        value[0, 0].numel() * value.element_size()
        for value in (replay.records | replay.latents).values()
        if value.device.type == "cpu"
    )
    held = resident()
    filled = min(replay.length, replay.rows) * replay.num_envs
    update = _update_bytes(learner) if learner.device.type == "cpu" and not config.run.compile else 0
    copied = state + rows * latent
    memory = held + (rows - filled) * on_host + update + copied
    return Needs(memory, held, rows * record + KEEP * copied, copied)


def _update_bytes(learner: Learner) -> int:
    """What an update adds to the resident memory of the process; it keeps it, see `keep_memory`."""
    before = resident()
    after = []
    for windows in (1, 2):
        _try_update(learner, windows)
        after.append(resident())
    return after[1] - before + (after[1] - after[0]) * (learner.config.replay.batch_size - 2)


def _try_update(learner: Learner, windows: int) -> None:
    """Losses and gradients of zeros."""
    agent, time, device = learner.agent, learner.config.replay.batch_length, learner.device
    obs, act = (
        {
            key: torch.zeros(windows, time, *space.shape, dtype=getattr(torch, space.dtype))
            for key, space in spaces.items()
        }
        for spaces in learner.spaces
    )
    no = torch.zeros(windows, time, dtype=torch.bool)
    batch = Batch(obs, torch.zeros(windows, time), no, no, no)
    streams = Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION
    observe, imagine, action = (Noise(0, stream, device=device) for stream in streams)
    noise = agent.update_noise(observe, imagine, action, windows, time)
    statistics = agent.behavior.retnorm.lo, agent.behavior.retnorm.hi
    before = [statistic.clone() for statistic in statistics]
    agent.loss(batch, agent.world.dyn.initial(windows, agent.dtype, device), act, noise).loss.backward()
    for statistic, value in zip(statistics, before, strict=True):
        statistic.copy_(value)
    for parameter in agent.parameters():
        parameter.grad = None


def resident() -> int:
    """Bytes of this process in the host's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE if Path("/proc/self/statm").exists() else 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"
