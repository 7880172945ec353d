"""Compiles every Triton kernel of the project for real GPUs, without one, and holds what comes out to a budget.

    python -m bench.kernels_check --arch 80 90 100 --size size12m --budget bench/kernel_budgets.json

The wrappers of the ops run on meta tensors at real model sizes while every launch only compiles, so arguments are
specialised as in a real call. Registers and spills come from ptxas, matrix instructions from the machine code. Exits 1
if a kernel spills, does not fit an SM, has a tl.dot but no matrix instruction, or outgrows its stored budget.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    sys.exit("kernels_check: compiles kernels, so TRITON_INTERPRET must not be 1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton 3.10 flips the default

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastdreamer_kernels.block_gru import cuda as block_gru
from fastdreamer_kernels.imagine_sequence import cuda as imagine_sequence
from fastdreamer_kernels.lambda_return import cuda as lambda_return
from fastdreamer_kernels.laprop_agc import cuda as laprop_agc
from fastdreamer_kernels.norm_act import cuda as norm_act
from fastdreamer_kernels.observe_sequence import cuda as observe_sequence
from fastdreamer_kernels.philox import cuda as philox
from fastdreamer_kernels.replay_gather import cuda as replay_gather
from fastdreamer_kernels.unimix_kl import cuda as unimix_kl
from fastdreamer_kernels.unimix_sample import cuda as unimix_sample

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 65536  # of one SM
BUDGETED = ("registers", "shared")
GROWTH = 1.1  # over the budget
VERSION = ".".join(triton.__version__.split(".")[:2])


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


class Size(NamedTuple):
    """deter, hidden units and classes of a model size (SPEC 3.1)."""

    deter: int
    units: int
    classes: int


SIZES = {
    "size1m": Size(512, 64, 4),
    "size12m": Size(2048, 256, 16),
    "size50m": Size(4096, 512, 32),
    "size200m": Size(8192, 1024, 64),
}
BATCH, LENGTH, DREAMS, HORIZON, GROUPS, BLOCKS = 16, 2, 1024, 2, 32, 8  # short: a longer scan compiles nothing new


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


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.float32)


def whole(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def layer(*shape: int) -> list[Tensor]:
    """Kernel, bias, scale."""
    width = shape[-1] * (shape[0] if len(shape) == 3 else 1)
    return [tensor(*shape), tensor(width), floats(width)]


def core_weights(size: Size, actions: int) -> list[Tensor]:
    deter, units, latent, part = size.deter, size.units, GROUPS * size.classes, size.deter // BLOCKS
    inputs = [*layer(deter, units), *layer(latent, units), *layer(actions, units)]
    return [*inputs, *layer(BLOCKS, part + 3 * units, part), *layer(BLOCKS, part, 3 * part)[:2]]


def observe(size: Size) -> None:
    """Forward and backward at the sizes of training; acting launches the same kernels."""
    deter, units, classes = size
    actions, embed, latent = 6, 4 * units, GROUPS * classes
    core, posterior = core_weights(size, actions), [*layer(deter + embed, units), *layer(units, latent)[:2]]
    inputs = (
        tensor(BATCH, deter), whole(BATCH, GROUPS), tensor(BATCH, LENGTH, embed), tensor(BATCH, LENGTH, actions),
        tensor(BATCH, LENGTH, dtype=torch.bool),
    )  # fmt: skip
    deters, stochs, onehots, logits, saved = observe_sequence.observe_sequence(
        core, posterior, *inputs, floats(BATCH, LENGTH, GROUPS), 0.01
    )
    observe_sequence.observe_sequence_backward(
        deters, onehots, logits, core, posterior, *inputs[1:], deters, stochs, logits, saved, 0.01
    )


def imagine(size: Size) -> None:
    """A discrete key of 18 classes and a continuous one of 6 elements."""
    deter, units, classes = size
    latent, keys = GROUPS * classes, [1, 18, 6, 0]
    prior = [*layer(deter, units), *layer(units, units), *layer(units, latent)[:2]]
    trunk = [*layer(deter + latent, units), *layer(units, units), *layer(units, units)]
    outputs = [x for width in (18, 6, 6) for x in layer(units, width)[:2]]
    imagine_sequence.imagine_sequence(
        core_weights(size, 24), prior, [*trunk, *outputs], 3, keys, tensor(DREAMS, deter), whole(DREAMS, GROUPS),
        floats(DREAMS, HORIZON, GROUPS), floats(DREAMS, HORIZON + 1, 7), 0.01, 0.0,
    )  # fmt: skip


def gated(size: Size, rows: int) -> None:
    part, hidden = size.deter // BLOCKS, tensor(rows, size.deter)
    scale, kernel, bias = floats(size.deter), tensor(BLOCKS, part, 3 * part), tensor(3 * size.deter)
    out, gates, rstd = block_gru.block_gru(hidden, scale, kernel, bias, hidden)
    block_gru.block_gru_backward(out, hidden, scale, kernel, hidden, gates, rstd)


def sampled(size: Size) -> None:
    rows = DREAMS * GROUPS
    logits = tensor(rows, size.classes)
    for unimix in (0.0, 0.01):
        index, onehot, log_prob, entropy = unimix_sample.unimix_sample(logits, floats(rows), unimix)
        unimix_sample.unimix_sample_backward(onehot, log_prob, entropy, logits, index, unimix)


def divergence(size: Size) -> None:
    post = tensor(DREAMS, GROUPS, size.classes)
    dyn, rep, *_ = unimix_kl.unimix_kl(post, post, 0.01, 1.0)
    unimix_kl.unimix_kl_backward(dyn, rep, post, post, 0.01, 1.0)


def returns() -> None:
    """Of 1,024 dreams of 16 states, and of replay's 64 steps."""
    for rows, steps in ((1024, 16), (16, 64)):
        lambda_return.lambda_return(*(floats(rows, steps) for _ in range(4)))


