"""`python -m fastdreamer.evaluate RUN [--episodes N] [--video]`: scores of a policy in environments of its own."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastdreamer.agent import Agent
from fastdreamer.cli import Parser, fail
from fastdreamer.config import Config
from fastdreamer.env import Env, EnvError, Step, make_env
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.noise import Stream
from fastdreamer.steps import ActStep
from fastdreamer.streams import Queue
from fastdreamer.trained import TrainedAgent, load
from fastdreamer.video import Camera, Film

EVAL = Stream.EVAL_STATE, Stream.EVAL_POLICY


def main(argv: list[str]) -> int:
    """The exit code: 0, or 2 where the run cannot be read, or its environment cannot be made or filmed."""
    parser = Parser("evaluate", "Play episodes with the agent of a run folder.")
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--episodes", type=int, default=20, help="how many, 20 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling and of the environments, 0 by default")
    parser.add_argument("--video", action="store_true", help="also write every episode as an mp4 file")
    parser.add_argument("--out", type=Path, default=Path("videos"), help="a folder for them, videos by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute")
    words = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if words.episodes < 1:
        fail(f"--episodes must be at least 1, got {words.episodes}")
    try:
        trained = load(words.run, device=words.device, seed=words.seed)
        if words.video:
            scores = film(trained, words.episodes, words.seed, words.out)
        else:
            with closing(evaluation_env(trained.config, words.episodes, words.seed)) as env:
                scores = evaluate(trained.agent, env, words.episodes, words.seed)
    except ValueError as error:
        fail(error)
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        fail("--video needs the package av: pip install av")
    except OSError as error:
        if not words.video:
            raise
        fail(f"--out {words.out}: cannot be written: {error.strerror or error}")
    print(f"{trained.config.env.id} after {trained.env_steps:,} agent steps: {summary(scores)}")
    return 0


def summary(scores: list[float]) -> str:
    """Mean, spread and range of returns in words."""
    mean, spread = np.mean(scores), np.std(scores)
    return f"return {mean:.1f} ± {spread:.1f} over {len(scores)} episodes, from {min(scores):.1f} to {max(scores):.1f}"


def evaluation_env(config: Config, episodes: int, seed: int) -> Env:
    """Environments with seeds that training does not use, no more than there are episodes."""
    rows, first = min(episodes, config.env.num_envs), seed + config.env.num_envs
    return make_env(config.env.id, num_envs=rows, seed=first, options=config.env.options, timeout=config.env.timeout)


def evaluation_camera(config: Config, episodes: int, seed: int) -> Camera:
    """On the same environments, that draw themselves where they can."""
    drawn = replace(config.env, options={"render_mode": "rgb_array", **config.env.options})
    try:
        return Camera(evaluation_env(replace(config, env=drawn), episodes, seed))
    except EnvError as error:  # it does not draw; what else is wrong is so without drawing too
        return Camera(evaluation_env(config, episodes, seed), blind=str(error))


def film(trained: TrainedAgent, episodes: int, seed: int, folder: Path) -> list[float]:
    """The same returns as without a film; each episode is a video in a folder, which is made.

    Raises ValueError, one line, where the environment shows no pictures, and OSError where none can be written.
    """
    camera = evaluation_camera(trained.config, episodes, seed)
    with closing(camera.env) as env, closing(Film(camera, folder)) as reel:

        def watch(step: Step, rows: Sequence[int]) -> None:
            reel.add(step, rows)
            if not reel.paths:
                raise ValueError(f"there is nothing to see: {camera.reason}")

        folder.mkdir(parents=True, exist_ok=True)
        scores = evaluate(trained.agent, env, episodes, seed, watch=watch)
    print(f"{len(reel.paths)} videos: {reel.paths[0]} ...")
    return scores


def evaluate(
    agent: Agent,
    env: Env,
    episodes: int,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    queue: Queue | None = None,
    watch: Callable[[Step, Sequence[int]], None] = lambda step, rows: None,
) -> list[float]:
    """The returns of episodes of the sampling policy, as in training (SPEC 1.10).

    Every environment plays a number of episodes that was fixed beforehand: to take those that end first would favour
    short ones. The noise is that of no training, the same at every call. Returns early, with fewer, once `stopped`.
    `watch` is given every record and the environments whose episodes count.
    """
    rows = env.num_envs
    quota = [episodes // rows + (row < episodes % rows) for row in range(rows)]
    act = ActStep(agent, rows, seed, EVAL, queue=queue)
    tracker, scores = EpisodeTracker(rows), []
    while not stopped():
        step = env.recv()
        watch(step, [row for row in range(rows) if quota[row]])
        for episode in tracker.add(step.reward, step.is_first, step.is_last):
            if quota[episode.env]:
                quota[episode.env] -= 1
                scores.append(episode.score)
        if not any(quota):
            break
        env.send(act(step))
    return scores


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
