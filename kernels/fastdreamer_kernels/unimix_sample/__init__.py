"""`unimix_sample`: one class per group from p = (1 - unimix) softmax(logits) + unimix / K, by inverse CDF.

The class is the number of k < K - 1 with cdf_k <= uniform. The one-hot carries the gradient of p (straight-through):
its forward value is exactly 0 or 1, its derivative that of p. It is rebuilt from the index, never saved for backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.unimix_sample import reference

_dispatch.define("unimix_sample", "native", "triton")


class Sample(NamedTuple):
    """What was drawn; the classes carry no gradient."""

    drawn: Tensor
    """(..., S) int32: the classes."""
    onehot: Tensor
    """(..., S, K) in the dtype of the logits."""
    log_prob: Tensor
    """(..., S) float32: log p of the class."""
    entropy: Tensor
    """(..., S) float32: of p, in nats."""


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float, backend: str | None = None) -> Sample:
    """Draws a class per group, with its log-probability and the entropy.

    logits (..., S, K), uniform (..., S) float32 in [0, 1), unimix in [0, 1]: the share of the uniform distribution.
    Raises ValueError if shapes or dtypes do not fit or unimix is out of range. Source: SPEC 2.6.
    """
    if logits.ndim < 2 or not logits.is_floating_point():
        raise ValueError(f"unimix_sample: logits must be (..., S, K) floats, got {tuple(logits.shape)} {logits.dtype}")
    if logits.shape[:-1] != uniform.shape:
        raise ValueError(f"unimix_sample: uniform must be {tuple(logits.shape[:-1])}, got {tuple(uniform.shape)}")
    if uniform.dtype != torch.float32:
        raise ValueError(f"unimix_sample: uniform must be float32, got {uniform.dtype}")
    if not 0 <= unimix <= 1:
        raise ValueError(f"unimix_sample: unimix must be in [0, 1], got {unimix}")
    chosen = _dispatch.choose("unimix_sample", logits, backend)
    if chosen == "reference":
        return Sample(*reference.unimix_sample(logits, uniform, unimix))
    rows = logits.contiguous().flatten(0, -2)
    drawn = _dispatch.kernel("unimix_sample", chosen)(rows, uniform.contiguous().flatten(), unimix)
    index, onehot, log_prob, entropy = drawn
    return Sample(
        index.view(uniform.shape), onehot.view(logits.shape), log_prob.view(uniform.shape), entropy.view(uniform.shape)
    )


def _fake(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index = torch.empty_like(uniform, dtype=torch.int32)
    return index, torch.empty_like(logits), torch.empty_like(uniform), torch.empty_like(uniform)


def _fake_backward(
    onehot: Tensor, log_prob: Tensor, entropy: Tensor, logits: Tensor, index: Tensor, unimix: float
) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0])
    ctx.unimix = inputs[2]


def _backward(ctx: Any, _: None, *grads: Tensor) -> tuple[Tensor, None, None]:
    run = _dispatch.kernel("unimix_sample_backward", ctx.backend)
    return run(*(grad.contiguous() for grad in grads), *ctx.saved_tensors, ctx.unimix), None, None


_dispatch.register(
    "unimix_sample",
    "unimix_sample_backward(Tensor onehot, Tensor log_prob, Tensor entropy, Tensor logits, Tensor index, float unimix)"
    " -> Tensor",
    _fake_backward,
)
_dispatch.register(
    "unimix_sample",
    "unimix_sample(Tensor logits, Tensor uniform, float unimix) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake,
    _dispatch.Gradient(_setup, _backward),
)
