"""R11: environments that raise, die, hang or show NaN: a process is replaced, a pool made anew, or a run ends well."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_loop import SHORT

from fastdreamer.checkpoint import latest
from fastdreamer.env import Env, EnvError, Step, make_env
from fastdreamer.env_cursor import episode_seed
from fastdreamer.env_envpool import EnvPoolBackend
from fastdreamer.metrics import read_jsonl

Bar = Callable[[str, bool], None]
TESTS = Path(__file__).parents[1]
SEED, TIMEOUT = 5, 8.0
SAID = {
    "raise": "env 1: died with exit code 1",
    "die": "env 1: died with exit code -9",
    "hang": "env 1: did not answer within env.timeout, 8 s",
    "nan": 'env 1: observation "vector" is not finite (got nan)',
    "reward": "env 1: reward is not finite (got inf)",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def play(env: Env, records: int) -> list[Step]:
    steps = []
    for _ in range(records):
        steps.append(env.recv())
        env.send({"action": np.zeros(env.num_envs, int)})
    return steps


def faulty(how: str, once: str, vectorization: str = "async") -> Env:
    options = {"how": how, "once": once, "vectorization": vectorization}
    return make_env("fake_envs:Faulty", num_envs=3, seed=SEED, options=options, timeout=TIMEOUT)


@pytest.mark.parametrize("how", SAID)
def test_one_process_is_replaced_and_the_others_go_on(
    tmp_path: Path, bar: Bar, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    once = tmp_path / f"once.{SEED + 1}"
    whole = faulty(how, str(once))  # without the file nothing fails
    expected = play(whole, 25)
    whole.close()
    once.touch()
    env, began = faulty(how, str(once)), time.monotonic()
    steps = play(env, 25)
    seconds = time.monotonic() - began
    env.close()
    assert caplog.messages == [f"{SAID[how]}; it is made anew and begins new episodes"]
    firsts = [(at, index) for at, step in enumerate(steps) for index in np.flatnonzero(step.is_first).tolist()]
    others_same = all(
        (ours.obs["vector"][[0, 2]] == theirs.obs["vector"][[0, 2]]).all()
        and (ours.reward[[0, 2]] == theirs.reward[[0, 2]]).all()
        for ours, theirs in zip(steps, expected, strict=True)
    )
    held = firsts == [(0, 0), (0, 1), (0, 2), (8, 1)] and others_same and env.rebuilds == 1
    held = held and not any(step.is_last.any() for step in steps) and seconds < 3 * TIMEOUT
    bar("R11 one process replaced", held)
    assert held, (firsts, others_same, env.rebuilds, seconds)
    assert np.isfinite([step.obs["vector"] for step in steps]).all() and steps[8].reward[1] == 0


def test_an_environment_that_fails_again_and_again_is_called_broken(bar: Bar, caplog: pytest.LogCaptureFixture) -> None:
    env = faulty("reward", "")
    with pytest.raises(EnvError) as caught:
        play(env, 100)
    env.close()
    line = r"env.id fake_envs:Faulty: env \d: reward is not finite \(got inf\); 4 failures within 10 minutes"
    held = (
        re.fullmatch(line, str(caught.value)) is not None
        and max(sum(f"env {at}:" in message for message in caplog.messages) for at in range(3)) == 3
    )
    bar("R11 a broken one is named", held)
    assert held, (caught.value, caplog.messages)


@pytest.mark.parametrize("how, message", [("raise", "^of the environment$"), ("nan", "env 0: .* is not finite")])
def test_in_this_process_the_error_is_the_runs(bar: Bar, how: str, message: str) -> None:
    env = faulty(how, "", "sync")
    with pytest.raises(ValueError, match=message):
        play(env, 10)
    bar("R11 in this process", env.rebuilds == 0)
    assert env.rebuilds == 0


def test_a_pool_that_shows_nan_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, bar: Bar, caplog: pytest.LogCaptureFixture
) -> None:
    original = EnvPoolBackend.receive

    def poisoned(backend: EnvPoolBackend):  # type: ignore[no-untyped-def]
        raw = original(backend)
        if backend._record == 10 and not caplog.messages:
            raw.obs["vector"] = raw.obs["vector"] * np.float32([1, np.nan, 1, 1])
        return raw

    monkeypatch.setattr(EnvPoolBackend, "receive", poisoned)
    env = make_env("CartPole-v1", num_envs=4, seed=SEED)
    steps = play(env, 20)
    env.close()
    firsts = [step.is_first.all() for step in steps]
    held = [at for at, first in enumerate(firsts) if first] == [0, 10] and env.rebuilds == 1
    said = 'EnvPool: env 0: observation "vector" is not finite (got nan); it is made anew and begins new episodes'
    fresh = make_env("CartPole-v1", num_envs=4, seed=episode_seed(SEED, 10)).recv().obs["vector"]
    held = held and (steps[10].obs["vector"] == fresh).all()
    held = held and caplog.messages == [said] and all(np.isfinite(step.obs["vector"]).all() for step in steps)
    bar("R11 a pool made anew", held)
    assert held, (firsts, caplog.messages)


RUN = """
import os, signal, sys, time
from fastdreamer.env_cursor import episode_seed
from fastdreamer.env_envpool import EnvPoolBackend
how, original = sys.argv.pop(1), EnvPoolBackend.receive
def receive(backend):
    if backend._record == 60 and how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if backend._record == 60 and how == "hang" or backend._seed and how == "hang in evaluation":
        time.sleep(1000)
    return original(backend)
