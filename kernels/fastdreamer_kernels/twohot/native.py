"""The two-hot ops on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    mean = logits.new_empty(len(logits))
    _native.call("twohot_mean", *logits.shape, logits, bins, mean)
    return mean


def twohot_loss(logits: Tensor, bins: Tensor, targets: Tensor) -> Tensor:
    loss = logits.new_empty(len(logits))
    _native.call("twohot_loss", *logits.shape, targets.shape[1], logits, bins, targets, loss)
    return loss


def twohot_loss_backward(grad: Tensor, logits: Tensor, bins: Tensor, targets: Tensor) -> Tensor:
    out = torch.empty_like(logits)
    _native.call("twohot_loss_backward", *logits.shape, targets.shape[1], grad, logits, bins, targets, out)
    return out
