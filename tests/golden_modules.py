"""Modules of the product filled with official parameters, and the spaces and sizes that fit them."""

import torch
from torch import Tensor, nn

from fastdreamer.config import Dims


def official_names(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    """Every parameter under its official name, `prefix` and slashes."""
    return {prefix + name.replace(".", "/"): parameter for name, parameter in module.named_parameters()}


def official_layout(tensor: Tensor) -> Tensor:
    """A parameter or its gradient as the official code lays it out: convolutions are (kh, kw, in, out) there."""
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor


@torch.no_grad()
def fill(parameters: dict[str, nn.Parameter], official: dict[str, Tensor]) -> None:
    """Copies the official values in; both sides must have the same names and shapes."""
    assert sorted(parameters) == sorted(official)
    for name, parameter in parameters.items():
        value = official[name].permute(3, 2, 0, 1) if parameter.ndim == 4 else official[name]
        assert parameter.shape == value.shape, name
        parameter.copy_(value)


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradient of every parameter by its official name, in the official layout; zeros where there is none."""
    return {
        name: official_layout(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for name, parameter in parameters.items()
    }


def infer_dims(params: dict[str, Tensor], stoch: Tensor, units: int = 0, depth: int = 0) -> Dims:
    """The sizes behind official parameters dyn/... and one-hot latents (..., S, K)."""
    deter, hidden = params["dyn/dynin0/kernel"].shape
    groups, classes = stoch.shape[-2:]
    blocks = len(params["dyn/dyngru/kernel"])
    return Dims(deter=deter, hidden=hidden, units=units, stoch=groups, classes=classes, blocks=blocks, depth=depth)
