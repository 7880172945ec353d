"""The sections of the battery. Rows run in processes of their own: a crash or a full memory costs one row."""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any, NamedTuple

from bench.protocol import Served

ROOT = Path(__file__).parents[1]
SIZES = (("vector", "size1m"), ("image", "size12m"), ("image", "size50m"), ("image", "size200m"))
RATIOS, DRY_RATIOS = (32.0, 512.0), (2.0, 8.0)
ROW_LIMIT, SECTION_LIMIT = 150.0, 240.0
ORDER = "ABBAABBA"
BLOCK, DRY_BLOCK = 15.0, 0.2
"""Seconds of one program's turn."""


class Call(NamedTuple):
    """What was asked for: a dry run or not, and other programs by name."""

    dry: bool
    peers: dict[str, str]


def row(module: str, call: Call, **options: object) -> dict[str, Any]:
    """The JSON that a module of this folder prints last; {"error": ...} where it fails."""
    command = [sys.executable, "-m", f"bench.{module}", f"--born={time.time()}"]
    command += [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value]
    command += ["--dry-run"] * call.dry
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ROW_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {**options, "error": f"took more than {ROW_LIMIT:.0f} s"}
    if done.returncode:
        return {**options, "error": " ".join(done.stderr.split())[-600:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**options, **result}


def updates(call: Call) -> dict[str, Any]:
    """Whole updates: all sizes plain, then all compiled. A dry run compiles nothing: that takes minutes on a CPU."""
    sizes = SIZES[:2] if call.dry else SIZES
    plain = [row("battery_updates", call, task=task, size=size, compile=False) for task, size in sizes]
    compiled = [] if call.dry else [row("battery_updates", call, task=t, size=s, compile=True) for t, s in sizes]
    return {"rows": plain + compiled, "compiled": "left out of a dry run" if call.dry else "run"}


def loop(call: Call) -> dict[str, Any]:
    """The loop end to end."""
    sizes = SIZES[:1] if call.dry else SIZES[:2]
    ratios = DRY_RATIOS if call.dry else RATIOS
    return {"rows": [row("battery_loop", call, task=t, size=s, ratio=ratio) for t, s in sizes for ratio in ratios]}


def tests(call: Call) -> dict[str, Any]:
    """The tests marked gpu; a dry run sees those of the captured steps skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ["tests/test_cuda_steps.py"] if call.dry else []
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, timeout=SECTION_LIMIT, check=False)
        suite = xml.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    bad = [f"{case.attrib['classname']}::{case.attrib['name']}" for case in suite if _broke(case)]
    error = {"error": f"{len(bad)} tests failed"} if bad else {}
    return {**counts, "passed": counts["tests"] - sum(list(counts.values())[1:]), "failed": bad, **error}


def _broke(case: xml.Element) -> bool:
    return any(child.tag in ("failure", "error") for child in case)


def ops(call: Call) -> dict[str, Any]:
    """Medians of every op by size and backend, microseconds; a dry run times one."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "ops.json"
        command = [sys.executable, "-m", "pytest", "bench/test_ops.py", "-q", "-p", "no:cacheprovider"]
        command += [f"--benchmark-json={report}", f"--benchmark-max-time={0.05 if call.dry else 0.3}"]
        command += ["-k", "size1m and lambda_return"] * call.dry
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECTION_LIMIT, check=False)
        if not report.exists() or done.returncode:
            raise RuntimeError(f"pytest bench/test_ops.py ended with {done.returncode}: {done.stdout[-600:]}")
        benchmarks = json.loads(report.read_text())["benchmarks"]
    rows = [
        {"op": each["group"], "backend": each["extra_info"]["backend"], "ratio": each["extra_info"]["ratio"],
         "us": round(1e6 * each["stats"]["median"], 2)}
        for each in benchmarks
    ]  # fmt: skip
    return {"rows": rows}


def peers(call: Call) -> dict[str, Any]:
    """Ours against each program that was named, in turns; a dry run names ours again."""
    commands = call.peers
    if call.dry:
        commands = {"ourselves": shlex.join(_our_server(call)), **call.peers}
    if not commands:
        return {"note": "no peers were given", "rows": []}
    return {"rows": [_against(name, shlex.split(command), call) for name, command in commands.items()]}


def _our_server(call: Call) -> list[str]:
    task, size = SIZES[0] if call.dry else SIZES[1]
    command = [sys.executable, "-m", "bench.battery_updates", "--serve", f"--task={task}", f"--size={size}"]
    return [*command, f"--born={time.time()}", *["--dry-run"] * call.dry]


def _against(name: str, command: list[str], call: Call) -> dict[str, Any]:
    """Milliseconds per update of both, medians over turns with their range, and theirs / ours of each pair of turns."""
    programs = {"A": Served(_our_server(call)), "B": Served(command)}
    block = DRY_BLOCK if call.dry else BLOCK
    per_block = {each: max(1, int(1000 * block / program.run(2).wall_ms)) for each, program in programs.items()}
    turns: dict[str, list[float]] = {"A": [], "B": []}
    for each in ORDER:
        turns[each].append(programs[each].run(per_block[each]).wall_ms)
    for program in programs.values():
        program.quit()
    ratios = [theirs / ours for ours, theirs in zip(turns["A"], turns["B"], strict=True)]
    return {
        "peer": name,
        "params": [programs[each].params for each in "AB"],
        "startup_s": [programs[each].startup_s for each in "AB"],
        "ours_ms": spread(turns["A"]),
        "theirs_ms": spread(turns["B"]),
        "theirs_over_ours": spread(ratios),
    }


def spread(values: list[float]) -> list[float]:
    """Median, least and largest."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]
