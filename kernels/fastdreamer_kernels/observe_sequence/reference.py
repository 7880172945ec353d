"""The posterior scan over time in plain PyTorch. Source: SPEC 1.4 and 2.3."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels import rssm_core
from fastdreamer_kernels.functional import linear, norm_act
from fastdreamer_kernels.mlp.reference import mlp
from fastdreamer_kernels.rssm_core import Core, Head
from fastdreamer_kernels.unimix_sample.reference import draw


def observe_sequence(
    core: Core, posterior: Head, deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor, is_first: Tensor,
    uniform: Tensor, unimix: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    groups, width = stoch.shape[1], deter.shape[1]
    first, *rest = posterior.layers
    own, shared = rssm_core.split_hidden(core)
    keep = (~is_first).to(embed.dtype).unsqueeze(-1)  # (B, T, 1)
    actions = rssm_core.embed_action(action * keep, core.action)
    tokens = linear(embed, first.kernel[width:], first.bias)
    onehot = F.one_hot(stoch.long(), posterior.logit.bias.numel() // groups).to(embed.dtype)
    steps = []
    for t in range(embed.shape[1]):
        deter, onehot = deter * keep[:, t], onehot * keep[:, t, :, None]
        deter = rssm_core.step(core, own, shared, deter, onehot.flatten(1), actions[:, t])
        hidden = norm_act(deter @ first.kernel[:width] + tokens[:, t], first.scale)
        logits = mlp(tuple(rest), posterior.logit, hidden, None).unflatten(-1, (groups, -1))
        stoch, onehot = draw(logits, uniform[:, t], unimix)
        steps.append((deter, stoch, onehot, logits))
    deters, stochs, onehots, logits = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return deters, stochs, onehots, logits
