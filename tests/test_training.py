"""One step of the loop: what is stored of it, and what an update puts back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdreamer.agent import ActNoise, ActState, LossOutput
from fastdreamer.batch import Batch, State
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.loop import Training

ENVIRONMENTS, LIMIT, LENGTH = 3, 5, 4


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
    taken: list[tuple[dict[str, Tensor], Tensor, State]] = []
    policy, replay = training.learner.policy.agent, training.learner.replay
    act = policy.act

    def spy(
        obs: dict[str, Tensor], is_first: Tensor, state: ActState, noise: ActNoise
    ) -> tuple[dict[str, Tensor], ActState]:
        action, after = act(obs, is_first, state, noise)
        action = {key: torch.ones_like(value) for key, value in action.items()}
        seen = {key: value.clone() for key, value in obs.items()}
        taken.append((seen, is_first.clone(), State(*(value.clone() for value in after.world))))
        return action, after

    monkeypatch.setattr(policy, "act", spy)
    for t in range(2 * LIMIT):
        training.advance()
        ring, latents = replay.records, replay.latents
        obs, is_first, state = taken[t]
        for key, value in obs.items():
            assert torch.equal(ring[f"obs/{key}"][:, t], value)
        assert ring["is_first"][:, t].tolist() == is_first.tolist() == [t % (LIMIT + 1) == 0] * ENVIRONMENTS
        assert ring["is_last"][:, t].tolist() == [t % (LIMIT + 1) == LIMIT] * ENVIRONMENTS
        assert ring["action/action"][:, t].tolist() == [0 if t % (LIMIT + 1) == LIMIT else 1] * ENVIRONMENTS
        assert ring["reward"][:, t].tolist() == [0.0 if t % (LIMIT + 1) == 0 else 1.0] * ENVIRONMENTS
        if training.progress.updates == 0:
            assert torch.equal(latents["deter"][:, t], state.deter)
            assert torch.equal(latents["stoch"][:, t].int(), state.stoch.int())
    assert training.env_steps == 2 * LIMIT * ENVIRONMENTS


def test_an_update_writes_fresh_states_back(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, replay = training.learner, training.learner.replay
    while replay.windows < 2 * LENGTH:
        training.advance()
    plan = replay.plan()
    trained = torch.zeros(ENVIRONMENTS, replay.rows, dtype=torch.bool)
    for env, start in zip(plan.env, plan.start, strict=True):
        trained[env, start + 1 : start + 1 + LENGTH] = True

    def loss(batch: Batch, *_: object) -> LossOutput:
        shape = batch.reward.shape
        states = State(torch.full((*shape, 8), 7.0), torch.full((*shape, 3), 3))
        total = torch.stack([param.sum() for param in learner.optimizer.params]).sum()
        return LossOutput(0 * total, states, {})

    monkeypatch.setattr(learner.agent, "loss", loss)
    monkeypatch.setattr(replay, "plan", lambda: plan)
    for ring in replay.latents.values():
        ring.zero_()
    training.update(1)
    assert torch.equal(replay.latents["deter"], torch.where(trained, 7.0, 0.0)[..., None].expand(-1, -1, 8))
    assert torch.equal(replay.latents["stoch"], trained[..., None].expand(-1, -1, 3) * torch.tensor(3).byte())
