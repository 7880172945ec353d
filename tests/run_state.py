"""All that makes up a run at a moment, to compare two of them bit by bit."""

import numpy as np
import torch
from torch import Tensor

from fastdreamer.loop import Training


def everything(training: Training) -> dict[str, Tensor]:
    """All that makes up a run at this moment, by name."""
    learner, replay = training.learner, training.learner.replay
    learner.drain()
    tensors = {"optim/" + name: value for name, value in learner.optimizer.state().items()}
    for group, named in learner._tensors().items():
        tensors |= {f"{group}/{name}": value for name, value in named.items()}
    rows = np.arange(replay.window_range()[0] // replay.num_envs, replay.length) % replay.rows
    tensors |= {f"replay/{key}": ring[:, rows] for key, ring in (replay.records | replay.latents).items()}
    tensors |= {f"noise/{name}": noise.counter for name, noise in learner._noise().items()}
    envs = training.env.save()
    facts = [training.ratio.state_dict(), training.episodes.state_dict(), envs.facts, training.progress.scores]
    counters = [replay.length, replay.served, int(replay.noise.counter), learner.lag, training.progress.episodes]
    tensors |= {f"envs/{key}": torch.from_numpy(value) for key, value in envs.actions.items()}
    tensors["facts"] = torch.tensor(list(f"{facts} {counters}".encode()))
    return {name: value.detach().clone() for name, value in tensors.items()}


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    names = sorted(ours.keys() | theirs.keys())
    return [name for name in names if name not in ours or name not in theirs or not same(ours[name], theirs[name])]


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
