"""The actor in plain PyTorch: from features to one flat action vector. Source: SPEC 1.10, 2.2 and 2.6.

A flat action is what the core of the world model receives: keys in alphabetical order, discrete elements one-hot,
continuous values as sampled. Its noise is one value per element: a uniform for a discrete element, a standard
normal for a continuous one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels.functional import Layer, Projection, linear
from fastdreamer_kernels.mlp.reference import mlp
from fastdreamer_kernels.unimix_sample.reference import draw

MIN_STD, MAX_STD = 0.1, 1.0


class ActionKey(NamedTuple):
    """One action key: `elements` numbers, each of `classes` classes, or continuous where classes is 0."""

    elements: int
    classes: int

    @property
    def width(self) -> int:
        """How many floats of the flat action belong to this key."""
        return self.elements * max(1, self.classes)


class Policy(NamedTuple):
    """Weights of the actor: the trunk, and per action key its outputs (logits, or mean and stddev)."""

    trunk: tuple[Layer, ...]
    outputs: tuple[tuple[Projection, ...], ...]


def policy_outputs(feat: Tensor, policy: Policy) -> list[tuple[Tensor, ...]]:
    """Per key (logits,) or (mean, stddev) before their squashing, each (..., width of the projection)."""
    feat = mlp(policy.trunk, None, feat, None)
    return [tuple(linear(feat, out.kernel, out.bias) for out in outputs) for outputs in policy.outputs]


def bounded_normal(mean: Tensor, stddev: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean) and a standard deviation in (0.1, 1), float32."""
    std = (MAX_STD - MIN_STD) * torch.sigmoid(stddev + 2) + MIN_STD
    return torch.tanh(mean).float(), std.float()


def sample_action(
    outputs: list[tuple[Tensor, ...]], keys: tuple[ActionKey, ...], noise: Tensor, unimix: float
) -> Tensor:
    """The flat action (..., A) float32 from noise (..., sum of elements), without gradient."""
    parts = []
    with torch.no_grad():
        for key, outs, part in zip(keys, outputs, noise.split([key.elements for key in keys], -1), strict=True):
            if key.classes:
                logits = outs[0].unflatten(-1, (key.elements, key.classes))
                parts.append(draw(logits.float(), part, unimix)[1].flatten(-2))
            else:
                mean, std = bounded_normal(*outs)
                parts.append(mean + std * part)
    return torch.cat(parts, -1)
