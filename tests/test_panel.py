"""The live panel shows the numbers of its run, and changes none of them."""

import io
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fastdreamer import run as run_module
from fastdreamer.config import Config, EnvConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.panel import BARS, WIDTH, History, LivePanel, Mark, Speeds, make_panel
from fastdreamer.progress import Progress
from fastdreamer.run import run
from fastdreamer.train import Lines


def tiny_config(folder: Path) -> Config:
    return Config(
        preset="tiny",
        env=EnvConfig(id="CartPole-v1", num_envs=3),
        model=ModelConfig(size="size1m", deter=16, hidden=8, units=8, stoch=4, classes=4, blocks=2),
        replay=ReplayConfig(batch_size=3, batch_length=6),
        run=RunConfig(
            dir=str(folder), steps=200, train_ratio=8, device="cpu", log_every=0.1, eval_episodes=2, videos=0
        ),
    )


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def make_training(config: Config) -> SimpleNamespace:
    progress = Progress(updates=120, episodes=9, train_seconds=30.0, scores=[10.0, 20.0])
    learner = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    return SimpleNamespace(config=config, progress=progress, env_steps=300, learner=learner)


def lines(panel: LivePanel, now: float, width: int) -> list[str]:
    console = terminal(width)
    console.print(panel.drawing(now))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO


@pytest.mark.parametrize("width", [80, 160])
def test_it_shows_the_numbers_of_the_run(tmp_path: Path, width: int) -> None:
    config = tiny_config(tmp_path)
    training = make_training(replace(config, run=replace(config.run, steps=600)))
    panel = LivePanel(training, terminal(width))  # type: ignore[arg-type]  # what it reads of one
    panel.drawing(0.0)
    for score in (1.0, 8.0, 4.5):
        panel.add_score(score)
    panel.add_record({"loss/dyn": 1.25, "loss/policy": -0.5, "loss/rec/a": 1.0, "loss/rec/b": 2.0})
    panel.saved_at, panel.phase = 100.0, "training"
    training.progress.train_seconds, training.env_steps, training.progress.updates = 40.0, 400, 170
    shown = lines(panel, 107.2, width)
    assert {len(line) for line in shown} == {min(width, 100)}
    assert " tiny: 3 x CartPole-v1, training " in shown[0]
    words = [line.strip("│ ").split() for line in shown[1:-1]]
    bar, step = words[0][4], " ".join(words[0][:4] + words[0][5:])
    assert step == "step 400 of 600 ETA 0:00:20" and set(bar) <= set("━╸╺")
    assert words[1] == ["speed", "10", "steps/s,", "5", "updates/s,", "170", "updates"]
    assert words[2] == ["return", "15.0", BARS[0] + BARS[7] + BARS[4]]
    assert words[3] == ["losses", "rec", "3", "dyn", "1.250", "pol", "-0.50", "val", "-"]
    assert words[4] == ["ratio", "8", "wanted,", "9", "realised"]  # 50 updates of 18 steps in 100 steps
    assert " ".join(words[5]).endswith("GiB, last checkpoint 7 s ago")


def test_the_sparkline_holds_the_whole_run_in_means() -> None:
    history = History()
    assert history.sparkline() == ""
    for episode in range(8 * WIDTH):
        history.add(float(episode))
    line = history.sparkline()
    assert 0 < len(line) <= WIDTH
    assert list(line) == sorted(line) and line[0] == BARS[0] and line[-1] == BARS[-1]
    halves = History()
    for episode in range(6 * WIDTH):
        halves.add(float(episode >= 5 * WIDTH))
    assert halves.sparkline().count(BARS[-1]) == WIDTH // 4  # a mean of four episodes is one bar
    flat = History()
    flat.add(3.0)
    flat.add(3.0)
    assert flat.sparkline() == BARS[0] * 2


def test_speeds_are_those_of_the_last_seconds() -> None:
    speeds = Speeds()
    assert speeds.add(Mark(0.0, 0, 0)) == Mark(0, 0, 0)
    for second in range(1, 41):
        did = speeds.add(Mark(float(second), 10 * second if second <= 20 else 200 + 30 * (second - 20), second))
    assert did == Mark(20.0, 600, 20)


def test_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    assert run(tiny_config(tmp_path / "plain"), resume=False, started=0.0) == 0
    monkeypatch.setattr(run_module, "make_panel", lambda training: LivePanel(training, console))
    monkeypatch.setattr("fastdreamer.panel.SECONDS", 0.1)
    assert run(tiny_config(tmp_path / "shown"), resume=False, started=0.0) == 0
    drawn = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "filling the replay" in drawn and "CartPole-v1, training" in drawn and "of 200" in drawn
    models = [
        sorted((tmp_path / name / "checkpoints").iterdir())[-1] / "model.safetensors" for name in ("plain", "shown")
    ]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_without_a_terminal_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training(tiny_config(tmp_path))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert make_panel(training) is None  # type: ignore[arg-type]  # nothing is read of it
    monkeypatch.setattr("fastdreamer.panel.Console", terminal)
    assert make_panel(training) is not None  # type: ignore[arg-type]


def test_lines_go_where_the_output_is_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, streams = Lines(), [io.StringIO(), io.StringIO()]
    for number, stream in enumerate(streams):
        monkeypatch.setattr(sys, "stdout", stream)
        handler.emit(logging.LogRecord("a", logging.INFO, "a", 1, f"line {number}", (), None))
    assert [stream.getvalue() for stream in streams] == ["line 0\n", "line 1\n"]
