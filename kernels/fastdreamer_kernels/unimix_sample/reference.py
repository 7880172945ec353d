"""Uniform-mixed categorical sampling by inverse CDF in plain PyTorch. Source: SPEC 2.6."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels.functional import widen


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax(logits) + unimix / K, float32."""
    probs = torch.softmax(widen(logits), -1)
    return probs if unimix == 0 else (1 - unimix) * probs + unimix / logits.shape[-1]


def mixed_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """log of the mixed probabilities, float32; exact log-softmax when nothing is mixed in."""
    return torch.log_softmax(widen(logits), -1) if unimix == 0 else mixed_probs(logits, unimix).log()


def draw(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """Class indices (..., S) and their differentiable one-hot (..., S, K): all that a state needs."""
    probs = mixed_probs(logits, unimix)
    cdf = probs.detach().cumsum(-1)[..., :-1]  # the last class takes what is left
    index = (uniform.unsqueeze(-1) >= cdf).sum(-1)
    onehot = F.one_hot(index, logits.shape[-1]).to(probs.dtype) + (probs - probs.detach())
    return index.to(torch.int32), onehot.to(logits.dtype)


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, onehot = draw(logits, uniform, unimix)
    log_probs = mixed_log_probs(logits, unimix)
    log_prob = log_probs.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)
    return index, onehot, log_prob, -(log_probs.exp() * log_probs).sum(-1)
