"""The sections of the battery, as parts that are run and stored one by one.

Parts run in processes of their own: a crash, a full memory or a lack of time costs one part.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.protocol import Served, end_group

ROOT = Path(__file__).parents[1]
SIZES = (("vector", "size1m"), ("image", "size12m"), ("image", "size50m"), ("image", "size200m"))
RATIOS, DRY_RATIOS = (32.0, 512.0), (2.0, 8.0)
LIMIT = 240.0
"""Seconds of one part."""
ORDER = "ABBAABBA"
BLOCK, DRY_BLOCK = 15.0, 0.2
"""Seconds of one program's turn."""
Row = dict[str, Any]
Work = Callable[[float], Row]
"""Does a part, within so many seconds, or raises TimeoutError."""


class Call(NamedTuple):
    """What was asked for: a dry run or not, and other programs by name."""

    dry: bool
    peers: dict[str, str]


class Section(NamedTuple):
    """Parts by name, in order, and what is to be said about them."""

    parts: dict[str, Work]
    note: str = ""


def finish(command: list[str], limit: float, dry: bool) -> "subprocess.CompletedProcess[str]":
    """Runs a program to its end. Raises TimeoutError after so many seconds. A dry run hides the GPU from it."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if dry else None
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        end_group(process)
        out, _ = process.communicate()
        raise TimeoutError(f"took more than {limit:.0f} s; last: {_last(out)}") from error
    finally:
        end_group(process)  # on an interrupt
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _last(text: str) -> str:
    return " ".join(text.split())[-200:]


def row(module: str, dry: bool, options: Row, limit: float) -> Row:
    """The options and the JSON that a module of this folder prints last. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", f"bench.{module}", f"--born={time.time()}"]
    command += [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value]
    done = finish(command + ["--dry-run"] * dry, limit, dry)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"ended with {done.returncode}: {' '.join(done.stderr.split())[-600:]}")
    return {**options, **json.loads(done.stdout.splitlines()[-1])}


def updates(call: Call) -> Section:
    """Whole updates: all sizes plain, then all compiled. A dry run compiles nothing: that takes minutes on a CPU."""
    parts: dict[str, Work] = {}
    for compiled in (False,) if call.dry else (False, True):
        for task, size in SIZES[:2] if call.dry else SIZES:
            options = {"task": task, "size": size, "compile": compiled}
            parts[f"{size}{' compiled' * compiled}"] = partial(row, "battery_updates", call.dry, options)
    return Section(parts, "compiled: left out of a dry run, it takes minutes on a CPU" if call.dry else "")


def loop(call: Call) -> Section:
    """The loop end to end."""
    parts: dict[str, Work] = {}
    for task, size in SIZES[:1] if call.dry else SIZES[:2]:
        for ratio in DRY_RATIOS if call.dry else RATIOS:
            options = {"task": task, "size": size, "ratio": ratio}
            parts[f"{size} {ratio:g}"] = partial(row, "battery_loop", call.dry, options)
    return Section(parts)


def tests(call: Call) -> Section:
    """The tests marked gpu, by file; a dry run sees those of the captured steps skipped."""
    files = [path.name for path in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    return Section({name: partial(_tests, call.dry, name) for name in (files[-1:] if call.dry else files)})


def _tests(dry: bool, name: str, limit: float) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = finish([*command, f"tests/{name}"], limit, dry)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {_last(done.stdout + done.stderr)}")
        suite = xml.parse(report).getroot()[0]
    counts = {kind: int(suite.attrib[kind]) for kind in ("tests", "failures", "errors", "skipped")}
    failed = [case.attrib["name"] for case in suite if any(child.tag in ("failure", "error") for child in case)]
    wrong = f"{len(failed)} tests failed: {', '.join(failed)}" if failed else "" if counts["tests"] else "no tests"
    found = {**counts, "passed": counts["tests"] - sum(list(counts.values())[1:]), "failed": failed}
    return {**found, "error": wrong} if wrong else found


def ops(call: Call) -> Section:
    """Medians of every op by size and backend, microseconds; compiled references last; a dry run times one op."""
    chosen = ["size1m and lambda_return"]
    if not call.dry:
        chosen = [f"{size} and {which}" for which in ("not compiled", "not triton") for size in ("size1m", "size12m")]
    return Section({each: partial(_ops, call.dry, each) for each in chosen})


def _ops(dry: bool, chosen: str, limit: float) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "ops.json"
        command = [sys.executable, "-m", "pytest", "bench/test_ops.py", "-v", "-p", "no:cacheprovider", "-k", chosen]
        done = finish([*command, f"--benchmark-json={report}"], limit, dry)
        if not report.exists() or not report.stat().st_size:
            raise RuntimeError(f"pytest bench/test_ops.py ended with {done.returncode}: {_last(done.stdout)}")
        benchmarks = json.loads(report.read_text())["benchmarks"]
    found = [
        {"op": each["group"], "backend": each["extra_info"]["backend"], "ratio": each["extra_info"].get("ratio"),
         "us": round(1e6 * each["stats"]["median"], 2)}
        for each in benchmarks
    ]  # fmt: skip
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return {"ops": found, **({"error": f"failed: {', '.join(failed)}"} if done.returncode else {})}


def peers(call: Call) -> Section:
    """Ours against each program that was named, in turns; a dry run names ours again."""
    commands = {**({"ourselves": shlex.join(_our_server(call.dry))} if call.dry else {}), **call.peers}
    parts: dict[str, Work] = {name: partial(_against, call.dry, shlex.split(commands[name])) for name in commands}
    return Section(parts, "" if parts else "no peers were given")


def _our_server(dry: bool) -> list[str]:
    task, size = SIZES[0] if dry else SIZES[1]
    command = [sys.executable, "-m", "bench.battery_updates", "--serve", f"--task={task}", f"--size={size}"]
    return [*command, *["--dry-run"] * dry]


def _against(dry: bool, command: list[str], limit: float) -> Row:
    """Milliseconds per update of both, medians over turns with their range, and theirs / ours of each pair of turns."""
    ends = time.perf_counter() + limit
    with Served(_our_server(dry), limit) as ours, Served(command, ends - time.perf_counter()) as theirs:
        programs = {"A": ours, "B": theirs}
        block = DRY_BLOCK if dry else BLOCK
        per_block = {each: max(1, int(1000 * block / program.run(2).wall_ms)) for each, program in programs.items()}
        turns: dict[str, list[float]] = {"A": [], "B": []}
        for each in ORDER:
            turns[each].append(programs[each].run(per_block[each]).wall_ms)
    return {
        "params": [ours.params, theirs.params],
        "startup_s": [round(ours.startup_s, 2), round(theirs.startup_s, 2)],
        "ours_ms": spread(turns["A"]),
        "theirs_ms": spread(turns["B"]),
        "theirs_over_ours": spread([b / a for a, b in zip(turns["A"], turns["B"], strict=True)]),
    }


def spread(values: list[float]) -> list[float]:
    """Median, least and largest."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]
