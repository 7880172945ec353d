"""A run: its folder, logs, evaluations, checkpoints and summary, around the loop."""

import gc
import json
import logging
import os
import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from fastdreamer import checkpoint, preflight
from fastdreamer.config import Config
from fastdreamer.deterministic import make_deterministic
from fastdreamer.env import Env
from fastdreamer.evaluate import evaluate, evaluation_env
from fastdreamer.filming import Filming
from fastdreamer.guard import Guard
from fastdreamer.learner import Reading
from fastdreamer.loop import Training
from fastdreamer.machine import describe
from fastdreamer.metrics import console_line
from fastdreamer.panel import make_panel
from fastdreamer.profiling import range_
from fastdreamer.saving import Saving
from fastdreamer.schedule import Every
from fastdreamer.stop import Stop
from fastdreamer.trackers import Records, require_tracker
from fastdreamer.watchdog import LastWords, Watchdog

logger = logging.getLogger(__name__)

GO_ON = "go on with: python -m fastdreamer.train --resume"


def run(config: Config, resume: bool, started: float) -> int:
    """Trains, evaluates and writes the run folder; the exit code. `started`: perf_counter when the process began.

    Raises ValueError, one line, for what cannot be made or resumed.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.deterministic:
        make_deterministic()
    folder = Path(config.run.dir or default_folder(config.preset))
    if not resume and folder.exists():
        raise ValueError(f"run.dir {folder} exists already; go on with --resume {folder}, or choose another")
    require_tracker(config)
    resumed = checkpoint.latest(folder) if resume else None
    training = Training(config, resumed)
    gc.freeze()  # what was made so far stays until the end: searching it for garbage took 4 % of small updates
    try:
        if training.done:
            raise ValueError(f"{folder} is done; to go on, raise run.steps or set run.solved none")
        preflight.check(training.learner, folder)
        if not resume:
            make_folder(folder)
        config = replace(config, run=replace(config.run, dir=str(folder)))
        (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
        note_machine(folder, training.env_steps)
        with Records(folder, config, training.env_steps if resume else None) as records:
            stop = Stop()
            job = Run(training, folder, records, stop, started)
            with closing(job.filming):
                job.train()
                if not stop.requested():
                    job.finish()
        if stop.signal is None:
            return 0
        if training.done:
            logger.info("%s is done and saved; its last evaluation or its film was cut short", folder)
        else:
            logger.info("saved; %s %s", GO_ON, folder)
        return 128 + stop.signal
    finally:
        training.env.close()


def default_folder(preset: str) -> str:
    """The run folder where none is named."""
    return f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}"


def make_folder(folder: Path) -> None:
    """Makes a run folder. Raises ValueError where it cannot, or where another run did since this one began."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"run.dir {folder} cannot be made: {error.strerror}") from error


def note_machine(folder: Path, env_steps: int) -> None:
    """One line in machine.jsonl per start of a run: from which step on it has been made by what."""
    with (folder / "machine.jsonl").open("a") as file:
        file.write(json.dumps({"step": env_steps, **describe()}) + "\n")


