"""Runs that are killed at any moment, and inside of saves: each goes on by the command it printed, none is lost."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_loop import SHORT

from fastdreamer.checkpoint import CheckpointError, latest
from fastdreamer.config import Config
from fastdreamer.loop import Training
from fastdreamer.metrics import read_jsonl

Bar = Callable[[str, bool], None]
INTERVAL = 1.0
"""Seconds of training between two saves."""
SLACK = 1.0
"""Seconds: a save is due at the first step after an interval, and on the disk some tenths later; training goes on."""
ARGUMENTS = [
    *SHORT,
    "--run.steps=100000000",
    "--replay.capacity=2000",
    "--run.log_every=0.2",
    f"--run.save_every={INTERVAL}",
]
KILLS_AT_THE_NTH_SYNC = """
import os, signal, sys
import fastdreamer.checkpoint
left, sync = int(sys.argv.pop(1)), os.fsync
def counted(file):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(file)
os.fsync = counted
from fastdreamer.train import main
sys.exit(main(sys.argv[1:]))
"""


def start(command: list[str]) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for(process: "subprocess.Popen[str]", text: str) -> str:
    """Reads lines until one holds `text`; all that was read."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} did not come: {seen}")


def printed(process: "subprocess.Popen[str]") -> list[str]:
    """The arguments of the one command to go on with that a process, and whoever outlives it, prints until the end."""
    assert process.stdout is not None
    (command,) = re.findall(r"go on with: python (.+)", process.stdout.read())
    process.wait()
    return command.split()


def saved_step(folder: Path) -> int:
    return latest(folder).value("env_steps", int)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has saved once and was then stopped."""
    folder = tmp_path / "run"
    process = start(["-m", "fastdreamer.train", "cartpole", *ARGUMENTS, f"--run.dir={folder}"])
    wait_for(process, "first update")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kills", [70])
def test_kills_at_random_moments(folder: Path, bar: Bar, kills: int) -> None:
    rng, resume = random.Random(0), ["-m", "fastdreamer.train", "--resume", str(folder)]
    for _ in range(kills):
        before = saved_step(folder)
        process = start(resume)
        wait_for(process, "run folder")
        time.sleep(rng.uniform(0, 3.0))
        process.kill()
        held = (printed(process), lost(folder, before)) == (resume, "")
        bar("R2 kill -9 at a random moment", held)
        assert held, lost(folder, before)
    check_metrics(folder, bar)
    stop_by_signal(folder)
    check_replay(folder, bar)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30])
def test_kills_inside_a_save(folder: Path, bar: Bar, kills: int) -> None:
    """A save syncs each of its files, folders and chunks: the process dies before one of the first forty syncs."""
    rng = random.Random(1)
    for _ in range(kills):
        before = saved_step(folder)
        process = start(["-c", KILLS_AT_THE_NTH_SYNC, str(rng.randint(1, 40)), "--resume", str(folder)])
        resume = printed(process)
        assert process.returncode == -signal.SIGKILL
        held = (resume, lost(folder, before)) == (["-m", "fastdreamer.train", "--resume", str(folder)], "")
        bar("R2 kill -9 inside a save", held)
        assert held, lost(folder, before)
    check_metrics(folder, bar)
    stop_by_signal(folder)
    check_replay(folder, bar)
    assert not [path for path in folder.rglob(".tmp-*")], "what was begun is swept away"


def stop_by_signal(folder: Path) -> None:
    """Goes on for a while, and saves."""
    process = start(["-m", "fastdreamer.train", "--resume", str(folder)])
    wait_for(process, "upd")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "saved; go on with")
    assert process.wait(timeout=60) == 143


def lost(folder: Path, before: int) -> str:
    """What a run has lost that it may not: nothing, or more than is made in an interval between two saves."""
    try:
        saved = latest(folder)
    except CheckpointError as error:
        return str(error)
    trained = saved.value("progress", dict)["train_seconds"]
    logged = [record["elapsed"] for record in read_jsonl(folder / "metrics.jsonl") if "elapsed" in record]
    seconds = max([seconds for seconds in logged if isinstance(seconds, float)], default=0.0) - trained
    if seconds > INTERVAL + SLACK:
        return f"{seconds:.2f} s"
    return "" if saved.value("env_steps", int) >= before else f"steps {saved.value('env_steps', int)} to {before}"


def check_metrics(folder: Path, bar: Bar) -> None:
    """Every line that the next start will keep is a record; logs go up in steps, and none is there twice."""
    steps = [record["step"] for record in read_jsonl(folder / "metrics.jsonl") if "update" in record]
    numbers = [step for step in steps if isinstance(step, int)]
    rising = all(early < late for early, late in pairwise(numbers))
    bar("R16 metrics after the kills", len(numbers) == len(steps) > 0 and rising)
    assert rising


def check_replay(folder: Path, bar: Bar) -> None:
    """What a run goes on with: no window crosses a hole, and no file is there that no checkpoint needs.

    Within an episode of CartPole a position is the one before and 0.02 s of its speed, and so is the angle. The ring
    itself refuses to be loaded where a record is missing, and `latest` a file that is torn.
    """
    training = Training(Config.from_json(json.loads((folder / "config.json").read_text())), latest(folder))
    replay = training.learner.replay
    training.env.close()
    low, high = replay.window_range()
    place = torch.arange(low // replay.num_envs, replay.length) % replay.rows
    obs, is_first = (replay.records[key][:, place] for key in ("obs/vector", "is_first"))
    moved = obs[:, :-1, [0, 2]] + 0.02 * obs[:, :-1, [1, 3]]
    torn = ~is_first[:, 1:] & ((obs[:, 1:, [0, 2]] - moved).abs() > 1e-4).any(-1)
    bar(f"R17 replay after the kills, {high - low} windows", not torn.any() and high > low)
    assert not torn.any() and high > low
    indices = [json.loads(path.read_text()) for path in folder.glob("checkpoints/*/replay/index.json")]
    needed = {name for index in indices for name in index["chunks"]}
    assert {path.name for path in (folder / "replay").iterdir()} == needed


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_at_random_moments(folder: Path, bar: Bar, number: int, code: int) -> None:
    rng = random.Random(number)
    for _ in range(20):
        before = saved_step(folder)
        process = start(["-m", "fastdreamer.train", "--resume", str(folder)])
        wait_for(process, "run folder")
        time.sleep(rng.uniform(0, 1.0))
        sent = time.perf_counter()
        process.send_signal(number)
        text = wait_for(process, "saved; go on with")
        held = process.wait(timeout=60) == code and time.perf_counter() - sent < 10 and saved_step(folder) >= before
        printed = re.search(r"--resume (\S+)", text)
        held = held and printed is not None and printed[1] == str(folder)
        bar(f"R3 {signal.Signals(number).name}", held)
        assert held
