"""`block_gru`: RMSNorm and SiLU on the hidden layer, the block-diagonal gate matmul, and the three gates.

With y = silu(rms_norm(hidden)) and, inside every block, [reset, cand, update] = y W + b:

    cand <- tanh(sigmoid(reset) cand)      update <- sigmoid(update - 1)
    deter' = update cand + (1 - update) deter
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.block_gru import reference

_dispatch.define("block_gru", "native", "triton")


def block_gru(
    hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor, backend: str | None = None
) -> Tensor:
    """The next deterministic state, (B, D).

    hidden (B, D) before its norm, scale (D,) float32, kernel (G, D/G, 3D/G), bias (3D,), deter (B, D); all but scale
    share the compute dtype. Differentiable in every tensor. Raises ValueError if something does not fit.
    Source: SPEC 2.3.
    """
    batch, width = deter.shape
    blocks = kernel.shape[0]
    expected = ((batch, width), (width,), (blocks, width // blocks, 3 * (width // blocks)), (3 * width,))
    got = (tuple(hidden.shape), tuple(scale.shape), tuple(kernel.shape), tuple(bias.shape))
    if got != expected or width % blocks:
        raise ValueError(f"block_gru: hidden, scale, kernel, bias must be {expected} for this deter, got {got}")
    dtypes = [x.dtype for x in (hidden, kernel, bias, deter, scale)]
    if set(dtypes[:-1]) != {deter.dtype} or not deter.is_floating_point() or scale.dtype != torch.float32:
        raise ValueError(f"block_gru: hidden, kernel, bias, deter must share a dtype, scale be float32, got {dtypes}")
    chosen = _dispatch.choose("block_gru", deter, backend)
    if chosen == "reference":
        return reference.block_gru(hidden, scale, kernel, bias, deter)
    out, _, _ = _dispatch.kernel("block_gru", chosen)(*(x.contiguous() for x in (hidden, scale, kernel, bias, deter)))
    return out


def _fake(hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, width = deter.shape
    gates, rstd = kernel.new_empty(batch, 3 * width), scale.new_empty(batch)
    return torch.empty_like(deter), gates, rstd


def _fake_backward(
    grad: Tensor, hidden: Tensor, scale: Tensor, kernel: Tensor, deter: Tensor, gates: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dhidden, dscale, dkernel, ddeter = (torch.empty_like(x) for x in (hidden, scale, kernel, deter))
    return dhidden, dscale, dkernel, gates.new_empty(gates.shape[1]), ddeter


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, scale, kernel, _, deter = inputs
    _, gates, rstd = output
    ctx.mark_non_differentiable(gates, rstd)
    ctx.set_materialize_grads(False)  # of gates and rstd nothing but zeros
    ctx.save_for_backward(hidden, scale, kernel, deter, gates, rstd)


def _backward(ctx: Any, grad: Tensor, *rest: None) -> tuple[Tensor, ...]:
    return _dispatch.kernel("block_gru_backward", ctx.backend)(grad.contiguous(), *ctx.saved_tensors)


_dispatch.register(
    "block_gru",
    "block_gru_backward(Tensor grad, Tensor hidden, Tensor scale, Tensor kernel, Tensor deter, Tensor gates,"
    " Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)
_dispatch.register(
    "block_gru",
    "block_gru(Tensor hidden, Tensor scale, Tensor kernel, Tensor bias, Tensor deter) -> (Tensor, Tensor, Tensor)",
    _fake,
    _dispatch.Gradient(_setup, _backward),
)
