"""Another program's updates, timed in the same call: one JSON object per line, over its stdin and stdout.

It prints {"ready": true, "params": N, "startup_s": X} once it is warm, answers {"updates": N} with
{"cpu_ms": X, "wall_ms": Y} per update, and ends on {"quit": true}. Any program that speaks this can be compared.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Milliseconds per update: of all of the process's cores together, and on the clock."""

    cpu_ms: float
    wall_ms: float


class Served:
    """A process that makes updates when asked."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._answer()
        self.params: int = ready["params"]
        self.startup_s: float | None = ready.get("startup_s")

    def run(self, updates: int) -> Cost:
        """Makes updates."""
        self._send({"updates": updates})
        answer = self._answer()
        return Cost(answer["cpu_ms"], answer["wall_ms"])

    def quit(self) -> None:
        """Ends the process."""
        self._send({"quit": True})
        self.process.communicate()

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.process.args} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


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
