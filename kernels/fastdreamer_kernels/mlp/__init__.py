"""`mlp`: layers and maybe a linear output, as one autograd node: encoder, prior, decoder and every head.

Its input are features, or states: deter and the class indices of the latents, whose one-hot is never formed on the CPU:
the first layer sums the rows of its kernel that the classes name. On a GPU it is the reference around `norm_act`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.functional import Layer, Projection, flatten
from fastdreamer_kernels.mlp import reference

_dispatch.define("mlp", "native", "triton")
MOST_LAYERS = 8  # layers.h


class Kept(NamedTuple):
    """What an evaluation of a stack on N rows leaves for its backward pass: it need not be made a second time."""

    out: Tensor
    """(N, W)."""
    saved: Tensor
    """(N * sum of widths,): every layer before its norm, one (N, width) after the other."""


def mlp(
    layers: tuple[Layer, ...], output: Projection | None, x: Tensor, stoch: Tensor | None = None,
    kept: Kept | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """(..., W) from x (..., D) and, where the features end in one-hots, their classes stoch (..., S) int32.

    W is the width of the output, or that of the last layer if there is none. Differentiable in the weights and in x.
    kept: of the native kernels, for the same weights and inputs; the reference has no use for it.
    Raises ValueError if the shapes or dtypes do not fit. Source: SPEC 2.1.
    """
    _check(layers, output, x, stoch, kept)
    chosen = _dispatch.choose("mlp", x, backend)
    if chosen == "reference":
        return reference.mlp(layers, output, x, stoch)
    if chosen == "triton":
        return _dispatch.lazily("mlp", "triton", "mlp")(layers, output, x, stoch)
    flat = flatten(layers if output is None else (*layers, output))
    keep = torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in flat))
    classes = None if stoch is None else stoch.reshape(-1, stoch.shape[-1]).contiguous()
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if kept is None:
        out, _ = _dispatch.kernel("mlp", chosen)(flat, rows, classes, keep)
    else:
        out = _dispatch.kernel("mlp_kept", chosen)(flat, rows, classes, *kept)
    return out.view(*x.shape[:-1], out.shape[-1])


def _check(
    layers: tuple[Layer, ...], output: Projection | None, x: Tensor, stoch: Tensor | None, kept: Kept | None
) -> None:  # fmt: skip
    """Raises ValueError for what the kernels would read or write beyond its end."""
    first, dtype = layers[0].kernel, layers[0].kernel.dtype
    latent = first.shape[0] - x.shape[-1]
    shape = (*x.shape[:-1], 0) if stoch is None else tuple(stoch.shape)
    fits = latent == 0 if stoch is None else latent > 0 and shape[-1] > 0 and latent % shape[-1] == 0
    if x.shape[:-1] != shape[:-1] or not fits:
        got = f"{tuple(x.shape)} and {None if stoch is None else shape}"
        raise ValueError(
            f"mlp: x and stoch must share their leading shape, and be as wide as the first kernel"
            f" {tuple(first.shape)} expects, got {got}"
        )
    _dispatch.check_dtypes("mlp", x=(x, dtype))
    if stoch is not None:
        _dispatch.check_dtypes("mlp", stoch=(stoch, torch.int32))
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"mlp: there must be 1..{MOST_LAYERS} layers, got {len(layers)}")
    width = first.shape[0]
    for name, part in (*((f"layers[{i}]", layer) for i, layer in enumerate(layers)), ("output", output)):
        if part is None:
            continue
        units = part.bias.numel()
        if part.kernel.shape != (width, units) or any(vector.shape != (units,) for vector in part[1:]):
            shapes = [tuple(each.shape) for each in part]
            raise ValueError(f"mlp: {name} must take {width} values to the size of its bias, got {shapes}")
        if part.kernel.dtype != dtype or part.bias.dtype != dtype:
            raise ValueError(f"mlp: {name} must be {dtype}, got {part.kernel.dtype} and {part.bias.dtype}")
        width = units
    if kept is not None:
        rows, hidden = x.numel() // x.shape[-1], sum(layer.bias.numel() for layer in layers)
        if kept.out.shape != (rows, width) or kept.saved.numel() != rows * hidden:
            got = f"{tuple(kept.out.shape)} and {kept.saved.numel()}"
            raise ValueError(f"mlp: kept must be of {rows} rows, {(rows, width)} and {rows * hidden}, got {got}")


def _fake(weights: list[Tensor], x: Tensor, stoch: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    biases = weights[1::3]
    hidden = sum(bias.numel() for bias in biases[: len(weights) // 3])
    return x.new_empty(x.shape[0], biases[-1].numel()), x.new_empty(x.shape[0] * hidden if keep else 0)


def _fake_kept(weights: list[Tensor], x: Tensor, stoch: Tensor | None, out: Tensor, saved: Tensor) -> Tensor:
    return torch.empty_like(out)


def _fake_backward(
    grad: Tensor, weights: list[Tensor], x: Tensor, stoch: Tensor | None, saved: Tensor, inner: bool
) -> list[Tensor]:
    return [torch.empty_like(each) for each in (*weights, *([x] if inner else []))]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weights, x, stoch, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, stoch, output[1], *weights)


def _setup_kept(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, x, stoch, _, saved = inputs
    ctx.save_for_backward(x, stoch, saved, *weights)


def _backward(ctx: Any, grad: Tensor, *unused: None) -> tuple[list[Tensor] | Tensor | None, ...]:
    x, stoch, saved, *weights = ctx.saved_tensors
    inner = ctx.needs_input_grad[1]
    run = _dispatch.kernel("mlp_backward", ctx.backend)
    grads = run(grad.contiguous(), weights, x, stoch, saved, inner)
    return grads[: len(weights)], grads[-1] if inner else None, *[None] * (len(ctx.needs_input_grad) - 2)


_dispatch.register(
    "mlp",
    "mlp_backward(Tensor grad, Tensor[] weights, Tensor x, Tensor? stoch, Tensor saved, bool inner) -> Tensor[]",
    _fake_backward,
    backends=("native",),
)
_dispatch.register(
    "mlp",
    "mlp(Tensor[] weights, Tensor x, Tensor? stoch, bool keep) -> (Tensor, Tensor)",
    _fake,
    _dispatch.Gradient(_setup, _backward),
    backends=("native",),
)
_dispatch.register(
    "mlp",
    "mlp_kept(Tensor[] weights, Tensor x, Tensor? stoch, Tensor out, Tensor saved) -> Tensor",
    _fake_kept,
    _dispatch.Gradient(_setup_kept, _backward),
    backends=("native",),
)
