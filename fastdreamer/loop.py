"""The loop: env -> act -> env; every record -> ring -> train -> metrics; fresh states back into the ring."""

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.agent import Agent, official_name
from fastdreamer.config import Config
from fastdreamer.cpu import keep_memory, pick_matmul
from fastdreamer.env import Step, make_env, mask_action
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.metrics import Metrics
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.profiling import range_
from fastdreamer.progress import Progress
from fastdreamer.replay import Replay
from fastdreamer.schedule import TrainRatio
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
        matmul = ""
        if device.type == "cpu":
            keep_memory()
            matmul = f"; {pick_matmul()} for torch's matmuls"
        # Environments cannot be saved: a resumed run begins new episodes, with seeds of its own.
        env_seed = run.seed if resumed is None else (run.seed + resumed.value("env_steps", int)) % RESUMED_SEEDS
        self.env = make_env(config.env.id, num_envs=config.env.num_envs, seed=env_seed, options=config.env.options)
        spaces, dims = (self.env.obs_space, self.env.act_space), config.model.dims()
        self.agent = Agent(*spaces, config.model, config.loss, dtype)
        self.agent.initialize(Noise(run.seed, Stream.INIT))
        self.agent.to(device)
        self.optimizer = LaProp(
            self.agent.official_parameters(), config.optim.lr, config.optim.warmup, config.optim.agc,
            self.agent.slow_parameters(),
        )  # fmt: skip
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
        logger.info("%s%s", report(device, dtype), matmul)

    @property
    def env_steps(self) -> int:
        """Agent steps so far over all environments, resets included."""
        return self.replay.length * self.config.env.num_envs

    @property
    def done(self) -> bool:
        """Whether the run has made its steps or is solved."""
        solved = self.config.run.solved is not None and self.progress.solved_seconds is not None
        return solved or self.env_steps >= self.config.run.steps

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
            learned = self.progress.updates and self.progress.solved_seconds is None
            if solved is not None and learned and self.progress.reaches(solved):
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
