"""Layers and maybe a linear output in plain PyTorch; a state is deter and the one-hot of its classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdreamer_kernels.functional import Layer, Projection, linear, norm_act


def mlp(
    layers: tuple[Layer, ...], output: Projection | None, x: Tensor, stoch: Tensor | None,
    act: Callable[[Tensor, Tensor], Tensor] = norm_act,
) -> Tensor:  # fmt: skip
    if stoch is not None:
        classes = (layers[0].kernel.shape[0] - x.shape[-1]) // stoch.shape[-1]
        x = torch.cat([x, F.one_hot(stoch.long(), classes).flatten(-2).to(x.dtype)], -1)
    for kernel, bias, scale in layers:
        x = act(linear(x, kernel, bias), scale)
    return x if output is None else linear(x, *output)
