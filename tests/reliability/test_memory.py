"""R14, R15: what a run needs is said before its first step, and one that runs out of memory says so."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from run_state import differing, everything
from test_loop import SHORT, TINY, tiny_config

from fastdreamer import preflight
from fastdreamer.checkpoint import latest
from fastdreamer.loop import Training

Bar = Callable[[str, bool], None]
TESTS = Path(__file__).parents[1]
WITHIN = 0.15
PROGRAM = """
import sys
from fastdreamer.loop import Training
from fastdreamer.run import Run
from fastdreamer.train import main
advance, save = Training.advance, Run.save
def by_steps(training):
    scores = advance(training)
    training.progress.train_seconds = training.env_steps / 1000
    return scores
Training.advance, Run.save = by_steps, lambda run, wait: save(run, wait=True)
try:
    main(sys.argv[1:])
finally:
    print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
"""A run that says at its end how large it has been.

A thousand steps are a second of its clock, and saves are waited for: what they leave is the same on every machine.
"""
MODELS = {
    "vector": [
        *TINY, "--model.deter=256", "--replay.capacity=2000", "--run.steps=4000", "--run.save_every=0.5",
        "--run.train_ratio=8",
    ],
    "image": [
        "--env.id=fake_envs:Walk", "--env.options.show=image", "--model.size=size1m", "--replay.capacity=3000",
        "--run.steps=5000", "--run.save_every=0.1", "--run.train_ratio=0.5",
    ],
}  # fmt: skip
"""Runs that fill their ring and go on. Between two saves training renews most states of the vectors' ring, as in the
presets; next to nothing is dropped of the images' ring, where records are what is large.
"""


def start(arguments: list[str], program: str = PROGRAM) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", program, "cartpole", *arguments], capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


def close(said: float, measured: float) -> bool:
    return abs(said - measured) <= WITHIN * measured


@pytest.mark.parametrize("kind", ["vector", pytest.param("image", marks=pytest.mark.slow)])
def test_needs_are_what_is_then_measured(tmp_path: Path, bar: Bar, kind: str) -> None:
    folder = tmp_path / "run"
    done = start([*MODELS[kind], "--run.solved=none", "--run.eval_episodes=0", f"--run.dir={folder}"])
    assert done.returncode == 0, done.stderr
    found = re.search(r"needs ([\d.]+) GiB of memory \([\d.e-]+ free\), ([\d.]+) GiB of disk", done.stdout)
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert found is not None and peak is not None, done.stdout
    measured = int(peak[1]) / 2**20, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30
    for what, said, real in zip(("memory", "disk"), map(float, found.groups()), measured, strict=True):
        bar(f"R14 {what} that is needed", close(said, real))
        assert close(said, real), (what, said, real)


def test_what_does_not_fit_is_refused(tmp_path: Path, bar: Bar) -> None:
    """The ring alone would fit into what is free here, or be refused by itself: so what is free is set."""
    training = Training(tiny_config(tmp_path), None)
    training.env.close()
    for module, free, message in (
        ("available_memory", lambda: 1000, r"needs [\d.]+ GiB of memory \([\d.]+ free\): try a smaller"),
        (
            "shutil.disk_usage",
            lambda _: SimpleNamespace(free=1000),
            r"run\.dir .*: needs [\d.e-]+ GiB of disk, .*: try",
        ),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"fastdreamer.preflight.{module}", free)
            with pytest.raises(ValueError, match=rf"^{message}"):
                preflight.check(training.learner, tmp_path)
        bar("R14 refused in one line", True)


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path), None)
    while training.progress.updates < 3:
        training.advance()
    before = everything(training)
    preflight.check(training.learner, tmp_path)
    assert differing(everything(training), before) == []
    assert all(parameter.grad is None for parameter in training.learner.agent.parameters())
    training.env.close()


HOG = """
import resource, sys
import torch
from fastdreamer.run import Run
from fastdreamer.loop import Training
hog, prepared, advance = [], Run._note_first_update, Training.advance
def first(run):
    prepared(run)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), resource.RLIM_INFINITY))
    Training.advance = lambda training: (hog.append(torch.zeros(1 << 20)), advance(training))[1]
Run._note_first_update = first
from fastdreamer.train import main
sys.exit(main(sys.argv[1:]))
"""
"""A run that may grow by 200 MiB after its first checkpoint, and does by 4 a step."""


def test_out_of_memory_is_one_line_and_exit_code_4(tmp_path: Path, bar: Bar) -> None:
    folder = tmp_path / "run"
    done = start([*TINY, f"--run.dir={folder}"], HOG)
    line = (
        r"fastdreamer: error: out of memory, try a smaller replay\.capacity, replay\.batch_size or model\.size: "
        r".*allocate.*\n"
    )
    held = done.returncode == 4 and re.fullmatch(line, done.stderr) is not None
    held = held and latest(folder).value("env_steps", int) > 0
    bar("R15 out of memory", held)
    assert held, done


MINUTES, SECONDS, SLOPE = 20, 5, 1.0
"""How long a run is watched once its ring is full, how often, and MB that it may grow in a minute."""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path, bar: Bar) -> None:
    arguments = [*SHORT, "--replay.capacity=2000", "--run.steps=1000000000", "--run.save_every=10", "--run.solved=none"]
    command = [sys.executable, "-m", "fastdreamer.train", "cartpole", *arguments, f"--run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        time.sleep(60)  # 2,000 records are a few seconds
        sizes = []
        for _ in range(MINUTES * 60 // SECONDS):
            time.sleep(SECONDS)
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            sizes.append(pages * resource.getpagesize() / 1e6)
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert latest(tmp_path / "run").value("env_steps", int) > 10 * 2000
    slope = float(np.polyfit(np.arange(len(sizes)) * SECONDS / 60, sizes, 1)[0])
    print(f"{slope:.3f} MB a minute, {min(sizes):.0f} to {max(sizes):.0f} MB")
    bar(f"R14 memory grows by {slope:.2f} MB a minute", slope < SLOPE)
    assert slope < SLOPE, sizes
