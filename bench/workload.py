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
    fill(learner, task)
    return learner


def fill(learner: Learner, task: Task) -> None:
    """Fills its ring."""
    rng = np.random.default_rng(learner.config.run.seed)
    for _ in range(4 * learner.config.replay.batch_length):
        add_record(learner, task, rng)
    wait_for(learner.device)  # records come by the default stream


def add_record(learner: Learner, task: Task, rng: np.random.Generator) -> None:
    """One record of every environment."""
    dims = learner.config.model.dims()
    if task == "image":
        obs: dict[str, np.ndarray] = {"image": rng.integers(0, 256, (ENVS, 64, 64, 3), np.uint8)}
    else:
        obs = {"vector": rng.standard_normal((ENVS, 24), np.float32)}
    first, nothing = rng.random(ENVS) < RESETS, np.zeros(ENVS, bool)
    learner.replay.add(
        obs, rng.standard_normal(ENVS, np.float32), first, nothing, nothing,
        {"action": rng.standard_normal((ENVS, 6), np.float32)},
        rng.standard_normal((ENVS, dims.deter), np.float32), rng.integers(0, dims.classes, (ENVS, dims.stoch)),
    )  # fmt: skip


def parameters(learner: Learner) -> int:
    """Trained parameters: without the slow critic."""
    return sum(param.numel() for param in learner.optimizer.params)


def run_updates(learner: Learner, updates: int) -> None:
    """Makes updates, each with a plan of its own, and waits for them."""
    for _ in range(updates):
        learner.launch(1)
    learner.drain()
