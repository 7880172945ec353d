"""The live panel of a run in a terminal: phase, speed, returns, losses, ratio, memory, the age of the checkpoint.

It is drawn between two steps of the loop, at most twice a second, and never from a thread: so it costs what one drawing
costs, a few milliseconds.
"""

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

import torch
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastdreamer.loop import Training
from fastdreamer.metrics import clock, compact, console_losses
from fastdreamer.preflight import GIB, resident

SECONDS = 0.5
"""Between two drawings."""
WINDOW = 20.0
"""Seconds that speeds are averaged over."""
BARS = "▁▂▃▄▅▆▇█"
WIDEST = 100
"""Columns of the panel."""
WIDTH = 40
"""Bars of the sparkline."""


class Mark(NamedTuple):
    """A moment of a run: seconds of training, agent steps, updates."""

    seconds: float
    steps: int
    updates: int


class History:
    """Every return so far in at most 2 * WIDTH means of equally many episodes."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._each = 1
        self._open: list[float] = []

    def add(self, score: float) -> None:
        """One more episode."""
        self._open.append(score)
        if len(self._open) == self._each:
            self._means.append(sum(self._open) / self._each)
            self._open = []
        if len(self._means) == 2 * WIDTH:
            self._means = [(first + second) / 2 for first, second in zip(*[iter(self._means)] * 2, strict=True)]
            self._each *= 2

    def sparkline(self) -> str:
        """The last WIDTH of them, from the least to the most that there was."""
        shown = self._means[-WIDTH:]
        if not shown:
            return ""
        low, high = min(shown), max(shown)
        scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(BARS[round((value - low) * scale)] for value in shown)


class Speeds:
    """What a run did in the last WINDOW seconds of training."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()

    def add(self, now: Mark) -> Mark:
        """What was done since the mark before the window; zeros at the first."""
        self._marks.append(now)
        while len(self._marks) > 2 and now.seconds - self._marks[1].seconds >= WINDOW:
            self._marks.popleft()
        then = self._marks[0]
        return Mark(now.seconds - then.seconds, now.steps - then.steps, now.updates - then.updates)


class LivePanel:
    """Below the lines of the log, until it is left."""

    def __init__(self, training: Training, console: Console) -> None:
        self._training = training
        self._live = Live(console=console, auto_refresh=False)
        self._history, self._speeds = History(), Speeds()
        self._record: Mapping[str, object] = {}
        self._drawn = -SECONDS
        self.phase = "starting"
        self.saved_at: float | None = None
        """When the last checkpoint was complete (time.monotonic)."""

    def add_score(self, score: float) -> None:
        """An episode has ended."""
        self._history.add(score)

    def add_record(self, record: Mapping[str, object]) -> None:
        """The record of a log interval: its losses are shown from now on."""
        self._record = record

    def show(self, phase: str) -> None:
        """Draws it, if the last time is long enough ago or the phase is a new one."""
        now = time.monotonic()
        if not self._live.is_started or (now - self._drawn < SECONDS and phase == self.phase):
            return
        self._drawn, self.phase = now, phase
        self._live.update(self.drawing(now), refresh=True)

    def drawing(self, now: float) -> Panel:
        """The panel at a moment (time.monotonic)."""
        training = self._training
        config, progress, steps = training.config, training.progress, training.env_steps
        did = self._speeds.add(Mark(progress.train_seconds, steps, progress.updates))
        rate, updates = (count / did.seconds if did.seconds else None for count in (did.steps, did.updates))
        realised = did.updates * config.replay.trained_steps / did.steps if did.steps else None
        left = (config.run.steps - steps) / rate if rate else None
        mean = progress.mean_score()
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="bold")
        grid.add_column()
        goal = Table.grid(padding=(0, 1))
        bar = ProgressBar(config.run.steps, min(steps, config.run.steps), width=20)
        goal.add_row(f"{steps:,} of {config.run.steps:,}", bar, f"ETA {clock(left)}")
        grid.add_row("step", goal)
        speed = f"{compact(rate).strip()} steps/s, {compact(updates).strip()} updates/s, {progress.updates:,} updates"
        grid.add_row("speed", speed)
        score = "-" if mean is None else f"{mean:.1f}"
        grid.add_row("return", Text.assemble(score, "  ", (self._history.sparkline(), "cyan")))
        losses = "  ".join(f"{label} {compact(value).strip()}" for label, value in console_losses(self._record).items())
        grid.add_row("losses", losses)
        ratio = "-" if realised is None else f"{realised:.3g}"
        grid.add_row("ratio", f"{config.run.train_ratio:g} wanted, {ratio} realised")
        saved = "none since the start" if self.saved_at is None else f"{now - self.saved_at:.0f} s ago"
        grid.add_row("memory", f"{_memory(training)}, last checkpoint {saved}")
        title = f"{config.preset}: {config.env.num_envs} x {config.env.id}, {self.phase}"
        return Panel(
            grid, title=Text(title), subtitle="Ctrl-C saves and ends", width=min(self._live.console.width, 100)
        )

    def __enter__(self) -> Self:
        self._live.start()
        self._live.console.show_cursor(True)  # a run that is killed could not bring it back
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def make_panel(training: Training) -> LivePanel | None:
    """A panel where the output is a terminal that can redraw lines."""
    console = Console()
    return LivePanel(training, console) if console.is_terminal and not console.is_dumb_terminal else None


def _memory(training: Training) -> str:
    host = f"{resident() / GIB:.2f} GiB"
    if training.learner.device.type == "cuda":
        return f"{host}, {torch.cuda.memory_allocated() / GIB:.2f} GiB of the GPU"
    return host
