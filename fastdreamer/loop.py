"""The loop: env -> act -> env; every record -> ring -> train -> metrics; fresh states back into the ring."""

import json
import logging
import math
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.agent import Agent, official_name
from fastdreamer.config import Config
from fastdreamer.env import Step, make_env, mask_action
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.evaluate import evaluate
from fastdreamer.metrics import JsonlWriter, Metrics, console_line
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.profiling import range_
from fastdreamer.progress import Progress
from fastdreamer.replay import Replay
from fastdreamer.schedule import Every, TrainRatio
from fastdreamer.steps import ActStep, TrainStep
from fastdreamer_kernels import report

logger = logging.getLogger(__name__)

RESUMED_SEEDS = 2**30


class Training:
    """Everything that one run needs, and its loop."""

    def __init__(self, config: Config, resumed: checkpoint.Checkpoint | None) -> None:
        """Goes on from a checkpoint where one is given. Raises ValueError for what cannot be made or does not fit."""
        self.config, run = config, config.run
        device, dtype = choose_device(config)
        # Environments cannot be saved: a resumed run begins new episodes, with seeds of its own.
        env_seed = run.seed if resumed is None else (run.seed + resumed.value("env_steps", int)) % RESUMED_SEEDS
        self.env = make_env(config.env.id, num_envs=config.env.num_envs, seed=env_seed, options=config.env.options)
        spaces, dims = (self.env.obs_space, self.env.act_space), config.model.dims()
        self.agent = Agent(*spaces, config.model, config.loss, dtype)
        self.agent.initialize(Noise(run.seed, Stream.INIT))
        self.agent.to(device)
        self.optimizer = LaProp(self.agent.official_parameters(), **vars(config.optim))
        self.replay = Replay(
            *spaces, deter=dims.deter, stoch=dims.stoch, num_envs=config.env.num_envs, capacity=config.capacity,
            batch_size=config.replay.batch_size, batch_length=config.replay.batch_length, seed=run.seed, dtype=dtype,
        )  # fmt: skip
        self.train = TrainStep(self.agent, self.optimizer, run.seed)
        self.act = ActStep(self.agent, config.env.num_envs, run.seed, (Stream.ACT_STATE, Stream.ACT_POLICY))
        self.ratio = TrainRatio(run.train_ratio, config.replay.batch_size, config.replay.batch_length)
        self.episodes, self.metrics, self.progress = EpisodeTracker(config.env.num_envs), Metrics(), Progress()
        if resumed is not None:
            self._restore(resumed)
        logger.info(
            "%s: %d x %s, %s with %s parameters, %s on %s", config.preset, config.env.num_envs, config.env.id,
            config.model.size, f"{sum(p.numel() for p in self.optimizer.params):,}", dtype, device,
        )  # fmt: skip
        logger.info("%s", report())

    @property
    def env_steps(self) -> int:
        """Agent steps so far over all environments, resets included."""
        return self.replay.length * self.config.env.num_envs

    def advance(self) -> list[float]:
        """One step of every environment and the updates that it makes due. Returns the scores of ended episodes."""
        begun = time.perf_counter()
        with range_("env"):
            step = self.env.recv()
        with range_("act"):
            action, state = self.act(step.obs, step.is_first)
        self.env.send(action)  # the environments step while the learner works
        self.replay.add(*step, mask_action(action, step.is_last), *state)
        if self.replay.windows >= self.config.replay.trained_steps:
            for _ in range(self.ratio.due(self.env_steps)):
                self.update()
        self.progress.train_seconds += time.perf_counter() - begun
        return self._count_episodes(step)

    def update(self) -> None:
        """One update: plan, gather, train, and the fresh states back into the ring."""
        begun = time.perf_counter()
        with range_("plan"):
            plan = self.replay.plan()
        with range_("stage"):
            window = self.replay.gather(plan)
        with range_("train"):
            states, metrics = self.train(window)
        self.replay.write_back(plan, *states)
        self.metrics.add(metrics)
        self.progress.updates += 1
        self.progress.update_seconds += time.perf_counter() - begun

    def _count_episodes(self, step: Step) -> list[float]:
        scores, solved = [], self.config.run.solved
        for episode in self.episodes.add(step.reward, step.is_first, step.is_last):
            scores.append(episode.score)
            self.metrics.add({"episode/return": episode.score, "episode/length": episode.length})
            self.progress.add_score(episode.score)
            if solved is not None and self.progress.solved_seconds is None and self.progress.reaches(solved):
                self.progress.solved_seconds = self.progress.train_seconds
        return scores

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of this moment: networks, optimizer, normaliser, counters and replay."""
        with range_("save"):
            tensors = {**self._tensors(), "optim": self.optimizer.state()}
            state = {
                "env_steps": self.env_steps,
                "progress": self.progress.to_json(),
                "train_ratio": self.ratio.state_dict(),
                "noise": {name: int(noise.counter) for name, noise in self._noise().items()},
            }
            checkpoint.save(folder, self.env_steps, tensors, state, self.replay.save(folder / "replay"))

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        for group, target in {**self._tensors(), "optim": self.optimizer.state()}.items():
            checkpoint.load_into(target, saved.tensors.get(group, {}), f"{saved.path}/{group}")
        self.progress = Progress.from_json(saved.value("progress", dict))
        self.ratio.load_state_dict(saved.value("train_ratio", dict))
        counters = saved.value("noise", dict)
        for name, noise in self._noise().items():
            noise.counter.fill_(counters[name])
        assert saved.replay is not None, "every checkpoint of a run has one"
        self.replay.load(saved.path.parents[1] / "replay", saved.replay)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Parameters by official name, and the return normaliser."""
        agent = self.agent
        return {
            "model": {official_name(name): tensor for name, tensor in agent.named_parameters()},
            "carry": {official_name(name): tensor for name, tensor in agent.named_buffers()},
        }

    def _noise(self) -> dict[str, Noise]:
        return {noise.name: noise for noise in (*self.train.noise, *self.act.noise)}


