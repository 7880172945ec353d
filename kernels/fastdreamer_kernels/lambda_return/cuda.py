"""The lambda-return scan in Triton: the return lives in a register, one row per lane. Source: SPEC 1.6 and 1.7."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # one warp: few rows, so spread them over many SMs


@triton.jit
def _lambda_return_kernel(reward, cont, value, lam, out, B, T: tl.constexpr, ROWS: tl.constexpr):
    # inputs (B, T) float32, out (B, T - 1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < B
    ret = tl.load(value + row * T + T - 1, inside)
    for i in range(1, T):
        at = row * T + T - i  # the return of t looks at step t + 1
        r, c = tl.load(reward + at, inside), tl.load(cont + at, inside)
        v, mix = tl.load(value + at, inside), tl.load(lam + at, inside)
        ret = r + c * (1.0 - mix) * v + c * mix * ret
        tl.store(out + row * (T - 1) + T - 1 - i, ret, inside)


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor) -> Tensor:
    """(B, T - 1) float32 without gradient; every input is (B, T) float32."""
    reward, cont, value, lam = (x.contiguous() for x in (reward, cont, value, lam))
    batch, steps = reward.shape
    out = torch.empty((batch, steps - 1), dtype=torch.float32, device=reward.device)
    grid = (triton.cdiv(batch, ROWS),)
    _lambda_return_kernel[grid](reward, cont, value, lam, out, batch, T=steps, ROWS=ROWS, num_warps=1)
    return out
