"""How torch is set up for a CPU: which library multiplies matrices, and what becomes of freed memory."""

import ctypes
import re
from pathlib import Path
from typing import Literal

import torch

Library = Literal["MKL", "oneDNN"]
PRECISIONS: dict[Library, str] = {"MKL": "highest", "oneDNN": "medium"}
ROWS, INNER, COLUMNS = 1024, 512, 64  # a layer of the heads at size1m
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


def pick_matmul(vendor: str) -> Library:
    """Switches torch's float32 matmuls from MKL, its default, to oneDNN on a chip of AMD; names the choice.

    There oneDNN took 0.72 to 0.98 of MKL's time on a layer of size1m (EPYC, one thread). Which is faster is not
    measured here: a near tie would give two runs of one seed different roundings. oneDNN is reached by allowing lower
    precision, which it makes use of only on chips that have units for it; so what it computes is looked at, and a
    result that is not exact float32 is refused.
    """
    chosen: Library = "oneDNN" if vendor == "AuthenticAMD" else "MKL"
    left, right = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision(PRECISIONS[chosen])
    if ((left @ right).double() - exact).abs().max() / exact.abs().max() >= LARGEST_ERROR:
        chosen = "MKL"
        torch.set_float32_matmul_precision(PRECISIONS[chosen])
    return chosen


def cpu_vendor() -> str:
    """AuthenticAMD, GenuineIntel and so on; empty where Linux does not say."""
    return cpu_info("vendor_id")


def cpu_info(name: str) -> str:
    """What Linux says of the first core, such as its `model name`; empty where it does not."""
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{name}\s*:\s*(\S.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""
