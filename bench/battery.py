"""The battery: everything about a machine's GPU in one call of less than nine minutes.

    python -m bench.battery --out bench/results/h200

    tests    the tests that need a GPU
    updates  whole updates by size, plain and compiled: time, graph nodes, host syncs, memory, FLOP/s
    loop     the loop end to end at two train ratios: steps, lag, realised ratio
    peers    other programs' updates in the same call, by turns: --peer NAME=COMMAND, see bench/protocol.py
    ops      every op by backend

Each section writes battery-SECTION.json into the folder as soon as it is done; another call goes on with those that are
missing, or does the ones that --section names again. Then battery.json and battery.md hold them all. A section that
fails says so and the next one runs; the exit code is 1. --dry-run does all of it at tiny sizes on the CPU.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.battery_sections import Call, loop, ops, peers, tests, updates
from bench.battery_table import table
from bench.hardware import hardware

SECTIONS: dict[str, Callable[[Call], dict[str, Any]]] = {
    "tests": tests, "updates": updates, "loop": loop, "peers": peers, "ops": ops,
}  # fmt: skip
BUDGET = 530.0


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    facts: dict[str, Any] = {"hardware": hardware(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    facts |= {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
        facts |= {"cuda": torch.version.cuda, "gpu": subprocess.check_output(query, text=True).strip(), **ceilings()}
    return facts


def ceilings() -> dict[str, float]:
    """What the GPU reaches: TFLOP/s of a bfloat16 matmul of random numbers, GB/s of a copy, read and written."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    matmul = seconds_of(lambda: a @ b)
    copy = seconds_of(lambda: target.copy_(source))
    return {"matmul_tflop_per_s": round(2 * 8192**3 / matmul / 1e12, 1), "copy_gb_per_s": round(2**32 / copy / 1e9, 1)}


def seconds_of(work: Callable[[], object]) -> float:
    """The median of thirty on the GPU's clock."""
    times = []
    for _ in range(35):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) / 1000)
    return sorted(times[5:])[15]


def run_section(name: str, call: Call) -> dict[str, Any]:
    """What a section found, or why it did not."""
    begun = time.perf_counter()
    try:
        found = SECTIONS[name](call)
    except (RuntimeError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[-2000:]}
    return {**found, "section_s": round(time.perf_counter() - begun, 1)}


def failed(found: dict[str, Any]) -> bool:
    """Whether a section or one of its rows did not come to its end."""
    return "error" in found or any("error" in row for row in found.get("rows", []))


def main(argv: list[str]) -> int:
    """Runs what is missing, merges, prints the table. 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--section", nargs="+", choices=tuple(SECTIONS), help="only these, also if they are there")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no section begins")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry-run goes through everything on the CPU")
    if wrong := [each for each in args.peer if not re.fullmatch("[^=]+=.+", each)]:
        parser.error(f"--peer must be NAME=COMMAND, got {wrong[0]!r}")
    call = Call(args.dry_run, dict(each.split("=", 1) for each in args.peer))
    ends, merged = time.perf_counter() + args.budget, {"machine": machine(), "dry_run": args.dry_run}
    for name in SECTIONS:
        path = args.out / f"battery-{name}.json"
        wanted = name in args.section if args.section else not path.exists()
        if wanted and time.perf_counter() < ends:
            path.write_text(json.dumps(run_section(name, call), indent=1) + "\n")
        merged[name] = json.loads(path.read_text()) if path.exists() else {"left_out": "no time was left; call again"}
    merged["command"] = " ".join(["python", "-m", "bench.battery", *argv])
    (args.out / "battery.json").write_text(json.dumps(merged, indent=1) + "\n")
    (args.out / "battery.md").write_text(table(merged))
    print(table(merged))
    return 1 if any(failed(merged[name]) for name in SECTIONS) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
