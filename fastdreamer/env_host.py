"""Where a gymnasium environment lives: in this process, or in one of its own that may hang or die.

`ask` begins a method of `Checked`, `answer` gives its result: in between the environment may work on its own.
"""

import multiprocessing
import select
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from fastdreamer.env_checked import Checked, EnvSpaces
from fastdreamer.env_faults import Fault
from fastdreamer.env_step import EnvError

DEATH_SECONDS = 5.0
"""From the end of its pipe to the end of a process."""

Maker = Callable[[], Checked]


class Host(Protocol):
    """One environment."""

    def spaces(self) -> EnvSpaces:
        """Once it is made. Raises EnvError where it cannot be."""

    def ask(self, method: str, *arguments: object) -> None:
        """Begins one method of the environment; the one before must have been answered."""

    def answer(self) -> Any:
        """Its result. Raises Fault where there will be none, and EnvError for what the environment does wrong."""

    def drop(self) -> None:
        """Does without the answer to what was asked."""

    def close(self) -> None:
        """Tells it to end."""

    def wait(self, seconds: float) -> None:
        """After `close`: ends it where it has not done so by then."""


class Inline:
    """In this process, at the time of the answer; what the environment raises comes through as it is."""

    def __init__(self, make: Maker) -> None:
        self._env = make()
        self._asked: tuple[str, tuple[object, ...]] = ("", ())

    def spaces(self) -> EnvSpaces:
        return self._env.spaces

    def ask(self, method: str, *arguments: object) -> None:
        self._asked = method, arguments

    def answer(self) -> Any:
        method, arguments = self._asked
        return getattr(self._env, method)(*arguments)

    def drop(self) -> None:
        pass

    def close(self) -> None:
        self._env.close()

    def wait(self, seconds: float) -> None:
        pass


class Worker:
    """In a process of its own. seconds: how long an answer may take, but for the first, which makes the environment."""

    def __init__(self, make: Maker, seconds: float) -> None:
        self._seconds, self._asked = seconds, time.monotonic()
        # spawn: a forked child would inherit EnvPool's and CUDA's state without their threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = select.poll()  # Connection.poll would make one at each call
        self._ready.register(self._pipe, select.POLLIN)

    def spaces(self) -> EnvSpaces:
        try:
            spaces = self._receive()
        except Fault as fault:
            raise EnvError(f"cannot be made: it {fault}; its own words are above") from fault
        assert isinstance(spaces, EnvSpaces), spaces
        return spaces

    def ask(self, method: str, *arguments: object) -> None:
        self._asked = time.monotonic()
        try:
            self._pipe.send((method, arguments))
        except OSError:
            return  # it is dead: the answer says how

    def answer(self) -> Any:
        while True:
            left = self._asked + self._seconds - time.monotonic()
            if not self._ready.poll(max(1000 * left, 0)):
                raise Fault(f"did not answer within env.timeout, {self._seconds:g} s")
            answer = self._receive()
            if not isinstance(answer, EnvSpaces):  # of one that was just made, where nobody has asked
                return answer

    def drop(self) -> None:
        self.answer()

    def close(self) -> None:
        self._pipe.close()

    def wait(self, seconds: float) -> None:
        self._process.join(max(seconds, 0))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(DEATH_SECONDS)
            raise Fault(f"died with exit code {self._process.exitcode}") from error
        if isinstance(answer, EnvError):
            raise answer
        return answer


def _serve(pipe: Connection, make: Maker) -> None:
    """Answers until the other end is closed. Any error but an EnvError ends the process, with its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its environments itself
    try:
        env = make()
        answer: object = env.spaces
        while True:
            try:
                pipe.send(answer)
                method, arguments = pipe.recv()
            except (EOFError, ConnectionError):  # the run is over, perhaps without having taken the last answer
                break
            answer = getattr(env, method)(*arguments)
        env.close()
    except EnvError as error:
        pipe.send(error)
