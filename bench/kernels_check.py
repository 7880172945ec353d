"""Compiles every Triton kernel of the project for real GPUs, without one, and holds what comes out to a budget.

    python -m bench.kernels_check --arch 80 90 100 --size size12m --budget bench/kernel_budgets.json

The wrappers of the ops run on meta tensors at real model sizes while every launch only compiles, so arguments are
specialised as in a real call. Registers and spills come from ptxas, matrix instructions from the machine code. Exits 1
if a kernel spills, does not fit an SM, has a tl.dot but no matrix instruction, or outgrows its stored budget.
"""

import argparse
import collections
import json
import os
import sys
import time
from pathlib import Path

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    sys.exit("kernels_check: compiles kernels, so TRITON_INTERPRET must not be 1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton 3.10 flips the default

import torch
import triton

from bench.kernels_cases import SIZES, cases
from bench.kernels_offline import LIMITS, Figures, OfflineDriver, figures, recorded

BUDGETED = ("registers", "shared")
GROWTH = 1.1  # over the budget
VERSION = ".".join(triton.__version__.split(".")[:2])


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