def gather(size: Size) -> None:
    """A row of an image, of latents and of flags."""
    env = tensor(BATCH, dtype=torch.int64)
    for width, dtype in ((12288, torch.uint8), (size.deter, torch.bfloat16), (1, torch.bool)):
        rings = tensor(4, 4096, width, dtype=dtype), tensor(BATCH, 65, width, dtype=dtype)
        replay_gather.replay_gather(rings[0], env, env, 65, rings[1])


def norm(size: Size) -> None:
    """Of a layer, and of the pixels of the encoder's first stage."""
    for rows, width in ((DREAMS, size.units), (1024 * 32 * 32, 2 * size.units // 16)):
        x, scale = tensor(rows, width), floats(width)
        norm_act.norm_act(x, scale)
        norm_act.norm_act_backward(x, x, scale)


def draw() -> None:
    """A number for every group of every dream."""
    for kind in philox.DTYPES:
        philox.philox(kind, [1, 2], tensor(dtype=torch.int64), DREAMS * GROUPS)


def optimize(size: Size) -> None:
    shapes = ((size.deter, size.units), (size.units,))
    params, grads, nu, mu, slow = ([floats(*shape) for shape in shapes] for _ in range(5))
    shadow = [tensor(*shape) for shape in shapes]
    laprop_agc.laprop_agc(params, grads, nu, mu, shadow, slow[:1], [0], floats(), floats(), 0.3)
    laprop_agc.laprop_agc(params, grads, nu, mu, [], [], [], floats(), floats(), 0.3)


def cases(size: Size) -> list[tuple[str, Callable[[], None]]]:
    """Every op's wrappers, forward and backward, by the name its kernels are listed under."""
    return [
        ("observe_sequence", lambda: observe(size)),
        ("imagine_sequence", lambda: imagine(size)),
        (f"block_gru {BATCH}", lambda: gated(size, BATCH)),
        (f"block_gru {DREAMS}", lambda: gated(size, DREAMS)),
        ("unimix_sample", lambda: sampled(size)),
        ("unimix_kl", lambda: divergence(size)),
        ("lambda_return", returns),
        ("replay_gather", lambda: gather(size)),
        ("laprop_agc", lambda: optimize(size)),
        ("norm_act", lambda: norm(size)),
        ("philox", draw),
    ]


def check(arch: int, name: str, ops: list[str], seen: set[tuple[int, str]]) -> dict[str, Figures]:
    """Compiles and prints every kernel of one size that was not seen before: figures by 'op/kernel/which variant'."""
    triton.runtime.driver.set_active(OfflineDriver(arch))
    found: dict[str, Figures] = {}
    for op, run in ((op, run) for op, run in cases(SIZES[name]) if not ops or op.split()[0] in ops):
        with recorded() as launches:
            run()
        variants: collections.Counter[str] = collections.Counter()
        for kernel, compiled in launches:
            if (arch, compiled.hash) in seen:
                continue
            seen.add((arch, compiled.hash))
            key = f"{op}/{kernel}/{variants[kernel]}"
            variants[kernel] += 1
            found[key] = got = figures(compiled, arch)
            matrix = " ".join(f"{count} {kind}" for kind, count in got.matrix.items()) or "-"
            print(
                f"sm_{arch:<4} {name:9} {key:48} {got.registers:4} registers {got.spill:5} spill bytes "
                f"{got.shared:7} shared bytes {matrix:>12} {got.blocks:3} blocks/SM",
                flush=True,
            )
    return found


def faults(got: Figures) -> list[str]:
    """What no kernel may do, whatever its budget."""
    found = [f"spills {got.spill} bytes"] if got.spill else []
    if not got.blocks:
        found.append(f"does not fit: {got.shared} bytes of shared memory, {got.registers} registers")
    if got.has_dot and not got.matrix:
        found.append("has a tl.dot but no matrix instruction")
    return found


def over_budget(found: dict[str, Figures], path: Path) -> list[str]:
    """One line for every figure beyond its budget; the compiler decides, so budgets are per version of triton."""
    versions = json.loads(path.read_text())
    if VERSION not in versions:
        print(f"{path} has no budget for triton {VERSION}")
        return []
    lines = []
    for key, got in found.items():
        budget = versions[VERSION].get(key)
        if budget is None:
            lines.append(f"{key} has no budget: run with --write-budget")
            continue
        spent = {what: getattr(got, what) for what in BUDGETED}
        lines += [f"{key}: {spent[x]} {x}, budget {budget[x]}" for x in BUDGETED if spent[x] > GROWTH * budget[x]]
    return lines


def write_budget(found: dict[str, Figures], path: Path) -> None:
    """Replaces this version's figures and keeps the others'."""
    versions = json.loads(path.read_text()) if path.exists() else {}
    versions[VERSION] = {key: {what: getattr(got, what) for what in BUDGETED} for key, got in found.items()}
    tables = [
        f' "{version}": {{\n' + ",\n".join(f'  "{key}": {json.dumps(line)}' for key, line in table.items()) + "\n }"
        for version, table in sorted(versions.items())
    ]
    path.write_text("{\n" + ",\n".join(tables) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=LIMITS, default=[80, 90, 100])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--op", nargs="+", default=[], help="only these")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--budget", type=Path, help="stored figures of sm_90 at size12m")
    parser.add_argument("--write-budget", action="store_true", help="store them instead of comparing")
    args = parser.parse_args()
    begin, seen = time.perf_counter(), set[tuple[int, str]]()
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    found = {(arch, size): check(arch, size, args.op, seen) for arch in args.arch for size in args.size}
    wrong = [
        f"sm_{arch} {size} {key}: {fault}"
        for (arch, size), kernels in found.items()
        for key, got in kernels.items()
        for fault in faults(got)
    ]
    if args.budget:
        mine = found.get((90, "size12m"))
        if mine is None:
            parser.error("--budget needs --arch 90 and --size size12m")
        if args.write_budget:
            write_budget(mine, args.budget)
        else:
            wrong += [f"sm_90 size12m {line}" for line in over_budget(mine, args.budget)]
    if args.json:
        rows = [
            {"arch": arch, "size": size, "kernel": key, **got._asdict()}
            for (arch, size), kernels in found.items()
            for key, got in kernels.items()
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{sum(map(len, found.values()))} kernels in {time.perf_counter() - begin:.0f} s", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
