"""Symexp two-hot read-out and loss in plain PyTorch. Source: SPEC 2.6."""

import torch
from torch import Tensor

from fastdreamer_kernels.functional import widen


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    probs = torch.softmax(widen(logits), -1)
    middle = len(bins) // 2
    pairs = probs[..., middle + 1 :] - probs[..., :middle].flip(-1)
    return (pairs * bins[middle + 1 :]).sum(-1)


def twohot_loss(logits: Tensor, bins: Tensor, *targets: Tensor) -> Tensor:
    log_probs = torch.log_softmax(widen(logits), -1)
    loss = log_probs.new_zeros(logits.shape[:-1])
    for target in targets:
        target = target.detach().contiguous()
        below = (torch.searchsorted(bins, target, right=True) - 1).clamp(0, len(bins) - 2)
        low, high = bins[below], bins[below + 1]
        weight = ((target - low) / (high - low)).clamp(0, 1)
        pair = log_probs.gather(-1, torch.stack([below, below + 1], -1))
        loss = loss - (1 - weight) * pair[..., 0] - weight * pair[..., 1]
    return loss
