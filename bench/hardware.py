"""The name of the hardware that a result belongs to."""

import platform
import re
from pathlib import Path

import torch


def hardware() -> str:
    """Such as cpu-amd-epyc-avx2-2-cores, or the name of the GPU: fit for a folder."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"cpu {_processor()} {torch.backends.cpu.get_cpu_capability()} {_cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return models[0] if models else platform.processor()


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
