"""One row of the battery: whole updates of one size, in a process of their own. Prints one JSON object.

    python -m bench.battery_updates --task image --size size12m --compile

`--serve` speaks the protocol of a side-by-side comparison instead (bench/protocol.py).
"""

import argparse
import contextlib
import ctypes
import gc
import itertools
import json
import os
import re
import statistics
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.protocol import serve
from bench.workload import ACT, OBS, Task, fill, make_config, make_learner, parameters, run_updates
from fastdreamer.agent import Agent
from fastdreamer.config import Config, ModelConfig, Size
from fastdreamer.learner import Learner
from fastdreamer.metrics import Metrics
from fastdreamer.optim import LaProp
from fastdreamer.replay import Replay
from fastdreamer.steps import Captured, TrainStep

WARMUP, UPDATES, SECONDS, SYNCED = 10, 200, 10.0, 5
"""Updates before timing; then at least so many and for so long; and updates whose host syncs are counted."""
DRY = ModelConfig(size="size1m", deter=16, hidden=8, units=8, stoch=4, blocks=2, depth=2)
DRY_BATCH, DRY_LENGTH, DRY_HORIZON = 2, 4, 2


def row_config(size: Size, dry: bool, compiled: bool = False) -> Config:
    """16 x 64 and horizon 15; in a dry run next to nothing, on the CPU."""
    if dry:
        return make_config(DRY, DRY_BATCH, DRY_LENGTH, DRY_HORIZON, device="cpu", schedule="sync")
    return make_config(ModelConfig(size=size), compile=compiled)


def measure(config: Config, task: Task, born: float, seconds: float, least: int) -> dict[str, Any]:
    """Every figure of one row. born: when the process began, by time.time().

    capture_s is the making of a learner: weights, kernels loaded or compiled, warm-up, both graphs captured.
    """
    cuda = torch.cuda.is_available() and config.run.device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    learner = Learner(config, OBS[task], ACT)
    made = time.perf_counter() - begun
    fill(learner, 4 * config.replay.batch_length)
    run_updates(learner, 1)
    first = time.time() - born
    run_updates(learner, WARMUP)
    gc.freeze()
    times = on_gpu(learner, seconds, least) if cuda else on_cpu(learner, seconds, least)
    flops = count_flops(config, task)
    p50 = statistics.median(times)
    return {
        "params": parameters(learner),
        "dtype": str(learner.dtype).removeprefix("torch."),
        "updates": len(times),
        "ms_p50": round(p50, 4),
        "ms_p99": round(statistics.quantiles(times, n=100)[98], 4),
        "first_update_s": round(first, 2),
        "capture_s": round(made, 2),
        "graph_nodes": graph_nodes(learner.train) if cuda else None,
        "host_syncs": host_syncs(learner) if cuda else None,
        "peak_allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if cuda else None,
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3) if cuda else None,
        "gflop": round(flops / 1e9, 6),
        "tflop_per_s": round(flops / p50 / 1e9, 6),
    }


def on_cpu(learner: Learner, seconds: float, least: int) -> list[float]:
    """Milliseconds of each update."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        run_updates(learner, 1)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def on_gpu(learner: Learner, seconds: float, least: int) -> list[float]:
    """Milliseconds from update to update on the GPU's clock, launched ahead of it as in a run."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(51)]
        learner.queue.run(events[0].record)
        for event in events[1:]:
            learner.launch(1)
            learner.queue.run(event.record)
        learner.drain()
        times += [early.elapsed_time(late) for early, late in itertools.pairwise(events)]
    return times


def host_syncs(learner: Learner) -> float:
    """Waits for the device per update, plan to hand-over, as torch counts them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(SYNCED):
            learner.launch(1)
        torch.cuda.set_sync_debug_mode("default")
    learner.drain()
    return count_syncs([str(each.message) for each in caught]) / SYNCED


def count_syncs(messages: list[str]) -> int:
    """How many of these warnings tell of one; torch also says once that the mode itself is a prototype."""
    return sum("called a synchronizing" in message for message in messages)


def graph_nodes(train: TrainStep) -> int:
    """Kernels, copies and fills of the captured update."""
    assert isinstance(train.run, Captured)
    library = min(re.findall(r"/\S*libcudart\S*", Path("/proc/self/maps").read_text()))  # torch's: it is loaded
    nodes = ctypes.c_size_t()
    graph = ctypes.c_void_p(train.run.graph.raw_cuda_graph())
    code = ctypes.CDLL(library).cudaGraphGetNodes(graph, None, ctypes.byref(nodes))
    if code:
        raise RuntimeError(f"cudaGraphGetNodes failed with {code}")
    return nodes.value


def count_flops(config: Config, task: Task) -> int:
    """Multiplications and additions of the matmuls and convolutions of an update.

    Counted by running the references on meta tensors: torch cannot look into our kernels, and they compute the same.
    """
    meta, dims = torch.device("meta"), config.model.dims()
    agent = Agent(OBS[task], ACT, config.model, config.loss, torch.float32).to(meta)
    optimizer = LaProp(agent.official_parameters(), 1e-4, 10, 0.3, agent.slow_parameters())
    replay = Replay(
        OBS[task], ACT, deter=dims.deter, stoch=dims.stoch, num_envs=config.env.num_envs, capacity=config.capacity,
        batch_size=config.replay.batch_size, batch_length=config.replay.batch_length, seed=0, device=meta,
    )  # fmt: skip
    train = TrainStep(agent, optimizer, replay, Metrics(), 0)
    with references(), FlopCounterMode(display=False) as counter:
        train.run()
    return counter.get_total_flops()


@contextlib.contextmanager
def references() -> Iterator[None]:
    """Inside, every op runs its reference."""
    before = os.environ.get("FASTDREAMER_KERNELS", "")
    os.environ["FASTDREAMER_KERNELS"] = "reference"
    try:
        yield
    finally:
        os.environ["FASTDREAMER_KERNELS"] = before


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=get_args(Task), default="vector")
    parser.add_argument("--size", choices=get_args(Size), default="size1m")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--serve", action="store_true", help="speak the side-by-side protocol")
    parser.add_argument("--born", type=float, default=time.time(), help="when the process was started, seconds")
    args = parser.parse_args()
    config = row_config(args.size, args.dry_run, args.compile)
    if args.serve:
        learner = make_learner(config, args.task)
        run = partial(run_updates, learner)
        run(WARMUP)
        return serve(run, parameters(learner), time.time() - args.born)
    seconds, least = (0.0, 20) if args.dry_run else (SECONDS, UPDATES)
    print(json.dumps(measure(config, args.task, args.born, seconds, least)))


if __name__ == "__main__":
    main()
