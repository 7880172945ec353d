"""Philox4x32-10 in Triton: one launch per call. It reads the counter itself: a CUDA graph that holds it draws anew."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Numbers that one program makes."""
DTYPES = {"bits": torch.int64, "uniform": torch.float32, "normal": torch.float32}
WORD = tl.constexpr(2.0**-32)
STEP = tl.constexpr(2.0**-24)
ANGLE = tl.constexpr(2 * math.pi * 2.0**-32)


@triton.jit
def _box_muller(first, second):
    """Two normals of two words, computed in float64 and rounded once."""
    # The half keeps the logarithm's argument above 0 and below 1.
    radius = tl.sqrt(-2.0 * tl.log((first.to(tl.float64) + 0.5) * WORD))
    angle = second.to(tl.float64) * ANGLE
    return (tl.cos(angle) * radius).to(tl.float32), (tl.sin(angle) * radius).to(tl.float32)


@triton.jit(do_not_specialize=["k0", "k1"])
def _philox_kernel(out, counter, k0, k1, count, KIND: tl.constexpr, TILE: tl.constexpr):
    # out (count,), counter () int64, k0 and k1 the key's words as int32; one program: TILE / 4 blocks of four words
    program = tl.program_id(0)
    now = tl.load(counter)
    low, high = now.to(tl.uint32), (now >> 32).to(tl.uint32)
    block = (program * (TILE // 4) + tl.arange(0, TILE // 4)).to(tl.uint32)
    k0, k1 = k0.to(tl.uint32, bitcast=True), k1.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox_impl(block, low, high, low * 0, k0, k1)
    if KIND == "normal":
        w0, w1 = _box_muller(w0, w1)
        w2, w3 = _box_muller(w2, w3)
    numbers = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    if KIND == "bits":
        numbers = numbers.to(tl.int64)
    elif KIND == "uniform":
        numbers = (numbers >> 8).to(tl.float32) * STEP  # 24 bits: exact in float32
    at = program.to(tl.int64) * TILE + tl.arange(0, TILE)  # int64: count may pass 2**31
    tl.store(out + at, numbers, at < count)


def philox(kind: str, key: list[int], counter: Tensor, count: int) -> Tensor:
    """(count,) numbers, see the op. counter: () int64 on the device of the result; nothing waits for it."""
    out = torch.empty(count, dtype=DTYPES[kind], device=counter.device)
    # As int32 of the same bits: Triton types an integer by its size, and one kernel is to serve every key.
    k0, k1 = (word - ((word >> 31) << 32) for word in key)
    if count:
        _philox_kernel[(triton.cdiv(count, TILE),)](out, counter, k0, k1, count, KIND=kind, TILE=TILE, num_warps=4)
    return out
