"""`python -m fastdreamer.doctor`: what this machine has for a run, and what to try first."""

import platform
import shutil
import sys
from pathlib import Path

import torch

from fastdreamer import __version__
from fastdreamer.cli import Parser, fail
from fastdreamer.cpu import cpu_vendor, pick_matmul
from fastdreamer.machine import GIB, cpu, gpu, installed
from fastdreamer.replay_storage import available_memory
from fastdreamer_kernels import report

NEEDED = ("numpy", "gymnasium", "envpool", "triton", "safetensors", "rich")
OPTIONAL = {
    "plotly": "report and dream",
    "av": "videos",
    "onnxruntime": "export",
    "tensorboard": "run.tracker tensorboard",
    "wandb": "run.tracker wandb",
}


def main(argv: list[str]) -> int:
    """The exit code: 0, or 2 where FASTDREAMER_KERNELS asks for what this machine cannot run."""
    Parser("doctor", "Say what this machine has for a run.").parse_args(argv)
    try:
        print("\n".join(diagnosis()))
    except ValueError as error:
        fail(error)
    return 0


def diagnosis() -> list[str]:
    """One line each: versions, device, kernels, memory and disk, packages, what to run."""
    cuda = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if cuda else (torch.device("cpu"), torch.float32)
    matmul = "" if cuda else f"; {pick_matmul(cpu_vendor())} for torch's matmuls"
    place = Path("runs") if Path("runs").is_dir() else Path()
    absent = [f"{name} (for {use})" for name, use in OPTIONAL.items() if installed(name) is None]
    return [
        f"fastdreamer {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"gpu: {gpu()}; cpu: {cpu()}",
        f"{report(device, dtype)}{matmul}",
        f"memory: {available_memory() / GIB:.1f} GiB free; disk: {shutil.disk_usage(place).free / GIB:.0f} GiB free"
        f" in {place.absolute()}",
        "packages: " + ", ".join(f"{name} {installed(name) or 'absent'}" for name in NEEDED),
        f"not installed: {', '.join(absent)}" if absent else "everything optional is installed",
        f"try: python -m fastdreamer.train {'dmc_proprio' if cuda else 'cartpole'}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
