"""battery.md: what the battery found, for people."""

from collections.abc import Sequence
from typing import Any

UPDATES = (
    "task", "size", "compile", "ms_p50", "ms_p99", "graph_nodes", "host_syncs", "peak_allocated_gb", "tflop_per_s",
    "mfu", "first_update_s", "params",
)  # fmt: skip
LOOP = (
    "task", "size", "env", "envpool", "schedule", "agent_steps_per_s", "frames_per_s", "updates_per_s", "lag_min",
    "lag_mean", "lag_max", "ratio_wanted", "ratio_realised",
)  # fmt: skip
PEERS = ("peer", "params", "startup_s", "ours_ms", "theirs_ms", "theirs_over_ours")
OPS = ("op", "backend", "us", "ratio")


def table(found: dict[str, Any]) -> str:
    """The whole result in Markdown."""
    machine = found["machine"]
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [f"# {machine['hardware']}{' (dry run)' if found['dry_run'] else ''}", facts, f"`{found['command']}`"]
    best = machine.get("matmul_tflop_per_s")
    rows = [{**row, "mfu": _share(row.get("tflop_per_s"), best)} for row in found["updates"].get("rows", [])]
    parts += ["## Updates: 16 x 64, horizon 15", _section(found["updates"], UPDATES, rows)]
    parts += ["## The loop", _section(found["loop"], LOOP)]
    parts += ["## Side by side", _section(found["peers"], PEERS)]
    tests = found["tests"]
    kinds = ("passed", "failures", "errors", "skipped")
    counts = ", ".join(f"{tests[kind]} {kind}" for kind in kinds if kind in tests)
    parts += ["## Tests", "\n".join([counts or str(tests), *tests.get("failed", [])])]
    parts += ["## Ops", _section(found["ops"], OPS)]
    return "\n\n".join(parts) + "\n"


def _share(rate: float | None, best: float | None) -> str | None:
    return None if rate is None or best is None else f"{rate / best:.2%}"


def _section(found: dict[str, Any], columns: Sequence[str], rows: list[dict[str, Any]] | None = None) -> str:
    rows = found.get("rows", []) if rows is None else rows
    notes = [str(found[key]) for key in ("error", "note", "left_out") if key in found]
    if not rows:
        return "; ".join(notes)
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = [str(row.get(name, row.get("error", "") if name == columns[3] else "")) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*notes, *lines])
