"""The layers that several ops share, in plain PyTorch: linear, block-diagonal linear, RMSNorm, SiLU.

Weights arrive in the compute dtype; norm scales stay float32. Source: SPEC 2.1.
"""

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-4

Weights: TypeAlias = tuple["Tensor | Weights", ...]


class Layer(NamedTuple):
    """Linear -> RMSNorm -> SiLU: kernel (in, out) or (blocks, in/blocks, out/blocks), bias and scale (out,)."""

    kernel: Tensor
    bias: Tensor
    scale: Tensor


class Projection(NamedTuple):
    """A linear output: kernel (in, out), bias (out,)."""

    kernel: Tensor
    bias: Tensor


def flatten(weights: Weights) -> list[Tensor]:
    """The tensors of nested named tuples in the order of their fields: what a kernel takes."""
    flat: list[Tensor] = []
    for part in weights:
        flat += [part.contiguous()] if isinstance(part, Tensor) else flatten(part)
    return flat


def linear(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    return F.linear(x, kernel.mT, bias)


def block_linear(x: Tensor, kernel: Tensor) -> Tensor:
    """Block k of the input meets block k of the kernel: (B, in) x (G, in/G, out/G) -> (B, out), without bias."""
    blocks, width, _ = kernel.shape
    x = x.reshape(-1, blocks, width).transpose(0, 1)  # (G, B, in/G)
    return torch.bmm(x, kernel).transpose(0, 1).flatten(1)


def widen(x: Tensor) -> Tensor:
    """In float32, where distributions and statistics are computed; float64, which only tests have, stays."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-4) * scale over the last axis, in float32, returned in the dtype of x."""
    return F.rms_norm(widen(x), scale.shape, scale, NORM_EPS).to(x.dtype)


def norm_act(x: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm, then SiLU."""
    return F.silu(rms_norm(x, scale))


def layer(x: Tensor, weights: Layer) -> Tensor:
    """linear -> RMSNorm -> SiLU, (..., in) -> (..., out)."""
    return norm_act(linear(x, weights.kernel, weights.bias), weights.scale)
