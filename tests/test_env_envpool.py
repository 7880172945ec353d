"""EnvPool through our interface against truths of another origin: gymnasium's physics, the console's memory, bare pools."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from env_rollout import Record, Twin, episodes, play

from fastdreamer.env import Env, Step, make_env
from fastdreamer.env_step import AnyArray, Arrays
from fastdreamer.presets import ATARI, ATARI100K


def pendulum_state(obs: AnyArray) -> AnyArray:
    return np.array([np.arctan2(obs[1], obs[0]), obs[2]])


def acrobot_state(obs: AnyArray) -> AnyArray:
    return np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]])


STATES: dict[str, Callable[[AnyArray], AnyArray]] = {
    "CartPole-v1": np.array,
    "MountainCar-v0": np.array,
    "MountainCarContinuous-v0": np.array,
    "Pendulum-v1": pendulum_state,
    "Acrobot-v1": acrobot_state,
}
"""From an observation to the state of gymnasium's own implementation."""


def replay(id: str, episode: list[Record]) -> bool:
    """Plays an episode's actions in gymnasium's physics; every observation and reward must agree.

    Returns whether it truly ended there, which may happen in the last record only.
    """
    physics: Any = gymnasium.make(id).unwrapped
    physics.reset()
    to_state = STATES[id]
    terminated = False
    for before, after in zip(episode, episode[1:], strict=False):
        assert not terminated
        # Set anew at every step, so that float32 rounding does not add up.
        physics.state = to_state(before.obs["vector"].astype(np.float64))
        action = before.action["action"]
        if action.dtype.kind == "f":
            low, high = physics.action_space.low, physics.action_space.high
            action = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
        observation, reward, terminated, _, _ = physics.step(action)
        if id == "Pendulum-v1" and abs(observation[2]) == physics.max_speed:
            observation[:2] = after.obs["vector"][:2]  # EnvPool turns by the speed before it is clipped
        np.testing.assert_allclose(after.obs["vector"], observation, atol=2e-5, rtol=1e-5)
        assert after.reward == pytest.approx(float(reward), abs=1e-4)
    return bool(terminated)


@pytest.mark.parametrize("id", STATES)
@pytest.mark.parametrize("prefix, options", [("", {}), ("gym:", {}), ("gym:", {"vectorization": "async"})])
def test_episodes_are_those_of_gymnasiums_physics(id: str, prefix: str, options: dict[str, str]) -> None:
    limit = 20
    env = make_env(prefix + id, num_envs=3, seed=1, options={"max_episode_steps": limit, **options})
    played = episodes(play(env, 130))
    env.close()
    for episode in played:
        ended, steps = replay(id, episode), len(episode) - 1
        assert steps == limit or (steps < limit and ended)
        # EnvPool calls an end on the very last step allowed a time limit; gymnasium knows both.
        assert episode[-1].is_terminal == (ended and (steps < limit or prefix == "gym:"))
    ends = [len(episode) - 1 for episode in played if episode[-1].is_terminal]
    cuts = [len(episode) - 1 for episode in played if not episode[-1].is_terminal]
    assert len(cuts) > 3 and len(ends) >= (4 if id == "CartPole-v1" else 0)


@pytest.mark.parametrize("prefix", ["", "gym:"])
def test_cartpole_without_a_limit_of_ours_lasts_500_steps(prefix: str) -> None:
    def balance(env: Env, observed: Step) -> Arrays:
        angle, speed = observed.obs["vector"][:, 2], observed.obs["vector"][:, 3]
        return {"action": (angle + 0.3 * speed > 0).astype(int)}

    env = make_env(prefix + "CartPole-v1", num_envs=2, seed=0)
    for episode in episodes(play(env, 503, policy=balance)):
        assert len(episode) == 501 and sum(record.reward for record in episode) == 500
        assert not replay("CartPole-v1", episode) and not episode[-1].is_terminal
