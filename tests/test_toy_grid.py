"""Whole runs against whole runs: the official code's five seeds on a small grid, and three of ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdreamer.config import Config, EnvConfig, ModelConfig, OptimConfig, ReplayConfig, RunConfig
from fastdreamer.loop import Training

SEEDS = 3
STEPS, INTERVAL = 8000, 1000
LOSSES = {
    "loss/vector": "loss/rec/vector",
    **{name: name for name in ("loss/con", "loss/dyn", "loss/rep", "loss/rew", "loss/value", "loss/repval")},
}
"""The official name of a loss -> ours."""
Curves = dict[str, list[float]]


def grid_config(overrides: dict[str, Any], seed: int) -> Config:
    rssm = overrides[".*\\.rssm"]
    return Config(
        preset="toy_grid",
        env=EnvConfig(id="toy_grid:ToyGrid", num_envs=overrides["run.envs"]),
        model=ModelConfig(size="size1m", units=overrides[".*\\.units"], depth=overrides[".*\\.depth"], **rssm),
        optim=OptimConfig(lr=overrides["agent.opt.lr"], warmup=overrides["agent.opt.warmup"]),
        replay=ReplayConfig(
            capacity=int(overrides["replay.size"]),
            batch_size=overrides["batch_size"],
            batch_length=overrides["batch_length"],
        ),
        run=RunConfig(steps=STEPS, seed=seed, train_ratio=overrides["run.train_ratio"], device="cpu"),
    )


def train(config: Config, updates_per_point: int) -> Curves:
    """Mean score per 1,000 steps, and the losses of the last full interval of updates."""
    training = Training(config, None)
    scores: list[list[float]] = [[] for _ in range(STEPS // INTERVAL)]
    final: dict[str, float] = {}
    while training.env_steps < STEPS:
        ended = training.advance()
        scores[min((training.env_steps - 1) // INTERVAL, len(scores) - 1)] += ended
        if training.progress.updates and training.progress.updates % updates_per_point == 0:
            final = training.learner.metrics.flush()
    training.env.close()
    return {"scores": [float(np.mean(part)) for part in scores], **{key: [final[LOSSES[key]]] for key in LOSSES}}


def official(run: dict[str, Any]) -> Curves:
    parts: list[list[float]] = [[] for _ in range(STEPS // INTERVAL)]
    for step, score, _ in run["scores"]:
        parts[min((step - 1) // INTERVAL, len(parts) - 1)].append(score)  # a few end after step 8,000
    return {"scores": [float(np.mean(part)) for part in parts], **{key: [run["metrics"][key][-1]] for key in LOSSES}}


def outside(run: Curves, others: list[Curves]) -> list[str]:
    """The points of a run that lie outside of the range of others, widened on both sides by its own width."""
    points = []
    for key, values in run.items():
        low, high = (limit([other[key] for other in others], axis=0) for limit in (np.min, np.max))
        for at, value in enumerate(values):
            width = high[at] - low[at]
            if not low[at] - width <= value <= high[at] + width:
                points.append(f"{key}[{at}] {value:.4f} not in {low[at]:.4f}..{high[at]:.4f} widened")
    return points


def mean(runs: list[Curves]) -> Curves:
    return {key: np.mean([run[key] for run in runs], axis=0).tolist() for key in runs[0]}


@pytest.mark.slow
def test_curves_lie_in_the_official_band(golden_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of our seeds does at every point; of single seeds no more points are outside than of the official ones.

    That each seed were inside at each point would ask for more than the official code does: one of its five seeds
    leaves the band of the other four, at four points.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.set_num_threads(1)
    curves = json.loads((golden_folder / "toy_grid_curves.json").read_text())
    theirs = [official(run) for run in curves["runs"]]
    per_point = curves["runs"][0]["updates_per_point"]
    ours = [train(grid_config(curves["overrides"], seed), per_point) for seed in range(SEEDS)]
    for seed, run in enumerate(ours):
        print(f"seed {seed}: {run}, outside: {outside(run, theirs)}")
    assert not outside(mean(ours), theirs)
    strays = [len(outside(run, theirs)) for run in ours]
    official_strays = [len(outside(run, theirs[:i] + theirs[i + 1 :])) for i, run in enumerate(theirs)]
    assert np.mean(strays) <= np.mean(official_strays), (strays, official_strays)
