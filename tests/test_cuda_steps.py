"""The captured steps on a GPU: the bits of the steps that are not, no wait, no growth, and a run that goes on."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.workload import ACT, OBS, add_record, make_config, make_learner
from fastdreamer import checkpoint
from fastdreamer.config import Config, ModelConfig
from fastdreamer.env_step import Step
from fastdreamer.learner import Learner
from fastdreamer.metrics import Metrics
from fastdreamer.noise import Stream
from fastdreamer.steps import ActStep, TrainStep

pytestmark = pytest.mark.gpu
UPDATES, MANY = 20, 10_000


def config_of(schedule: str = "sync", **run: object) -> Config:
    return make_config(
        ModelConfig(size="size1m"), batch=4, length=8, horizon=5, device="cuda", schedule=schedule, **run
    )


def eager(learner: Learner) -> None:
    """The same learner, but for the capture of its updates."""
    run = learner.config.run
    learner.train = TrainStep(learner.agent, learner.optimizer, learner.replay, learner.metrics, run.seed)


def tensors(learner: Learner) -> dict[str, Tensor]:
    learner.drain()
    replay = learner.replay
    rings = {key: ring[:, : replay.length].cpu() for key, ring in (replay.records | replay.latents).items()}
    return {**learner.agent.state_dict(), **learner.optimizer.state(), **rings}


def assert_same(one: Learner, other: Learner) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compile", [False, True])
def test_captured_updates_are_those_that_are_not_captured(precision: str, compile: bool) -> None:
    config = config_of(compile=compile)
    config = replace(config, model=replace(config.model, precision=precision))
    captured, plain = make_learner(config, "vector"), make_learner(config, "vector")
    eager(plain)
    for _ in range(UPDATES):
        for learner in (captured, plain):
            learner.launch(1)
            learner.drain()
        ours, theirs = captured.metrics.flush(), plain.metrics.flush()
        assert ours == theirs
    assert_same(captured, plain)


@pytest.mark.parametrize("task", ["vector", "image"])
def test_an_update_waits_for_nothing(task: str) -> None:
    learner = make_learner(config_of(), "image" if task == "image" else "vector")
    learner.launch(1)
    learner.drain()
    plans = [learner.replay.plan() for _ in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.queue.run(lambda: [learner.train(plan) for plan in plans])
        learner.queue.run(learner.policy.take_weights)
        eager(learner)
        learner.queue.run(lambda: learner.train(plans[0]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    learner.drain()


def test_many_updates_take_no_more_memory() -> None:
    learner = make_learner(config_of(), "vector")
    learner.launch(100)
    learner.drain()
    used, resident = torch.cuda.memory_allocated(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MANY // 100):
        learner.launch(100)
        learner.read_metrics().means()
    learner.drain()
    assert torch.cuda.memory_allocated() <= used
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 64 * 1024  # KB


def test_a_run_goes_on_in_a_captured_step(tmp_path: Path) -> None:
    first = make_learner(config_of(), "vector")
    first.launch(3)
    first.save(tmp_path, 0, {}, {}).wait()
    second = Learner(first.config, *first.spaces)
    second.restore(checkpoint.latest(tmp_path))
    for learner in (first, second):
        learner.launch(3)
    assert_same_but_rings(first, second)


@pytest.mark.parametrize("schedule", ["sync", "pipeline"])
@pytest.mark.parametrize("placement", ["pinned", "host"])
def test_it_acts_and_learns_the_same_wherever_the_replay_lies(
    placement: Literal["pinned", "host"], schedule: str
) -> None:
    """From the first action on."""
    played = []
    for place in ("device", placement):
        config = config_of(schedule)
        config = replace(config, replay=replace(config.replay, placement=place))
        learner, rng, actions = Learner(config, OBS["image"], ACT), np.random.default_rng(0), []
        for t in range(4 * config.replay.batch_length):
            first, no = np.full(16, t == 0), np.zeros(16, bool)
            obs = {"image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8)}
            actions.append(learner.act(Step(obs, rng.standard_normal(16, np.float32), first, no, no))["action"])
            if learner.replay.windows:
                learner.launch(1)
        played.append((learner, np.stack(actions)))
    (near, ours), (away, theirs) = played
    assert near.replay.away == () and away.replay.placement.places["obs/image"] == placement
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(ours, theirs)
    assert_same(near, away)
    metrics = near.metrics.flush()
    assert metrics == away.metrics.flush() and metrics["opt/skipped"] == 0


def assert_same_but_rings(one: Learner, other: Learner) -> None:
    ours, theirs = tensors(one), tensors(other)
    for name in one.agent.state_dict().keys() | one.optimizer.state().keys():
        assert torch.equal(ours[name], theirs[name]), name


def make_steps(count: int) -> list[Step]:
    rng, steps = np.random.default_rng(0), []
    for t in range(count):
        flag = np.full(16, t == 0)
        obs = {"vector": rng.standard_normal((16, 24), np.float32)}
        steps.append(Step(obs, rng.standard_normal(16, np.float32), flag, ~flag & (t % 5 == 4), np.zeros(16, bool)))
    return steps


def test_captured_actions_are_those_that_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(config_of(), OBS["vector"], ACT)
    captured = learner.policy
    with monkeypatch.context() as patch:
        patch.setattr("fastdreamer.steps.Captured", lambda run, state, queue: run)
        plain = ActStep(learner.agent, 16, learner.config.run.seed, (Stream.ACT_STATE, Stream.ACT_POLICY))
    for step in make_steps(12):
        for key, value in captured(step).items():
            np.testing.assert_array_equal(value, plain(step)[key])


def test_the_pipeline_is_a_function_of_the_seed() -> None:
    runs = []
    for _ in range(2):
        learner, rng = make_learner(config_of("pipeline"), "vector"), np.random.default_rng(0)
        actions = []
        for step in make_steps(30):
            actions.append(learner.act(step)["action"])
            learner.launch(4)
        learner.drain()
        add_record(learner, rng)
        runs.append((learner, actions))
    (one, ours), (other, theirs) = runs
    np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))
    assert_same(one, other)


def test_metrics_arrive_without_a_wait_and_only_once() -> None:
    learner = make_learner(config_of(), "vector")
    learner.launch(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        reading = learner.read_metrics()
        learner.launch(1)
        later = learner.read_metrics()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reading.means()["opt/loss"] != later.means()["opt/loss"]
    assert "opt/loss" not in learner.read_metrics().means() and isinstance(learner.metrics, Metrics)
