"""`state_mlp`: layers and a linear output on states that carry no gradient, such as the states of a dream.

The features are deter and the one-hot of the class indices. On the CPU the first layer sums the rows of its kernel
that the classes name, instead of multiplying a one-hot; on a GPU the reference's matmul is the faster one.
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.functional import flatten
from fastdreamer_kernels.rssm_core import Head
from fastdreamer_kernels.state_mlp import reference

_dispatch.define("state_mlp", "native")


def state_mlp(weights: Head, deter: Tensor, stoch: Tensor, backend: str | None = None) -> Tensor:
    """(..., W) from deter (..., D) and stoch (..., S) int32; W is the width of the output.

    Differentiable in the weights. Raises ValueError if the shapes or dtypes do not fit.
    """
    latent = weights.layers[0].kernel.shape[0] - deter.shape[-1]
    if deter.shape[:-1] != stoch.shape[:-1] or latent <= 0 or latent % stoch.shape[-1]:
        raise ValueError(
            f"state_mlp: deter and stoch must share their leading shape, and be as wide as the first kernel"
            f" {tuple(weights.layers[0].kernel.shape)} expects, got {tuple(deter.shape)}, {tuple(stoch.shape)}"
        )
    _dispatch.check_dtypes("state_mlp", deter=(deter, weights.layers[0].kernel.dtype), stoch=(stoch, torch.int32))
    chosen = _dispatch.choose("state_mlp", deter, backend)
    if chosen == "reference":
        return reference.state_mlp(weights, deter, stoch)
    flat = flatten(weights)
    rows = deter.contiguous().flatten(0, -2).detach(), stoch.contiguous().flatten(0, -2)
    keep = torch.is_grad_enabled() and any(weight.requires_grad for weight in flat)
    out, _ = _dispatch.kernel("state_mlp", chosen)(flat, *rows, keep)
    return out.view(*deter.shape[:-1], -1)


def _fake(weights: list[Tensor], deter: Tensor, stoch: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    hidden = sum(bias.numel() for bias in weights[1:-2:3])
    out = deter.new_empty(deter.shape[0], weights[-1].numel())
    return out, deter.new_empty(deter.shape[0] * hidden if keep else 0)


def _fake_backward(grad: Tensor, weights: list[Tensor], *rest: Tensor) -> list[Tensor]:
    return [torch.empty_like(weight) for weight in weights]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weights, deter, stoch, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(deter, stoch, output[1], *weights)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[list[Tensor], None, None, None]:
    deter, stoch, saved, *weights = ctx.saved_tensors
    run = _dispatch.kernel("state_mlp_backward", ctx.backend)
    return run(grad.contiguous(), weights, deter, stoch, saved), None, None, None


_dispatch.register(
    "state_mlp",
    "state_mlp_backward(Tensor grad, Tensor[] weights, Tensor deter, Tensor stoch, Tensor saved) -> Tensor[]",
    _fake_backward,
    backends=("native",),
)
_dispatch.register(
    "state_mlp",
    "state_mlp(Tensor[] weights, Tensor deter, Tensor stoch, bool keep) -> (Tensor, Tensor)",
    _fake,
    _dispatch.Gradient(_setup, _backward),
    backends=("native",),
)
