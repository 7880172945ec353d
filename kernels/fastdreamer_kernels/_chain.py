"""One matmul, one kernel: the Triton pieces that the two sequence ops are chained from.

A layer is stored before its norm, together with the sums of squares of every column tile; whoever reads it divides,
scales and applies SiLU while loading. So a norm costs no launch of its own, and a sampler or a gate lives in the
epilogue of the matmul that feeds it. Rows are (B, ...) views with a stride; `keep` is 0 on rows that were reset.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import mma, power_of_two, silu
from fastdreamer_kernels.functional import NORM_EPS

EPS = tl.constexpr(NORM_EPS)


class Tile(NamedTuple):
    """Block shape of one matmul kernel, and its warps and pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILES = (
    Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(64, 32, 64, 4, 3),
    Tile(32, 32, 64, 4, 4), Tile(16, 32, 64, 4, 4), Tile(16, 16, 128, 4, 4),
)  # fmt: skip
EXACT = (Tile(16, 32, 32, 4, 2),)  # of float32, which is multiplied without tensor cores
ENOUGH = 128  # programs: about one per multiprocessor of an H100
GATHER_ROWS = 32  # up to here a one-hot input is a sum of kernel rows, beyond it a matmul
SMALLEST = 16  # the least that tl.dot takes in every dimension


def pick_tile(dtype: torch.dtype, rows: int, width: int, depth: int, blocks: int = 1) -> Tile:
    """The largest tile of the table that still gives every multiprocessor a program; width and depth of one block."""
    tallest = power_of_two(rows, SMALLEST, TILES[0].rows)
    for tile in EXACT if dtype == torch.float32 else [tile for tile in TILES if tile.rows <= tallest]:
        columns = power_of_two(width, SMALLEST, tile.columns)
        tile = tile._replace(columns=columns, depth=power_of_two(depth, SMALLEST, tile.depth))
        if blocks * triton.cdiv(width, tile.columns) * triton.cdiv(rows, tile.rows) >= ENOUGH:
            break
    return tile


class Rows(NamedTuple):
    """A layer before its norm (B, width), and its sums of squares by column tile (tiles, B)."""

    pre: Tensor
    sums: Tensor


@triton.jit
def row_sum(parts, rows, live, ROWS, TILES: tl.constexpr):  # parts (TILES, ROWS) float32; 0 where not live
    CHUNK: tl.constexpr = min(32, triton.next_power_of_2(TILES))
    total = tl.zeros(rows.shape, tl.float32)
    for first in range(0, TILES, CHUNK):
        tile = first + tl.arange(0, CHUNK)
        mask = live[:, None] & (tile < TILES)[None, :]
        total += tl.sum(tl.load(parts + tile[None, :] * ROWS + rows[:, None], mask, other=0.0), 1)
    return total


@triton.jit
def inverse_rms(sums, rows, ROWS, WIDTH: tl.constexpr, TILES: tl.constexpr):
    return 1.0 / tl.sqrt(row_sum(sums, rows, rows < ROWS, ROWS, TILES) / WIDTH + EPS)


@triton.jit
def weight_tile(weight, k, n, real, DOWN: tl.constexpr, ALONG: tl.constexpr, DEPTH: tl.constexpr):
    mask = (k < DEPTH)[:, None] & real[None, :]  # real: which columns n exist
    return tl.load(weight + k[:, None] * DOWN + n[None, :] * ALONG, mask, other=0.0)


@triton.jit
def active(pre, scale, k, live, rstd, DEPTH: tl.constexpr):  # pre: pointers to the rows (BM, 1)
    x = tl.load(pre + k[None, :], live[:, None] & (k < DEPTH)[None, :], other=0.0)
    y = x.to(tl.float32) * rstd[:, None] * tl.load(scale + k, k < DEPTH, other=0.0)[None, :]
    return silu(y.to(x.dtype).to(tl.float32)).to(x.dtype)  # the norm's output is rounded before SiLU


