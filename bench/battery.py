"""The battery: everything about a machine's GPU, in calls of less than nine minutes.

    python -m bench.battery --out bench/results/h200

    tests    the tests that need a GPU
    updates  whole updates by size, plain and compiled: time, graph nodes, host syncs, memory, MFU
    loop     the loop end to end at two train ratios: steps, lag, realised ratio
    peers    other programs' updates in the same call, by turns: --peer NAME=COMMAND, see bench/protocol.py
    ops      every op by backend

Each part of a section goes into battery-SECTION.json as soon as it is done; another call goes on with those that are
missing, or does the sections that --section names again. battery.json and battery.md hold them all. A part that fails
says so and the next one runs; the exit code is 1. --dry-run does all of it at tiny sizes on the CPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.battery_machine import machine
from bench.battery_sections import LIMIT, ROOT, Call, Row, Section, Work, loop, ops, peers, tests, updates
from bench.battery_table import table

SECTIONS: dict[str, Callable[[Call], Section]] = {
    "tests": tests, "updates": updates, "loop": loop, "peers": peers, "ops": ops,
}  # fmt: skip
BUDGET = 520.0


def run_section(path: Path, parts: dict[str, Work], ends: float, facts: dict[str, Any]) -> None:
    """Does the parts that are missing from a file, and stores each there, until the time has come."""
    rows = read_rows(path)
    for name in [name for name in parts if name not in {row["part"] for row in rows}]:
        left = ends - time.perf_counter()
        if left <= 0 or (found := attempt(parts[name], left)) is None:
            return
        if "tflop_per_s" in found:
            found["mfu"] = round(found["tflop_per_s"] / facts["matmul_tflop_per_s"], 6)
        rows.append({"part": name, **found, "hardware": facts["hardware"], "date": facts["date"]})
        write_rows(path, rows)


def attempt(work: Work, left: float) -> Row | None:
    """What a part found, or why it did not; none if it only lacked time, which another call may have."""
    begun = time.perf_counter()
    try:
        found = work(min(left, LIMIT))
    except TimeoutError as error:
        if left < LIMIT:
            return None
        found = {"error": one_line(error)}
    except (RuntimeError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        found = {"error": one_line(error)}
    return {**found, "part_s": round(time.perf_counter() - begun, 1)}


def one_line(error: Exception) -> str:
    """What went wrong, without where the checkout lies."""
    return " ".join(f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "").split())[-1000:]


def read_rows(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """In one step: whoever is killed meanwhile leaves the file as it was."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    fresh.replace(path)


def merge(out: Path, sections: dict[str, Section]) -> dict[str, Any]:
    """What the files of all sections hold, and which parts they lack."""
    merged: dict[str, Any] = {}
    for name, section in sections.items():
        rows = read_rows(out / f"battery-{name}.json")
        missing = [part for part in section.parts if part not in {row["part"] for row in rows}]
        notes = {"note": section.note} if section.note else {}
        merged[name] = {**notes, "rows": rows, **({"left_out": missing} if missing else {})}
    return merged


def failed(section: dict[str, Any]) -> bool:
    """Whether a part did not come to its end."""
    return any("error" in row for row in section["rows"])


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, refused where it cannot be followed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results, of one machine")
    parser.add_argument("--section", nargs="+", choices=tuple(SECTIONS), help="only these, from their beginning")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which nothing goes on")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry-run goes through everything on the CPU")
    if wrong := [each for each in args.peer if not re.fullmatch("[^=]+=.+", each)]:
        parser.error(f"--peer must be NAME=COMMAND, got {wrong[0]!r}")
    return args


def main(argv: list[str]) -> int:
    """Does what is missing, merges, prints the table. 1 if anything failed, 2 if nothing can be done."""
    begun, args = time.perf_counter(), parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    call = Call(args.dry_run, dict(each.split("=", 1) for each in args.peer))
    facts, sections = machine(args.dry_run), {name: make(call) for name, make in SECTIONS.items()}
    paths = {name: args.out / f"battery-{name}.json" for name in SECTIONS}
    there = {row["hardware"] for path in paths.values() for row in read_rows(path)}
    if there - {facts["hardware"]}:
        print(f"--out holds results of {', '.join(there)}, this is {facts['hardware']}: name another", file=sys.stderr)
        return 2
    for name in args.section or ():
        write_rows(paths[name], [])
    for name in [name for name in SECTIONS if not args.section or name in args.section]:
        run_section(paths[name], sections[name].parts, begun + args.budget, facts)
    # what a peer is started with is nobody's business
    command = " ".join(["python", "-m", "bench.battery", *(re.sub("^([^=]+)=.+", r"\1=...", each) for each in argv)])
    merged = {"machine": facts, "dry_run": args.dry_run, "command": command, **merge(args.out, sections)}
    (args.out / "battery.json").write_text(json.dumps(merged, indent=1) + "\n")
    (args.out / "battery.md").write_text(table(merged))
    print(table(merged))
    return 1 if any(failed(merged[name]) for name in SECTIONS) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
