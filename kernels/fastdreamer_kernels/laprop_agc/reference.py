"""LaProp with adaptive gradient clipping in plain PyTorch. Source: SPEC 1.9."""

import torch
from torch import Tensor

BETA1, BETA2, EPS, MIN_NORM, SLOW_RATE = 0.9, 0.999, 1e-20, 1e-3, 0.02


def bias_corrections(step: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """What nu is divided by and what mu is multiplied with at step t: 1 - 0.999^t and -lr / (1 - 0.9^t)."""
    return 1 - BETA2**step, -lr / (1 - BETA1**step)


def laprop_agc(
    params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], shadow: list[Tensor],
    slow: list[Tensor], slow_index: list[int], step: Tensor, lr: Tensor, agc: float,
) -> Tensor:  # fmt: skip
    norms = _norms(grads)
    squares = norms.square().sum()
    finite = squares.isfinite()
    clipped: list[Tensor] | tuple[Tensor, ...] = grads
    if agc:
        limit = agc * _norms(params).clamp(min=MIN_NORM)
        clipped = torch._foreach_div(grads, (norms / limit).clamp(min=1.0).unbind())
    correction, factor = bias_corrections(step, lr)
    second = torch._foreach_lerp(nu, torch._foreach_mul(clipped, clipped), 1 - BETA2)
    scale = torch._foreach_div(second, correction)
    torch._foreach_sqrt_(scale)
    torch._foreach_add_(scale, EPS)
    first = torch._foreach_lerp(mu, torch._foreach_div(clipped, scale), 1 - BETA1)
    updates = torch._foreach_mul(first, factor)
    thetas = torch._foreach_add(params, updates)
    averages = torch._foreach_lerp(slow, [thetas[i] for i in slow_index], SLOW_RATE) if slow else []
    for olds, news in ((nu, second), (mu, first), (params, thetas), (slow, averages)):
        for old, new in zip(olds, news, strict=True):
            old.copy_(torch.where(finite, new, old))
    for half, param in zip(shadow, params, strict=bool(shadow)):
        half.copy_(torch.where(finite, param.to(half.dtype), half))
    moved = torch.where(finite, _norms(updates).square().sum(), 0.0)
    return torch.stack([squares, moved, _norms(params).square().sum()])


def _norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))
