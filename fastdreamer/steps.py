"""The two steps of the loop: learn from planned windows, act on a record. Same meaning as the agent's, but fast.

Both work on static tensors only: what a step reads and writes lies at the same address every time. So on a GPU each is
captured once, as one CUDA graph, and then replayed: one launch, and nothing else for the host to do. On the CPU the
same functions run as they are.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer.agent import Agent
from fastdreamer.env_step import Step
from fastdreamer.metrics import Metrics
from fastdreamer.noise import Noise, Stream
from fastdreamer.optim import LaProp
from fastdreamer.profiling import range_
from fastdreamer.replay import Replay
from fastdreamer.replay_fetch import host_zeros
from fastdreamer.replay_window import Plan
from fastdreamer.skips import Skips
from fastdreamer.spaces import Spaces
from fastdreamer.streams import CudaQueue, Queue, make_queue, wait_for

WARMUP = 3
"""Runs before a capture: every kernel is loaded, every size known, every gradient's node made on the right stream."""


class Captured:
    """A function of static tensors as one CUDA graph.

    `state`, what the function changes, is put back after its warm-up. Kernels that other threads launch while it is
    captured are none of its business. Source: pytorch.org, "CUDA semantics", CUDA graphs.
    """

    def __init__(self, run: Callable[[], None], state: Sequence[Tensor], queue: CudaQueue) -> None:
        warm_up(run, state, queue)
        self.graph = torch.cuda.CUDAGraph(keep_graph=True)  # so that its nodes can be counted
        with torch.cuda.graph(self.graph, stream=queue.stream, capture_error_mode="thread_local"):
            run()
        self.graph.instantiate()

    def __call__(self) -> None:
        self.graph.replay()


def warm_up(run: Callable[[], None], state: Sequence[Tensor], queue: CudaQueue) -> None:
    """Runs a function a few times on a stream, and gives what it changes its old values back."""
    before = [tensor.detach().clone() for tensor in state]
    wait_for(queue.stream.device)
    for _ in range(WARMUP):
        queue.run(run)
    queue.run(lambda: put_back(state, before)).wait()


