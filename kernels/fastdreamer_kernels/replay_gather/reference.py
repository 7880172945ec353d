"""Windows out of the replay ring in plain PyTorch. Source: SPEC 1.2."""

import torch
from torch import Tensor


def replay_gather(ring: Tensor, env: Tensor, start: Tensor, length: int, out: Tensor) -> None:
    rows = ring.shape[1]
    step = torch.arange(length, device=ring.device)
    index = env.unsqueeze(1) * rows + (start.unsqueeze(1) + step) % rows  # (B, length)
    # index_select into a buffer copies whole rows and allocates nothing, unlike ring[index].
    torch.index_select(ring.flatten(0, 1), 0, index.flatten(), out=out.flatten(0, 1))
