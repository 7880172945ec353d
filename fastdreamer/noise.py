"""Noise as data: uniforms and normals from Philox4x32-10, the same bits on every device.

A draw is a function of (seed, stream, rank, counter, element), so what must be saved to resume is one counter.
Nothing here waits for the device: a draw can be captured in a CUDA graph, where every replay advances the counter.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

from fastdreamer_kernels import philox
from fastdreamer_kernels.philox import Kind

LARGEST_SEED = 2**32 - 1


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


class Noise:
    """One stream of random numbers. Each call draws under one counter value and then advances it by one.

    seed: 0..2**32-1. rank: 0..65535, one per process. The generator's key is (seed, stream * 65536 + rank). Raises
    ValueError for a seed or rank out of range.
    """

    def __init__(self, seed: int, stream: Stream, rank: int = 0, device: torch.device | str = "cpu") -> None:
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed must be in 0..{LARGEST_SEED}, got {seed}")
        if not 0 <= rank < 1 << 16:
            raise ValueError(f"rank must be in 0..65535, got {rank}")
        self.key = (seed, stream << 16 | rank)
        self.name = stream.name.lower()
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        """Calls made so far, () int64 on the device: all there is to save."""

    def bits(self, count: int) -> Tensor:
        """(count,) int64 of 32-bit words."""
        return self._draw("bits", count)

    def uniform(self, *shape: int) -> Tensor:
        """float32 of this shape: multiples of 2**-24 in [0, 1)."""
        return self._draw("uniform", *shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 of this shape from the standard normal; at most 6.8 in magnitude."""
        return self._draw("normal", *shape)

    def _draw(self, kind: Kind, *shape: int) -> Tensor:
        out = philox(kind, self.key, self.counter, math.prod(shape))
        self.counter.add_(1)
        return out.view(shape)