def choose_device(config: Config) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and in what. Raises ValueError for a GPU that is not there."""
    present, named = torch.cuda.is_available(), config.run.device
    if named == "cuda" and not present:
        raise ValueError("run.device must be auto or cpu on this machine, got 'cuda': torch sees no GPU")
    cuda = present and named != "cpu"
    half = cuda if config.model.precision == "auto" else config.model.precision == "bfloat16"
    return torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if half else torch.float32


class Stop:
    """Set by the first Ctrl-C or SIGTERM: the run saves and ends. The second one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)


def make_folder(folder: Path) -> None:
    """Makes a run folder. Raises ValueError where it cannot, or where another run did since this one began."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"run.dir {folder} cannot be made: {error.strerror}") from error


def run(config: Config, resume: bool, started: float) -> int:
    """Trains, evaluates and writes the run folder; the exit code. `started`: perf_counter when the process began.

    Raises ValueError, one line, for what cannot be made or resumed.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    folder = Path(config.run.dir or f"runs/{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not resume and folder.exists():
        raise ValueError(f"run.dir {folder} exists already; go on with --resume {folder}, or choose another")
    resumed = checkpoint.latest(folder) if resume else None
    training = Training(config, resumed)
    try:
        if not resume:
            make_folder(folder)
        config = replace(config, run=replace(config.run, dir=str(folder)))
        (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
        logger.info("run folder %s", folder)
        resume_step = training.env_steps if resume else None
        with JsonlWriter(folder / "metrics.jsonl", resume_step) as writer:
            stop = Stop()
            train(training, folder, writer, stop, started)
            if stop.signal is not None:
                logger.info("saved; go on with: python -m fastdreamer.train --resume %s", folder)
                return 128 + stop.signal
            finish(training, folder, writer)
            return 0
    finally:
        training.env.close()


def train(training: Training, folder: Path, writer: JsonlWriter, stop: Stop, started: float) -> None:
    """Trains until run.steps or a signal, with its logs, evaluations and checkpoints, and saves."""
    config, progress = training.config.run, training.progress
    log, save = (Every(interval, progress.train_seconds) for interval in (config.log_every, config.save_every))
    evaluation = Every(config.eval_every, training.env_steps)
    mark = read_mark(training)
    while training.env_steps < config.steps and stop.signal is None:
        for score in training.advance():
            writer.write({"step": training.env_steps, "episode/return": score})
        if progress.updates and progress.first_update_seconds is None:
            progress.first_update_seconds = time.perf_counter() - started
            logger.info(
                "first update at step %d, %.1f s after the start", training.env_steps, progress.first_update_seconds
            )
        if log.due(progress.train_seconds):
            mark = write_log(training, writer, mark)
        if evaluation.due(training.env_steps):
            write_evaluation(training, writer)
        if save.due(progress.train_seconds):
            training.save(folder)
    write_log(training, writer, mark)
    training.save(folder)


def read_mark(training: Training) -> tuple[float, int, int]:
    """Seconds, steps and updates so far: rates are differences of two marks."""
    return training.progress.train_seconds, training.env_steps, training.progress.updates


def write_log(training: Training, writer: JsonlWriter, since: tuple[float, int, int]) -> tuple[float, int, int]:
    """Writes what happened since a mark to the console and metrics.jsonl, and returns the next mark.

    Raises ValueError where the loss was not finite: no parameter is either, from then on.
    """
    with range_("log"):
        now = read_mark(training)
        seconds, steps, updates = (late - early for late, early in zip(now, since, strict=True))
        metrics = training.metrics.flush()
        record = {
            "step": training.env_steps,
            "frame": training.env_steps * training.config.env.action_repeat,
            "update": training.progress.updates,
            "episodes": training.progress.episodes,
            "elapsed": training.progress.train_seconds,
            "steps_per_second": steps / seconds if seconds else None,
            "updates_per_second": updates / seconds if seconds else None,
            "return_last20": training.progress.mean_score(),
            **metrics,
        }
        writer.write(record)
        logger.info("%s", console_line(record))
    if not math.isfinite(metrics.get("opt/loss", 0.0)):
        raise ValueError(
            f"the loss is {metrics['opt/loss']} by update {now[2]}: training has diverged; try a smaller optim.lr"
        )
    return now


def write_evaluation(training: Training, writer: JsonlWriter) -> float | None:
    """Plays the evaluation episodes; their mean return, None where none are asked for."""
    scores = evaluate(training.agent, training.config)
    if not scores:
        return None
    mean = sum(scores) / len(scores)
    writer.write({"step": training.env_steps, "eval/return": mean, "eval/returns": scores})
    logger.info("evaluation: mean return %.1f of %d episodes", mean, len(scores))
    return mean


def finish(training: Training, folder: Path, writer: JsonlWriter) -> None:
    """The last evaluation, and summary.json."""
    config, progress = training.config, training.progress
    assert progress.updates, "the config has promised a first update"
    summary = {
        "preset": config.preset,
        "seed": config.run.seed,
        "env_steps": training.env_steps,
        "updates": progress.updates,
        "episodes": progress.episodes,
        "train_seconds": progress.train_seconds,
        "first_update_seconds": progress.first_update_seconds,
        "steps_per_second": training.env_steps / progress.train_seconds,
        "ms_per_update": 1000 * progress.update_seconds / progress.updates,
        "return_last20": progress.mean_score(),
        "solved_seconds": progress.solved_seconds,
        "eval_return": write_evaluation(training, writer),
    }
    text = json.dumps(summary, indent=2)
    (folder / "summary.json").write_text(text + "\n")
    logger.info("%s\n%s", folder / "summary.json", text)
