"""A learner with a filled replay ring: what an update costs, from the plan to the write-back."""

from typing import Literal

import numpy as np
import torch

from fastdreamer.agent import Agent
from fastdreamer.config import LossConfig, ModelConfig, OptimConfig, Size
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.replay import Replay
from fastdreamer.spaces import Space, Spaces
from fastdreamer.steps import TrainStep

Task = Literal["vector", "image"]
OBS: dict[Task, Spaces] = {
    "vector": {"vector": Space("vector", (24,))},
    "image": {"image": Space("image", (64, 64, 3))},
}
ACT: Spaces = {"action": Space("vector", (6,), low=(-1.0,) * 6, high=(1.0,) * 6)}
ENVS, BATCH, LENGTH, RESETS = 16, 16, 64, 0.02


class Learner:
    """An agent of one of the official sizes, random records of 16 environments, updates of 16 x 64 and horizon 15."""

    def __init__(self, task: Task, size: Size, seed: int = 0) -> None:
        model, optim = ModelConfig(size=size), OptimConfig()
        self.agent = Agent(OBS[task], ACT, model, LossConfig(), torch.float32)
        self.agent.initialize(Noise(seed, Stream.INIT))
        self.optimizer = LaProp(
            self.agent.official_parameters(), optim.lr, optim.warmup, optim.agc, self.agent.slow_parameters()
        )
        self.train = TrainStep(self.agent, self.optimizer, seed)
        dims = model.dims()
        self.replay = Replay(
            OBS[task], ACT, deter=dims.deter, stoch=dims.stoch, num_envs=ENVS, capacity=ENVS * 4 * LENGTH,
            batch_size=BATCH, batch_length=LENGTH, seed=seed,
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        for _ in range(4 * LENGTH):
            self._add_record(task, dims.deter, dims.stoch, dims.classes, rng)

    @property
    def parameters(self) -> int:
        """Trained parameters: without the slow critic."""
        return sum(param.numel() for param in self.optimizer.params)

    def update(self) -> None:
        """One update, as the training loop makes it."""
        plan = self.replay.plan()
        states, _ = self.train(self.replay.gather(plan))
        self.replay.write_back(plan, *states)

    def _add_record(self, task: Task, deter: int, stoch: int, classes: int, rng: np.random.Generator) -> None:
        if task == "image":
            obs: dict[str, np.ndarray] = {"image": rng.integers(0, 256, (ENVS, 64, 64, 3), np.uint8)}
        else:
            obs = {"vector": rng.standard_normal((ENVS, 24), np.float32)}
        first = rng.random(ENVS) < RESETS
        nothing = np.zeros(ENVS, bool)
        self.replay.add(
            obs, rng.standard_normal(ENVS, np.float32), first, nothing, nothing,
            {"action": rng.standard_normal((ENVS, 6), np.float32)},
            rng.standard_normal((ENVS, deter), np.float32), rng.integers(0, classes, (ENVS, stoch)),
        )  # fmt: skip
