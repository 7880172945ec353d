"""Uniform-mixed categorical sampling by inverse CDF in plain PyTorch. Source: SPEC 2.6."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax(logits) + unimix / K, float32."""
    probs = torch.softmax(logits.float(), -1)
    return probs if unimix == 0 else (1 - unimix) * probs + unimix / logits.shape[-1]


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    probs = mixed_probs(logits, unimix)
    cdf = probs.detach().cumsum(-1)[..., :-1]  # the last class takes what is left
    index = (uniform.unsqueeze(-1) >= cdf).sum(-1)
    onehot = F.one_hot(index, logits.shape[-1]).to(probs.dtype) + (probs - probs.detach())
    return index.to(torch.int32), onehot.to(logits.dtype)
