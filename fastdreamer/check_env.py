"""`python -m fastdreamer.check_env ID [--env.num_envs N] [--env.options.NAME VALUE]`: plays an environment at random.

As a run would meet it, but without training and without torch: shows what it observes and takes, then steps it until
it has been through resets and ends, and says in one line what does not fit.
"""

import sys

import numpy as np

from fastdreamer import cli
from fastdreamer.env import Env, EnvError, make_env
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.spaces import Space, Spaces

STEPS = 1000
"""Of every environment."""
BEYOND = 1.3
"""Continuous actions are raw samples, which may lie outside of -1..1."""


def main(argv: list[str]) -> int:
    """The exit code: 0 if a run can use the environment, 2 if not."""
    if not argv or argv[0].startswith("-"):
        cli.fail("name an environment: python -m fastdreamer.check_env ID [--env.options.NAME VALUE]")
    config = cli.parse(["cartpole", f"--env.id={argv[0]}", *argv[1:]]).config
    try:
        env = make_env(config.env.id, num_envs=config.env.num_envs, seed=config.run.seed, options=config.env.options)
        for name, spaces in (("observation", env.obs_space), ("action", env.act_space)):
            print("\n".join(f"{name} {key}: {describe(space)}" for key, space in spaces.items()))
        try:
            scores, rewards = play(env, config.run.seed)
        finally:
            env.close()
    except EnvError as error:
        cli.fail(error)
    low, high = min(rewards), max(rewards)
    print(f"{STEPS} steps of {config.env.num_envs} environments, rewards from {low:g} to {high:g}")
    print(f"{len(scores)} episodes, mean return {np.mean(scores):g}" if scores else "no episode ended")
    print(f"ok: python -m fastdreamer.train --env.id {config.env.id}")
    return 0


def play(env: Env, seed: int) -> tuple[list[float], list[float]]:
    """Returns of the episodes that ended, and all rewards, under random actions."""
    rng, tracker = np.random.default_rng(seed), EpisodeTracker(env.num_envs)
    scores: list[float] = []
    rewards: list[float] = []
    for _ in range(STEPS):
        step = env.recv()
        rewards += step.reward[~step.is_first].tolist()
        scores += [episode.score for episode in tracker.add(step.reward, step.is_first, step.is_last)]
        env.send(random_action(env.act_space, env.num_envs, rng))
    return scores, rewards


def random_action(spaces: Spaces, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """(N, *shape) per key, as a policy would send it."""
    actions = {}
    for key, space in spaces.items():
        shape = (rows, *space.shape)
        if space.kind == "discrete":
            actions[key] = rng.integers(space.classes, size=shape, dtype=np.int32)
        else:
            actions[key] = rng.uniform(-BEYOND, BEYOND, shape).astype(np.float32)
    return actions


def describe(space: Space) -> str:
    """A space in words."""
    shape = "x".join(map(str, space.shape)) or "one"
    classes = f" of {space.classes} classes" if space.classes else ""
    return f"{space.kind} {shape}{classes}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
