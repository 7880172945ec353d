"""EnvPool and gymnasium through our interface, against gymnasium's own physics and against bare pools."""

import os
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from env_rollout import Record, Twin, episodes, play

from fastdreamer.env import Env, EnvError, Step, make_env
from fastdreamer.env_step import AnyArray, Arrays, Options


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
    for before, after in pairwise(episode):
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
@pytest.mark.parametrize("prefix, options", [("", {}), ("gym:", {})])
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


@pytest.mark.parametrize("id", ["WalkerWalk-v1", "FishSwim-v1", "CartpoleBalance-v1", "HumanoidWalk-v1"])
def test_control_suite_pays_nothing_on_a_reset_and_ends_by_time_alone(id: str) -> None:
    options = {"max_episode_steps": 25}
    env = make_env(id, num_envs=3, seed=0, options=options)
    records = play(env, 110, Twin(id, env, 0, options))
    for record in (record for row in records for record in row):
        age = int(record.info["elapsed_step"])
        assert (record.is_first, record.is_last, record.is_terminal) == (age == 0, age == 25, False)
        # On a reset EnvPool reports uninitialised memory or the last reward once more.
        assert record.reward == (0 if age == 0 else record.info["raw_reward"])
        assert 0 <= record.reward <= 1
        assert all(value.dtype == np.float32 for value in record.obs.values())
    assert len(episodes(records)) == 12


LIMITS = {
    "Acrobot-v1": 500,
    "CartpoleBalance-v1": 1000,
    "HalfCheetah-v5": 1000,
    "MetaWorld/Reach-v3": 500,
    "MountainCar-v0": 200,
    "Pendulum-v1": 200,
    "WalkerWalk-v1": 1000,
}


@pytest.mark.parametrize("id", LIMITS)
def test_the_benchmarks_own_time_limit_is_not_terminal(id: str) -> None:
    (episode,) = episodes(play(make_env(id, num_envs=1, seed=0), LIMITS[id] + 1))
    assert len(episode) == LIMITS[id] + 1 and not episode[-1].is_terminal


OPTION_ERRORS: list[tuple[str, Options, str]] = [
    ("Pong-v5", {"noop_max": 0}, "env.options.noop_max must be at least 1, got 0"),
    ("Pong-v5", {"stack_num": 0}, "env.options.stack_num must be at least 1, got 0"),
    ("Pong-v5", {"repeat_action_probability": 1.5}, "env.options.repeat_action_probability must lie in 0..1, got 1.5"),
    ("Pong-v5", {"gray_scale": 1}, "env.options.gray_scale must be bool, got 1"),
    ("Pong-v5", {"img_hight": 64}, "there is no option env.options.img_hight; did you mean img_height or"),
    ("Pong-v5", {"task": "breakout"}, "env.options.task is set by fastdreamer and cannot be given"),
    ("Pong-v5", {"batch_size": 1}, "env.options.batch_size is set by fastdreamer and cannot be given"),
    ("Pong-v5", {"mode": 99}, "Invalid game mode requested"),
    ("Pong-v5", {"base_path": "nowhere"}, "env.options.base_path must be a folder, got nowhere"),
    ("Pong-v5", {}, 'observation "image" is 84x84 pixels; an image must be square with a side of 48, 64, ..., 256'),
    ("CartPole-v1", {"max_episode_steps": 0}, "env.options.max_episode_steps must be at least 1, got 0"),
    ("CartPole-v1", {"max_episode_steps": 2**31}, "env.options.max_episode_steps must be at most 2147483647, got 2147"),
    ("CartPole-v1", {"num_threads": -1}, "env.options.num_threads must be at least 0, got -1"),
    ("CartPole-v1", {"from_pixels": True}, "from_pixels=True is only supported for MuJoCo tasks."),
    ("CartPole-v1", {"render_mode": "text"}, "render_mode must be one of None, 'rgb_array', or 'human'"),
    ("Catch-v0", {"height": 1}, "env.options.height must be at least 2, got 1"),
    ("Catch-v0", {"max_episode_steps": 5}, "env.options.max_episode_steps has no effect on this environment"),
    ("CliffWalking-v0", {"max_episode_steps": 5}, "env.options.max_episode_steps has no effect on this environment"),
    ("Highway-v0", {"max_episode_steps": 5}, "env.options.max_episode_steps has no effect on this environment"),
    ("MiniGrid-Empty-5x5-v0", {"size": 2}, "env.options.size must be at least 3, got 2"),
    ("WalkerWalk-v1", {"from_pixels": "yes"}, "env.options.from_pixels must be bool, got 'yes'"),
    ("WalkerWalk-v1", {"keys": "image"}, 'there is no observation "image", only orientations, height, velocity'),
    ("Cig-v1", {}, "it is played over a network; only environments with one player are supported"),
]


@pytest.mark.parametrize("id, options, message", OPTION_ERRORS)
def test_options_that_crash_or_do_nothing_are_refused_in_one_line(id: str, options: Options, message: str) -> None:
    with pytest.raises(EnvError, match=re.escape(f"env.id {id}: ") + f".*{re.escape(message)}") as caught:
        make_env(id, num_envs=2, seed=0, options=options)
    assert "\n" not in str(caught.value)


def test_closing_ends_the_threads() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    env = make_env("CartPole-v1", num_envs=4, seed=0, options={"num_threads": 4})
    last = env.recv()
    assert threads() >= before + 4
    env.close()
    assert threads() == before
    assert np.isfinite(last.obs["vector"]).all(), "what was received outlives the pool"
