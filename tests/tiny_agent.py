"""A small agent with one action key of every kind, all its parameters random, and a window for it to learn from."""

from typing import Any

import numpy as np
import torch

from fastdreamer.agent import Agent
from fastdreamer.batch import Batch, State, Window
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.replay import Replay
from fastdreamer.spaces import Space, Spaces

OBS: Spaces = {"speed": Space("vector", (3,)), "room": Space("discrete", (), 4)}
CAMERA = Space("image", (48, 48, 3))
ACT: Spaces = {"turn": Space("vector", (2,)), "jump": Space("discrete", (2,), 3)}
ROWS, TIME, HORIZON, GROUPS, CLASSES, DETER = 3, 5, 4, 3, 4, 8


def make_agent(
    unimix: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float32, obs: Spaces = OBS, **model_options: Any
) -> Agent:  # fmt: skip
    """Every parameter is drawn, those that begin at zero too, so that nothing is left out of a comparison."""
    model = ModelConfig(
        size="size1m", deter=DETER, hidden=6, units=6, stoch=GROUPS, classes=CLASSES, blocks=2, unimix=unimix,
        depth=2, **model_options,
    )  # fmt: skip
    agent = Agent(obs, ACT, model, LossConfig(horizon=HORIZON), dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return agent


def make_window(seed: int = 0) -> Window:
    """A start state and TIME records of ROWS environments; an episode begins in the middle of one."""
    rng = torch.Generator().manual_seed(seed)

    def classes(shape: tuple[int, ...], count: int) -> torch.Tensor:
        return torch.randint(count, (ROWS, TIME, *shape), generator=rng, dtype=torch.int32)

    obs = {"speed": torch.randn(ROWS, TIME, 3, generator=rng), "room": classes((), 4)}
    flags = torch.zeros(3, ROWS, TIME, dtype=torch.bool)
    flags[0, 1, 2] = flags[1, 1, 1] = flags[2, 1, 1] = True
    batch = Batch(obs, torch.randn(ROWS, TIME, generator=rng), *flags)
    stoch = torch.randint(CLASSES, (ROWS, GROUPS), generator=rng, dtype=torch.int32)
    start = State(torch.randn(ROWS, DETER, generator=rng), stoch)
    action = {"turn": torch.randn(ROWS, TIME, 2, generator=rng), "jump": classes((2,), 3)}
    return Window(batch, start, action)


def make_replay(seed: int = 0, dtype: torch.dtype = torch.float32, obs: Spaces = OBS, **options: Any) -> Replay:
    """A ring of ROWS environments with random records; every one of its windows holds a beginning."""
    replay = Replay(
        obs, ACT, deter=DETER, stoch=GROUPS, num_envs=ROWS, capacity=50, batch_size=ROWS, batch_length=TIME,
        seed=seed, dtype=dtype, **options,
    )  # fmt: skip
    fill(replay, seed)
    return replay


def fill(replay: Replay, seed: int, records: int = 3 * TIME) -> None:
    """Adds random records."""
    rng = np.random.default_rng(seed)
    for t in range(records):
        obs = {"speed": rng.standard_normal((ROWS, 3), np.float32), "room": rng.integers(4, size=ROWS, dtype=np.int32)}
        if "obs/camera" in replay.records:
            obs["camera"] = rng.integers(256, size=(ROWS, *CAMERA.shape), dtype=np.uint8)
        first = np.array([t % TIME == row for row in range(ROWS)])
        last = np.array([(t + 1) % TIME == row for row in range(ROWS)])
        jump = rng.integers(3, size=(ROWS, 2), dtype=np.int32)
        action = {"turn": rng.standard_normal((ROWS, 2), np.float32), "jump": jump}
        replay.add(
            obs, rng.standard_normal(ROWS, np.float32), first, last, last, action,
            rng.standard_normal((ROWS, DETER), np.float32), rng.integers(CLASSES, size=(ROWS, GROUPS)),
        )  # fmt: skip
