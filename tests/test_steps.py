"""One update and one action as the loop calls them: the order of what changes, fresh noise, the states handed out."""

import numpy as np
import torch
from tiny_agent import ROWS, TIME, make_agent, make_window
from torch import Tensor

from fastdreamer.agent import Agent
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.steps import ActStep, TrainStep


def make_train_step() -> tuple[Agent, TrainStep]:
    agent = make_agent()
    optimizer = LaProp(agent.official_parameters(), 1e-2, warmup=0, agc=0.3, slow=agent.slow_parameters())
    return agent, TrainStep(agent, optimizer, seed=5)


def snapshot(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_slow_critic_follows_the_critic_of_this_update() -> None:
    agent, train = make_train_step()
    slow, critic = snapshot(agent.behavior.slowval), snapshot(agent.behavior.val)
    train(make_window())
    moved = snapshot(agent.behavior.val)
    assert all((new - old).abs().max() > 5e-3 for new, old in zip(moved, critic, strict=True))
    expected = [0.98 * old + 0.02 * new for old, new in zip(slow, moved, strict=True)]
    torch.testing.assert_close(snapshot(agent.behavior.slowval), expected, rtol=0, atol=1e-6)


def test_an_update_leaves_no_gradient_to_the_next_one() -> None:
    agent, train = make_train_step()
    for _ in range(2):
        train(make_window())
        assert all(parameter.grad is None for parameter in agent.parameters())
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = LaProp({"kernel": parameter}, lr=0.0, warmup=0, agc=0.0)
    for _ in range(2):
        (2 * parameter).sum().backward()
        optimizer.step()
    torch.testing.assert_close(optimizer.nu[0], torch.full((3,), 4 * (1 - 0.999**2)), rtol=1e-4, atol=0)


def test_states_are_those_of_the_parameters_before_the_update() -> None:
    _, train = make_train_step()
    window, before = make_window(), make_agent()
    observe, imagine, action = (Noise(5, stream) for stream in (Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION))
    noise = before.update_noise(observe, imagine, action, batch=ROWS, time=TIME)
    states, metrics = train(window)
    expected = before.loss(*window, noise)
    torch.testing.assert_close(states, expected.states, rtol=0, atol=0)
    assert not states.deter.requires_grad
    torch.testing.assert_close(metrics["opt/loss"], expected.loss.detach(), rtol=0, atol=0)
    assert not torch.equal(train(window)[0].stoch, states.stoch), "the next update has other noise"


def test_an_action_comes_with_the_state_after_the_observation() -> None:
    agent, batch = make_agent(), make_window().batch
    streams = (Stream.ACT_STATE, Stream.ACT_POLICY)
    act = ActStep(agent, ROWS, 7, streams)
    observe, policy = (Noise(7, stream) for stream in streams)
    carry = agent.initial(ROWS)
    for t in range(3):
        obs = {key: value[:, t] for key, value in batch.obs.items()}
        is_first = torch.full((ROWS,), t == 0)
        action, world = act({key: value.numpy() for key, value in obs.items()}, is_first.numpy())
        expected, carry = agent.act(obs, is_first, carry, agent.act_noise(observe, policy, rows=ROWS))
        torch.testing.assert_close(world, carry.world, rtol=0, atol=0)
        for key, value in expected.items():
            np.testing.assert_array_equal(action[key], value.numpy())
            assert action[key].dtype == value.numpy().dtype
