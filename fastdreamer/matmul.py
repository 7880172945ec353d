"""Which library torch multiplies float32 matrices with on the CPU: MKL, its default, or oneDNN where that is faster.

Neither is the faster one everywhere. oneDNN is reached by allowing lower precision, which it makes use of only on chips
that have matrix units for it; so what it computes is measured too, and a result that is not exact float32 is refused.
"""

import time
from typing import Literal

import torch

Library = Literal["MKL", "oneDNN"]
PRECISIONS: dict[Library, str] = {"MKL": "highest", "oneDNN": "medium"}
ROWS, INNER, COLUMNS = 1024, 512, 64  # a layer of the heads at size1m
ROUNDS = 5
MARGIN = 0.8
"""oneDNN must take less than this share of MKL's time: near ties would give two runs of one seed other roundings."""
LARGEST_ERROR = 1e-5
"""Relative to the largest output; bfloat16 products are off by 1e-3."""


def pick_matmul() -> Library:
    """Times both on one layer, milliseconds in all, switches torch to oneDNN where it is clearly faster; names it."""
    left, right = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    exact = left.double() @ right.double()
    seconds: dict[Library, float] = {}
    for library, precision in PRECISIONS.items():
        torch.set_float32_matmul_precision(precision)
        error = ((left @ right).double() - exact).abs().max() / exact.abs().max()
        seconds[library] = _best_seconds(left, right) if error < LARGEST_ERROR else float("inf")
    chosen: Library = "oneDNN" if seconds["oneDNN"] < MARGIN * seconds["MKL"] else "MKL"
    torch.set_float32_matmul_precision(PRECISIONS[chosen])
    return chosen


def _best_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begun)
    return best
