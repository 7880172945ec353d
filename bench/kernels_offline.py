"""Triton kernels compiled for a GPU that is not there, and what each then costs."""

import collections
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 65536  # of one SM


class Limits(NamedTuple):
    """Of one architecture: shared bytes of a block and of an SM, threads of an SM."""

    block_shared: int
    shared: int
    threads: int


LIMITS = {
    80: Limits(166912, 167936, 2048),
    86: Limits(101376, 102400, 1536),
    89: Limits(101376, 102400, 1536),
    90: Limits(232448, 233472, 2048),
    100: Limits(232448, 233472, 2048),
    120: Limits(101376, 102400, 1536),
}


class Figures(NamedTuple):
    """What one compiled kernel costs; `blocks` of it fit an SM at once. `matrix`: matrix instructions by kind."""

    registers: int
    spill: int
    shared: int
    matrix: dict[str, int]
    blocks: int
    has_dot: bool


class OfflineDriver:
    """As much of a driver as compiling needs."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are cached per device: one number for all would hide every second arch

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def run_once(function: Callable[[], object], **_: object) -> list[float]:
            function()
            return [1.0, 1.0, 1.0]

        return run_once

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Launches inside compile and run nothing; yields the (name, compiled kernel) of each, filled as they come."""
    launches: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: object, grid: object, warmup: bool, **options: object) -> Any:
        compiled = run(kernel, *args, grid=grid, warmup=True, **options)
        assert compiled.metadata.target.arch == triton.runtime.driver.active.get_current_target().arch
        launches.append((kernel.__name__, compiled))
        return compiled

    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run


def figures(compiled: Any, arch: int) -> Figures:
    """Registers and spills as ptxas reports them, instructions as nvdisasm lists them."""
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        report = assemble(ptx, arch)
        has_dot = "tt.dot" in compiled.asm["ttir"]
        command = [str(TOOLS / "nvdisasm"), "-c", "-ndf", str(cubin)]  # slow, and of no use without a dot
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout if has_dot else ""

    def largest(pattern: str) -> int:
        return max(map(int, re.findall(pattern, report)), default=0)

    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", sass, re.MULTILINE)
    kinds = {"HMMA": "mma", "HGMMA": "wgmma"}
    matrix = collections.Counter(kinds.get(x, "tcgen05") for x in opcodes if x in kinds or re.match(r"UTC\w*MMA", x))
    registers, shared, limits = largest(r"Used (\d+) registers"), compiled.metadata.shared, LIMITS[arch]
    threads = 32 * compiled.metadata.num_warps
    blocks = min(
        limits.threads // threads,
        REGISTERS // (-(-max(1, registers) // 8) * 8 * threads),
        limits.shared // (shared + 1024) if shared <= limits.block_shared else 0,
        32,
    )
    spill = largest(r"(\d+) bytes spill stores") + largest(r"(\d+) bytes spill loads")
    return Figures(registers, spill, shared, dict(matrix), blocks, has_dot)


def assemble(ptx: Path, arch: int) -> str:
    """The -v report of the first of triton's assemblers that reads this PTX version."""
    names = ("ptxas-blackwell", "ptxas") if arch >= 100 else ("ptxas", "ptxas-blackwell")
    target = f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}"
    command = ["-v", "-lineinfo", target, str(ptx), "-o", str(ptx.with_suffix(".o"))]
    for name in (name for name in names if (TOOLS / name).exists()):
        result = subprocess.run([str(TOOLS / name), *command], capture_output=True, text=True)
        if result.returncode == 0:
            return result.stderr
    raise RuntimeError(f"ptxas: {result.stderr[:2000]}")
