"""Schedules: sync is the official order, pipeline is one launch behind it, and both are functions of the seed alone."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from test_loop import tiny_config
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.agent import Agent
from fastdreamer.config import Config
from fastdreamer.env import make_env
from fastdreamer.loop import Training
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.replay import Replay
from fastdreamer.replay_window import Plan
from fastdreamer.run import run
from fastdreamer.schedule import TrainRatio
from fastdreamer.steps import TrainStep, mask_action

Schedule = Literal["sync", "pipeline"]
STEPS = 160


def scheduled(folder: Path, schedule: Schedule, ratio: float = 8.0) -> Config:
    config = tiny_config(folder)
    return replace(config, run=replace(config.run, schedule=schedule, train_ratio=ratio))


def weights_of(agent: Agent) -> Tensor:
    """Of the parameters that act, which every update changes."""
    return torch.cat([param.detach().flatten() for param in agent.world.dyn.parameters()]).clone()


class Watched:
    """A training whose updates take their time, and what is known of each update and each action."""

    def __init__(self, config: Config, seed: int = 0, slow: float = 0.0) -> None:
        self.training = Training(config, None)
        self.learner, self.rng, self.slow = self.training.learner, random.Random(seed), slow
        self.after_update = [weights_of(self.learner.agent)]
        """Weights after so many updates."""
        self.acted: list[tuple[int, Tensor]] = []
        """Updates launched before each action, and the weights that it was taken with."""
        self.losses: list[float] = []
        self.train, self.act = self.learner.train, self.learner.policy.agent.act
        self.learner.train = self._train  # type: ignore[assignment]
        self.learner.policy.agent.act = self._act  # type: ignore[method-assign]

    def _train(self, plan: Plan) -> None:
        time.sleep(self.slow * self.rng.random())
        self.train(plan)
        self.after_update.append(weights_of(self.learner.agent))

    def _act(self, *args: Tensor) -> object:
        self.acted.append((self.training.progress.updates, weights_of(self.learner.policy.agent)))
        return self.act(*args)

    def run(self) -> "Watched":
        while self.training.env_steps < STEPS:
            self.training.advance()
        self.learner.drain()
        self.metrics = self.learner.metrics.flush()
        self.training.env.close()
        return self


def assert_alike(one: Watched, other: Watched) -> None:
    assert one.metrics == other.metrics
    for ours, theirs in zip(one.after_update, other.after_update, strict=True):
        assert torch.equal(ours, theirs)
    for key, ring in (one.learner.replay.records | one.learner.replay.latents).items():
        length = one.learner.replay.length
        theirs = (other.learner.replay.records | other.learner.replay.latents)[key]
        assert torch.equal(ring[:, :length], theirs[:, :length]), key


@pytest.mark.parametrize("schedule", ["sync", "pipeline"])
def test_a_run_does_not_depend_on_how_long_its_updates_take(tmp_path: Path, schedule: Schedule) -> None:
    config = scheduled(tmp_path, schedule)
    first, second = (Watched(config, seed, slow).run() for seed, slow in ((0, 0.0), (1, 0.02)))
    assert first.training.progress.updates > 20
    assert_alike(first, second)


@pytest.mark.parametrize("schedule", ["sync", "pipeline"])
def test_the_time_of_updates_is_told_where_the_caller_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, schedule: Schedule
) -> None:
    """Anything else would be the time to launch them."""
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: time.sleep(0.01))
    with caplog.at_level("INFO"):
        run(scheduled(tmp_path / "run", schedule), resume=False, started=0.0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (first,) = [message for message in caplog.messages if message.startswith("first update")]
    assert ("to fill the replay" in first) == (schedule == "sync")
    assert summary["ms_per_update"] >= 10 if schedule == "sync" else summary["ms_per_update"] is None


@pytest.mark.parametrize("ratio", [4.0, 8.0, 24.0])
@pytest.mark.parametrize("schedule", ["sync", "pipeline"])
def test_the_policy_lags_by_what_it_says(tmp_path: Path, schedule: Schedule, ratio: float) -> None:
    """By nothing, or by the latest launch: an action is taken with the weights after the updates before that."""
    watched = Watched(scheduled(tmp_path, schedule, ratio), slow=0.005).run()
    launched = [updates for updates, _ in watched.acted]
    lags = []
    for before, now, (_, weights) in zip([0, *launched], launched, watched.acted, strict=False):
        known = now if schedule == "sync" else before
        assert torch.equal(weights, watched.after_update[known])
        lags.append(now - known)
    assert watched.metrics["policy_lag"] == pytest.approx(sum(lags) / len(lags))
    assert (max(lags) > 0) == (schedule == "pipeline")


def test_sync_is_the_official_order(tmp_path: Path) -> None:
    """Act, store, then every update that is due, written down with the plain parts; no other order gives these bits."""
    config = scheduled(tmp_path, "sync")
    run, dims = config.run, config.model.dims()
    env = make_env(config.env.id, num_envs=config.env.num_envs, seed=run.seed, options=config.env.options)
    agent = Agent(env.obs_space, env.act_space, config.model, config.loss, torch.float32)
    agent.initialize(Noise(run.seed, Stream.INIT))
    optimizer = LaProp(
        agent.official_parameters(), config.optim.lr, config.optim.warmup, config.optim.agc, agent.slow_parameters()
    )
    batch, length = config.replay.batch_size, config.replay.batch_length
    replay = Replay(
        env.obs_space, env.act_space, deter=dims.deter, stoch=dims.stoch, num_envs=config.env.num_envs,
        capacity=config.capacity, batch_size=batch, batch_length=length, seed=run.seed,
    )  # fmt: skip
    learning = [Noise(run.seed, stream) for stream in (Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION)]
    acting = [Noise(run.seed, stream) for stream in (Stream.ACT_STATE, Stream.ACT_POLICY)]
    carry, ratio, losses = agent.initial(config.env.num_envs), TrainRatio(run.train_ratio, batch, length), []
    while replay.length * config.env.num_envs < STEPS:
        step = env.recv()
        obs = {key: torch.from_numpy(value) for key, value in step.obs.items()}
        noise = agent.act_noise(*acting, config.env.num_envs)
        action, carry = agent.act(obs, torch.from_numpy(step.is_first), carry, noise)
        env.send({key: value.numpy() for key, value in action.items()})
        replay.add(*step, mask_action(action, torch.from_numpy(step.is_last)), *carry.world)
        if replay.windows >= config.replay.trained_steps:
            for _ in range(ratio.due(replay.length * config.env.num_envs)):
                replay.stage(replay.plan())
                out = agent.loss(*replay.window(), agent.update_noise(*learning, batch, length))
                out.loss.backward()
                optimizer.step()
                replay.write_back(*out.states)
                losses.append(out.loss.item())
    env.close()
    watched = Watched(config).run()
    assert watched.metrics["opt/loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert torch.equal(weights_of(agent), watched.after_update[-1])
    for key, ring in (replay.records | replay.latents).items():
        theirs = (watched.learner.replay.records | watched.learner.replay.latents)[key]
        assert torch.equal(ring[:, : replay.length], theirs[:, : replay.length]), key


def test_pipeline_is_another_run_than_sync(tmp_path: Path) -> None:
    sync, pipeline = (Watched(scheduled(tmp_path, schedule)).run() for schedule in ("sync", "pipeline"))
    assert len(sync.after_update) == len(pipeline.after_update)
    assert not torch.equal(sync.after_update[-1], pipeline.after_update[-1])


@pytest.mark.parametrize("look", [lambda t: t.learner.act(t.env.recv()), lambda t: t.learner.drain()])
def test_an_error_of_the_learners_thread_is_raised(tmp_path: Path, look: Callable[[Training], object]) -> None:
    training = Training(scheduled(tmp_path, "pipeline"), None)
    while training.progress.updates < 3:
        training.advance()
    training.learner.drain()

    def fail(_: Plan) -> None:
        raise FloatingPointError("of the learner")

    training.learner.train = fail  # type: ignore[assignment]
    training.update(1)
    training.update(1)
    with pytest.raises(FloatingPointError, match="of the learner"):
        look(training)
    training.env.close()


def test_a_pipelined_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = scheduled(tmp_path, "pipeline")
    first = Training(config, None)
    while first.env_steps < 120:
        first.advance()
    first.save(tmp_path)
    second = Training(config, checkpoint.latest(tmp_path))
    policies = [weights_of(training.learner.policy.agent) for training in (first, second)]
    assert torch.equal(*policies) and first.learner.lag == second.learner.lag > 0
    assert not torch.equal(policies[0], weights_of(first.learner.agent)), "they are a launch older"
    for updates in (2, 0, 3):
        for training in (first, second):
            training.update(updates)
            training.learner.drain()
        ours, theirs = first.learner, second.learner
        assert torch.equal(weights_of(ours.agent), weights_of(theirs.agent)) and ours.lag == theirs.lag
        assert torch.equal(weights_of(ours.policy.agent), weights_of(theirs.policy.agent))
    for training in (first, second):
        training.env.close()


@pytest.mark.parametrize("before, after", [("sync", "pipeline"), ("pipeline", "sync")])
def test_a_run_goes_on_in_another_schedule(tmp_path: Path, before: Schedule, after: Schedule) -> None:
    first = Training(scheduled(tmp_path, before), None)
    while first.env_steps < 120:
        first.advance()
    first.save(tmp_path)
    second = Training(scheduled(tmp_path, after), checkpoint.latest(tmp_path))
    assert torch.equal(weights_of(second.learner.policy.agent), weights_of(second.learner.agent))
    assert second.learner.lag == 0
    for training in (first, second):
        training.env.close()
