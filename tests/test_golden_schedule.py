"""When the official code trains: the train ratio, and the number of updates and parameters of its toy runs."""

import json
from typing import Any

import torch
from golden_arrays import EXACT, Golden

from fastdreamer.agent import Agent
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.schedule import TrainRatio
from fastdreamer.spaces import Space

RATIOS, TOY = "train_ratio.json", "toy_grid_curves.json"
BATCH_SIZE, BATCH_LENGTH = 16, 64
TOY_PARAMETERS, TOY_STEPS = 99_238, 8_000
"""From the README of the arrays: what the overrides amount to."""
STEPS_PER_CALL = 10
"""The official driver makes at least so many steps before it looks at its counter again."""


def test_updates_at_every_step(golden: Golden) -> None:
    for case in json.loads((golden.folder / RATIOS).read_text()):
        trace: dict[str, Any] = golden.read_json(RATIOS, case)
        schedule = TrainRatio(trace["ratio"] * BATCH_SIZE * BATCH_LENGTH, BATCH_SIZE, BATCH_LENGTH)
        updates = [schedule.due(step) for step in trace["steps"]]
        golden.compare(f"{RATIOS}:{case}", torch.tensor(updates), torch.tensor(trace["repeats"]), EXACT)


def toy_config(overrides: dict[str, Any]) -> Config:
    """The product's config of the official toy runs."""
    sizes = overrides[".*\\.rssm"] | {"units": overrides[".*\\.units"], "depth": overrides[".*\\.depth"]}
    return Config(
        preset="toy",
        env=EnvConfig(id="toy", num_envs=overrides["run.envs"]),
        model=ModelConfig(size="size1m", **sizes),
        replay=ReplayConfig(batch_size=overrides["batch_size"], batch_length=overrides["batch_length"]),
        run=RunConfig(steps=TOY_STEPS, train_ratio=overrides["run.train_ratio"]),
    )


def test_parameters_of_the_toy_agent(golden: Golden) -> None:
    config = toy_config(golden.read_json(TOY, "overrides"))
    obs, act = {"vector": Space("vector", (3,))}, {"action": Space("discrete", (), 4)}
    with torch.device("meta"):
        agent = Agent(obs, act, config.model, LossConfig(), torch.float32)
    count = sum(parameter.numel() for parameter in agent.official_parameters().values())
    golden.compare(f"{TOY}: parameters", torch.tensor(count), torch.tensor(TOY_PARAMETERS), EXACT)


def test_updates_of_the_toy_runs(golden: Golden) -> None:
    config = toy_config(golden.read_json(TOY, "overrides"))
    schedule = TrainRatio(config.run.train_ratio, config.replay.batch_size, config.replay.batch_length)
    per_call = -(-STEPS_PER_CALL // config.env.num_envs) * config.env.num_envs
    steps = -(-TOY_STEPS // per_call) * per_call
    updates = sum(schedule.due(step) for step in range(config.first_update, steps + 1))
    runs = golden.read_json(TOY, "runs")
    golden.compare(
        f"{TOY}: updates", torch.full((len(runs),), updates), torch.tensor([r["updates"] for r in runs]), EXACT
    )
