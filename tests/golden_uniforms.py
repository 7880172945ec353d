"""The noise that makes sampling do what the official arrays did.

A categorical returns the class whose interval of the cumulative distribution holds its uniform, so a uniform in the
middle of the wanted class's interval asks for that class, as far as possible from both edges. Later steps depend on
earlier samples: a sequence is walked, one more step fixed per run. The same tensors then drive every backend.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdreamer.batch import State
from fastdreamer.nets import onehot
from fastdreamer.rssm import RSSM
from fastdreamer_kernels.policy import ActionKey, Policy, policy_outputs
from fastdreamer_kernels.unimix_sample.reference import mixed_probs

HALF_STD = 0.5
"""The standard normal behind the official arrays' continuous actions: mean + 0.5 std."""


def features(states: State, classes: int) -> Tensor:
    """(..., F) of states: deter and the one-hot latents."""
    latent = onehot(states.stoch, classes).flatten(-2)
    return torch.cat([states.deter, latent.to(states.deter.dtype)], -1)


def midpoints(logits: Tensor, unimix: float, index: Tensor | None = None) -> Tensor:
    """Uniforms (...) float32 that sample class `index` (...) from logits (..., K); the likeliest class without one."""
    probs = mixed_probs(logits.detach(), unimix).double()
    index = (probs.argmax(-1) if index is None else index).long().unsqueeze(-1)
    upper = probs.cumsum(-1).gather(-1, index)
    return (upper - probs.gather(-1, index) / 2).squeeze(-1).float()


def action_midpoints(outputs: list[tuple[Tensor, ...]], keys: tuple[ActionKey, ...], unimix: float) -> Tensor:
    """Action noise (..., elements) for the likeliest classes and for mean + 0.5 std, from `policy_outputs`."""
    parts = []
    for key, outs in zip(keys, outputs, strict=True):
        if key.classes:
            parts.append(midpoints(outs[0].unflatten(-1, (key.elements, key.classes)), unimix))
        else:
            parts.append(torch.full_like(outs[0], HALF_STD, dtype=torch.float32))
    return torch.cat(parts, -1)


@torch.no_grad()
def walk_observe(
    post: Callable[[Tensor], Tensor], shape: tuple[int, int, int], unimix: float, wanted: Tensor | None = None
) -> Tensor:
    """Uniforms (B, T, S) of `shape` for an observed sequence. `post`: uniforms -> posterior logits (B, T, S, K).

    wanted (B, T, S): the classes to sample; the likeliest ones without it.
    """
    uniform = torch.full(shape, 0.5)
    for t in range(shape[1]):
        logits = post(uniform)[:, t]
        uniform[:, t] = midpoints(logits, unimix, None if wanted is None else wanted[:, t])
    return uniform


@torch.no_grad()
def walk_imagine(
    rssm: RSSM, policy: Policy, keys: tuple[ActionKey, ...], start: State, horizon: int, actor_unimix: float
) -> tuple[Tensor, Tensor]:
    """Uniforms (N, H, S) and action noise (N, H+1, elements) of a dream in which everything is the likeliest."""
    rows, groups = start.stoch.shape
    uniform = torch.full((rows, horizon, groups), 0.5)
    noise = torch.full((rows, horizon + 1, sum(key.elements for key in keys)), HALF_STD)
    for h in range(horizon + 1):
        states, *_ = rssm.imagine(start, policy, keys, uniform, noise, actor_unimix)
        feat = features(State(states.deter[:, h], states.stoch[:, h]), rssm.dims.classes)
        noise[:, h] = action_midpoints(policy_outputs(feat, policy), keys, actor_unimix)
        if h < horizon:
            states, *_ = rssm.imagine(start, policy, keys, uniform, noise, actor_unimix)
            uniform[:, h] = midpoints(rssm.prior(states.deter[:, h + 1]), rssm.unimix)
    return uniform, noise
