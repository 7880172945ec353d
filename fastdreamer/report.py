"""`python -m fastdreamer.report RUN [RUN ...] [--out report.html]`: one page of every metric, also while runs go on.

The page needs no network and no server. Runs that differ in their seed alone are one line with a band; runs of a task
for which the official code's curve is known show it too. The same numbers stand in a CSV file beside the page.
"""

import base64
import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fastdreamer.cli import Parser, fail, leaves
from fastdreamer.config import Config
from fastdreamer.filming import kept_folders
from fastdreamer.metrics import Record, read_jsonl
from fastdreamer.trained import read_config

POINTS = 200
"""Of a curve: each is the mean of what a run wrote in that share of its steps."""
EPISODE = "episode/return"
SKIPPED = {"step", "frame", "elapsed", "update"}
"""What a record is placed by."""
OFFICIAL = {"atari": "atari57", "atari100k": "atari100k", "dmc_vision": "dmc_vision", "procgen": "procgen"}
"""Preset -> benchmark of official_curves.csv. Their dmc_proprio is of the algorithm of 2023, and left out."""
HERE = Path(__file__).parent
EMBEDDED = 1_500_000
"""Bytes of videos in a page, which makes them a third longer."""

Values = NDArray[np.float64]


class Run(NamedTuple):
    """One run folder: metric -> (steps, values), each (n,), in the order they were written.

    machines   what it was started on, and where it went on
    films      of its videos folder, the newest first
    """

    path: Path
    config: Config
    metrics: dict[str, tuple[Values, Values]]
    frames_per_step: float
    summary: dict[str, object] | None
    machines: list[Record]
    films: list[Path]


def main(argv: list[str]) -> int:
    """The exit code: 0, or 2 where a run cannot be read or nothing be written."""
    parser = Parser("report", "Write one HTML page, and a CSV file, of every metric of some runs.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page, report.html by default")
    words = parser.parse_args(argv)
    try:
        import plotly.offline
    except ModuleNotFoundError:
        fail("the report needs the package plotly: pip install plotly")
    try:
        groups = grouped([read_run(path) for path in words.runs])
        page = make_page(groups, plotly.offline.get_plotlyjs(), words.out.parent)
        table = words.out.with_suffix(".csv")
        words.out.write_text(page, encoding="utf-8")
        write_csv(table, groups)
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"--out {words.out}: cannot be written: {error.strerror}")
    print(f"{words.out} ({len(page) / 1e6:.1f} MB), {table}: runs: {len(words.runs)}, open the page in a browser")
    return 0


def read_run(path: Path) -> Run:
    """What a run folder holds by now. Raises ValueError, one line, where it is none."""
    config, file = read_config(path), path / "metrics.jsonl"
    try:
        records = read_jsonl(file)
        machines = read_jsonl(path / "machine.jsonl") if (path / "machine.jsonl").exists() else []
        text = (path / "summary.json").read_text() if (path / "summary.json").exists() else "null"
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        summary = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path / 'summary.json'}: {error}") from error
    ratios = [_number(record.get("frame")) / _number(record.get("step")) for record in records if record.get("frame")]
    ratio = float(ratios[-1]) if ratios and np.isfinite(ratios[-1]) else 1.0
    films = [file for folder in reversed(kept_folders(path / "videos")) for file in sorted(folder.glob("*"))]
    summary = summary if isinstance(summary, dict) else None
    return Run(path, config, series(records), ratio, summary, machines, films)


def series(records: Sequence[Record]) -> dict[str, tuple[Values, Values]]:
    """Metric -> steps and values. Episodes have records of their own: an interval's mean of them is left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        step = _number(record.get("step"))
        for name, value in record.items():
            number = _number(value)
            mean_of_episodes = name == EPISODE and "update" in record
            if np.isfinite(step) and np.isfinite(number) and name not in SKIPPED and not mean_of_episodes:
                found.setdefault(name, []).append((step, number))
        if "elapsed" in record and np.isfinite(step):
            found.setdefault("minutes", []).append((step, _number(record["elapsed"]) / 60))
    tables = {name: np.array(points, np.float64).T for name, points in found.items()}
    return {name: (table[0], table[1]) for name, table in tables.items()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Label -> its runs, whose configs differ in seed and folder alone: the preset, and where most are otherwise."""
    keys = [_without_seed(run.config) for run in runs]
    tables = [{name: value for name, value in leaves(json.loads(key))} for key in keys]
    names = sorted({name for table in tables for name in table} - {"preset"})
    usual = {name: Counter(repr(table.get(name)) for table in tables).most_common(1)[0][0] for name in names}
    groups: dict[str, list[Run]] = {}
    for run, table in zip(runs, tables, strict=True):
        apart = (f"{name} {table.get(name)}" for name in names if repr(table.get(name)) != usual[name])
        label = ", ".join([run.config.preset, *apart])
        groups.setdefault(label, []).append(run)
    return groups


def _without_seed(config: Config) -> str:
    return json.dumps(replace(config, run=replace(config.run, seed=0, dir="")).to_json(), sort_keys=True)


