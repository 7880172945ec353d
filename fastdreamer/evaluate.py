"""Scores of a policy in environments of its own."""

from collections.abc import Callable

from fastdreamer.agent import Agent
from fastdreamer.config import Config
from fastdreamer.env import make_env
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.noise import Stream
from fastdreamer.steps import ActStep


def evaluate(agent: Agent, config: Config, stopped: Callable[[], bool]) -> list[float]:
    """The returns of `config.run.eval_episodes` episodes of the sampling policy, as in training (SPEC 1.10).

    Every environment plays a number of episodes that was fixed beforehand: to take those that end first would favour
    short ones. The environments have seeds that training does not use, and noise of its own, the same at every call.
    Returns early, with fewer, once `stopped`.
    """
    episodes, seed = config.run.eval_episodes, config.run.seed
    if not episodes:
        return []
    rows = min(episodes, config.env.num_envs)
    quota = [episodes // rows + (row < episodes % rows) for row in range(rows)]
    env = make_env(config.env.id, num_envs=rows, seed=seed + config.env.num_envs, options=config.env.options)
    act = ActStep(agent, rows, seed, (Stream.EVAL_STATE, Stream.EVAL_POLICY))
    tracker, scores = EpisodeTracker(rows), []
    try:
        while not stopped():
            step = env.recv()
            for episode in tracker.add(step.reward, step.is_first, step.is_last):
                if quota[episode.env]:
                    quota[episode.env] -= 1
                    scores.append(episode.score)
            if not any(quota):
                break
            env.send(act(step))
        return scores
    finally:
        env.close()
