"""`mlp` on a GPU: torch's matmuls with `norm_act` between them; autograd does the rest."""

from functools import partial

from torch import Tensor

from fastdreamer_kernels.functional import Layer, Projection
from fastdreamer_kernels.mlp import reference
from fastdreamer_kernels.norm_act import norm_act


def mlp(layers: tuple[Layer, ...], output: Projection | None, x: Tensor, stoch: Tensor | None) -> Tensor:
    return reference.mlp(layers, output, x, stoch, partial(norm_act, backend="triton"))
