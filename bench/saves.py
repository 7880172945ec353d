"""What a checkpoint costs the training beside it: `python -m bench.saves atari100k --model.size size12m`.

The ring is filled with random records up to its capacity, and before each save every state in it has changed and as
many records are new as a run adds between two saves: the most that a save can meet. Blocked: seconds that training
stands still while it is taken. Writing: seconds of a processor that the thread takes that writes it. Lost: seconds that
updates beside the writing took more than as many without. The share of run.save_every counts blocked and writing, as if
every second of it were taken from the training; lost_share counts blocked and lost.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.workload import fill, run_updates
from fastdreamer import cli
from fastdreamer.guard import Guard
from fastdreamer.learner import Learner
from fastdreamer.loop import Training

ROUNDS = 3
LEAST = 3
"""Updates that are timed, at least."""


def main(argv: list[str]) -> None:
    """Takes the words of a training, measures, prints a table and one JSON line."""
    config = cli.parse([*argv, "--run.device=cpu"]).config
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        training = Training(config, None)
        rounds = measure(training, Path(folder))
        training.env.close()
    result = {"words": argv, "records": training.learner.replay.length, "num_envs": config.env.num_envs}
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        result[name], result[f"{name}_range"] = statistics.median(values), [min(values), max(values)]
        print(f"{name:>18}  {result[name]:.4g}  {min(values):.4g} .. {max(values):.4g}")
    print(json.dumps(result))


def measure(training: Training, folder: Path) -> list[dict[str, float]]:
    """The figures of every round."""
    config, learner, guard = training.config, training.learner, Guard(training, folder)
    fill(learner, learner.replay.rows)
    timed_updates(learner, 1)
    alone = timed_updates(learner, LEAST) / LEAST
    training.begin_save(folder).wait()
    steps = config.run.save_every / alone * config.replay.trained_steps / config.run.train_ratio
    fresh = min(-(-round(steps) // config.env.num_envs), learner.replay.rows)
    rounds = []
    for _ in range(ROUNDS):
        fill(learner, fresh)
        learner.replay._latent_files.changed(slice(None), np.arange(learner.replay.rows))
        used, begun = writer_seconds(learner), time.perf_counter()
        guard.ready_to_save()
        saving = training.begin_save(folder)
        taken = time.perf_counter()
        updates = 0
        while updates < LEAST or not saving.done():
            timed_updates(learner, 1)
            updates += 1
        beside = time.perf_counter() - taken
        saving.wait()
        writing = writer_seconds(learner) - used
        alone = timed_updates(learner, updates)
        blocked, lost = taken - begun, beside - alone
        rounds.append(
            {
                "update_seconds": alone / updates,
                "new_records": fresh,
                "folder_mb": usage(folder) / 1e6,
                "blocked_seconds": blocked,
                "writing_seconds": writing,
                "lost_seconds": lost,
                "share": (blocked + writing) / config.run.save_every,
                "lost_share": (blocked + lost) / config.run.save_every,
            }
        )
    return rounds


def timed_updates(learner: Learner, updates: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    run_updates(learner, updates)
    return time.perf_counter() - begun


def writer_seconds(learner: Learner) -> float:
    """Seconds of a processor that the thread that writes checkpoints has had."""
    return learner._saver.submit(time.thread_time).result()


def usage(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(sys.argv[1:])
