"""`twohot_mean` and `twohot_loss`: read-out and cross entropy of logits over bins, without the one-hots.

On the CPU each is one pass over the logits; on a GPU torch.compile fuses the reference as well.
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.twohot import reference

_dispatch.define("twohot_mean", "native")
_dispatch.define("twohot_loss", "native")


def twohot_mean(logits: Tensor, bins: Tensor, backend: str | None = None) -> Tensor:
    """Expected bin (...) float32, without gradient, from logits (..., K) and bins (K,): K odd, symmetric about 0.

    Mirrored bins are paired, so that uniform logits give exactly 0. Source: SPEC 2.6. Raises ValueError if the
    shapes do not fit.
    """
    _check("twohot_mean", logits, bins)
    chosen = _dispatch.choose("twohot_mean", logits, backend)
    if chosen == "reference":
        return reference.twohot_mean(logits.detach(), bins)
    rows = logits.detach().contiguous().flatten(0, -2)
    return _dispatch.kernel("twohot_mean", chosen)(rows, bins).view(logits.shape[:-1])


def twohot_loss(logits: Tensor, bins: Tensor, *targets: Tensor, backend: str | None = None) -> Tensor:
    """Cross entropy with the two-hot encoding of each target, summed over targets: (..., K), (...) -> (...) float32.

    A target between two bins is split linearly between them; beyond the ends all mass is on the end bin. Differentiable
    in the logits; targets get no gradient. Source: SPEC 2.6. Raises ValueError if the shapes do not fit.
    """
    _check("twohot_loss", logits, bins)
    if any(target.shape != logits.shape[:-1] for target in targets):
        shapes = [tuple(target.shape) for target in targets]
        raise ValueError(f"twohot_loss: targets must be {tuple(logits.shape[:-1])}, got {shapes}")
    chosen = _dispatch.choose("twohot_loss", logits, backend)
    if chosen == "reference":
        return reference.twohot_loss(logits, bins, *targets)
    rows = logits.contiguous().flatten(0, -2)
    stacked = torch.stack([target.detach().float() for target in targets], -1).flatten(0, -2)
    return _dispatch.kernel("twohot_loss", chosen)(rows, bins, stacked).view(logits.shape[:-1])


def _check(op: str, logits: Tensor, bins: Tensor) -> None:
    if bins.ndim != 1 or logits.shape[-1] != len(bins) or not 3 <= len(bins) <= 1023 or len(bins) % 2 == 0:
        raise ValueError(
            f"{op}: bins must be as many as the logits, odd, 3..1023, got {tuple(bins.shape)} for {tuple(logits.shape)}"
        )


def _fake_mean(logits: Tensor, bins: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0])


def _fake_loss(logits: Tensor, bins: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0])


def _fake_backward(grad: Tensor, logits: Tensor, bins: Tensor, targets: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    run = _dispatch.kernel("twohot_loss_backward", ctx.backend)
    return run(grad.contiguous(), *ctx.saved_tensors), None, None


_dispatch.register("twohot", "twohot_mean(Tensor logits, Tensor bins) -> Tensor", _fake_mean, backends=("native",))
_dispatch.register(
    "twohot",
    "twohot_loss_backward(Tensor grad, Tensor logits, Tensor bins, Tensor targets) -> Tensor",
    _fake_backward,
    backends=("native",),
)
_dispatch.register(
    "twohot",
    "twohot_loss(Tensor logits, Tensor bins, Tensor targets) -> Tensor",
    _fake_loss,
    _dispatch.Gradient(_setup, _backward),
    backends=("native",),
)
