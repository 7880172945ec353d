"""Whole runs of a tiny agent: the run folder, the schedule, stopping and going on."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdreamer import checkpoint, steps
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, OptimConfig, ReplayConfig, RunConfig
from fastdreamer.env import EnvError
from fastdreamer.env_backend import Raw
from fastdreamer.env_envpool import EnvPoolBackend
from fastdreamer.evaluate import evaluate, evaluation_env
from fastdreamer.loop import Training, spaces_in_words
from fastdreamer.metrics import read_jsonl
from fastdreamer.run import make_folder, run
from fastdreamer.spaces import Space
from fastdreamer.streams import InlineQueue
from fastdreamer.train import main

STEPS, ENVIRONMENTS = 400, 4
TINY = ["--model.deter=16", "--model.hidden=8", "--model.units=8", "--model.stoch=4", "--model.blocks=2"]
SHORT = [
    *TINY,
    "--replay.batch_size=4",
    "--replay.batch_length=8",
    f"--env.num_envs={ENVIRONMENTS}",
    "--loss.horizon=3",
]


def tiny_config(folder: Path, steps: int = STEPS, seed: int = 0) -> Config:
    return Config(
        preset="tiny",
        env=EnvConfig(id="CartPole-v1", num_envs=ENVIRONMENTS, options={"max_episode_steps": 12}),
        model=ModelConfig(size="size1m", deter=16, hidden=8, units=8, stoch=4, blocks=2),
        loss=LossConfig(horizon=3),
        optim=OptimConfig(lr=1e-3, warmup=2),
        replay=ReplayConfig(batch_size=4, batch_length=8),
        run=RunConfig(
            dir=str(folder), steps=steps, seed=seed, train_ratio=8, device="cpu", eval_episodes=3, log_every=0, videos=0
        ),
    )


def tensors(training: Training) -> dict[str, Tensor]:
    agent, optimizer = training.learner.agent, training.learner.optimizer
    model = {**dict(agent.named_parameters()), **dict(agent.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in {**model, **optimizer.state()}.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_leaves_what_the_readme_promises(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    assert run(config, resume=False, started=0.0) == 0
    folder = tmp_path / "run"
    assert Config.from_json(json.loads((folder / "config.json").read_text())) == config
    summary = json.loads((folder / "summary.json").read_text())
    # 32 windows in 4 envs: 8 records beyond the first 8. Then 8 replayed steps per agent step, 32 per update.
    assert summary["env_steps"] == STEPS
    assert summary["updates"] == 1 + (STEPS - config.first_update) * 8 // 32
    assert config.first_update == 64
    assert (summary["preset"], summary["seed"]) == ("tiny", 0)
    records = read_jsonl(folder / "metrics.jsonl")
    scores = [record["episode/return"] for record in records if "episode/return" in record and "update" not in record]
    assert summary["episodes"] == len(scores) > 20
    assert summary["return_last20"] == pytest.approx(sum(scores[-20:]) / 20)
    assert summary["solved_seconds"] is None
    evaluations = [record for record in records if "eval/return" in record]
    assert len(evaluations) == 1 and len(evaluations[0]["eval/returns"]) == 3
    assert (
        summary["eval_return"]
        == evaluations[0]["eval/return"]
        == pytest.approx(sum(evaluations[0]["eval/returns"]) / 3)
    )
    (last,) = [record for record in records if "opt/loss" in record]
    assert last["update"] == summary["updates"] and last["loss/rec/vector"] > 0


def test_a_run_is_done_when_it_is_solved_and_can_go_on(tmp_path: Path) -> None:
    """20 episodes of at most 12 steps have ended by then, and there was an update."""
    config = tiny_config(tmp_path / "run")
    config = replace(config, run=replace(config.run, solved=5.0))
    run(config, resume=False, started=0.0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["episodes"] >= 20 and summary["return_last20"] >= 5 and summary["updates"] > 0
    assert config.first_update <= summary["env_steps"] < STEPS
    assert 0 < summary["solved_seconds"] <= summary["train_seconds"]
    with pytest.raises(ValueError, match=r"is done; to go on, raise run\.steps or set run\.solved none$"):
        run(config, resume=True, started=0.0)
    run(replace(config, run=replace(config.run, solved=None)), resume=True, started=0.0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["env_steps"] == STEPS


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path: Path) -> None:
    ends = []
    for seed in (3, 3, 4):
        training = Training(tiny_config(tmp_path, seed=seed), None)
        while training.env_steps < 200:
            training.advance()
        training.env.close()
        ends.append(tensors(training))
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["step"], torch.zeros(())) and torch.equal(ends[0]["step"], ends[2]["step"])
    assert not torch.equal(ends[0]["world.dyn.dyngru.kernel"], ends[2]["world.dyn.dyngru.kernel"])


def test_a_resumed_run_learns_on_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    first = Training(config, None)
    while first.env_steps < 200:
        first.advance()
    first.save(tmp_path)
    second = Training(config, checkpoint.latest(tmp_path))
    assert_same(tensors(first), tensors(second))
    assert second.progress == first.progress and second.env_steps == 200
    assert second.ratio.state_dict() == first.ratio.state_dict()
    for training in (first, second):
        training.update(1)
        training.update(2)
    assert_same(tensors(first), tensors(second))
    assert first.learner.metrics.flush()["opt/loss"] != 0
    assert second.env.recv().is_first.all()  # environments begin anew
    for training in (first, second):
        training.env.close()


def test_an_environment_that_fails_costs_nothing_that_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EnvPoolBackend.receive

    def fail_at_200(backend: EnvPoolBackend) -> Raw:
        if backend._record == 200 // ENVIRONMENTS:
            raise EnvError("env 0: reward must be a number, got None")
        return original(backend)

    monkeypatch.setattr(EnvPoolBackend, "receive", fail_at_200)
    config = tiny_config(tmp_path / "run")
    with pytest.raises(EnvError):
        run(config, resume=False, started=0.0)
    assert checkpoint.latest(tmp_path / "run").value("env_steps", int) == 200
    monkeypatch.undo()
    assert run(config, resume=True, started=0.0) == 0


def test_a_run_can_be_resumed_from_its_first_update_on_and_not_beyond_its_end(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    run(config, resume=False, started=0.0)
    saved = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert saved == [f"step-{config.first_update:09}", f"step-{STEPS:09}"]
    with pytest.raises(ValueError, match=r"is done; to go on, raise run\.steps or set run\.solved none$"):
        run(config, resume=True, started=0.0)


def test_an_evaluation_ends_when_the_run_is_stopped(tmp_path: Path) -> None:
    training = Training(tiny_config(tmp_path), None)
    calls = iter([False] * 5 + [True])
    with closing(evaluation_env(training.config, episodes=3, seed=0)) as env:
        assert evaluate(training.learner.agent, env, 3, 0, lambda: next(calls)) == []
    training.env.close()


def test_evaluations_take_the_queue_of_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would else make a stream of a GPU, whose memory no other reuses."""
    asked: list[torch.device] = []
    monkeypatch.setattr(steps, "make_queue", lambda device, **_: (asked.append(device), InlineQueue())[1])
    config = tiny_config(tmp_path / "run", steps=200)
    run(replace(config, run=replace(config.run, eval_every=100)), resume=False, started=0.0)
    evaluations = [record for record in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval/return" in record]
    assert len(evaluations) == 2 and len(asked) == 1


def test_a_longer_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=200)
    run(config, resume=False, started=0.0)
    longer = replace(config, run=replace(config.run, steps=STEPS))
    assert run(longer, resume=True, started=0.0) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_steps"] == STEPS
    assert summary["updates"] == 1 + (STEPS - config.first_update) * 8 // 32
    steps = [record["step"] for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == STEPS


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    arguments = [
        *SHORT,
        f"--run.dir={folder}",
        "--run.steps=100000000",
        "--replay.capacity=1000",
        "--run.log_every=0.1",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "fastdreamer.train", "cartpole", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "first update" in line:
                os.kill(process.pid, number)
        assert process.wait(timeout=60) == code, "".join(seen)
    assert seen[-1] == f"saved; go on with: python -m fastdreamer.train --resume {folder}\n"
    first = r"first update at step \d+, ([\d.]+) s after the start, ([\d.]+) s of them to fill the replay\n"
    times = re.search(first, "".join(seen))
    assert times is not None and 0 <= float(times[2]) < float(times[1])
    assert checkpoint.latest(folder).value("env_steps", int) > 0


def test_a_signal_in_the_last_evaluation_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is done cannot be gone on with."""

    def interrupted(*_: object) -> list[float]:
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr("fastdreamer.run.evaluate", interrupted)
    with caplog.at_level("INFO"):
        assert run(tiny_config(tmp_path / "run"), resume=False, started=0.0) == 130
    assert caplog.messages[-1] == f"{tmp_path / 'run'} is done and saved; its last evaluation or its film was cut short"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval_return"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["cartpole", "--env.id=CartPole-v9"],
            "env.id CartPole-v9: there is no such environment; did you mean CartPole-v1",
        ),
        (["cartpole", "--run.device=cuda"], "run.device must be auto or cpu on this machine, got 'cuda'"),
        (["cartpole", "--run.dir={tmp}"], "run.dir {tmp} exists already; go on with --resume {tmp}, or choose another"),
        (["cartpole", "--env.id=gym:Nothing-v0"], "env.id gym:Nothing-v0: there is no such environment"),
        (["cartpole", "--env.id=nowhere:make"], "env.id nowhere:make: there is no module nowhere"),
        (["cartpole", "--env.options.speed=3"], "there is no option env.options.speed"),
        (["cartpole", "--replay.capacity=5000000000", "--run.steps=5000000000"], "replay.capacity: 5000000000 windows"),
        (["atari100k", "--model.depth=1", "--run.device=cpu"], "model.depth"),
        (
            [*SHORT, "--env.id=fake_envs:Bad", "--env.options.how=nan"],
            'env 1: observation "speed" is not finite (got nan)',
        ),
        ([*SHORT, "--env.id=fake_envs:Bad", "--env.options.how=reward nan"], "env 1: reward is not finite (got nan)"),
        (
            [*SHORT, "--env.id=fake_envs:Bad", "--env.options.how=space"],
            'observation "speed" must have shape (2,), got (4,)',
        ),
    ],
)
def test_what_a_user_got_wrong_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    if not any(argument.startswith("--run.dir") for argument in filled):
        filled.append(f"--run.dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit) as caught:
        main(filled)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error and error.count("\n") == 1


def test_an_error_of_the_environment_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    arguments = ["--env.id=fake_envs:Bad", "--env.options.how=raises", f"--run.dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"^of the environment$"):
        main([*SHORT, *arguments])


def test_two_runs_cannot_make_one_folder(tmp_path: Path) -> None:
    """Runs without a name that start in the same second."""
    make_folder(tmp_path / "runs" / "tiny")
    (tmp_path / "file").touch()
    for taken, reason in {"runs/tiny": "File exists", "file/tiny": "Not a directory"}.items():
        with pytest.raises(ValueError, match=rf"^run\.dir .*/{taken} cannot be made: {reason}$"):
            make_folder(tmp_path / taken)


def test_a_run_folder_without_a_checkpoint_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tmp_path).to_json()))
    with pytest.raises(SystemExit) as caught:
        main(["--resume", str(tmp_path)])
    assert caught.value.code == 2
    assert f"{tmp_path}: no checkpoint in" in capsys.readouterr().err


def test_a_user_is_told_what_the_agent_makes_of_the_spaces() -> None:
    obs = {"eye": Space("image", (64, 64, 3)), "speed": Space("vector"), "room": Space("discrete", (2,), 5)}
    act = {"turn": Space("vector", (3,), low=(-1.0,) * 3, high=(1.0,) * 3), "jump": Space("discrete", (), 2)}
    assert spaces_in_words((obs, act), ModelConfig(actor_unimix=0.01)) == [
        "observations: eye, 64 x 64 x 3 pixels: convolutions; speed, a number: an MLP;"
        " room, 2 times one of 5: an MLP, as one-hot",
        "actions: turn, 3 numbers: a bounded normal, for it is continuous;"
        " jump, one of 2: a categorical, 1% of it uniform",
    ]
