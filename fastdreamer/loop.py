"""The loop: env -> act -> env; every record -> ring -> train -> metrics; fresh states back into the ring."""

import logging
import time
from pathlib import Path

import torch

from fastdreamer import checkpoint
from fastdreamer.config import Config, ModelConfig
from fastdreamer.cpu import cpu_vendor, keep_memory, pick_matmul
from fastdreamer.env import EnvState, Step, make_env
from fastdreamer.episodes import EpisodeTracker
from fastdreamer.learner import Learner, choose_device
from fastdreamer.profiling import range_
from fastdreamer.progress import Progress
from fastdreamer.saving import Saving
from fastdreamer.schedule import TrainRatio
from fastdreamer.spaces import Spaces
from fastdreamer_kernels import report

logger = logging.getLogger(__name__)


def spaces_in_words(spaces: tuple[Spaces, Spaces], model: ModelConfig) -> list[str]:
    """What was found in the environment, and which part of the agent each of it has, and why."""
    obs, act = spaces
    encoders = {"image": "convolutions", "vector": "an MLP", "discrete": "an MLP, as one-hot"}
    mix = f", {model.actor_unimix:.0%} of it uniform" if model.actor_unimix else ""
    heads = {"image": "none", "vector": "a bounded normal, for it is continuous", "discrete": f"a categorical{mix}"}
    return [
        f"{name}: " + "; ".join(f"{key}, {space.in_words()}: {parts[space.kind]}" for key, space in table.items())
        for name, table, parts in (("observations", obs, encoders), ("actions", act, heads))
    ]


class Training:
    """Everything that one run needs, and its loop."""

    def __init__(self, config: Config, resumed: checkpoint.Checkpoint | None) -> None:
        """Goes on from a checkpoint where one is given. Raises ValueError for what cannot be made or does not fit."""
        self.config, run = config, config.run
        device, dtype = choose_device(config)
        matmul = ""
        if device.type == "cpu":
            keep_memory()
            matmul = f"; {pick_matmul(cpu_vendor())} for torch's matmuls"
        self.env = make_env(
            config.env.id, num_envs=config.env.num_envs, seed=run.seed, options=config.env.options,
            timeout=config.env.timeout,
        )  # fmt: skip
        self.learner = Learner(config, self.env.obs_space, self.env.act_space)
        self.ratio = TrainRatio(run.train_ratio, config.replay.batch_size, config.replay.batch_length)
        self.episodes, self.progress = EpisodeTracker(config.env.num_envs), Progress()
        if resumed is not None:
            self.learner.restore(resumed)
            self.progress = Progress.from_json(resumed.value("progress", dict))
            self.ratio.load_state_dict(resumed.value("train_ratio", dict), self.env_steps)
            if (steps := resumed.value("env_steps", int)) != self.env_steps:
                raise ValueError(f"{resumed.path}: env_steps {steps}, but its replay has {self.env_steps}")
            self.episodes.load_state_dict(resumed.value("episodes", dict))
            actions = {key: value.numpy() for key, value in resumed.tensors.get("envs", {}).items()}
            self.env.restore(EnvState(resumed.value("envs", dict), actions))
        parameters = sum(param.numel() for param in self.learner.optimizer.params)
        logger.info(
            "%s: %d x %s, %s with %s parameters, %s on %s", config.preset, config.env.num_envs, config.env.id,
            config.model.size, f"{parameters:,}", dtype, device,
        )  # fmt: skip
        for line in spaces_in_words(self.learner.spaces, config.model):
            logger.info("%s", line)
        logger.info("%s%s", report(device, dtype), matmul)
        logger.info("%s; schedule %s", self.learner.replay.placement.reason, self.learner.schedule)

    @property
    def env_steps(self) -> int:
        """Agent steps so far over all environments, resets included."""
        return self.learner.replay.length * self.config.env.num_envs

    @property
    def done(self) -> bool:
        """Whether the run has made its steps or is solved."""
        solved = self.config.run.solved is not None and self.progress.solved_seconds is not None
        return solved or self.env_steps >= self.config.run.steps

    def advance(self) -> list[float]:
        """One step of every environment and the updates that it makes due. Returns the scores of ended episodes."""
        begun, learner = time.perf_counter(), self.learner
        with range_("env"):
            step = self.env.recv()
        with range_("act"):
            learner.metrics.add({"policy_lag": learner.lag})
            action = learner.act(step)
        self.env.send(action)  # the environments step while the learner works
        if learner.replay.windows >= self.config.replay.trained_steps:
            self.update(self.ratio.due(self.env_steps))
        self.progress.train_seconds += time.perf_counter() - begun
        return self._count_episodes(step)

    def update(self, updates: int) -> None:
        """Launches updates."""
        begun = time.perf_counter()
        self.learner.launch(updates)
        self.progress.updates += updates
        self.progress.update_seconds += time.perf_counter() - begun

    def _count_episodes(self, step: Step) -> list[float]:
        scores, solved = [], self.config.run.solved
        for episode in self.episodes.add(step.reward, step.is_first, step.is_last):
            scores.append(episode.score)
            self.learner.metrics.add({"episode/return": episode.score, "episode/length": episode.length})
            self.progress.add_score(episode.score)
            learned = self.progress.updates and self.progress.solved_seconds is None
            if solved is not None and learned and self.progress.reaches(solved):
                self.progress.solved_seconds = self.progress.train_seconds
        return scores

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of this moment. Raises OSError where that fails."""
        self.begin_save(folder).wait()

    def begin_save(self, folder: Path) -> Saving:
        """The same, but it is written while training goes on."""
        with range_("save"):
            envs = self.env.save()
            state = {
                "env_steps": self.env_steps,
                "progress": self.progress.to_json(),
                "train_ratio": self.ratio.state_dict(),
                "episodes": self.episodes.state_dict(),
                "envs": envs.facts,
            }
            actions = {key: torch.from_numpy(value) for key, value in envs.actions.items()}
            return self.learner.save(folder, self.env_steps, state, {"envs": actions} if actions else {})
