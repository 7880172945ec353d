"""Checkpoints under saves that are killed, and under damage of every kind: the newest whole one is found, always."""

import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import assert_same, make_tensors, save_full

from fastdreamer.checkpoint import CheckpointError, latest

Bar = Callable[[str, bool], None]
CYCLES, DAMAGES = 200, 300


def newest(run: Path) -> int:
    """The step of the newest checkpoint that can be trusted, -1 where there is none; it must hold what was saved."""
    try:
        found = latest(run)
    except CheckpointError:
        return -1
    step = found.state["step"]
    assert isinstance(step, int)
    assert_same(found.tensors, make_tensors(step))
    return step


def save_until_killed(run: Path, step: int) -> int:
    """Starts a process that saves one step after the other."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                save_full(run, step)
                step += 1
        finally:
            os._exit(1)
    return child


@pytest.mark.slow
def test_saves_that_are_killed_never_leave_less_than_one(tmp_path: Path, bar: Bar) -> None:
    rng, run = random.Random(0), tmp_path / "run"
    save_full(run, 0)
    last = 0
    for _ in range(CYCLES):
        child = save_until_killed(run, last + 1)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        step = newest(run)
        bar("R7 saves that are killed", step >= last)
        assert step >= last
        last = step
    assert last > CYCLES / 4, "it got somewhere"
    save_full(run, last + 1)
    assert not list(run.rglob(".tmp-*")) and len(list((run / "checkpoints").iterdir())) == 2


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    first = rng.randrange(len(data))
    zeroed = data[:first] + bytes(min(4096, len(data) - first)) + data[first + 4096 :]
    path.write_bytes(zeroed if zeroed != data else data[:-1])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random) -> None:
    others = sorted(other for other in path.parents[0].iterdir() if other.is_file() and other != path)
    other = rng.choice(others) if others else path.parents[1] / "state.json"
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs), other.write_bytes(mine)


def empty(path: Path, rng: random.Random) -> None:
    folder = next(parent for parent in path.parents if parent.name.startswith("step-"))
    shutil.rmtree(folder)
    folder.mkdir()


def lengthen(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


@pytest.mark.slow
def test_damage_is_detected_and_the_one_before_is_used(
    tmp_path: Path, bar: Bar, caplog: pytest.LogCaptureFixture
) -> None:
    rng, kinds = random.Random(0), (flip, truncate, zero, remove, swap, empty, lengthen)
    for at in range(DAMAGES):
        run = tmp_path / str(at)
        save_full(run, 1)
        target = save_full(run, 2)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        kinds[at % len(kinds)](rng.choice(files), rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            held = newest(run) == 1 and len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
        bar("R4 damaged checkpoints", held)
        assert held, (kinds[at % len(kinds)].__name__, caplog.messages)
        shutil.rmtree(run)
