"""Where the records of a run go: metrics.jsonl, and TensorBoard or Weights & Biases where a run asks for it."""

import importlib.util
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fastdreamer.config import Config
from fastdreamer.metrics import JsonlWriter, to_json


class Tracker(Protocol):
    """What else takes the numbers of a run. They are the same as in metrics.jsonl, from which nothing is left out."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name at an agent step."""

    def close(self) -> None:
        """Returns when all of them are out."""


class TensorBoard:
    """Event files in the folder tensorboard/ of the run, written by a thread of their own."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what a run wrote beyond the checkpoint that it goes on from is not shown
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; a training that goes on, goes on in the same one. WANDB_MODE=offline sends nothing."""

    def __init__(self, folder: Path, config: Config) -> None:
        import wandb

        file = folder / "wandb-id.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="fastdreamer", name=folder.name, id=file.read_text(), resume="allow", dir=folder,
            config=config.to_json(),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")  # its own counter could not go back to a checkpoint

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Records:
    """The records of a run, in the order they are written."""

    def __init__(self, folder: Path, config: Config, resume_step: int | None) -> None:
        """`resume_step`: the agent steps of the checkpoint that a run goes on from; later ones are written again."""
        with ExitStack() as opened:
            self._lines = opened.enter_context(JsonlWriter(folder / "metrics.jsonl", resume_step))
            self._tracker = _make_tracker(folder, config, resume_step)
            if self._tracker is not None:
                opened.callback(self._tracker.close)
            self._opened = opened.pop_all()

    def write(self, record: Mapping[str, object]) -> None:
        """One record; needs "step". Raises ValueError as JsonlWriter does."""
        self._lines.write(record)
        if self._tracker is not None:
            plain = {name: to_json(value, name) for name, value in record.items()}
            step = plain.pop("step")
            assert isinstance(step, int), "agent steps are counted"
            self._tracker.write(step, {name: value for name, value in plain.items() if isinstance(value, int | float)})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def require_tracker(config: Config) -> None:
    """Raises ValueError, one line, where the package of a run's tracker is not installed."""
    name = config.run.tracker
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"run.tracker {name} needs the package {name}: pip install {name}")


def _make_tracker(folder: Path, config: Config, resume_step: int | None) -> Tracker | None:
    match config.run.tracker:
        case "tensorboard":
            return TensorBoard(folder, resume_step)
        case "wandb":
            return WandB(folder, config)
        case _:
            return None
