"""`laprop_agc` on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native
from fastdreamer_kernels.laprop_agc.reference import bias_corrections


def laprop_agc(
    params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], shadow: list[Tensor],
    slow: list[Tensor], slow_index: list[int], step: Tensor, lr: Tensor, agc: float,
) -> Tensor:  # fmt: skip
    grads = [_laid_out_like(param, grad) for param, grad in zip(params, grads, strict=True)]
    lists = [_dense(params, each) for each in (params, grads, nu, mu, shadow)]
    averaged = [params[i] for i in slow_index]
    correction, factor = (float(value) for value in bias_corrections(step, lr))
    stats = step.new_empty(3)
    _native.call(
        "laprop_agc", len(params), [param.numel() for param in params], *lists[:4], lists[4] or None,
        len(slow), _dense(averaged, slow), slow_index, correction, factor, agc, stats,
    )  # fmt: skip
    return stats


def _laid_out_like(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient in the memory order of its parameter: the loop walks both as flat arrays."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


def _dense(params: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Views of tensors in the memory order that they share with their parameters, such as channels last."""
    views = []
    for param, x in zip(params, tensors, strict=bool(tensors)):
        assert x.stride() == param.stride(), (x.stride(), param.stride())
        if not x.is_contiguous():
            x = x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))
        views.append(x)
    return views
