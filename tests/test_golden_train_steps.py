"""Four whole training steps against the official arrays: metrics, parameters, optimizer and normaliser state."""

import pytest
import torch
from golden_agent import BATCHES, CASES, Case, official_name
from golden_arrays import FORWARD, GRADIENT, PARAMETER, Golden, Tolerance
from golden_modules import official_layout
from torch import Tensor

from fastdreamer.batch import State
from fastdreamer.optim import LaProp

LR, WARMUP, AGC = 1e-3, 3, 0.3
UNMOVED = 2
"""The first update has learning rate 0, so so many batches see the initial parameters."""
MOVED = Tolerance(1e-3, 2e-4)
"""For metrics of later batches: a parameter whose gradient is near zero moves by up to lr in either direction."""
SMALL = Tolerance(1e-3)
"""For the size of an update, which is as small as the absolute room of the others."""
NEAR_ZERO = 2 * GRADIENT.largest
"""Of the largest gradient of a tensor, either code's error on top of the other's: below this even the sign is open."""
NEAR_ZERO_LIMIT = 4e-3
CLOSE, EXCEPTIONS = 1e-4, 1e-3
"""All but one parameter in a thousand must be this close: four steps move one by 2e-3 at most."""


class Trained:
    """Runs the four steps: metrics per step, and the least gradient that each parameter saw."""

    def __init__(self, case: Case) -> None:
        self.case, self.parameters = case, case.agent.official_parameters()
        self.optimizer = LaProp(self.parameters, LR, WARMUP, AGC, self.case.agent.slow_parameters())
        self.least = {name: torch.full_like(value, torch.inf) for name, value in self.parameters.items()}
        self.slow_updates = 0
        carry, steps = None, []
        for index in range(BATCHES):
            metrics, states = self.step(index, carry)
            carry = State(states.deter[:, -1], states.stoch[:, -1])
            steps.append(metrics)
        self.metrics = {official(name): torch.stack([step[name] for step in steps]) for name in steps[0]}

    def step(self, index: int, carry: State | None) -> tuple[dict[str, Tensor], State]:
        window = self.case.window(index, carry).window
        out = self.case.agent.loss(window.batch, window.start, window.prev_action, self.case.noise(window))
        out.loss.backward()
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, name
            grad = parameter.grad.abs()
            self.least[name] = torch.minimum(self.least[name], grad / grad.max())
        metrics = out.metrics | self.optimizer.step()
        assert metrics.pop("opt/skipped") == 0  # the official code has no such
        self.slow_updates += 1
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return metrics | {
            "opt/updates": self.optimizer.step_count.clone(),
            "opt/param_count": torch.tensor(float(count)),
        }, out.states


def official(metric: str) -> str:
    """The official name of a metric of the product."""
    return "loss/" + official_name(metric.removeprefix("loss/")) if metric.startswith("loss/") else metric


@pytest.mark.parametrize("case", CASES)
def test_metrics_of_every_step(golden: Golden, case: str) -> None:
    trained = Trained(Case(golden, case))
    outputs = trained.case.outputs
    assert sorted(trained.metrics) == sorted(outputs.keys("metrics_step:"))
    for name, actual in trained.metrics.items():
        expected = outputs.read(f"metrics_step:{name}")
        unmoved, moved = (SMALL, SMALL) if name == "opt/update_rms" else (FORWARD, MOVED)
        golden.compare(f"{name}, parameters unmoved", actual[:UNMOVED], expected[:UNMOVED], unmoved)
        golden.compare(f"{name}, parameters moved", actual[UNMOVED:], expected[UNMOVED:], moved)


@pytest.mark.parametrize("case", CASES)
def test_parameters_after_four_steps(golden: Golden, case: str) -> None:
    """Exceptions are elements whose gradient was once near zero: LaProp turns any gradient into a step of full size."""
    trained = Trained(Case(golden, case))
    outputs, wide, apart, elements = trained.case.outputs, 0, 0, 0
    parameters = trained.parameters | trained.case.slow
    assert sorted(parameters) == sorted(outputs.keys("param_after:"))
    for name, parameter in parameters.items():
        actual, expected = official_layout(parameter.detach()), outputs.read(f"param_after:{name}")
        error = (actual - expected).abs()
        beyond = error > PARAMETER.absolute + PARAMETER.relative * expected.abs()
        if name in trained.least:
            beyond &= official_layout(trained.least[name]) < NEAR_ZERO
            beyond &= error <= NEAR_ZERO_LIMIT
            wide += int(beyond.sum())
            actual = torch.where(beyond, expected, actual)
        golden.compare(f"{name} after {BATCHES} steps", actual, expected, PARAMETER)
        apart += int((error > CLOSE).sum())
        elements += error.numel()
    assert wide <= apart <= EXCEPTIONS * elements, f"{wide} near-zero exceptions, {apart} of {elements} not close"


@pytest.mark.parametrize("case", CASES)
def test_state_after_four_steps(golden: Golden, case: str) -> None:
    trained = Trained(Case(golden, case))
    normalizer = trained.case.agent.behavior.retnorm
    state = {
        "opt/state/3/count": trained.optimizer.step_count,
        "slowval_count/value": torch.tensor(trained.slow_updates),
        "retnorm/lo/value": normalizer.lo,
        "retnorm/hi/value": normalizer.hi,
    }
    trained.case.outputs.compare_group("state_after:", state, FORWARD)
