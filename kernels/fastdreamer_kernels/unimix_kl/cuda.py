"""Both KL terms of the world model and both entropies in Triton, one program per row of S groups.

With p, q the softmax and its mix of post, p', q' those of prior, u = unimix, and no gradient below free_nats:

    dpost  = (1 - u) drep p (a - sum(p a)),     a = log q - log q'
    dprior = (1 - u) ddyn p' (b - sum(p' b)),   b = -q / q'
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import power_of_two
from fastdreamer_kernels.unimix_sample.cuda import mixed_probs, share

TILE = 2048
"""Elements of each side that one program holds at a time."""


@triton.jit
def _load(post, prior, at, inside, columns, K: tl.constexpr, UNIMIX: tl.constexpr):
    p, q, log_q = mixed_probs(tl.load(post + at, inside, 0.0).to(tl.float32), columns, K, UNIMIX)
    p2, q2, log_q2 = mixed_probs(tl.load(prior + at, inside, 0.0).to(tl.float32), columns, K, UNIMIX)
    return p, q, log_q, p2, q2, log_q2


@triton.jit
def _kl_kernel(
    post, prior, dyn, rep, post_entropy, prior_entropy,
    FREE: tl.constexpr, S: tl.constexpr, K: tl.constexpr, UNIMIX: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # post, prior (N, S, K); the others (N,)
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)[None, :]
    kl = tl.zeros((GROUPS,), tl.float32)
    entropy = tl.zeros((GROUPS,), tl.float32)
    entropy2 = tl.zeros((GROUPS,), tl.float32)
    for first in range(0, S, GROUPS):
        s = first + tl.arange(0, GROUPS)[:, None]
        inside = (s < S) & (k < K)
        _, q, log_q, _, q2, log_q2 = _load(post, prior, (row * S + s) * K + k, inside, k < K, K, UNIMIX)
        kl += tl.sum(q * tl.where(inside & (q != 0.0), log_q - log_q2, 0.0), 1)
        entropy -= tl.sum(q * tl.where(inside & (q != 0.0), log_q, 0.0), 1)
        entropy2 -= tl.sum(q2 * tl.where(inside & (q2 != 0.0), log_q2, 0.0), 1)
    total = tl.sum(kl, 0)
    floored = tl.where(total < FREE, FREE, total)  # not maximum, which would hide a NaN
    tl.store(dyn + row, floored)
    tl.store(rep + row, floored)
    tl.store(post_entropy + row, tl.sum(entropy, 0))
    tl.store(prior_entropy + row, tl.sum(entropy2, 0))


@triton.jit
def _kl_backward_kernel(
    ddyn, drep, post, prior, dpost, dprior,
    FREE: tl.constexpr, S: tl.constexpr, K: tl.constexpr, UNIMIX: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)[None, :]
    kl = tl.zeros((GROUPS,), tl.float32)
    for first in range(0, S, GROUPS):
        s = first + tl.arange(0, GROUPS)[:, None]
        inside = (s < S) & (k < K)
        _, q, log_q, _, _, log_q2 = _load(post, prior, (row * S + s) * K + k, inside, k < K, K, UNIMIX)
        kl += tl.sum(q * tl.where(inside & (q != 0.0), log_q - log_q2, 0.0), 1)
    flows = tl.sum(kl, 0) >= FREE  # as clamp(min=) passes it
    of_post = (1.0 - UNIMIX) * tl.where(flows, tl.load(drep + row), 0.0)
    of_prior = (1.0 - UNIMIX) * tl.where(flows, tl.load(ddyn + row), 0.0)
    for first in range(0, S, GROUPS):
        s = first + tl.arange(0, GROUPS)[:, None]
        inside = (s < S) & (k < K)
        at = (row * S + s) * K + k
        p, q, log_q, p2, q2, log_q2 = _load(post, prior, at, inside, k < K, K, UNIMIX)
        pa = p * tl.where(p != 0.0, log_q - log_q2, 0.0)
        pb = -q * share(p2, q2, UNIMIX)
        grad = of_post * (pa - p * tl.sum(pa, 1)[:, None])
        grad2 = of_prior * (pb - p2 * tl.sum(pb, 1)[:, None])
        tl.store(dpost + at, grad.to(dpost.dtype.element_ty), inside)
        tl.store(dprior + at, grad2.to(dprior.dtype.element_ty), inside)


def unimix_kl(post: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dyn, rep, entropy of post, entropy of prior: each (N,) float32 in nats; post, prior: logits (N, S, K)."""
    post, prior = post.contiguous(), prior.contiguous()
    count, groups, classes = post.shape
    outs = [torch.empty(count, dtype=torch.float32, device=post.device) for _ in range(4)]
    rows, block = _tile(groups, classes)
    _kl_kernel[(count,)](
        post, prior, *outs, FREE=free_nats, S=groups, K=classes, UNIMIX=unimix, GROUPS=rows, BLOCK=block, num_warps=4
    )
    dyn, rep, post_entropy, prior_entropy = outs
    return dyn, rep, post_entropy, prior_entropy


def unimix_kl_backward(
    ddyn: Tensor, drep: Tensor, post: Tensor, prior: Tensor, unimix: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    """dpost (from rep) and dprior (from dyn), (N, S, K) in the dtype of their logits; ddyn, drep (N,) float32."""
    ddyn, drep, post, prior = ddyn.contiguous(), drep.contiguous(), post.contiguous(), prior.contiguous()
    count, groups, classes = post.shape
    dpost = torch.empty(post.shape, dtype=post.dtype, device=post.device)
    dprior = torch.empty(prior.shape, dtype=prior.dtype, device=prior.device)
    rows, block = _tile(groups, classes)
    _kl_backward_kernel[(count,)](
        ddyn, drep, post, prior, dpost, dprior,
        FREE=free_nats, S=groups, K=classes, UNIMIX=unimix, GROUPS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return dpost, dprior


def _tile(groups: int, classes: int) -> tuple[int, int]:
    """Groups and (padded) classes that one program holds at a time."""
    block = power_of_two(classes, 2, TILE)
    return power_of_two(groups, 1, TILE // block), block
