"""The same seed gives the same run, and a run talks to nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import SHORT, TINY, tensors, tiny_config

from fastdreamer.checkpoint import latest
from fastdreamer.loop import Training

Bar = Callable[[str, bool], None]
RUNS = 10
TESTS = Path(__file__).parents[1]
PATHS = str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")
WATCHED = """
import json, socket, sys
calls = []
def watched(name):
    original = getattr(socket.socket, name)
    def call(self, *args):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            calls.append([name, repr(args)])
        return original(self, *args)
    setattr(socket.socket, name, call)
for name in ("bind", "listen", "connect", "connect_ex", "sendto"):
    watched(name)
from importlib import import_module
found, module, *words = sys.argv[1:]
code = import_module(f"fastdreamer.{module}").main(words)
json.dump(calls, open(found, "w"))
sys.exit(code)
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(tmp_path: Path, bar: Bar) -> None:
    first: dict[str, torch.Tensor] = {}
    for _ in range(RUNS):
        training = Training(tiny_config(tmp_path, seed=7), None)
        while training.env_steps < 200:
            training.advance()
        training.env.close()
        state = tensors(training) | {key: ring[:, :50] for key, ring in training.learner.replay.records.items()}
        first = first or {name: tensor.clone() for name, tensor in state.items()}
        held = all(torch.equal(tensor, first[name]) for name, tensor in state.items())
        bar("R19 the same seed twice", held)
        assert held


@pytest.mark.parametrize(
    "device, runs, compile",
    [
        ("cpu", 2, "false"),
        pytest.param("cuda", 5, "false", marks=pytest.mark.gpu),
        pytest.param("cuda", 5, "true", marks=pytest.mark.gpu),
    ],
)
def test_deterministic_runs_are_equal(tmp_path: Path, bar: Bar, device: str, runs: int, compile: str) -> None:
    """Images, vectors and both kinds of action, each run in a process of its own; and no op of ours refuses."""
    arguments = ["--env.id=spoilers:Mixed", "--env.num_envs=4", "--run.steps=100", "--run.train_ratio=3"]
    arguments += ["--model.size=size1m"] if device == "cuda" else TINY
    arguments += ["--model.depth=2", "--replay.batch_size=3", "--replay.batch_length=4", "--run.eval_episodes=0"]
    arguments += [f"--run.device={device}", f"--run.compile={compile}", "--deterministic"]
    first: dict[str, torch.Tensor] = {}
    for number in range(runs):
        folder = tmp_path / str(number)
        done = subprocess.run(
            [sys.executable, "-m", "fastdreamer.train", *arguments, f"--run.dir={folder}"],
            capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = {
            f"{path.name} {name}": tensor
            for path in latest(folder).path.glob("*.safetensors")
            for name, tensor in load_file(path).items()
        }
        first = first or found
        held = found.keys() == first.keys() and all(torch.equal(value, first[name]) for name, value in found.items())
        bar(f"R19 --deterministic twice on {device}", held)
        assert held
    assert first["optim.safetensors step"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "gym:CartPole-v1"])
def test_a_run_listens_to_nobody_and_calls_nobody(tmp_path: Path, bar: Bar, env: str) -> None:
    """Trained, saved, evaluated and resumed; and what is made of its folder."""
    found, folder = tmp_path / "calls.json", tmp_path / "run"
    arguments = [
        *SHORT,
        f"--env.id={env}",
        f"--run.dir={folder}",
        "--run.steps=300",
        "--run.eval_episodes=2",
        "--run.videos=0",
    ]
    for command in (
        ["train", "cartpole", *arguments],
        ["train", "--resume", str(folder), "--run.steps=400"],
        ["report", str(folder), "--out", str(tmp_path / "page.html")],
        ["evaluate", str(folder), "--episodes", "1"],
        ["dream", str(folder), "--out", str(tmp_path / "dream")],
        ["export", str(folder), "--out", str(tmp_path / "policy")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, str(found), *command], capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        calls = json.loads(found.read_text())
        bar("R21 and R22 no sockets", not calls)
        assert calls == [], command[0]
