"""The GRU tail in Triton: RMSNorm and SiLU while loading, block-diagonal matmul, gates in the epilogue.

Source: SPEC 2.3. Backward, with g the gradient of the output and z the stored gates before their activations:

    dupdate = g (c - deter) u (1 - u)      dcand = g u (1 - c^2) r      dreset = g u (1 - c^2) z_cand r (1 - r)
    dnormed = (dgates W^T) silu'(normed)   dhidden = rstd (dnormed scale - x mean(dnormed scale x)),   x = hidden rstd

The mean runs over all D features, so the matmul kernel leaves one partial sum per column tile and a second kernel ends.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import mma, power_of_two, sigmoid, silu, silu_slope, tanh
from fastdreamer_kernels.functional import NORM_EPS

ROW_BLOCK = 1024
"""Features that the row norm takes at a time."""
END_ROWS, END_COLUMNS = 16, 128
"""The tile of the kernel that ends the backward pass."""


class _Tile(NamedTuple):
    """One program's rows, columns, and depth per step of the matmul, and how the GPU runs it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@triton.jit
def _rstd_kernel(hidden, rstd, EPS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, D, BLOCK):
        d = first + tl.arange(0, BLOCK)
        x = tl.load(hidden + row * D + d, d < D, 0.0).to(tl.float32)
        total += x * x
    tl.store(rstd + row, tl.rsqrt(tl.sum(total, 0) / D + EPS))


@triton.jit
def _gates(z, WIDTH: tl.constexpr, inside):
    """reset, the candidate before its activation, the candidate, update from stored gates at z, z + WIDTH, ..."""
    reset = sigmoid(tl.load(z, inside, 0.0).to(tl.float32))
    cand_in = tl.load(z + WIDTH, inside, 0.0).to(tl.float32)
    update = sigmoid(tl.load(z + 2 * WIDTH, inside, 0.0).to(tl.float32) - 1.0)
    return reset, cand_in, tanh(reset * cand_in), update


@triton.jit
def _forward_kernel(
    hidden, rstd, scale, kernel, bias, deter, out, gates, B,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # hidden, deter, out (B, D); kernel (D, 3 WIDTH), block by block; gates (B, 3 D); WIDTH = D / blocks
    tiles: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    block = tl.program_id(0) // tiles
    col = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    present = row < B
    row = row.to(tl.int64)
    r = tl.load(rstd + row, present, 0.0)
    dtype: tl.constexpr = kernel.dtype.element_ty
    reset = tl.zeros((ROWS, COLUMNS), tl.float32)
    cand = tl.zeros((ROWS, COLUMNS), tl.float32)
    update = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, WIDTH, DEPTH):
        k = first + tl.arange(0, DEPTH)
        d = block * WIDTH + k
        x = tl.load(hidden + row * D + d[None, :], present & (k < WIDTH)[None, :], 0.0).to(tl.float32)
        s = tl.load(scale + d, k < WIDTH, 0.0)[None, :]
        normed = (x * r * s).to(dtype)  # rounded before SiLU, as norm_act does
        act = silu(normed.to(tl.float32)).to(dtype)
        w = kernel + d[:, None] * (3 * WIDTH) + col
        inside = (k < WIDTH)[:, None] & (col < WIDTH)
        reset = mma(act, tl.load(w, inside, 0.0), reset)
        cand = mma(act, tl.load(w + WIDTH, inside, 0.0), cand)
        update = mma(act, tl.load(w + 2 * WIDTH, inside, 0.0), update)
    inside = present & (col < WIDTH)
    b = bias + block * 3 * WIDTH + col
    reset = (reset + tl.load(b, col < WIDTH, 0.0).to(tl.float32)).to(dtype)
    cand = (cand + tl.load(b + WIDTH, col < WIDTH, 0.0).to(tl.float32)).to(dtype)
    update = (update + tl.load(b + 2 * WIDTH, col < WIDTH, 0.0).to(tl.float32)).to(dtype)
    z = gates + row * (3 * D) + block * 3 * WIDTH + col
    tl.store(z, reset, inside)
    tl.store(z + WIDTH, cand, inside)
    tl.store(z + 2 * WIDTH, update, inside)
    c = tanh(sigmoid(reset.to(tl.float32)) * cand.to(tl.float32))
    u = sigmoid(update.to(tl.float32) - 1.0)
    at = row * D + block * WIDTH + col
    old = tl.load(deter + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, (u * c + (1.0 - u) * old).to(out.dtype.element_ty), inside)


