"""`unimix_sample` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, onehot = torch.empty_like(uniform, dtype=torch.int32), torch.empty_like(logits)
    log_prob, entropy = torch.empty_like(uniform), torch.empty_like(uniform)
    _native.call("unimix_sample", *logits.shape, logits, uniform, unimix, index, onehot, log_prob, entropy)
    return index, onehot, log_prob, entropy


def unimix_sample_backward(
    donehot: Tensor, dlog_prob: Tensor, dentropy: Tensor, logits: Tensor, index: Tensor, unimix: float
) -> Tensor:
    dlogits = torch.empty_like(logits)
    _native.call("unimix_sample_backward", *logits.shape, donehot, dlog_prob, dentropy, logits, index, unimix, dlogits)
    return dlogits
