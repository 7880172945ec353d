"""What learns and acts: agent, optimizer, ring and the two steps on one device, in the order of a schedule.

    sync      the policy waits for every update that is due, and acts with the weights after them
    pipeline  updates run while the environments step: the policy acts with the weights before the latest launch

A launch is the updates that one step of all environments makes due. The lag is counted, not timed: in both schedules a
run is a function of its seed.
"""

import gc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.agent import Agent, official_name
from fastdreamer.config import Config
from fastdreamer.env_step import Step
from fastdreamer.metrics import DeviceSums, HostSums, Metrics, means
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.profiling import range_
from fastdreamer.replay import Replay
from fastdreamer.replay_placement import Wanted
from fastdreamer.replay_window import Plan
from fastdreamer.spaces import Spaces
from fastdreamer.steps import ActStep, TrainStep
from fastdreamer.streams import CudaQueue, Done, Mark, Queue, make_queue, wait_for


class Learner:
    """One agent that learns from what it does. Everything but `launch` and `act` waits for the device.

    Raises ValueError for what cannot be made.
    """

    def __init__(self, config: Config, obs: Spaces, act: Spaces) -> None:
        self.config, self.spaces = config, (obs, act)
        self.device, self.dtype = choose_device(config)
        wanted = config.run.schedule
        self.schedule = ("pipeline" if self.device.type == "cuda" else "sync") if wanted == "auto" else wanted
        self.agent = Agent(obs, act, config.model, config.loss, self.dtype)
        self.agent.initialize(Noise(config.run.seed, Stream.INIT))
        self.agent.to(self.device)
        halves = self.agent.add_halves() if self.dtype == torch.bfloat16 else []
        self.optimizer = LaProp(
            self.agent.official_parameters(), config.optim.lr, config.optim.warmup, config.optim.agc,
            self.agent.slow_parameters(), shadow=halves,
        )  # fmt: skip
        if config.run.compile:
            self.agent.compile_parts()
        self.metrics = Metrics()
        self.queue = make_queue(self.device, beside=self.schedule == "pipeline")
        graph = self.queue if isinstance(self.queue, CudaQueue) else None
        peak = 0 if graph is None else self._peak(graph)
        self.replay = self._make_replay(config.capacity, config.replay.placement, peak)
        self.train = TrainStep(self.agent, self.optimizer, self.replay, self.metrics, config.run.seed, graph)
        streams = Stream.ACT_STATE, Stream.ACT_POLICY
        self.policy = ActStep(self.agent, config.env.num_envs, config.run.seed, streams, self.replay)
        self.lag = 0
        """Updates that the weights of the policy do not know of yet."""
        self._handed: Mark = Done()

    def act(self, step: Step) -> dict[str, NDArray[np.generic]]:
        """Actions (N, *shape) per key for a record of the environments, which goes into the ring."""
        self.policy.queue.after(self._handed)
        return self.policy(step)

    def launch(self, updates: int) -> None:
        """Makes these updates, or has them made while the caller goes on, and gives the policy its next weights."""
        with range_("plan"):
            plans = [self.replay.plan() for _ in range(updates)]
        if self.schedule == "pipeline" and self.lag:
            self._hand_over()
        if plans:
            self.queue.run(lambda: self._train(plans))
        self.lag += updates
        if self.schedule == "sync" and self.lag:
            self._hand_over()

    def _train(self, plans: list[Plan]) -> None:
        for plan in plans:
            self.train(plan)

    def _hand_over(self) -> None:
        # The policy is at rest: whoever launches has its last action.
        self._handed, self.lag = self.queue.run(self.policy.take_weights), 0

    def read_metrics(self) -> "Reading":
        """Takes the metrics since the last reading; those of launched updates arrive when they are done."""
        return Reading(self.metrics, self.queue)

    def drain(self) -> None:
        """Waits until everything that was launched is done."""
        self.queue.run(lambda: None).wait()

    def save(
        self, run: Path, env_steps: int, state: Mapping[str, object], others: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Writes a checkpoint of this moment: networks, optimizer, normaliser, counters and replay.

        And the weights of the policy, where the schedule keeps it behind. And what the caller has: `state`, JSON data,
        and groups of tensors.
        """
        self.drain()
        tensors: dict[str, Mapping[str, Tensor]] = {**self._tensors(), "optim": self.optimizer.state(), **others}
        counters = {"noise": {name: int(noise.counter) for name, noise in self._noise().items()}, "lag": self.lag}
        if self.schedule == "pipeline":
            tensors["policy"] = dict(self.policy.agent.named_parameters())
        checkpoint.save(run, env_steps, tensors, {**state, **counters}, self.replay.save(run / "replay"))

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Goes on from a `save`. Raises ValueError where it does not fit."""
        for group, target in {**self._tensors(), "optim": self.optimizer.state()}.items():
            checkpoint.load_into(target, saved.tensors.get(group, {}), f"{saved.path}/{group}")
        counters = saved.value("noise", dict)
        for name, noise in self._noise().items():
            noise.counter.fill_(counters[name])
        assert saved.replay is not None, "every checkpoint of a run has one"
        self.replay.load(saved.path.parents[1] / "replay", saved.replay)
        self.agent.renew_halves()
        self.policy.take_weights()
        if self.schedule == "pipeline" and "policy" in saved.tensors:  # its weights are a launch older
            policy = dict(self.policy.agent.named_parameters())
            checkpoint.load_into(policy, saved.tensors["policy"], f"{saved.path}/policy")
            self.lag = saved.value("lag", int)
        wait_for(self.device)  # all this was the default stream's, for which no queue waits

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Parameters by official name, the return normaliser, and what the policy carries from step to step."""
        agent, normalizer = self.agent, self.agent.behavior.retnorm
        return {
            "model": {official_name(name): tensor for name, tensor in agent.named_parameters()},
            "carry": {"retnorm/lo": normalizer.lo, "retnorm/hi": normalizer.hi},
            "acting": self.policy.carry(),
        }

    def _noise(self) -> dict[str, Noise]:
        return {noise.name: noise for noise in (*self.train.noise, *self.policy.noise)}

    def _make_replay(self, capacity: int, placement: Wanted, peak: int = 0) -> Replay:
        config, dims = self.config, self.config.model.dims()
        return Replay(
            *self.spaces, deter=dims.deter, stoch=dims.stoch, num_envs=config.env.num_envs, capacity=capacity,
            batch_size=config.replay.batch_size, batch_length=config.replay.batch_length, seed=config.run.seed,
            dtype=self.dtype, device=self.device, placement=placement, peak=peak,
        )  # fmt: skip

    def _peak(self, queue: CudaQueue) -> int:
        """Bytes that an update takes of the GPU beside weights and ring, measured with next to no ring."""
        step = TrainStep(self.agent, self.optimizer, self._make_replay(1, "device"), Metrics(), self.config.run.seed)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        step.warm_up(queue)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del step
        gc.collect()  # a step holds itself
        torch.cuda.empty_cache()
        return peak


class Reading:
    """Metrics on their way to the host."""

    def __init__(self, metrics: Metrics, queue: Queue) -> None:
        self._host: HostSums = metrics.take_host()
        self._device: DeviceSums = []
        self._mark = queue.run(lambda: self._device.extend(metrics.take_device()))

    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._mark.done()

    def means(self) -> dict[str, float]:
        """The mean of every name; waits for them."""
        self._mark.wait()
        return means(self._host, self._device)


def choose_device(config: Config) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and in what. Raises ValueError for a GPU that is not there."""
    present, named = torch.cuda.is_available(), config.run.device
    if named == "cuda" and not present:
        raise ValueError("run.device must be auto or cpu on this machine, got 'cuda': torch sees no GPU")
    cuda = present and named != "cpu"
    half = cuda if config.model.precision == "auto" else config.model.precision == "bfloat16"
    return torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if half else torch.float32
