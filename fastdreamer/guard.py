"""What becomes of numbers that are not finite. The device skips such an update by itself; the rest is decided here.

    an update that is not finite changes nothing       no wait: see `TrainStep`, `Skips`
    3 skipped of 100 updates in a row                  roll back to the newest checkpoint
    a checkpoint due while a parameter is not finite   roll back first: nothing that is not finite is written
    the second roll-back                               goes to the checkpoint before, the newest may be the culprit
    the third one                                      `DivergedError`, with the batch that was skipped last

A roll-back gives networks, optimizer and normaliser what the checkpoint holds, and rids the ring of values that are not
finite. Steps, ring, plans and noise go on: the run does not draw the same batch again. Skipped updates are counted
exactly, but looked at only when metrics are read.
"""

import logging
from pathlib import Path

from fastdreamer import checkpoint
from fastdreamer.disk import write_tensors
from fastdreamer.loop import Training
from fastdreamer.skips import RECENT

logger = logging.getLogger(__name__)

MOST_SKIPPED, MOST_ROLL_BACKS = 3, 3


class DivergedError(ValueError):
    """Training cannot go on: its numbers are not finite."""


class Guard:
    """Watches over one training and what is written of it."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.roll_backs = 0
        """Since this process began."""

    def judge(self, skipped: int) -> None:
        """Rolls back where too many of the updates RECENT in a row were skipped. Raises DivergedError."""
        if skipped >= MOST_SKIPPED:
            self._roll_back(f"{skipped} of {RECENT} updates were not finite")

    def ready_to_save(self) -> bool:
        """Whether everything that a checkpoint holds is finite, after a roll-back if need be. Raises DivergedError."""
        learner = self.training.learner
        learner.drain()
        self.judge(int(learner.train.skips.most))
        self._mend()
        if learner.is_finite():
            return True
        self._roll_back("a parameter, a moment or the normaliser is not finite")
        return learner.is_finite()

    def _roll_back(self, reason: str) -> None:
        self.roll_backs += 1
        what = f"step {self.training.env_steps}: {reason}"
        if self.roll_backs == MOST_ROLL_BACKS:
            dump = self._dump()
            raise DivergedError(f"{what}, for the third time: training has diverged; try a smaller optim.lr; {dump}")
        self.training.learner.forget_skips()
        self._mend()
        try:
            saved = checkpoint.latest(self.folder, with_replay=False, back=self.roll_backs - 1)
        except checkpoint.CheckpointError as error:
            logger.warning("%s; not rolled back: %s", what, error)
            return
        self.training.learner.roll_back(saved)
        logger.warning("%s; rolled back to the checkpoint of step %d", what, saved.value("env_steps", int))

    def _mend(self) -> None:
        if count := self.training.learner.mend():
            logger.warning("step %d: %d records of the replay were not finite: mended", self.training.env_steps, count)

    def _dump(self) -> str:
        """Writes the batch of the last skipped update; where it is."""
        window = self.training.learner.skipped_window()
        if window is None:
            return "the last skipped batch is not in the replay any more"
        path = self.folder / f"diverged-step-{self.training.env_steps:09}{checkpoint.TENSORS}"
        try:
            write_tensors(path, {key: value.cpu().contiguous().clone() for key, value in window.items()})
        except OSError as error:
            return f"its last skipped batch was not written: {error.strerror or error}"
        return f"its last skipped batch: {path}"
