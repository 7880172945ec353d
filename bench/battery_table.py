"""battery.md: what the battery found, for people."""

from collections.abc import Sequence
from typing import Any

COLUMNS: dict[str, tuple[str, ...]] = {
    "updates": (
        "part", "task", "dtype", "ms_p50", "ms_p99", "graph_nodes", "host_syncs", "peak_allocated_gb",
        "peak_reserved_gb", "gflop", "mfu", "capture_s", "first_update_s", "params",
    ),
    "loop": (
        "part", "env", "envpool", "schedule", "agent_steps_per_s", "frames_per_s", "updates_per_s", "lag_min",
        "lag_mean", "lag_max", "ratio_wanted", "ratio_realised",
    ),
    "peers": ("part", "params", "startup_s", "ours_ms", "theirs_ms", "theirs_over_ours"),
    "tests": ("part", "passed", "failures", "errors", "skipped"),
    "ops": ("op", "backend", "us", "ratio"),
}  # fmt: skip
TITLES = {
    "updates": "Updates: 16 x 64, horizon 15",
    "loop": "The loop",
    "peers": "Side by side: median, least, most",
    "tests": "Tests",
    "ops": "Ops",
}


def table(found: dict[str, Any]) -> str:
    """The whole result in Markdown."""
    machine = found["machine"]
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [f"# {machine['hardware']}{' (dry run)' if found['dry_run'] else ''}", facts, f"`{found['command']}`"]
    for name, title in TITLES.items():
        parts += [f"## {title}", _section(found[name], COLUMNS[name])]
    return "\n\n".join(parts) + "\n"


def _section(found: dict[str, Any], columns: Sequence[str]) -> str:
    """A table of the parts that worked; under it, a line each for the others."""
    rows = [each for row in found["rows"] for each in row.get("ops", [row])]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows if columns[1] in row]
    notes = [found["note"]] if "note" in found else []
    notes += [f"{row['part']}: {row['error']}" for row in found["rows"] if "error" in row]
    if "left_out" in found:
        notes.append(f"not yet run: {', '.join(found['left_out'])}; call again")
    return "\n\n".join(["\n".join(lines)] * (len(lines) > 2) + notes)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(f"{each:,}" for each in value)
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )
