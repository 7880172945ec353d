"""RMSNorm and SiLU in Triton: a whole row at a time, so that x is read once, forward and backward.

Backward starts from x again. With xhat = x / rms and dy = dout silu'(y):

    dx = (dy scale - xhat mean(dy scale xhat)) / rms
    dscale = sum of dy xhat over the rows: every program sums its own, and torch the programs'
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import power_of_two, silu, silu_slope
from fastdreamer_kernels.functional import NORM_EPS

TILE = 2048
"""Elements that a program holds at a time."""
PROGRAMS = 512
"""Most programs of a backward pass, each with a row of sums."""
EPS = tl.constexpr(NORM_EPS)


@triton.jit
def _normed(x, scale, row, k, N, D: tl.constexpr):
    """Where the rows lie, which of it is inside; xhat, 1 / rms, the scale, and y in the dtype of x."""
    at = row[:, None] * D + k[None, :]
    inside = (row < N)[:, None] & (k < D)[None, :]
    value = tl.load(x + at, inside, 0.0)
    wide = value.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / D + EPS)
    xhat = wide * rstd[:, None]
    factor = tl.load(scale + k, k < D, 0.0)[None, :]
    return at, inside, xhat, rstd, factor, (xhat * factor).to(value.dtype).to(tl.float32)


@triton.jit
def _norm_act_kernel(x, scale, out, N, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # x, out (N, D), scale (D,) float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at, inside, _, _, _, y = _normed(x, scale, row, tl.arange(0, BLOCK), N, D)
    tl.store(out + at, silu(y).to(out.dtype.element_ty), inside)


@triton.jit
def _norm_act_backward_kernel(
    grad, x, scale, dx, sums, N, tiles, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    # grad, x, dx (N, D), scale (D,), sums (programs, D) float32
    k = tl.arange(0, BLOCK)
    of_scale = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        at, inside, xhat, rstd, factor, y = _normed(x, scale, row, k, N, D)
        dy = tl.load(grad + at, inside, 0.0).to(tl.float32) * silu_slope(y)
        of_scale += tl.sum(dy * xhat, 0)
        weighted = dy * factor
        along = tl.sum(weighted * xhat, 1) / D
        tl.store(dx + at, ((weighted - xhat * along[:, None]) * rstd[:, None]).to(dx.dtype.element_ty), inside)
    tl.store(sums + tl.program_id(0) * D + k, of_scale, k < D)


def _tile(width: int) -> dict[str, int]:
    block = power_of_two(width, 16, 1 << 16)
    return {"D": width, "ROWS": max(1, TILE // block), "BLOCK": block, "num_warps": 8 if block > TILE else 4}


def norm_act(x: Tensor, scale: Tensor) -> Tensor:
    """(N, D) from x (N, D), float32 or bfloat16, and scale (D,) float32."""
    out, tile = torch.empty_like(x), _tile(x.shape[1])
    _norm_act_kernel[(triton.cdiv(x.shape[0], tile["ROWS"]),)](x, scale, out, x.shape[0], **tile)
    return out


def norm_act_backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of scale."""
    dx, tile = torch.empty_like(x), _tile(x.shape[1])
    tiles = triton.cdiv(x.shape[0], tile["ROWS"])
    sums = torch.empty((min(tiles, PROGRAMS), x.shape[1]), dtype=torch.float32, device=x.device)
    _norm_act_backward_kernel[(sums.shape[0],)](grad, x, scale, dx, sums, x.shape[0], tiles, **tile)
    return dx, sums.sum(0)
