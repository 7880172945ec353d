"""What a whole update costs on the CPU, native kernels against references: `python -m bench.cpu_update --json`.

16 x 64 steps, horizon 15, exact float32, replay sample and write-back included. Each backend has a process of its own;
they take turns of three updates, and the figures are medians over those rounds: process CPU time, wall time, and the
ratio of a round.

`--serve` speaks the protocol of a side-by-side comparison instead: one JSON object per line. It prints {"ready": true,
"params": N} once it is warm, answers {"updates": N} with {"cpu_ms": X, "wall_ms": Y} per update, and ends on
{"quit": true}.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.workload import Task, make_config, make_learner, parameters
from fastdreamer import cpu
from fastdreamer.config import Size
from fastdreamer.learner import Learner
from fastdreamer_kernels import report

DEFAULT_SIZE: dict[Task, Size] = {"vector": "size1m", "image": "size12m"}
BACKENDS = ("reference", "native")
WARMUP, UPDATES = 2, 3


class Cost(NamedTuple):
    """Milliseconds per update."""

    cpu_ms: float
    wall_ms: float


def run(learner: Learner, backend: str, updates: int) -> Cost:
    """Makes updates on a backend."""
    os.environ["FASTDREAMER_KERNELS"] = backend
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(updates):
        learner.launch(1)
    scale = 1000 / updates
    return Cost((time.process_time() - cpu) * scale, (time.perf_counter() - wall) * scale)


class Server:
    """A process of its own that makes updates on one backend, as a run does."""

    def __init__(self, task: Task, size: Size, threads: int, backend: str) -> None:
        options = [f"--task={task}", f"--size={size}", f"--threads={threads}", f"--backend={backend}"]
        command = [sys.executable, "-m", "bench.cpu_update", "--serve", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.params: int = self._answer()["params"]

    def run(self, updates: int) -> Cost:
        """Makes updates."""
        self._send({"updates": updates})
        return Cost(**self._answer())

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
            sys.exit(f"cpu_update: the process of {self.process.args} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(task: Task, size: Size, threads: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which both backends take turns."""
    servers = {backend: Server(task, size, threads, backend) for backend in BACKENDS}
    costs = [{backend: server.run(UPDATES) for backend, server in servers.items()} for _ in range(rounds)]
    result: dict[str, Any] = {"task": task, "size": size, "threads": threads, "rounds": rounds}
    result["params"] = servers["native"].params
    for server in servers.values():
        server.quit()
    for backend in BACKENDS:
        for kind in Cost._fields:
            result[f"{backend}_{kind}"] = round(statistics.median(getattr(cost[backend], kind) for cost in costs), 2)
    for name, kind in (("ratio", "cpu_ms"), ("wall_ratio", "wall_ms")):
        pairs = [getattr(cost["native"], kind) / getattr(cost["reference"], kind) for cost in costs]
        result[name], result[f"{name}_range"] = (
            round(statistics.median(pairs), 4),
            [round(f(pairs), 4) for f in (min, max)],
        )
    return result


def serve(task: Task, size: Size, threads: int, backend: str) -> None:
    """Answers requests for updates on stdin until it is told to quit."""
    torch.set_num_threads(threads)
    cpu.keep_memory()  # as the training loop does
    cpu.pick_matmul()
    learner = make_learner(make_config(size, device="cpu"), task)
    gc.freeze()
    run(learner, backend, WARMUP)
    print(json.dumps({"ready": True, "params": parameters(learner)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("quit"):
            return
        print(json.dumps(run(learner, backend, request["updates"])._asdict()), flush=True)


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=get_args(Task), default="vector")
    parser.add_argument("--size", choices=get_args(Size), help="default: size1m for vectors, size12m for images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--serve", action="store_true", help="speak the side-by-side protocol")
    parser.add_argument("--backend", choices=BACKENDS, default="native", help="what --serve runs")
    args = parser.parse_args()
    size = args.size or DEFAULT_SIZE[args.task]
    if args.serve:
        return serve(args.task, size, args.threads, args.backend)
    result = compare(args.task, size, args.threads, args.rounds)
    if args.json:
        return print(json.dumps(result))
    print(report(torch.device("cpu"), torch.float32))
    for name, value in result.items():
        print(f"{name:>18}  {value}")


if __name__ == "__main__":
    main()
