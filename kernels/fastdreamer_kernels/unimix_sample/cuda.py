"""Uniform-mixed categorical sampling in Triton: probabilities, sample, log-probability and entropy in one pass.

Backward starts from the logits again; nothing but them and the index is kept. With q = (1 - u) softmax + u / K:

    dq = donehot + onehot dlog_prob / q - dentropy log q        the 1 of the entropy's slope drops out
    dlogits = (1 - u) softmax (dq - sum(softmax dq))
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import power_of_two

TILE = 1024
"""Elements that one program holds."""


@triton.jit
def mixed_probs(logits, inside, K: tl.constexpr, UNIMIX: tl.constexpr):
    """softmax, its mix q with the uniform distribution, and log q, over axis 1 in float32; all 0 where not inside."""
    logits = tl.where(inside, logits, -float("inf"))
    shifted = logits - tl.max(logits, 1)[:, None]
    weight = tl.exp(shifted)
    total = tl.sum(weight, 1)[:, None]
    probs = weight / total
    if UNIMIX == 0:
        mixed = probs
        log_mixed = tl.where(inside, shifted - tl.log(total), 0.0)  # finite where the probability underflows
    else:
        mixed = tl.where(inside, (1.0 - UNIMIX) * probs + UNIMIX / K, 0.0)
        log_mixed = tl.log(tl.where(inside, mixed, 1.0))
    return probs, mixed, log_mixed


@triton.jit
def share(probs, mixed, UNIMIX: tl.constexpr):
    """probs / mixed, the softmax's share of the mix; 1 where nothing is mixed in, even where probs underflow."""
    return 1.0 if UNIMIX == 0 else probs / tl.where(mixed > 0.0, mixed, 1.0)


@triton.jit
def _sample_kernel(
    logits, uniform, index, onehot, log_prob, entropy, N,
    K: tl.constexpr, UNIMIX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # logits, onehot (N, K); the others (N,)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)[None, :]
    at = row[:, None] * K + k
    inside = (row < N)[:, None] & (k < K)
    _, q, log_q = mixed_probs(tl.load(logits + at, inside, 0.0).to(tl.float32), k < K, K, UNIMIX)
    u = tl.load(uniform + row, row < N, 0.0)
    passed = (tl.cumsum(q, 1) <= u[:, None]) & (k < K - 1)  # the last class takes what is left
    drawn = tl.sum(passed.to(tl.int32), 1)
    hot = k == drawn[:, None]
    tl.store(index + row, drawn, row < N)
    tl.store(onehot + at, tl.where(hot, 1.0, 0.0).to(onehot.dtype.element_ty), inside)
    tl.store(log_prob + row, tl.sum(tl.where(hot, log_q, 0.0), 1), row < N)
    tl.store(entropy + row, -tl.sum(q * tl.where(q != 0.0, log_q, 0.0), 1), row < N)


@triton.jit
def _sample_backward_kernel(
    donehot, dlog_prob, dentropy, logits, index, dlogits, N,
    K: tl.constexpr, UNIMIX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)[None, :]
    at = row[:, None] * K + k
    inside = (row < N)[:, None] & (k < K)
    p, q, log_q = mixed_probs(tl.load(logits + at, inside, 0.0).to(tl.float32), k < K, K, UNIMIX)
    hot = k == tl.load(index + row, row < N, 0)[:, None]
    of_log_prob = tl.load(dlog_prob + row, row < N, 0.0)[:, None]
    of_entropy = tl.load(dentropy + row, row < N, 0.0)[:, None]
    # p dq rather than dq: p / q and p log q stay finite where p underflows.
    grad = p * tl.load(donehot + at, inside, 0.0).to(tl.float32)
    grad += tl.where(hot, of_log_prob * share(p, q, UNIMIX), 0.0)
    grad -= of_entropy * p * tl.where(p != 0.0, log_q, 0.0)
    grad = (1.0 - UNIMIX) * (grad - p * tl.sum(grad, 1)[:, None])
    tl.store(dlogits + at, grad.to(dlogits.dtype.element_ty), inside)


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """index (N,) int32, onehot (N, K) in the dtype of the logits, log-probability and entropy (N,) float32 in nats.

    logits (N, K), uniform (N,) float32.
    """
    logits, uniform = logits.contiguous(), uniform.contiguous()
    count, classes = logits.shape
    index = torch.empty(count, dtype=torch.int32, device=logits.device)
    onehot = torch.empty((count, classes), dtype=logits.dtype, device=logits.device)
    log_prob = torch.empty(count, dtype=torch.float32, device=logits.device)
    entropy = torch.empty(count, dtype=torch.float32, device=logits.device)
    rows, block = _tile(classes)
    _sample_kernel[(triton.cdiv(count, rows),)](
        logits, uniform, index, onehot, log_prob, entropy, count,
        K=classes, UNIMIX=unimix, ROWS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return index, onehot, log_prob, entropy


def unimix_sample_backward(
    donehot: Tensor, dlog_prob: Tensor, dentropy: Tensor, logits: Tensor, index: Tensor, unimix: float
) -> Tensor:
    """dlogits (N, K) in the dtype of the logits; donehot (N, K), dlog_prob and dentropy (N,) float32."""
    donehot, dlog_prob, dentropy = donehot.contiguous(), dlog_prob.contiguous(), dentropy.contiguous()
    logits, index = logits.contiguous(), index.contiguous()
    count, classes = logits.shape
    dlogits = torch.empty((count, classes), dtype=logits.dtype, device=logits.device)
    rows, block = _tile(classes)
    _sample_backward_kernel[(triton.cdiv(count, rows),)](
        donehot, dlog_prob, dentropy, logits, index, dlogits, count,
        K=classes, UNIMIX=unimix, ROWS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return dlogits


def _tile(classes: int) -> tuple[int, int]:
    """Rows and (padded) classes of one program."""
    block = power_of_two(classes, 2, TILE)
    return TILE // block, block
