"""`block_gru` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def block_gru(
    hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = deter.shape
    out, gates, rstd = torch.empty_like(deter), deter.new_empty(rows, 3 * width), deter.new_empty(rows)
    _native.call("block_gru", rows, width, len(kernel), hidden, scale, kernel, bias, deter, out, gates, rstd)
    return out, gates, rstd


def block_gru_backward(
    grad: Tensor, hidden: Tensor, scale: Tensor, kernel: Tensor, deter: Tensor, gates: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, width = deter.shape
    dhidden, dscale, dkernel, ddeter = (torch.empty_like(x) for x in (hidden, scale, kernel, deter))
    dbias = deter.new_empty(3 * width)
    _native.call(
        "block_gru_backward", rows, width, len(kernel), grad, hidden, scale, kernel, deter, gates,
        dhidden, dscale, dkernel, dbias, ddeter,
    )  # fmt: skip
    return dhidden, dscale, dkernel, dbias, ddeter
