"""How torch is set up for a CPU: which library multiplies matrices, and what becomes of freed memory."""

import ctypes
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


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST, AHEAD = 1 << 30, 1 << 26  # bytes


def keep_memory() -> bool:
    """Makes glibc keep freed memory for the next update instead of returning it; False with another C library.

    An update frees arrays of tens of megabytes; fetched back page by page they took 9 % of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: AHEAD}
    return all([mallopt(option, value) == 1 for option, value in options.items()])


def pick_matmul() -> Library:
    """Switches torch's float32 matmuls from MKL, its default, to oneDNN where that is clearly faster; names the choice.

    Neither is the faster one everywhere: both are timed on one layer, milliseconds in all. oneDNN is reached by
    allowing lower precision, which it makes use of only on chips that have matrix units for it; so what it computes is
    looked at too, and a result that is not exact float32 is refused.
    """
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
