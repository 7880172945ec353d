"""`mlp` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def mlp(weights: list[Tensor], x: Tensor, stoch: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    sizes, widths = _sizes(weights, x, stoch)
    out = x.new_empty(len(x), widths[-1])
    saved = x.new_empty(len(x) * sum(widths[1 : 1 + sizes[4]]) if keep else 0)
    _native.call("mlp", sizes, widths, weights, x, stoch, out, saved if keep else None)
    return out, saved


def mlp_kept(weights: list[Tensor], x: Tensor, stoch: Tensor | None, out: Tensor, saved: Tensor) -> Tensor:
    return out.clone()


def mlp_backward(
    grad: Tensor, weights: list[Tensor], x: Tensor, stoch: Tensor | None, saved: Tensor, inner: bool
) -> list[Tensor]:
    grads = [torch.empty_like(each) for each in (*weights, *([x] if inner else []))]
    of_weights = grads[: len(weights)]
    _native.call(
        "mlp_backward", *_sizes(weights, x, stoch), grad, weights, x, stoch, saved, of_weights,
        grads[-1] if inner else None,
    )  # fmt: skip
    return grads


def _sizes(weights: list[Tensor], x: Tensor, stoch: Tensor | None) -> tuple[list[int], list[int]]:
    """N, D, S, K, layers, outputs (0 or 1); and the widths along the stack."""
    widths, (rows, width) = _native.widths(weights), x.shape
    groups = 0 if stoch is None else stoch.shape[1]
    classes = (widths[0] - width) // groups if groups else 0
    return [rows, width, groups, classes, len(weights) // 3, len(weights) % 3 // 2], widths
