"""A small agent with one action key of every kind, all its parameters random, and a window for it to learn from."""

import torch

from fastdreamer.agent import Agent
from fastdreamer.batch import Batch, State, Window
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.spaces import Space, Spaces

OBS: Spaces = {"speed": Space("vector", (3,)), "room": Space("discrete", (), 4)}
ACT: Spaces = {"turn": Space("vector", (2,)), "jump": Space("discrete", (2,), 3)}
ROWS, TIME, HORIZON, GROUPS, CLASSES, DETER = 3, 5, 4, 3, 4, 8


def make_agent(unimix: float = 0.3, seed: int = 0) -> Agent:
    """Every parameter is drawn, those that begin at zero too, so that nothing is left out of a comparison."""
    model = ModelConfig(
        size="size1m", deter=DETER, hidden=6, units=6, stoch=GROUPS, classes=CLASSES, blocks=2, unimix=unimix
    )
    agent = Agent(OBS, ACT, model, LossConfig(horizon=HORIZON), torch.float32)
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
