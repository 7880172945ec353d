"""Windows out of the replay ring in Triton: whole rows copied as the widest integers that they divide into."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdreamer_kernels._triton import power_of_two

TILE = 1024
"""Words that one program copies."""
WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


@triton.jit
def _gather_kernel(
    ring, env, start, out, rows, length, WIDTH: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    # ring (N, rows, WIDTH) words, out (B, length, WIDTH); one program: STEPS steps and BLOCK words of one window
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)[:, None]
    word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (t < length) & (word < WIDTH)
    row = tl.load(start + b) % rows + t
    row = tl.where(row >= rows, row - rows, row)  # length <= rows: a window wraps around once at most
    source = (tl.load(env + b) * rows + row) * WIDTH + word
    target = (b * length + t) * WIDTH + word
    tl.store(out + target, tl.load(ring + source, inside), inside)


def replay_gather(ring: Tensor, env: Tensor, start: Tensor, length: int, out: Tensor) -> None:
    """out[b, t] = ring[env[b], (start[b] + t) % rows] for t < length.

    ring (N, rows, ...) and out (B, length, ...) of one dtype and contiguous, env (B,) and start (B,) int64, start >= 0.
    """
    rows, batch = ring.shape[1], env.shape[0]
    assert out.shape == (batch, length, *ring.shape[2:]) and out.dtype == ring.dtype, (out.shape, out.dtype)
    assert ring.is_contiguous() and out.is_contiguous(), "a copy of the ring would be read, or one of out written"
    assert length <= rows, (length, rows)
    env, start = env.contiguous(), start.contiguous()
    ring, out = _as_words(ring, out)
    width = ring.shape[2]
    block = power_of_two(width, 1, TILE)
    steps = power_of_two(length, 1, TILE // block)
    grid = (batch, triton.cdiv(length, steps), triton.cdiv(width, block))
    _gather_kernel[grid](ring, env, start, out, rows, length, WIDTH=width, STEPS=steps, BLOCK=block, num_warps=4)


def _as_words(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as (.., .., words), of the widest integer that divides a row and where each tensor begins."""
    flat = [x.reshape(*x.shape[:2], -1) for x in tensors]
    bytes_at = [x.storage_offset() * x.element_size() for x in flat] + [flat[0].shape[2] * flat[0].element_size()]
    word = next(dtype for size, dtype in WORDS if all(at % size == 0 for at in bytes_at))
    return tuple(x.view(word) for x in flat)
