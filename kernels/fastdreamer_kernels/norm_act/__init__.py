"""`norm_act`: RMSNorm and SiLU over the last axis: between the matmuls of a stack, and between convolutions.

y = x / sqrt(mean(x^2) + 1e-4) * scale        in float32, rounded to the dtype of x
out = y sigmoid(y)
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.norm_act import reference

_dispatch.define("norm_act", "triton")


def norm_act(x: Tensor, scale: Tensor, backend: str | None = None) -> Tensor:
    """(..., D) from x (..., D) and scale (D,) float32; differentiable in both.

    Raises ValueError if they do not fit together. Source: SPEC 2.1.
    """
    if scale.shape != x.shape[-1:]:
        raise ValueError(f"norm_act: scale must be as wide as x {tuple(x.shape)}, got {tuple(scale.shape)}")
    chosen = _dispatch.choose("norm_act", x, backend)
    if chosen == "reference":
        return reference.norm_act(x, scale)
    _dispatch.check_dtypes("norm_act", scale=(scale, torch.float32))
    return _dispatch.kernel("norm_act", chosen)(x.reshape(-1, x.shape[-1]).contiguous(), scale).view(x.shape)


def _fake(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    dx, dscale = _dispatch.kernel("norm_act_backward", ctx.backend)(grad.contiguous(), *ctx.saved_tensors)
    return dx, dscale


_dispatch.register(
    "norm_act",
    "norm_act_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor)",
    _fake_backward,
    backends=("triton",),
)
_dispatch.register(
    "norm_act",
    "norm_act(Tensor x, Tensor scale) -> Tensor",
    _fake,
    _dispatch.Gradient(_setup, _backward),
    backends=("triton",),
)
