"""`state_mlp` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def state_mlp(weights: list[Tensor], deter: Tensor, stoch: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    sizes, widths = _sizes(weights, deter, stoch)
    out = deter.new_empty(len(deter), widths[-1])
    saved = deter.new_empty(len(deter) * sum(widths[1:-1]) if keep else 0)
    _native.call("state_mlp", sizes, widths, weights, deter, stoch, out, saved if keep else None)
    return out, saved


def state_mlp_backward(
    grad: Tensor, weights: list[Tensor], deter: Tensor, stoch: Tensor, saved: Tensor
) -> list[Tensor]:
    sizes, widths = _sizes(weights, deter, stoch)
    grads = [torch.empty_like(weight) for weight in weights]
    _native.call("state_mlp_backward", sizes, widths, grad, weights, deter, stoch, saved, grads)
    return grads


def _sizes(weights: list[Tensor], deter: Tensor, stoch: Tensor) -> tuple[list[int], list[int]]:
    (rows, width), groups, widths = deter.shape, stoch.shape[1], _native.widths(weights)
    return [rows, width, groups, (widths[0] - width) // groups, (len(weights) - 2) // 3], widths
