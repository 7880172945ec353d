"""Distributions over heads: symexp two-hot, normal, continue, and the actor's. All in float32. Source: SPEC 2.6."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels.policy import ActionKey, bounded_normal
from fastdreamer_kernels.unimix_sample.reference import mixed_log_probs

BINS = 255
LOG_TWO_PI = math.log(2 * math.pi)


@cache
def twohot_bins(device: torch.device) -> Tensor:
    """symexp of 255 points in [-20, 20], mirrored about 0 so that they are exactly antisymmetric."""
    half = torch.linspace(-20, 0, BINS // 2 + 1, dtype=torch.float32, device=device)
    half = torch.sign(half) * torch.expm1(half.abs())
    return torch.cat([half, -half[:-1].flip(0)])


def normal_loss(mean: Tensor, *targets: Tensor) -> Tensor:
    """-log N(target; mean, 1), summed over targets: (..., 1), (...) -> (...)."""
    errors = torch.stack([mean[..., 0].float() - target.detach() for target in targets])
    return 0.5 * (errors.square() + LOG_TWO_PI).sum(0)


def binary_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Logistic cross entropy with a soft target in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")


def action_log_prob_entropy(
    outputs: list[tuple[Tensor, ...]], keys: tuple[ActionKey, ...], action: Tensor, unimix: float
) -> tuple[Tensor, list[Tensor]]:
    """log pi(action) summed over keys (...), and the entropy of each key (...), both in nats.

    outputs: of `policy_outputs`; action: flat (..., A). Log-probs and entropies are summed over a key's elements.
    """
    log_prob = torch.zeros(action.shape[:-1], device=action.device)
    entropies = []
    for key, outs, value in zip(keys, outputs, action.split([key.width for key in keys], -1), strict=True):
        if key.classes:
            shape = (key.elements, key.classes)
            log_probs = mixed_log_probs(outs[0].unflatten(-1, shape), unimix)
            log_prob = log_prob + (log_probs * value.unflatten(-1, shape)).sum((-2, -1))
            entropies.append(-(log_probs.exp() * log_probs).sum((-2, -1)))
        else:
            mean, std = bounded_normal(*outs)
            density = -0.5 * (((value - mean) / std).square() + LOG_TWO_PI) - std.log()
            log_prob = log_prob + density.sum(-1)
            entropies.append((0.5 * (1 + LOG_TWO_PI) + std.log()).sum(-1))
    return log_prob, entropies
