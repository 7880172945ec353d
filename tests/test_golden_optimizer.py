"""LaProp with adaptive gradient clipping against the official arrays: updates, parameters, clipping, warm-up."""

import pytest
import torch
from golden_arrays import Arrays, Golden, Tolerance
from torch import Tensor, nn

from fastdreamer.optim import LaProp
from fastdreamer_kernels.laprop_agc.reference import BETA2

DEFAULT_LR, DEFAULT_WARMUP, AGC = 4e-5, 1000, 0.3
VARIANTS = {
    "default": (DEFAULT_LR, DEFAULT_WARMUP, AGC, 0.0),
    "short_warmup": (1e-3, 5, AGC, 0.0),
    "noagc": (1e-3, 0, 0.0, 0.0),
    "agc_only_lr1": (1e-3, 0, AGC, 0.0),
    "wd": (1e-3, 0, AGC, 0.1),
}
"""Learning rate, warm-up, clipping, weight decay."""
PARAMETERS = Tolerance(2e-6, 1e-8)
"""A few units in the last place: the default moves a parameter by 2e-6 in all, so nothing wider would test it."""
UPDATES = Tolerance(2e-4, largest=2e-5)
"""The forward tolerance of the arrays, relative to the size of an update."""


def make(arrays: Arrays, variant: str, dtype: torch.dtype) -> LaProp:
    params = {name: nn.Parameter(value.to(dtype)) for name, value in arrays.group("param0:").items()}
    lr, warmup, agc, weight_decay = VARIANTS[variant]
    return LaProp(params, lr, warmup, agc, weight_decay=weight_decay)


def step(optimizer: LaProp, grads: dict[str, Tensor], t: int) -> list[Tensor]:
    """Parameters after one update with the gradients of step t."""
    for name, param in zip(optimizer.names, optimizer.params, strict=True):
        param.grad = grads[name][t].to(param.dtype)
    optimizer.step()
    return [param.detach().clone() for param in optimizer.params]


def run(arrays: Arrays, variant: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter from the start on, (steps + 1, *shape) by name."""
    optimizer, grads = make(arrays, variant, dtype), arrays.group("grads:")
    history = [[param.detach().clone() for param in optimizer.params]]
    history += [step(optimizer, grads, t) for t in range(len(grads[optimizer.names[0]]))]
    return dict(zip(optimizer.names, (torch.stack(column) for column in zip(*history, strict=True)), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_after_every_step(golden: Golden, variant: str) -> None:
    arrays = golden.open("optimizer.npz")
    params = {name: history[1:] for name, history in run(arrays, variant, torch.float32).items()}
    arrays.compare_group(f"{variant}:params/", params, PARAMETERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_update(golden: Golden, variant: str) -> None:
    """Float64 parameters keep updates that are too small to be seen in float32 ones."""
    arrays = golden.open("optimizer.npz")
    updates = {name: history.diff(dim=0) for name, history in run(arrays, variant, torch.float64).items()}
    arrays.compare_group(f"{variant}:updates/", updates, UPDATES)


def test_clipped_gradients(golden: Golden) -> None:
    """The second moment after one step from fresh parameters is what clipping left of the gradient, squared."""
    arrays = golden.open("optimizer.npz")
    grads = arrays.group("grads:")
    clipped: dict[str, list[Tensor]] = {name: [] for name in grads}
    for t in range(len(next(iter(grads.values())))):
        optimizer = make(arrays, "agc_only_lr1", torch.float64)
        step(optimizer, grads, t)
        for name, column in clipped.items():
            size = (optimizer.state()[f"nu/{name}"] / (1 - BETA2)).sqrt()
            column.append(size * grads[name][t].sign())
    stacked = {name: torch.stack(column) for name, column in clipped.items()}
    for name, value in stacked.items():
        rows = arrays.read(f"agc_clipped:{name}")
        for t, row in enumerate(rows):
            golden.compare(f"agc_clipped:{name}[{t}]", value[t], row, UPDATES)


def test_learning_rate_warms_up_from_zero(golden: Golden) -> None:
    arrays = golden.open("optimizer.npz")
    schedule = arrays.read("lr_schedule")
    optimizer = make(arrays, "default", torch.float32)
    rates = []
    for updates_before in schedule[:, 0].tolist():
        optimizer.step_count.fill_(updates_before + 1)
        rates.append(optimizer.learning_rate())
    golden.compare("lr_schedule", torch.stack(rates), schedule[:, 1], Tolerance(2e-4, 1e-12))
