"""`block_gru`: RMSNorm and SiLU on the hidden layer, the block-diagonal gate matmul, and the three gates.

With y = silu(rms_norm(hidden)) and, inside every block, [reset, cand, update] = y W + b:

    cand <- tanh(sigmoid(reset) cand)      update <- sigmoid(update - 1)
    deter' = update cand + (1 - update) deter
"""

from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.block_gru import reference

_dispatch.define("block_gru", reference=reference.block_gru)


def block_gru(
    hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor, backend: str | None = None
) -> Tensor:
    """The next deterministic state, (B, D).

    hidden (B, D) before its norm, scale (D,) float32, kernel (G, D/G, 3D/G), bias (3D,), deter (B, D).
    Differentiable in every tensor. Raises ValueError if the shapes do not fit. Source: SPEC 2.3.
    """
    batch, width = deter.shape
    blocks = kernel.shape[0]
    expected = ((batch, width), (width,), (blocks, width // blocks, 3 * width // blocks), (3 * width,))
    got = (tuple(hidden.shape), tuple(scale.shape), tuple(kernel.shape), tuple(bias.shape))
    if got != expected:
        raise ValueError(f"block_gru: hidden, scale, kernel, bias must be {expected} for this deter, got {got}")
    run = _dispatch.implementation("block_gru", reference.block_gru, backend)
    return run(hidden, scale, kernel, bias, deter)
