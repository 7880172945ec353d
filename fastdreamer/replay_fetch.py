"""Host memory into tensors of the learner's device, by copies that nobody waits for.

On the CPU the same code runs with plain copies, so that what is copied can be tested without a GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fastdreamer.streams import Done, Mark, make_queue, mark_here

SLOTS = 4


def host_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory that a copy to or from `device` can use without waiting: page-locked where that is a GPU."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


class HostSlots:
    """Host buffers for one device tensor: the next one is filled while copies of those before are under way."""

    def __init__(self, target: Tensor) -> None:
        self._target, self._turn = target, 0
        count = 0 if target.device.type == "cpu" else SLOTS  # a tensor of the host needs no copy
        self._buffers = [host_zeros(tuple(target.shape), target.dtype, target.device) for _ in range(count)]
        self._copied: list[Mark] = [Done()] * count

    @contextmanager
    def next(self) -> Iterator[Tensor]:
        """A buffer to fill; at the end its content is on its way to the device, in the order of the current stream."""
        if not self._buffers:
            yield self._target
            return
        turn, self._turn = self._turn, (self._turn + 1) % SLOTS
        self._copied[turn].wait()
        yield self._buffers[turn]
        self._target.copy_(self._buffers[turn], non_blocking=True)
        self._copied[turn] = mark_here(self._target.device)


class Fetch:
    """Copies windows out of rings in host memory while earlier updates still run.

    rings: key -> (N, rows, ...). out: key -> (B, T, ...) on the learner's device. locked: whether a part of a ring is
    page-locked, so that the GPU can copy it by itself; other parts go through a buffer that is.
    """

    def __init__(
        self, rings: Mapping[str, Tensor], out: Mapping[str, Tensor], locked: Callable[[Tensor], bool]
    ) -> None:
        self.rings, self.out, self.locked, self._turn = rings, out, locked, 0
        self.device = next(iter(out.values())).device
        self.queue = make_queue(self.device)
        self._slots = [_Slot(out) for _ in range(2)]  # one is read by the update before while the other is filled

    def __call__(self, env: np.ndarray, start: np.ndarray) -> None:
        """Puts the T records from start[b] on of environment env[b] into out[:, b], for work that is queued later."""
        slot, self._turn = self._slots[self._turn], 1 - self._turn
        self.queue.after(slot.taken)
        slot.filled = self.queue.run(lambda: self._fill(slot, env, start))
        slot.filled.hold()
        for key, value in slot.window.items():
            self.out[key].copy_(value)
        slot.taken = mark_here(self.device)

    def _fill(self, slot: "_Slot", env: np.ndarray, start: np.ndarray) -> None:
        for key, ring in self.rings.items():
            for b, (row, first) in enumerate(zip(env.tolist(), (start % ring.shape[1]).tolist(), strict=True)):
                at = 0
                for part in window_parts(ring[row], first, slot.window[key].shape[1]):
                    whole = slice(at, at + len(part))
                    if not self.locked(part):
                        part = slot.buffer(key)[b, whole].copy_(part)
                    slot.window[key][b, whole].copy_(part, non_blocking=True)
                    at += len(part)


class _Slot:
    """One of the two batches of windows that are under way."""

    def __init__(self, out: Mapping[str, Tensor]) -> None:
        self.window = {key: torch.empty_like(value) for key, value in out.items()}
        self._buffers: dict[str, Tensor] = {}
        self.filled: Mark = Done()
        self.taken: Mark = Done()

    def buffer(self, key: str) -> Tensor:
        """Page-locked host memory for the windows, made when it is first needed; waits for its last copy."""
        window = self.window[key]
        if key not in self._buffers:
            self._buffers[key] = host_zeros(tuple(window.shape), window.dtype, window.device)
        self.filled.wait()  # two updates ago
        return self._buffers[key]


def window_parts(ring: Tensor, first: int, length: int) -> list[Tensor]:
    """`length` rows from `first` on of one environment's ring (rows, ...), around its end: one part or two."""
    whole = min(length, len(ring) - first)
    parts = [ring[first : first + whole]]
    return parts if whole == length else [*parts, ring[: length - whole]]
