"""Another program's updates, timed in the same call: one JSON object per line, over its stdin and stdout.

It prints {"ready": true, "params": N, "startup_s": X} once it is warm, answers {"updates": N} with {"wall_ms": X} per
update (and "cpu_ms", where it knows), and ends on {"quit": true}. Any program that speaks this can be compared;
whatever else it has to say belongs on stderr.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Milliseconds per update: of all of the process's cores together, nan if it does not say, and on the clock."""

    cpu_ms: float
    wall_ms: float


class Served:
    """A process that makes updates when asked. limit: seconds after which it is ended, whatever it does.

    Raises TimeoutError then, and RuntimeError where it ends by itself.
    """

    def __init__(self, command: Sequence[str], limit: float = math.inf) -> None:
        begun = time.perf_counter()
        self._ends, self._late = begun + limit, False
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self.params: int = self._answer()["params"]
        except BaseException:
            self.kill()
            raise
        self.startup_s = time.perf_counter() - begun
        """From the start of the process until it was warm, by one clock for every program."""

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill() if kind else self.quit()

    def run(self, updates: int) -> Cost:
        """Makes updates."""
        self._send({"updates": updates})
        answer = self._answer()
        return Cost(answer.get("cpu_ms", math.nan), answer["wall_ms"])

    def quit(self) -> None:
        """Ends the process."""
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._send({"quit": True})
            self.process.communicate(timeout=10)
        self.kill()

    def kill(self) -> None:
        """Ends it and all that it started, without asking."""
        end_group(self.process)

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        left = self._ends - time.perf_counter()
        watch = None if math.isinf(left) else threading.Timer(max(0.0, left), self._give_up)
        if watch:
            watch.daemon = True
            watch.start()
        line = self.process.stdout.readline()
        if watch:
            watch.cancel()
        if self._late:
            raise TimeoutError("the other program took too long")
        if not line:
            raise RuntimeError(f"the other program ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _give_up(self) -> None:
        self._late = True
        self.kill()


def end_group(process: "subprocess.Popen[str]") -> None:
    """Ends a process that leads a session of its own, and its children; nothing if it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(run: Callable[[int], None], params: int, startup_s: float) -> None:
    """Answers requests on stdin until told to quit; `run` makes so many updates and waits for them."""
    print(json.dumps({"ready": True, "params": params, "startup_s": round(startup_s, 2)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("quit"):
            return
        print(json.dumps(timed(run, request["updates"])._asdict()), flush=True)


def timed(run: Callable[[int], None], updates: int) -> Cost:
    """What these updates cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    run(updates)
    scale = 1000 / updates
    return Cost((time.process_time() - cpu) * scale, (time.perf_counter() - wall) * scale)
