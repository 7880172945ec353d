"""What learns and acts: agent, optimizer, ring and the two steps on one device, in the order of a schedule.

    sync      the policy waits for every update that is due, and acts with the weights after them
    pipeline  updates run while the environments step: the policy acts with the weights before the latest launch

A launch is the updates that one step of all environments makes due. The lag is counted, not timed: in both schedules a
run is a function of its seed.
"""

import gc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.agent import Agent, official_name
from fastdreamer.config import Config
from fastdreamer.env_step import Step
from fastdreamer.metrics import DeviceSums, HostSums, Metrics, fetch, means
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.profiling import range_
from fastdreamer.replay import Replay, require_classes
from fastdreamer.replay_placement import Wanted
from fastdreamer.replay_window import Plan
from fastdreamer.saving import Saving
from fastdreamer.skips import Skips
from fastdreamer.spaces import Spaces, spaces_to_json
from fastdreamer.steps import ActStep, TrainStep, without_spoiled
from fastdreamer.streams import CudaQueue, Done, InlineQueue, Mark, Queue, make_queue, wait_for
from fastdreamer.tables import read_table


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
        self.beside = not isinstance(self.queue, InlineQueue)
        """Whether a launch returns before its updates are done."""
        self._handed: Mark = Done()
        self._saver = ThreadPoolExecutor(1, "saver")

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
        return Reading(self.metrics, self.train.skips, self.queue)

    def drain(self) -> None:
        """Waits until everything that was launched is done."""
        self.queue.run(lambda: None).wait()

    def save(
        self, run: Path, env_steps: int, state: Mapping[str, object], others: Mapping[str, Mapping[str, Tensor]]
    ) -> Saving:
        """A checkpoint of this moment: networks, optimizer, normaliser, counters, spaces and replay.

        And the weights of the policy, where the schedule keeps it behind. And what the caller has: `state`, JSON data,
        and groups of tensors.
        """
        self.drain()
        groups = {**self.state(), **others}
        counters = {"noise": {name: int(noise.counter) for name, noise in self._noise().items()}, "lag": self.lag}
        tensors = {
            group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for group, named in groups.items()
        }
        ring = self.replay.save(run / "replay")
        names = dict(zip(("obs", "act"), map(spaces_to_json, self.spaces), strict=True))
        facts = {**state, **counters, "spaces": names}
        return Saving(
            self._saver, env_steps, ring, lambda: checkpoint.save(run, env_steps, tensors, facts, ring.write())
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Goes on from a `save`. Raises ValueError where it does not fit."""
        self._load(saved)
        streams = self._noise()
        counters = read_table(saved.state.get("noise"), dict.fromkeys(streams, "a count"), f"{saved.path}: noise")
        for name, noise in streams.items():
            noise.counter.fill_(counters[name])
        require_classes(f"{saved.path}/acting: stoch", self.policy.state.world.stoch, self.config.model.dims().classes)
        for key, space in self.spaces[1].items():
            if space.kind == "discrete":
                require_classes(f"{saved.path}/acting: action/{key}", self.policy.state.action[key], space.classes)
        if saved.replay is None:
            raise checkpoint.CheckpointError(f"{saved.path}: replay/index.json: missing")
        self.replay.load(saved.path.parents[1] / "replay", saved.replay)
        if self.schedule == "pipeline" and "policy" in saved.tensors:  # its weights are a launch older
            policy = dict(self.policy.agent.named_parameters())
            checkpoint.load_into(policy, saved.tensors["policy"], f"{saved.path}/policy")
            self.lag = read_table({"lag": saved.state.get("lag")}, {"lag": "a count"}, str(saved.path))["lag"]
        wait_for(self.device)  # all this was the default stream's, for which no queue waits

    def roll_back(self, saved: checkpoint.Checkpoint) -> None:
        """Gives networks, optimizer and normaliser, and the policy, what they were in a checkpoint of this run.

        Steps, ring, plans and noise go on, so that the same batch is not drawn again: what follows is no repetition.
        Raises ValueError where it does not fit.
        """
        self.drain()
        self._load(saved)
        self.lag = 0
        wait_for(self.device)

    def forget_skips(self) -> None:
        """Counts skipped updates anew."""
        self.drain()
        self.train.skips.clear()
        wait_for(self.device)

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        for group, target in {**self._tensors(), "optim": self.optimizer.state()}.items():
            checkpoint.load_into(target, saved.tensors.get(group, {}), f"{saved.path}/{group}")
        self.agent.renew_halves()
        self.policy.take_weights()

    def mend(self) -> int:
        """Rids the ring, and what the policy carries, of values that are not finite; how many records had some."""
        self.drain()
        mended = self.replay.mend()
        for name, value in without_spoiled(self.policy.carry()).items():
            self.policy.carry()[name].copy_(value)
        wait_for(self.device)
        return mended

    def is_finite(self) -> bool:
        """Whether everything is that a checkpoint holds beside the ring."""
        self.drain()
        groups = *self._tensors().values(), self.optimizer.state()
        tensors = [tensor for group in groups for tensor in group.values()] + [*self.policy.agent.parameters()]
        ends = [end.float() for tensor in tensors for end in tensor.detach().aminmax()]
        return bool(torch.stack(ends).isfinite().all())  # the ends of what holds a NaN are NaN

    def skipped_window(self) -> dict[str, Tensor] | None:
        """What the last skipped update saw, its start states as they are now; None where it is not in the ring.

        The window by the ring's keys, (B, T, ...), start states (B, ...), and env and record (B,): see `Plan`.
        """
        self.drain()
        env, record = self.train.skips.plan.cpu().numpy()
        if env.min() < 0 or record.min() < max(self.replay.first, self.replay.length - self.replay.rows):
            return None
        self.replay.stage(Plan(env, record, online=0))
        batch, start, action = self.replay.window()
        flat = {f"obs/{key}": value for key, value in batch.obs.items()} | batch._asdict() | start._asdict()
        flat |= {f"action/{key}": value for key, value in action.items()}
        flat |= {"env": torch.from_numpy(env), "record": torch.from_numpy(record)}
        return {key: value.detach() for key, value in flat.items() if isinstance(value, Tensor)}

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint holds beside the ring, as it is: group -> name -> tensor."""
        groups: dict[str, Mapping[str, Tensor]] = {**self._tensors(), "optim": self.optimizer.state()}
        return groups | ({"policy": dict(self.policy.agent.named_parameters())} if self.schedule == "pipeline" else {})

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

    def _make_replay(self, capacity: int, placement: Wanted, peak: int = 0, num_envs: int | None = None) -> Replay:
        config, dims = self.config, self.config.model.dims()
        return Replay(
            *self.spaces, deter=dims.deter, stoch=dims.stoch, classes=dims.classes,
            num_envs=num_envs or config.env.num_envs, capacity=capacity, batch_size=config.replay.batch_size,
            batch_length=config.replay.batch_length, seed=config.run.seed, dtype=self.dtype, device=self.device,
            placement=placement, peak=peak,
        )  # fmt: skip

    def _peak(self, queue: CudaQueue) -> int:
        """Bytes that an update takes of the GPU beside weights and ring, measured with next to no ring."""
        ring = self._make_replay(1, "device", num_envs=1)
        step = TrainStep(self.agent, self.optimizer, ring, Metrics(), self.config.run.seed)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        step.warm_up(queue)
        put_by = sum(tensor.numel() * tensor.element_size() for tensor in step.state())  # the warm-up's own copies
        peak = torch.cuda.max_memory_allocated(self.device) - before - put_by
        del step, ring
        gc.collect()  # a step holds itself
        torch.cuda.empty_cache()
        return peak


class Reading:
    """Metrics on their way to the host."""

    def __init__(self, metrics: Metrics, skips: Skips, queue: Queue) -> None:
        self._host: HostSums = metrics.take_host()
        self._device: DeviceSums = []
        self._most: list[Tensor] = []

        def take() -> None:
            self._device.extend(metrics.take_device())
            self._most.append(fetch(skips.most))

        self._mark = queue.run(take)

    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._mark.done()

    def means(self) -> dict[str, float]:
        """The mean of every name; waits for them."""
        self._mark.wait()
        return means(self._host, self._device)

    def most_skipped(self) -> int:
        """Skipped updates of RECENT in a row, the most of them since the last roll-back; waits for them."""
        self._mark.wait()
        return int(self._most[0])


def choose_device(config: Config) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and in what. Raises ValueError for a GPU that is not there."""
    present, named = torch.cuda.is_available(), config.run.device
    if named == "cuda" and not present:
        raise ValueError("run.device must be auto or cpu on this machine, got 'cuda': torch sees no GPU")
    cuda = present and named != "cpu"
    half = cuda if config.model.precision == "auto" else config.model.precision == "bfloat16"
    return torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if half else torch.float32
