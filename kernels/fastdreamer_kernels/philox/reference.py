"""Philox4x32-10 in plain PyTorch, and uniforms and normals from its words."""

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
CPU_BLOCKS = 16384
"""Blocks of four words computed at once on the CPU: the working set of 640 KB stays in the second-level cache."""

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(kind: str, key: tuple[int, int], counter: Tensor, count: int) -> Tensor:
    device, blocks = counter.device, -(-count // 4)
    out = torch.empty(blocks, 4, dtype=torch.int64 if kind == "bits" else torch.float32, device=device)
    write = {"bits": _words, "uniform": _uniforms, "normal": _normals}[kind]
    low, high = counter & MASK, counter >> 32
    chunk = CPU_BLOCKS if device.type == "cpu" else max(blocks, 1)
    for start in range(0, blocks, chunk):
        part = out[start : start + chunk]
        block = torch.arange(start, start + len(part), device=device)
        words = (block, low.repeat(len(part)), high.repeat(len(part)), torch.zeros_like(block))
        write(philox_words(words, key), part)
    return out.view(-1)[:count]


def philox_words(counter: Words, key: tuple[int, int]) -> Words:
    """The four output words for four counter words and a key.

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
