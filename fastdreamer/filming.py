"""Videos of a run while it goes on: a process of its own, at the lowest priority, films the newest checkpoint."""

import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fastdreamer.config import Config

logger = logging.getLogger(__name__)

PACKAGES = "av", "plotly"
STEPS = 500
"""Of an episode, at most."""
POLL_SECONDS = 0.1


class Filming:
    """The folder videos/ of a run: step-N/ has an episode and its dream as of a checkpoint; the newest are kept.

    reason   what a user is told: where they will be, or why there are none
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._run, self._videos, self._kept = folder, folder / "videos", config.run.videos
        self._dreams = bool(config.loss.decoder)
        self._process: subprocess.Popen[bytes] | None = None
        self._step, self._due = 0, False
        self.reason = f"videos: after each evaluation, in {self._videos}; the newest {self._kept} are kept"
        absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if not config.run.videos or not config.run.eval_episodes:
            self._kept, self.reason = 0, "no videos: run.videos or run.eval_episodes is 0"
        elif absent:
            self._kept, self.reason = 0, f"no videos, they need: pip install {' '.join(absent)}"

    def note_evaluation(self) -> None:
        """The next checkpoint is to be filmed."""
        self._due = self._kept > 0

    def wants_checkpoint(self) -> bool:
        """Whether there was an evaluation since the last film, and nothing is being filmed."""
        return self._due and self.look()

    def note_checkpoint(self, step: int) -> None:
        """Films the checkpoint of `step`, the newest one, where one is wanted."""
        if not self.wants_checkpoint():
            return
        self._due = False
        try:
            self._process, self._step = self._start(), step
        except OSError as error:
            logger.warning("no videos of step %d: %s", step, error.strerror or error)

    def _start(self) -> "subprocess.Popen[bytes]":
        making = self._videos / "making"
        shutil.rmtree(making, ignore_errors=True)  # of a run that was killed
        making.mkdir(parents=True)
        command = ["fastdreamer.dream", "--steps", str(STEPS)]
        if not self._dreams:
            command = ["fastdreamer.evaluate", "--episodes", "1", "--video"]
        # on the CPU, whatever the run computes on and with
        environment = {name: value for name, value in os.environ.items() if name != "FASTDREAMER_KERNELS"}
        with (self._videos / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, str(self._run), "--out", str(making)],
                env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the run
            )
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        return process

    def look(self) -> bool:
        """Whether nothing is being filmed; what was, gets its name."""
        if self._process is None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        self._process = None
        try:
            if code:
                lines = (self._videos / "log.txt").read_text(errors="replace").splitlines()
                logger.warning("no videos of step %d: %s", self._step, lines[-1] if lines else f"exit code {code}")
            else:
                logger.info("videos of step %d: %s", self._step, self._keep())
        except OSError as error:
            logger.warning("no videos of step %d: %s", self._step, error.strerror or error)
        return True

    def _keep(self) -> Path:
        done = self._videos / f"step-{self._step}"
        shutil.rmtree(done, ignore_errors=True)
        (self._videos / "making").rename(done)
        for path in kept_folders(self._videos)[: -self._kept]:
            shutil.rmtree(path)
        return done

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Until nothing is being filmed, or `stopped`."""
        while not self.look() and not stopped():
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Ends what is being filmed."""
        if self._process is not None and not self.look():
            os.killpg(self._process.pid, signal.SIGKILL)  # its environments too
            self._process.wait()
            shutil.rmtree(self._videos / "making", ignore_errors=True)


def kept_folders(videos: Path) -> list[Path]:
    """The folders step-N of a run's videos, the oldest first."""
    found = [
        (int(match[1]), path) for path in videos.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]
