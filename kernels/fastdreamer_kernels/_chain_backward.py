"""The backward kernels of `observe_sequence`, and their launches. Pieces: `_chain`.

Between two kernels travels the gradient of a norm's scaled output, together with its dot products with the normed
values by column tile: with both, whoever reads it forms the gradient before the norm while loading.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._chain import (
    EPS,
    Rows,
    inverse_rms,
    latent_columns,
    latent_rows,
    pick_tile,
    plain_product,
    row_sum,
    weight_tile,
)
from fastdreamer_kernels._triton import mma, sigmoid, silu, silu_slope, tanh
from fastdreamer_kernels.unimix_sample.cuda import mixed_probs


class Slope(NamedTuple):
    """A layer, its scale, the gradient of its scaled output (B, width) and the dot products (tiles, B)."""

    layer: Rows
    scale: Tensor
    grad: Tensor
    dots: Tensor


@triton.jit
def before_norm(grad, pre, scale, k, live, rstd, mean, DEPTH: tl.constexpr):  # grad, pre: pointers to rows (BM, 1)
    mask = live[:, None] & (k < DEPTH)[None, :]
    g = tl.load(grad + k[None, :], mask, other=0.0)
    x = tl.load(pre + k[None, :], mask, other=0.0).to(tl.float32) * rstd[:, None]
    scaled = g.to(tl.float32) * tl.load(scale + k, k < DEPTH, other=0.0)[None, :]
    return (rstd[:, None] * (scaled - x * mean[:, None])).to(g.dtype)


@triton.jit
def normed_product(
    acc, grad, pre, scale, live, rstd, mean, weight, n, real,
    ALONG: tl.constexpr, DEPTH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    for first in range(0, DEPTH, BK):
        k = first + tl.arange(0, BK)
        d = before_norm(grad, pre, scale, k, live, rstd, mean, DEPTH)
        acc = mma(d, weight_tile(weight, k, n, real, 1, ALONG, DEPTH), acc)
    return acc


@triton.jit
def store_slope(
    acc, pre, rstd, scale, out, dots, tile, rows, n, ROWS, WIDTH: tl.constexpr
):  # acc: the gradient of the activation; columns beyond WIDTH hold zeros
    mask = (rows < ROWS)[:, None] & (n < WIDTH)[None, :]
    x = tl.load(pre + n[None, :], mask, other=0.0)
    normed = x.to(tl.float32) * rstd[:, None]
    factor = tl.load(scale + n, n < WIDTH, other=0.0)[None, :]
    value = (acc * silu_slope((normed * factor).to(x.dtype).to(tl.float32))).to(out.dtype.element_ty)
    tl.store(out + n[None, :], value, mask)
    tl.store(dots + tile * ROWS + rows, tl.sum(value.to(tl.float32) * factor * normed, 1), rows < ROWS)


@triton.jit
def sample_grad_kernel(
    grad, grad_stride, dots, pre, pre_stride, sums, scale, kernel, keep_next,
    logits, logits_stride, grad_onehot, grad_onehot_stride, grad_logits, grad_logits_stride, out, out_stride, ROWS,
    UNIMIX: tl.constexpr, M: tl.constexpr, TILES_IN: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, GROUPS: tl.constexpr, CLASSES: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n, logit = latent_columns(S, K, GROUPS, CLASSES)
    live = tl.load(keep_next + rows, rows < ROWS, other=0) != 0
    rstd = inverse_rms(sums, rows, ROWS, M, TILES_IN)
    mean = row_sum(dots, rows, live, ROWS, TILES_IN) / M
    acc = tl.zeros((BM, GROUPS * CLASSES), tl.float32)
    acc = normed_product(
        acc, grad + at * grad_stride, pre + at * pre_stride, scale, live, rstd, mean, kernel, n, logit, M, M, BK
    )
    row, s, real = latent_rows(ROWS, S, BM, GROUPS)
    c = tl.arange(0, CLASSES)[None, :]
    element = (s * K)[:, None] + c
    mask = real[:, None] & (c < K)
    g = tl.reshape(acc, (BM * GROUPS, CLASSES))
    g += tl.load(grad_onehot + row[:, None] * grad_onehot_stride + element, mask, other=0.0).to(tl.float32)
    x = tl.load(logits + row[:, None] * logits_stride + element, mask, other=0.0).to(tl.float32)
    probs, _, _ = mixed_probs(x, c < K, K, UNIMIX)
    d = (1.0 - UNIMIX) * probs * (g - tl.sum(probs * g, 1)[:, None])
    d += tl.load(grad_logits + row[:, None] * grad_logits_stride + element, mask, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * out_stride + element, d.to(out.dtype.element_ty), mask)


@triton.jit
def layer_grad_kernel(
    grad, grad_stride, dots_in, above, above_stride, sums_above, scale_above, kernel,
    pre, pre_stride, sums, scale, out, out_stride, dots, ROWS,
    NORMED: tl.constexpr, BLOCKS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    TILES_ABOVE: tl.constexpr, TILES_IN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (WIDTH + BN - 1) // BN
    block, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    inside = rows < ROWS
    acc = tl.zeros((BM, BN), tl.float32)
    d, own = grad + at * grad_stride + block * DEPTH, kernel + block * WIDTH * DEPTH
    if NORMED:
        rstd = inverse_rms(sums_above, rows, ROWS, DEPTH, TILES_ABOVE)
        mean = row_sum(dots_in, rows, inside, ROWS, TILES_ABOVE) / DEPTH
        above_rows = above + at * above_stride
        acc = normed_product(acc, d, above_rows, scale_above, inside, rstd, mean, own, n, n < WIDTH, DEPTH, DEPTH, BK)
    else:
        acc = plain_product(acc, d, inside, own, n, n < WIDTH, 1, DEPTH, DEPTH, BK)
    rstd = inverse_rms(sums, rows, ROWS, BLOCKS * WIDTH, TILES_IN)
    store_slope(
        acc, pre + at * pre_stride + block * WIDTH, rstd, scale + block * WIDTH, out + at * out_stride + block * WIDTH,
        dots, tl.program_id(0), rows, n, ROWS, WIDTH,
    )  # fmt: skip


@triton.jit
def deter_grad_kernel(
    post_grad, post_grad_stride, post_dots, post, post_stride, post_sums, post_scale, post_kernel,
    enter_grad, enter_grad_stride, enter_dots, enter, enter_stride, enter_sums, enter_scale, enter_kernel,
    hidden_grad, hidden_grad_stride, hidden_dots, hidden, hidden_stride, hidden_sums, hidden_scale, hidden_kernel,
    keep_next, grad_deter, grad_deter_stride, deter, deter_stride, keep, gates, gates_stride,
    grad_gates, grad_gates_stride, carried, ROWS,
    G: tl.constexpr, DG: tl.constexpr, M: tl.constexpr, POST_TILES: tl.constexpr, ENTER_TILES: tl.constexpr,
    HIDDEN_TILES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (DG + BN - 1) // BN
    block, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    live_next = tl.load(keep_next + rows, rows < ROWS, other=0) != 0
    acc = tl.zeros((BM, BN), tl.float32)
    rstd = inverse_rms(post_sums, rows, ROWS, M, POST_TILES)
    mean = row_sum(post_dots, rows, rows < ROWS, ROWS, POST_TILES) / M
    acc = normed_product(
        acc, post_grad + at * post_grad_stride, post + at * post_stride, post_scale, rows < ROWS, rstd, mean,
        post_kernel + block * DG * M, n, n < DG, M, M, BK,
    )  # fmt: skip
    # the next step's share, nothing where it began an episode
    rstd = inverse_rms(enter_sums, rows, ROWS, M, ENTER_TILES)
    mean = row_sum(enter_dots, rows, live_next, ROWS, ENTER_TILES) / M
    acc = normed_product(
        acc, enter_grad + at * enter_grad_stride, enter + at * enter_stride, enter_scale, live_next, rstd, mean,
        enter_kernel + block * DG * M, n, n < DG, M, M, BK,
    )  # fmt: skip
    rstd = inverse_rms(hidden_sums, rows, ROWS, G * DG, HIDDEN_TILES)
    mean = row_sum(hidden_dots, rows, live_next, ROWS, HIDDEN_TILES) / (G * DG)
    acc = normed_product(
        acc, hidden_grad + at * hidden_grad_stride + block * DG, hidden + at * hidden_stride + block * DG,
        hidden_scale + block * DG, live_next, rstd, mean, hidden_kernel + block * (DG + 3 * M) * DG, n, n < DG,
        DG, DG, BK,
    )  # fmt: skip
    inside = (rows < ROWS)[:, None] & (n < DG)[None, :]
    column = (block * DG + n)[None, :]
    kept = carried + at * (G * DG) + column
    acc += tl.load(kept, inside & live_next[:, None], other=0.0)
    acc += tl.load(grad_deter + at * grad_deter_stride + column, inside, other=0.0).to(tl.float32)
    gate = gates + at * gates_stride + (block * 3 * DG + n)[None, :]
    reset = sigmoid(tl.load(gate, inside, other=0.0).to(tl.float32))
    gated = tl.load(gate + DG, inside, other=0.0).to(tl.float32)
    cand = tanh(reset * gated)
    update = sigmoid(tl.load(gate + 2 * DG, inside, other=0.0).to(tl.float32) - 1.0)
    live = tl.load(keep + rows, rows < ROWS, other=0) != 0
    old = tl.load(deter + at * deter_stride + column, inside & live[:, None], other=0.0).to(tl.float32)
    slope = acc * update * (1.0 - cand * cand)
    to = grad_gates + at * grad_gates_stride + (block * 3 * DG + n)[None, :]
    tl.store(to, (slope * gated * reset * (1.0 - reset)).to(grad_gates.dtype.element_ty), inside)
    tl.store(to + DG, (slope * reset).to(grad_gates.dtype.element_ty), inside)
    push = acc * (cand - old) * update * (1.0 - update)
    tl.store(to + 2 * DG, push.to(grad_gates.dtype.element_ty), inside)
    tl.store(kept, acc * (1.0 - update), inside)


@triton.jit
def embed_grad_kernel(
    grad, grad_stride, dots_in, hidden, hidden_stride, hidden_sums, hidden_scale, kernel,
    pre, pre_stride, sums, scales, out, out_stride, dots, ROWS,
    G: tl.constexpr, DG: tl.constexpr, M: tl.constexpr, HIDDEN_TILES: tl.constexpr, TILES_IN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (M + BN - 1) // BN
    CHUNKS: tl.constexpr = (DG + BK - 1) // BK
    part, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    inside = rows < ROWS
    rstd = inverse_rms(hidden_sums, rows, ROWS, G * DG, HIDDEN_TILES)
    mean = row_sum(dots_in, rows, inside, ROWS, HIDDEN_TILES) / (G * DG)
    acc = tl.zeros((BM, BN), tl.float32)
    for i in range(G * CHUNKS):
        block = i // CHUNKS
        k = (i % CHUNKS) * BK + tl.arange(0, BK)
        grad_rows, hidden_rows = grad + at * grad_stride + block * DG, hidden + at * hidden_stride + block * DG
        d = before_norm(grad_rows, hidden_rows, hidden_scale + block * DG, k, inside, rstd, mean, DG)
        own = kernel + (block * (DG + 3 * M) + DG + part * M) * DG
        acc = mma(d, weight_tile(own, k, n, n < M, 1, DG, DG), acc)
    rstd = inverse_rms(sums + part * TILES_IN * ROWS, rows, ROWS, M, TILES_IN)
    store_slope(
        acc, pre + at * pre_stride + part * M, rstd, scales + part * M, out + at * out_stride + part * M,
        dots, tl.program_id(0), rows, n, ROWS, M,
    )  # fmt: skip


@triton.jit
def norm_grad_kernel(
    grad, grad_stride, pre, pre_stride, scale, act, out, scale_parts, ROWS,
    W: tl.constexpr, SLOPE: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    squares = tl.zeros((BM,), tl.float32)
    for first in range(0, W, BW):
        n = first + tl.arange(0, BW)
        mask = (rows < ROWS)[:, None] & (n < W)[None, :]
        x = tl.load(pre + at * pre_stride + n[None, :], mask, other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 1)
    rstd = 1.0 / tl.sqrt(squares / W + EPS)
    dot = tl.zeros((BM,), tl.float32)
    for write in tl.static_range(2):
        for first in range(0, W, BW):
            n = first + tl.arange(0, BW)
            mask = (rows < ROWS)[:, None] & (n < W)[None, :]
            x = tl.load(pre + at * pre_stride + n[None, :], mask, other=0.0)
            normed = x.to(tl.float32) * rstd[:, None]
            factor = tl.load(scale + n, n < W, other=0.0)[None, :]
            y = (normed * factor).to(x.dtype).to(tl.float32)
            g = tl.load(grad + at * grad_stride + n[None, :], mask, other=0.0).to(tl.float32)
            if SLOPE:
                g *= silu_slope(y)
            if write:
                to = at * W + n[None, :]
                d = rstd[:, None] * (g * factor - normed * (dot / W)[:, None])
                tl.store(out + to, d.to(out.dtype.element_ty), mask)
                tl.store(act + to, silu(y).to(act.dtype.element_ty), mask)
                tl.store(scale_parts + tl.program_id(0) * W + n, tl.sum(g * normed, 0), n < W)
            else:
                dot += tl.sum(g * factor * normed, 1)


def sample_grad(
    enter: Slope, kernel: Tensor, keep_next: Tensor, logits: Tensor, grad_onehot: Tensor, grad_logits: Tensor,
    out: Tensor, unimix: float,
) -> None:  # fmt: skip
    """The gradient of the logits (B, S K) from that of the one-hot: its own, and the next step's through dynin1."""
    rows, groups, classes = logits.shape
    units = kernel.shape[1]
    tile = pick_tile(kernel.dtype, rows, groups * classes, units)
    wide = triton.next_power_of_2(classes)
    several = max(1, tile.columns // wide)
    sample_grad_kernel[(triton.cdiv(groups, several), triton.cdiv(rows, tile.rows))](
        *_arguments(enter), kernel, keep_next, logits, logits.stride(0), grad_onehot, grad_onehot.stride(0),
        grad_logits, grad_logits.stride(0), out, out.stride(0), rows,
        UNIMIX=unimix, M=units, TILES_IN=enter.layer.sums.shape[0], S=groups, K=classes,
        BM=tile.rows, GROUPS=several, CLASSES=wide, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def layer_grad(grad: Tensor | Slope, kernel: Tensor, below: Slope) -> None:
    """Through kernel (in, out) or (G, in / G, out / G) and the SiLU of the layer below it: writes below.grad, .dots.

    grad: (B, out) of what the kernel made, or the slope of the layer above.
    """
    blocks, width, depth = kernel.shape if kernel.ndim == 3 else (1, *kernel.shape)
    rows = below.grad.shape[0]
    tile = pick_tile(kernel.dtype, rows, width, depth, blocks)
    above = _arguments(grad) if isinstance(grad, Slope) else (grad, grad.stride(0), grad, grad, 0, grad, grad)
    layer_grad_kernel[(blocks * triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows))](
        *above, kernel,
        below.layer.pre, below.layer.pre.stride(0), below.layer.sums, below.scale,
        below.grad, below.grad.stride(0), below.dots, rows,
        NORMED=isinstance(grad, Slope), BLOCKS=blocks, DEPTH=depth, WIDTH=width,
        TILES_ABOVE=grad.dots.shape[0] if isinstance(grad, Slope) else 1, TILES_IN=below.layer.sums.shape[0],
        BM=tile.rows, BN=tile.columns, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def deter_grad(
    post: Slope, post_kernel: Tensor, enter: Slope, enter_kernel: Tensor, hidden: Slope, hidden_kernel: Tensor,
    keep_next: Tensor, grad_deter: Tensor, deter: Tensor, keep: Tensor, gates: Tensor, grad_gates: Tensor,
    carried: Tensor,
) -> None:  # fmt: skip
    """The gradient of a deter (B, D), then through its gates: writes grad_gates (B, 3 D) and `carried`.

    post: of this step; enter (dynin0), hidden and keep_next: of the next one. carried (B, D) float32 holds what the
    next step's update gate let through to this deter, and then what this step's lets through to the one before.
    """
    blocks, inner, part = hidden_kernel.shape
    rows, units = keep.shape[0], (inner - part) // 3
    tile = pick_tile(hidden_kernel.dtype, rows, part, part, blocks)
    deter_grad_kernel[(blocks * triton.cdiv(part, tile.columns), triton.cdiv(rows, tile.rows))](
        *_arguments(post), post_kernel, *_arguments(enter), enter_kernel, *_arguments(hidden), hidden_kernel,
        keep_next, grad_deter, grad_deter.stride(0), deter, deter.stride(0), keep, gates, gates.stride(0),
        grad_gates, grad_gates.stride(0), carried, rows,
        G=blocks, DG=part, M=units, POST_TILES=post.dots.shape[0], ENTER_TILES=enter.dots.shape[0],
        HIDDEN_TILES=hidden.dots.shape[0], BM=tile.rows, BN=tile.columns, BK=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def embed_grad(hidden: Slope, kernel: Tensor, embeds: Slope) -> None:
    """Through dynhid0 to its embeddings (B, parts M): writes embeds.grad and embeds.dots (parts, tiles, B)."""
    blocks, inner, part = kernel.shape
    rows, units = embeds.grad.shape[0], (inner - part) // 3
    parts, tiles = embeds.dots.shape[:2]
    tile = pick_tile(kernel.dtype, rows, units, part)
    embed_grad_kernel[(parts * tiles, triton.cdiv(rows, tile.rows))](
        *_arguments(hidden), kernel, embeds.layer.pre, embeds.layer.pre.stride(0), embeds.layer.sums, embeds.scale,
        embeds.grad, embeds.grad.stride(0), embeds.dots, rows,
        G=blocks, DG=part, M=units, HIDDEN_TILES=hidden.dots.shape[0], TILES_IN=tiles,
        BM=tile.rows, BN=tile.columns, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _arguments(slope: Slope) -> tuple[Tensor | int, ...]:
    pre, sums = slope.layer
    return slope.grad, slope.grad.stride(0), slope.dots, pre, pre.stride(0), sums, slope.scale


def norm_grad(pre: Tensor, scale: Tensor, grad: Tensor, through_silu: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Over all rows (R, W) at once: the activation, the gradient before the norm, and that of the scale (W,).

    grad: of the norm's scaled output, or of the activation if through_silu.
    """
    rows, width = pre.shape
    columns = min(triton.next_power_of_2(width), 512)
    tall = 4  # rows a program: 1,024 rows give 256 programs, each with its own partial sum of the scale's gradient
    programs = triton.cdiv(rows, tall)
    act = torch.empty((rows, width), dtype=pre.dtype, device=pre.device)
    out = torch.empty_like(act)
    parts = torch.empty((programs, width), dtype=torch.float32, device=pre.device)
    norm_grad_kernel[(programs,)](
        grad, grad.stride(0), pre, pre.stride(0), scale, act, out, parts, rows,
        W=width, SLOPE=through_silu, BM=tall, BW=columns, num_warps=4, num_stages=2,
    )  # fmt: skip
    return act, out, parts.sum(0)
