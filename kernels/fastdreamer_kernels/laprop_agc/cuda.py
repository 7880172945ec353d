"""LaProp with adaptive gradient clipping over all tensors at once, in three Triton launches. Source: SPEC 1.9.

Every tensor is cut into chunks; one program takes one chunk. The first launch sums squares per chunk. The second, of
one program, adds up those of all gradients, which tells whether they are finite. The third adds up the sums of its
tensor, in the same order in every program, and updates. Tensors are reached by address.

Denormals are kept: with eps 1e-20 a tiny gradient whose square vanishes would become a huge update. So division and
square root are the exact ones; the fast ones flush.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels.laprop_agc.reference import BETA1, BETA2, EPS, MIN_NORM, SLOW_RATE

# The decay rates as float32, whose powers the bias corrections are made of in every implementation.
LOG_BETA1 = tl.constexpr(math.log(torch.tensor(BETA1).item()))
LOG_BETA2 = tl.constexpr(math.log(torch.tensor(BETA2).item()))
FRESH1, FRESH2 = tl.constexpr(1 - BETA1), tl.constexpr(1 - BETA2)
SLOW_FRESH, TINY, SMALLEST_NORM = tl.constexpr(SLOW_RATE), tl.constexpr(EPS), tl.constexpr(MIN_NORM)

BLOCK = 1024
"""Elements that a program holds at a time."""
LARGE = 1 << 24
"""Elements from which on chunks are long: every program of a tensor reads the sums of all of its chunks."""
SHORT_CHUNK, LONG_CHUNK = 4 * BLOCK, 16 * BLOCK


@triton.jit
def _address(addresses, which: tl.constexpr, tensor, count, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """Where tensor number `tensor` of list number `which` begins."""
    pointer = tl.load(addresses + which * count + tensor).to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _chunk(chunks, CHUNK: tl.constexpr):
    """The tensor of this program's chunk, where it begins in it, its length, and the tensor's chunks: first, count."""
    at = chunks + tl.program_id(0) * 5
    return tl.load(at), tl.load(at + 1) * CHUNK, tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit
def _load(pointer, mask):
    """0 where masked; without a mask for whole blocks, which loads four elements at once."""
    return tl.load(pointer) if mask is None else tl.load(pointer, mask, 0.0)


@triton.jit
def _squares(param, grad, at, mask):
    theta, g = _load(param + at, mask), _load(grad + at, mask)
    return theta * theta, g * g


@triton.jit
def _norms_kernel(addresses, chunks, sums, count, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    # addresses (6, tensors) int64, chunks (chunks, 5) int64, sums (4, chunks) float32: here the first two rows
    tensor, begin, length, _, _ = _chunk(chunks, CHUNK)
    param = _address(addresses, 0, tensor, count, tl.float32, ALIGNED) + begin
    grad = _address(addresses, 1, tensor, count, tl.float32, ALIGNED) + begin
    of_param = tl.zeros((BLOCK,), tl.float32)
    of_grad = tl.zeros((BLOCK,), tl.float32)
    offset = tl.arange(0, BLOCK)
    whole = length // BLOCK
    for i in range(0, whole):
        theta_squared, g_squared = _squares(param, grad, i * BLOCK + offset, None)
        of_param += theta_squared
        of_grad += g_squared
    at = whole * BLOCK + offset
    theta_squared, g_squared = _squares(param, grad, at, at < length)
    chunk = tl.program_id(0)
    tl.store(sums + chunk, tl.sum(of_param + theta_squared, 0))
    tl.store(sums + tl.num_programs(0) + chunk, tl.sum(of_grad + g_squared, 0))


@triton.jit
def _tensor_norm(sums, first, chunks, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tl.cdiv(chunks, BLOCK)):
        at = i * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(sums + first + at, at < chunks, 0.0)
    return tl.sqrt_rn(tl.sum(total, 0))


@triton.jit
def _total_kernel(sums, total, chunks, BLOCK: tl.constexpr):
    # sums (chunks,) float32, total () float32; a launch of its own, or every program of the update read all sums
    part = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tl.cdiv(chunks, BLOCK)):
        at = i * BLOCK + tl.arange(0, BLOCK)
        part += tl.load(sums + at, at < chunks, 0.0)
    tl.store(total, tl.sum(part, 0))


@triton.jit
def _correction(step, LOG_BETA: tl.constexpr):
    """1 - beta^step, the power rounded to float32."""
    return 1.0 - tl.exp(step.to(tl.float64) * LOG_BETA).to(tl.float32)


@triton.jit
def _update(
    param, grad, nu, mu, shadow, slow, at, mask, divisor, correction, factor, averages,
    CLIPS: tl.constexpr, HAS_SHADOW: tl.constexpr, HAS_SLOW: tl.constexpr,
):  # fmt: skip
    """One block of one chunk; returns the squares of its updates and of its new parameters."""
    g = _load(grad + at, mask)
    if CLIPS:
        g = tl.div_rn(g, divisor)
    n = _load(nu + at, mask)
    n += (g * g - n) * FRESH2
    tl.store(nu + at, n, mask)
    u = tl.div_rn(g, tl.sqrt_rn(tl.div_rn(n, correction)) + TINY)
    m = _load(mu + at, mask)
    m += (u - m) * FRESH1
    tl.store(mu + at, m, mask)
    update = factor * m
    theta = _load(param + at, mask) + update
    tl.store(param + at, theta, mask)
    if HAS_SHADOW:
        tl.store(shadow + at, theta.to(tl.bfloat16), mask)
    if HAS_SLOW:  # noqa: SIM102  # decided when it is compiled, the next one when it runs
        if averages:
            old = _load(slow + at, mask)
            tl.store(slow + at, old + (theta - old) * SLOW_FRESH, mask)
    return update * update, theta * theta


@triton.jit
def _update_kernel(
    addresses, chunks, sums, total, step, lr, count, AGC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_SHADOW: tl.constexpr, HAS_SLOW: tl.constexpr,
):  # fmt: skip
    tensor, begin, length, first, parts = _chunk(chunks, CHUNK)
    programs = tl.num_programs(0)
    finite = tl.load(total) < float("inf")  # not where it is NaN
    length = tl.where(finite, length, 0)  # else nothing is left to do
    divisor = 1.0
    if AGC > 0:
        limit = tl.maximum(_tensor_norm(sums, first, parts, BLOCK), SMALLEST_NORM) * AGC
        divisor = tl.maximum(tl.div_rn(_tensor_norm(sums + programs, first, parts, BLOCK), limit), 1.0)
    t = tl.load(step)
    correction = _correction(t, LOG_BETA2)
    factor = tl.div_rn(-tl.load(lr), _correction(t, LOG_BETA1))
    param = _address(addresses, 0, tensor, count, tl.float32, ALIGNED) + begin
    grad = _address(addresses, 1, tensor, count, tl.float32, ALIGNED) + begin
    nu = _address(addresses, 2, tensor, count, tl.float32, ALIGNED) + begin
    mu = _address(addresses, 3, tensor, count, tl.float32, ALIGNED) + begin
    shadow = _address(addresses, 4, tensor, count, tl.bfloat16, ALIGNED) + begin
    slow = _address(addresses, 5, tensor, count, tl.float32, ALIGNED) + begin
    averages = tl.load(addresses + 5 * count + tensor) != 0
    of_update = tl.zeros((BLOCK,), tl.float32)
    of_param = tl.zeros((BLOCK,), tl.float32)
    offset = tl.arange(0, BLOCK)
    whole = length // BLOCK
    for i in range(0, whole):
        update_squared, theta_squared = _update(
            param, grad, nu, mu, shadow, slow, i * BLOCK + offset, None, divisor, correction, factor, averages,
            AGC > 0, HAS_SHADOW, HAS_SLOW,
        )  # fmt: skip
        of_update += update_squared
        of_param += theta_squared
    at = whole * BLOCK + offset
    update_squared, theta_squared = _update(
        param, grad, nu, mu, shadow, slow, at, at < length, divisor, correction, factor, averages,
        AGC > 0, HAS_SHADOW, HAS_SLOW,
    )  # fmt: skip
    chunk = tl.program_id(0)
    before = tl.load(sums + chunk)
    tl.store(sums + 2 * programs + chunk, tl.where(finite, tl.sum(of_update + update_squared, 0), 0.0))
    tl.store(sums + 3 * programs + chunk, tl.where(finite, tl.sum(of_param + theta_squared, 0), before))


def laprop_agc(
    params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], shadow: list[Tensor],
    slow: list[Tensor], slow_index: list[int], step: Tensor, lr: Tensor, agc: float,
) -> Tensor:  # fmt: skip
    """One update in place, none if a gradient is not finite.

    Returns sums of squares (3,) float32: gradients before clipping, updates, new parameters.
    params, grads, nu, mu: float32, one of each per parameter; nu and mu laid out as their parameter. shadow: bfloat16
    copies of all parameters, or none. slow: moving averages of the parameters numbered slow_index. step: the number of
    this update, counted from 1, and lr: its learning rate, both 0-d float32. agc: the largest |gradient| / |parameter|
    per tensor, 0 for no clipping.
    """
    grads = [_laid_out_like(param, grad) for param, grad in zip(params, grads, strict=True)]
    average = dict(zip(slow_index, slow, strict=True))
    averages = [average.get(i) for i in range(len(params))]
    table: list[Sequence[Tensor | None]] = [params, grads, nu, mu, shadow or [None] * len(params), averages]
    for column in zip(*table, strict=True):
        kept = [x for x in column if x is not None]
        assert all(x.stride() == kept[0].stride() and x.shape == kept[0].shape for x in kept), [x.shape for x in kept]
    pointers = [[0 if x is None else x.data_ptr() for x in row] for row in table]
    device = params[0].device
    chunks, chunk = _chunks(tuple(param.numel() for param in params), device)
    addresses = _upload(pointers, device)
    sums, total = (torch.empty(shape, dtype=torch.float32, device=device) for shape in ((4, chunks.shape[0]), 1))
    aligned = all(pointer % 16 == 0 for row in pointers for pointer in row)
    grid, count = (chunks.shape[0],), len(params)
    _norms_kernel[grid](addresses, chunks, sums, count, CHUNK=chunk, BLOCK=BLOCK, ALIGNED=aligned, num_warps=4)
    _total_kernel[(1,)](sums[1], total, chunks.shape[0], BLOCK=BLOCK, num_warps=4)
    _update_kernel[grid](
        addresses, chunks, sums, total, step, lr, count, AGC=agc, CHUNK=chunk, BLOCK=BLOCK,
        ALIGNED=aligned, HAS_SHADOW=bool(shadow), HAS_SLOW=bool(slow), num_warps=4,
    )  # fmt: skip
    return torch.cat([total, sums[2:].sum(1)])


def _laid_out_like(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient in the memory order of its parameter: the kernels walk both as flat arrays."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


@cache
def _chunks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The chunks of tensors of these sizes, (chunks, 5) int64, and the elements of a full one.

    A row: tensor, number of the chunk in it, elements, number of the tensor's first chunk, chunks of the tensor.
    """
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), "the first call precedes any capture"
    chunk = LONG_CHUNK if sum(sizes) > LARGE else SHORT_CHUNK
    rows: list[list[int]] = []
    for tensor, size in enumerate(sizes):
        first, count = len(rows), triton.cdiv(size, chunk)
        rows += [[tensor, i, min(chunk, size - i * chunk), first, count] for i in range(count)]
    return _upload(rows, device), chunk


_spare: dict[tuple[int, int], Tensor] = {}
"""Page-locked tables by shape, for captures: none can be made while a graph is captured."""
_captured: list[Tensor] = []
"""Those that CUDA graphs copy from at every replay."""


def _upload(table: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """An int64 table on the device, without waiting for it; a capture records the copy."""
    host = torch.tensor(table, dtype=torch.int64)
    if device.type != "cuda":
        return host.to(device)
    shape = (len(table), len(table[0]))
    if torch.cuda.is_current_stream_capturing():
        assert shape in _spare, "the first call precedes any capture"
        host = _spare.pop(shape).copy_(host)
        _captured.append(host)
    else:
        if shape not in _spare:
            _spare[shape] = torch.empty(shape, dtype=torch.int64, pin_memory=True)
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