@torch.no_grad()
def put_back(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Gives every tensor the value that it had."""
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)


class TrainStep:
    """One update: gather, noise, world model, dreams, losses, gradients, optimizer, slow critic, write-back, metrics.

    metrics: where its numbers go. graph: the stream on which it is captured as a CUDA graph, while the ring is empty;
    without one it runs as it is.
    """

    def __init__(
        self, agent: Agent, optimizer: LaProp, replay: Replay, metrics: Metrics, seed: int,
        graph: CudaQueue | None = None,
    ) -> None:  # fmt: skip
        self.agent, self.optimizer, self.replay, self.metrics = agent, optimizer, replay, metrics
        device = optimizer.step_count.device
        self.noise = (
            Noise(seed, Stream.OBSERVE, device=device),
            Noise(seed, Stream.IMAGINE, device=device),
            Noise(seed, Stream.ACTION, device=device),
        )
        self.skips = Skips(replay.batch_size, device)
        self.run: Callable[[], None] = self._update
        if graph is not None:
            assert not replay.length, "its rows would be overwritten"
            self.run = Captured(self._update, self.state(), graph)
            metrics.flush()  # what the warm-up left
        else:
            wait_for(device)  # what was made here is the default stream's

    def warm_up(self, queue: CudaQueue) -> None:
        """A few updates that change nothing but the ring, which must be empty."""
        warm_up(self._update, self.state(), queue)

    def __call__(self, plan: Plan) -> None:
        """Learns from the planned windows and writes their fresh states back, in the order of the current stream."""
        with range_("stage"):
            self.replay.stage(plan)
        with range_("train"):
            self.run()

    def _update(self) -> None:
        agent, replay = self.agent, self.replay
        statistics = agent.behavior.retnorm.lo, agent.behavior.retnorm.hi
        before = [statistic.clone() for statistic in statistics]
        noise = agent.update_noise(*self.noise, replay.batch_size, replay.batch_length)
        window = replay.window()
        out = agent.loss(*window, noise)
        # What is not finite makes gradients that are not: two-hot would take a reward of inf for its largest bin.
        out.loss.backward(1 + 0 * (out.loss.detach() + window.batch.reward.sum()))
        optimizer = self.optimizer.step()
        finite = optimizer["opt/skipped"] == 0  # else nothing may change but the noise and the count
        for statistic, value in zip(statistics, before, strict=True):
            statistic.copy_(torch.where(finite, statistic, value))
        replay.write_back(*out.states, finite)
        skipped = optimizer.pop("opt/skipped")
        self.skips.add(skipped, replay.staged)
        self.metrics.add(out.metrics | optimizer, finite)
        self.metrics.add({"opt/skipped": skipped})

    def state(self) -> list[Tensor]:
        """What an update changes, but for the ring, which is empty when this is asked for."""
        counters = [noise.counter for noise in self.noise]
        tensors = [*self.agent.parameters(), *self.agent.buffers(), *self.optimizer.state().values()]
        return [*tensors, *self.optimizer.shadow, *counters, *self.skips.state()]


class ActStep:
    """The policy over N environments; carries their world states and last actions, and stores what they did.

    It acts with a copy of the weights, which `take_weights` renews: so the learner can go on meanwhile. replay: where
    every record goes, empty when this is made; none in an evaluation. On a GPU it is a CUDA graph.
    """

    def __init__(
        self, agent: Agent, rows: int, seed: int, streams: tuple[Stream, Stream], replay: Replay | None = None,
        queue: Queue | None = None,
    ) -> None:  # fmt: skip
        device = next(agent.parameters()).device
        self.queue = queue or make_queue(device, urgent=True)
        self.agent, self.replay, self.rows = agent.acting(), replay, rows
        self._weights: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, weight in self.agent.named_parameters():
            half = agent.halves.get(name) if weight.dtype == torch.bfloat16 else None
            targets, sources = self._weights.setdefault(weight.dtype, ([], []))  # copied at once, as lists of one dtype
            targets.append(weight)
            sources.append(agent.get_parameter(name) if half is None else half)
        self.take_weights()
        self.noise = Noise(seed, streams[0], device=device), Noise(seed, streams[1], device=device)
        self.state = self.agent.initial(rows)
        fields = record_fields(agent.world.obs)
        self._host = {key: host_zeros((rows, *shape), dtype, device) for key, (shape, dtype) in fields.items()}
        self._record = {key: value.to(device) for key, value in self._host.items()}
        self._action = {key: host_zeros(tuple(v.shape), v.dtype, device) for key, v in self.state.action.items()}
        self.run: Callable[[], None] = self._act
        if isinstance(self.queue, CudaQueue):
            assert replay is None or not replay.length, "its rows would be overwritten"
            self.run = Captured(self._act, self._state(), self.queue)

    def __call__(self, step: Step) -> dict[str, NDArray[np.generic]]:
        """Actions (N, *shape) per key for the environments; waits for them."""
        record = {f"obs/{key}": value for key, value in step.obs.items()} | step._asdict()
        for key, value in self._host.items():
            value.copy_(torch.from_numpy(record[key]))
        self.queue.run(self.run).wait()
        if self.replay is not None:
            self.replay.count({key: self._host[key] for key in self.replay.away})
        return {key: value.numpy().copy() for key, value in self._action.items()}

    def carry(self) -> dict[str, Tensor]:
        """What goes from one step to the next: the state of the world model, (N, ...), and the action before it."""
        return self.state.world._asdict() | {f"action/{key}": value for key, value in self.state.action.items()}

    @torch.no_grad()
    def take_weights(self) -> None:
        """From the next action on, the learner's weights of now, in the order of the current stream."""
        for targets, sources in self._weights.values():
            torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def _act(self) -> None:
        copy_all(self._record, self._host)
        obs = {key: self._record[f"obs/{key}"] for key in self.agent.world.obs}
        noise = self.agent.act_noise(*self.noise, self.rows)
        action, state = self.agent.act(obs, self._record["is_first"], self.state, noise)
        action, world = without_spoiled(action), without_spoiled(state.world._asdict())
        copy_all(self.state.world._asdict(), world)
        copy_all(self.state.action, action)
        if self.replay is not None:
            stored = mask_action(action, self._record["is_last"])
            actions = {f"action/{key}": value for key, value in stored.items()}
            self.replay.insert(self._record | actions | world)
        copy_all(self._action, action)

    def _state(self) -> list[Tensor]:
        cursor = [] if self.replay is None else [self.replay.cursor]
        return [*self.state.world, *self.state.action.values(), *cursor, *(noise.counter for noise in self.noise)]


def mask_action(action: dict[str, Tensor], is_last: Tensor) -> dict[str, Tensor]:
    """The action that is stored: zeros where the record is the last of its episode and no action was executed.

    action: key -> (N, ...); is_last: (N,) bool. Source: SPEC 1.1.
    """
    return {key: value.masked_fill(is_last.view(-1, *[1] * (value.ndim - 1)), 0) for key, value in action.items()}


def without_spoiled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """0 for every number that is not finite: weights that are spoiled must not spoil the ring before they are found."""
    numbers = {key: value for key, value in values.items() if value.is_floating_point()}
    return values | {key: value.nan_to_num(0.0, 0.0, 0.0) for key, value in numbers.items()}


def record_fields(obs: Spaces) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of what a `Step` holds of one environment, named as the ring names it."""
    flags = {key: ((), torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    values = {f"obs/{key}": (space.shape, getattr(torch, space.dtype)) for key, space in obs.items()}
    return {**values, "reward": ((), torch.float32), **flags}


def copy_all(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copies what is in `sources` into the static tensors of the same names."""
    for key, target in targets.items():
        target.copy_(sources[key], non_blocking=True)
