"""What a whole update costs on the CPU, native kernels against references: `python -m bench.cpu_update --json`.

16 x 64 steps, horizon 15, exact float32, replay sample and write-back included. Each backend has a process of its own;
they take turns of three updates, and the figures are medians over those rounds: process CPU time, wall time, and the
ratio of a round.

`--serve` speaks the protocol of a side-by-side comparison instead (bench/protocol.py).
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from typing import Any, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.protocol import Cost, Served, serve
from bench.workload import Task, make_config, make_learner, parameters, run_updates
from fastdreamer import cpu
from fastdreamer.config import ModelConfig, Size
from fastdreamer_kernels import report

DEFAULT_SIZE: dict[Task, Size] = {"vector": "size1m", "image": "size12m"}
BACKENDS = ("reference", "native")
WARMUP, UPDATES = 2, 3


def server(task: Task, size: Size, threads: int, backend: str) -> Served:
    """A process of its own that makes updates on one backend, as a run does."""
    options = [f"--task={task}", f"--size={size}", f"--threads={threads}", f"--backend={backend}"]
    return Served([sys.executable, "-m", "bench.cpu_update", "--serve", *options])


def compare(task: Task, size: Size, threads: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which both backends take turns."""
    servers = {backend: server(task, size, threads, backend) for backend in BACKENDS}
    costs = [{backend: each.run(UPDATES) for backend, each in servers.items()} for _ in range(rounds)]
    result: dict[str, Any] = {"task": task, "size": size, "threads": threads, "rounds": rounds}
    result["params"] = servers["native"].params
    for each in servers.values():
        each.quit()
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


def serve_updates(task: Task, size: Size, threads: int, backend: str) -> None:
    """Speaks the protocol."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    cpu.keep_memory()  # as the training loop does
    cpu.pick_matmul(cpu.cpu_vendor())
    os.environ["FASTDREAMER_KERNELS"] = backend
    learner = make_learner(make_config(ModelConfig(size=size), device="cpu"), task)
    gc.freeze()
    run_updates(learner, WARMUP)
    serve(lambda updates: run_updates(learner, updates), parameters(learner), time.perf_counter() - started)


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
        return serve_updates(args.task, size, args.threads, args.backend)
    result = compare(args.task, size, args.threads, args.rounds)
    if args.json:
        return print(json.dumps(result))
    print(report(torch.device("cpu"), torch.float32))
    for name, value in result.items():
        print(f"{name:>18}  {value}")


if __name__ == "__main__":
    main()
