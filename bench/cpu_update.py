"""What a whole update costs on the CPU, native kernels against references: `python -m bench.cpu_update --json`.

16 x 64 steps, horizon 15, exact float32, replay sample and write-back included. Rounds of both backends alternate, and
the figures are medians over rounds: process CPU time, and wall time.

`--serve` speaks the protocol of a side-by-side comparison instead: one JSON object per line. It prints {"ready": true,
"params": N} once it is warm, answers {"updates": N} with {"cpu_ms": X, "wall_ms": Y} per update, and ends on
{"quit": true}.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from typing import Any, NamedTuple, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.workload import Learner, Task
from fastdreamer import cpu
from fastdreamer.config import Size
from fastdreamer_kernels import report

DEFAULT_SIZE: dict[Task, Size] = {"vector": "size1m", "image": "size12m"}
BACKENDS = {"reference": "reference", "native": ""}
"""Name -> value of FASTDREAMER_KERNELS; empty is the default of the device."""
WARMUP = 2


class Cost(NamedTuple):
    """Milliseconds per update."""

    cpu_ms: float
    wall_ms: float


def run(learner: Learner, backend: str, updates: int) -> Cost:
    """Makes updates on a backend."""
    os.environ["FASTDREAMER_KERNELS"] = BACKENDS[backend]
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(updates):
        learner.update()
    scale = 1000 / updates
    return Cost((time.process_time() - cpu) * scale, (time.perf_counter() - wall) * scale)


def compare(task: Task, size: Size, rounds: int) -> dict[str, Any]:
    """Medians of alternating rounds of one update each."""
    learners = {backend: Learner(task, size) for backend in BACKENDS}
    gc.freeze()  # as a run does
    costs: dict[str, list[Cost]] = {backend: [] for backend in BACKENDS}
    for _ in range(WARMUP + rounds):
        for backend, learner in learners.items():
            costs[backend].append(run(learner, backend, 1))
    result: dict[str, Any] = {"task": task, "size": size, "threads": torch.get_num_threads(), "rounds": rounds}
    result["params"] = learners["native"].parameters
    for backend, of in costs.items():
        kept = of[WARMUP:]
        for kind in Cost._fields:
            result[f"{backend}_{kind}"] = round(statistics.median(getattr(cost, kind) for cost in kept), 2)
    result["ratio"] = round(result["native_cpu_ms"] / result["reference_cpu_ms"], 4)
    result["wall_ratio"] = round(result["native_wall_ms"] / result["reference_wall_ms"], 4)
    return result


def serve(task: Task, size: Size, backend: str) -> None:
    """Answers requests for updates on stdin until it is told to quit."""
    learner = Learner(task, size)
    gc.freeze()
    run(learner, backend, WARMUP)
    print(json.dumps({"ready": True, "params": learner.parameters}), flush=True)
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
    parser.add_argument("--backend", choices=list(BACKENDS), default="native", help="what --serve runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu.keep_memory()  # as the training loop does
    cpu.pick_matmul()
    size = args.size or DEFAULT_SIZE[args.task]
    if args.serve:
        return serve(args.task, size, args.backend)
    result = compare(args.task, size, args.rounds)
    if args.json:
        return print(json.dumps(result))
    print(report(torch.device("cpu"), torch.float32))
    for name, value in result.items():
        print(f"{name:>18}  {value}")


if __name__ == "__main__":
    main()
