"""What the battery's figures belong to: hardware, versions, and what the hardware reaches at best."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.hardware import hardware

SIDE, BYTES = 8192, 1 << 31
DRY_SIDE, DRY_BYTES = 256, 1 << 22
ROUNDS, SKIPPED = 30, 5


def machine(dry: bool) -> dict[str, Any]:
    """Hardware, versions, ceilings."""
    facts: dict[str, Any] = {"hardware": hardware(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    facts |= {"triton": triton(), "python": platform.python_version(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
        names = "gpu", "driver", "clock"
        answer = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
        facts |= {"cuda": torch.version.cuda, **dict(zip(names, answer, strict=True))}
    facts |= ceilings(torch.device("cpu" if dry else "cuda"))
    if not dry:
        torch.cuda.empty_cache()  # what comes next runs in other processes
    return facts


def triton() -> str | None:
    """Its version, if it is there."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def ceilings(device: torch.device) -> dict[str, float]:
    """TFLOP/s of a matmul of random numbers, bfloat16 on a GPU, and GB/s of a copy, read and written together."""
    cuda = device.type == "cuda"
    side, size = (SIDE, BYTES) if cuda else (DRY_SIDE, DRY_BYTES)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    matmul = seconds_of(lambda: a @ b, device)
    copy = seconds_of(lambda: target.copy_(source), device)
    return {
        "matmul_tflop_per_s": round(2 * side**3 / matmul / 1e12, 4),
        "copy_gb_per_s": round(2 * size / copy / 1e9, 2),
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The median of thirty, on the GPU's clock if there is one."""
    times = [_gpu_seconds(work) if device.type == "cuda" else _seconds(work) for _ in range(SKIPPED + ROUNDS)]
    return sorted(times[SKIPPED:])[ROUNDS // 2]


def _gpu_seconds(work: Callable[[], object]) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1000


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
