"""A whole update and a whole action can be held by a CUDA graph: shown on meta tensors, and by addresses on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from capture_rules import Addresses, Uncapturable, captured
from test_steps import ACTING, make_step
from tiny_agent import CAMERA, OBS, ROWS, make_agent, make_replay
from torch import Tensor

from fastdreamer import steps
from fastdreamer.behavior import ReturnNormalizer
from fastdreamer.metrics import Metrics
from fastdreamer.optim import LaProp
from fastdreamer.spaces import Spaces
from fastdreamer.steps import ActStep, TrainStep

META = torch.device("meta")
DTYPES = [torch.float32, torch.bfloat16]
VARIANTS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "images": {"obs": OBS | {"camera": CAMERA}},
    "normal heads": {"heads": "normal"},
    "no unimix": {"unimix": 0.0},
    "actor unimix": {"actor_unimix": 0.01},
}


def make_train_step(device: torch.device, dtype: torch.dtype, obs: Spaces = OBS, **model: Any) -> TrainStep:
    agent = make_agent(dtype=dtype, obs=obs, **model).to(device)
    halves = agent.add_halves() if dtype == torch.bfloat16 else []
    optimizer = LaProp(agent.official_parameters(), 1e-3, 3, 0.3, agent.slow_parameters(), shadow=halves)
    return TrainStep(agent, optimizer, make_replay(dtype=dtype, obs=obs, device=device), Metrics(), seed=5)


def trace(step: Callable[[], None]) -> list[str]:
    """Every op and every launch of a step with its constants."""
    with captured() as rules:
        step()
    assert rules.launches, "Triton kernels are part of it"
    return rules.trace


def trace_update(train: TrainStep) -> list[str]:
    return trace(train._update)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_obeys_the_rules_and_its_constants_do_not_change(dtype: torch.dtype, variant: str) -> None:
    train = make_train_step(META, dtype, **VARIANTS[variant])
    trace_update(train)  # the warm-up: sums of metrics and tables come to be
    first, second = trace_update(train), trace_update(train)
    assert first == second
    assert sum("laprop" in op or "_update_kernel" in op for op in first) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_action_obeys_the_rules_and_its_constants_do_not_change(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "host_zeros", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype, device=META))
    agent = make_agent(dtype=dtype)
    act = ActStep(agent.to(META), ROWS, 7, ACTING, make_replay(dtype=dtype, device=META))
    act._act()
    assert trace(act._act) == trace(act._act)


def after_loss(look: Callable[[Tensor], object]) -> Callable[[TrainStep, pytest.MonkeyPatch], None]:
    """A mistake that looks at the loss."""

    def plant(train: TrainStep, monkeypatch: pytest.MonkeyPatch) -> None:
        original = train.agent.loss

        def loss(*args: object) -> object:
            out = original(*args)
            look(out.loss.detach())
            return out

        monkeypatch.setattr(train.agent, "loss", loss)

    return plant


MISTAKES = {
    "item": (after_loss(lambda loss: loss.item()), "reads a value back"),
    "branch": (after_loss(lambda loss: loss if loss > 0 else -loss), "reads a value back"),
    "cpu": (after_loss(lambda loss: loss.cpu()), "goes to cpu"),
    "boolean mask": (after_loss(lambda loss: loss.view(1)[loss.view(1) > 0]), "boolean mask"),
    "masked_select": (after_loss(lambda loss: loss.masked_select(loss > 0)), "depends on values"),
    "nonzero": (after_loss(lambda loss: loss.view(1).nonzero()), "depends on values"),
    "unique": (after_loss(lambda loss: loss.view(1).unique()), "depends on values"),
    "host values": (after_loss(lambda loss: loss * torch.tensor([0.5], device=loss.device)), "host values"),
    "host tensor": (after_loss(lambda loss: loss.expand(2).mul(torch.ones(2))), "goes to cpu|on cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_graph_cannot_hold_is_refused(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = make_train_step(META, torch.float32)
    train._update()
    plant, message = MISTAKES[mistake]
    plant(train, monkeypatch)
    with pytest.raises(Uncapturable, match=message):
        trace_update(train)


def test_a_python_number_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that is counted on the host would be frozen."""
    train, count = make_train_step(META, torch.float32), iter(range(1, 9))
    monkeypatch.setattr(LaProp, "learning_rate", lambda self: torch.full_like(self.step_count, 1e-3 * next(count)))
    trace_update(train)
    assert trace_update(train) != trace_update(train)


def addresses(train: TrainStep, updates: int) -> list[set[int]]:
    found = []
    for _ in range(updates):
        plan = train.replay.plan()
        with Addresses() as mode:
            train(plan)
        found.append(mode.outside)
    return found


@pytest.mark.parametrize("kernels", ["reference", ""])
def test_what_an_update_reads_and_writes_stays_where_it_is(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", kernels)
    train = make_train_step(torch.device("cpu"), torch.float32)
    train(train.replay.plan())
    used, *others = addresses(train, 50)
    assert all(other == used for other in others)
    tensors = [*train.agent.parameters(), *train.optimizer.nu, *train.optimizer.mu, train.optimizer.step_count]
    tensors += [*train.replay.records.values(), *train.replay.latents.values(), train.agent.behavior.retnorm.lo]
    tensors += [*(noise.counter for noise in train.noise), *train.skips.state()]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} <= used


def test_a_statistic_in_a_new_tensor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: ReturnNormalizer, returns: Tensor) -> None:
        self.lo = self.lo.lerp(returns.detach().mean(), 0.01)

    monkeypatch.setattr(ReturnNormalizer, "update", update)
    train = make_train_step(torch.device("cpu"), torch.float32)
    train(train.replay.plan())
    first, second = addresses(train, 2)
    assert first != second


def test_what_acting_reads_and_writes_stays_where_it_is() -> None:
    act, rng = ActStep(make_agent(), ROWS, 7, ACTING, make_replay()), np.random.default_rng(0)
    act(make_step(0, rng))
    found = []
    for t in range(50):
        step = make_step(t % ROWS, rng)
        with Addresses() as mode:
            act.queue.run(act.run)
        found.append(mode.outside)
        act(step)
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_parts_trace_whole_and_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """encode, predict, reward, cont and the two losses of behavior, one graph each; and they compute the same."""
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    plain, compiled = (make_train_step(torch.device("cpu"), dtype) for _ in range(2))
    torch._dynamo.reset()
    compiled.agent.compile_parts("aot_eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    for update in range(20):
        for train in (plain, compiled):
            train(train.replay.plan())
        assert counters["stats"]["unique_graphs"] == 6 and not counters["graph_break"], update
        losses = [train.metrics.flush()["opt/loss"] for train in (plain, compiled)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5 if dtype == torch.float32 else 2e-2), update


def test_a_part_that_compiles_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    train = make_train_step(torch.device("cpu"), torch.float32)
    torch._dynamo.reset()
    train.agent.compile_parts("eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    for update in range(2):
        train.agent.world.dyn.unimix = 0.1 + 0.1 * update  # a Python number that a graph depends on
        train(train.replay.plan())
    assert counters["stats"]["unique_graphs"] == 7
