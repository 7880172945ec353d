"""A learner with a filled replay ring: what an update costs, from the plan to the write-back."""

from typing import Any, Literal

import numpy as np

from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.learner import Learner
from fastdreamer.spaces import Space, Spaces
from fastdreamer.streams import wait_for

Task = Literal["vector", "image"]
OBS: dict[Task, Spaces] = {
    "vector": {"vector": Space("vector", (24,))},
    "image": {"image": Space("image", (64, 64, 3))},
}
ACT: Spaces = {"action": Space("vector", (6,), low=(-1.0,) * 6, high=(1.0,) * 6)}
ENVS, BATCH, LENGTH, RESETS = 16, 16, 64, 0.02


def make_config(
    model: ModelConfig, batch: int = BATCH, length: int = LENGTH, horizon: int = 15, **run: Any
) -> Config:  # fmt: skip
    """A model on 16 environments, with a ring of four windows of each; run: fields of `RunConfig`."""
    return Config(
        preset="bench",
        env=EnvConfig(id="random", num_envs=ENVS),
        model=model,
        loss=LossConfig(horizon=horizon),
        replay=ReplayConfig(capacity=ENVS * 4 * length, batch_size=batch, batch_length=length),
        run=RunConfig(**run),
    )


def make_learner(config: Config, task: Task) -> Learner:
    """A learner whose ring is full of random records, an episode's beginning among fifty."""
    learner = Learner(config, OBS[task], ACT)
    fill(learner, 4 * config.replay.batch_length)
    return learner


def fill(learner: Learner, records: int) -> None:
    """Adds random records, as many to every environment."""
    rng = np.random.default_rng(learner.config.run.seed)
    for _ in range(records):
        add_record(learner, rng)
    wait_for(learner.device)  # records come by the default stream


def add_record(learner: Learner, rng: np.random.Generator) -> None:
    """One record of every environment, as the learner's spaces have it."""
    (obs, act), dims, rows = learner.spaces, learner.config.model.dims(), learner.config.env.num_envs
    first, nothing = rng.random(rows) < RESETS, np.zeros(rows, bool)
    learner.replay.add(
        {key: _random(space, rows, rng) for key, space in obs.items()},
        rng.standard_normal(rows, np.float32), first, nothing, nothing,
        {key: _random(space, rows, rng) for key, space in act.items()},
        rng.standard_normal((rows, dims.deter), np.float32), rng.integers(0, dims.classes, (rows, dims.stoch)),
    )  # fmt: skip


def _random(space: Space, rows: int, rng: np.random.Generator) -> np.ndarray:
    shape = (rows, *space.shape)
    match space.kind:
        case "image":
            return rng.integers(0, 256, shape, np.uint8)
        case "discrete":
            return rng.integers(0, space.classes, shape, np.int32)
        case "vector":
            return rng.standard_normal(shape, np.float32)


def parameters(learner: Learner) -> int:
    """Trained parameters: without the slow critic."""
    return sum(param.numel() for param in learner.optimizer.params)


def run_updates(learner: Learner, updates: int) -> None:
    """Makes updates, each with a plan of its own, and waits for them."""
    for _ in range(updates):
        learner.launch(1)
    learner.drain()
