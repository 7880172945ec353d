"""One row of the battery: the loop end to end, in a process of its own. Prints one JSON object.

python -m bench.battery_loop --task image --size size12m --ratio 512
"""

import argparse
import json
import logging
import os
import sys
import time
from dataclasses import replace
from typing import Any, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from bench.battery_updates import DRY, DRY_BATCH, DRY_HORIZON, DRY_LENGTH
from bench.workload import ENVS, Task
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, ReplayConfig, RunConfig, Size
from fastdreamer.loop import Training
from fastdreamer.presets import ATARI100K

SECONDS = 20.0
ENVPOOL: dict[Task, EnvConfig] = {
    "image": EnvConfig(id="Pong-v5", num_envs=ENVS, options=ATARI100K),
    "vector": EnvConfig(id="WalkerWalk-v1", num_envs=ENVS),
}
STANDIN: dict[Task, EnvConfig] = {
    task: EnvConfig(id=f"bench.battery_env:make_{task}", num_envs=ENVS) for task in get_args(Task)
}


def loop_config(env: EnvConfig, size: Size, ratio: float, dry: bool) -> Config:
    """A run that never ends by itself."""
    model, replay, loss = ModelConfig(size=size), ReplayConfig(), LossConfig()
    if dry:
        model = replace(DRY, depth=2)
        replay = ReplayConfig(batch_size=DRY_BATCH, batch_length=DRY_LENGTH)
        loss = LossConfig(horizon=DRY_HORIZON)
    run = RunConfig(train_ratio=ratio, device="cpu" if dry else "auto")
    return Config(preset="bench", env=env, model=model, loss=loss, replay=replay, run=run)


def measure(config: Config, born: float, seconds: float) -> dict[str, Any]:
    """Steps, updates and lags of a span that begins a few launches after the first update."""
    training = Training(config, None)
    learner = training.learner
    while training.progress.updates < 3:
        training.advance()
    learner.drain()
    first = time.time() - born
    steps, updates, lags = training.env_steps, training.progress.updates, list[int]()
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(lags) < 8:
        lags.append(learner.lag)
        training.advance()
    learner.drain()
    elapsed = time.perf_counter() - begun
    steps, updates = training.env_steps - steps, training.progress.updates - updates
    training.env.close()
    per_second = steps / elapsed
    return {
        "env": config.env.id,
        "schedule": learner.schedule,
        "placement": learner.replay.placement.reason,
        "first_updates_s": round(first, 2),
        "seconds": round(elapsed, 2),
        "agent_steps_per_s": round(per_second, 2),
        "frames_per_s": round(per_second * training.env.action_repeat, 2),
        "updates_per_s": round(updates / elapsed, 3),
        "lag_min": min(lags),
        "lag_mean": round(sum(lags) / len(lags), 3),
        "lag_max": max(lags),
        "ratio_wanted": config.run.train_ratio,
        "ratio_realised": round(updates * config.replay.trained_steps / steps, 3),
    }


def envpool_is_here() -> bool:
    try:
        import envpool  # noqa: F401  # whether it can be
    except ImportError:
        return False
    return True


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=get_args(Task), default="vector")
    parser.add_argument("--size", choices=get_args(Size), default="size1m")
    parser.add_argument("--ratio", type=float, default=32.0)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--born", type=float, default=time.time(), help="when the process was started, seconds")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    present = envpool_is_here()
    config = loop_config((ENVPOOL if present else STANDIN)[args.task], args.size, args.ratio, args.dry_run)
    row = measure(config, args.born, 0.5 if args.dry_run else SECONDS)
    print(json.dumps({"envpool": "present" if present else "absent: a stand-in of numpy", **row}))


if __name__ == "__main__":
    main()
