"""The formulas of SPEC 2 written once more in float64, block by block and step by step, and random inputs for them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels.functional import Layer, Projection
from fastdreamer_kernels.policy import ActionKey, Policy
from fastdreamer_kernels.rssm_core import Core, Head


class Sizes(NamedTuple):
    """B rows, T steps, D deter, G blocks, M hidden, S groups, K classes, E embed, A flat action."""

    B: int
    T: int
    D: int
    G: int
    M: int
    S: int
    K: int
    E: int
    A: int


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniforms(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax + unimix / K."""
    weight = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    return (1 - unimix) * weight / weight.sum(-1, keepdim=True) + unimix / logits.shape[-1]


def sample(logits: Tensor, uniform: Tensor, unimix: float) -> Tensor:
    """One-hot (..., S, K) of the class that holds the uniform, with the gradient of the probabilities."""
    probs = mixed(logits, unimix)
    index = (probs.detach().cumsum(-1)[..., :-1] <= uniform.double().unsqueeze(-1)).sum(-1)
    return F.one_hot(index, logits.shape[-1]) + probs - probs.detach()


def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    y = x / (x.pow(2).mean(-1, keepdim=True) + 1e-4).sqrt() * scale
    return y / (1 + (-y).exp())


def dense(x: Tensor, weights: Layer) -> Tensor:
    return norm_silu(x @ weights.kernel + weights.bias, weights.scale)


def logits(x: Tensor, weights: Head, groups: int) -> Tensor:
    for layer in weights.layers:
        x = dense(x, layer)
    return (x @ weights.logit.kernel + weights.logit.bias).unflatten(-1, (groups, -1))


def gru(hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor) -> Tensor:
    """Gates block by block: reset, candidate, update lie side by side within each."""
    width = kernel.shape[1]
    y, new = norm_silu(hidden, scale), []
    for k, weight in enumerate(kernel):
        own = slice(k * width, (k + 1) * width)
        reset, cand, update = (y[:, own] @ weight + bias[3 * k * width : 3 * (k + 1) * width]).split(width, -1)
        update = torch.sigmoid(update - 1)
        new.append(update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * deter[:, own])
    return torch.cat(new, -1)


def core_step(core: Core, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """The next deter: every block sees its own part of deter and all three embeddings."""
    action = action / action.detach().abs().clamp(min=1)
    embeds = torch.cat([dense(deter, core.deter), dense(stoch, core.stoch), dense(action, core.action)], -1)
    blocks = deter.chunk(len(core.hidden.kernel), -1)
    parts = [torch.cat([own, embeds], -1) @ core.hidden.kernel[k] for k, own in enumerate(blocks)]
    return gru(torch.cat(parts, -1) + core.hidden.bias, core.hidden.scale, *core.gru, deter)


class Observed(NamedTuple):
    """The inputs of an observed sequence, in the order of the op."""

    deter: Tensor
    stoch: Tensor
    embed: Tensor
    action: Tensor
    is_first: Tensor
    uniform: Tensor


def observed(n: Sizes) -> Observed:
    """Random inputs. Actions go beyond 1, so their scaling matters; a quarter of the steps are resets."""
    return Observed(
        deter=normal(50, n.B, n.D),
        stoch=(uniforms(51, n.B, n.S) * n.K).int(),
        embed=normal(52, n.B, n.T, n.E),
        action=2 * normal(53, n.B, n.T, n.A),
        is_first=uniforms(54, n.B, n.T) < 0.25,
        uniform=uniforms(55, n.B, n.T, n.S),
    )


class Weights(NamedTuple):
    """Random weights of a world model and an actor with one discrete and one continuous key."""

    core: Core
    posterior: Head
    prior: Head
    policy: Policy


def make_layer(seed: int, *shape: int) -> Layer:
    """shape: of the kernel, (in, out) or (blocks, in / blocks, out / blocks)."""
    units = shape[-1] * (shape[0] if len(shape) == 3 else 1)
    kernel = normal(seed, *shape) / shape[-2] ** 0.5
    return Layer(kernel, 0.1 * normal(seed + 1, units), 1 + 0.2 * normal(seed + 2, units))


def make_projection(seed: int, *shape: int) -> Projection:
    return Projection(*make_layer(seed, *shape)[:2])


def make_weights(n: Sizes, keys: tuple[ActionKey, ...] = ()) -> Weights:
    latent, feat = n.S * n.K, n.D + n.S * n.K
    core = Core(
        make_layer(0, n.D, n.M), make_layer(3, latent, n.M), make_layer(6, n.A, n.M),
        make_layer(9, n.G, n.D // n.G + 3 * n.M, n.D // n.G), make_projection(12, n.G, n.D // n.G, 3 * n.D // n.G),
    )  # fmt: skip
    posterior = Head((make_layer(15, n.D + n.E, n.M),), make_projection(18, n.M, latent))
    prior = Head((make_layer(21, n.D, n.M), make_layer(24, n.M, n.M)), make_projection(27, n.M, latent))
    trunk = (make_layer(30, feat, n.M), make_layer(33, n.M, n.M))
    outputs = tuple(
        tuple(make_projection(40 + 10 * i + 3 * j, n.M, key.width) for j in range(1 if key.classes else 2))
        for i, key in enumerate(keys)
    )
    return Weights(core, posterior, prior, Policy(trunk, outputs))


def act(policy: Policy, keys: tuple[ActionKey, ...], feat: Tensor, noise: Tensor, unimix: float = 0.0) -> Tensor:
    """The flat action: a class by its uniform, or tanh(mean) + std times a normal."""
    for layer in policy.trunk:
        feat = dense(feat, layer)
    parts, begin = [], 0
    for key, outputs in zip(keys, policy.outputs, strict=True):
        part, begin = noise[:, begin : begin + key.elements], begin + key.elements
        outs = [feat @ out.kernel + out.bias for out in outputs]
        if key.classes:
            parts.append(sample(outs[0].unflatten(-1, (key.elements, key.classes)), part, unimix).flatten(1))
        else:
            parts.append(torch.tanh(outs[0]) + (0.9 * torch.sigmoid(outs[1] + 2) + 0.1) * part)
    return torch.cat(parts, -1)


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return torch.sign(x) * torch.expm1(torch.abs(x))
