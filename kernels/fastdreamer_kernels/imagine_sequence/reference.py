"""The rollout inside the world model in plain PyTorch. Source: SPEC 1.5."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels import rssm_core
from fastdreamer_kernels.mlp.reference import mlp
from fastdreamer_kernels.policy import ActionKey, Policy, policy_outputs, sample_action
from fastdreamer_kernels.rssm_core import Core, Head
from fastdreamer_kernels.unimix_sample.reference import draw


@torch.no_grad()
def imagine_sequence(
    core: Core, prior: Head, policy: Policy, keys: tuple[ActionKey, ...], deter: Tensor, stoch: Tensor,
    uniform: Tensor, action_noise: Tensor, unimix: float, actor_unimix: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    groups, horizon = stoch.shape[1], uniform.shape[1]
    own, shared = rssm_core.split_hidden(core)
    onehot = F.one_hot(stoch.long(), prior.logit.bias.numel() // groups).to(deter.dtype).flatten(1)
    states, actions = [(deter, stoch)], []
    for h in range(horizon + 1):
        outputs = policy_outputs(torch.cat([deter, onehot], -1), policy)
        actions.append(sample_action(outputs, keys, action_noise[:, h], actor_unimix))
        if h < horizon:
            embedded = rssm_core.embed_action(actions[-1].to(deter.dtype), core.action)
            deter = rssm_core.step(core, own, shared, deter, onehot, embedded)
            logits = mlp(*prior, deter, None).unflatten(-1, (groups, -1))
            stoch, sample = draw(logits, uniform[:, h], unimix)
            onehot = sample.flatten(1)
            states.append((deter, stoch))
    deters, stochs = (torch.stack(column, 1) for column in zip(*states, strict=True))
    return deters, stochs, torch.stack(actions, 1)
