"""An MLP on states in plain PyTorch: the features are deter and the one-hot of the classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels.rssm_core import Head, head


def state_mlp(weights: Head, deter: Tensor, stoch: Tensor) -> Tensor:
    features = weights.layers[0].kernel.shape[0]
    onehot = F.one_hot(stoch.long(), (features - deter.shape[-1]) // stoch.shape[-1]).flatten(-2)
    return head(torch.cat([deter, onehot.to(deter.dtype)], -1).detach(), weights)