@triton.jit
def _backward_kernel(
    grad, hidden, rstd, scale, kernel, deter, gates, dgates, ddeter, dnormed, partial, B,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # dnormed (B, D): the gradient of the norm's output; partial (B, column tiles): its sum with scale x
    tiles: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    col = tile * COLUMNS + tl.arange(0, COLUMNS)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    present = row < B
    row = row.to(tl.int64)
    dtype: tl.constexpr = kernel.dtype.element_ty
    dact = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, WIDTH, DEPTH):
        n = first + tl.arange(0, DEPTH)
        inside = present & (n < WIDTH)[None, :]
        at = row * D + block * WIDTH + n[None, :]
        z = row * (3 * D) + block * 3 * WIDTH + n[None, :]
        r, cand_in, c, u = _gates(gates + z, WIDTH, inside)
        g = tl.load(grad + at, inside, 0.0).to(tl.float32)
        dcand = g * u * (1.0 - c * c)
        dreset = (dcand * cand_in * r * (1.0 - r)).to(dtype)
        dupdate = (g * (c - tl.load(deter + at, inside, 0.0).to(tl.float32)) * u * (1.0 - u)).to(dtype)
        dcand = (dcand * r).to(dtype)
        first_tile = inside & (tile + n * 0 == 0)[None, :]  # every tile of a block computes these, one stores them
        tl.store(dgates + z, dreset, first_tile)
        tl.store(dgates + z + WIDTH, dcand, first_tile)
        tl.store(dgates + z + 2 * WIDTH, dupdate, first_tile)
        tl.store(ddeter + at, (g * (1.0 - u)).to(ddeter.dtype.element_ty), first_tile)
        w = kernel + (block * WIDTH + col)[:, None] * (3 * WIDTH) + n[None, :]
        whole = (col < WIDTH)[:, None] & (n < WIDTH)[None, :]
        dact = mma(dreset, tl.trans(tl.load(w, whole, 0.0)), dact)
        dact = mma(dcand, tl.trans(tl.load(w + WIDTH, whole, 0.0)), dact)
        dact = mma(dupdate, tl.trans(tl.load(w + 2 * WIDTH, whole, 0.0)), dact)
    d = block * WIDTH + col
    inside = present & (col < WIDTH)[None, :]
    x = tl.load(hidden + row * D + d[None, :], inside, 0.0).to(tl.float32) * tl.load(rstd + row, present, 0.0)
    s = tl.load(scale + d, col < WIDTH, 0.0)[None, :]
    dy = dact * silu_slope((x * s).to(dtype).to(tl.float32))
    tl.store(dnormed + row * D + d[None, :], dy.to(dnormed.dtype.element_ty), inside)
    of_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = of_row.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + at, tl.sum(dy * s * x, 1), of_row < B)


