"""Scores of a policy in environments of its own."""

from collections.abc import Callable

from fastdreamer.config import Config
from fastdreamer.env import Env, make_env
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.learner import Learner
from fastdreamer.noise import Stream
from fastdreamer.steps import ActStep

EVAL = Stream.EVAL_STATE, Stream.EVAL_POLICY


def evaluation_env(config: Config) -> Env:
    """Environments with seeds that training does not use, no more than there are episodes."""
    rows, seed = min(config.run.eval_episodes, config.env.num_envs), config.run.seed + config.env.num_envs
    return make_env(config.env.id, num_envs=rows, seed=seed, options=config.env.options, timeout=config.env.timeout)


def evaluate(learner: Learner, env: Env, stopped: Callable[[], bool]) -> list[float]:
    """The returns of `config.run.eval_episodes` episodes of the sampling policy, as in training (SPEC 1.10).

    Every environment plays a number of episodes that was fixed beforehand: to take those that end first would favour
    short ones. The noise is that of no training, the same at every call. Returns early, with fewer, once `stopped`.
    """
    config, rows = learner.config, env.num_envs
    episodes = config.run.eval_episodes
    quota = [episodes // rows + (row < episodes % rows) for row in range(rows)]
    act = ActStep(learner.agent, rows, config.run.seed, EVAL, queue=learner.policy.queue)
    tracker, scores = EpisodeTracker(rows), []
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
