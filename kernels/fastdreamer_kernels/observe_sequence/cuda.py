"""The posterior scan in Triton: five launches a step, forward and backward; weight gradients once over all steps.

Pure functions of tensors. `core` and `posterior` are flat lists: rssm_core.Core in order, and [kernel, bias, scale] per
layer, then the logits' [kernel, bias]. Weights come in the compute dtype, scales in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels import _chain_backward as backward
from fastdreamer_kernels import _chain_forward as forward
from fastdreamer_kernels._chain import Rows
from fastdreamer_kernels._chain_backward import Slope
from fastdreamer_kernels.functional import norm_act


def observe_sequence(
    core: list[Tensor], posterior: list[Tensor], deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor,
    is_first: Tensor, uniform: Tensor, unimix: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """deters (B, T, D), stochs (B, T, S), onehots and logits (B, T, S, K), and what the backward needs."""
    core, posterior = [x.contiguous() for x in core], [x.contiguous() for x in posterior]
    uniform = uniform.contiguous()
    (rows, time), (width, groups) = is_first.shape, (deter.shape[1], stoch.shape[1])
    shape, dtype, device = (rows, time, groups, posterior[-1].numel() // groups), core[0].dtype, deter.device
    chain = forward.CoreChain(core, rows, parts=2)
    saved = _rooms(chain, posterior, time)
    start, actions, embeds, hidden, gates, layers = _named(saved)
    keep = (~is_first).T.to(torch.int32, memory_format=torch.contiguous_format)  # (T, B)
    start.copy_(deter)
    tokens = torch.addmm(posterior[1], embed.flatten(0, 1), posterior[0][width:]).unflatten(0, (rows, time))
    torch.addmm(core[7], _squashed(action, is_first, dtype).flatten(0, 1), core[6], out=actions)
    addend = torch.addmm(core[10], norm_act(actions, core[8]), _action_kernel(core)).unflatten(0, (rows, time))
    deters = torch.empty((rows, time, width), dtype=dtype, device=device)
    stochs = torch.empty((rows, time, groups), dtype=torch.int32, device=device)
    onehots, logits = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    deter, stoch = start, stoch.contiguous()
    for t in range(time):
        here = [Rows(layer.pre[:, t], layer.sums[t]) for layer in layers]
        chain.step(
            deter, stoch, None, keep[t], addend[:, t], shape[3], _at(embeds, t), _at(hidden, t), gates[:, t],
            deters[:, t],
        )  # fmt: skip
        deter, stoch = deters[:, t], stochs[:, t]
        forward.linear(deter, posterior[0], tokens[:, t], here[0])
        for i in range(1, len(here)):
            forward.linear(here[i - 1], posterior[3 * i], posterior[3 * i + 1], here[i], posterior[3 * i - 1])
        forward.sample(
            here[-1], posterior[-3], posterior[-2], posterior[-1], uniform[:, t], unimix, logits[:, t].flatten(1),
            stoch, onehots[:, t].flatten(1),
        )  # fmt: skip
    return deters, stochs, onehots, logits, saved


def saved_like(core: list[Tensor], posterior: list[Tensor], rows: int, time: int) -> list[Tensor]:
    """Room for what the forward keeps: the start, and every layer before its norm with its sums of squares."""
    return _rooms(forward.CoreChain(core, rows, parts=2), posterior, time)


def observe_sequence_backward(
    grad_deters: Tensor, grad_onehots: Tensor, grad_logits: Tensor, core: list[Tensor], posterior: list[Tensor],
    stoch: Tensor, embed: Tensor, action: Tensor, is_first: Tensor, deters: Tensor, stochs: Tensor, logits: Tensor,
    saved: list[Tensor], unimix: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    """Gradients of core, posterior and embed; none for the start state.

    The reverse loop forms only gradients of layers, kept for every step; the weights then cost one matmul each.
    """
    core, posterior = [x.contiguous() for x in core], [x.contiguous() for x in posterior]
    grad_deters, grad_onehots, grad_logits = (x.contiguous() for x in (grad_deters, grad_onehots, grad_logits))
    (rows, time), width = is_first.shape, deters.shape[2]
    start, actions, embeds, hidden, gates, layers = _named(saved)
    scales = torch.cat([core[2], core[5]])
    keep = torch.zeros(time + 1, rows, dtype=torch.int32, device=deters.device)  # nothing follows the last step
    keep[:time] = (~is_first).T
    before = torch.cat([start[:, None], deters[:, :-1]], 1)  # (B, T, D)

    grads = [torch.empty_like(layer.pre) for layer in layers]
    dots = [torch.empty_like(layer.sums[0]) for layer in layers]
    grad_embeds, embed_dots = torch.empty_like(embeds.pre), torch.empty_like(embeds.sums[0])
    grad_hidden, hidden_dots = torch.empty_like(hidden.pre), torch.empty_like(hidden.sums[0])
    grad_gates, grad_latents = torch.empty_like(gates), torch.empty_like(logits)
    carried = torch.empty((rows, width), dtype=torch.float32, device=deters.device)
    units = core[0].shape[1]

    def embedding(t: int, part: int) -> Slope:
        own = slice(part * units, (part + 1) * units)
        layer = Rows(embeds.pre[:, t, own], embeds.sums[t, part])
        return Slope(layer, core[3 * part + 2], grad_embeds[:, t, own], embed_dots[part])

    for t in reversed(range(time)):
        after = min(t + 1, time - 1)  # beyond the last step nothing is read
        slopes = [Slope(_at(layer, t), posterior[3 * i + 2], grads[i][:, t], dots[i]) for i, layer in enumerate(layers)]
        latent = grad_latents[:, t].flatten(1)
        backward.sample_grad(
            embedding(after, 1), core[3], keep[t + 1], logits[:, t], grad_onehots[:, t], grad_logits[:, t], latent,
            unimix,
        )  # fmt: skip
        backward.layer_grad(latent, posterior[-2], slopes[-1])
        for i in range(len(layers) - 1, 0, -1):
            backward.layer_grad(slopes[i], posterior[3 * i], slopes[i - 1])
        backward.deter_grad(
            slopes[0], posterior[0], embedding(after, 0), core[0],
            Slope(_at(hidden, after), core[11], grad_hidden[:, after], hidden_dots), core[9],
            keep[t + 1], grad_deters[:, t], before[:, t], keep[t], gates[:, t], grad_gates[:, t], carried,
        )  # fmt: skip
        own_hidden = Slope(_at(hidden, t), core[11], grad_hidden[:, t], hidden_dots)
        backward.layer_grad(grad_gates[:, t], core[12], own_hidden)
        backward.embed_grad(
            own_hidden, core[9], Slope(_at(embeds, t), scales, grad_embeds[:, t], embed_dots)
        )  # fmt: skip

    flags = (~is_first).flatten()[:, None]
    past = (before.flatten(0, 1) * flags.to(deters.dtype), torch.cat([stoch[:, None], stochs[:, :-1]], 1), flags)
    scaled = _squashed(action, is_first, core[0].dtype).flatten(0, 1)
    dposterior, dembed = _posterior_gradients(posterior, layers, grads, deters, embed, grad_latents)
    dcore = _core_gradients(core, *past, scaled, actions, embeds, grad_embeds, hidden, grad_hidden, grad_gates)
    return dcore, dposterior, dembed


def _rooms(chain: forward.CoreChain, posterior: list[Tensor], time: int) -> list[Tensor]:
    core, rows = chain.core, chain.rows

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=core[0].dtype, device=core[0].device)

    room = [empty(rows, chain.width), empty(rows * time, chain.units)]
    room += [chain.embeds(rows, time), chain.embed_sums(time), chain.hidden(rows, time), chain.hidden_sums(time)]
    room.append(empty(rows, time, 3 * chain.width))
    for kernel in posterior[:-2:3]:
        room += [empty(rows, time, kernel.shape[1]), forward.layer_sums(kernel, rows, time)]
    return room


class _Saved(NamedTuple):
    start: Tensor
    actions: Tensor
    embeds: Rows
    hidden: Rows
    gates: Tensor
    layers: list[Rows]


def _named(saved: list[Tensor]) -> _Saved:
    start, actions, embeds, embed_sums, hidden, hidden_sums, gates, *layers = saved
    pairs = [Rows(*pair) for pair in zip(layers[::2], layers[1::2], strict=True)]
    return _Saved(start, actions, Rows(embeds, embed_sums), Rows(hidden, hidden_sums), gates, pairs)


def _at(layer: Rows, t: int) -> Rows:
    return Rows(layer.pre[:, t], layer.sums[t])


def _squashed(action: Tensor, is_first: Tensor, dtype: torch.dtype) -> Tensor:
    action = (action * (~is_first)[..., None]).to(dtype)
    return action / action.abs().clamp(min=1)


def _action_kernel(core: list[Tensor]) -> Tensor:
    """The rows of dynhid0 that meet the action's embedding, (M, D)."""
    return core[9][:, -core[6].shape[1] :].transpose(0, 1).flatten(1)


