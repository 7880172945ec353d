"""Training from Python gives an agent, a run folder, and the signals back."""

import logging
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import fastdreamer
from fastdreamer import library, trained
from fastdreamer.trained import read_config


def make_short() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=20)


def test_a_function_that_makes_environments_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with caplog.at_level(logging.INFO):
        agent = fastdreamer.learn(make_short, steps=400, num_envs=4, seed=3, dir=str(tmp_path / "run"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert agent.env_steps == 400
    config = read_config(tmp_path / "run")
    assert (config.env.id, config.env.num_envs) == (f"{make_short.__module__}:make_short", 4)
    assert (config.run.steps, config.run.seed, config.run.solved) == (400, 3, None)
    assert config.model == library.PRESETS["cartpole"].model
    observation, _ = make_short().reset(seed=0)
    action, _ = agent.act(observation[None], agent.init(1), is_first=True)
    assert isinstance(action, np.ndarray) and action.shape == (1,) and action[0] in (0, 1)
    with pytest.raises(ValueError, match=r"^run\.dir .* exists already"):
        fastdreamer.learn(make_short, steps=400, num_envs=4, dir=str(tmp_path / "run"))


def test_what_cannot_be_found_again_is_refused() -> None:
    def local() -> gymnasium.Env:
        return make_short()

    with pytest.raises(ValueError, match=r"^env must be an id or what makes the environment"):
        fastdreamer.learn(make_short(), steps=400)  # type: ignore[arg-type]
    for what in (local, lambda: make_short(), 3):
        with pytest.raises(ValueError, match=r"^env must be an id, or a function or class at the top of a module"):
            fastdreamer.learn(what, steps=400)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^preset must be one of cartpole, .*, got 'pole'$"):
        fastdreamer.learn(make_short, steps=400, preset="pole")


def test_the_package_gives_what_it_names() -> None:
    assert fastdreamer.learn is library.learn
    assert fastdreamer.load is trained.load
    assert fastdreamer.TrainedAgent is trained.TrainedAgent
