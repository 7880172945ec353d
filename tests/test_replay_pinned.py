"""Host memory is page-locked ahead of the rows that are written: what, when, and what happens where it is refused."""

import logging
import threading

import pytest
import torch
from torch import Tensor

from fastdreamer import replay_pinned
from fastdreamer.replay_pinned import PAGE, Pinning

ENVS, ROWS, ROW = 3, 40, 2000
SEGMENT = ENVS * 7 * (ROW + 3000)
"""Seven rows of both rings."""


class System:
    """Remembers what it was asked to lock and still holds; refuses from the `limit`-th time on."""

    def __init__(self, limit: int = 10**9, error: Exception | None = None) -> None:
        self.asked, self.held, self.limit, self.error = list[tuple[int, int]](), dict[int, int](), limit, error

    def register(self, address: int, size: int) -> bool:
        if self.error is not None:
            raise self.error
        self.asked.append((address, size))
        if len(self.asked) > self.limit:
            return False
        assert address % PAGE == size % PAGE == 0 and size > 0
        assert all(end <= address or begin >= address + size for begin, end in self.held.items()), "locked twice"
        self.held[address] = address + size
        return True

    def unregister(self, address: int) -> None:
        del self.held[address]


def rings() -> list[Tensor]:
    return [torch.zeros(ENVS, ROWS, width, dtype=torch.uint8) for width in (ROW, 3000)]


def make(tensors: list[Tensor], system: System) -> Pinning:
    return Pinning(tensors, SEGMENT, system.register, system.unregister)


def wait(pinning: Pinning) -> None:
    pinning._thread.submit(lambda: None).result()


def locked_rows(pinning: Pinning, ring: Tensor) -> list[int]:
    """Those that lie in one locked piece, of the first environment."""
    return [row for row in range(ROWS) if pinning.covers(ring[0, row : row + 1])]


def test_a_segment_ahead_of_the_cursor_is_locked_and_no_more() -> None:
    tensors, system = rings(), System()
    pinning = make(tensors, system)
    assert pinning.rows == 7
    inside = set[int]()
    for row in range(ROWS):
        pinning.reach(row)
        wait(pinning)
        rows = locked_rows(pinning, tensors[0])
        limit = min((row // 7 + 2) * 7, ROWS)
        assert max(rows) < limit and set(rows) >= inside
        # All but the rows on the two pages at the edges of each segment: 2,000 bytes each.
        assert len(rows) >= limit - 4 * -(-limit // 7)
        inside = set(rows)
    pinning.close()


def test_every_whole_page_of_every_ring_is_locked_once_and_nothing_else() -> None:
    tensors, system = rings(), System()
    pinning = make(tensors, system)
    pinning.reach(ROWS - 1)
    wait(pinning)
    for tensor in tensors:
        first, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        held = sum(stop - begin for begin, stop in system.held.items() if first <= begin and stop <= end)
        pieces = ENVS * -(-ROWS // 7)
        assert tensor.nbytes - 2 * PAGE * pieces < held <= tensor.nbytes
    assert sum(size for _, size in system.asked) == sum(end - begin for begin, end in system.held.items())
    pinning.close()


def test_a_part_is_covered_only_by_one_piece() -> None:
    tensors, system = rings(), System()
    pinning = make(tensors, system)
    pinning.reach(ROWS - 1)
    wait(pinning)
    for ring in tensors:
        for first in range(ROWS):
            for count in range(1, 9):
                part = ring[1, first : first + count]
                begin, end = part.data_ptr(), part.data_ptr() + part.nbytes
                one = any(low <= begin and end <= high for low, high in system.held.items())
                assert pinning.covers(part) == one
    pinning.close()


def test_where_the_system_refuses_nothing_more_is_asked_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tensors, system = rings(), System(limit=4)
    pinning = make(tensors, system)
    with caplog.at_level(logging.WARNING):
        for row in range(ROWS):
            pinning.reach(row)
            wait(pinning)
    assert len(system.asked) == 5 and len(caplog.messages) == 1
    assert caplog.messages[0] == "replay: the system locks only 0.0 GB of memory; others are copied twice"
    assert locked_rows(pinning, tensors[0]) and not pinning.covers(tensors[0][0, 30:31])
    pinning.close()
    assert system.held == {}


def test_an_error_of_the_thread_is_raised_by_the_next_row() -> None:
    pinning = make(rings(), System(error=ValueError("of the thread")))
    pinning.reach(0)
    wait(pinning)
    with pytest.raises(ValueError, match="of the thread"):
        pinning.reach(1)
    pinning.close()


def test_closing_unlocks_everything_and_can_be_repeated() -> None:
    tensors, system = rings(), System()
    pinning = make(tensors, system)
    pinning.reach(20)
    pinning.close()
    pinning.close()
    assert system.asked and system.held == {}
    assert not pinning.covers(tensors[0][0, 1:2])


def test_a_refusal_stays_with_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA would raise it at the next launch of the thread that asked."""
    asked = []

    def refuse(address: int, size: int) -> bool:
        asked.append(threading.current_thread())
        return False

    monkeypatch.setattr(replay_pinned, "cuda_register", refuse)
    assert not replay_pinned.pins()
    assert len(asked) == 1 and asked[0] is not threading.current_thread()