class Run:
    """A training and the folder that it writes."""

    def __init__(self, training: Training, folder: Path, records: Records, stop: Stop, started: float) -> None:
        self.training, self.folder, self.records, self.stop, self.started = training, folder, records, stop, started
        self.words = LastWords(f"it ended without a word; {GO_ON} {folder}")
        self.mark = self._read_mark()
        self.reading: Reading | None = None
        self.guard = Guard(training, folder)
        self.saving: Saving | None = None
        self.panel = make_panel(training)
        self.filming = Filming(training.config, folder)

    def train(self) -> None:
        """Trains until the run is done or a signal comes, with its logs, evaluations and checkpoints, and saves."""
        logger.info("%s", self.filming.reason)
        with self.words, self.panel or nullcontext(), self._watched(self.training.env):
            if self.training.progress.updates:  # it was saved before
                self.words.prepare()
            logger.info("run folder %s", self.folder)
            self._train()

    def _watched(self, env: Env) -> AbstractContextManager[object]:
        """While environments are played."""
        return nullcontext() if env.supervised else Watchdog(env, self.training.config.env.timeout, self._hangs)

    def _hangs(self) -> None:
        """The main thread waits for an environment and cannot be woken."""
        self.save(wait=True)
        self.words.drop()
        logger.info("%s %s", GO_ON, self.folder)
        env = self.training.config.env
        message = f"env.id {env.id}: no answer within env.timeout, {env.timeout:g} s"
        print(f"fastdreamer: error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    def _train(self) -> None:
        training, config, progress = self.training, self.training.config.run, self.training.progress
        log, save = (Every(interval, progress.train_seconds) for interval in (config.log_every, config.save_every))
        evaluation = Every(config.eval_every, training.env_steps)
        while not training.done and not self.stop.requested():
            self._show("training" if progress.updates else "filling the replay")
            try:
                scores = training.advance()
            finally:
                if training.env.waiting_since is not None:
                    self.save(wait=True)  # the environment's failure must not cost what was learned
                    logger.info("%s %s", GO_ON, self.folder)
            for score in scores:
                self.records.write({"step": training.env_steps, "episode/return": score})
                if self.panel is not None:
                    self.panel.add_score(score)
            if progress.updates and progress.first_update_seconds is None:
                self._note_first_update()
            if log.due(progress.train_seconds) and self.reading is None:
                self.reading = training.learner.read_metrics()
            if self.reading is not None and self.reading.ready():
                self.log()
            if evaluation.due(training.env_steps) and not training.done:
                self.evaluate()
            self._end_save(wait=False)
            self.filming.look()
            if save.due(progress.train_seconds) or self.filming.wants_checkpoint():
                self.save(wait=False)
        if self.reading is not None:
            self.log()
        if self._read_mark() != self.mark:
            self.reading = training.learner.read_metrics()
            self.log()
        self.save(wait=True)

    def save(self, wait: bool) -> None:
        """Takes a checkpoint, which is written beside the training or while it is to `wait`.

        Where writing fails, the run goes on with the one before and says so; where the one before is still being
        written, the next one that is due is taken instead. Raises DivergedError where nothing finite is left to write.
        """
        self._end_save(wait)
        if self.saving is not None:
            return
        if self.reading is not None:
            self.log()  # a roll-back leaves nothing of what it tells
        if not self.guard.ready_to_save():
            logger.warning("checkpoint of step %d was not written: not finite", self.training.env_steps)
            return
        self.saving = self.training.begin_save(self.folder)
        self._end_save(wait)

    def _end_save(self, wait: bool) -> None:
        """After one that has been written, or that is waited for."""
        if self.saving is None or not (wait or self.saving.done()):
            return
        saving, self.saving = self.saving, None
        try:
            saving.wait()
            if self.panel is not None:
                self.panel.saved_at = time.monotonic()
            self.filming.note_checkpoint(saving.step)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("checkpoint of step %d was not written: %s; those before it are kept", saving.step, reason)

    def _note_first_update(self) -> None:
        self.training.learner.drain()
        seconds, progress = time.perf_counter() - self.started, self.training.progress
        progress.first_update_seconds = seconds
        filling = f", {progress.train_seconds - progress.update_seconds:.1f} s of them to fill the replay"
        logger.info(
            "first update at step %d, %.1f s after the start%s",
            self.training.env_steps, seconds, "" if self.training.learner.beside else filling,
        )  # fmt: skip
        self.save(wait=True)  # from here on the run can be resumed
        self.words.prepare()

    def _show(self, phase: str) -> None:
        if self.panel is not None:
            self.panel.show(phase)

    def _read_mark(self) -> tuple[float, int, int]:
        return self.training.progress.train_seconds, self.training.env_steps, self.training.progress.updates

    def log(self) -> None:
        """Writes what happened since the last log, with the metrics that were read, to the console and metrics.jsonl.

        Rolls back where updates were not finite. Raises DivergedError where that is no help.
        """
        assert self.reading is not None
        with range_("log"):
            now = self._read_mark()
            seconds, steps, updates = (late - early for late, early in zip(now, self.mark, strict=True))
            metrics, skipped, self.reading = self.reading.means(), self.reading.most_skipped(), None
            record = {
                "step": now[1],
                "frame": now[1] * self.training.env.action_repeat,
                "update": now[2],
                "episodes": self.training.progress.episodes,
                "env_rebuilds": self.training.env.rebuilds,
                "elapsed": now[0],
                "steps_per_second": steps / seconds if seconds else None,
                "updates_per_second": updates / seconds if seconds else None,
                "return_last20": self.training.progress.mean_score(),
                **metrics,
            }
            self.records.write(record)
            if self.panel is None:
                logger.info("%s", console_line(record))
            else:
                self.panel.add_record(record)
            self.mark = now
        if skipped:
            self._end_save(wait=True)  # a roll-back reads what is written
        self.guard.judge(skipped)

    def evaluate(self) -> float | None:
        """Plays the evaluation episodes; their mean return, None where none are asked for or a signal came first."""
        config, learner = self.training.config, self.training.learner
        if not config.run.eval_episodes:
            return None
        learner.drain()
        episodes, seed, queue = config.run.eval_episodes, config.run.seed, learner.policy.queue
        with closing(evaluation_env(config, episodes, seed)) as env, self._watched(env):
            scores = evaluate(learner.agent, env, episodes, seed, self.stop.requested, queue)
        if self.stop.requested():
            return None
        mean = sum(scores) / len(scores)
        self.records.write({"step": self.training.env_steps, "eval/return": mean, "eval/returns": scores})
        logger.info("evaluation: mean return %.1f of %d episodes", mean, len(scores))
        self.filming.note_evaluation()
        return mean

    def finish(self) -> None:
        """The last evaluation, summary.json, and the last videos."""
        config, progress, env_steps = self.training.config, self.training.progress, self.training.env_steps
        learner = self.training.learner
        summary = {
            "preset": config.preset,
            "seed": config.run.seed,
            "env_steps": env_steps,
            "updates": progress.updates,
            "episodes": progress.episodes,
            "train_seconds": progress.train_seconds,
            "first_update_seconds": progress.first_update_seconds,
            "steps_per_second": env_steps / progress.train_seconds,
            "ms_per_update": None if learner.beside else 1000 * progress.update_seconds / progress.updates,
            "return_last20": progress.mean_score(),
            "solved_seconds": progress.solved_seconds,
            "eval_return": self.evaluate(),
        }
        text = json.dumps(summary, indent=2)
        (self.folder / "summary.json").write_text(text + "\n")
        logger.info("%s\n%s", self.folder / "summary.json", text)
        self.filming.wait(self.stop.requested)
        self.filming.note_checkpoint(env_steps)
        self.filming.wait(self.stop.requested)
