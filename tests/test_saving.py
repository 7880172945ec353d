"""Checkpoints that are written while training goes on: each is its moment, whole or not at all."""

import threading
from pathlib import Path
from typing import Any

import pytest
from run_state import differing, everything
from test_loop import tiny_config

from fastdreamer import checkpoint
from fastdreamer.loop import Training
from fastdreamer.metrics import JsonlWriter
from fastdreamer.replay_files import RingSave
from fastdreamer.run import Run
from fastdreamer.steps import put_back
from fastdreamer.stop import Stop


class Disk:
    """Lets a save be written when it is told to, or refuses the ring's part of it or the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.full, self.calls = threading.Event(), "", 0
        save, write = checkpoint.save, RingSave.write

        def save_later(*args: Any) -> Path:
            self._require("checkpoint")
            return save(*args)

        def write_later(ring: RingSave) -> dict[str, object]:
            self.calls += 1
            assert self.free.wait(60)
            self._require("ring")
            return write(ring)

        monkeypatch.setattr(checkpoint, "save", save_later)
        monkeypatch.setattr(RingSave, "write", write_later)

    def _require(self, part: str) -> None:
        if self.full == part:
            raise OSError(28, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def job(tmp_path: Path, disk: Disk) -> Run:
    training = Training(tiny_config(tmp_path, steps=10**6), None)
    train(training, 60)  # so that an update changes less than half of the states
    return Run(training, tmp_path, JsonlWriter(tmp_path / "metrics.jsonl"), Stop(), 0.0)


def train(training: Training, updates: int) -> None:
    until = training.progress.updates + updates
    while training.progress.updates < until:
        training.advance()


def test_it_holds_the_moment_it_was_taken(job: Run, disk: Disk, tmp_path: Path) -> None:
    moments = []
    for _ in range(3):  # the second and third write changes
        disk.free.clear()
        moments.append((job.training.env_steps, everything(job.training)))
        job.save(wait=False)
        train(job.training, 2)
        assert job.saving is not None and not job.saving.done()
        replay = job.training.learner.replay
        rings = [*replay.records.values(), *replay.latents.values()]
        now = [ring.clone() for ring in rings]
        for ring in rings:
            ring.fill_(1)  # of what will be written nothing is read from here any more
        disk.free.set()
        job._end_save(wait=True)
        put_back(rings, now)
    job.training.env.close()
    for step, moment in moments[1:]:  # two are kept
        resumed = Training(job.training.config, checkpoint.load(tmp_path / "checkpoints" / f"step-{step:09}"))
        assert differing(everything(resumed), moment) == []
        resumed.env.close()
    index = checkpoint.latest(tmp_path).replay
    assert index is not None and "changes" in str(index["chunks"]), "the last one built on those before"


def test_one_is_written_at_a_time(job: Run, disk: Disk) -> None:
    job.save(wait=False)
    for _ in range(3):
        train(job.training, 1)
        job.save(wait=False)
    assert disk.calls == 1
    disk.free.set()
    job.save(wait=True)
    assert disk.calls == 2 and job.saving is None
    job.training.env.close()


@pytest.mark.parametrize("part", ["ring", "checkpoint"])
def test_what_was_not_written_is_written_by_the_next(
    job: Run, disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    disk.free.set()
    job.save(wait=True)
    for _ in range(2):
        train(job.training, 2)
        disk.full = part
        job.save(wait=False)
        train(job.training, 2)
        job._end_save(wait=True)
    assert [message.split(";")[0].split(": ")[1] for message in caplog.messages] == 2 * ["No space left on device"]
    disk.full = ""
    job.save(wait=True)
    resumed = Training(job.training.config, checkpoint.latest(tmp_path))
    assert differing(everything(resumed), everything(job.training)) == []
    for training in (resumed, job.training):
        training.env.close()


def test_an_error_that_is_none_of_the_disk_is_raised(job: Run, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.free.set()

    def broken(*_: object) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "save", broken)
    with pytest.raises(ZeroDivisionError):
        job.save(wait=True)
    job.training.env.close()


def test_what_is_too_large_to_copy_is_written_at_once(
    job: Run, disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fastdreamer.replay_files.LARGEST_COPY", 1000)
    disk.free.set()
    moment = everything(job.training)
    saving = job.training.begin_save(tmp_path)
    assert saving.done()
    train(job.training, 3)
    saving.wait()
    resumed = Training(job.training.config, checkpoint.latest(tmp_path))
    assert differing(everything(resumed), moment) == []
    for training in (resumed, job.training):
        training.env.close()
