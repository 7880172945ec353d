"""One update and one action as the loop calls them: the order of what changes, fresh noise, static tensors."""

import math

import numpy as np
import pytest
import torch
from golden_arrays import FORWARD, PARAMETER
from numpy.typing import NDArray
from tiny_agent import ROWS, TIME, make_agent, make_replay
from torch import Tensor, nn

from fastdreamer.agent import Agent
from fastdreamer.env_step import Step
from fastdreamer.metrics import Metrics
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.replay import Replay
from fastdreamer.steps import ActStep, TrainStep, mask_action

LR, AGC, WARMUP, UPDATES = 1e-2, 0.3, 3, 20
ACTING = (Stream.ACT_STATE, Stream.ACT_POLICY)


def make_train_step(warmup: int = 0) -> tuple[Agent, TrainStep]:
    agent = make_agent()
    optimizer = LaProp(agent.official_parameters(), LR, warmup=warmup, agc=AGC, slow=agent.slow_parameters())
    return agent, TrainStep(agent, optimizer, make_replay(), Metrics(), seed=5)


def snapshot(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


class PlainOptimizer:
    """LaProp and AGC one tensor at a time, as SPEC 1.9 has them."""

    def __init__(self, agent: Agent) -> None:
        self.params, self.slow = agent.official_parameters(), agent.slow_parameters()
        self.nu = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.mu = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.updates = 0

    @torch.no_grad()
    def step(self) -> None:
        self.updates += 1
        step = torch.tensor(float(self.updates))
        lr = LR * ((step - 1) / WARMUP).clamp(max=1.0)
        for name, param in self.params.items():
            assert param.grad is not None, name
            limit = AGC * param.norm().clamp(min=1e-3)
            grad = param.grad / (param.grad.norm() / limit).clamp(min=1.0)
            self.nu[name].lerp_(grad * grad, 1 - 0.999)
            scale = (self.nu[name] / (1 - 0.999**step)).sqrt() + 1e-20
            self.mu[name].lerp_(grad / scale, 1 - 0.9)
            param.add_(self.mu[name] * (-lr / (1 - 0.9**step)))
            if name in self.slow:
                self.slow[name].lerp_(param, 0.02)
            param.grad = None


class Plain:
    """The update as a reader would write it: the ring's window, the agent's loss, autograd, the optimizer above."""

    def __init__(self) -> None:
        self.agent, self.replay = make_agent(), make_replay()
        self.optimizer = PlainOptimizer(self.agent)
        self.noise = [Noise(5, stream) for stream in (Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION)]

    def update(self) -> Tensor:
        self.replay.stage(self.replay.plan())
        noise = self.agent.update_noise(*self.noise, batch=ROWS, time=TIME)
        out = self.agent.loss(*self.replay.window(), noise)
        out.loss.backward()
        self.optimizer.step()
        self.replay.write_back(*out.states)
        return out.loss.detach()


def everything(agent: Agent, replay: Replay) -> dict[str, Tensor]:
    rings = {key: ring[:, : replay.length] for key, ring in (replay.records | replay.latents).items()}
    return {**agent.state_dict(), **rings}


def test_twenty_updates_are_those_of_the_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    plain, (agent, train) = Plain(), make_train_step(WARMUP)
    for update in range(UPDATES):
        loss = plain.update()
        train(train.replay.plan())
        assert train.metrics.flush()["opt/loss"] == loss.item(), update
        for name, value in everything(plain.agent, plain.replay).items():
            assert torch.equal(everything(agent, train.replay)[name], value), (update, name)


def test_the_first_update_on_the_native_kernels_is_that_of_the_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    plain = Plain()
    expected = plain.update().item(), everything(plain.agent, plain.replay)
    monkeypatch.delenv("FASTDREAMER_KERNELS")
    agent, train = make_train_step(WARMUP)
    train(train.replay.plan())
    assert train.metrics.flush()["opt/loss"] == pytest.approx(expected[0], rel=FORWARD.relative)
    for name, value in everything(agent, train.replay).items():
        torch.testing.assert_close(value, expected[1][name], rtol=PARAMETER.relative, atol=PARAMETER.absolute)


def test_the_slow_critic_follows_the_critic_of_this_update() -> None:
    agent, train = make_train_step()
    slow, critic = snapshot(agent.behavior.slowval), snapshot(agent.behavior.val)
    train(train.replay.plan())
    moved = snapshot(agent.behavior.val)
    assert all((new - old).abs().max() > 5e-3 for new, old in zip(moved, critic, strict=True))
    expected = [0.98 * old + 0.02 * new for old, new in zip(slow, moved, strict=True)]
    torch.testing.assert_close(snapshot(agent.behavior.slowval), expected, rtol=0, atol=1e-6)


def test_an_update_leaves_no_gradient_to_the_next_one() -> None:
    agent, train = make_train_step()
    for _ in range(2):
        train(train.replay.plan())
        assert all(parameter.grad is None for parameter in agent.parameters())
    parameter = nn.Parameter(torch.ones(3))
    optimizer = LaProp({"kernel": parameter}, lr=0.0, warmup=0, agc=0.0)
    for _ in range(2):
        (2 * parameter).sum().backward()
        optimizer.step()
    torch.testing.assert_close(optimizer.nu[0], torch.full((3,), 4 * (1 - 0.999**2)), rtol=1e-4, atol=0)


def test_every_update_has_noise_of_its_own() -> None:
    _, train = make_train_step()
    plan, stoch = train.replay.plan(), []
    for _ in range(2):
        train(plan)
        stoch.append(train.replay.latents["stoch"].clone())
    assert not torch.equal(*stoch)
    assert [int(noise.counter) for noise in train.noise] == [2, 2, 4], "one draw per action key"


@pytest.mark.parametrize("place", ["reward", "deter"])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(place: str) -> None:
    agent, train = make_train_step()
    ring = (train.replay.records | train.replay.latents)[place]
    plan = train.replay.plan()
    train(plan)
    train.metrics.flush()
    value = ring[plan.env[1], plan.start[1] + (place == "reward")].clone()
    ring[plan.env[1], plan.start[1] + (place == "reward")] = math.nan
    state = lambda: everything(agent, train.replay) | train.optimizer.state()  # noqa: E731
    before = {name: tensor.clone() for name, tensor in state().items()}
    train(plan)
    torch.testing.assert_close(state(), before, rtol=0, atol=0, equal_nan=True)
    ring[plan.env[1], plan.start[1] + (place == "reward")] = value
    train(plan)
    metrics = train.metrics.flush()
    assert metrics["opt/skipped"] == 0.5 and math.isfinite(metrics["opt/loss"]), "the mean is that of the other"
    assert train.optimizer.step_count == 2


def make_step(t: int, rng: np.random.Generator) -> Step:
    obs = {"speed": rng.standard_normal((ROWS, 3), np.float32), "room": rng.integers(4, size=ROWS, dtype=np.int32)}
    first, last = np.arange(ROWS) == t, np.arange(ROWS) == t + 1
    return Step(obs, rng.standard_normal(ROWS, np.float32), first, last, last)


def test_actions_and_states_are_those_of_the_agent_and_are_stored() -> None:
    agent, replay, rng = make_agent(), make_replay(), np.random.default_rng(0)
    act = ActStep(agent, ROWS, 7, ACTING, replay)
    observe, policy = (Noise(7, stream) for stream in ACTING)
    carry, before = agent.initial(ROWS), replay.length
    for t in range(4):
        step = make_step(t, rng)
        action = act(step)
        obs = {key: torch.from_numpy(value) for key, value in step.obs.items()}
        noise = agent.act_noise(observe, policy, rows=ROWS)
        expected, carry = agent.act(obs, torch.from_numpy(step.is_first), carry, noise)
        row = before + t
        torch.testing.assert_close(replay.latents["deter"][:, row], carry.world.deter, rtol=0, atol=0)
        assert torch.equal(replay.latents["stoch"][:, row].int(), carry.world.stoch.int())
        for key, value in mask_action(expected, torch.from_numpy(step.is_last)).items():
            assert torch.equal(replay.records[f"action/{key}"][:, row], value)
        for key, value in expected.items():
            np.testing.assert_array_equal(action[key], value.numpy())
            assert action[key].dtype == value.numpy().dtype
        for key, seen in {**step.obs, **step._asdict()}.items():
            if key != "obs":
                stored = replay.records[f"obs/{key}" if key in step.obs else key][:, row]
                np.testing.assert_array_equal(stored.numpy(), seen)
    assert replay.length == before + 4


def test_the_policy_has_the_weights_that_it_was_given_last() -> None:
    agent, step = make_agent(), make_step(0, np.random.default_rng(0))

    def acted(act: ActStep) -> NDArray[np.generic]:
        return act(step)["turn"]

    kept, renewed = ActStep(agent, ROWS, 7, ACTING), ActStep(agent, ROWS, 7, ACTING)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(0.5)
    renewed.take_weights()
    fresh = ActStep(agent, ROWS, 7, ACTING)
    old, new = ActStep(make_agent(), ROWS, 7, ACTING), acted(renewed)
    np.testing.assert_array_equal(new, acted(fresh))
    np.testing.assert_array_equal(acted(kept), acted(old))
    assert not np.array_equal(new, acted(ActStep(make_agent(), ROWS, 7, ACTING)))


def test_a_policy_without_a_ring_acts_alike() -> None:
    steps = [make_step(t, np.random.default_rng(t)) for t in range(3)]
    with_ring, without = ActStep(make_agent(), ROWS, 7, ACTING, make_replay()), ActStep(make_agent(), ROWS, 7, ACTING)
    for step in steps:
        stored, free = with_ring(step), without(step)
        for key, value in stored.items():
            np.testing.assert_array_equal(free[key], value)


def test_mask_action_zeroes_rows_without_an_action() -> None:
    action = {"a": torch.tensor([3, 4], dtype=torch.int32), "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    masked = mask_action(action, torch.tensor([False, True]))
    assert masked["a"].tolist() == [3, 0] and masked["a"].dtype == torch.int32
    assert masked["b"].tolist() == [[1, 2], [0, 0]] and masked["b"].dtype == torch.float32
    assert action["a"].tolist() == [3, 4]


def test_actions_are_not_changed_by_the_next_step() -> None:
    act = ActStep(make_agent(), ROWS, 7, ACTING)
    first = act(make_step(0, np.random.default_rng(0)))
    before = {key: value.copy() for key, value in first.items()}
    act(make_step(1, np.random.default_rng(1)))
    for key, value in before.items():
        np.testing.assert_array_equal(first[key], value)


def test_what_an_uncaptured_step_is_made_of_is_there_before_a_queue_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are made and filled by the default stream of a GPU, for which those that run it do not wait."""
    waited: list[torch.device] = []
    monkeypatch.setattr("fastdreamer.steps.wait_for", waited.append)
    make_train_step()
    assert waited == [torch.device("cpu")]