def _posterior_gradients(
    posterior: list[Tensor], layers: list[Rows], grads: list[Tensor], deters: Tensor, embed: Tensor, latents: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Of its layers and logits, and of embed, over all B T rows."""
    width, above = deters.shape[2], latents.flatten(0, 1).flatten(1)
    reverse: list[Tensor] = [above.sum(0)]
    for i in range(len(layers) - 1, -1, -1):
        act, slope, dscale = backward.norm_grad(
            layers[i].pre.flatten(0, 1), posterior[3 * i + 2], grads[i].flatten(0, 1)
        )
        reverse += [act.T @ above, dscale, slope.sum(0)]
        above = slope
    first = torch.cat([deters.flatten(0, 1).T @ above, embed.flatten(0, 1).T @ above])
    dembed = (above @ posterior[0][width:].T).view_as(embed)
    return [*reversed([*reverse, first])], dembed


def _core_gradients(
    core: list[Tensor], before: Tensor, stoch: Tensor, flags: Tensor, action: Tensor, actions: Tensor, embeds: Rows,
    grad_embeds: Tensor, hidden: Rows, grad_hidden: Tensor, grad_gates: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Of every weight of the core, over all rows; before (B T, D) and stoch (B, T, S): the states stepped from."""
    blocks, _, part = core[9].shape
    classes = core[3].shape[0] // stoch.shape[2]
    act, slope, dscale = backward.norm_grad(hidden.pre.flatten(0, 1), core[11], grad_hidden.flatten(0, 1))
    gates = grad_gates.flatten(0, 1)
    dgru = torch.bmm(_by_block(act, blocks).mT, _by_block(gates, blocks))

    shared = slope @ _action_kernel(core).T
    action_layer = backward.norm_grad(actions, core[8], shared, through_silu=True)
    units = core[0].shape[1]
    layers = [
        backward.norm_grad(embeds.pre.flatten(0, 1)[:, own], scale, grad_embeds.flatten(0, 1)[:, own])
        for own, scale in ((slice(0, units), core[2]), (slice(units, 2 * units), core[5]))
    ] + [action_layer]
    joined = torch.cat([layer[0] for layer in layers], 1)
    dhidden = torch.cat(
        [
            torch.bmm(_by_block(before, blocks).mT, _by_block(slope, blocks)),
            (joined.T @ slope).unflatten(1, (blocks, part)).transpose(0, 1),
        ],
        1,
    )
    onehot = (stoch.flatten(0, 1)[..., None] == torch.arange(classes, device=stoch.device)).flatten(1) & flags
    inputs = (before, onehot.to(before.dtype), action)
    enter = [
        gradient
        for x, (_, below, scale) in zip(inputs, layers, strict=True)
        for gradient in (x.T @ below, below.sum(0), scale)
    ]
    return [*enter, dhidden, slope.sum(0), dscale, dgru, gates.sum(0)]


def _by_block(x: Tensor, blocks: int) -> Tensor:
    """(rows, width) -> (blocks, rows, width / blocks)."""
    return x.unflatten(1, (blocks, -1)).transpose(0, 1)
