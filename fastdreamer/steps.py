"""The two steps of the loop as it calls them: learn from a window, act on a record. Same meaning as the agent's.

Each owns the noise of its streams and moves data to the device of the agent and back.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer.agent import Agent
from fastdreamer.batch import Batch, State, Window
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp


class TrainStep:
    """One update: loss, gradients, optimizer, slow critic."""

    def __init__(self, agent: Agent, optimizer: LaProp, seed: int) -> None:
        self.agent, self.optimizer = agent, optimizer
        device = next(agent.parameters()).device
        observe, imagine = Noise(seed, Stream.OBSERVE, device=device), Noise(seed, Stream.IMAGINE, device=device)
        self.noise = observe, imagine, Noise(seed, Stream.ACTION, device=device)

    def __call__(self, window: Window) -> tuple[State, dict[str, Tensor]]:
        """Learns from a window of host tensors. Returns fresh states (B, T, ...) for the ring and 0-d metrics."""
        window = to_device(window, self.optimizer.step_count.device)
        batch, time = window.batch.reward.shape
        noise = self.agent.update_noise(*self.noise, batch, time)
        out = self.agent.loss(*window, noise)
        out.loss.backward()
        metrics = out.metrics | self.optimizer.step()
        return out.states, metrics


class ActStep:
    """The policy over `rows` environments; carries their world states and last actions."""

    def __init__(self, agent: Agent, rows: int, seed: int, streams: tuple[Stream, Stream]) -> None:
        self.agent = agent
        self.device = next(agent.parameters()).device
        self.noise = Noise(seed, streams[0], device=self.device), Noise(seed, streams[1], device=self.device)
        self.state = agent.initial(rows)

    def __call__(
        self, obs: Mapping[str, NDArray[np.generic]], is_first: NDArray[np.bool_]
    ) -> tuple[dict[str, NDArray[np.generic]], State]:
        """Actions (N, *shape) per key for the environments, and the states (N, ...) after the observations (N, ...)."""
        noise = self.agent.act_noise(*self.noise, len(is_first))
        tensors = {key: torch.from_numpy(value).to(self.device) for key, value in obs.items()}
        first = torch.from_numpy(is_first).to(self.device)
        action, self.state = self.agent.act(tensors, first, self.state, noise)
        return {key: value.cpu().numpy() for key, value in action.items()}, self.state.world


def to_device(window: Window, device: torch.device) -> Window:
    """The same window on the device of the learner."""
    batch, start, action = window

    def move(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(device) for key, value in values.items()}

    flags = [value.to(device) for value in batch[1:]]
    return Window(Batch(move(batch.obs), *flags), State(*(value.to(device) for value in start)), move(action))