@triton.jit
def plain_product(
    acc, x, live, weight, n, real,
    DOWN: tl.constexpr, ALONG: tl.constexpr, DEPTH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    for first in range(0, DEPTH, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(x + k[None, :], live[:, None] & (k < DEPTH)[None, :], other=0.0)
        acc = mma(a, weight_tile(weight, k, n, real, DOWN, ALONG, DEPTH), acc)
    return acc


@triton.jit
def active_product(
    acc, pre, live, rstd, scale, weight, n, real,
    DOWN: tl.constexpr, DEPTH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    for first in range(0, DEPTH, BK):
        k = first + tl.arange(0, BK)
        a = active(pre, scale, k, live, rstd, DEPTH)
        acc = mma(a, weight_tile(weight, k, n, real, DOWN, 1, DEPTH), acc)
    return acc


@triton.jit
def onehot_product(
    acc, stoch, live, weight, n,
    S: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, GATHER: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    if GATHER:
        CHUNK: tl.constexpr = min(8, triton.next_power_of_2(S))
        for first in range(0, S, CHUNK):
            s = first + tl.arange(0, CHUNK)
            mask = live[:, None] & (s < S)[None, :]
            at = s[None, :] * K + tl.load(stoch + s[None, :], mask, other=0)
            picked = weight + at[:, :, None] * WIDTH + n[None, None, :]
            acc += tl.sum(tl.load(picked, mask[:, :, None] & (n < WIDTH)[None, None, :], other=0.0).to(tl.float32), 1)
    else:
        for first in range(0, S * K, BK):
            k = first + tl.arange(0, BK)
            mask = live[:, None] & (k < S * K)[None, :]
            hot = tl.load(stoch + (k // K)[None, :], mask, other=-1) == (k % K)[None, :]
            a = hot.to(tl.float32).to(weight.dtype.element_ty)
            acc = mma(a, weight_tile(weight, k, n, n < WIDTH, WIDTH, 1, S * K), acc)
    return acc


@triton.jit
def action_product(
    acc, action, live, weight, n, A: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    for first in range(0, A, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(action + k[None, :], live[:, None] & (k < A)[None, :], other=0.0)
        a = a.to(weight.dtype.element_ty).to(tl.float32)
        a = (a / tl.maximum(tl.abs(a), 1.0)).to(weight.dtype.element_ty)
        acc = mma(a, weight_tile(weight, k, n, n < WIDTH, WIDTH, 1, A), acc)
    return acc


@triton.jit
def store_layer(acc, out, sums, tile, rows, n, ROWS, WIDTH: tl.constexpr):  # columns beyond WIDTH hold zeros
    value = acc.to(out.dtype.element_ty)
    tl.store(out + n[None, :], value, (rows < ROWS)[:, None] & (n < WIDTH)[None, :])
    value = value.to(tl.float32)
    tl.store(sums + tile * ROWS + rows, tl.sum(value * value, 1), rows < ROWS)


@triton.jit
def latent_columns(S: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, CLASSES: tl.constexpr):
    """Of GROUPS groups padded to CLASSES classes each: the column of every logit, and whether there is one."""
    flat = tl.arange(0, GROUPS * CLASSES)
    group, of_group = tl.program_id(0) * GROUPS + flat // CLASSES, flat % CLASSES
    return group * K + of_group, (group < S) & (of_group < K)


@triton.jit
def latent_rows(ROWS, S: tl.constexpr, BM: tl.constexpr, GROUPS: tl.constexpr):
    """The same tile as (BM * GROUPS, CLASSES): row and group of each line, and whether there is such a group."""
    line = tl.arange(0, BM * GROUPS)
    row, group = tl.program_id(1) * BM + line // GROUPS, tl.program_id(0) * GROUPS + line % GROUPS
    return row.to(tl.int64), group, (row < ROWS) & (group < S)
