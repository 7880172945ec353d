"""One step of the loop: what is stored of it, and what an update puts back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer.batch import State, Window
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.loop import Training

ENVIRONMENTS, LIMIT, LENGTH = 3, 5, 4

Values = dict[str, NDArray[np.generic]]


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """CartPole whose episodes are cut after LIMIT actions."""
    config = Config(
        preset="tiny",
        env=EnvConfig(id="CartPole-v1", num_envs=ENVIRONMENTS, options={"max_episode_steps": LIMIT}),
        model=ModelConfig(size="size1m", deter=8, hidden=4, units=4, stoch=3, classes=4, blocks=2),
        loss=LossConfig(horizon=2),
        replay=ReplayConfig(batch_size=2, batch_length=LENGTH),
        run=RunConfig(dir=str(tmp_path), steps=400, train_ratio=8, device="cpu", eval_episodes=0),
    )
    made = Training(config, None)
    yield made
    made.env.close()


def test_what_a_step_stores(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record, the action (none at the end of an episode) and the state of the policy, of all environments."""
    taken: list[tuple[Values, NDArray[np.bool_], State]] = []
    act = training.act

    def spy(obs: Values, is_first: NDArray[np.bool_]) -> tuple[Values, State]:
        action, state = act(obs, is_first)
        action["action"] = np.ones_like(action["action"])
        taken.append((obs, is_first, state))
        return action, state

    monkeypatch.setattr(training, "act", spy)
    for t in range(2 * LIMIT):
        training.advance()
        ring, latents = training.replay.records, training.replay.latents
        obs, is_first, state = taken[t]
        for key, value in obs.items():
            np.testing.assert_array_equal(ring[f"obs/{key}"][:, t], value)
        assert ring["is_first"][:, t].tolist() == is_first.tolist() == [t % (LIMIT + 1) == 0] * ENVIRONMENTS
        assert ring["is_last"][:, t].tolist() == [t % (LIMIT + 1) == LIMIT] * ENVIRONMENTS
        assert ring["action/action"][:, t].tolist() == [0 if t % (LIMIT + 1) == LIMIT else 1] * ENVIRONMENTS
        assert ring["reward"][:, t].tolist() == [0.0 if t % (LIMIT + 1) == 0 else 1.0] * ENVIRONMENTS
        if training.progress.updates == 0:
            assert torch.equal(latents["deter"][:, t], state.deter)
            assert torch.equal(latents["stoch"][:, t].int(), state.stoch.int())
    assert training.env_steps == 2 * LIMIT * ENVIRONMENTS


def test_an_update_writes_fresh_states_back(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    while training.replay.windows < 2 * LENGTH:
        training.advance()
    plan = training.replay.plan()
    trained = torch.zeros(ENVIRONMENTS, training.replay.rows, dtype=torch.bool)
    for env, start in zip(plan.env, plan.start, strict=True):
        trained[env, start + 1 : start + 1 + LENGTH] = True

    def train(window: Window) -> tuple[State, dict[str, Tensor]]:
        shape = window.batch.reward.shape
        return State(torch.full((*shape, 8), 7.0), torch.full((*shape, 3), 3)), {}

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training.replay, "plan", lambda: plan)
    for ring in training.replay.latents.values():
        ring.zero_()
    training.update()
    assert torch.equal(training.replay.latents["deter"], torch.where(trained, 7.0, 0.0)[..., None].expand(-1, -1, 8))
    assert torch.equal(training.replay.latents["stoch"], trained[..., None].expand(-1, -1, 3) * torch.tensor(3).byte())
