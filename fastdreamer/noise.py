"""Noise as data: uniforms and normals from Philox4x32-10, the same bits on every device.

A draw is a function of (seed, stream, rank, counter, element), so what must be saved to resume is one counter.
Nothing here waits for the device: a draw can be captured in a CUDA graph, where every replay advances the counter.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
CPU_BLOCKS = 16384
"""Blocks of four words computed at once on the CPU: the working set of 640 KB stays in the second-level cache."""


Words = tuple[Tensor, Tensor, Tensor, Tensor]


class Stream(IntEnum):
    """Who draws. Two streams of one seed never share a number."""

    INIT = 0
    PLAN = 1
    OBSERVE = 2
    IMAGINE = 3
    ACTION = 4
    ACT_STATE = 5
    ACT_POLICY = 6
    EVAL_STATE = 7
    EVAL_POLICY = 8


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """The four output words of Philox4x32-10 for four counter words and a key.

    Every word is an int64 tensor (N,) that holds a value in 0..2**32-1, and so is every output word; the key is two
    such integers. The counter tensors are overwritten. Source: Random123, philox.h.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    high = torch.empty_like(c0)
    # int64 products wrap; their low and high 32 bits are still the unsigned ones. Odd words are masked only at the end.
    for _ in range(ROUNDS):
        c0.mul_(MULTIPLIERS[0])
        c2.mul_(MULTIPLIERS[1])
        c1.bitwise_xor_(torch.bitwise_right_shift(c2, 32, out=high)).bitwise_xor_(k0).bitwise_and_(MASK)
        c3.bitwise_xor_(torch.bitwise_right_shift(c0, 32, out=high)).bitwise_xor_(k1).bitwise_and_(MASK)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1.bitwise_and_(MASK), c2, c3.bitwise_and_(MASK)


class Noise:
    """One stream of random numbers. Each call draws under one counter value and then advances it by one.

    seed: 0..2**32-1. rank: 0..65535, one per process. Element i of a call is word i % 4 of block i // 4, whose
    counter words are (block, counter low, counter high, 0) and whose key is (seed, stream * 65536 + rank), which is
    what `tl.philox` gives for them. Raises ValueError for a seed or rank out of range.
    """

    def __init__(self, seed: int, stream: Stream, rank: int = 0, device: torch.device | str = "cpu") -> None:
        if not 0 <= seed <= MASK:
            raise ValueError(f"seed must be in 0..{MASK}, got {seed}")
        if not 0 <= rank < 1 << 16:
            raise ValueError(f"rank must be in 0..65535, got {rank}")
        self.key = (seed, stream << 16 | rank)
        self.name = stream.name.lower()
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        """Calls made so far, () int64 on the device: all there is to save."""

    def bits(self, count: int) -> Tensor:
        """(count,) int64 of 32-bit words."""
        return self._draw(count, torch.int64, _words)

    def uniform(self, *shape: int) -> Tensor:
        """float32 of this shape: multiples of 2**-24 in [0, 1)."""
        return self._draw(math.prod(shape), torch.float32, _uniforms).view(shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 of this shape from the standard normal, by Box-Muller on 32-bit words; at most 6.8 in magnitude.

        Computed in float64 and rounded once, so that devices with other math libraries agree.
        """
        return self._draw(math.prod(shape), torch.float32, _normals).view(shape)

    def _draw(self, count: int, dtype: torch.dtype, write: Callable[[Words, Tensor], None]) -> Tensor:
        device, blocks = self.counter.device, -(-count // 4)
        out = torch.empty(blocks, 4, dtype=dtype, device=device)
        low, high = self.counter & MASK, self.counter >> 32
        chunk = CPU_BLOCKS if device.type == "cpu" else max(blocks, 1)
        for start in range(0, blocks, chunk):
            part = out[start : start + chunk]
            block = torch.arange(start, start + len(part), device=device)
            words = (block, low.repeat(len(part)), high.repeat(len(part)), torch.zeros_like(block))
            write(philox(words, self.key), part)
        self.counter.add_(1)
        return out.view(-1)[:count]


def _words(words: Words, out: Tensor) -> None:
    torch.stack(words, -1, out=out)


def _uniforms(words: Words, out: Tensor) -> None:
    for lane, word in enumerate(words):
        out[:, lane] = word.bitwise_right_shift_(8)  # 24 bits: exact in float32
    out.mul_(2.0**-24)


def _normals(words: Words, out: Tensor) -> None:
    for lane in (0, 2):
        # The half keeps the logarithm's argument above 0 and below 1.
        radius = words[lane].double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = words[lane + 1].double().mul_(2 * math.pi * 2.0**-32)
        out[:, lane] = angle.cos().mul_(radius)
        out[:, lane + 1] = angle.sin_().mul_(radius)
