"""For what ends a run from within: environments that never answer, and a death that leaves no time for a word."""

import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fastdreamer.env import Env


class Watchdog:
    """A thread that calls `overdue` where an environment has not answered for some seconds.

    For environments that step inside of this process: where one hangs, the main thread does as well.
    """

    def __init__(self, env: Env, seconds: float, overdue: Callable[[], None]) -> None:
        self._env, self._seconds, self._overdue = env, seconds, overdue
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / 10):
            since = self._env.waiting_since
            if since is not None and time.monotonic() - since > self._seconds:
                self._overdue()
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


class LastWords:
    """A line that is printed where this process dies without a word, as by kill -9, or by a crash of C++ code.

    A process of its own waits for that: the end of its standard input, which only this one holds.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """From here on there is something to say; may be called again."""
        if self._process is None:
            said = 'read -r _ || printf "%s\\n" "$1"'
            self._process = subprocess.Popen(
                ["sh", "-c", said, "sh", self._line],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is not for it
            )

    def drop(self) -> None:
        """There is nothing to say any more."""
        if self._process is not None:
            self._process.communicate(b"\n")
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