@triton.jit
def _backward_end_kernel(
    dnormed, hidden, rstd, scale, partial, dhidden, act, dscale, B,
    D: tl.constexpr, TILES: tl.constexpr, TILES_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # act (B, D): the input of the matmul, once more for the gradient of the kernel; dscale (row tiles, D) partial sums
    d = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    present = row < B
    row = row.to(tl.int64)
    tile = tl.arange(0, TILES_BLOCK)[None, :]
    mean = tl.sum(tl.load(partial + row * TILES + tile, present & (tile < TILES), 0.0), 1)[:, None] / D
    inside = present & (d < D)
    r, s = tl.load(rstd + row, present, 0.0), tl.load(scale + d, d < D, 0.0)
    x = tl.load(hidden + row * D + d, inside, 0.0).to(tl.float32) * r
    dy = tl.load(dnormed + row * D + d, inside, 0.0).to(tl.float32)
    tl.store(dhidden + row * D + d, (r * (dy * s - x * mean)).to(dhidden.dtype.element_ty), inside)
    dtype: tl.constexpr = act.dtype.element_ty
    tl.store(act + row * D + d, silu((x * s).to(dtype).to(tl.float32)).to(dtype), inside)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(dscale + tl.program_id(0) * D + column, tl.sum(dy * x, 0), column < D)


def block_gru(
    hidden: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, deter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next deter (B, D), the gates before their activations (B, 3D) and 1 / rms of the hidden layer (B,) float32.

    hidden, kernel, bias and deter share the compute dtype, scale is float32. The other two results are for backward.
    """
    hidden, scale, kernel, bias, deter = (x.contiguous() for x in (hidden, scale, kernel, bias, deter))
    (batch, width), block = deter.shape, kernel.shape[1]
    rstd = torch.empty(batch, dtype=torch.float32, device=deter.device)
    gates = torch.empty((batch, 3 * width), dtype=kernel.dtype, device=deter.device)
    out = torch.empty((batch, width), dtype=deter.dtype, device=deter.device)
    _rstd_kernel[(batch,)](hidden, rstd, EPS=NORM_EPS, D=width, BLOCK=power_of_two(width, 32, ROW_BLOCK), num_warps=4)
    tile = _forward_tile(batch, kernel)
    grid = (kernel.shape[0] * triton.cdiv(block, tile.columns), triton.cdiv(batch, tile.rows))
    _forward_kernel[grid](
        hidden, rstd, scale, kernel, bias, deter, out, gates, batch, D=width, WIDTH=block,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, gates, rstd


def block_gru_backward(
    grad: Tensor, hidden: Tensor, scale: Tensor, kernel: Tensor, deter: Tensor, gates: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dhidden (B, D), dscale (D,) float32, dkernel (G, D/G, 3D/G), dbias (3D,), ddeter (B, D).

    grad (B, D) is the gradient of the next deter; gates and rstd are what `block_gru` returned.
    """
    grad, hidden, scale, kernel, deter = (x.contiguous() for x in (grad, hidden, scale, kernel, deter))
    (batch, width), (blocks, block, _) = deter.shape, kernel.shape
    dgates, dnormed, act = torch.empty_like(gates), torch.empty_like(hidden), torch.empty_like(hidden)
    ddeter, dhidden = torch.empty_like(deter), torch.empty_like(hidden)
    tile = _backward_tile(batch, kernel)
    tiles = blocks * triton.cdiv(block, tile.columns)
    partial = torch.empty((batch, tiles), dtype=torch.float32, device=deter.device)
    _backward_kernel[(tiles, triton.cdiv(batch, tile.rows))](
        grad, hidden, rstd, scale, kernel, deter, gates, dgates, ddeter, dnormed, partial, batch, D=width, WIDTH=block,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    ends = (triton.cdiv(batch, END_ROWS), triton.cdiv(width, END_COLUMNS))
    dscale = torch.empty((ends[0], width), dtype=torch.float32, device=deter.device)
    _backward_end_kernel[ends](
        dnormed, hidden, rstd, scale, partial, dhidden, act, dscale, batch,
        D=width, TILES=tiles, TILES_BLOCK=triton.next_power_of_2(tiles), ROWS=END_ROWS, COLUMNS=END_COLUMNS,
        num_warps=4,
    )  # fmt: skip
    rows = act.view(batch, blocks, block).permute(1, 2, 0)  # (G, D/G, B)
    dkernel = torch.bmm(rows, dgates.view(batch, blocks, 3 * block).transpose(0, 1))
    dbias = dgates.sum(0, dtype=torch.float32).to(dgates.dtype)
    return dhidden, dscale.sum(0), dkernel, dbias, ddeter


def _forward_tile(batch: int, kernel: Tensor) -> _Tile:
    if kernel.dtype == torch.float32:  # multiplied without tensor cores
        return _Tile(16, _fit(kernel, 32), _fit(kernel, 32), 4, 2)
    if batch > 64:
        return _Tile(128, _fit(kernel, 64), _fit(kernel, 32), 8, 3)
    return _Tile(16, _fit(kernel, 32), _fit(kernel, 64), 4, 4)


def _backward_tile(batch: int, kernel: Tensor) -> _Tile:
    if kernel.dtype == torch.float32:
        return _Tile(16, _fit(kernel, 32), _fit(kernel, 32), 4, 2)
    if batch > 64:
        return _Tile(64, _fit(kernel, 64), _fit(kernel, 32), 8, 3)
    return _Tile(16, _fit(kernel, 32), _fit(kernel, 32), 4, 4)


def _fit(kernel: Tensor, size: int) -> int:
    """A side of a tile: no wider than the block of the matmul, but at least what a tensor core takes."""
    return power_of_two(kernel.shape[1], 16, size)
