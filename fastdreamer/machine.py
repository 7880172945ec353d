"""What a run runs on, in words: for its folder, its report and the doctor."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from fastdreamer import __version__
from fastdreamer.cpu import cpu_info

GIB = 1 << 30


def describe() -> dict[str, str]:
    """Device, processor, memory and versions of this machine."""
    return {
        "gpu": gpu(),
        "cpu": cpu(),
        "memory": f"{memory() / GIB:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "fastdreamer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: installed(name) or "absent" for name in ("triton", "numpy", "gymnasium", "envpool")},
    }


def gpu() -> str:
    """Name, memory and CUDA version, or that there is none."""
    if not torch.cuda.is_available():
        return "none that torch sees"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / GIB:.0f} GiB, CUDA {torch.version.cuda}"


def cpu() -> str:
    """Cores that may be used, model, and what torch makes of its vectors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {cpu_info('model name') or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def installed(package: str) -> str | None:
    """Its version, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
