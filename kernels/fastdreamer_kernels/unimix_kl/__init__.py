"""`unimix_kl`: the dynamics and representation losses of the world model in one pass over both logits.

    dyn = max(free_nats, sum_groups KL(sg(post) || prior))      trains the prior
    rep = max(free_nats, sum_groups KL(post || sg(prior)))      trains the posterior

Both distributions carry the uniform mix. The floor applies to the sum over groups, before any mean.
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.unimix_kl import reference

_dispatch.define("unimix_kl", "native", "triton")


def unimix_kl(
    post: Tensor, prior: Tensor, unimix: float, free_nats: float, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dyn, rep, entropy of post, entropy of prior: each (...) float32 in nats, the entropies without gradient.

    post, prior: logits (..., S, K); unimix in [0, 1]; free_nats >= 0 nats.
    Raises ValueError if the shapes or dtypes differ or an argument is out of range. Source: SPEC 1.4.
    """
    if post.shape != prior.shape or post.ndim < 2:
        got = f"{tuple(post.shape)}, {tuple(prior.shape)}"
        raise ValueError(f"unimix_kl: post and prior must share one shape (..., S, K), got {got}")
    if post.dtype != prior.dtype or not post.is_floating_point():
        raise ValueError(f"unimix_kl: post and prior must share one float dtype, got {post.dtype}, {prior.dtype}")
    if not 0 <= unimix <= 1:
        raise ValueError(f"unimix_kl: unimix must be in [0, 1], got {unimix}")
    if free_nats < 0:
        raise ValueError(f"unimix_kl: free_nats must be at least 0, got {free_nats}")
    chosen = _dispatch.choose("unimix_kl", post, backend)
    if chosen == "reference":
        return reference.unimix_kl(post, prior, unimix, free_nats)
    lead, shape = post.shape[:-2], (-1, *post.shape[-2:])
    sides = (x.contiguous().view(shape) for x in (post, prior))
    outs = _dispatch.kernel("unimix_kl", chosen)(*sides, unimix, free_nats)
    dyn, rep, post_entropy, prior_entropy = (out.view(lead) for out in outs)
    return dyn, rep, post_entropy, prior_entropy


def _fake(post: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dyn, rep, post_entropy, prior_entropy = (post.new_empty(post.shape[0], dtype=torch.float32) for _ in range(4))
    return dyn, rep, post_entropy, prior_entropy


def _fake_backward(
    ddyn: Tensor, drep: Tensor, post: Tensor, prior: Tensor, unimix: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(post), torch.empty_like(prior)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: tuple[Tensor, ...]) -> None:
    post, prior, ctx.unimix, ctx.free_nats = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(post, prior)


def _backward(ctx: Any, dyn: Tensor, rep: Tensor, *entropies: Tensor) -> tuple[Tensor, Tensor, None, None]:
    run = _dispatch.kernel("unimix_kl_backward", ctx.backend)
    dpost, dprior = run(dyn.contiguous(), rep.contiguous(), *ctx.saved_tensors, ctx.unimix, ctx.free_nats)
    return dpost, dprior, None, None


_dispatch.register(
    "unimix_kl",
    "unimix_kl_backward(Tensor ddyn, Tensor drep, Tensor post, Tensor prior, float unimix, float free_nats)"
    " -> (Tensor, Tensor)",
    _fake_backward,
)
_dispatch.register(
    "unimix_kl",
    "unimix_kl(Tensor post, Tensor prior, float unimix, float free_nats) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake,
    _dispatch.Gradient(_setup, _backward),
)
