"""`philox` in Triton: one launch per call, whose counter is read on the device.

A thread makes blocks of four words. Normals are computed in float64, as in the reference: two of a block's words give
two of its numbers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 256
"""Blocks of four words per program."""
WARPS = 4
DTYPES = {"bits": torch.int64, "uniform": torch.float32, "normal": torch.float32}
TO_ANGLE = tl.constexpr(2 * math.pi * 2.0**-32)


@triton.jit
def _pair(first, second):
    """Two normals of two words, by Box-Muller; the half keeps the logarithm's argument above 0 and below 1."""
    radius = tl.sqrt(-2.0 * tl.log((first.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
    angle = second.to(tl.float64) * TO_ANGLE
    return (tl.cos(angle) * radius).to(tl.float32), (tl.sin(angle) * radius).to(tl.float32)


@triton.jit(do_not_specialize=["key_low", "key_high"])
def _philox_kernel(out, counter, key_low, key_high, count, KIND: tl.constexpr, BLOCKS: tl.constexpr):
    # out (count,); counter () int64; the key as two int32 of the same bits
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    now, none = tl.load(counter), tl.zeros((BLOCKS,), tl.uint32)
    low, high = none + now.to(tl.uint32), none + (now >> 32).to(tl.uint32)
    seed = key_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32 | key_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), low, high, none)
    if KIND == "bits":
        w0, w1, w2, w3 = w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)
    elif KIND == "uniform":  # 24 bits: exact in float32
        step: tl.constexpr = 2.0**-24
        w0, w1 = (w0 >> 8).to(tl.float32) * step, (w1 >> 8).to(tl.float32) * step
        w2, w3 = (w2 >> 8).to(tl.float32) * step, (w3 >> 8).to(tl.float32) * step
    else:
        w0, w1 = _pair(w0, w1)
        w2, w3 = _pair(w2, w3)
    at = block.to(tl.int64) * 4
    tl.store(out + at, w0, at < count)
    tl.store(out + at + 1, w1, at + 1 < count)
    tl.store(out + at + 2, w2, at + 2 < count)
    tl.store(out + at + 3, w3, at + 3 < count)


def philox(kind: str, key: list[int], counter: Tensor, count: int) -> Tensor:
    out = torch.empty(count, dtype=DTYPES[kind], device=counter.device)
    if count:
        grid = (triton.cdiv(count, 4 * BLOCKS),)
        low, high = (word - (word >> 31 << 32) for word in key)
        _philox_kernel[grid](out, counter, low, high, count, KIND=kind, BLOCKS=BLOCKS, num_warps=WARPS)
    return out
