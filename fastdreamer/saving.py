"""A checkpoint on its way to the disk: taken at once, written beside the training."""

from collections.abc import Callable
from concurrent.futures import Executor, wait

from fastdreamer.replay_files import RingSave


class Saving:
    """Writes the checkpoint of an agent step by `executor`; at once where the ring's part is too large to be copied."""

    def __init__(self, executor: Executor, step: int, ring: RingSave, write: Callable[[], object]) -> None:
        self.step, self._ring, self._future = step, ring, executor.submit(write)
        if not ring.copied:
            wait([self._future])

    def done(self) -> bool:
        """Whether it is written, or cannot be."""
        return self._future.done()

    def wait(self) -> None:
        """To be called once, by the thread that trains. Raises OSError where writing failed: the next save makes up."""
        try:
            self._future.result()
        except OSError:
            self._ring.drop()
            raise
        self._ring.keep()
