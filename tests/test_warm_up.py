"""What a GPU does before it captures, played through on the CPU: the warm-up leaves no trace in what follows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_loop import tiny_config
from test_steps import ACTING, make_step
from tiny_agent import ACT, CAMERA, DETER, GROUPS, OBS, ROWS, TIME, fill, make_agent
from torch import Tensor

from fastdreamer import learner as learner_module
from fastdreamer import steps
from fastdreamer.agent import Agent
from fastdreamer.loop import Training
from fastdreamer.metrics import Metrics
from fastdreamer.optim import LaProp
from fastdreamer.replay import Replay
from fastdreamer.steps import ActStep, TrainStep, warm_up
from fastdreamer.streams import CudaQueue, Done, Mark, mark_here

UPDATES = 20


class InlineCuda(CudaQueue):
    """A CUDA stream that runs on the CPU."""

    def __init__(self) -> None:
        self.stream = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]

    def run(self, work: Callable[[], object]) -> Mark:
        work()
        return Done()


class FakeStream(SimpleNamespace):
    """A CUDA stream that writes down what it waits for."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(device=torch.device("cpu"), awaited=[])

    def wait_event(self, event: object) -> None:
        self.awaited.append(event)


def test_a_stream_comes_after_marks_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for an event, the caller's stream does not; nobody waits for a hand-over of weights that never was."""
    callers = FakeStream()
    current = [callers]

    @contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    event = SimpleNamespace(record=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    queue = CudaQueue(torch.device("cpu"))
    queue.after(Done())
    assert vars(queue.stream)["awaited"] == []
    queue.after(mark_here(torch.device("cuda")))
    assert vars(queue.stream)["awaited"] == [event] and callers.awaited == []


class Replayed:
    """As `Captured`, but that a replay runs the function again."""

    warmed = 0

    def __init__(self, run: Callable[[], None], state: Sequence[Tensor], queue: CudaQueue) -> None:
        warm_up(run, state, queue)
        Replayed.warmed += 1
        self.replay = run

    def __call__(self) -> None:
        self.replay()


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps warm up and are captured, on the CPU. Rows that the ring has not written yet are zero, as a GPU's are."""
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(steps, "Captured", Replayed)
    monkeypatch.setattr(steps, "make_queue", lambda *_, **__: InlineCuda())
    Replayed.warmed = 0
    yield


def make_learning(captured: bool, dtype: torch.dtype) -> tuple[Agent, TrainStep]:
    """An agent with images and its update, over a ring that is filled afterwards."""
    obs = OBS | {"camera": CAMERA}
    agent = make_agent(dtype=dtype, obs=obs)
    halves = agent.add_halves() if dtype == torch.bfloat16 else []
    optimizer = LaProp(agent.official_parameters(), 1e-2, 3, 0.3, agent.slow_parameters(), shadow=halves)
    replay = Replay(
        obs, ACT, deter=DETER, stoch=GROUPS, num_envs=ROWS, capacity=50, batch_size=ROWS, batch_length=TIME, seed=0,
        dtype=dtype,
    )  # fmt: skip
    train = TrainStep(agent, optimizer, replay, Metrics(), 5, InlineCuda() if captured else None)
    fill(replay, 0)
    return agent, train


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_warmed_up_update_is_that_of_a_fresh_one(dtype: torch.dtype) -> None:
    (warm, ours), (fresh, theirs) = make_learning(True, dtype), make_learning(False, dtype)
    assert Replayed.warmed == 1
    for _ in range(UPDATES):
        for train in (ours, theirs):
            train(train.replay.plan())
        assert ours.metrics.flush() == theirs.metrics.flush()
    length = ours.replay.length
    for key, ring in ours.replay.latents.items():
        assert torch.equal(ring[:, :length], theirs.replay.latents[key][:, :length]), key
    state, expected = ({**a.state_dict(), **t.optimizer.state()} for a, t in ((warm, ours), (fresh, theirs)))
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
    for half, other in zip(ours.optimizer.shadow, theirs.optimizer.shadow, strict=True):
        assert torch.equal(half, other)


@pytest.mark.usefixtures("fake_gpu")
def test_a_warmed_up_policy_is_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def ring() -> Replay:
        return Replay(
            OBS, ACT, deter=DETER, stoch=GROUPS, num_envs=ROWS, capacity=50, batch_size=ROWS, batch_length=TIME, seed=0
        )

    warm = ActStep(make_agent(), ROWS, 7, ACTING, ring())
    assert Replayed.warmed == 1
    monkeypatch.undo()
    fresh = ActStep(make_agent(), ROWS, 7, ACTING, ring())
    for t in range(5):
        step = make_step(t % ROWS, np.random.default_rng(t))
        ours, theirs = warm(step), fresh(step)
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
    assert warm.replay is not None and fresh.replay is not None
    assert warm.replay.cursor == fresh.replay.cursor == 5
    for key, tensor in (warm.replay.records | warm.replay.latents).items():
        assert torch.equal(tensor[:, :5], (fresh.replay.records | fresh.replay.latents)[key][:, :5]), key


def run(folder: Path) -> learner_module.Learner:
    training = Training(tiny_config(folder), None)
    while training.env_steps < 200:
        training.advance()
    training.save(folder)
    training.env.close()
    return training.learner


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch, fake_gpu: None) -> list[int]:
    """A learner on a GPU, played on the CPU, that finds 1 GB allocated after an update: what its rings are told."""
    told: list[int] = []
    make = learner_module.Learner._make_replay

    def watched(
        self: learner_module.Learner, capacity: int, placement: str, peak: int = 0, num_envs: int | None = None
    ) -> Replay:
        told.append(peak)
        assert num_envs == (None if told[1:] else 1), "a small ring is enough to find out"
        return make(self, capacity, "host", peak, num_envs)

    monkeypatch.setattr(learner_module, "make_queue", lambda *_, **__: InlineCuda())
    monkeypatch.setattr(learner_module.Learner, "_make_replay", watched)
    figures = dict.fromkeys(("reset_peak_memory_stats", "empty_cache"), 0)
    figures |= {"memory_allocated": 100, "max_memory_allocated": 10**9}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, figure=figure: figure)
    return told


def test_a_whole_run_of_the_gpus_branch_is_that_of_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peaks: list[int]
) -> None:
    """It measures what an update takes, captures both steps, trains and saves."""
    ours = run(tmp_path / "gpu")
    copies = sum(tensor.numel() * tensor.element_size() for tensor in ours.train.state())
    assert peaks == [0, 10**9 - 100 - copies] and Replayed.warmed == 2
    monkeypatch.undo()
    theirs = run(tmp_path / "cpu")
    assert ours.metrics.flush() == theirs.metrics.flush()
    for name, tensor in ours.agent.state_dict().items():
        assert torch.equal(tensor, theirs.agent.state_dict()[name]), name
