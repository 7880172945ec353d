"""`observe_sequence`: the posterior scan, deter_t = core(deter, stoch, a_{t-1}) and stoch_t ~ post(deter_t, embed_t).

Where is_first, the state and the previous action are zero before the step. Sampling is inside, so the uniforms are
an argument; gradients flow through time by the straight-through one-hot. The kernels are one autograd node each: their
backward scan forms gradients of activations only, those of the weights follow once, over all T*B rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.functional import flatten
from fastdreamer_kernels.observe_sequence import reference
from fastdreamer_kernels.rssm_core import Core, Head, check_widths

_dispatch.define("observe_sequence", "native", "triton")


def observe_sequence(
    core: Core, posterior: Head, deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor, is_first: Tensor,
    uniform: Tensor, unimix: float, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """deter (B, T, D), stoch (B, T, S) int32, its differentiable one-hot (B, T, S, K), posterior logits (B, T, S, K).

    Start state deter (B, D) and stoch (B, S) int32, without gradient; embed (B, T, E); action (B, T, A): the flat
    action before each step; is_first (B, T) bool; uniform (B, T, S) float32 in [0, 1); unimix in [0, 1].
    Differentiable in the weights and embed. Raises ValueError if the shapes or dtypes do not fit. Source: SPEC 1.4.
    """
    rows, time = embed.shape[:2]
    got = (tuple(deter.shape[:1]), tuple(action.shape[:2]), tuple(is_first.shape), tuple(uniform.shape))
    expected = ((rows,), (rows, time), (rows, time), (rows, time, stoch.shape[1]))
    if got != expected:
        raise ValueError(f"observe_sequence: deter, action, is_first, uniform must lead with {expected}, got {got}")
    check_widths("observe_sequence", core, posterior, deter, stoch, embed.shape[2])
    if action.shape[2] != core.action.kernel.shape[0]:
        raise ValueError(f"observe_sequence: action must be (B, T, {core.action.kernel.shape[0]}), got {action.shape}")
    _dispatch.check_dtypes(
        "observe_sequence", stoch=(stoch, torch.int32), is_first=(is_first, torch.bool),
        uniform=(uniform, torch.float32), deter=(deter, embed.dtype), action=(action, embed.dtype),
    )  # fmt: skip
    chosen = _dispatch.choose("observe_sequence", embed, backend)
    if chosen == "reference":
        return reference.observe_sequence(core, posterior, deter, stoch, embed, action, is_first, uniform, unimix)
    inputs = [x.contiguous() for x in (deter, stoch, embed, action, is_first, uniform)]
    deters, stochs, onehots, logits, _ = _dispatch.kernel("observe_sequence", chosen)(
        flatten(core), flatten(posterior), *inputs, unimix
    )
    return deters, stochs, onehots, logits


def _fake(saved: Callable[..., list[Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]]:
    """`saved`: the backend's own (core, posterior, rows, time) -> what its forward keeps."""

    def fake(
        core: list[Tensor], posterior: list[Tensor], deter: Tensor, stoch: Tensor, embed: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        (rows, time), (groups, latent) = embed.shape[:2], (stoch.shape[1], posterior[-1].numel())
        onehots, logits = (deter.new_empty(rows, time, groups, latent // groups) for _ in range(2))
        deters, stochs = deter.new_empty(rows, time, deter.shape[1]), stoch.new_empty(rows, time, groups)
        return deters, stochs, onehots, logits, saved(core, posterior, rows, time)

    return fake


def _fake_backward(
    deter: Tensor, onehot: Tensor, logit: Tensor, core: list[Tensor], posterior: list[Tensor], stoch: Tensor,
    embed: Tensor, *rest: Any,
) -> tuple[list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    return [torch.empty_like(x) for x in core], [torch.empty_like(x) for x in posterior], torch.empty_like(embed)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    core, posterior, _, stoch, embed, action, is_first, _, ctx.unimix = inputs
    deters, stochs, _, logits, saved = output
    ctx.counts = len(core), len(posterior)
    ctx.save_for_backward(*core, *posterior, stoch, embed, action, is_first, deters, stochs, logits, *saved)


def _backward(ctx: Any, deter: Tensor, _: None, onehot: Tensor, logit: Tensor, saved: Any) -> tuple[Any, ...]:
    """Gradients of what `observe_sequence` takes; the start state, the actions and the uniforms get none."""
    core, posterior = ctx.counts
    kept = ctx.saved_tensors
    weights, rest = (kept[:core], kept[core : core + posterior]), kept[core + posterior :]
    run = _dispatch.kernel("observe_sequence_backward", ctx.backend)
    grads = [grad.contiguous() for grad in (deter, onehot, logit)]
    cores, posteriors, embed = run(*grads, *map(list, weights), *rest[:7], list(rest[7:]), ctx.unimix)
    return cores, posteriors, None, None, embed, None, None, None, None


_dispatch.register(
    "observe_sequence",
    "observe_sequence_backward(Tensor deter_grad, Tensor onehot_grad, Tensor logit_grad, Tensor[] core,"
    " Tensor[] posterior, Tensor stoch, Tensor embed, Tensor action, Tensor is_first, Tensor deters, Tensor stochs,"
    " Tensor logits, Tensor[] saved, float unimix) -> (Tensor[], Tensor[], Tensor)",
    _fake_backward,
)
for _backend in ("native", "triton"):
    _dispatch.register(
        "observe_sequence",
        "observe_sequence(Tensor[] core, Tensor[] posterior, Tensor deter, Tensor stoch, Tensor embed, Tensor action,"
        " Tensor is_first, Tensor uniform, float unimix) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
        _fake(_dispatch.lazily("observe_sequence", _backend, "saved_like")),
        _dispatch.Gradient(_setup, _backward),
        backends=(_backend,),
    )