EnvPoolBackend.receive = receive
from fastdreamer.train import main
sys.exit(main(sys.argv[1:]))
"""
"""A run whose pool hangs, or takes the process down, at its record 60; or one that evaluates hangs."""
HOW = ["hang", *(pytest.param(how, marks=pytest.mark.slow) for how in ("crash", "hang in evaluation"))]


@pytest.mark.parametrize("how", HOW)
def test_a_pool_that_hangs_or_crashes_ends_the_run_with_a_checkpoint_and_the_command(
    tmp_path: Path, bar: Bar, how: str
) -> None:
    folder = tmp_path / "run"
    arguments = [*SHORT, f"--run.dir={folder}", "--run.steps=1000000", "--env.timeout=2", "--run.log_every=0.1"]
    arguments += ["--run.eval_every=240"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, how, "cartpole", *arguments], capture_output=True, text=True, timeout=100
    )
    printed = re.findall(r"go on with: python -m (fastdreamer.train --resume \S+)$", done.stdout, re.MULTILINE)
    saved = latest(folder).value("env_steps", int)
    if how != "crash":
        said = "fastdreamer: error: env.id CartPole-v1: no answer within env.timeout, 2 s\n"
        held = (done.returncode, done.stderr, saved) == (2, said, 60 * 4)
    else:
        held = done.returncode == -signal.SIGSEGV and 0 < saved <= 60 * 4
    assert held and len(printed) == 1, done
    resumed = subprocess.Popen(
        [sys.executable, "-m", *printed[0].split()], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert resumed.stdout is not None
    goes_on = any("upd" in line for line in resumed.stdout)
    resumed.terminate()
    held = held and goes_on and resumed.wait(timeout=60) == 143
    bar("R11 a pool that hangs or crashes", held)
    assert held


@pytest.mark.slow
def test_faults_are_counted_in_the_metrics(tmp_path: Path, bar: Bar) -> None:
    folder, once = tmp_path / "run", tmp_path / f"once.{SEED + 1}"
    once.touch()
    arguments = [
        *SHORT, f"--run.dir={folder}", "--run.steps=600", f"--run.seed={SEED}", "--run.eval_episodes=0",
        "--env.id=fake_envs:Faulty", "--env.options.how=die", f"--env.options.once={once}",
        "--env.options.vectorization=async", "--run.log_every=0",
    ]  # fmt: skip
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "fastdreamer.train", "cartpole", *arguments],
        capture_output=True, text=True, timeout=100, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    counts = [record["env_rebuilds"] for record in read_jsonl(folder / "metrics.jsonl") if "update" in record]
    held = done.returncode == 0 and counts[-1] == 1 and "env 1: died with exit code -9" in done.stdout
    bar("R11 counted in the metrics", held)
    assert held, (done, counts)
