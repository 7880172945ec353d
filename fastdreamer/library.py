"""Training from Python: `agent = fastdreamer.learn(make_env, steps=50_000)`."""

import importlib
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium

from fastdreamer.presets import PRESETS
from fastdreamer.run import default_folder, run
from fastdreamer.stop import STOPPING
from fastdreamer.trained import TrainedAgent, load

Factory = Callable[[], gymnasium.Env[Any, Any]]


def learn(
    env: str | Factory, *, steps: int, preset: str = "cartpole", num_envs: int = 16, seed: int = 0, dir: str = ""
) -> TrainedAgent:
    """Trains an agent for some agent steps and returns it; what else a run leaves is in its folder.

    env: an id, as `--env.id` takes it, or a function or class of a module that makes a gymnasium environment. preset:
    where every other field comes from; its own environment's options and goal are left out. dir: the run folder,
    `runs/<preset>-<time>` where it is empty; `python -m fastdreamer.train --resume` goes on with it. The first Ctrl-C
    saves and returns the agent as far as it is. Raises ValueError, one line, for what cannot be made, and
    `fastdreamer.guard.DivergedError` for a run that is lost.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    base = PRESETS[preset]
    config = replace(
        base,
        env=replace(base.env, id=env if isinstance(env, str) else _id_of(env), num_envs=num_envs, options={}),
        run=replace(base.run, dir=dir or default_folder(preset), steps=steps, seed=seed, solved=None, eval_episodes=0),
    )
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        run(config, resume=False, started=time.perf_counter())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return load(Path(config.run.dir), seed=seed)


def _id_of(factory: object) -> str:
    """`module:name`, by which the processes of environments, and a run that goes on, find it again."""
    if isinstance(factory, gymnasium.Env):
        raise ValueError("env must be an id or what makes the environment: pass its class or a function, not one of it")
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    found: object = importlib.import_module(module) if isinstance(module, str) else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(factory) or found is not factory:
        raise ValueError(f"env must be an id, or a function or class at the top of a module, got {factory!r:.60}")
    return f"{module}:{name}"
