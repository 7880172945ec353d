"""The forward kernels of the two sequence ops, and their launches. Pieces: `_chain`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._chain import (
    GATHER_ROWS,
    SMALLEST,
    Rows,
    action_product,
    active,
    active_product,
    inverse_rms,
    latent_columns,
    latent_rows,
    onehot_product,
    pick_tile,
    plain_product,
    store_layer,
    weight_tile,
)
from fastdreamer_kernels._triton import mma, power_of_two, sigmoid, tanh
from fastdreamer_kernels.policy import MAX_STD, MIN_STD
from fastdreamer_kernels.unimix_sample.cuda import mixed_probs

LOW_STD = tl.constexpr(MIN_STD)
STD_RANGE = tl.constexpr(MAX_STD - MIN_STD)


@triton.jit(do_not_specialize_on_alignment=["action"])  # which moves with the step
def enter_kernel(
    deter, deter_stride, stoch, stoch_stride, action, action_stride, keep,
    kernel0, bias0, kernel1, bias1, kernel2, bias2, out, out_stride, sums, ROWS,
    D: tl.constexpr, S: tl.constexpr, K: tl.constexpr, A: tl.constexpr, M: tl.constexpr,
    GATHER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (M + BN - 1) // BN
    part, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    live = tl.load(keep + rows, rows < ROWS, other=0) != 0
    acc = tl.zeros((BM, BN), tl.float32)
    bias = bias0
    if part == 0:
        acc = plain_product(acc, deter + at * deter_stride, live, kernel0, n, n < M, M, 1, D, BK)
    elif part == 1:
        acc = onehot_product(acc, stoch + at * stoch_stride, live, kernel1, n, S, K, M, GATHER, BK)
        bias = bias1
    else:
        acc = action_product(acc, action + at * action_stride, live, kernel2, n, A, M, BA)
        bias = bias2
    acc += tl.load(bias + n, n < M, other=0.0).to(tl.float32)[None, :]
    store_layer(acc, out + at * out_stride + part * M, sums, tl.program_id(0), rows, n, ROWS, M)


@triton.jit
def hidden_kernel(
    deter, deter_stride, keep, embeds, embeds_stride, embed_sums, scales, kernel, addend, addend_stride,
    out, out_stride, sums, ROWS,
    G: tl.constexpr, DG: tl.constexpr, M: tl.constexpr, PARTS: tl.constexpr, EMBED_TILES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (DG + BN - 1) // BN
    block, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    live = tl.load(keep + rows, rows < ROWS, other=0) != 0
    kernel += block * (DG + 3 * M) * DG
    acc = tl.zeros((BM, BN), tl.float32)
    acc = plain_product(acc, deter + at * deter_stride + block * DG, live, kernel, n, n < DG, DG, 1, DG, BK)
    for part in tl.static_range(PARTS):
        rstd = inverse_rms(embed_sums + part * EMBED_TILES * ROWS, rows, ROWS, M, EMBED_TILES)
        pre, own = embeds + at * embeds_stride + part * M, kernel + (DG + part * M) * DG
        acc = active_product(acc, pre, rows < ROWS, rstd, scales + part * M, own, n, n < DG, DG, M, BK)
    more = addend + at * addend_stride + (block * DG + n)[None, :]
    acc += tl.load(more, (rows < ROWS)[:, None] & (n < DG)[None, :], other=0.0).to(tl.float32)
    store_layer(acc, out + at * out_stride + block * DG, sums, tl.program_id(0), rows, n, ROWS, DG)


@triton.jit
def gates_kernel(
    deter, deter_stride, keep, hidden, hidden_stride, sums, scale, kernel, bias, gates, gates_stride,
    out, out_stride, ROWS,
    G: tl.constexpr, DG: tl.constexpr, HIDDEN_TILES: tl.constexpr, SAVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (DG + BN - 1) // BN
    block, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tile * BN + tl.arange(0, BN)
    live = tl.load(keep + rows, rows < ROWS, other=0) != 0
    rstd = inverse_rms(sums, rows, ROWS, G * DG, HIDDEN_TILES)
    pre = hidden + at * hidden_stride + block * DG
    scale += block * DG
    kernel += block * DG * 3 * DG
    inside = n < DG
    reset = tl.zeros((BM, BN), tl.float32)
    cand = tl.zeros((BM, BN), tl.float32)
    update = tl.zeros((BM, BN), tl.float32)
    for first in range(0, DG, BK):
        k = first + tl.arange(0, BK)
        a = active(pre, scale, k, rows < ROWS, rstd, DG)
        reset = mma(a, weight_tile(kernel, k, n, inside, 3 * DG, 1, DG), reset)
        cand = mma(a, weight_tile(kernel + DG, k, n, inside, 3 * DG, 1, DG), cand)
        update = mma(a, weight_tile(kernel + 2 * DG, k, n, inside, 3 * DG, 1, DG), update)
    bias += block * 3 * DG
    reset += tl.load(bias + n, inside, other=0.0).to(tl.float32)[None, :]
    cand += tl.load(bias + DG + n, inside, other=0.0).to(tl.float32)[None, :]
    update += tl.load(bias + 2 * DG + n, inside, other=0.0).to(tl.float32)[None, :]
    mask = (rows < ROWS)[:, None] & inside[None, :]
    if SAVE:
        to = gates + at * gates_stride + (block * 3 * DG + n)[None, :]
        tl.store(to, reset.to(gates.dtype.element_ty), mask)
        tl.store(to + DG, cand.to(gates.dtype.element_ty), mask)
        tl.store(to + 2 * DG, update.to(gates.dtype.element_ty), mask)
    column = (block * DG + n)[None, :]
    old = tl.load(deter + at * deter_stride + column, live[:, None] & inside[None, :], other=0.0).to(tl.float32)
    update = sigmoid(update - 1.0)
    new = update * tanh(sigmoid(reset) * cand) + (1.0 - update) * old
    tl.store(out + at * out_stride + column, new.to(out.dtype.element_ty), mask)


@triton.jit
def linear_kernel(
    x, x_stride, sums_in, scale, stoch, stoch_stride, kernel, addend, addend_stride, out, out_stride, sums, ROWS,
    INPUT: tl.constexpr, DEPTH: tl.constexpr, TILES_IN: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, GATHER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = rows < ROWS
    more = addend + at * addend_stride + n[None, :]
    acc = tl.load(more, inside[:, None] & (n < M)[None, :], other=0.0).to(tl.float32)
    if INPUT == "layer":
        rstd = inverse_rms(sums_in, rows, ROWS, DEPTH, TILES_IN)
        acc = active_product(acc, x + at * x_stride, inside, rstd, scale, kernel, n, n < M, M, DEPTH, BK)
    else:
        acc = plain_product(acc, x + at * x_stride, inside, kernel, n, n < M, M, 1, DEPTH, BK)
    if INPUT == "feature":
        acc = onehot_product(acc, stoch + at * stoch_stride, inside, kernel + DEPTH * M, n, S, K, M, GATHER, BK)
    store_layer(acc, out + at * out_stride, sums, tl.program_id(0), rows, n, ROWS, M)


@triton.jit(do_not_specialize_on_alignment=["uniform"])
def sample_kernel(
    pre, pre_stride, sums, scale, kernel, bias, uniform, uniform_stride,
    logits, logits_stride, index, index_stride, onehot, onehot_stride, ROWS,
    DEPTH: tl.constexpr, TILES_IN: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    UNIMIX: tl.constexpr, LOGITS: tl.constexpr, INDEX: tl.constexpr, ONEHOT: tl.constexpr,
    BM: tl.constexpr, GROUPS: tl.constexpr, CLASSES: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    inside = rows < ROWS
    n, logit = latent_columns(S, K, GROUPS, CLASSES)
    rstd = inverse_rms(sums, rows, ROWS, DEPTH, TILES_IN)
    acc = tl.zeros((BM, GROUPS * CLASSES), tl.float32)
    acc = active_product(acc, pre + at * pre_stride, inside, rstd, scale, kernel, n, logit, S * K, DEPTH, BK)
    acc += tl.load(bias + n, logit, other=0.0).to(tl.float32)[None, :]
    rounded = tl.reshape(acc.to(kernel.dtype.element_ty), (BM * GROUPS, CLASSES))
    row, s, real = latent_rows(ROWS, S, BM, GROUPS)
    c = tl.arange(0, CLASSES)[None, :]
    _, mixed, _ = mixed_probs(rounded.to(tl.float32), c < K, K, UNIMIX)
    u = tl.load(uniform + row * uniform_stride + s, real, other=0.0)
    passed = (tl.cumsum(mixed, 1) <= u[:, None]) & (c < K - 1)  # the last class takes what is left
    chosen = tl.sum(passed.to(tl.int32), 1)
    element = (s * K)[:, None] + c
    mask = real[:, None] & (c < K)
    if LOGITS:
        tl.store(logits + row[:, None] * logits_stride + element, rounded, mask)
    if INDEX:
        tl.store(index + row * index_stride + s, chosen, real)
    if ONEHOT:
        hot = (chosen[:, None] == c).to(tl.float32).to(onehot.dtype.element_ty)
        tl.store(onehot + row[:, None] * onehot_stride + element, hot, mask)


@triton.jit(do_not_specialize_on_alignment=["noise", "out"])
def normal_kernel(
    pre, pre_stride, sums, scale, mean_kernel, mean_bias, std_kernel, std_bias, noise, noise_stride,
    out, out_stride, ROWS,
    DEPTH: tl.constexpr, TILES_IN: tl.constexpr, WIDTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    at = rows[:, None].to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = rows < ROWS
    rstd = inverse_rms(sums, rows, ROWS, DEPTH, TILES_IN)
    mean = tl.zeros((BM, BN), tl.float32)
    std = tl.zeros((BM, BN), tl.float32)
    for first in range(0, DEPTH, BK):
        k = first + tl.arange(0, BK)
        a = active(pre + at * pre_stride, scale, k, inside, rstd, DEPTH)
        mean = mma(a, weight_tile(mean_kernel, k, n, n < WIDTH, WIDTH, 1, DEPTH), mean)
        std = mma(a, weight_tile(std_kernel, k, n, n < WIDTH, WIDTH, 1, DEPTH), std)
    mean += tl.load(mean_bias + n, n < WIDTH, other=0.0).to(tl.float32)[None, :]
    std += tl.load(std_bias + n, n < WIDTH, other=0.0).to(tl.float32)[None, :]
    mean = mean.to(mean_kernel.dtype.element_ty).to(tl.float32)
    std = std.to(std_kernel.dtype.element_ty).to(tl.float32)
    mask = inside[:, None] & (n < WIDTH)[None, :]
    unit = tl.load(noise + at * noise_stride + n[None, :], mask, other=0.0)
    value = tanh(mean) + (STD_RANGE * sigmoid(std + 2.0) + LOW_STD) * unit
    tl.store(out + at * out_stride + n[None, :], value, mask)


class CoreChain:
    """The three launches of one step of the core, for a fixed number of rows; `parts` embeddings are inside."""

    def __init__(self, core: list[Tensor], rows: int, parts: int) -> None:
        self.core = core
        self.rows = rows
        self.parts = parts
        self.scales = torch.cat([core[2], core[5], core[8]])
        self.blocks, inner, self.part = core[9].shape
        self.width = self.blocks * self.part
        self.units = (inner - self.part) // 3
        self.enter_tile = pick_tile(core[0].dtype, rows, self.units, self.width)
        self.hidden_tile = pick_tile(core[0].dtype, rows, self.part, self.part, self.blocks)
        self.enter_tiles = triton.cdiv(self.units, self.enter_tile.columns)
        self.hidden_tiles = self.blocks * triton.cdiv(self.part, self.hidden_tile.columns)

    def embeds(self, *lead: int) -> Tensor:
        """Room for the embeddings before their norms, (*lead, parts M)."""
        return self._empty(*lead, self.parts * self.units)

    def embed_sums(self, *lead: int) -> Tensor:
        """Room for their sums of squares, (*lead, parts, tiles, B)."""
        return self._empty(*lead, self.parts, self.enter_tiles, self.rows, dtype=torch.float32)

    def hidden(self, *lead: int) -> Tensor:
        """Room for the hidden layer before its norm, (*lead, D)."""
        return self._empty(*lead, self.width)

    def hidden_sums(self, *lead: int) -> Tensor:
        """Room for its sums of squares, (*lead, tiles, B)."""
        return self._empty(*lead, self.hidden_tiles, self.rows, dtype=torch.float32)

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.core[0].dtype, device=self.core[0].device)

    def step(
        self, deter: Tensor, stoch: Tensor, action: Tensor | None, keep: Tensor, addend: Tensor, classes: int,
        embeds: Rows, hidden: Rows, gates: Tensor | None, out: Tensor,
    ) -> None:  # fmt: skip
        """Writes the next deter (B, D) to `out`; addend: dynhid0's bias (D,), or (B, D) with the action's share.

        action (B, A): with three parts.
        """
        kernel0, bias0, _, kernel1, bias1, _, kernel2, bias2, _, kernel, _, scale, gru, gru_bias = self.core
        tile, rows = self.enter_tile, triton.cdiv(self.rows, self.enter_tile.rows)
        actions = kernel2.shape[0]
        enter_kernel[(self.parts * self.enter_tiles, rows)](
            deter, deter.stride(0), stoch, stoch.stride(0),
            deter if action is None else action, 0 if action is None else action.stride(0), keep,
            kernel0, bias0, kernel1, bias1, kernel2, bias2, embeds.pre, embeds.pre.stride(0), embeds.sums, self.rows,
            D=self.width, S=stoch.shape[1], K=classes, A=actions, M=self.units, GATHER=self.rows <= GATHER_ROWS,
            BM=tile.rows, BN=tile.columns, BK=tile.depth, BA=power_of_two(actions, SMALLEST, tile.depth),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile, rows = self.hidden_tile, triton.cdiv(self.rows, self.hidden_tile.rows)
        hidden_kernel[(self.hidden_tiles, rows)](
            deter, deter.stride(0), keep, embeds.pre, embeds.pre.stride(0), embeds.sums, self.scales, kernel,
            addend, addend.stride(0) if addend.ndim == 2 else 0, hidden.pre, hidden.pre.stride(0), hidden.sums,
            self.rows, G=self.blocks, DG=self.part, M=self.units, PARTS=self.parts, EMBED_TILES=self.enter_tiles,
            BM=tile.rows, BN=tile.columns, BK=tile.depth,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        gates_kernel[(self.hidden_tiles, rows)](
            deter, deter.stride(0), keep, hidden.pre, hidden.pre.stride(0), hidden.sums, scale, gru, gru_bias,
            out if gates is None else gates, 0 if gates is None else gates.stride(0), out, out.stride(0), self.rows,
            G=self.blocks, DG=self.part, HIDDEN_TILES=self.hidden_tiles, SAVE=gates is not None,
            BM=tile.rows, BN=tile.columns, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def layer_sums(kernel: Tensor, rows: int, *lead: int) -> Tensor:
    """Room for the sums of squares of a dense layer, (*lead, tiles, B)."""
    tile = pick_tile(kernel.dtype, rows, kernel.shape[1], kernel.shape[0])
    shape = (*lead, triton.cdiv(kernel.shape[1], tile.columns), rows)
    return torch.empty(shape, dtype=torch.float32, device=kernel.device)


def linear(
    x: Tensor | Rows, kernel: Tensor, addend: Tensor, out: Rows, scale: Tensor | None = None,
    stoch: Tensor | None = None, classes: int = 0,
) -> None:  # fmt: skip
    """out = x W + addend, before its norm. x: a state (B, D), a state beside its one-hot stoch, or a layer with its
    scale. addend: the bias (M,) or (B, M)."""
    pre, sums = (x.pre, x.sums) if isinstance(x, Rows) else (x, x)
    rows, depth = pre.shape
    units = kernel.shape[1]
    tile = pick_tile(kernel.dtype, rows, units, depth)
    linear_kernel[(triton.cdiv(units, tile.columns), triton.cdiv(rows, tile.rows))](
        pre, pre.stride(0), sums, addend if scale is None else scale, pre if stoch is None else stoch,
        0 if stoch is None else stoch.stride(0), kernel, addend, addend.stride(0) if addend.ndim == 2 else 0,
        out.pre, out.pre.stride(0), out.sums, rows,
        INPUT="layer" if isinstance(x, Rows) else "state" if stoch is None else "feature", DEPTH=depth,
        TILES_IN=sums.shape[0], S=0 if stoch is None else stoch.shape[1], K=classes, M=units,
        GATHER=rows <= GATHER_ROWS, BM=tile.rows, BN=tile.columns, BK=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def sample(
    x: Rows, scale: Tensor, kernel: Tensor, bias: Tensor, uniform: Tensor, unimix: float,
    logits: Tensor | None, index: Tensor | None, onehot: Tensor | None,
) -> None:  # fmt: skip
    """One class per group of uniform (B, S) from the logits of the layer x; writes what is not None.

    logits and onehot (B, S K), index (B, S).
    """
    rows, depth = x.pre.shape
    groups = uniform.shape[1]
    classes = bias.numel() // groups
    tile = pick_tile(kernel.dtype, rows, bias.numel(), depth)
    wide = triton.next_power_of_2(classes)
    several = max(1, tile.columns // wide)
    sample_kernel[(triton.cdiv(groups, several), triton.cdiv(rows, tile.rows))](
        x.pre, x.pre.stride(0), x.sums, scale, kernel, bias, uniform, uniform.stride(0),
        bias if logits is None else logits, 0 if logits is None else logits.stride(0),
        bias if index is None else index, 0 if index is None else index.stride(0),
        bias if onehot is None else onehot, 0 if onehot is None else onehot.stride(0), rows,
        DEPTH=depth, TILES_IN=x.sums.shape[0], S=groups, K=classes, UNIMIX=unimix,
        LOGITS=logits is not None, INDEX=index is not None, ONEHOT=onehot is not None,
        BM=tile.rows, GROUPS=several, CLASSES=wide, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def sample_normal(
    x: Rows, scale: Tensor, mean: tuple[Tensor, Tensor], std: tuple[Tensor, Tensor], noise: Tensor, out: Tensor
) -> None:
    """A bounded normal from standard normals (B, elements) to out; mean, std: kernel (M, elements) and bias."""
    rows, depth = x.pre.shape
    width = noise.shape[1]
    tile = pick_tile(x.pre.dtype, rows, width, depth)
    normal_kernel[(triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows))](
        x.pre, x.pre.stride(0), x.sums, scale, *mean, *std, noise, noise.stride(0), out, out.stride(0), rows,
        DEPTH=depth, TILES_IN=x.sums.shape[0], WIDTH=width, BM=tile.rows, BN=tile.columns, BK=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
