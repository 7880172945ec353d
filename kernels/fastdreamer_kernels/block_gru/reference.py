"""Block-diagonal GRU gates in plain PyTorch. Source: SPEC 2.3."""

import torch
from torch import Tensor

from fastdreamer_kernels.functional import block_linear, norm_act


def block_gru(hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor) -> Tensor:
    blocks = kernel.shape[0]
    gates = block_linear(norm_act(hidden, scale), kernel) + bias
    reset, cand, update = gates.unflatten(1, (blocks, 3, -1)).unbind(2)  # each (B, G, D/G)
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    update = torch.sigmoid(update - 1)
    old = deter.unflatten(1, (blocks, -1))
    return (update * cand + (1 - update) * old).flatten(1)