def binned(steps: Values, values: Values, edges: Values) -> Values:
    """The mean of the values in each interval (low, high] of `edges`; NaN where there is none."""
    where = np.searchsorted(edges, steps) - 1
    inside = (where >= 0) & (where < len(edges) - 1)
    counts = np.bincount(where[inside], minlength=len(edges) - 1)
    sums = np.bincount(where[inside], values[inside], minlength=len(edges) - 1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def curves(runs: Sequence[Run]) -> dict[str, object]:
    """A group as the page takes it: the steps of its points, and each run's values there, null where there are none."""
    last = max((float(steps[-1]) for run in runs for steps, _ in run.metrics.values()), default=1.0)
    edges = np.linspace(0, last, POINTS + 1)
    names = sorted({name for run in runs for name in run.metrics} - {"minutes"})
    return {
        "step": _plain(edges[1:]),
        "minutes": [_minutes(run, edges[1:]) for run in runs],
        "metrics": {
            name: [_plain(binned(*run.metrics[name], edges)) if name in run.metrics else None for run in runs]
            for name in names
        },
    }


def _minutes(run: Run, steps: Values) -> list[float | None]:
    if "minutes" not in run.metrics:
        return _plain(np.full(len(steps), np.nan))
    known, minutes = run.metrics["minutes"]
    return _plain(np.interp(steps, [0, *known], [0, *minutes]))


def _plain(values: Values) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


def official_curve(run: Run) -> dict[str, object] | None:
    """The official code's return on a run's task over agent steps; None where there is none for it."""
    benchmark, task = OFFICIAL.get(run.config.preset), task_of(run.config.env.id)
    with (HERE / "official_curves.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["benchmark"], row["task"]) == (benchmark, task)]
    if not rows:
        return None
    # bins of frames where a step repeats its action, of which the right end is taken
    repeat = run.frames_per_step
    mean, std = (np.array([float(row[name]) for row in rows]) for name in ("mean", "std"))
    return {
        "label": f"official code, {benchmark} {task}, {rows[0]['seeds']} seeds (April 2024 code)",
        "step": _plain(np.array([float(row["bin_end"]) for row in rows]) / repeat),
        "mean": _plain(mean),
        "low": _plain(mean - std),
        "high": _plain(mean + std),
    }


def task_of(id: str) -> str:
    """An EnvPool id as the official results name it: WalkerWalk-v1 is walker_walk, CoinrunHard-v0 coinrun."""
    name = re.sub(r"(Hard)?-v\d+$", "", id)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def shown_films(runs: Sequence[Run], folder: Path) -> dict[Path, list[dict[str, object]]]:
    """Run -> its films, the newest first, as a page in `folder` shows them.

    They are in the page as long as EMBEDDED bytes last, the newest of every run before others; the rest are played from
    the run folders. A dream of numbers is a page of its own.
    """
    left, shown = EMBEDDED, dict[Path, str]()
    for place in range(max((len(run.films) for run in runs), default=0)):
        for path in (run.films[place] for run in runs if place < len(run.films)):
            with suppress(FileNotFoundError):  # a run that goes on has just dropped it
                size = path.stat().st_size
                if path.suffix == ".mp4" and size <= left:
                    left -= size
                    shown[path] = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
                else:
                    shown[path] = quote(os.path.relpath(path, folder))
    return {
        run.path: [
            {"step": path.parent.name, "name": path.name, "source": shown[path]} for path in run.films if path in shown
        ]
        for run in runs
    }


def make_page(groups: Mapping[str, Sequence[Run]], plotly: str, folder: Path) -> str:
    """The page for a folder: the template with plotly and the data in it."""
    films = shown_films([run for runs in groups.values() for run in runs], folder)
    found = {label: curves(runs) for label, runs in groups.items()}
    official = {}
    for runs in groups.values():
        if (curve := official_curve(runs[0])) is not None:
            official[str(curve["label"])] = curve
    tables = [
        {
            "run": str(run.path),
            "group": label,
            "seed": run.config.run.seed,
            "state": "done" if run.summary is not None else "not done",
            "config": run.config.to_json(),
            "summary": run.summary,
            "machines": run.machines,
            "films": films[run.path],
        }
        for label, runs in groups.items()
        for run in runs
    ]
    data = json.dumps({"groups": found, "official": list(official.values()), "runs": tables}, separators=(",", ":"))
    template = (HERE / "report_page.html").read_text(encoding="utf-8")
    before, rest = template.split("/*PLOTLY*/")
    between, after = rest.split("/*DATA*/")
    # no text of a run may end the script that it stands in
    return "".join([before, plotly, between, data.replace("<", "\\u003c"), after])


def write_csv(path: Path, groups: Mapping[str, Sequence[Run]]) -> None:
    """Every value of every run as it was written: run, group, seed, metric, step, value."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "group", "seed", "metric", "step", "value"])
        for label, runs in groups.items():
            for run in runs:
                for name, (steps, values) in run.metrics.items():
                    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                        writer.writerow([run.path, label, run.config.run.seed, name, int(step), value])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
