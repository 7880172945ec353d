"""Host memory page-locked piece by piece, ahead of the rows that are written: the GPU copies from it by itself.

To lock a ring of 60 GB at once takes half a minute, and commits all of it. So a thread locks the rows of the next
segment while those before fill up.
"""

import bisect
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SEGMENT = 1 << 30
PAGE = 4096
TRIED = 16 << 20
"""Bytes to find out whether memory can be locked: more than the usual limit of 8 MB."""

Register = Callable[[int, int], bool]
Unregister = Callable[[int], None]


def cuda_register(address: int, size: int) -> bool:
    """Locks `size` bytes from `address` on; whether that was allowed."""
    return int(torch.cuda.cudart().cudaHostRegister(address, size, 0)) == 0


def cuda_unregister(address: int) -> None:
    """Unlocks what begins at `address`."""
    torch.cuda.cudart().cudaHostUnregister(address)


def pins() -> bool:
    """Whether this system lets memory be locked.

    Asked in a thread of its own: a refusal stays with the thread, whose next launch of a kernel would raise it.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_try_to_lock).result()


def _try_to_lock() -> bool:
    memory = torch.empty(TRIED, dtype=torch.uint8)
    allowed = cuda_register(memory.data_ptr(), TRIED)
    if allowed:
        cuda_unregister(memory.data_ptr())
    return allowed


class Pinning:
    """Locks the memory of rings (N, rows, ...) segment by segment: the same rows of all environments.

    segment: bytes of all rings and environments together. Once the system refuses, nothing more is locked.
    """

    def __init__(
        self, rings: Sequence[Tensor], segment: int = SEGMENT, register: Register = cuda_register,
        unregister: Unregister = cuda_unregister,
    ) -> None:  # fmt: skip
        self._rings, self._register, self._unregister = rings, register, unregister
        self._total = rings[0].shape[1]
        self.rows = max(1, segment // sum(ring[:, 0].numel() * ring.element_size() for ring in rings))
        """Of one segment."""
        self._lock, self._begins, self._ends = threading.Lock(), list[int](), list[int]()
        self._asked, self._refused = 0, False
        self._thread = ThreadPoolExecutor(1, "pinning")
        self._work: list[Future[None]] = []

    def reach(self, row: int) -> None:
        """Has the segment of this row locked, and the next one, without waiting. Raises what went wrong before."""
        while self._work and self._work[0].done():
            self._work.pop(0).result()
        while self._asked * self.rows < min(row + 1 + self.rows, self._total):
            self._work.append(self._thread.submit(self._lock_segment, self._asked))
            self._asked += 1

    def covers(self, part: Tensor) -> bool:
        """Whether a contiguous part of a ring is locked, as one piece: a copy must not go over the edge of two."""
        begin, end = part.data_ptr(), part.data_ptr() + part.numel() * part.element_size()
        with self._lock:
            at = bisect.bisect_right(self._begins, begin) - 1
            return at >= 0 and end <= self._ends[at]

    def close(self) -> None:
        """Unlocks everything; may be called twice."""
        self._thread.shutdown()
        with self._lock:
            for address in self._begins:
                self._unregister(address)
            self._begins.clear()
            self._ends.clear()

    def _lock_segment(self, segment: int) -> None:
        rows = slice(segment * self.rows, (segment + 1) * self.rows)
        for ring in self._rings:
            for env in range(len(ring)):
                if not self._refused:
                    self._lock_pages(ring[env, rows])

    def _lock_pages(self, part: Tensor) -> None:
        """Locks the pages that are wholly in a contiguous part: those at its edges are a neighbour's too."""
        begin = -(-part.data_ptr() // PAGE) * PAGE
        end = (part.data_ptr() + part.numel() * part.element_size()) // PAGE * PAGE
        if begin >= end:
            return
        if not self._register(begin, end - begin):
            self._refused = True
            locked = sum(self._ends) - sum(self._begins)
            logger.warning("replay: the system locks only %.1f GB of memory; others are copied twice", locked / 1e9)
            return
        with self._lock:
            at = bisect.bisect(self._begins, begin)
            self._begins.insert(at, begin)
            self._ends.insert(at, end)
