"""Queues of work beside the main thread: CUDA streams on a GPU; on the CPU the caller itself, or a thread.

What one queue runs stays in order. `run` gives a `Mark`, which another queue or the host can wait for, so the order
between two queues is written down once and holds on every device.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in the work of a queue."""

    def wait(self) -> None:
        """Returns once everything up to here is done; raises what the work raised."""

    def done(self) -> bool:
        """Whether it is, without waiting."""

    def hold(self) -> None:
        """What the current stream is given from now on comes after it."""


class Queue(Protocol):
    """Work in order."""

    def run(self, work: Callable[[], object]) -> Mark:
        """Runs `work` after all that was given before; it may not have begun when this returns."""

    def after(self, mark: Mark) -> None:
        """What is given from now on waits for a mark of another queue."""


class Done:
    """The mark of work that was done at once."""

    def wait(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def hold(self) -> None:
        pass


class InlineQueue:
    """The caller does the work."""

    def run(self, work: Callable[[], object]) -> Mark:
        work()
        return Done()

    def after(self, mark: Mark) -> None:
        mark.wait()


class _Pending:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()

    def done(self) -> bool:
        return self._future.done()

    def hold(self) -> None:
        self.wait()


class ThreadQueue:
    """One thread does the work. After an error nothing more is done, and every later mark raises it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "learner")
        self._last: Future[None] | None = None

    def run(self, work: Callable[[], object]) -> Mark:
        previous = self._last

        def chained() -> None:
            if previous is not None:
                previous.result()
            work()

        self._last = self._executor.submit(chained)
        return _Pending(self._last)

    def after(self, mark: Mark) -> None:
        self.run(mark.wait)


class _Recorded:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()

    def done(self) -> bool:
        return self.event.query()

    def hold(self) -> None:
        torch.cuda.current_stream().wait_event(self.event)


class CudaQueue:
    """A CUDA stream: `run` returns once the work is launched. urgent: goes before other streams."""

    def __init__(self, device: torch.device, urgent: bool = False) -> None:
        self.stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)

    def run(self, work: Callable[[], object]) -> Mark:
        with torch.cuda.stream(self.stream):
            work()
            return mark_here(self.stream.device)

    def after(self, mark: Mark) -> None:
        with torch.cuda.stream(self.stream):
            mark.hold()


def mark_here(device: torch.device) -> Mark:
    """The point that the current stream of a device has come to."""
    if device.type != "cuda":
        return Done()
    event = torch.cuda.Event()
    event.record()
    return _Recorded(event)


def wait_for(device: torch.device) -> None:
    """Returns once everything that was launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_queue(device: torch.device, urgent: bool = False, beside: bool = False) -> Queue:
    """A queue for work on this device; beside: it shall not keep the caller from going on, on the CPU neither."""
    if device.type == "cuda":
        return CudaQueue(device, urgent)
    return ThreadQueue() if beside else InlineQueue()
