"""`python -m fastdreamer.ablate PRESET [--seeds N] [--steps N] [--out FOLDER]`: what parts of the algorithm are worth.

Trains the preset and, one at a time, each of VARIANTS that changes it, with every seed, as commands of their own. What
is done is not done again and what was cut short goes on, so the same command goes on after any interruption. Ends with
one page of all runs and a table of their returns.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdreamer import report
from fastdreamer.cli import Parser, fail, parse
from fastdreamer.presets import PRESETS

VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "no decoder loss": ("--loss.decoder=0",),
    "no uniform mix": ("--model.unimix=0", "--model.actor_unimix=0"),
    "horizon 5": ("--loss.horizon=5",),
    "horizon 15": ("--loss.horizon=15",),
    "horizon 30": ("--loss.horizon=30",),
    "normal heads": ("--model.heads=normal",),
    "no continue prediction": ("--loss.use_cont=false",),
    "no return normalisation": ("--loss.retnorm=false",),
    "free nats 0": ("--loss.free_nats=0",),
    "free nats 1": ("--loss.free_nats=1",),
    "free nats 3": ("--loss.free_nats=3",),
}


class Job(NamedTuple):
    """One run: its variant, folder, and flags beside the preset."""

    variant: str
    folder: Path
    flags: tuple[str, ...]


def main(argv: list[str]) -> int:
    """The exit code: 0, 2 after a mistake, or that of the run which ended with another."""
    parser = Parser("ablate", "Train a preset without, or with more or less of, each part of the algorithm.")
    parser.add_argument("preset", metavar="PRESET", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant, 3 by default")
    parser.add_argument("--steps", type=int, help="agent steps of each run, those of the preset by default")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="a folder for them")
    words = parser.parse_args(argv)
    if words.preset not in PRESETS:
        fail(f"PRESET must be one of {', '.join(PRESETS)}, got {words.preset!r}")
    if words.seeds < 1:
        fail(f"--seeds must be at least 1, got {words.seeds}")
    steps = words.steps or PRESETS[words.preset].run.steps
    jobs = list(planned(words.preset, words.seeds, steps, words.out))
    for number, job in enumerate(jobs, 1):
        print(f"{number} of {len(jobs)}: {job.variant}, {job.folder}", flush=True)
        if not (job.folder / "summary.json").exists() and (code := train(words.preset, job)):
            print(f"stopped; the same command goes on: python -m fastdreamer.ablate {' '.join(argv)}")
            return code
    print(table(jobs))
    return report.main([*(str(job.folder) for job in jobs), "--out", str(words.out / "report.html")])


def planned(preset: str, seeds: int, steps: int, out: Path) -> Iterator[Job]:
    """Every run, seed by seed. Variants that leave the preset as it is are the baseline, and left out."""
    base = parse([preset]).config
    for seed in range(seeds):
        for variant, flags in VARIANTS.items():
            if variant == "baseline" or parse([preset, *flags]).config != base:
                folder = out / f"{preset}-{variant.replace(' ', '-')}-{seed}"
                common = (
                    f"--run.seed={seed}",
                    f"--run.steps={steps}",
                    f"--run.dir={folder}",
                    "--run.solved=none",
                    "--run.videos=0",
                )
                yield Job(variant, folder, (*flags, *common))


def train(preset: str, job: Job) -> int:
    """Begins a run, or goes on with it where it has a checkpoint; its exit code."""
    begun = any((job.folder / "checkpoints").glob("step-*"))
    if job.folder.exists() and not begun:
        fail(f"{job.folder} exists but has no checkpoint: remove it, the run begins anew")
    words = ["--resume", str(job.folder)] if begun else [preset, *job.flags]
    return subprocess.run([sys.executable, "-m", "fastdreamer.train", *words], check=False).returncode


def table(jobs: list[Job]) -> str:
    """Per variant the mean return of the evaluations at the end, from the least to the most over seeds."""
    found: dict[str, list[float]] = {}
    for job in jobs:
        score = json.loads((job.folder / "summary.json").read_text())["eval_return"]
        found.setdefault(job.variant, []).append(float("nan") if score is None else float(score))
    lines = ["variant                   mean    least     most  seeds"]
    for variant, scores in found.items():
        lines.append(f"{variant:<24} {np.mean(scores):>6.1f} {min(scores):>8.1f} {max(scores):>8.1f}  {len(scores):>5}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
